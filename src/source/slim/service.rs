//! Service.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::fields::{ClusterIp, MaybePortRef, PortNumber, PortRef, Protocol, nullable};
use super::meta::{OptOut, RawMeta};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not set (k8s.io/api core/v1).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// Its ClusterIPs, the primary one first; empty for headless, ExternalName and not yet allocated ones.
    pub cluster_ips: Box<[IpAddr]>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `type: ExternalName`; the ClusterIPs play no part then.
    pub external_name: bool,
    /// `externalName`, without a dot at its end.
    pub external_target: Option<Box<str>>,
    /// Label `k8s-app: kube-dns`, or `kube-system/kube-dns` itself: the cluster's DNS.
    pub cluster_dns: bool,
    /// The ports.
    pub ports: Box<[ServicePort]>,
    /// The selector, sorted by key.
    pub selector: Box<[(Arc<str>, Arc<str>)]>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// The label that takes it away from us, if there is one.
    pub opt_out: Option<OptOut>,
    /// Annotation `edgesplice.io/load-balancing`.
    pub load_balancing: Option<Box<str>>,
    /// `creationTimestamp`; RFC 3339 in UTC, so that text order is time order.
    pub created: Option<Box<str>>,
    /// `resourceVersion` as a number, 0 where it is none.
    pub resource_version: u64,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// The name; empty for a single unnamed port.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The number that clients use.
    pub port: u16,
    /// The port of the pods.
    pub target: PortRef,
    /// `appProtocol` as written.
    pub app_protocol: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct RawService {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(rename = "type", default)]
    kind: Option<Box<str>>,
    #[serde(rename = "clusterIP", default, deserialize_with = "nullable")]
    cluster_ip: ClusterIp,
    #[serde(rename = "clusterIPs", default, deserialize_with = "nullable")]
    cluster_ips: Vec<ClusterIp>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<RawPort>,
    #[serde(default, deserialize_with = "nullable")]
    selector: std::collections::BTreeMap<Arc<str>, Option<Arc<str>>>,
    #[serde(default)]
    session_affinity: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    session_affinity_config: AffinityConfig,
    #[serde(default)]
    internal_traffic_policy: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    publish_not_ready_addresses: bool,
    #[serde(default)]
    external_name: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP", default, deserialize_with = "nullable")]
    client_ip: ClientIpConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    #[serde(default)]
    timeout_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    #[serde(default)]
    name: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    protocol: Protocol,
    port: PortNumber,
    #[serde(default, deserialize_with = "nullable")]
    target_port: MaybePortRef,
    #[serde(default)]
    app_protocol: Option<Arc<str>>,
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawService { metadata, spec } = RawService::deserialize(from)?;
        let primary = [spec.cluster_ip];
        let written: &[ClusterIp] = if spec.cluster_ips.is_empty() { &primary } else { &spec.cluster_ips };
        if spec.cluster_ip != ClusterIp::Unset && spec.cluster_ip != written[0] {
            return Err(serde::de::Error::custom("spec.clusterIP differs from the first of spec.clusterIPs"));
        }
        let mut cluster_ips = Vec::with_capacity(written.len());
        for ip in written {
            if let ClusterIp::Ip(ip) = ip
                && !cluster_ips.contains(ip)
            {
                cluster_ips.push(*ip);
            }
        }
        let named_so = &*metadata.namespace() == "kube-system" && &*metadata.name.0 == "kube-dns";
        let cluster_dns = named_so || metadata.label("k8s-app") == Some("kube-dns");
        let external_target = spec.external_name.as_deref().map(|name| name.trim_end_matches('.'));
        let timeout = spec.session_affinity_config.client_ip.timeout_seconds.filter(|s| *s > 0);
        Ok(Self {
            opt_out: metadata.opt_out(),
            load_balancing: metadata.annotation("edgesplice.io/load-balancing").map(Box::from),
            resource_version: metadata.resource_version(),
            namespace: metadata.namespace(),
            name: metadata.name.0,
            cluster_ips: cluster_ips.into(),
            headless: written[0] == ClusterIp::Headless,
            external_name: spec.kind.as_deref() == Some("ExternalName"),
            external_target: external_target.filter(|name| !name.is_empty()).map(Box::from),
            cluster_dns,
            ports: spec.ports.into_iter().map(ServicePort::from).collect(),
            selector: spec
                .selector
                .into_iter()
                .map(|(key, value)| (key, value.unwrap_or_else(|| Arc::from(""))))
                .collect(),
            affinity_seconds: (spec.session_affinity.as_deref() == Some("ClientIP"))
                .then(|| timeout.unwrap_or(DEFAULT_AFFINITY_SECONDS)),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            publish_not_ready: spec.publish_not_ready_addresses,
            created: metadata.creation_timestamp,
        })
    }
}

impl From<RawPort> for ServicePort {
    fn from(raw: RawPort) -> Self {
        Self {
            name: Arc::from(raw.name.as_deref().unwrap_or("")),
            protocol: raw.protocol,
            port: raw.port.0,
            target: raw.target_port.0.unwrap_or(PortRef::Number(raw.port.0)),
            app_protocol: raw.app_protocol.filter(|p| !p.is_empty()),
        }
    }
}
