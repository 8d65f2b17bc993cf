//! What DNS has to know of a Service beyond its ClusterIPs and service ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::source::slim::{self, AddressType, Endpoint, Phase, SlicePort};

use super::build::{Sources, World};
use super::index::Dep;
use super::types::{NamedEndpoint, NamedPort, Names};

/// The names of a Service that its ClusterIPs and served ports do not give away; `None` for ordinary Services.
/// `left_alone`: it has ClusterIPs, and no service port of the snapshot tells its ports.
pub(super) fn names(
    world: &World<'_>,
    from: &Sources<'_>,
    left_alone: bool,
    deps: &mut Vec<u64>,
) -> Option<Names> {
    let service = from.service;
    if service.external_name {
        return service.external_target.as_deref().map(|target| Names::External(Arc::from(target)));
    }
    if service.headless {
        return Some(Names::Headless(headless(world, from, deps)));
    }
    left_alone.then(|| {
        let port = |port: &slim::ServicePort| NamedPort {
            name: port.name.clone(),
            protocol: port.protocol.into(),
            number: port.port,
        };
        Names::LeftAlone(service.ports.iter().map(port).collect())
    })
}

/// The ready endpoints, each address once, in the order of the addresses.
fn headless(world: &World<'_>, from: &Sources<'_>, deps: &mut Vec<u64>) -> Box<[NamedEndpoint]> {
    let mut found: BTreeMap<IpAddr, NamedEndpoint> = BTreeMap::new();
    let mut add = |ip: IpAddr, hostname: Option<&Arc<str>>, ports: Vec<NamedPort>| {
        let known =
            found.entry(ip).or_insert_with(|| NamedEndpoint { ip, hostname: None, ports: Box::default() });
        if known.hostname.is_none() {
            known.hostname = hostname.map(|name| name.to_ascii_lowercase().into());
        }
        let mut all = std::mem::take(&mut known.ports).into_vec();
        all.extend(ports);
        all.sort_unstable();
        all.dedup();
        known.ports = all.into();
    };
    let mut add_all = |endpoints: &[Endpoint], ports: &[SlicePort], v4: Option<bool>| {
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            if let Some(ip) = endpoint.address.ip().filter(|ip| v4.is_none_or(|v4| ip.is_ipv4() == v4)) {
                add(ip, endpoint.hostname.as_ref(), ports.iter().filter_map(slice_port).collect());
            }
        }
    };
    if !from.slices.is_empty() {
        for slice in from.slices.iter().filter(|slice| slice.address_type != AddressType::Fqdn) {
            let v4 = slice.address_type == AddressType::IPv4;
            add_all(&slice.endpoints, &slice.ports, Some(v4));
        }
    } else if let Some(endpoints) = from.endpoints {
        for subset in &endpoints.subsets {
            add_all(&subset.endpoints, &subset.ports, None);
        }
    } else if let Some(label) = world.pods.rarest(&from.service.namespace, &from.service.selector) {
        deps.push(Dep::Label(&from.service.namespace, &label.0, &label.1).key());
        for pod in world.pods.with_label(&from.service.namespace, label) {
            let matches = from.service.selector.iter().all(|want| pod.labels.contains(want));
            let serving = pod.ready && pod.phase == Phase::Running && !pod.terminating;
            if !matches || pod.phase == Phase::Ended || !(serving || from.service.publish_not_ready) {
                continue;
            }
            let hostname =
                pod.dns_name.as_ref().filter(|name| name.1 == from.service.name).map(|name| &name.0);
            let port = |port: &slim::ServicePort| {
                let number = match &port.target {
                    slim::PortRef::Number(number) => Some(*number),
                    slim::PortRef::Name(name) => pod
                        .ports
                        .iter()
                        .find(|p| p.name == *name && p.protocol == port.protocol)
                        .map(|p| p.container_port),
                };
                number.map(|number| NamedPort {
                    name: port.name.clone(),
                    protocol: port.protocol.into(),
                    number,
                })
            };
            let ips = if pod.ips.is_empty() && pod.host_network { &pod.host_ips } else { &pod.ips };
            for ip in ips {
                add(*ip, hostname, from.service.ports.iter().filter_map(port).collect());
            }
        }
    }
    found.into_values().collect()
}

fn slice_port(port: &SlicePort) -> Option<NamedPort> {
    Some(NamedPort { name: port.name.clone(), protocol: port.protocol.into(), number: port.port? })
}
