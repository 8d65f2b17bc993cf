//! What the model must know about the node it stands on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{NodePortAddresses, PodNetwork};

use super::types::Frontend;

/// This node, as far as the choice of backends depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The node's name, as its Node object spells it.
    pub node_name: Arc<str>,
    /// Whether pods on other nodes can be dialled at their own address.
    pub pod_network: PodNetwork,
    /// Destinations of this host's routes other than the default ones; read with [`PodNetwork::Auto`] only.
    pub routed: Vec<IpNet>,
    /// Serve `default/kubernetes` as well.
    pub capture_kubernetes: bool,
    /// The value of the label `service.kubernetes.io/service-proxy-name` of the Services that are served; empty: those
    /// without the label.
    pub service_proxy_name: Arc<str>,
    /// The cluster's domain, without dots at its ends.
    pub cluster_domain: String,
    /// The ranges whose packets are redirected to the acceptor; nothing inside them is ever dialled.
    pub captured: Vec<IpNet>,
    /// The addresses of this host's interfaces.
    pub own_addresses: Vec<IpAddr>,
    /// The acceptor's port, 0 while it is not bound; never dialled on an own address.
    pub proxy_port: u16,
    /// On which of this host's addresses node ports are served; `None`: on none.
    pub node_ports: Option<NodePortAddresses>,
    /// Serve `externalIPs`.
    pub external_ips: bool,
    /// Where processes of this host listen, as far as it touches [`Store::exposed_ports`](super::Store).
    pub listening: BTreeSet<Frontend>,
}

impl Local {
    /// A node of that name with no routes, no ranges and everything else at its default.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: Arc::from(node_name),
            pod_network: PodNetwork::Auto,
            routed: Vec::new(),
            capture_kubernetes: false,
            service_proxy_name: Arc::from(""),
            cluster_domain: "cluster.local".to_owned(),
            captured: Vec::new(),
            own_addresses: Vec::new(),
            proxy_port: 0,
            node_ports: Some(NodePortAddresses::Primary),
            external_ips: false,
            listening: BTreeSet::new(),
        }
    }

    /// True if a route other than the default one, or the user's word, leads to the pod address `ip`.
    pub(super) fn routes(&self, ip: IpAddr) -> bool {
        match self.pod_network {
            PodNetwork::Auto => self.routed.iter().any(|net| net.prefix_len() > 0 && net.contains(&ip)),
            PodNetwork::Routed => true,
            PodNetwork::None => false,
        }
    }
}
