//! All objects, joined by Service, and the snapshot that follows from them.

mod external;
mod rebuild;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;

use crate::source::slim::{
    self, DestinationRule, EndpointSlice, Endpoints, Kind, Node, Object, ObjectKey, Pod, Service, ServiceCidr,
};

use super::build::HostPorts;
use super::external::Here;
use super::index::{Dep, Interner, Pods, Watchers};
use super::local::Local;
use super::onward::Onward;
use super::types::{Frontend, ServiceId, ServicePort, Snapshot};

/// Holds every object and turns changes into snapshots, rebuilding only the services that a change concerns.
#[derive(Debug)]
pub struct Store {
    local: Local,
    pods: Pods,
    nodes: HashMap<Arc<str>, Box<Node>>,
    cidrs: BTreeMap<Arc<str>, Box<ServiceCidr>>,
    namespaces: OrdSet<Arc<str>>,
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
    /// Every external frontend, with the slot of the Service that has it.
    external_claims: BTreeSet<(Frontend, u32)>,
    host_ports: HostPorts,
    onward: Onward,
    here: Here,
    names: Interner,
    dirty: BTreeSet<u32>,
    all_dirty: bool,
    /// Nodes, `ServiceCIDRs` or orphans have changed.
    general_dirty: bool,
    warnings: BTreeMap<String, Vec<String>>,
    contested: BTreeMap<IpAddr, String>,
    contested_external: BTreeMap<Frontend, String>,
    snapshot: Arc<Snapshot>,
}

/// One Service's place.
#[derive(Debug, Default)]
struct Slot {
    id: Option<ServiceId>,
    service: Option<Box<Service>>,
    /// By name.
    slices: Vec<EndpointSlice>,
    endpoints: Option<Box<Endpoints>>,
    rule: Option<Box<DestinationRule>>,
    /// What the snapshot holds of it.
    ports: Vec<Arc<ServicePort>>,
    ips: Box<[IpAddr]>,
    external: Box<[Frontend]>,
    health_port: Option<u16>,
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
            namespaces: OrdSet::new(),
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::new(),
            slices: HashMap::new(),
            orphans: BTreeSet::new(),
            watchers: Watchers::default(),
            claims: BTreeSet::new(),
            external_claims: BTreeSet::new(),
            host_ports: HostPorts::new(),
            onward: Onward::default(),
            here: Here::default(),
            names: Interner::default(),
            dirty: BTreeSet::new(),
            all_dirty: true, // what counts as this node is not known yet
            general_dirty: false,
            warnings: BTreeMap::new(),
            contested: BTreeMap::new(),
            contested_external: BTreeMap::new(),
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
        // Now, while everything is being built anyway, rather than under the first change that asks.
        self.pods.index_addresses();
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
            Object::EndpointSlice(slice) => self.upsert_slice(*slice),
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
                    let name = node.name.clone();
                    let old = self.nodes.insert(name.clone(), node);
                    self.node_changed(&name, old.as_deref());
                }
            }
            Object::ServiceCidr(cidr) => {
                if self.cidrs.get(&cidr.name) != Some(&cidr) {
                    self.cidrs.insert(cidr.name.clone(), cidr);
                    self.general_dirty = true;
                }
            }
            Object::Namespace(namespace) => {
                self.general_dirty |= self.namespaces.insert(namespace.name.clone()).is_none();
            }
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
                    self.note_host_ports(&pod, false);
                    self.pod_changed(&pod);
                }
            }
            Kind::Node => {
                if let Some(old) = self.nodes.remove(&id.name) {
                    self.node_changed(&id.name, Some(&old));
                }
            }
            Kind::ServiceCidr => self.general_dirty |= self.cidrs.remove(&id.name).is_some(),
            Kind::Namespace => self.general_dirty |= self.namespaces.remove(&id.name).is_some(),
        }
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

    fn upsert_slice(&mut self, mut slice: EndpointSlice) {
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
        if let Some(old) = self.pods.remove(&pod.namespace, &pod.name) {
            self.note_host_ports(&old, false);
            self.pod_changed(&old);
        }
        self.note_host_ports(&pod, true);
        self.pods.insert(pod);
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

    fn node_changed(&mut self, name: &str, old: Option<&Node>) {
        self.general_dirty = true;
        for ip in self.onward.host(old, self.nodes.get(name).map(AsRef::as_ref)) {
            self.dirty.extend(self.watchers.of(Dep::Address(ip)));
        }
        if *name == *self.local.node_name {
            self.all_dirty = true; // its zone and its pod ranges concern every Service
        }
        self.dirty.extend(self.watchers.of(Dep::Node(name)));
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
        keys.extend(self.namespaces.iter().map(|name| key(Kind::Namespace, &none, name)));
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

fn share_endpoints(names: &mut Interner, endpoints: &mut [slim::Endpoint]) {
    for endpoint in endpoints {
        let hints = endpoint.hints.iter_mut().flat_map(|h| h.zones.iter_mut().chain(h.nodes.iter_mut()));
        for name in endpoint.node.iter_mut().chain(&mut endpoint.zone).chain(hints) {
            names.share(name);
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
