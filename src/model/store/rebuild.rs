//! From dirty services to the next snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::source::slim;

use super::super::build::{Built, Sources, World, build, cluster_ips};
use super::super::exposure::here;
use super::super::index::Dep;
use super::super::types::{Frontend, Names, NotProxied, Protocol, ServiceId, ServicePort, Snapshot};
use super::{Slot, Store};

/// The most warnings a snapshot carries; a broken feed must not fill the memory.
const MAX_WARNINGS: usize = 200;

impl Store {
    /// The snapshot of the present state. Cheap when nothing has changed; otherwise only what a change concerns is
    /// built, and service ports that come out equal keep their old allocation.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if self.all_dirty {
            self.dirty.extend(self.ids.values());
        }
        if self.dirty.is_empty() && !self.general_dirty && !self.all_dirty {
            return self.snapshot.clone();
        }
        let mut next = Snapshot::clone(&self.snapshot);
        if self.all_dirty {
            self.here = here(&self.local, self.nodes.get(&self.local.node_name).map(AsRef::as_ref));
            next.here.clone_from(&self.here);
        }
        let mut touched = self.update_claims();
        let mut external = BTreeSet::new();
        let mut warned = false;
        // Where a Service leads on to is known once it is built; those that had asked before are built a second time.
        for _ in 0..2 {
            for number in std::mem::take(&mut self.dirty) {
                warned |= self.rebuild(number, &mut next, &mut touched, &mut external);
            }
        }
        warned |= self.assign(&touched, &mut next);
        warned |= self.assign_external(&external, &mut next);
        if std::mem::take(&mut self.general_dirty) || self.all_dirty {
            self.general(&mut next);
            warned = true;
        }
        self.all_dirty = false;
        if warned {
            next.warnings = self.all_warnings();
        }
        self.snapshot = Arc::new(next);
        self.snapshot.clone()
    }

    /// Brings the tables of `ClusterIPs` and of what is offered outside of the cluster up to date with the dirty
    /// services, before any of them is built: an endpoint that is some Service's address must be seen whatever the
    /// order. Gives back the `ClusterIPs` touched.
    fn update_claims(&mut self) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        for number in self.dirty.clone() {
            let slot = &mut self.slots[number as usize];
            if let Some(id) = &slot.id {
                for dep in self.onward.offer(id, slot.service.as_deref(), self.local.external_ips) {
                    self.dirty.extend(self.watchers.of(dep));
                }
            }
            let ips: Box<[IpAddr]> =
                slot.service.as_ref().map_or_else(Box::default, |s| cluster_ips(s).into());
            if slot.ips == ips {
                continue;
            }
            for ip in std::mem::replace(&mut slot.ips, ips.clone()) {
                self.claims.remove(&(ip, number));
                touched.insert(ip);
            }
            for ip in ips {
                self.claims.insert((ip, number));
                touched.insert(ip);
            }
        }
        for ip in &touched {
            self.dirty.extend(self.watchers.of(Dep::Address(*ip)));
        }
        touched
    }

    /// Builds one Service anew and puts its ports into `next`. Adds the addresses whose frontends may have changed
    /// to `touched` and `external`; says whether warnings changed.
    fn rebuild(
        &mut self,
        number: u32,
        next: &mut Snapshot,
        touched: &mut BTreeSet<IpAddr>,
        external: &mut BTreeSet<Frontend>,
    ) -> bool {
        let Some(id) = self.slots[number as usize].id.clone() else { return false };
        let built = self.build(number);
        let slot = &mut self.slots[number as usize];
        self.watchers.set(number, &slot.deps, &built.deps);
        slot.deps = built.deps.into();
        if self.onward.lead(&id, built.leads) {
            self.dirty.extend(self.watchers.of(Dep::Leads(&id)));
        }

        let old = std::mem::take(&mut slot.ports);
        let mut changed = old.len() != built.ports.len();
        for port in built.ports {
            // An equal port keeps its allocation, so that comparing snapshots is comparing pointers.
            let port = match old.iter().find(|o| o.id == port.id) {
                Some(same) if **same == port => same.clone(),
                _ => {
                    changed = true;
                    let port = Arc::new(port);
                    next.ports.insert(port.id.clone(), port.clone());
                    port
                }
            };
            slot.ports.push(port);
        }
        if changed {
            for gone in old.iter().filter(|o| slot.ports.iter().all(|p| p.id != o.id)) {
                next.ports.remove(&gone.id);
            }
            touched.extend(&slot.ips);
        }
        self.claim_external(number, changed, external);
        self.put_health_check(number, built.health_check, next);

        let slot = &mut self.slots[number as usize];
        let not_proxied = built.not_proxied.map(|why| NotProxied { cluster_ips: slot.ips.to_vec(), why });
        if next.not_proxied.get(&id) != not_proxied.as_ref() {
            match not_proxied {
                Some(entry) => _ = next.not_proxied.insert(id.clone(), entry),
                None => _ = next.not_proxied.remove(&id),
            }
        }
        if slot.service.is_none() {
            next.services.remove(&id);
        } else if next.services.get(&id).is_none_or(|ips| **ips != *slot.ips) {
            next.services.insert(id.clone(), Arc::from(&*slot.ips));
        }
        let cluster_dns = slot.service.as_ref().is_some_and(|service| service.cluster_dns);
        if cluster_dns != next.cluster_dns.contains(&id) {
            if cluster_dns {
                next.cluster_dns.insert(id.clone());
            } else {
                next.cluster_dns.remove(&id);
            }
        }
        rename(&id, built.names, next);
        if slot.is_empty() {
            self.ids.remove(&id);
            self.slots[number as usize] = Slot::default();
            self.free.push(number);
        }
        self.warn(format!("Service {id}"), &built.warnings)
    }

    fn build(&self, number: u32) -> Built {
        let slot = &self.slots[number as usize];
        let world = World {
            local: &self.local,
            pods: &self.pods,
            nodes: &self.nodes,
            claims: &self.claims,
            here: &self.here,
            host_ports: &self.host_ports,
            onward: &self.onward,
        };
        match (&slot.id, &slot.service) {
            (Some(id), Some(service)) => build(
                &world,
                &Sources {
                    id,
                    service,
                    slices: &slot.slices,
                    endpoints: slot.endpoints.as_deref(),
                    rule: slot.rule.as_deref(),
                },
            ),
            _ => Built::default(),
        }
    }

    /// Gives each of the addresses to the Service that has it now. An address that two Services claim belongs to
    /// the newest: right after a delete, a new Service may get the old one's address and be seen first.
    fn assign(&mut self, touched: &BTreeSet<IpAddr>, next: &mut Snapshot) -> bool {
        let mut warned = false;
        for ip in touched {
            let claimants: Vec<u32> = self.claims.range((*ip, 0)..=(*ip, u32::MAX)).map(|c| c.1).collect();
            let owner = claimants.iter().copied().max_by(|a, b| self.age(*a).cmp(&self.age(*b)));
            match owner.and_then(|owner| self.slots[owner as usize].id.as_ref()) {
                Some(id) if next.owners.get(ip) == Some(id) => {}
                Some(id) => _ = next.owners.insert(*ip, id.clone()),
                None => _ = next.owners.remove(ip),
            }
            let mut wanted: BTreeMap<Frontend, Arc<ServicePort>> = BTreeMap::new();
            for port in owner.iter().flat_map(|owner| &self.slots[*owner as usize].ports) {
                wanted.insert(frontend(*ip, port), port.clone());
            }
            let all = Frontend { ip: *ip, port: 0, protocol: Protocol::Tcp }..=Frontend {
                ip: *ip,
                port: u16::MAX,
                protocol: Protocol::Sctp,
            };
            let present: Vec<Frontend> = next.frontends.range(all).map(|(key, _)| *key).collect();
            for key in present {
                if !wanted.contains_key(&key) {
                    next.frontends.remove(&key);
                }
            }
            for (key, port) in wanted {
                if next.frontends.get(&key).is_none_or(|old| !Arc::ptr_eq(old, &port)) {
                    next.frontends.insert(key, port);
                }
            }
            let text = owner.filter(|_| claimants.len() > 1).map(|owner| {
                format!("ClusterIP {ip} is claimed by Services {}", self.contest(owner, &claimants))
            });
            warned |= self.contested.get(ip) != text.as_ref();
            match text {
                Some(text) => _ = self.contested.insert(*ip, text),
                None => _ = self.contested.remove(ip),
            }
        }
        warned
    }

    /// What makes one Service newer than another: when it was made, then its version, then (for a fixed order) its
    /// name, the first in the alphabet counting as the newest.
    pub(super) fn age(&self, number: u32) -> impl Ord + '_ {
        let slot = &self.slots[number as usize];
        let service = slot.service.as_deref();
        (
            service.and_then(|s| s.created.as_deref()),
            service.map(|s| s.resource_version),
            std::cmp::Reverse(slot.id.as_ref()),
        )
    }

    /// Who claims the same thing, and which of them has it.
    pub(super) fn contest(&self, owner: u32, claimants: &[u32]) -> String {
        let name = |number: u32| {
            self.slots[number as usize].id.as_ref().map(ToString::to_string).unwrap_or_default()
        };
        let mut others: Vec<String> = claimants.iter().filter(|c| **c != owner).map(|c| name(*c)).collect();
        others.sort_unstable();
        format!("{} and {}; the newest, {}, has it", name(owner), others.join(", "), name(owner))
    }

    /// The parts of the snapshot that belong to no Service.
    fn general(&mut self, next: &mut Snapshot) {
        let mut cidrs: Vec<_> = self.cidrs.values().flat_map(|c| c.cidrs.iter().copied()).collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        next.service_cidrs = cidrs;
        next.namespaces = self.namespaces.clone();

        let mut warnings = Vec::new();
        let mut ips = BTreeSet::new();
        for node in self.nodes.values() {
            ips.extend(node.addresses.iter().copied());
            for address in &node.host_ip_override {
                match address {
                    slim::Address::Ip(ip) => _ = ips.insert(*ip),
                    slim::Address::Other(text) => warnings.push(format!(
                        "Node {}: annotation edgesplice.io/host-ip: {text:?} is not an IP address; passed over",
                        node.name
                    )),
                }
            }
        }
        next.node_ips = ips.into_iter().collect();
        warnings.extend(self.orphans.iter().map(|(namespace, name)| {
            format!("EndpointSlice {namespace}/{name} has no label kubernetes.io/service-name; passed over")
        }));
        warnings.sort_unstable();
        self.warn(String::new(), &warnings);
    }

    /// Puts `warnings` in the place of those that `of` had before; says whether that changed anything.
    fn warn(&mut self, of: String, warnings: &[String]) -> bool {
        if warnings.is_empty() {
            return self.warnings.remove(&of).is_some();
        }
        self.warnings.insert(of, warnings.to_vec()).as_deref() != Some(warnings)
    }

    fn all_warnings(&self) -> Vec<String> {
        let contested = || self.contested.values().chain(self.contested_external.values());
        let all = || contested().chain(self.warnings.values().flatten());
        let mut list: Vec<String> = all().take(MAX_WARNINGS).cloned().collect();
        let more = all().count().saturating_sub(MAX_WARNINGS);
        if more > 0 {
            list.push(format!("and {more} more warnings"));
        }
        list
    }
}

/// Puts what DNS knows of a Service in the place of what it knew.
fn rename(id: &ServiceId, names: Option<Names>, next: &mut Snapshot) {
    let old = next.names.get(id).cloned();
    if old.as_deref() == names.as_ref() {
        return;
    }
    let hosts = |names: Option<&Names>| match names {
        Some(Names::Headless(endpoints)) => {
            endpoints.iter().filter_map(|e| Some((e.ip, e.hostname.clone()?))).collect::<Vec<_>>()
        }
        _ => Vec::new(),
    };
    for (ip, _) in hosts(old.as_deref()) {
        next.hosts.remove(&(ip, id.clone()));
    }
    for (ip, hostname) in hosts(names.as_ref()) {
        next.hosts.insert((ip, id.clone()), hostname);
    }
    match names {
        Some(names) => _ = next.names.insert(id.clone(), Arc::new(names)),
        None => _ = next.names.remove(id),
    }
}

fn frontend(ip: IpAddr, port: &ServicePort) -> Frontend {
    Frontend { ip, port: port.number, protocol: port.id.protocol }
}
