//! One Service and everything joined to it → its service ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::config::SERVICE_PROXY_NAME_LABEL;
use crate::source::slim::{self, DestinationRule, EndpointSlice, Endpoints, Node, Service};

use super::exposure::{external, health_check};
use super::external::{HealthCheck, Here};
use super::gather::{gather, protocol_name};
use super::index::Pods;
use super::local::Local;
use super::names::names;
use super::onward::{Leads, Onward, Watch};
use super::reach::reach;
use super::topology::{Judged, Place, choose};
use super::traffic;
use super::types::{BackendSet, Exclusion, Names, Policy, PortId, Protocol, ServiceId, ServicePort};
use super::unsupported::{SCTP_ONLY, SCTP_PORT};

/// What every Service is built against.
#[derive(Clone, Copy, Debug)]
pub(super) struct World<'a> {
    pub(super) local: &'a Local,
    pub(super) pods: &'a Pods,
    pub(super) nodes: &'a HashMap<Arc<str>, Box<Node>>,
    /// Every ClusterIP, with the slot of the Service that has it.
    pub(super) claims: &'a BTreeSet<(IpAddr, u32)>,
    /// What counts as this node for external frontends.
    pub(super) here: &'a Here,
    /// Host ports of this node's pods.
    pub(super) host_ports: &'a HostPorts,
    /// Who is offered where outside of the cluster, and who leads on to whom.
    pub(super) onward: &'a Onward,
}

/// Host ports of this node's pods, each with the pods (namespace and name) that have it.
pub(super) type HostPorts = BTreeMap<(Protocol, u16), BTreeSet<(Arc<str>, Arc<str>)>>;

impl<'a> World<'a> {
    /// This node's own Node object.
    pub(super) fn own_node(&self) -> Option<&'a Node> {
        self.nodes.get(&self.local.node_name).map(AsRef::as_ref)
    }

    /// Why dialling `addr` would lead back into this agent, if it would.
    pub(super) fn loops(&self, addr: SocketAddr) -> Option<String> {
        let ip = addr.ip();
        if self.claims.range((ip, 0)..=(ip, u32::MAX)).next().is_some() {
            return Some(format!("{ip} is the ClusterIP of a Service"));
        }
        if let Some(range) = self.local.captured.iter().find(|range| range.contains(&ip)) {
            return Some(format!("{ip} is inside the captured range {range}"));
        }
        let own = ip.is_loopback() || self.local.own_addresses.contains(&ip);
        (own && addr.port() == self.local.proxy_port).then(|| format!("{addr} is this agent's own listener"))
    }
}

/// A Service and what is joined to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources<'a> {
    pub(super) id: &'a ServiceId,
    pub(super) service: &'a Service,
    /// Its slices, by name.
    pub(super) slices: &'a [EndpointSlice],
    pub(super) endpoints: Option<&'a Endpoints>,
    pub(super) rule: Option<&'a DestinationRule>,
}

impl Sources<'_> {
    /// Why dialling `addr` would lead back to this same Service by way of another node, if it would: two agents would
    /// pass a client's connection to and fro until neither can open another one.
    fn circle(&self, world: &World<'_>, protocol: slim::Protocol, addr: SocketAddr) -> Option<String> {
        let (ip, port) = (addr.ip(), addr.port());
        let own = || self.service.ports.iter().filter(|own| own.protocol == protocol);
        let node_port = own().any(|own| own.node_port == Some(port));
        if node_port && world.onward.is_node(world.local, ip) {
            return Some(format!("{addr} is a node port of this same Service"));
        }
        let exposure = self.service.exposure.as_ref()?;
        let outside = exposure.external_ips.contains(&ip) || exposure.load_balancer_ips.contains(&ip);
        (outside && own().any(|own| own.port == port))
            .then(|| format!("{addr} is an outer address of this same Service"))
    }
}

/// What a Service comes to.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) ports: Vec<ServicePort>,
    /// Why it is left alone, if it is.
    pub(super) not_proxied: Option<String>,
    /// The health check it asks for, with its port.
    pub(super) health_check: Option<(u16, HealthCheck)>,
    /// Hashes of what it was built from, sorted.
    pub(super) deps: Vec<u64>,
    pub(super) warnings: Vec<String>,
    pub(super) names: Option<Names>,
    /// To which other Services its endpoints lead on.
    pub(super) leads: Leads,
}

impl Built {
    fn sorted(mut self) -> Self {
        self.deps.sort_unstable();
        self.deps.dedup();
        self.warnings.sort_unstable();
        self.warnings.dedup();
        self
    }
}

/// The `ClusterIPs` that clients of a Service use; an `ExternalName` has none, whatever lingers in its spec.
pub(super) fn cluster_ips(service: &Service) -> &[IpAddr] {
    if service.external_name { &[] } else { &service.cluster_ips }
}

/// Builds the ports of one Service.
pub(super) fn build(world: &World<'_>, from: &Sources<'_>) -> Built {
    let mut out = Built::default();
    let ips = cluster_ips(from.service);
    if ips.is_empty() {
        if !from.service.headless && !from.service.external_name && !from.service.ports.is_empty() {
            out.warnings.push(format!("Service {} has no ClusterIP yet; passed over", from.id));
        }
        out.names = names(world, from, false, &mut out.deps);
        return out.sorted();
    }
    out.not_proxied = left_alone(world, from);
    if out.not_proxied.is_some() {
        out.names = names(world, from, true, &mut out.deps);
        lead_on(world, from, &mut out);
        return out.sorted();
    }
    let policy = traffic::policy(from.service, from.rule, &mut out.warnings);
    let connections = traffic::connections(from.service, from.rule, &mut out.warnings);
    for port in &from.service.ports {
        if port.protocol == slim::Protocol::Sctp {
            out.warnings.push(format!("Service {}: {SCTP_PORT}{} is left alone", from.id, port.port));
            continue;
        }
        let built = service_port(world, from, port, &policy, &connections, &mut out);
        if let Some(twin) = out.ports.iter().find(|p| clash(p, &built)) {
            out.warnings.push(format!(
                "Service {}: port {} has the name or the number of port {}; passed over",
                from.id, built.number, twin.number
            ));
            continue;
        }
        out.ports.push(built);
    }
    out.health_check = health_check(from, &out.ports);
    if matches!(policy, Policy::Header(_) | Policy::Cookie(_)) && out.ports.iter().all(|p| p.policy != policy)
    {
        out.warnings.push(format!(
            "Service {}: policy {policy} needs an HTTP port (appProtocol: http, or a port name that starts with http-)",
            from.id
        ));
    }
    out.sorted()
}

fn clash(a: &ServicePort, b: &ServicePort) -> bool {
    a.id == b.id || (a.number == b.number && a.id.protocol == b.id.protocol)
}

/// Why a Service with a ClusterIP is not intercepted, if it is not.
fn left_alone(world: &World<'_>, from: &Sources<'_>) -> Option<String> {
    let name = &*world.local.service_proxy_name;
    match &from.service.opt_out {
        Some(out) if out.chooses(name) => {}
        Some(out) => return Some(format!("its label {} takes it away from this proxy", out.label())),
        None if name.is_empty() => {}
        None => {
            let label = SERVICE_PROXY_NAME_LABEL;
            return Some(format!(
                "it lacks the label {label}: {name}, by which intercept.serviceProxyName chooses"
            ));
        }
    }
    let kubernetes = &*from.id.namespace == "default" && &*from.id.name == "kubernetes";
    if kubernetes && !world.local.capture_kubernetes {
        return Some(
            "default/kubernetes, the way to the API server, is not intercepted unless intercept.kubernetesService \
             is true"
                .to_owned(),
        );
    }
    let ports = &from.service.ports;
    (!ports.is_empty() && ports.iter().all(|p| p.protocol == slim::Protocol::Sctp))
        .then(|| SCTP_ONLY.to_owned())
}

/// Finds where the endpoints of a Service lead on that another proxy serves: its clients may come back to us.
fn lead_on(world: &World<'_>, from: &Sources<'_>, out: &mut Built) {
    for port in &from.service.ports {
        for v4 in [true, false] {
            let Some(mut watch) = Watch::new(world, from, port, v4) else { continue };
            let mut found = gather(world, from, port, v4);
            out.deps.append(&mut found.deps);
            for candidate in &found.candidates {
                let way = reach(world, from.id, port.protocol, candidate, &mut out.deps);
                watch.judge(&way, &mut out.deps);
            }
            watch.end(&mut out.leads);
        }
    }
}

fn service_port(
    world: &World<'_>,
    from: &Sources<'_>,
    port: &slim::ServicePort,
    policy: &Policy,
    connections: &traffic::Connections,
    out: &mut Built,
) -> ServicePort {
    let ips = cluster_ips(from.service);
    let mode = traffic::mode(port);
    let mut external = external(world, from, port, out);
    // Where clients from elsewhere, or those of this node, are served by another list than those of the ClusterIP.
    let needs_other = external.as_ref().is_some_and(|e| e.local_only || from.service.local_only);
    let mut set = |v4: bool| {
        if ips.iter().any(|ip| ip.is_ipv4() == v4) {
            backends(world, from, port, (v4, needs_other), out)
        } else {
            (BackendSet::default(), BackendSet::default())
        }
    };
    let ((v4, other_v4), (v6, other_v6)) = (set(true), set(false));
    if let Some(external) = external.as_mut().filter(|_| needs_other) {
        external.other = Some([other_v4, other_v6]);
    }
    ServicePort {
        id: PortId {
            service: from.id.clone(),
            name: port.name.clone(),
            protocol: protocol_name(port.protocol),
        },
        number: port.port,
        app_protocol: port.app_protocol.clone(),
        mode,
        frontends: ips.iter().map(|ip| SocketAddr::new(*ip, port.port)).collect(),
        policy: traffic::policy_for(policy, mode),
        affinity: from.service.affinity_seconds.map(|s| Duration::from_secs(s.into())),
        local_only: from.service.local_only,
        connect_timeout: connections.timeout,
        max_connections: connections.most,
        http_pool: connections.http.clone().filter(|_| mode == super::types::Mode::Http),
        proxy_protocol: connections.proxy_protocol,
        // The connections of an HTTP port belong to no one client.
        keep_source: connections.keep_source && mode != super::types::Mode::Http,
        outlier: traffic::outlier(from.rule),
        v4,
        v6,
        external: external.map(Box::new),
    }
}

/// The backends of one family: those that the Service's `internalTrafficPolicy` gives, and where they are needed
/// those that the other one would.
fn backends(
    world: &World<'_>,
    from: &Sources<'_>,
    port: &slim::ServicePort,
    (v4, needs_other): (bool, bool),
    out: &mut Built,
) -> (BackendSet, BackendSet) {
    let mut found = gather(world, from, port, v4);
    out.deps.append(&mut found.deps);
    out.warnings.append(&mut found.warnings);
    let mut watch = Watch::new(world, from, port, v4);
    let judged = found.candidates.into_iter().map(|candidate| {
        let way = reach(world, from.id, port.protocol, &candidate, &mut out.deps);
        let back = watch.as_mut().and_then(|watch| watch.judge(&way, &mut out.deps));
        let circle = || from.circle(world, port.protocol, way.backend.addr.0).or(back).map(Exclusion::Loop);
        let bar = way.bar.or_else(circle);
        Judged {
            backend: way.backend,
            ready: candidate.ready,
            serving: candidate.serving,
            terminating: candidate.terminating,
            hints: candidate.hints,
            bar,
        }
    });
    let judged: Vec<Judged<'_>> = judged.collect();
    if let Some(watch) = watch {
        watch.end(&mut out.leads);
    }
    let place = Place {
        node: &world.local.node_name,
        zone: world.own_node().and_then(|node| node.zone.as_deref()),
        local_only: from.service.local_only.then_some(Exclusion::NotLocal),
    };
    let turned = (!from.service.local_only).then_some(Exclusion::NotLocalExternal);
    let other = needs_other.then(|| choose(judged.clone(), &Place { local_only: turned, ..place.clone() }));
    (choose(judged, &place), other.unwrap_or_default())
}
