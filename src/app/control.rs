//! The control task: takes updates from the source, rebuilds the snapshot, and hands it to the data plane and the
//! rules. The only writer of all three.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::balance::{Held, Upstreams};
use crate::config::Settings;
use crate::model::{Door, Frontend, Local, Protocol, Snapshot, Store, diff, ranges};
use crate::net::listeners;
use crate::rules::{Wanted, routes};
use crate::source::Update;

use super::health_ports::HealthPorts;

/// How often this host's routes and addresses are read again: they decide which pods can be dialled directly.
const HOST_REFRESH: Duration = Duration::from_secs(10);

/// What the control task publishes for reports and for the data plane's last guard against loops.
#[derive(Debug)]
pub(super) struct Shared {
    /// The acceptor's port.
    pub(super) proxy_port: u16,
    /// The snapshot in force.
    pub(super) snapshot: ArcSwap<Snapshot>,
    /// The captured ranges.
    pub(super) ranges: ArcSwap<Vec<IpNet>>,
    /// Whether a full state has been taken over.
    pub(super) loaded: AtomicBool,
    /// Health check ports that could not be opened, each a line.
    pub(super) health_faults: ArcSwap<Vec<String>>,
}

impl Shared {
    pub(super) fn new(proxy_port: u16) -> Self {
        Self {
            proxy_port,
            snapshot: ArcSwap::default(),
            ranges: ArcSwap::default(),
            loaded: AtomicBool::new(false),
            health_faults: ArcSwap::default(),
        }
    }

    /// Whether packets to `ip` come back to the acceptor.
    pub(super) fn is_captured(&self, ip: IpAddr) -> bool {
        self.ranges.load().iter().any(|range| range.contains(&ip))
    }
}

/// This host as `model` needs to know it, read from the kernel.
pub(super) async fn local(settings: &Settings, proxy_port: u16, captured: Vec<IpNet>) -> Local {
    let mut local = Local::new(&settings.node_name);
    local.pod_network = settings.backends.pod_network;
    local.capture_kubernetes = settings.intercept.kubernetes_service;
    local.service_proxy_name = settings.intercept.service_proxy_name.as_str().into();
    local.cluster_domain.clone_from(&settings.dns.domain);
    local.node_ports.clone_from(&settings.intercept.node_ports);
    local.external_ips = settings.intercept.external_ips;
    local.captured = captured;
    local.proxy_port = proxy_port;
    match routes::non_default_routes().await {
        Ok(routed) => local.routed = routed,
        Err(error) => warn!(%error, "this host's routes cannot be read; pods elsewhere count as unreachable"),
    }
    match routes::local_addresses().await {
        Ok(addresses) => local.own_addresses = addresses,
        Err(error) => warn!(%error, "this host's addresses cannot be read"),
    }
    local
}

/// The ranges to capture for `snapshot`, given those in force.
pub(super) fn captured(
    settings: &Settings,
    snapshot: &Snapshot,
    local: &Local,
    previous: &[IpNet],
) -> Vec<IpNet> {
    let vips = ranges::vips(snapshot);
    let known = if settings.intercept.service_cidrs.is_empty() {
        &snapshot.service_cidrs
    } else {
        &settings.intercept.service_cidrs
    };
    if !known.is_empty() {
        return ranges::complete(known, &vips);
    }
    let mut forbidden: Vec<IpNet> = local.routed.clone();
    forbidden.extend(local.own_addresses.iter().copied().map(IpNet::from));
    forbidden.extend(snapshot.node_ips.iter().copied().map(IpNet::from));
    forbidden.extend(ranges::dialled(snapshot));
    forbidden.extend(snapshot.external.keys().map(|frontend| IpNet::from(frontend.ip)));
    ranges::infer(&vips, previous, &forbidden)
}

/// Where the ranges come from, for the log.
fn origin_of_ranges(settings: &Settings, snapshot: &Snapshot) -> &'static str {
    if !settings.intercept.service_cidrs.is_empty() {
        "intercept.serviceCIDRs"
    } else if !snapshot.service_cidrs.is_empty() {
        "the cluster's own account"
    } else {
        "the addresses seen"
    }
}

/// The addresses that are left alone though they may lie in a captured range.
pub(super) fn skipped(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let mut skip: BTreeSet<IpAddr> =
        snapshot.not_proxied.values().flat_map(|service| service.cluster_ips.iter().copied()).collect();
    // An address that a proxied service holds as well belongs to that one.
    if !skip.is_empty() {
        for ip in ranges::vips(snapshot) {
            skip.remove(&ip);
        }
    }
    skip
}

/// Whether a connection to `frontend` is accepted by this version.
fn is_intercepted(frontend: &Frontend) -> bool {
    frontend.protocol == Protocol::Tcp
}

/// The frontends of `snapshot` that are accepted; all others are refused.
pub(super) fn served(snapshot: &Snapshot) -> OrdSet<Frontend> {
    let served = snapshot
        .frontends
        .iter()
        .filter(|(frontend, port)| is_intercepted(frontend) && port.is_served(frontend.addr()));
    served.map(|(frontend, _)| *frontend).collect()
}

/// The external frontends of `snapshot`, as the packet filter must know them.
pub(super) fn external(snapshot: &Snapshot) -> OrdMap<Frontend, Door> {
    let doors = diff::doors(&Snapshot::default(), snapshot).into_iter();
    doors.filter(|(at, _)| is_intercepted(at)).filter_map(|(at, door)| Some((at, door?))).collect()
}

/// Where the health checks of `snapshot` are answered.
pub(super) fn health(snapshot: &Snapshot) -> OrdSet<Frontend> {
    let addresses = &snapshot.here.node_port_addresses;
    let at = |port: &u16| {
        let (port, protocol) = (*port, Protocol::Tcp);
        addresses.iter().map(move |ip| Frontend { ip: *ip, port, protocol })
    };
    snapshot.health_checks.keys().flat_map(at).collect()
}

/// Where others listen, on one of `ports`.
pub(super) fn listening(ports: &BTreeSet<u16>) -> BTreeSet<SocketAddr> {
    if ports.is_empty() {
        return BTreeSet::new();
    }
    match listeners::tcp() {
        Ok(all) => all.into_iter().filter(|at| ports.contains(&at.port())).collect(),
        Err(error) => {
            warn!(%error, "this host's listeners cannot be read; node ports may shadow them");
            BTreeSet::new()
        }
    }
}

/// The control task's state.
pub(super) struct Control {
    settings: Settings,
    store: Store,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    served: OrdSet<Frontend>,
    external: OrdMap<Frontend, Door>,
    /// Ports at own addresses on which others must not be shadowed.
    exposed: BTreeSet<u16>,
    health: HealthPorts,
    wanted: watch::Sender<Arc<Wanted>>,
}

impl Control {
    pub(super) async fn new(
        settings: &Settings,
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        health: HealthPorts,
        wanted: watch::Sender<Arc<Wanted>>,
    ) -> Self {
        let store = Store::new(local(settings, shared.proxy_port, Vec::new()).await);
        Self {
            settings: settings.clone(),
            store,
            shared,
            upstreams,
            served: OrdSet::new(),
            external: OrdMap::new(),
            exposed: BTreeSet::new(),
            health,
            wanted,
        }
    }

    /// Takes updates until `stop` is cancelled.
    pub(super) async fn run(mut self, mut updates: mpsc::Receiver<Update>, stop: CancellationToken) {
        let mut refresh = tokio::time::interval(HOST_REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        refresh.reset();
        let mut health = self.upstreams.health_changes();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                update = updates.recv() => {
                    let Some(update) = update else { return stop.cancelled().await };
                    self.take(update);
                    // What has piled up meanwhile goes into the same snapshot.
                    while let Ok(update) = updates.try_recv() {
                        self.take(update);
                    }
                    self.publish();
                }
                Ok(()) = health.changed() => {
                    let (now, ranges) = (self.shared.snapshot.load_full(), self.shared.ranges.load_full());
                    self.announce(&now, ranges.as_ref().clone());
                }
                _ = refresh.tick() => {
                    let captured = self.shared.ranges.load().as_ref().clone();
                    let mut local = local(&self.settings, self.shared.proxy_port, captured).await;
                    local.listening = listening(&self.exposed);
                    if *self.store.local() != local {
                        debug!("this host's routes or addresses have changed");
                        self.store.set_local(local);
                        self.publish();
                    }
                    self.health.retry();
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Replace(objects) => {
                self.store.replace(objects);
                self.shared.loaded.store(true, Ordering::Release);
            }
            Update::Upsert(object) => self.store.upsert(*object),
            Update::Delete(key) => self.store.delete(&key),
        }
    }

    /// Puts the store's state in force: first where connections are routed, then in the packet filter.
    fn publish(&mut self) {
        let before = self.shared.snapshot.load_full();
        let mut now = self.store.snapshot();
        let ranges = self.shared.ranges.load_full();
        let found = captured(&self.settings, &now, self.store.local(), &ranges);
        if found != *ranges {
            info!(ranges = ?found, from = origin_of_ranges(&self.settings, &now), "captured ranges");
            let mut local = self.store.local().clone();
            local.captured.clone_from(&found);
            self.store.set_local(local);
            self.shared.ranges.store(Arc::new(found.clone()));
            now = self.store.snapshot();
        }
        let exposed = self.store.exposed_ports();
        if exposed != self.exposed {
            let mut local = self.store.local().clone();
            local.listening = listening(&exposed);
            self.store.set_local(local);
            self.exposed = exposed;
            now = self.store.snapshot();
        }
        self.upstreams.apply(Arc::clone(&now));
        self.shared.snapshot.store(Arc::clone(&now));
        self.health.apply(&now);
        for warning in now.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
            warn!("{warning}");
        }

        let changed = diff::diff(&before, &now);
        for frontend in changed.unserved.iter().filter(|frontend| is_intercepted(frontend)) {
            self.served.remove(frontend);
        }
        for frontend in changed.served.into_iter().filter(is_intercepted) {
            self.served.insert(frontend);
        }
        for (at, door) in diff::doors(&before, &now).into_iter().filter(|(at, _)| is_intercepted(at)) {
            match door {
                Some(door) => _ = self.external.insert(at, door),
                None => _ = self.external.remove(&at),
            }
        }
        self.announce(&now, found);
    }

    /// Tells the packet filter what to capture. Frontends whose backends all refuse are refused there.
    fn announce(&self, now: &Snapshot, ranges: Vec<IpNet>) {
        let mut served = self.served.clone();
        for frontend in self.upstreams.held().iter().flat_map(Held::frontends) {
            served.remove(&frontend);
        }
        let wanted = Wanted {
            external: self.external.clone(),
            health: health(now),
            pods: now.here.pods.clone(),
            ranges,
            skip: skipped(now),
            served,
            proxy_port: self.shared.proxy_port,
            own_mark: self.settings.intercept.own_mark,
            refuse_mark: self.settings.intercept.refuse_mark,
        };
        self.wanted.send_if_modified(|old| {
            let modified = **old != wanted;
            if modified {
                *old = Arc::new(wanted);
            }
            modified
        });
    }
}
