//! Who depends on what: so that a change rebuilds the services it concerns and no others.
//!
//! Dependencies are kept as hashes. Two that collide cost one rebuild too many, which changes nothing; a hundred
//! thousand endpoints cost 16 bytes each instead of a copy of every name.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use crate::source::slim::Pod;

use super::types::{Frontend, Protocol, ServiceId};

/// Something the ports of a Service were built from.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum Dep<'a> {
    /// A Pod by namespace and name.
    Pod(&'a str, &'a str),
    /// The Pods of a namespace with that address.
    PodIp(&'a str, IpAddr),
    /// The Pods of a namespace with that label.
    Label(&'a str, &'a str, &'a str),
    /// A Node.
    Node(&'a str),
    /// Which Services and Nodes have that address.
    Address(IpAddr),
    /// Which Services are offered there, see [`Onward`](super::onward::Onward).
    Offered(Frontend),
    /// To which Services the endpoints of a Service lead on.
    Leads(&'a ServiceId),
    /// The pods of this node with that host port.
    HostPort(Protocol, u16),
}

impl Dep<'_> {
    pub(super) fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Which service (by slot number) depends on what.
#[derive(Debug, Default)]
pub(super) struct Watchers(BTreeSet<(u64, u32)>);

impl Watchers {
    /// Puts the dependencies `new` of `slot` in the place of `old`; both are sorted.
    pub(super) fn set(&mut self, slot: u32, old: &[u64], new: &[u64]) {
        for key in old.iter().filter(|key| new.binary_search(key).is_err()) {
            self.0.remove(&(*key, slot));
        }
        for key in new.iter().filter(|key| old.binary_search(key).is_err()) {
            self.0.insert((*key, slot));
        }
    }

    /// The services that depend on `dep`.
    pub(super) fn of(&self, dep: Dep<'_>) -> impl Iterator<Item = u32> + '_ {
        let key = dep.key();
        self.0.range((key, 0)..=(key, u32::MAX)).map(|(_, slot)| *slot)
    }
}

/// All Pods, found by name, and once somebody has asked, by address and by label.
#[derive(Debug, Default)]
pub(super) struct Pods {
    all: HashMap<Arc<str>, HashMap<Arc<str>, Box<Pod>>>,
    by_ip: OnceLock<Names>,
    by_label: OnceLock<Names>,
}

/// Names of Pods by the hash of an address or label together with the namespace.
type Names = BTreeSet<(u64, Arc<str>)>;

fn ip_keys(pod: &Pod) -> impl Iterator<Item = u64> + '_ {
    pod.ips.iter().map(|ip| Dep::PodIp(&pod.namespace, *ip).key())
}

fn label_keys(pod: &Pod) -> impl Iterator<Item = u64> + '_ {
    pod.labels.iter().map(|(key, value)| Dep::Label(&pod.namespace, key, value).key())
}

impl Pods {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.all.get(namespace)?.get(name).map(AsRef::as_ref)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.all.values().flat_map(HashMap::values).map(AsRef::as_ref)
    }

    /// Adds or changes a Pod; gives back the one before.
    pub(super) fn insert(&mut self, pod: Box<Pod>) -> Option<Box<Pod>> {
        let old = self.remove(&pod.namespace, &pod.name);
        if let Some(index) = self.by_ip.get_mut() {
            index.extend(ip_keys(&pod).map(|key| (key, pod.name.clone())));
        }
        if let Some(index) = self.by_label.get_mut() {
            index.extend(label_keys(&pod).map(|key| (key, pod.name.clone())));
        }
        self.all.entry(pod.namespace.clone()).or_default().insert(pod.name.clone(), pod);
        old
    }

    pub(super) fn remove(&mut self, namespace: &str, name: &str) -> Option<Box<Pod>> {
        let pods = self.all.get_mut(namespace)?;
        let pod = pods.remove(name)?;
        if pods.is_empty() {
            self.all.remove(namespace);
        }
        if let Some(index) = self.by_ip.get_mut() {
            ip_keys(&pod).for_each(|key| _ = index.remove(&(key, pod.name.clone())));
        }
        if let Some(index) = self.by_label.get_mut() {
            label_keys(&pod).for_each(|key| _ = index.remove(&(key, pod.name.clone())));
        }
        Some(pod)
    }

    /// Makes the table of addresses, if it is not there.
    pub(super) fn index_addresses(&self) {
        self.by_ip.get_or_init(|| self.names(ip_keys));
    }

    /// The Pods of `namespace` that have the address `ip`.
    pub(super) fn with_ip<'a>(&'a self, namespace: &'a str, ip: IpAddr) -> impl Iterator<Item = &'a Pod> {
        let index = self.by_ip.get_or_init(|| self.names(ip_keys));
        self.named(index, namespace, Dep::PodIp(namespace, ip)).filter(move |pod| pod.ips.contains(&ip))
    }

    /// The rarest label of a selector among the Pods of `namespace`. Every Pod that the selector matches has it, so
    /// whoever depends on that one label learns of every change.
    pub(super) fn rarest<'s>(
        &self,
        namespace: &str,
        selector: &'s [(Arc<str>, Arc<str>)],
    ) -> Option<&'s (Arc<str>, Arc<str>)> {
        let index = self.by_label.get_or_init(|| self.names(label_keys));
        // Counting further than this would cost more than the better choice saves.
        let count = |label: &(Arc<str>, Arc<str>)| {
            let key = Dep::Label(namespace, &label.0, &label.1).key();
            index.range((key, Arc::from(""))..).take_while(|(k, _)| *k == key).take(1000).count()
        };
        selector.iter().min_by_key(|label| count(label))
    }

    /// The Pods of `namespace` with that label, by name.
    pub(super) fn with_label<'a>(
        &'a self,
        namespace: &'a str,
        label: &'a (Arc<str>, Arc<str>),
    ) -> impl Iterator<Item = &'a Pod> {
        let index = self.by_label.get_or_init(|| self.names(label_keys));
        self.named(index, namespace, Dep::Label(namespace, &label.0, &label.1))
            .filter(move |pod| pod.labels.contains(label))
    }

    fn names<'a, I: Iterator<Item = u64> + 'a>(&'a self, keys: impl Fn(&'a Pod) -> I) -> Names {
        self.iter().flat_map(|pod| keys(pod).map(|key| (key, pod.name.clone()))).collect()
    }

    fn named<'a>(
        &'a self,
        index: &'a Names,
        namespace: &'a str,
        dep: Dep<'_>,
    ) -> impl Iterator<Item = &'a Pod> {
        let key = dep.key();
        index
            .range((key, Arc::from(""))..)
            .take_while(move |(k, _)| *k == key)
            .filter_map(|(_, name)| self.get(namespace, name))
    }
}

/// One copy of each name that occurs in many objects.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: std::collections::HashSet<Arc<str>>,
    purge_at: usize,
}

impl Interner {
    /// Puts the shared copy in the place of `name`.
    pub(super) fn share(&mut self, name: &mut Arc<str>) {
        if let Some(shared) = self.names.get(&**name) {
            *name = shared.clone();
            return;
        }
        if self.names.len() >= self.purge_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.purge_at = (self.names.len() * 2).max(1024);
        }
        self.names.insert(name.clone());
    }
}
