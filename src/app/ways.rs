//! Which packets between pods, hosts and others pass this machine's routing.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::model::Local;

/// This host's routes and addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// The destinations of its routes, but the default ones.
    routed: Vec<IpNet>,
    own: Vec<IpAddr>,
}

impl Ways {
    /// Brings `shared` in step with `local`.
    pub(super) fn follow(shared: &ArcSwap<Self>, local: &Local) {
        let known = shared.load();
        if known.routed != local.routed || known.own != local.own_addresses {
            let (routed, own) = (local.routed.clone(), local.own_addresses.clone());
            shared.store(Arc::new(Self { routed, own }));
        }
    }

    /// Whether what `backend`, which is on this node, sends to `client` comes by this machine's routing. It does not where
    /// the backend takes the client for a neighbour on its bridge: there it answers directly.
    pub(super) fn is_between(&self, client: IpAddr, backend: IpAddr) -> bool {
        if self.own.contains(&backend) {
            return true;
        }
        let to_backend = self.routed.iter().filter(|net| net.contains(&backend));
        to_backend
            .max_by_key(|net| net.prefix_len())
            .is_none_or(|net| net.prefix_len() == net.max_prefix_len() || !net.contains(&client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_on_a_bridge_find_each_other_without_us() {
        let ways = Ways {
            routed: ["10.244.1.0/24", "10.244.1.9/32", "192.168.0.0/16"]
                .map(|net| net.parse().unwrap())
                .into(),
            own: vec!["192.168.0.1".parse().unwrap()],
        };
        let between =
            |client: &str, backend: &str| ways.is_between(client.parse().unwrap(), backend.parse().unwrap());
        assert!(!between("10.244.1.2", "10.244.1.3"), "both on the bridge");
        assert!(!between("10.244.1.9", "10.244.1.3"), "the backend takes it for a neighbour");
        assert!(between("10.244.1.3", "10.244.1.9"), "the backend stands alone behind its link");
        assert!(between("192.168.0.2", "10.244.1.3"));
        assert!(between("192.168.0.2", "192.168.0.1"), "this host itself answers");
        assert!(between("10.244.1.2", "172.16.0.1"), "by the default route");
    }
}
