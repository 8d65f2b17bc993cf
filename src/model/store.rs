//! All objects, joined by Service, and the snapshot that follows from them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::source::slim::{
    self, DestinationRule, EndpointSlice, Endpoints, Kind, Node, Object, ObjectKey, Pod, Service, ServiceCidr,
};

use super::build::{Built, Sources, World, build, cluster_ips};
use super::index::{Dep, Interner, Pods, Watchers};
use super::local::Local;
use super::types::{Frontend, NotProxied, ServiceId, ServicePort, Snapshot};

/// The most warnings a snapshot carries; a broken feed must not fill the memory.
const MAX_WARNINGS: usize = 200;

/// Holds every object and turns changes into snapshots, rebuilding only the services that a change concerns.
#[derive(Debug)]
pub struct Store {
    local: Local,
    pods: Pods,
    nodes: HashMap<Arc<str>, Box<Node>>,
    cidrs: BTreeMap<Arc<str>, Box<ServiceCidr>>,
    /// Services and what is joined to them, also where the Service itself is not known (yet).
    slots: Vec<Slot>,
    free: Vec<u32>,
    ids: HashMap<ServiceId, u32>,
    /// Which slot a slice stands in, by the slice's namespace and name.
    slices: HashMap<(Arc<str>, Arc<str>), u32>,
    /// Slices without a Service's name.
    orphans: BTreeSet<(Arc<str>, Arc<str>)>,
    watchers: Watchers,
    claims: BTreeSet<(IpAddr, u32)>,
    names: Interner,
    dirty: BTreeSet<u32>,
    all_dirty: bool,
    /// Nodes, ServiceCIDRs or orphans have changed.
    general_dirty: bool,
    warnings: BTreeMap<String, Vec<String>>,
    contested: BTreeMap<IpAddr, String>,
    snapshot: Arc<Snapshot>,
}

/// One Service's place.
#[derive(Debug, Default)]
struct Slot {
    id: Option<ServiceId>,
    service: Option<Box<Service>>,
    /// By name.
    slices: Vec<Box<EndpointSlice>>,
    endpoints: Option<Box<Endpoints>>,
    rule: Option<Box<DestinationRule>>,
    /// What the snapshot holds of it.
    ports: Vec<Arc<ServicePort>>,
    ips: Box<[IpAddr]>,
    deps: Box<[u64]>,
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty() && self.endpoints.is_none() && self.rule.is_none()
    }
}

/// Puts `new` into `place` and says whether that changed anything.
fn put<T: PartialEq>(place: &mut Option<Box<T>>, new: Box<T>) -> bool {
    let changed = place.as_ref() != Some(&new);
    if changed {
        *place = Some(new);
    }
    changed
}

impl Store {
    /// An empty store for the node that `local` describes.
    pub fn new(local: Local) -> Self {
        Self {
            local,
            pods: Pods::default(),
            nodes: HashMap::new(),
            cidrs: BTreeMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::new(),
            slices: HashMap::new(),
            orphans: BTreeSet::new(),
            watchers: Watchers::default(),
            claims: BTreeSet::new(),
            names: Interner::default(),
            dirty: BTreeSet::new(),
            all_dirty: false,
            general_dirty: false,
            warnings: BTreeMap::new(),
            contested: BTreeMap::new(),
            snapshot: Arc::default(),
        }
    }

    /// What the store takes this node to be.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Takes over what has changed about this node. Every service is built anew if anything has.
    pub fn set_local(&mut self, local: Local) {
        if self.local != local {
            self.local = local;
            self.all_dirty = true;
        }
    }

    /// Takes `objects` as the full state: whatever is not among them is gone. Of two objects with one key the last
    /// one counts.
    pub fn replace(&mut self, objects: Vec<Object>) {
        let keep: HashSet<ObjectKey> = objects.iter().map(Object::key).collect();
        for key in self.keys() {
            if !keep.contains(&key) {
                self.delete(&key);
            }
        }
        drop(keep);
        for object in objects {
            self.upsert(object);
        }
    }

    /// Adds or changes one object. An equal one changes nothing.
    pub fn upsert(&mut self, object: Object) {
        match object {
            Object::Service(service) => {
                let slot = self.slot(&service.namespace, &service.name);
                if put(&mut self.slots[slot as usize].service, service) {
                    self.dirty.insert(slot);
                }
            }
            Object::EndpointSlice(slice) => self.upsert_slice(slice),
            Object::Endpoints(mut endpoints) => {
                endpoints.subsets.iter_mut().for_each(|s| share_endpoints(&mut self.names, &mut s.endpoints));
                let slot = self.slot(&endpoints.namespace, &endpoints.name);
                if put(&mut self.slots[slot as usize].endpoints, endpoints) {
                    self.dirty.insert(slot);
                }
            }
            Object::DestinationRule(rule) => {
                let slot = self.slot(&rule.namespace, &rule.name);
                if put(&mut self.slots[slot as usize].rule, rule) {
                    self.dirty.insert(slot);
                }
            }
            Object::Pod(pod) => self.upsert_pod(pod),
            Object::Node(mut node) => {
                self.names.share(&mut node.name);
                node.zone.iter_mut().for_each(|zone| self.names.share(zone));
                if self.nodes.get(&node.name) != Some(&node) {
                    self.node_changed(&node.name.clone());
                    self.nodes.insert(node.name.clone(), node);
                }
            }
            Object::ServiceCidr(cidr) => {
                if self.cidrs.get(&cidr.name) != Some(&cidr) {
                    self.cidrs.insert(cidr.name.clone(), cidr);
                    self.general_dirty = true;
                }
            }
            // Read by nobody yet: names of namespaces matter to DNS alone.
            Object::Namespace(_) => {}
        }
    }

    /// Removes one object; one that is not there changes nothing.
    pub fn delete(&mut self, key: &ObjectKey) {
        let id = ServiceId { namespace: key.namespace.clone(), name: key.name.clone() };
        match key.kind {
            Kind::Service | Kind::Endpoints | Kind::DestinationRule => {
                let Some(number) = self.ids.get(&id).copied() else { return };
                let slot = &mut self.slots[number as usize];
                let gone = match key.kind {
                    Kind::Service => slot.service.take().is_some(),
                    Kind::Endpoints => slot.endpoints.take().is_some(),
                    _ => slot.rule.take().is_some(),
                };
                if gone {
                    self.dirty.insert(number);
                }
            }
            Kind::EndpointSlice => self.delete_slice(&id.namespace, &id.name),
            Kind::Pod => {
                if let Some(pod) = self.pods.remove(&id.namespace, &id.name) {
                    self.pod_changed(&pod);
                }
            }
            Kind::Node => {
                if self.nodes.remove(&id.name).is_some() {
                    self.node_changed(&id.name);
                }
            }
            Kind::ServiceCidr => self.general_dirty |= self.cidrs.remove(&id.name).is_some(),
            Kind::Namespace => {}
        }
    }

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
        let mut touched = self.update_claims();
        let mut warned = false;
        for number in std::mem::take(&mut self.dirty) {
            warned |= self.rebuild(number, &mut next, &mut touched);
        }
        warned |= self.assign(&touched, &mut next);
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

    /// The slot of a Service, made if it is not there.
    fn slot(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> u32 {
        let mut id = ServiceId { namespace: namespace.clone(), name: name.clone() };
        if let Some(number) = self.ids.get(&id) {
            return *number;
        }
        self.names.share(&mut id.namespace);
        let slot = Slot { id: Some(id.clone()), ..Slot::default() };
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.slots[number as usize] = slot;
        self.ids.insert(id, number);
        number
    }

    fn upsert_slice(&mut self, mut slice: Box<EndpointSlice>) {
        let key = (slice.namespace.clone(), slice.name.clone());
        let Some(service) = slice.service.clone() else {
            self.delete_slice(&key.0, &key.1);
            self.general_dirty |= self.orphans.insert(key);
            return;
        };
        self.general_dirty |= self.orphans.remove(&key);
        share_endpoints(&mut self.names, &mut slice.endpoints);
        let number = self.slot(&slice.namespace, &service);
        // A changed label moves the endpoints to another Service.
        if self.slices.get(&key).is_some_and(|old| *old != number) {
            self.delete_slice(&key.0, &key.1);
        }
        let list = &mut self.slots[number as usize].slices;
        match list.binary_search_by(|s| s.name.cmp(&slice.name)) {
            Ok(at) if list[at] == slice => return,
            Ok(at) => list[at] = slice,
            Err(at) => list.insert(at, slice),
        }
        self.slices.insert(key, number);
        self.dirty.insert(number);
    }

    fn delete_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let key = (namespace.clone(), name.clone());
        self.general_dirty |= self.orphans.remove(&key);
        if let Some(number) = self.slices.remove(&key) {
            self.slots[number as usize].slices.retain(|s| s.name != *name);
            self.dirty.insert(number);
        }
    }

    fn upsert_pod(&mut self, mut pod: Box<Pod>) {
        if self.pods.get(&pod.namespace, &pod.name) == Some(&*pod) {
            return;
        }
        self.names.share(&mut pod.namespace);
        pod.node.iter_mut().for_each(|node| self.names.share(node));
        for (key, value) in &mut pod.labels {
            self.names.share(key);
            self.names.share(value);
        }
        self.pod_changed(&pod);
        if let Some(old) = self.pods.insert(pod) {
            self.pod_changed(&old);
        }
    }

    fn pod_changed(&mut self, pod: &Pod) {
        let namespace = &pod.namespace;
        self.dirty.extend(self.watchers.of(Dep::Pod(namespace, &pod.name)));
        for ip in &pod.ips {
            self.dirty.extend(self.watchers.of(Dep::PodIp(namespace, *ip)));
        }
        for (key, value) in &pod.labels {
            self.dirty.extend(self.watchers.of(Dep::Label(namespace, key, value)));
        }
    }

    fn node_changed(&mut self, name: &str) {
        self.general_dirty = true;
        if *name == *self.local.node_name {
            self.all_dirty = true; // its zone and its pod ranges concern every Service
        }
        self.dirty.extend(self.watchers.of(Dep::Node(name)));
    }

    /// Brings the table of ClusterIPs up to date with the dirty services, before any of them is built: an endpoint
    /// that is some Service's ClusterIP must be seen whatever the order. Gives back the addresses touched.
    fn update_claims(&mut self) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        for number in self.dirty.clone() {
            let slot = &mut self.slots[number as usize];
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
            self.dirty.extend(self.watchers.of(Dep::ClusterIp(*ip)));
        }
        touched
    }

    /// Builds one Service anew and puts its ports into `next`. Adds the addresses whose frontends may have changed
    /// to `touched`; says whether warnings changed.
    fn rebuild(&mut self, number: u32, next: &mut Snapshot, touched: &mut BTreeSet<IpAddr>) -> bool {
        let Some(id) = self.slots[number as usize].id.clone() else { return false };
        let built = self.build(number);
        let slot = &mut self.slots[number as usize];
        self.watchers.set(number, &slot.deps, &built.deps);
        slot.deps = built.deps.into();

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
        if slot.is_empty() {
            self.ids.remove(&id);
            self.slots[number as usize] = Slot::default();
            self.free.push(number);
        }
        self.warn(format!("Service {id}"), built.warnings)
    }

    fn build(&self, number: u32) -> Built {
        let slot = &self.slots[number as usize];
        let world = World { local: &self.local, pods: &self.pods, nodes: &self.nodes, claims: &self.claims };
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
            let mut wanted: BTreeMap<Frontend, Arc<ServicePort>> = BTreeMap::new();
            for port in owner.iter().flat_map(|owner| &self.slots[*owner as usize].ports) {
                wanted.insert(frontend(*ip, port), port.clone());
            }
            let all = Frontend { ip: *ip, port: 0, protocol: super::Protocol::Tcp }..=Frontend {
                ip: *ip,
                port: u16::MAX,
                protocol: super::Protocol::Sctp,
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
            let text =
                owner.filter(|_| claimants.len() > 1).map(|owner| self.contest(*ip, owner, &claimants));
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
    fn age(&self, number: u32) -> impl Ord + '_ {
        let slot = &self.slots[number as usize];
        let service = slot.service.as_deref();
        (
            service.and_then(|s| s.created.as_deref()),
            service.map(|s| s.resource_version),
            std::cmp::Reverse(slot.id.as_ref()),
        )
    }

    fn contest(&self, ip: IpAddr, owner: u32, claimants: &[u32]) -> String {
        let name = |number: u32| {
            self.slots[number as usize].id.as_ref().map(ToString::to_string).unwrap_or_default()
        };
        let others: Vec<String> = claimants.iter().filter(|c| **c != owner).map(|c| name(*c)).collect();
        format!(
            "ClusterIP {ip} is claimed by Services {} and {}; the newest, {}, has it",
            name(owner),
            others.join(", "),
            name(owner)
        )
    }

    /// The parts of the snapshot that belong to no Service.
    fn general(&mut self, next: &mut Snapshot) {
        let mut cidrs: Vec<_> = self.cidrs.values().flat_map(|c| c.cidrs.iter().copied()).collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        next.service_cidrs = cidrs;

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
        self.warn(String::new(), warnings);
    }

    /// Puts `warnings` in the place of those that `of` had before; says whether that changed anything.
    fn warn(&mut self, of: String, warnings: Vec<String>) -> bool {
        if warnings.is_empty() {
            return self.warnings.remove(&of).is_some();
        }
        self.warnings.insert(of, warnings.clone()).as_ref() != Some(&warnings)
    }

    fn all_warnings(&self) -> Vec<String> {
        let all = || self.contested.values().chain(self.warnings.values().flatten());
        let mut list: Vec<String> = all().take(MAX_WARNINGS).cloned().collect();
        let more = all().count().saturating_sub(MAX_WARNINGS);
        if more > 0 {
            list.push(format!("and {more} more warnings"));
        }
        list
    }

    /// The keys of all objects held.
    fn keys(&self) -> Vec<ObjectKey> {
        let none: Arc<str> = Arc::from("");
        let key = |kind, namespace: &Arc<str>, name: &Arc<str>| ObjectKey {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let mut keys: Vec<ObjectKey> =
            self.pods.iter().map(|p| key(Kind::Pod, &p.namespace, &p.name)).collect();
        keys.extend(self.nodes.keys().map(|name| key(Kind::Node, &none, name)));
        keys.extend(self.cidrs.keys().map(|name| key(Kind::ServiceCidr, &none, name)));
        keys.extend(self.slices.keys().map(|(ns, name)| key(Kind::EndpointSlice, ns, name)));
        keys.extend(self.orphans.iter().map(|(ns, name)| key(Kind::EndpointSlice, ns, name)));
        for slot in &self.slots {
            let Some(id) = &slot.id else { continue };
            let held = [
                slot.service.as_ref().map(|_| Kind::Service),
                slot.endpoints.as_ref().map(|_| Kind::Endpoints),
                slot.rule.as_ref().map(|_| Kind::DestinationRule),
            ];
            keys.extend(held.into_iter().flatten().map(|kind| key(kind, &id.namespace, &id.name)));
        }
        keys
    }
}

fn frontend(ip: IpAddr, port: &ServicePort) -> Frontend {
    Frontend { ip, port: port.number, protocol: port.id.protocol }
}

fn share_endpoints(names: &mut Interner, endpoints: &mut [slim::Endpoint]) {
    for endpoint in endpoints {
        let hints = endpoint.hints.iter_mut().flat_map(|h| h.zones.iter_mut().chain(h.nodes.iter_mut()));
        for name in endpoint.node.iter_mut().chain(&mut endpoint.zone).chain(hints) {
            names.share(name);
        }
    }
}

#[cfg(test)]
mod tests;
