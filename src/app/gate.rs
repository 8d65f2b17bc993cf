//! HTTP services by name at the DNS server's own link-local address, as with the oldest EdgeMesh.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::Settings;
use crate::model::{Audience, Door, Frontend, Mode, Protocol, ServiceId, Snapshot};
use crate::proxy::Gate;

use super::control::Shared;

/// The namespace of names without one.
const NAMESPACE: &str = "default";

/// The gate of an agent that answers names at the addresses in `shared`.
pub(super) fn open(settings: &Settings, shared: &Arc<Shared>) -> Gate {
    let (state, names) = (Arc::clone(shared), Arc::clone(shared));
    let domain = settings.dns.domain.to_ascii_lowercase();
    Gate {
        is: Arc::new(move |dst| is_at(&state.dns_listen.load(), dst)),
        find: Arc::new(move |name| {
            let snapshot = names.snapshot.load();
            let ips = snapshot.services.get(&service_of(name, &domain)?)?;
            // The older family first: the names of old clients led to nothing else.
            ips.iter().find(|ip| ip.is_ipv4()).or(ips.first()).copied()
        }),
    }
}

/// Whether `dst` is one of the link-local addresses at which names are answered, on another port.
fn is_at(listen: &BTreeSet<SocketAddr>, dst: SocketAddr) -> bool {
    addresses(listen).any(|ip| ip == dst.ip()) && !listen.contains(&dst)
}

fn addresses(listen: &BTreeSet<SocketAddr>) -> impl Iterator<Item = IpAddr> {
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
    listen.iter().map(SocketAddr::ip).filter(is_link_local)
}

/// What the packet filter is to capture for it: the numbers of the HTTP ports that are served.
pub(super) fn doors(snapshot: &Snapshot, listen: &BTreeSet<SocketAddr>) -> Vec<(Frontend, Door)> {
    let ports: BTreeSet<u16> = snapshot
        .frontends
        .iter()
        .filter(|(at, port)| {
            at.protocol == Protocol::Tcp && port.mode == Mode::Http && port.is_served(at.addr())
        })
        .map(|(at, _)| at.port)
        .collect();
    let at = |ip| {
        let ports = ports.iter().filter(move |port| !listen.contains(&SocketAddr::new(ip, **port)));
        ports.map(move |port| Frontend { ip, port: *port, protocol: Protocol::Tcp })
    };
    let door = Door { audience: Audience::All, sources: Vec::new() };
    addresses(listen).flat_map(at).map(|at| (at, door.clone())).collect()
}

/// Where requests are answered by name under `settings`, by an agent that answers names at `listen`.
pub(super) fn frontends(
    settings: &Settings,
    snapshot: &Snapshot,
    listen: &BTreeSet<SocketAddr>,
) -> BTreeSet<Frontend> {
    let doors = if settings.proxy.http.on { doors(snapshot, listen) } else { Vec::new() };
    doors.into_iter().map(|(at, _)| at).collect()
}

/// The service that a host name stands for: `name`, `name.namespace`, and what DNS would answer.
fn service_of(host: &str, domain: &str) -> Option<ServiceId> {
    let short = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix(".svc."));
    let short = short.or(host.strip_suffix(".svc")).unwrap_or(host);
    let (name, namespace) = match short.split_once('.') {
        Some((name, namespace)) => (name, namespace),
        // `name.svc` is a service in a namespace of that name, or none.
        None if short.len() == host.len() => (short, NAMESPACE),
        None => return None,
    };
    let is_label = |text: &str| !text.is_empty() && !text.contains('.');
    (is_label(name) && is_label(namespace))
        .then(|| ServiceId { namespace: namespace.into(), name: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_dns_answers_and_the_old_short_ones() {
        let of = |host| service_of(host, "cluster.local").map(|id| id.to_string());
        for host in ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
            assert_eq!(of(host).as_deref(), Some("shop/web"), "{host}");
        }
        assert_eq!(of("web").as_deref(), Some("default/web"));
        for host in [
            "",
            "web.",
            ".shop",
            "a.b.c",
            "web.svc",
            "web.shop.svc.example.com",
            "web.shop.pod.cluster.local",
        ] {
            assert_eq!(of(host), None, "{host}");
        }
    }

    #[test]
    fn only_link_local_addresses_are_gates_and_not_where_names_are_answered() {
        let listen = BTreeSet::from(["169.254.96.16:53", "127.0.0.1:53"].map(|a| a.parse().unwrap()));
        for (dst, is) in [
            ("169.254.96.16:80", true),
            ("169.254.96.16:53", false),
            ("127.0.0.1:80", false),
            ("169.254.1.1:80", false),
        ] {
            assert_eq!(is_at(&listen, dst.parse().unwrap()), is, "{dst}");
        }
        assert!(!is_at(&BTreeSet::new(), "169.254.96.16:80".parse().unwrap()));
    }
}
