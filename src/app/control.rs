//! The control task: takes updates from the source, rebuilds the snapshot, and hands it to the data plane and the
//! rules. The only writer of all three.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use imbl::OrdSet;
use ipnet::IpNet;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::balance::{Held, Upstreams};
use crate::config::Settings;
use crate::dns::{Dns, Resolver};
use crate::model::diff::{self, Diff};
use crate::model::{Frontend, Local, Protocol, Snapshot, Store, ranges};
use crate::obs::meter::{Histogram, Tally};
use crate::proxy::udp::UdpPlane;
use crate::rules::{Wanted, routes};
use crate::source::Update;

use super::data::Beat;
use super::doors::{self, Doors};
use super::health_ports::HealthPorts;
use super::listeners::Listeners;
use super::taking::Former;
use super::ways::Ways;

/// How often this host's routes and addresses are read again: they decide which pods can be dialled directly.
const HOST_REFRESH: Duration = Duration::from_secs(10);

/// The words for updates of a source.
const UPDATES: [&str; 3] = ["full", "upsert", "delete"];

/// What the control task publishes for reports and for the data plane's last guard against loops.
#[derive(Debug)]
pub(super) struct Shared {
    /// The acceptor's port.
    pub(super) proxy_port: u16,
    /// In how many queues clients' first packets are held.
    pub(super) queues: u16,
    /// The snapshot in force.
    pub(super) snapshot: ArcSwap<Snapshot>,
    /// This host's routes and addresses.
    pub(super) ways: ArcSwap<Ways>,
    /// The captured ranges.
    pub(super) ranges: ArcSwap<Vec<IpNet>>,
    /// Served UDP frontends whose socket could not be opened, each as a line for people.
    pub(super) unopened: ArcSwap<Vec<String>>,
    /// Where the cluster's own DNS is answered by this agent.
    pub(super) dns: ArcSwap<BTreeSet<Frontend>>,
    /// The own addresses on which DNS is answered.
    pub(super) dns_listen: ArcSwap<BTreeSet<SocketAddr>>,
    /// Why DNS is not answered somewhere, each as a line for people.
    pub(super) dns_faults: ArcSwap<Vec<String>>,
    /// What answers DNS.
    pub(super) resolver: OnceLock<Arc<Resolver>>,
    /// Whether a full state has been taken over.
    pub(super) loaded: AtomicBool,
    /// Health check ports that could not be opened, each a line.
    pub(super) health_faults: ArcSwap<Vec<String>>,
    /// News from the source by what it was.
    pub(super) updates: Tally<3>,
    /// How long it took each time to put news in force, but for the packet filter.
    pub(super) build_times: Histogram,
    /// When this task last showed that it moves.
    pub(super) control: Beat,
    /// The listening sockets at fixed addresses.
    pub(super) listeners: Listeners,
    /// The agent before, while it still serves what was led to it.
    pub(super) former: ArcSwap<Former>,
    /// Something of the above has changed that this task is to look at.
    pub(super) poke: Notify,
}

impl Shared {
    pub(super) fn new(proxy_port: u16, queues: u16, former: Option<Former>) -> Self {
        Self {
            listeners: Listeners::new(former.is_some()),
            former: ArcSwap::from_pointee(former.unwrap_or_default()),
            poke: Notify::new(),
            proxy_port,
            queues,
            snapshot: ArcSwap::default(),
            ways: ArcSwap::default(),
            ranges: ArcSwap::default(),
            unopened: ArcSwap::default(),
            dns: ArcSwap::default(),
            dns_listen: ArcSwap::default(),
            dns_faults: ArcSwap::default(),
            resolver: OnceLock::new(),
            loaded: AtomicBool::new(false),
            health_faults: ArcSwap::default(),
            updates: Tally::new(&UPDATES),
            build_times: Histogram::default(),
            control: Beat::new(),
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

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// Where the cluster's own DNS is to be found.
pub(super) fn dns_frontends(snapshot: &Snapshot) -> BTreeSet<Frontend> {
    let ips =
        snapshot.cluster_dns.iter().filter_map(|id| snapshot.services.get(id)).flat_map(|ips| ips.iter());
    ips.flat_map(|ip| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Frontend { ip: *ip, port: DNS_PORT, protocol })
    })
    .filter(|frontend| snapshot.frontends.contains_key(frontend))
    .collect()
}

/// The frontends of `snapshot` that are answered, if their sockets can be opened; all others are refused.
pub(super) fn served(snapshot: &Snapshot) -> OrdSet<Frontend> {
    let served = snapshot.frontends.iter().filter(|(frontend, port)| port.is_served(frontend.addr()));
    served.map(|(frontend, _)| *frontend).collect()
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

/// What answers at addresses of its own, opened and closed as the snapshot says.
pub(super) struct Answering {
    pub(super) udp: UdpPlane,
    /// `None`: switched off.
    pub(super) dns: Option<Dns>,
    pub(super) health: HealthPorts,
}

/// The control task's state.
pub(super) struct Control {
    settings: Settings,
    store: Store,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    udp: UdpPlane,
    dns: Option<Dns>,
    /// Whether a full state has been taken over.
    loaded: bool,
    served: OrdSet<Frontend>,
    /// Served UDP frontends whose socket could not be opened, and why not.
    unopened: BTreeMap<Frontend, String>,
    doors: Doors,
    /// Ports at own addresses on which others must not be shadowed.
    exposed: BTreeSet<(Protocol, u16)>,
    health: HealthPorts,
    /// A Service has asked for its clients' addresses to be kept. From then on the rules stand: connections depend on them.
    keep_source: bool,
    wanted: watch::Sender<Arc<Wanted>>,
}

impl Control {
    pub(super) async fn new(
        settings: &Settings,
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        answering: Answering,
        wanted: watch::Sender<Arc<Wanted>>,
    ) -> Self {
        let store = Store::new(local(settings, shared.proxy_port, Vec::new()).await);
        let Answering { udp, dns, health } = answering;
        Self {
            settings: settings.clone(),
            store,
            shared,
            upstreams,
            udp,
            dns,
            loaded: false,
            served: OrdSet::new(),
            unopened: BTreeMap::new(),
            doors: Doors::default(),
            exposed: BTreeSet::new(),
            health,
            keep_source: false,
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
            self.shared.control.beat();
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
                () = self.shared.poke.notified() => {
                    self.health.retry();
                    if !self.shared.listeners.is_waiting() {
                        self.begin_datagrams();
                    }
                    let (now, ranges) = (self.shared.snapshot.load_full(), self.shared.ranges.load_full());
                    self.announce(&now, ranges.as_ref().clone());
                }
                _ = refresh.tick() => {
                    let captured = self.shared.ranges.load().as_ref().clone();
                    let mut local = local(&self.settings, self.shared.proxy_port, captured).await;
                    local.listening = self.listening(&self.exposed);
                    let moved = *self.store.local() != local;
                    if moved {
                        debug!("this host's routes or addresses have changed");
                        self.store.set_local(local);
                    }
                    if moved || !self.shared.unopened.load().is_empty() {
                        self.publish();
                    }
                    self.health.retry();
                }
            }
        }
    }

    /// Takes datagrams, once the node is this agent's. What cannot be had is tried again with the next snapshot.
    fn begin_datagrams(&mut self) {
        for (frontend, error) in self.udp.begin() {
            warn!(%error, "the socket for {frontend} cannot be opened");
            if self.served.remove(&frontend).is_some() {
                self.unopened.insert(frontend, format!("{frontend} is refused: {error}"));
            }
        }
    }

    fn listening(&self, ports: &BTreeSet<(Protocol, u16)>) -> BTreeSet<Frontend> {
        let former = self.shared.former.load();
        doors::listening(ports, |at, inode| self.udp.is_open(at) || former.sockets.contains(&inode))
    }

    fn take(&mut self, update: Update) {
        self.shared.updates.add(match &update {
            Update::Replace(_) => 0,
            Update::Upsert(_) => 1,
            Update::Delete(_) => 2,
        });
        match update {
            Update::Replace(objects) => {
                self.store.replace(objects);
                self.loaded = true;
            }
            Update::Upsert(object) => self.store.upsert(*object),
            Update::Delete(key) => self.store.delete(&key),
        }
    }

    /// Brings what is served in step with the snapshot: sockets for datagrams are open before a rule sends any there,
    /// and flows to backends that are gone end.
    fn follow(&mut self, now: &Snapshot, mut changed: Diff) {
        self.follow_dns(now, &mut changed);
        for frontend in changed.unserved {
            self.served.remove(&frontend);
            self.unopened.remove(&frontend);
            self.udp.close(&frontend);
        }
        let again = std::mem::take(&mut self.unopened).into_keys();
        for frontend in changed.served.into_iter().chain(again) {
            if let Err(error) = self.open(frontend) {
                self.unopened.insert(
                    frontend,
                    format!(
                        "{frontend} is refused: its socket cannot be opened ({error}); \
                         see `ss -ulnp` for who has the port on every address"
                    ),
                );
                continue;
            }
            self.served.insert(frontend);
        }
        let lines: Vec<String> = self.unopened.values().chain(self.doors.faults()).cloned().collect();
        if **self.shared.unopened.load() != lines {
            for line in &lines {
                warn!("{line}");
            }
            self.shared.unopened.store(Arc::new(lines));
        }
        for port in changed.added.iter().chain(changed.changed.iter().map(|(_, now)| now)) {
            for addr in port.all_frontends().filter(|_| port.id.protocol == Protocol::Udp) {
                self.udp.prune(&Frontend { ip: addr.ip(), port: addr.port(), protocol: Protocol::Udp });
            }
        }
    }

    /// Gets a frontend answered: by the DNS server if it is the cluster's DNS, else by the data plane.
    fn open(&mut self, frontend: Frontend) -> io::Result<()> {
        match &mut self.dns {
            Some(dns) if self.shared.dns.load().contains(&frontend) => dns.open(frontend),
            _ if frontend.protocol == Protocol::Udp => self.udp.open(frontend),
            _ => Ok(()),
        }
    }

    /// The cluster's own DNS is answered here, whether or not it has a backend: its frontends leave the list of what
    /// comes and goes with backends, and come and go with the Service.
    fn follow_dns(&mut self, now: &Snapshot, changed: &mut Diff) {
        let Some(dns) = &mut self.dns else { return };
        let (before, after) = (self.shared.dns.load_full(), dns_frontends(now));
        changed.served.retain(|frontend| !after.contains(frontend));
        changed.unserved.retain(|frontend| !after.contains(frontend));
        if *before == after {
            return;
        }
        for gone in before.difference(&after) {
            dns.close(gone);
            changed.unserved.push(*gone);
            if now.frontends.get(gone).is_some_and(|port| port.is_served(gone.addr())) {
                changed.served.push(*gone);
            }
        }
        for new in after.difference(&before) {
            self.udp.close(new);
            changed.served.push(*new);
        }
        self.shared.dns.store(Arc::new(after));
    }

    /// Puts the store's state in force: first where connections are routed, then in the packet filter.
    fn publish(&mut self) {
        let started = Instant::now();
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
            local.listening = self.listening(&exposed);
            self.store.set_local(local);
            self.exposed = exposed;
            now = self.store.snapshot();
        }
        Ways::follow(&self.shared.ways, self.store.local());
        self.upstreams.apply(Arc::clone(&now));
        self.shared.snapshot.store(Arc::clone(&now));
        // Only now: whoever sees this may say of a name that it does not exist.
        self.shared.loaded.store(self.loaded, Ordering::Release);
        self.health.apply(&now);
        for warning in now.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
            warn!("{warning}");
        }

        self.doors.follow(&before, &now, &mut self.udp);
        self.follow(&now, diff::diff(&before, &now));
        self.keep_source = self.keep_source || now.ports.values().any(|port| port.keep_source);
        self.announce(&now, found);
        self.shared.build_times.observe(started.elapsed());
    }

    /// Tells the packet filter what to capture. Frontends whose backends all refuse are refused there, but for the
    /// cluster's DNS, which needs none.
    fn announce(&self, now: &Snapshot, ranges: Vec<IpNet>) {
        let mut served = self.served.clone();
        let names = self.shared.dns.load();
        let held = self.upstreams.held();
        for frontend in held.iter().flat_map(Held::frontends).filter(|held| !names.contains(held)) {
            served.remove(&frontend);
        }
        let listeners = self.shared.dns_listen.load();
        let mut external = self.doors.captured().clone();
        if self.settings.proxy.http.on {
            external.extend(super::gate::doors(now, &listeners));
        }
        let wanted = Wanted {
            external,
            health: health(now),
            pods: now.here.pods.clone(),
            ranges,
            skip: skipped(now),
            served,
            listeners: listeners.as_ref().clone(),
            queues: self.shared.queues,
            keep_source: self.keep_source,
            proxy_port: self.shared.proxy_port,
            former_port: self.shared.former.load().port,
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
