//! Pod: where it runs, at which addresses, and which of its ports its node publishes.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::fields::{Address, PortNumber, PortOrNone, Protocol, nullable};
use super::meta::RawMeta;

/// A Pod.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Pod {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// `hostNetwork`.
    pub host_network: bool,
    /// `hostname` and `subdomain`, where it has both: its name in DNS below the headless Service `subdomain`.
    pub dns_name: Option<Box<(Arc<str>, Arc<str>)>>,
    /// Its named or published ports: those of its containers, then those of its sidecars (init containers with
    /// `restartPolicy: Always`).
    pub ports: Box<[PodPort]>,
    /// Its labels, sorted by key.
    pub labels: Box<[(Arc<str>, Arc<str>)]>,
    /// `status.phase`.
    pub phase: Phase,
    /// Its `Ready` condition.
    pub ready: bool,
    /// It has a `deletionTimestamp`.
    pub terminating: bool,
    /// `status.podIPs`, or `podIP` alone.
    pub ips: Box<[IpAddr]>,
    /// `status.hostIPs`, or `hostIP` alone.
    pub host_ips: Box<[IpAddr]>,
}

/// A container port that has a name or is published on the node.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct PodPort {
    /// The name; empty where it has none.
    pub name: Box<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: Option<u16>,
    /// The only address of the node on which the port is published; `None`: on all.
    pub host_ip: Option<Address>,
}

/// How far a Pod's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// `Running`.
    Running,
    /// `Succeeded` or `Failed`: it will never serve again.
    Ended,
    /// `Pending`, `Unknown` or not known.
    Other,
}

#[derive(Deserialize)]
struct RawPod {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(default)]
    node_name: Option<Arc<str>>,
    #[serde(default, deserialize_with = "nullable")]
    host_network: bool,
    #[serde(default)]
    hostname: Option<Arc<str>>,
    #[serde(default)]
    subdomain: Option<Arc<str>>,
    #[serde(default, deserialize_with = "nullable")]
    containers: Vec<RawContainer>,
    #[serde(default, deserialize_with = "nullable")]
    init_containers: Vec<RawContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    #[serde(default)]
    restart_policy: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<RawPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    #[serde(default)]
    name: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    protocol: Protocol,
    container_port: PortNumber,
    #[serde(default, deserialize_with = "nullable")]
    host_port: PortOrNone,
    #[serde(rename = "hostIP", default)]
    host_ip: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStatus {
    #[serde(default)]
    phase: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    conditions: Vec<RawCondition>,
    #[serde(rename = "podIP", default)]
    pod_ip: Option<Address>,
    #[serde(rename = "podIPs", default, deserialize_with = "nullable")]
    pod_ips: Vec<RawIp>,
    #[serde(rename = "hostIP", default)]
    host_ip: Option<Address>,
    #[serde(rename = "hostIPs", default, deserialize_with = "nullable")]
    host_ips: Vec<RawIp>,
}

#[derive(Deserialize)]
struct RawCondition {
    #[serde(rename = "type")]
    kind: Box<str>,
    status: Box<str>,
}

#[derive(Deserialize)]
struct RawIp {
    ip: Address,
}

/// All addresses of the list, or the single one where the list is empty.
fn addresses(list: Vec<RawIp>, single: Option<Address>) -> Box<[IpAddr]> {
    let all: Box<[IpAddr]> = list.into_iter().filter_map(|raw| raw.ip.ip()).collect();
    if all.is_empty() { single.and_then(|a| a.ip()).into_iter().collect() } else { all }
}

fn port(raw: RawPort) -> Option<PodPort> {
    let name: Box<str> = raw.name.as_deref().unwrap_or("").into();
    let host_port = (raw.host_port.0 > 0).then_some(raw.host_port.0);
    if name.is_empty() && host_port.is_none() {
        return None; // nothing refers to it
    }
    let host_ip = raw.host_ip.filter(|h| !h.is_empty()).map(|h| Address::from(&*h));
    Some(PodPort {
        name,
        protocol: raw.protocol,
        container_port: raw.container_port.0,
        host_port,
        host_ip: host_ip.filter(|a| a.ip().is_none_or(|ip| !ip.is_unspecified())),
    })
}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawPod { metadata, spec, status } = RawPod::deserialize(from)?;
        let sidecars =
            spec.init_containers.into_iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let labels =
            metadata.labels.iter().map(|(k, v)| (Arc::from(&**k), Arc::from(v.as_deref().unwrap_or(""))));
        Ok(Self {
            namespace: metadata.namespace(),
            node: spec.node_name.filter(|n| !n.is_empty()),
            host_network: spec.host_network,
            dns_name: spec.hostname.zip(spec.subdomain).map(Box::new),
            ports: spec
                .containers
                .into_iter()
                .chain(sidecars)
                .flat_map(|c| c.ports)
                .filter_map(port)
                .collect(),
            labels: labels.collect(),
            phase: match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded" | "Failed") => Phase::Ended,
                _ => Phase::Other,
            },
            ready: status.conditions.iter().any(|c| &*c.kind == "Ready" && &*c.status == "True"),
            terminating: metadata.deletion_timestamp.is_some(),
            ips: addresses(status.pod_ips, status.pod_ip),
            host_ips: addresses(status.host_ips, status.host_ip),
            name: metadata.name.0,
        })
    }
}
