//! The control task: takes updates from the source, rebuilds the snapshot, and hands it to the data plane and the
//! rules. The only writer of all three.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use imbl::OrdSet;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::balance::Upstreams;
use crate::config::Settings;
use crate::model::{Frontend, Local, Protocol, Snapshot, Store, diff, ranges};
use crate::rules::{Wanted, routes};
use crate::source::Update;

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
}

impl Shared {
    pub(super) fn new(proxy_port: u16) -> Self {
        Self {
            proxy_port,
            snapshot: ArcSwap::default(),
            ranges: ArcSwap::default(),
            loaded: AtomicBool::new(false),
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
    local.cluster_domain.clone_from(&settings.dns.domain);
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

/// The control task's state.
pub(super) struct Control {
    settings: Settings,
    store: Store,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    served: OrdSet<Frontend>,
    wanted: watch::Sender<Arc<Wanted>>,
}

impl Control {
    pub(super) async fn new(
        settings: &Settings,
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        wanted: watch::Sender<Arc<Wanted>>,
    ) -> Self {
        let store = Store::new(local(settings, shared.proxy_port, Vec::new()).await);
        Self { settings: settings.clone(), store, shared, upstreams, served: OrdSet::new(), wanted }
    }

    /// Takes updates until `stop` is cancelled.
    pub(super) async fn run(mut self, mut updates: mpsc::Receiver<Update>, stop: CancellationToken) {
        let mut refresh = tokio::time::interval(HOST_REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        refresh.reset();
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
                _ = refresh.tick() => {
                    let captured = self.shared.ranges.load().as_ref().clone();
                    let local = local(&self.settings, self.shared.proxy_port, captured).await;
                    if *self.store.local() != local {
                        debug!("this host's routes or addresses have changed");
                        self.store.set_local(local);
                        self.publish();
                    }
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
        self.upstreams.apply(Arc::clone(&now));
        self.shared.snapshot.store(Arc::clone(&now));
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
        let wanted = Wanted {
            ranges: found,
            skip: skipped(&now),
            served: self.served.clone(),
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
