//! The endpoints of one service port, from whatever lists them: slices, else an Endpoints object, else Pods.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::source::slim::{
    self, Address, AddressType, Endpoint, Hints, OptOut, Phase, Pod, PortRef, Service, ServicePort, SlicePort,
};

use super::build::{Sources, World};
use super::index::Dep;

/// An endpoint before anyone has looked at how to reach it.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    /// Its address and port.
    pub(super) addr: SocketAddr,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) node: Option<&'a Arc<str>>,
    pub(super) zone: Option<&'a Arc<str>>,
    /// The Pod it is said to be.
    pub(super) pod: Option<&'a Arc<str>>,
    pub(super) hints: Option<&'a Hints>,
    /// Why it cannot be used at all.
    pub(super) invalid: Option<String>,
}

/// What was found for one port.
#[derive(Debug, Default)]
pub(super) struct Gathered<'a> {
    pub(super) candidates: Vec<Candidate<'a>>,
    pub(super) deps: Vec<u64>,
    pub(super) warnings: Vec<String>,
}

/// The endpoints of `port` whose addresses are of the family `v4` says.
pub(super) fn gather<'a>(
    world: &World<'a>,
    from: &Sources<'a>,
    port: &ServicePort,
    v4: bool,
) -> Gathered<'a> {
    let mut out = Gathered::default();
    if !from.slices.is_empty() {
        slices(world, from, port, v4, &mut out);
    } else if let Some(endpoints) = from.endpoints {
        let ours = is_ours(world, from.service, endpoints.opt_out.as_ref());
        for subset in endpoints.subsets.iter().filter(|_| ours) {
            let Some(number) = matching(&subset.ports, port) else { continue };
            for endpoint in &subset.endpoints {
                match endpoint.address.ip() {
                    Some(ip) if ip.is_ipv4() == v4 => {
                        out.candidates.push(candidate(endpoint, ip, number, None));
                    }
                    Some(_) => {}
                    None => out.warnings.push(not_an_address(
                        &format!("Endpoints {}/{}", endpoints.namespace, endpoints.name),
                        &endpoint.address,
                    )),
                }
            }
        }
    } else if !from.service.selector.is_empty() {
        pods(world, from.service, port, v4, &mut out);
    }
    out
}

/// Whether a slice or Endpoints object counts. The Service alone must bear the label that chooses this proxy: slices
/// that people write seldom repeat it. One that chooses another proxy is that one's, unless the Service is so too: then
/// it is asked for all that proxy has.
fn is_ours(world: &World<'_>, service: &Service, opt_out: Option<&OptOut>) -> bool {
    let ours = |out: &OptOut| out.chooses(&world.local.service_proxy_name);
    opt_out.is_none_or(ours) || opt_out == service.opt_out.as_ref()
}

fn slices<'a>(world: &World<'a>, from: &Sources<'a>, port: &ServicePort, v4: bool, out: &mut Gathered<'a>) {
    for slice in from.slices.iter().filter(|slice| is_ours(world, from.service, slice.opt_out.as_ref())) {
        let who = || format!("EndpointSlice {}/{}", slice.namespace, slice.name);
        let slice_v4 = match slice.address_type {
            AddressType::IPv4 => true,
            AddressType::IPv6 => false,
            AddressType::Fqdn => {
                out.warnings.push(format!("{}: addressType FQDN is not supported; passed over", who()));
                continue;
            }
        };
        if slice_v4 != v4 {
            continue;
        }
        let Some(number) = matching(&slice.ports, port) else { continue };
        for endpoint in &slice.endpoints {
            let Some(ip) = endpoint.address.ip() else {
                out.warnings.push(not_an_address(&who(), &endpoint.address));
                continue;
            };
            let invalid = (ip.is_ipv4() != v4).then(|| {
                format!("{ip} is of the wrong family for {} with addressType {:?}", who(), slice.address_type)
            });
            out.candidates.push(candidate(endpoint, ip, number, invalid));
        }
    }
}

/// The number under which a slice offers the Service's port: name and protocol must be equal. A port without a
/// number would mean all ports; like every other proxy we pass it over.
fn matching(ports: &[SlicePort], port: &ServicePort) -> Option<u16> {
    ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol).find_map(|p| p.port)
}

fn candidate(endpoint: &Endpoint, ip: IpAddr, port: u16, invalid: Option<String>) -> Candidate<'_> {
    Candidate {
        addr: SocketAddr::new(ip, port),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        node: endpoint.node.as_ref(),
        zone: endpoint.zone.as_ref(),
        pod: endpoint.pod.as_ref(),
        hints: endpoint.hints.as_deref(),
        invalid,
    }
}

fn not_an_address(who: &str, address: &Address) -> String {
    let Address::Other(text) = address else { return String::new() };
    let text: String = text.chars().take(80).collect();
    format!("{who}: {text:?} is not an IP address; passed over")
}

/// What the endpoint controllers would have written: the Pods that the selector matches.
fn pods<'a>(world: &World<'a>, service: &'a Service, port: &ServicePort, v4: bool, out: &mut Gathered<'a>) {
    let Some(label) = world.pods.rarest(&service.namespace, &service.selector) else { return };
    out.deps.push(Dep::Label(&service.namespace, &label.0, &label.1).key());
    for pod in world.pods.with_label(&service.namespace, label) {
        if pod.phase == Phase::Ended || !service.selector.iter().all(|want| pod.labels.contains(want)) {
            continue;
        }
        let Some(ip) = pod_ip(pod, v4) else {
            if pod.phase == Phase::Running && pod.ips.is_empty() && pod.host_ips.is_empty() {
                out.warnings.push(format!(
                    "Pod {}/{} is Running, but has no status.podIP; Service {} passes it over",
                    pod.namespace, pod.name, service.name
                ));
            }
            continue;
        };
        let serving = pod.ready && pod.phase == Phase::Running;
        let mut found = Candidate {
            addr: SocketAddr::new(ip, 0),
            ready: service.publish_not_ready || (serving && !pod.terminating),
            serving: service.publish_not_ready || serving,
            terminating: pod.terminating,
            node: pod.node.as_ref(),
            zone: None,
            pod: Some(&pod.name),
            hints: None,
            invalid: None,
        };
        match target_port(pod, port) {
            Ok(number) => found.addr.set_port(number),
            Err(why) => found.invalid = Some(why),
        }
        out.candidates.push(found);
    }
}

/// A Pod's address of one family; one in its node's network namespace has its node's.
fn pod_ip(pod: &Pod, v4: bool) -> Option<IpAddr> {
    let own = pod.ips.iter().find(|ip| ip.is_ipv4() == v4);
    let host = pod.host_ips.iter().find(|ip| pod.host_network && ip.is_ipv4() == v4);
    own.or(host).copied()
}

/// The port of `pod` that the Service's port means: a name is looked up in each Pod.
fn target_port(pod: &Pod, port: &ServicePort) -> Result<u16, String> {
    match &port.target {
        PortRef::Number(number) => Ok(*number),
        PortRef::Name(name) => pod
            .ports
            .iter()
            .find(|p| p.name == *name && p.protocol == port.protocol)
            .map(|p| p.container_port)
            .ok_or_else(|| {
                format!(
                    "pod {}/{} has no container port named {name:?} for {}",
                    pod.namespace,
                    pod.name,
                    protocol_name(port.protocol)
                )
            }),
    }
}

pub(super) fn protocol_name(protocol: slim::Protocol) -> super::Protocol {
    protocol.into()
}
