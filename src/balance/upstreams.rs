//! All service ports as the data plane uses them, kept in step with the snapshot at the cost of what changed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;

use crate::model::{Backend, BackendSet, Frontend, Here, PortId, Protocol, ServicePort, Snapshot, Via};

use super::affinity::Affinity;
use super::health::{EjectionPolicy, Health, Standing, Tick};
use super::pool::{Endpoint, Pool};
use super::tallies::Tallies;
use super::upstream::{PortCounters, Upstream};

/// What readers see: swapped as a whole.
#[derive(Debug, Default)]
struct Table {
    by_frontend: OrdMap<Frontend, Arc<Upstream>>,
    by_id: OrdMap<PortId, Arc<Upstream>>,
    by_external: OrdMap<Frontend, Arc<Upstream>>,
    here: Here,
}

/// What only [`Upstreams::apply`] changes.
#[derive(Debug, Default)]
struct Memory {
    snapshot: Arc<Snapshot>,
    health: HashMap<SocketAddr, Weak<Health>>,
    /// Size of `health` at which the entries nobody uses any more are swept out.
    sweep_at: usize,
    /// Counters of service ports that are gone but still have connections.
    retired: HashMap<PortId, Arc<PortCounters>>,
    /// Backends that are gone from their service port but may still have connections.
    draining: Vec<Draining>,
    /// What the service ports that are gone for good have carried.
    gone: Carried,
}

#[derive(Clone, Debug)]
struct Draining {
    port: PortId,
    backend: Backend,
    endpoint: Arc<Endpoint>,
}

/// Bytes carried since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// From clients to backends.
    pub bytes_in: u64,
    /// From backends to clients.
    pub bytes_out: u64,
}

impl Carried {
    fn add(&mut self, counters: &PortCounters) {
        self.bytes_in += counters.bytes_in.load(Relaxed);
        self.bytes_out += counters.bytes_out.load(Relaxed);
    }
}

/// What a backend is to the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// It may be picked.
    Ready,
    /// Its dials failed; it is left out for a while.
    Ejected,
    /// It is gone from the snapshot, and some connections to it go on.
    Draining,
}

impl BackendState {
    /// The word of the public contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
        }
    }
}

/// A backend and its numbers.
#[derive(Clone, Debug)]
pub struct BackendView {
    /// The backend as the snapshot has, or had, it.
    pub backend: Backend,
    /// What it is to the data plane.
    pub state: BackendState,
    /// Dials under way and connections open now.
    pub active: u32,
    /// Connections since start.
    pub connections: u64,
    /// Failed dials since start.
    pub failures: u64,
    /// HTTP requests since start.
    pub requests: u64,
    /// How long it stays out, where it is ejected.
    pub out_for: Option<Duration>,
}

/// A service port with its numbers.
#[derive(Clone, Debug)]
pub struct PortView {
    /// The service port of the snapshot.
    pub port: Arc<ServicePort>,
    /// What it has seen.
    pub counters: Arc<PortCounters>,
    /// Its eligible backends, then those that are draining. What the snapshot excludes is in `port`.
    pub backends: Vec<BackendView>,
}

/// All service ports as the data plane uses them.
#[derive(Debug)]
pub struct Upstreams {
    table: ArcSwap<Table>,
    memory: Mutex<Memory>,
    held: Mutex<Vec<Held>>,
    tallies: Tallies,
    changes: Arc<watch::Sender<u64>>,
    /// Whether a snapshot has come into force.
    begun: watch::Sender<bool>,
    epoch: Instant,
}

/// A service port, or one address family of it, of which every backend refuses connections.
#[derive(Clone, Debug)]
pub struct Held {
    /// The service port.
    pub upstream: Arc<Upstream>,
    /// Whether it is its IPv4 half.
    pub v4: bool,
}

impl Held {
    /// The frontends whose clients are to be refused.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> + '_ {
        let of_family = self.upstream.port.frontends.iter().filter(|addr| addr.is_ipv4() == self.v4);
        of_family.map(|addr| Frontend { ip: addr.ip(), port: addr.port(), protocol: Protocol::Tcp })
    }

    /// The backends that refuse.
    pub fn pool(&self) -> &Pool {
        if self.v4 { &self.upstream.v4 } else { &self.upstream.v6 }
    }

    fn is(&self, upstream: &Arc<Upstream>, v4: bool) -> bool {
        Arc::ptr_eq(&self.upstream, upstream) && self.v4 == v4
    }
}

impl Default for Upstreams {
    fn default() -> Self {
        Self::new()
    }
}

impl Upstreams {
    /// No service ports.
    pub fn new() -> Self {
        Self {
            table: ArcSwap::default(),
            memory: Mutex::default(),
            held: Mutex::default(),
            tallies: Tallies::default(),
            changes: Arc::new(watch::channel(0).0),
            begun: watch::channel(false).0,
            // One microsecond back, so that no tick is 0.
            epoch: now().checked_sub(Duration::from_micros(1)).unwrap_or_else(now),
        }
    }

    /// The present moment. Follows tokio's clock, so that tests can stop it.
    pub fn now(&self) -> Tick {
        self.tick(now())
    }

    /// The moment that tokio's clock shows as `at`.
    pub fn tick(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.epoch);
        Tick(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// Puts `snapshot` in force for new connections. Service ports that did not change keep what they are; those
    /// that did keep their counters, their clients' pins if they still want any, and what is known of their backends.
    pub fn apply(&self, snapshot: Arc<Snapshot>) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load_full();
        let (mut by_id, mut by_frontend) = (table.by_id.clone(), table.by_frontend.clone());
        let before = Arc::clone(&memory.snapshot);

        for item in before.ports.diff(&snapshot.ports) {
            match item {
                DiffItem::Add(id, port) | DiffItem::Update { new: (id, port), .. } => {
                    let upstream = memory.upstream(port, by_id.get(id), &self.changes);
                    by_id.insert(id.clone(), Arc::new(upstream));
                }
                DiffItem::Remove(id, _) => {
                    if let Some(old) = by_id.remove(id) {
                        memory.note_draining(&old, None);
                        memory.retired.insert(id.clone(), Arc::clone(&old.counters));
                    }
                }
            }
        }
        let mut by_external = table.by_external.clone();
        for (before, now, routes) in [
            (&before.frontends, &snapshot.frontends, &mut by_frontend),
            (&before.external, &snapshot.external, &mut by_external),
        ] {
            for item in before.diff(now) {
                match item {
                    DiffItem::Add(frontend, port) | DiffItem::Update { new: (frontend, port), .. } => {
                        if let Some(upstream) = by_id.get(&port.id) {
                            routes.insert(*frontend, Arc::clone(upstream));
                        }
                    }
                    DiffItem::Remove(frontend, _) => {
                        routes.remove(frontend);
                    }
                }
            }
        }
        self.table.store(Arc::new(Table { by_frontend, by_id, by_external, here: snapshot.here.clone() }));
        drop((table, before));
        memory.snapshot = snapshot;
        memory.sweep();
        self.begun.send_if_modified(|begun| !std::mem::replace(begun, true));
    }

    /// Waits for the first snapshot.
    pub async fn begun(&self) {
        // The sender lives as long as `self`.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// The service port offered at `frontend`.
    pub fn lookup(&self, frontend: &Frontend) -> Option<Arc<Upstream>> {
        self.table.load().by_frontend.get(frontend).cloned()
    }

    /// The service port that a client at `client` reaches at `frontend`, and which way it comes. `None` also where
    /// a load balancer's source ranges do not have the client.
    pub fn route(&self, frontend: &Frontend, client: IpAddr) -> Option<(Arc<Upstream>, Via)> {
        let table = self.table.load();
        if let Some(upstream) = table.by_frontend.get(frontend) {
            return Some((Arc::clone(upstream), Via::ClusterIp));
        }
        let upstream = table.by_external.get(frontend)?;
        let via = if table.here.has(client) { Via::Here } else { Via::Outside };
        upstream.port.allows(frontend.addr(), client).then(|| (Arc::clone(upstream), via))
    }

    /// Whether some service port is offered at `frontend`.
    pub fn is_offered(&self, frontend: &Frontend) -> bool {
        let table = self.table.load();
        table.by_frontend.contains_key(frontend) || table.by_external.contains_key(frontend)
    }

    /// The service port with that identity.
    pub fn get(&self, id: &PortId) -> Option<Arc<Upstream>> {
        self.table.load().by_id.get(id).cloned()
    }

    /// Notes that every backend of `upstream` refuses, as far as frontends of `frontend`'s family go. That stays in
    /// force until [`Self::release`], or until the snapshot brings news about the service port.
    pub fn hold(&self, upstream: &Arc<Upstream>, frontend: IpAddr) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let v4 = frontend.is_ipv4();
        if held.iter().any(|known| known.is(upstream, v4)) || !self.is_current(upstream) {
            return;
        }
        tracing::info!(service = %upstream.port.id, "every backend refuses; so are clients, until one accepts again");
        held.push(Held { upstream: Arc::clone(upstream), v4 });
        drop(held);
        self.changes.send_modify(|generation| *generation += 1);
    }

    /// Takes back [`Self::hold`].
    pub fn release(&self, released: &Held) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held.len();
        held.retain(|known| !known.is(&released.upstream, released.v4));
        let changed = held.len() != before;
        drop(held);
        if changed {
            tracing::info!(service = %released.upstream.port.id, "its backends do not refuse any more");
            self.changes.send_modify(|generation| *generation += 1);
        }
    }

    /// The service ports whose clients are to be refused now.
    pub fn held(&self) -> Vec<Held> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|known| self.is_current(&known.upstream));
        held.clone()
    }

    fn is_current(&self, upstream: &Arc<Upstream>) -> bool {
        self.table.load().by_id.get(&upstream.port.id).is_some_and(|current| Arc::ptr_eq(current, upstream))
    }

    /// What all dials have come to.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// A dial of `endpoint` was refused or not answered.
    pub fn note_failure(&self, endpoint: &Endpoint, policy: &EjectionPolicy) {
        if endpoint.failed(self.now(), policy) {
            self.tallies.ejected();
        }
    }

    /// Bytes of all service ports, those that are gone included: put together here, so that the data plane counts once.
    pub fn carried(&self) -> Carried {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = memory.gone;
        self.table.load().by_id.values().for_each(|upstream| sum.add(&upstream.counters));
        memory.retired.values().for_each(|counters| sum.add(counters));
        sum
    }

    /// Changes whenever a backend is ejected or comes back, and with [`Self::held`].
    pub fn health_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The numbers of one service port.
    pub fn view(&self, id: &PortId) -> Option<PortView> {
        let upstream = self.get(id)?;
        Some(self.view_of(&upstream, &self.draining()))
    }

    /// The numbers of every service port, in the order of their identities.
    pub fn views(&self) -> Vec<PortView> {
        let (table, draining) = (self.table.load_full(), self.draining());
        table.by_id.values().map(|upstream| self.view_of(upstream, &draining)).collect()
    }

    fn draining(&self) -> Vec<Draining> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.draining.iter().filter(|d| d.endpoint.active() > 0).cloned().collect()
    }

    fn view_of(&self, upstream: &Upstream, draining: &[Draining]) -> PortView {
        let now = self.now();
        let mut backends: Vec<BackendView> = Vec::new();
        for (backend, endpoint) in upstream.endpoints() {
            let ready = endpoint.health.standing(now) == Standing::Ready;
            let state = if ready { BackendState::Ready } else { BackendState::Ejected };
            let until = endpoint.health.ejected_until().filter(|_| !ready);
            let out_for = until.map(|until| Duration::from_micros(until.0.saturating_sub(now.0)));
            backends.push(BackendView { out_for, ..view(backend, endpoint, state) });
        }
        let gone = draining.iter().filter(|d| d.port == upstream.port.id);
        backends.extend(gone.map(|d| view(&d.backend, &d.endpoint, BackendState::Draining)));
        PortView { port: Arc::clone(&upstream.port), counters: Arc::clone(&upstream.counters), backends }
    }
}

fn view(backend: &Backend, endpoint: &Endpoint, state: BackendState) -> BackendView {
    BackendView {
        backend: backend.clone(),
        state,
        active: endpoint.active(),
        connections: endpoint.connections(),
        failures: endpoint.failures(),
        requests: endpoint.requests(),
        out_for: None,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Memory {
    /// The new upstream for `port`, taking over from `old` what lives on.
    fn upstream(
        &mut self,
        port: &Arc<ServicePort>,
        old: Option<&Arc<Upstream>>,
        changes: &Arc<watch::Sender<u64>>,
    ) -> Upstream {
        let counters = match old {
            Some(old) => Arc::clone(&old.counters),
            None => self.retired.remove(&port.id).unwrap_or_default(),
        };
        let affinity = port.affinity.map(|_| {
            old.and_then(|old| old.affinity.as_ref())
                .map_or_else(|| Arc::new(Affinity::default()), Arc::clone)
        });
        let ejection = EjectionPolicy::from(&port.outlier);
        let mut known: HashMap<SocketAddr, Arc<Endpoint>> = self
            .draining
            .iter()
            .filter(|d| d.port == port.id)
            .map(|d| (d.endpoint.addr, Arc::clone(&d.endpoint)))
            .collect();
        if let Some(old) = old {
            known.extend(old.endpoints().into_iter().map(|(_, e)| (e.addr, Arc::clone(e))));
        }
        let mut pool = |set: &BackendSet| {
            let endpoints = set.eligible.iter().map(|b| {
                let addr = b.addr.0;
                let new = || Arc::new(Endpoint::new(addr, self.health_of(addr, changes)));
                // Several pools of one upstream share an endpoint.
                Arc::clone(known.entry(addr).or_insert_with(new))
            });
            Pool::new(endpoints.collect(), set.preferred, ejection.max_percent)
        };
        let (v4, v6) = (pool(&port.v4), pool(&port.v6));
        let other = port.external.as_ref().and_then(|external| external.other.as_ref());
        let other = other.map(|[v4, v6]| [pool(v4), pool(v6)]);
        let new = Upstream { port: Arc::clone(port), counters, ejection, affinity, v4, v6, other };
        if let Some(old) = old {
            self.note_draining(old, Some(&new));
        }
        self.draining.retain(|d| d.port != new.port.id || !new.has(d.endpoint.addr));
        new
    }

    fn health_of(&mut self, addr: SocketAddr, changes: &Arc<watch::Sender<u64>>) -> Arc<Health> {
        if let Some(known) = self.health.get(&addr).and_then(Weak::upgrade) {
            return known;
        }
        let health = Arc::new(Health::new(Arc::clone(changes)));
        self.health.insert(addr, Arc::downgrade(&health));
        health
    }

    /// Remembers the backends of `old` that `new` has no more, for as long as they have connections.
    fn note_draining(&mut self, old: &Upstream, new: Option<&Upstream>) {
        for (backend, endpoint) in old.endpoints() {
            if endpoint.active() > 0 && !new.is_some_and(|new| new.has(endpoint.addr)) {
                self.draining.push(Draining {
                    port: old.port.id.clone(),
                    backend: backend.clone(),
                    endpoint: Arc::clone(endpoint),
                });
            }
        }
    }

    fn sweep(&mut self) {
        self.draining.retain(|d| d.endpoint.active() > 0);
        let gone = &mut self.gone;
        self.retired.retain(|_, counters| {
            let open = counters.active.load(Relaxed) > 0;
            if !open {
                gone.add(counters);
            }
            open
        });
        if self.health.len() > self.sweep_at {
            self.health.retain(|_, health| health.strong_count() > 0);
            self.sweep_at = self.health.len() * 2 + 64;
        }
    }
}

impl Upstream {
    fn has(&self, addr: SocketAddr) -> bool {
        self.pools().any(|(_, pool)| pool.position(addr).is_some())
    }

    /// Every backend of every pool, each once, the ClusterIP's first.
    fn endpoints(&self) -> Vec<(&Backend, &Arc<Endpoint>)> {
        let mut seen = HashSet::new();
        let all = self.pools().flat_map(|(set, pool)| set.eligible.iter().zip(pool.endpoints()));
        let once =
            |(_, endpoint): &(&Backend, &Arc<Endpoint>)| self.other.is_none() || seen.insert(endpoint.addr);
        all.filter(once).collect()
    }
}
