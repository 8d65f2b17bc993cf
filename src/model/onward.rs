//! Endpoints at which other Services are offered: node ports, external and load balancer addresses. Whoever dials one is
//! led on to that Service's own endpoints, by the agent of the node that has the address. Where such endpoints go round,
//! a connection would go round with them until no node has room for another one.
//!
//! Who leads where is read from the objects as every node would dial them, not as this one does, so that all nodes bar
//! the same endpoints. Only Services that are offered outside of the cluster can be come back to; nothing is asked and
//! nothing kept of the endpoints of others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::source::slim::{self, Address, Node, Phase, Pod, Service};

use super::build::{Sources, World, cluster_ips};
use super::gather::protocol_name;
use super::index::Dep;
use super::local::Local;
use super::reach::Reached;
use super::types::{Frontend, Protocol, Reach, ServiceId};

/// The most Services that are followed from one endpoint; nobody needs as many in a row, and each is looked at for each
/// endpoint that leads on.
const MOST: usize = 16;

/// A service port with its endpoints of one family: where a connection can stop on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Stop {
    service: ServiceId,
    port: u16,
    protocol: Protocol,
    v4: bool,
}

impl Stop {
    fn of(service: &ServiceId, port: &slim::ServicePort, v4: bool) -> Self {
        Self { service: service.clone(), port: port.port, protocol: protocol_name(port.protocol), v4 }
    }
}

/// Where the endpoints of each port of a Service lead on to.
pub(super) type Leads = BTreeMap<Stop, BTreeSet<Stop>>;

/// Who is offered where, and who leads on to whom.
#[derive(Debug, Default)]
pub(super) struct Onward {
    /// In order; a node port stands at the unspecified address, see [`everywhere`].
    offered: HashMap<Frontend, Vec<Stop>>,
    /// The same, by Service.
    offers: HashMap<ServiceId, BTreeSet<(Frontend, Stop)>>,
    leads: HashMap<ServiceId, Leads>,
    /// The nodes that say they have an address.
    hosts: HashMap<IpAddr, BTreeSet<Arc<str>>>,
}

/// A port on every address of every node, of the family of `like`.
fn everywhere(like: IpAddr, port: u16, protocol: Protocol) -> Frontend {
    let ip = match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Frontend { ip, port, protocol }
}

/// Where outside of the cluster a service port is offered to clients of one family, on whatever node.
fn places(
    service: &Service,
    port: &slim::ServicePort,
    v4: bool,
    external_ips: bool,
) -> impl Iterator<Item = Frontend> {
    let protocol = protocol_name(port.protocol);
    let own = cluster_ips(service).iter().find(|ip| ip.is_ipv4() == v4);
    let own = own.filter(|_| protocol != Protocol::Sctp);
    let node_port = own.and_then(|own| Some(everywhere(*own, port.node_port?, protocol)));
    let exposure = service.exposure.as_deref().filter(|_| own.is_some());
    let external = exposure.filter(|_| external_ips).map_or(&[][..], |e| &e.external_ips);
    let outer = external.iter().chain(exposure.map_or(&[][..], |e| &e.load_balancer_ips));
    let outer = outer.filter(move |ip| ip.is_ipv4() == v4 && !ip.is_unspecified());
    node_port.into_iter().chain(outer.map(move |ip| Frontend { ip: *ip, port: port.port, protocol }))
}

fn offers(id: &ServiceId, service: &Service, external_ips: bool) -> BTreeSet<(Frontend, Stop)> {
    let mut all = BTreeSet::new();
    for port in &service.ports {
        for v4 in [true, false] {
            let stop = || Stop::of(id, port, v4);
            all.extend(places(service, port, v4, external_ips).map(|place| (place, stop())));
        }
    }
    all
}

impl Onward {
    /// Takes note of where a Service is offered. Gives back what depends on the differences.
    pub(super) fn offer(
        &mut self,
        id: &ServiceId,
        service: Option<&Service>,
        external_ips: bool,
    ) -> Vec<Dep<'_>> {
        let new = service.map(|service| offers(id, service, external_ips)).unwrap_or_default();
        let old = self.offers.remove(id).unwrap_or_default();
        for (frontend, stop) in old.difference(&new) {
            if let Some(stops) = self.offered.get_mut(frontend) {
                stops.retain(|other| other != stop);
                if stops.is_empty() {
                    self.offered.remove(frontend);
                }
            }
        }
        for (frontend, stop) in new.difference(&old) {
            let stops = self.offered.entry(*frontend).or_default();
            let at = stops.partition_point(|other| other < stop);
            stops.insert(at, stop.clone());
        }
        let changed = old.symmetric_difference(&new).map(|(frontend, _)| match frontend {
            Frontend { ip, .. } if !ip.is_unspecified() => Dep::Address(*ip),
            everywhere => Dep::Offered(*everywhere),
        });
        let changed = changed.collect();
        if !new.is_empty() {
            self.offers.insert(id.clone(), new);
        }
        changed
    }

    /// Takes note of where a Service leads on to; says whether that changed anything.
    pub(super) fn lead(&mut self, id: &ServiceId, leads: Leads) -> bool {
        if leads.is_empty() {
            return self.leads.remove(id).is_some();
        }
        let changed = self.leads.get(id) != Some(&leads);
        if changed {
            self.leads.insert(id.clone(), leads);
        }
        changed
    }

    /// Takes note of a Node's addresses in the place of those that it had. Gives back the differences.
    pub(super) fn host(&mut self, old: Option<&Node>, new: Option<&Node>) -> BTreeSet<IpAddr> {
        let of = |node: Option<&Node>| -> BTreeSet<IpAddr> {
            let dialled =
                |node: &Node| node.host_ip_override.iter().filter_map(Address::ip).collect::<Vec<_>>();
            node.map(|node| node.addresses.iter().copied().chain(dialled(node)).collect()).unwrap_or_default()
        };
        let (before, now) = (of(old), of(new));
        for ip in before.difference(&now) {
            if let (Some(nodes), Some(node)) = (self.hosts.get_mut(ip), old) {
                nodes.remove(&node.name);
                if nodes.is_empty() {
                    self.hosts.remove(ip);
                }
            }
        }
        for ip in now.difference(&before) {
            self.hosts.entry(*ip).or_default().extend(new.map(|node| node.name.clone()));
        }
        &before ^ &now
    }

    /// Whether `ip` is an address of some node.
    pub(super) fn is_node(&self, local: &Local, ip: IpAddr) -> bool {
        self.hosts.contains_key(&ip) || local.own_addresses.contains(&ip)
    }

    /// Who is offered at `addr`, each with what the address is to it.
    fn at(
        &self,
        local: &Local,
        protocol: Protocol,
        addr: SocketAddr,
    ) -> impl Iterator<Item = (&'static str, &Stop)> {
        let (ip, port) = (addr.ip(), addr.port());
        let of = |at, what| self.offered.get(&at).into_iter().flatten().map(move |stop| (what, stop));
        let ports =
            of(everywhere(ip, port, protocol), "a node port").filter(move |_| self.is_node(local, ip));
        ports.chain(of(Frontend { ip, port, protocol }, "an outer address"))
    }

    /// Whether `pod` publishes the port of `addr` on the one node that has this address. The agent there leaves the
    /// port to the pod, whichever Service has the same number for its node port.
    fn at_home(&self, pod: &Pod, protocol: Protocol, addr: SocketAddr) -> bool {
        let Some(nodes) = self.hosts.get(&addr.ip()) else { return false };
        pod.phase != Phase::Ended
            && nodes.len() == 1
            && nodes.first() == pod.node.as_ref()
            && pod
                .ports
                .iter()
                .any(|p| protocol_name(p.protocol) == protocol && p.host_port == Some(addr.port()))
    }

    /// Whether the ways on from `first` come back to `to`, or are too many to be followed: why, as half a sentence. What
    /// the answer hangs on goes into `deps`.
    fn comes_back(&self, to: &Stop, first: &Stop, deps: &mut Vec<u64>) -> Option<&'static str> {
        let mut seen = BTreeSet::from([first]);
        let mut left = vec![first];
        while let Some(stop) = left.pop() {
            deps.push(Dep::Leads(&stop.service).key());
            let on = self.leads.get(&stop.service).and_then(|leads| leads.get(stop));
            for next in on.into_iter().flatten() {
                if next == to {
                    return Some(
                        "whose endpoints lead back to this Service; take one endpoint out of the circle",
                    );
                }
                if seen.insert(next) {
                    if seen.len() > MOST {
                        return Some(
                            "whose endpoints lead on to more Services than are followed; give it endpoints that are pods",
                        );
                    }
                    left.push(next);
                }
            }
        }
        None
    }
}

/// Looks at the endpoints of one port and family, and says which of them come back.
pub(super) struct Watch<'a> {
    world: World<'a>,
    stop: Stop,
    /// Where they lead on to.
    leads: BTreeSet<Stop>,
    /// What was found out of those.
    known: HashMap<&'a Stop, Option<&'static str>>,
    /// The port that was asked for last.
    asked: Option<Frontend>,
}

impl<'a> Watch<'a> {
    /// `None` for a port that is not offered outside of the cluster: no endpoint can lead back to it.
    pub(super) fn new(
        world: &World<'a>,
        from: &Sources<'_>,
        port: &slim::ServicePort,
        v4: bool,
    ) -> Option<Self> {
        places(from.service, port, v4, world.local.external_ips).next()?;
        Some(Self {
            world: *world,
            stop: Stop::of(from.id, port, v4),
            leads: BTreeSet::new(),
            known: HashMap::new(),
            asked: None,
        })
    }

    /// Why a connection to an endpoint would come back, if it would.
    pub(super) fn judge(&mut self, found: &Reached<'_>, deps: &mut Vec<u64>) -> Option<String> {
        let World { local, onward, .. } = self.world;
        let (protocol, outward, dialled) = (self.stop.protocol, found.outward?, found.backend.addr.0);
        let mut ask = |addr: SocketAddr| {
            let port = everywhere(addr.ip(), addr.port(), protocol);
            // Endpoints of one port mostly have one port.
            if self.asked.replace(port) != Some(port) {
                deps.push(Dep::Offered(port).key());
            }
            onward.at(local, protocol, addr)
        };
        let mut why = None;
        // A pod that is said to run here is dialled at its own address by this node alone, so that no other node knows
        // where it leads: never on.
        if dialled != outward && !local.own_addresses.contains(&dialled.ip()) {
            why = ask(dialled).next().map(|at| tell(dialled, at, "and no pod of this node"));
        }
        let on = ask(outward).filter(|(_, stop)| stop.service != self.stop.service);
        let on: Vec<_> = on.take(MOST + 1).collect();
        // What is dialled from here has been looked up by its address already.
        if dialled != outward || found.backend.reach == Reach::Unreachable {
            deps.push(Dep::Address(outward.ip()).key());
        }
        if on.is_empty() || found.pod.is_some_and(|pod| onward.at_home(pod, protocol, outward)) {
            return why;
        }
        let said = |at, back| (dialled == outward).then(|| tell(outward, at, back));
        if on.len() > MOST {
            return why.or_else(|| said(on[0], "and of more others than are followed"));
        }
        for at in on {
            self.leads.insert(at.1.clone());
            let known = self.known.entry(at.1);
            let back = known.or_insert_with_key(|stop| onward.comes_back(&self.stop, stop, deps));
            why = why.or_else(|| said(at, (*back)?));
        }
        why
    }

    /// Puts what was found into `leads`.
    pub(super) fn end(self, leads: &mut Leads) {
        if !self.leads.is_empty() {
            // Two ports of a Service may have one number, though only one of them is served.
            leads.entry(self.stop).or_default().extend(self.leads);
        }
    }
}

fn tell(addr: SocketAddr, (what, stop): (&str, &Stop), why: &str) -> String {
    format!("{addr} is {what} of Service {}, {why}", stop.service)
}

#[cfg(test)]
mod tests;
