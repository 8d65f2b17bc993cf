//! One Service's frontends for clients outside of the cluster, as this node serves them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::NodePortAddresses;
use crate::source::slim::{self, Node};

use super::build::{Built, Sources, World, cluster_ips};
use super::external::{External, ExternalFrontend, ExternalKind, HealthCheck, Here, Via};
use super::gather::protocol_name;
use super::index::Dep;
use super::local::Local;
use super::types::{Frontend, ServicePort};

/// What counts as this node: `own` is its Node object.
pub(super) fn here(local: &Local, own: Option<&Node>) -> Here {
    let mut pods = Vec::new();
    for v4 in [true, false] {
        let cidrs = own.map_or(&[][..], |node| &node.pod_cidrs);
        pods.extend(cidrs.iter().find(|net| net.addr().is_ipv4() == v4).copied());
    }
    let node_port_addresses = match &local.node_ports {
        None => Vec::new(),
        Some(NodePortAddresses::Primary) => primary(local, own, &pods),
        Some(NodePortAddresses::Ranges(ranges)) => {
            // Loopback only where it is asked for by itself, not by 0.0.0.0/0.
            let fits = |ip: &&IpAddr| {
                let mut ranges = ranges.iter().filter(|net| net.contains(*ip));
                ranges.any(|net| !ip.is_loopback() || net.addr().is_loopback())
            };
            local.own_addresses.iter().filter(fits).copied().collect()
        }
    };
    Here { node_port_addresses, addresses: local.own_addresses.clone(), pods }
}

/// Of each family the first of the Node's addresses that is on an interface; without a Node object the first address
/// of an interface that is good beyond its link and no pod range's.
fn primary(local: &Local, own: Option<&Node>, pods: &[ipnet::IpNet]) -> Vec<IpAddr> {
    let beyond = |ip: &IpAddr| match ip {
        _ if ip.is_loopback() || pods.iter().any(|net| net.contains(ip)) => false,
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let of = |v4: bool| {
        let mut own_addresses = local.own_addresses.iter().filter(|ip| ip.is_ipv4() == v4);
        match own {
            Some(node) => {
                node.addresses.iter().find(|ip| ip.is_ipv4() == v4 && local.own_addresses.contains(ip))
            }
            None => own_addresses.find(|ip| beyond(ip)),
        }
    };
    [true, false].into_iter().filter_map(of).copied().collect()
}

/// The external frontends of one port; `None` where it has none.
pub(super) fn external(
    world: &World<'_>,
    from: &Sources<'_>,
    port: &slim::ServicePort,
    out: &mut Built,
) -> Option<External> {
    let exposure = from.service.exposure.as_deref();
    let families: Vec<bool> = cluster_ips(from.service).iter().map(IpAddr::is_ipv4).collect();
    let mut places: Vec<(SocketAddr, ExternalKind)> = Vec::new();
    if let Some(number) = port.node_port.filter(|_| world.local.node_ports.is_some()) {
        let at = |ip: &IpAddr| (SocketAddr::new(*ip, number), ExternalKind::NodePort);
        places.extend(world.here.node_port_addresses.iter().map(at));
    }
    let external_ips = exposure.map_or(&[][..], |e| &e.external_ips);
    if world.local.external_ips {
        places.extend(
            external_ips.iter().map(|ip| (SocketAddr::new(*ip, port.port), ExternalKind::ExternalIp)),
        );
    } else if !external_ips.is_empty() {
        out.warnings.push(format!(
            "Service {}: its externalIPs are not served unless intercept.externalIPs is true",
            from.id
        ));
    }
    let balancer = exposure.map_or(&[][..], |e| &e.load_balancer_ips);
    places.extend(balancer.iter().map(|ip| (SocketAddr::new(*ip, port.port), ExternalKind::LoadBalancer)));

    let mut frontends: Vec<ExternalFrontend> = Vec::new();
    for (addr, kind) in places {
        // A Service of one family has external frontends of that family only.
        if !families.contains(&addr.is_ipv4()) || frontends.iter().any(|known| known.addr == addr) {
            continue;
        }
        let left_alone = left_alone(world, (addr, kind), port.protocol, out);
        if let Some(why) = &left_alone {
            out.warnings.push(format!(
                "Service {}: the {} {addr} is left alone: {why}",
                from.id,
                kind.as_str()
            ));
        }
        frontends.push(ExternalFrontend { addr, kind, left_alone });
    }
    (!frontends.is_empty() || exposure.is_some_and(|e| e.health_check_port.is_some())).then(|| External {
        frontends,
        local_only: exposure.is_some_and(|e| e.local_only),
        source_ranges: exposure.map_or_else(Arc::default, |e| Arc::from(&*e.source_ranges)),
        other: None,
    })
}

/// Why an external frontend is not captured, if it is not. What somebody else has on this node stays theirs.
fn left_alone(
    world: &World<'_>,
    (addr, kind): (SocketAddr, ExternalKind),
    protocol: slim::Protocol,
    out: &mut Built,
) -> Option<String> {
    let ip = addr.ip();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let own = world.local.own_addresses.contains(&ip);
    if ip.is_unspecified()
        || ip.is_multicast()
        || link_local
        || (ip.is_loopback() && kind != ExternalKind::NodePort)
    {
        return Some("nobody can be reached there from outside".to_owned());
    }
    let protocol = protocol_name(protocol);
    out.deps.push(Dep::Address(ip).key());
    if world.claims.range((ip, 0)..=(ip, u32::MAX)).next().is_some() {
        return Some("the address is the ClusterIP of a Service".to_owned());
    }
    if let Some(range) = world.local.captured.iter().find(|range| range.contains(&ip)) {
        return Some(format!("the address is inside the service range {range}"));
    }
    if !own {
        return None;
    }
    out.deps.push(Dep::HostPort(protocol, addr.port()).key());
    if let Some(pods) = world.host_ports.get(&(protocol, addr.port()))
        && let Some((namespace, name)) = pods.first()
    {
        return Some(format!("pod {namespace}/{name} of this node has it as its hostPort"));
    }
    let places = [ip, IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    let mut places = places.map(|ip| Frontend { ip, port: addr.port(), protocol }).into_iter();
    let taken = places.any(|at| world.local.listening.contains(&at));
    taken.then(|| "a process of this node listens there".to_owned())
}

/// The health check that a Service asks for, given its ports.
pub(super) fn health_check(from: &Sources<'_>, ports: &[ServicePort]) -> Option<(u16, HealthCheck)> {
    let number = from.service.exposure.as_ref()?.health_check_port?;
    // Counted by address, not by port; in a dual-stack Service each pod has one address of each family.
    let count = |any: IpAddr| {
        let sets = ports.iter().map(|port| port.backends_via(Via::Outside, any));
        let ready = sets.flat_map(|set| &set.eligible).filter(|b| b.local && !b.terminating);
        ready.map(|backend| backend.endpoint.ip()).collect::<BTreeSet<_>>().len()
    };
    let local_endpoints = count(IpAddr::from([0; 4])).max(count(IpAddr::from([0; 16])));
    Some((number, HealthCheck { service: from.id.clone(), local_endpoints }))
}

#[cfg(test)]
mod tests;
