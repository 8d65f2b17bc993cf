//! Service.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::fields::{Address, ClusterIp, MaybePortRef, PortNumber, PortRef, Protocol, nullable};
use super::meta::{OptOut, RawMeta};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not set (k8s.io/api core/v1).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// A Service.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Service {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// Its `ClusterIPs`, the primary one first; empty for headless, `ExternalName` and not yet allocated ones.
    pub cluster_ips: Box<[IpAddr]>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `type: ExternalName`; the `ClusterIPs` play no part then.
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
    /// What it offers to clients outside of the cluster, besides the node ports of its ports.
    pub exposure: Option<Box<Exposure>>,
    /// The label that takes it away from us, if there is one.
    pub opt_out: Option<OptOut>,
    /// Annotation `edgesplice.io/load-balancing`.
    pub load_balancing: Option<Box<str>>,
    /// Annotation `edgesplice.io/connect-timeout`.
    pub connect_timeout: Option<Box<str>>,
    /// Annotation `edgesplice.io/max-connections`.
    pub max_connections: Option<Box<str>>,
    /// Annotation `edgesplice.io/proxy-protocol`.
    pub proxy_protocol: Option<Box<str>>,
    /// Annotation `edgesplice.io/source-address`.
    pub source_address: Option<Box<str>>,
    /// `creationTimestamp`; RFC 3339 in UTC, so that text order is time order.
    pub created: Option<Box<str>>,
    /// `resourceVersion` as a number, 0 where it is none.
    pub resource_version: u64,
}

/// What a Service offers to clients outside of the cluster, and on what terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Exposure {
    /// `externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` of a Service of type `LoadBalancer`, those with `ipMode: VIP` (the default).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Who may use the load balancer's addresses; empty: everybody. `loadBalancerSourceRanges`, else the annotation
    /// `service.beta.kubernetes.io/load-balancer-source-ranges`.
    pub source_ranges: Box<[IpNet]>,
    /// `externalTrafficPolicy: Local`.
    pub local_only: bool,
    /// `healthCheckNodePort` of a Service of type `LoadBalancer` with `externalTrafficPolicy: Local`.
    pub health_check_port: Option<u16>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Hash)]
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
    /// `nodePort`.
    pub node_port: Option<u16>,
}

#[derive(Deserialize)]
struct RawService {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStatus {
    #[serde(default, deserialize_with = "nullable")]
    load_balancer: RawLoadBalancer,
}

#[derive(Default, Deserialize)]
struct RawLoadBalancer {
    #[serde(default, deserialize_with = "nullable")]
    ingress: Vec<RawIngress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIngress {
    #[serde(default)]
    ip: Option<Address>,
    #[serde(default)]
    ip_mode: Option<Box<str>>,
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
    #[serde(rename = "externalIPs", default, deserialize_with = "nullable")]
    external_ips: Vec<Address>,
    #[serde(default)]
    external_traffic_policy: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    load_balancer_source_ranges: Vec<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    health_check_node_port: u16,
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
    #[serde(default, deserialize_with = "nullable")]
    node_port: u16,
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawService { metadata, spec, status } = RawService::deserialize(from)?;
        let exposure = exposure(&metadata, &spec, &status).map_err(serde::de::Error::custom)?;
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
            connect_timeout: metadata.annotation("edgesplice.io/connect-timeout").map(Box::from),
            max_connections: metadata.annotation("edgesplice.io/max-connections").map(Box::from),
            proxy_protocol: metadata.annotation("edgesplice.io/proxy-protocol").map(Box::from),
            source_address: metadata.annotation("edgesplice.io/source-address").map(Box::from),
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
            exposure: (exposure != Exposure::default()).then(|| Box::new(exposure)),
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
            node_port: Some(raw.node_port).filter(|port| *port != 0),
        }
    }
}

fn exposure(metadata: &RawMeta, spec: &RawSpec, status: &RawStatus) -> Result<Exposure, String> {
    let load_balancer = spec.kind.as_deref() == Some("LoadBalancer");
    let local_only = spec.external_traffic_policy.as_deref() == Some("Local");
    // The field beats the annotation; blanks and empty entries are allowed in both.
    let annotation =
        metadata.annotation("service.beta.kubernetes.io/load-balancer-source-ranges").unwrap_or("");
    let written: Vec<&str> = if spec.load_balancer_source_ranges.is_empty() {
        annotation.split(',').collect()
    } else {
        spec.load_balancer_source_ranges.iter().map(AsRef::as_ref).collect()
    };
    let ranges = written.into_iter().map(str::trim).filter(|text| !text.is_empty()).map(|text| {
        let net = text.parse().map(|net: IpNet| net.trunc());
        net.map_err(|_| format!("load balancer source range {text:?} is not a CIDR such as 192.0.2.0/24"))
    });
    let vip = |ingress: &RawIngress| {
        ingress
            .ip_mode
            .as_deref()
            .is_none_or(|mode| mode == "VIP")
            .then(|| ingress.ip.as_ref()?.ip())
            .flatten()
    };
    Ok(Exposure {
        external_ips: spec.external_ips.iter().filter_map(Address::ip).collect(),
        load_balancer_ips: status
            .load_balancer
            .ingress
            .iter()
            .filter(|_| load_balancer)
            .filter_map(vip)
            .collect(),
        source_ranges: ranges.filter(|_| load_balancer).collect::<Result<_, _>>()?,
        local_only,
        health_check_port: Some(spec.health_check_node_port)
            .filter(|port| *port != 0 && load_balancer && local_only),
    })
}
