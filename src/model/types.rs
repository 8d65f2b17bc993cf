//! The vocabulary: newtypes for addresses and names, and the snapshot that everything downstream reads.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

pub use crate::source::slim::HttpPool;

use super::external::{External, HealthCheck, Here};

/// Where a client wanted to go, before the packet filter redirected it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrigDst(pub SocketAddr);

/// The client's own address, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddr(pub SocketAddr);

/// The address that this node dials to reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendAddr(pub SocketAddr);

/// The zone of a node, label `topology.kubernetes.io/zone`.
pub type Zone = Arc<str>;

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, intercepted.
    Tcp,
    /// UDP, intercepted.
    Udp,
    /// SCTP, left alone.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// One `address:port` and protocol on which a service port is offered to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The service's address, normally a ClusterIP.
    pub ip: IpAddr,
    /// The service's port.
    pub port: u16,
    /// The transport protocol; 53/TCP and 53/UDP are two frontends.
    pub protocol: Protocol,
}

impl Frontend {
    /// The address and port without the protocol.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.protocol)
    }
}

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Identity of a service port: Service, port name (may be empty) and protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId {
    /// The Service.
    pub service: ServiceId,
    /// The port's name, empty for a single unnamed port.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.name.is_empty() {
            write!(f, ":{}", self.name)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

/// How a backend is dialled from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// podIP:targetPort, a pod on this node or on a routed pod network.
    Pod,
    /// hostIP:hostPort of the pod's node.
    HostPort,
    /// hostIP:targetPort of a pod in its node's network namespace.
    HostNetwork,
    /// An address in a slice that belongs to no pod.
    External,
    /// No way from here; the reason stands in [`Exclusion::Unreachable`].
    Unreachable,
}

impl Reach {
    /// The word of the public contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::HostPort => "host-port",
            Self::HostNetwork => "host-network",
            Self::External => "external",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What is spoken on a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Opaque TCP.
    Tcp,
    /// HTTP by `appProtocol` or port name.
    Http,
    /// UDP datagrams.
    Udp,
}

impl Mode {
    /// The word of the public contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Udp => "udp",
        }
    }
}

/// How a backend is picked among the eligible ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The better of two random backends by load.
    #[default]
    LeastRequest,
    /// Each in turn.
    RoundRobin,
    /// Any.
    Random,
    /// By the client's address, never its port.
    SourceIp,
    /// By the value of an HTTP request header.
    Header(Arc<str>),
    /// By the value of a cookie.
    Cookie(Arc<CookieRule>),
}

/// A cookie by which clients come back to the same backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CookieRule {
    /// Its name.
    pub name: Box<str>,
    /// The path that it is set for; may be empty.
    pub path: Box<str>,
    /// Its lifetime, with which clients that have none get one; zero: as long as their session.
    pub ttl: Option<Duration>,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeastRequest => f.write_str("least-request"),
            Self::RoundRobin => f.write_str("round-robin"),
            Self::Random => f.write_str("random"),
            Self::SourceIp => f.write_str("source-ip"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(rule) => write!(f, "cookie:{}", rule.name),
        }
    }
}

/// Settings of passive ejection that a `DestinationRule` may override; `None` keeps the agent's default.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct OutlierDetection {
    /// Consecutive failures until a backend is ejected; 0: never.
    pub consecutive_errors: Option<u32>,
    /// First ejection time; it doubles from there.
    pub base_ejection_time: Option<Duration>,
    /// Most backends that may be out at once, in percent.
    pub max_ejection_percent: Option<u8>,
}

/// One endpoint of a service port with the address that this node dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What this node dials. For an unreachable backend: the endpoint's own address.
    pub addr: BackendAddr,
    /// The endpoint as the slice names it (podIP:targetPort).
    pub endpoint: SocketAddr,
    /// The way to it.
    pub reach: Reach,
    /// The node it runs on, where known.
    pub node: Option<Arc<str>>,
    /// The zone it runs in, where known.
    pub zone: Option<Zone>,
    /// The pod's name, where known.
    pub pod: Option<Arc<str>>,
    /// True if it runs on this node.
    pub local: bool,
    /// True if its pod is terminating and it serves only because nothing better is left.
    pub terminating: bool,
}

/// Why an endpoint of a service port gets no traffic from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// Its `ready` condition is false.
    NotReady,
    /// Its pod is terminating, and others are ready.
    Terminating,
    /// `internalTrafficPolicy: Local` and it runs elsewhere.
    NotLocal,
    /// `externalTrafficPolicy: Local` and it runs elsewhere.
    NotLocalExternal,
    /// No way to reach it from here, with the reason.
    Unreachable(String),
    /// Dialling it would lead back into this agent, with the reason.
    Loop(String),
    /// Its address or port cannot be used, with the reason.
    Invalid(String),
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("not ready"),
            Self::Terminating => f.write_str("terminating, while others are ready"),
            Self::NotLocal => f.write_str("not on this node, and internalTrafficPolicy is Local"),
            Self::NotLocalExternal => f.write_str("not on this node, and externalTrafficPolicy is Local"),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Loop(why) => write!(f, "would loop: {why}"),
            Self::Invalid(why) => write!(f, "invalid: {why}"),
        }
    }
}

/// An endpoint that gets no traffic, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// The endpoint.
    pub backend: Backend,
    /// The reason.
    pub why: Exclusion,
}

/// The backends of a service port for one address family.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BackendSet {
    /// The backends that may be picked, without duplicates. The first [`Self::preferred`] are picked from;
    /// the rest (other zones or nodes, by topology hints) only after those have failed to connect.
    pub eligible: Vec<Backend>,
    /// How many of `eligible`, from the front, are preferred. Equals its length when topology plays no part.
    pub preferred: usize,
    /// The endpoints that may not be picked, each with its reason.
    pub excluded: Vec<Excluded>,
}

/// One service port as this node serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its identity.
    pub id: PortId,
    /// The port number clients use.
    pub number: u16,
    /// `appProtocol` as written.
    pub app_protocol: Option<Arc<str>>,
    /// What is spoken on it.
    pub mode: Mode,
    /// `clusterIP:port` for every ClusterIP.
    pub frontends: Vec<SocketAddr>,
    /// How a backend is picked.
    pub policy: Policy,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// Connect timeout for one dial, where an annotation or a `DestinationRule` sets it.
    pub connect_timeout: Option<Duration>,
    /// Most connections at once, where an annotation or a `DestinationRule` sets it.
    pub max_connections: Option<u32>,
    /// Bounds on its HTTP requests and on the connections that carry them, where a `DestinationRule` sets them.
    pub http_pool: Option<Box<HttpPool>>,
    /// Whether backends are told the client's address with a PROXY protocol header, version 2.
    pub proxy_protocol: bool,
    /// Backends on this node see the client's own address, where that can be had.
    pub keep_source: bool,
    /// Passive ejection settings, where a `DestinationRule` sets them.
    pub outlier: OutlierDetection,
    /// Backends for IPv4 frontends.
    pub v4: BackendSet,
    /// Backends for IPv6 frontends.
    pub v6: BackendSet,
    /// Its frontends for clients outside of the cluster, where it has any.
    pub external: Option<Box<External>>,
}

impl ServicePort {
    /// The backends for a ClusterIP of `ip`'s family.
    pub fn backends(&self, ip: IpAddr) -> &BackendSet {
        if ip.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// True if a connection to `frontend` has somewhere to go; otherwise it is refused before it is accepted.
    pub fn is_served(&self, frontend: SocketAddr) -> bool {
        !self.backends(frontend.ip()).eligible.is_empty()
    }
}

/// A Service that this node does not intercept, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotProxied {
    /// Its `ClusterIPs`; they are left alone even inside a captured range.
    pub cluster_ips: Vec<IpAddr>,
    /// Why, in words.
    pub why: String,
}

/// What DNS has to know of a Service beyond its ClusterIPs and service ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// `clusterIP: None`: its name leads to its ready endpoints.
    Headless(Box<[NamedEndpoint]>),
    /// `type: ExternalName`, with the name it stands for.
    External(Arc<str>),
    /// It has ClusterIPs and is not intercepted; these are its ports.
    LeftAlone(Box<[NamedPort]>),
}

/// A ready endpoint of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Its own address, whatever way leads there.
    pub ip: IpAddr,
    /// Its name below the Service's, in lower case.
    pub hostname: Option<Arc<str>>,
    /// Its ports.
    pub ports: Box<[NamedPort]>,
}

/// A port that may have a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name; may be empty.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

/// The immutable table of all service ports and backends that this node serves from.
///
/// Its maps share structure with the snapshot before, so that a change costs what the change costs.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What is spoken for, by address, port and protocol. SCTP never stands here.
    pub frontends: OrdMap<Frontend, Arc<ServicePort>>,
    /// The same service ports by identity.
    pub ports: OrdMap<PortId, Arc<ServicePort>>,
    /// What is spoken for at node ports, external addresses and load balancer addresses.
    pub external: OrdMap<Frontend, Arc<ServicePort>>,
    /// The health checks that load balancers ask for, by port.
    pub health_checks: OrdMap<u16, HealthCheck>,
    /// What counts as this node where external frontends are concerned.
    pub here: Here,
    /// Services with a ClusterIP that are left alone (opted out, `default/kubernetes`, SCTP only).
    pub not_proxied: OrdMap<ServiceId, NotProxied>,
    /// Every Service name known, with its `ClusterIPs` (empty for headless ones), for `resolve` and later DNS.
    pub services: OrdMap<ServiceId, Arc<[IpAddr]>>,
    /// What DNS has to know beyond that: headless Services, `ExternalName`s, and those that are left alone.
    pub names: OrdMap<ServiceId, Arc<Names>>,
    /// The Service that has a ClusterIP.
    pub owners: OrdMap<IpAddr, ServiceId>,
    /// The endpoints of headless Services that have a name of their own there.
    pub hosts: OrdMap<(IpAddr, ServiceId), Arc<str>>,
    /// The namespaces of which a Namespace object is known; others may have Services all the same.
    pub namespaces: OrdSet<Arc<str>>,
    /// The Services that are the cluster's own DNS.
    pub cluster_dns: OrdSet<ServiceId>,
    /// Ranges named by `ServiceCIDR` objects, if there are any.
    pub service_cidrs: Vec<IpNet>,
    /// The address each Node's host ports are dialled at; captured ranges must not cover these.
    pub node_ips: Vec<IpAddr>,
    /// Things that were skipped and belong to no service port, each as one line for people.
    pub warnings: Vec<String>,
}
