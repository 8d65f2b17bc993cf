//! EndpointSlice and Endpoints.

use std::sync::Arc;

use serde::Deserialize;

use super::fields::{Address, PortOrNone, Protocol, nullable};
use super::meta::{OptOut, RawMeta};

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct EndpointSlice {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name; says nothing about the Service.
    pub name: Arc<str>,
    /// Label `kubernetes.io/service-name`, the only thing that ties a slice to its Service.
    pub service: Option<Arc<str>>,
    /// What its addresses are.
    pub address_type: AddressType,
    /// The ports that every endpoint of it has.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
    /// The label that takes it away from us, if there is one.
    pub opt_out: Option<OptOut>,
}

/// What the addresses of a slice are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum AddressType {
    /// IPv4 addresses.
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// Names; no proxy gives them a meaning.
    #[serde(other)]
    Fqdn,
}

/// A port of a slice or subset.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct SlicePort {
    /// The name of the Service's port; empty for a single unnamed one.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The number; `None` where it is not set or zero, which adds no endpoints.
    pub port: Option<u16>,
}

/// One endpoint, conditions resolved.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Endpoint {
    /// The first address; all others are the same endpoint again.
    pub address: Address,
    /// `conditions.ready`, true when not set.
    pub ready: bool,
    /// `conditions.serving`, as `ready` when not set.
    pub serving: bool,
    /// `conditions.terminating`, false when not set.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// The zone it runs in.
    pub zone: Option<Arc<str>>,
    /// `hostname`, its name below the Service's in DNS.
    pub hostname: Option<Arc<str>>,
    /// `targetRef.name`, where that is a Pod of the same namespace.
    pub pod: Option<Arc<str>>,
    /// Whom it should serve.
    pub hints: Option<Box<Hints>>,
}

/// Whom an endpoint should serve.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct Hints {
    /// Names of zones.
    pub zones: Box<[Arc<str>]>,
    /// Names of nodes (KEP-3015).
    pub nodes: Box<[Arc<str>]>,
}

/// An Endpoints object, the older form of a slice.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Endpoints {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name, which is the Service's.
    pub name: Arc<str>,
    /// The subsets.
    pub subsets: Box<[Subset]>,
    /// The label that takes it away from us, if there is one.
    pub opt_out: Option<OptOut>,
}

/// Endpoints with the ports they share.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Subset {
    /// The ports.
    pub ports: Box<[SlicePort]>,
    /// The endpoints, ready ones and others.
    pub endpoints: Box<[Endpoint]>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice {
    metadata: RawMeta,
    address_type: AddressType,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<RawPort>,
    #[serde(default, deserialize_with = "nullable")]
    endpoints: Vec<RawEndpoint>,
}

#[derive(Deserialize)]
struct RawPort {
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default, deserialize_with = "nullable")]
    protocol: Protocol,
    #[serde(default, deserialize_with = "nullable")]
    port: PortOrNone,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<Address>,
    #[serde(default, deserialize_with = "nullable")]
    conditions: Conditions,
    #[serde(default)]
    node_name: Option<Arc<str>>,
    #[serde(default)]
    hostname: Option<Arc<str>>,
    #[serde(default)]
    zone: Option<Arc<str>>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
    #[serde(default, deserialize_with = "nullable")]
    hints: RawHints,
}

#[derive(Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    serving: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    kind: Option<Box<str>>,
    #[serde(default)]
    name: Option<Arc<str>>,
    #[serde(default)]
    namespace: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHints {
    #[serde(default, deserialize_with = "nullable")]
    for_zones: Vec<HintName>,
    #[serde(default, deserialize_with = "nullable")]
    for_nodes: Vec<HintName>,
}

#[derive(Deserialize)]
struct HintName {
    name: Arc<str>,
}

#[derive(Deserialize)]
struct RawEndpoints {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    subsets: Vec<RawSubset>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSubset {
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<RawAddress>,
    #[serde(default, deserialize_with = "nullable")]
    not_ready_addresses: Vec<RawAddress>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<RawPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAddress {
    ip: Address,
    #[serde(default)]
    hostname: Option<Arc<str>>,
    #[serde(default)]
    node_name: Option<Arc<str>>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
}

impl From<RawPort> for SlicePort {
    fn from(raw: RawPort) -> Self {
        Self {
            name: raw.name.unwrap_or_else(|| Arc::from("")),
            protocol: raw.protocol,
            port: (raw.port.0 > 0).then_some(raw.port.0),
        }
    }
}

/// The name of the Pod in `namespace` that a reference names, if it does.
fn pod_of(target: Option<TargetRef>, namespace: &str) -> Option<Arc<str>> {
    let target = target?;
    let here = target.namespace.is_none_or(|n| n.is_empty() || *n == *namespace);
    (here && target.kind.as_deref() == Some("Pod")).then_some(target.name).flatten()
}

fn named(name: Option<Arc<str>>) -> Option<Arc<str>> {
    name.filter(|n| !n.is_empty())
}

fn endpoint(raw: RawEndpoint, namespace: &str) -> Option<Endpoint> {
    let ready = raw.conditions.ready.unwrap_or(true);
    let hints = Hints {
        zones: raw.hints.for_zones.into_iter().map(|h| h.name).collect(),
        nodes: raw.hints.for_nodes.into_iter().map(|h| h.name).collect(),
    };
    Some(Endpoint {
        address: raw.addresses.into_iter().next()?,
        ready,
        serving: raw.conditions.serving.unwrap_or(ready),
        terminating: raw.conditions.terminating.unwrap_or(false),
        node: named(raw.node_name),
        zone: named(raw.zone),
        hostname: named(raw.hostname),
        pod: pod_of(raw.target_ref, namespace),
        hints: (hints != Hints::default()).then(|| Box::new(hints)),
    })
}

fn address(raw: RawAddress, namespace: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: raw.ip,
        ready,
        serving: ready,
        terminating: false,
        node: named(raw.node_name),
        zone: None,
        hostname: named(raw.hostname),
        pod: pod_of(raw.target_ref, namespace),
        hints: None,
    }
}

impl<'de> Deserialize<'de> for EndpointSlice {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = RawSlice::deserialize(from)?;
        let namespace = raw.metadata.namespace();
        Ok(Self {
            service: raw
                .metadata
                .label("kubernetes.io/service-name")
                .filter(|s| !s.is_empty())
                .map(Arc::from),
            opt_out: raw.metadata.opt_out(),
            address_type: raw.address_type,
            ports: raw.ports.into_iter().map(SlicePort::from).collect(),
            endpoints: raw.endpoints.into_iter().filter_map(|e| endpoint(e, &namespace)).collect(),
            name: raw.metadata.name.0,
            namespace,
        })
    }
}

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = RawEndpoints::deserialize(from)?;
        let namespace = raw.metadata.namespace();
        let subset = |s: RawSubset| {
            let ready = s.addresses.into_iter().map(|a| address(a, &namespace, true));
            let others = s.not_ready_addresses.into_iter().map(|a| address(a, &namespace, false));
            Subset {
                endpoints: ready.chain(others).collect(),
                ports: s.ports.into_iter().map(SlicePort::from).collect(),
            }
        };
        Ok(Self {
            opt_out: raw.metadata.opt_out(),
            subsets: raw.subsets.into_iter().map(subset).collect(),
            name: raw.metadata.name.0,
            namespace,
        })
    }
}
