//! How one endpoint is dialled from this node, or why it cannot be.

use std::net::{IpAddr, SocketAddr};

use crate::source::slim::{Address, Node, Pod, Protocol};

use super::build::World;
use super::gather::{Candidate, protocol_name};
use super::index::Dep;
use super::types::{Backend, BackendAddr, Exclusion, Reach, ServiceId};

/// An endpoint with the way to it.
pub(super) struct Reached<'a> {
    pub(super) backend: Backend,
    /// Why it cannot be dialled from here, if it cannot.
    pub(super) bar: Option<Exclusion>,
    pub(super) pod: Option<&'a Pod>,
    /// Where other nodes than its own dial it, those to which its pod network is routed; `None` if none does.
    pub(super) outward: Option<SocketAddr>,
}

/// Finds the way to `found`, an endpoint of `service`. What the answer hangs on goes into `deps`.
pub(super) fn reach<'a>(
    world: &World<'a>,
    service: &'a ServiceId,
    protocol: Protocol,
    found: &Candidate<'_>,
    deps: &mut Vec<u64>,
) -> Reached<'a> {
    let ip = found.addr.ip();
    let pod = find_pod(world, service, found, deps);
    let node_name = found.node.or_else(|| pod.and_then(|p| p.node.as_ref()));
    let node = node_name.and_then(|name| {
        deps.push(Dep::Node(name).key());
        world.nodes.get(name).map(AsRef::as_ref)
    });
    let local = node_name.is_some_and(|name| **name == *world.local.node_name);
    let mut backend = Backend {
        addr: BackendAddr(found.addr),
        endpoint: found.addr,
        reach: Reach::Unreachable,
        node: node_name.cloned(),
        zone: found.zone.cloned().or_else(|| node.and_then(|n| n.zone.clone())),
        pod: pod.map(|p| p.name.clone()).or_else(|| found.pod.cloned()),
        local,
        terminating: false,
    };
    if let Some(why) = found.invalid.clone().or_else(|| unusable(ip, service)) {
        return Reached { backend, bar: Some(Exclusion::Invalid(why)), pod, outward: None };
    }
    let stranger = pod.is_none() && found.pod.is_none();
    let published = if stranger { Ok(None) } else { published(protocol, found, pod, node) };
    let outward = match &published {
        Ok(Some((_, addr))) => *addr,
        _ => found.addr,
    };
    let way = if stranger {
        Ok((Reach::External, found.addr))
    } else if local {
        Ok((Reach::Pod, found.addr))
    } else {
        remote_pod(world, service, protocol, found, pod, published)
    };
    let bar = match way {
        Ok((reach, addr)) => {
            backend.reach = reach;
            backend.addr = BackendAddr(addr);
            deps.push(Dep::Address(addr.ip()).key());
            // A Node or a Pod may say that it is to be dialled somewhere else than at the endpoint.
            let bar = unusable(addr.ip(), service).map(Exclusion::Invalid);
            bar.or_else(|| world.loops(addr).map(Exclusion::Loop))
        }
        Err(why) => Some(Exclusion::Unreachable(why)),
    };
    Reached { backend, bar, pod, outward: Some(outward) }
}

/// The Pod behind an endpoint: the one it names, if that still has the address; else the only one of the Service's
/// namespace (and of the endpoint's node) with that address.
fn find_pod<'a>(
    world: &World<'a>,
    service: &'a ServiceId,
    found: &Candidate<'_>,
    deps: &mut Vec<u64>,
) -> Option<&'a Pod> {
    let ip = found.addr.ip();
    if let Some(name) = found.pod {
        deps.push(Dep::Pod(&service.namespace, name).key());
        let same = |p: &&Pod| p.ips.is_empty() || p.ips.contains(&ip) || p.host_network;
        return world.pods.get(&service.namespace, name).filter(same);
    }
    deps.push(Dep::PodIp(&service.namespace, ip).key());
    let here = |p: &&Pod| found.node.is_none_or(|node| p.node.as_ref() == Some(node));
    let mut pods = world.pods.with_ip(&service.namespace, ip).filter(here);
    let first = pods.next()?;
    pods.next().is_none().then_some(first)
}

/// Addresses that no endpoint may have. Loopback is open to `default/kubernetes` alone: KubeEdge points that one at
/// MetaServer on the node itself.
fn unusable(ip: IpAddr, service: &ServiceId) -> Option<String> {
    let ip = ip.to_canonical();
    let kubernetes = &*service.namespace == "default" && &*service.name == "kubernetes";
    let what = match ip {
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_multicast() => "a multicast address",
        _ if ip.is_loopback() && !kubernetes => "a loopback address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return None,
    };
    Some(format!("{ip} is {what}, which cannot be an endpoint"))
}

/// Where a pod's node offers the endpoint to other nodes, by whichever way: `Ok(None)` where it does not, an error where
/// it does, but not at an address that can be dialled.
fn published(
    protocol: Protocol,
    found: &Candidate<'_>,
    pod: Option<&Pod>,
    node: Option<&Node>,
) -> Result<Option<(Reach, SocketAddr)>, String> {
    let ip = found.addr.ip();
    // Without the Pod object, an endpoint at its node's own address can only be in the host's network.
    let host_network =
        pod.map_or_else(|| node.is_some_and(|n| n.addresses.contains(&ip)), |p| p.host_network);
    if host_network {
        let host = node.and_then(|n| override_of(n, ip)).unwrap_or(ip);
        return Ok(Some((Reach::HostNetwork, SocketAddr::new(host, found.addr.port()))));
    }
    let Some(pod) = pod else { return Ok(None) };
    Ok(host_port(pod, node, protocol, found.addr)?.map(|addr| (Reach::HostPort, addr)))
}

/// The way to a pod on another node.
fn remote_pod(
    world: &World<'_>,
    service: &ServiceId,
    protocol: Protocol,
    found: &Candidate<'_>,
    pod: Option<&Pod>,
    published: Result<Option<(Reach, SocketAddr)>, String>,
) -> Result<(Reach, SocketAddr), String> {
    if let Ok(Some(way)) = published {
        return Ok(way);
    }
    let ip = found.addr.ip();
    let name = pod.map(|p| &p.name).or(found.pod).map_or("", |n| n);
    let on = pod
        .and_then(|p| p.node.as_ref())
        .or(found.node)
        .map_or("an unknown node".to_owned(), |node| format!("node {node}"));
    let who = format!("pod {}/{name} on {on}", service.namespace);
    // Where every node hands out the same pod addresses, this one would lead to a stranger on this node.
    let ours = world.own_node().is_some_and(|n| n.pod_cidrs.iter().any(|net| net.contains(&ip)));
    if world.local.routes(ip) && !ours {
        return Ok((Reach::Pod, found.addr));
    }
    let protocol = protocol_name(protocol);
    let port = found.addr.port();
    Err(match published {
        Err(why) => format!("{who}: {why}, and its pod network is not routed from here"),
        Ok(_) if pod.is_some() => format!(
            "{who} publishes no hostPort for {protocol} {port} and its pod network is not routed from here: give \
             the container port a hostPort, or route {ip} to its node"
        ),
        Ok(_) => format!(
            "{who} is not known here, so neither is its hostPort for {protocol} {port}, and its pod network is not \
             routed from here: provide the Pod object, or route {ip} to its node"
        ),
    })
}

/// Where the pod's node publishes the endpoint's port: `Ok(None)` where it does not; an error where it does, but
/// not at an address that can be dialled from here.
fn host_port(
    pod: &Pod,
    node: Option<&Node>,
    protocol: Protocol,
    endpoint: SocketAddr,
) -> Result<Option<SocketAddr>, String> {
    let v4 = endpoint.is_ipv4();
    let mut fault = None;
    let mapped = pod.ports.iter().filter(|p| p.protocol == protocol && p.container_port == endpoint.port());
    for (mapping, port) in mapped.filter_map(|p| p.host_port.map(|port| (p, port))) {
        let host = match &mapping.host_ip {
            Some(Address::Ip(ip)) if ip.is_loopback() => {
                Err(format!("hostPort {port} is bound to {ip} only"))
            }
            Some(Address::Ip(ip)) if ip.is_ipv4() == v4 => Ok(*ip),
            Some(Address::Ip(ip)) => Err(format!("hostPort {port} is bound to {ip}, of the other family")),
            Some(Address::Other(text)) => {
                Err(format!("hostPort {port} has the hostIP {text:?}, not an address"))
            }
            None => host_address(pod, node, endpoint.ip())
                .ok_or_else(|| format!("the address of its node for hostPort {port} is not known")),
        };
        match host {
            Ok(ip) => return Ok(Some(SocketAddr::new(ip, port))),
            Err(why) => fault = Some(why),
        }
    }
    fault.map_or(Ok(None), Err)
}

/// The address of a pod's node at which its host ports are dialled, of the family of `like`.
fn host_address(pod: &Pod, node: Option<&Node>, like: IpAddr) -> Option<IpAddr> {
    let same = |ip: &&IpAddr| ip.is_ipv4() == like.is_ipv4();
    node.and_then(|n| override_of(n, like))
        .or_else(|| pod.host_ips.iter().find(same).copied())
        .or_else(|| node.and_then(|n| n.addresses.iter().find(same).copied()))
}

/// What annotation `edgesplice.io/host-ip` says for the family of `like`.
fn override_of(node: &Node, like: IpAddr) -> Option<IpAddr> {
    node.host_ip_override.iter().filter_map(Address::ip).find(|ip| ip.is_ipv4() == like.is_ipv4())
}

#[cfg(test)]
mod tests;
