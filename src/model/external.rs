//! Frontends for clients outside of the cluster: node ports, external addresses, load balancer addresses.
//!
//! `externalTrafficPolicy` says who serves clients from elsewhere. Clients of this node (its own processes and the
//! pods in its pod ranges) are served from the whole cluster whatever it says, as kube-proxy does.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::types::{BackendSet, ServiceId, ServicePort};

/// How a client comes to a service port; backends are chosen by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// By a ClusterIP.
    ClusterIp,
    /// By an external frontend, from this node.
    Here,
    /// By an external frontend, from elsewhere.
    Outside,
}

/// What an external frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalKind {
    /// A node port on one of this node's addresses.
    NodePort,
    /// One of `externalIPs`.
    ExternalIp,
    /// An address of a load balancer, `ipMode: VIP`. Only here do source ranges hold.
    LoadBalancer,
}

impl ExternalKind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodePort => "node port",
            Self::ExternalIp => "external address",
            Self::LoadBalancer => "load balancer address",
        }
    }
}

/// One external frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalFrontend {
    /// Where clients connect to.
    pub addr: SocketAddr,
    /// What it is.
    pub kind: ExternalKind,
    /// Why it is left alone on this node, if it is.
    pub left_alone: Option<String>,
}

/// The external frontends of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// All of them, those that are left alone as well.
    pub frontends: Vec<ExternalFrontend>,
    /// `externalTrafficPolicy: Local`.
    pub local_only: bool,
    /// Who may use the load balancer's addresses; of a family with no range here, everybody.
    pub source_ranges: Arc<[IpNet]>,
    /// The backends for both families, IPv4 first, that the other traffic policy gives: those of the whole cluster
    /// where `internalTrafficPolicy` is `Local`, else those of this node. Only where somebody may need them.
    pub other: Option<[BackendSet; 2]>,
}

/// Whom an external frontend can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Audience {
    /// Nobody: no usable backend anywhere.
    Nobody,
    /// Clients of this node: the usable backends run elsewhere, and `externalTrafficPolicy` is `Local`.
    Here,
    /// Everybody.
    All,
}

/// What the packet filter must know of an external frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// Whom it can serve; others are refused.
    pub audience: Audience,
    /// From where it may be used, in order and without duplicates; empty: from anywhere.
    pub sources: Vec<IpNet>,
}

/// What counts as this node where external frontends are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The addresses at which node ports are served.
    pub node_port_addresses: Vec<IpAddr>,
    /// The addresses of this host's interfaces.
    pub addresses: Vec<IpAddr>,
    /// The ranges of this node's pods, from its Node object, at most one of each family.
    pub pods: Vec<IpNet>,
}

impl Here {
    /// Whether a client at `ip` runs on this node.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip) || self.pods.iter().any(|net| net.contains(&ip))
    }
}

/// `healthCheckNodePort` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceId,
    /// How many of its ready endpoints run on this node, by distinct address.
    pub local_endpoints: usize,
}

impl ServicePort {
    /// The backends for clients that come by `via` to a frontend of `ip`'s family.
    pub fn backends_via(&self, via: Via, ip: IpAddr) -> &BackendSet {
        let other = self.external.as_ref().filter(|_| self.takes_other(via)).and_then(|e| e.other.as_ref());
        match other {
            Some([v4, v6]) => {
                if ip.is_ipv4() {
                    v4
                } else {
                    v6
                }
            }
            None => self.backends(ip),
        }
    }

    /// Whether clients that come by `via` are served by another list than those of the ClusterIP.
    pub fn takes_other(&self, via: Via) -> bool {
        let Some(external) = &self.external else { return false };
        match via {
            Via::ClusterIp => false,
            Via::Here => self.local_only,
            Via::Outside => self.local_only != external.local_only,
        }
    }

    /// Every address that it is offered at on this node, the ClusterIPs first.
    pub fn all_frontends(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let external = self.external.iter().flat_map(|external| &external.frontends);
        let external =
            external.filter(|frontend| frontend.left_alone.is_none()).map(|frontend| frontend.addr);
        self.frontends.iter().copied().chain(external)
    }

    /// The external frontend at `addr`.
    pub fn external_at(&self, addr: SocketAddr) -> Option<&ExternalFrontend> {
        self.external.as_ref()?.frontends.iter().find(|frontend| frontend.addr == addr)
    }

    /// From where the external frontend at `addr` may be used; empty: from anywhere.
    pub fn sources(&self, addr: SocketAddr) -> impl Iterator<Item = IpNet> + '_ {
        let guarded = self.external_at(addr).is_some_and(|f| f.kind == ExternalKind::LoadBalancer);
        let ranges = self.external.as_ref().filter(|_| guarded).map(|external| &*external.source_ranges);
        let v4 = addr.is_ipv4();
        ranges.into_iter().flatten().copied().filter(move |net| net.addr().is_ipv4() == v4)
    }

    /// What the packet filter must know of the external frontend at `addr`.
    pub fn door(&self, addr: SocketAddr) -> Door {
        let some = |via| !self.backends_via(via, addr.ip()).eligible.is_empty();
        let audience = match (some(Via::Outside), some(Via::Here)) {
            (true, _) => Audience::All,
            (false, true) => Audience::Here,
            (false, false) => Audience::Nobody,
        };
        let mut sources: Vec<IpNet> = self.sources(addr).collect();
        // Everybody: no range at all, and no set of the kernel takes a prefix of length 0.
        if sources.iter().any(|net| net.prefix_len() == 0) {
            sources.clear();
        }
        sources.sort_unstable();
        sources.dedup();
        Door { audience, sources }
    }

    /// Whether a client at `client` may use the external frontend at `addr`.
    pub fn allows(&self, addr: SocketAddr, client: IpAddr) -> bool {
        let mut sources = self.sources(addr).peekable();
        sources.peek().is_none() || sources.any(|net| net.contains(&client))
    }
}
