//! The DNS server, wired: what it may not ask, where it listens, and which streams are its.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::config::{DnsMode, Settings, UpstreamFrom};
use crate::dns::servers::Live;
use crate::dns::{Current, Desk, Dns};
use crate::model::{Frontend, Protocol, Snapshot};
use crate::net::link;
use crate::proxy::{Handler, Takeover};

use super::control::Shared;
use super::kept::Kept;
use super::listeners::Purpose;

/// Makes the DNS server, unless it is switched off. An address where it cannot listen is no reason not to serve:
/// the cluster's own DNS addresses are answered all the same.
pub(super) fn start(
    settings: &Settings,
    shared: &Arc<Shared>,
    runtimes: &[Handle],
    kept: &Kept,
) -> anyhow::Result<Option<Dns>> {
    if settings.dns.mode == DnsMode::Off {
        return Ok(None);
    }
    let state = Arc::clone(shared);
    let current: Current = Arc::new(move || state.loaded.load(Acquire).then(|| state.snapshot.load_full()));
    let state = Arc::clone(shared);
    let listen = settings.dns.listen.clone();
    let own = Arc::new(move |addr: SocketAddr| leads_back(&state, &listen, addr));
    let state = Arc::clone(shared);
    let live: Live = match settings.dns.upstream_from {
        UpstreamFrom::Node => Arc::new(Vec::new),
        UpstreamFrom::KubeDns => Arc::new(move || endpoints(&state.snapshot.load(), &state.dns.load())),
    };
    // Questions are few; one thread answers them, the last, where fewer UDP services are.
    let runtime = runtimes.last().cloned().unwrap_or_else(Handle::current);
    let dns = Dns::new(&settings.dns, runtime, current, own, live, settings.intercept.own_mark)?
        .with_shelf(kept.shelf(), kept.begin());
    let _ = shared.resolver.set(dns.resolver());
    Ok(Some(dns))
}

/// Answers on the own addresses, unless the agent that has the node has them still.
pub(super) async fn listen_unless(waits: bool, settings: &Settings, shared: &Shared, desk: Option<&Desk>) {
    match desk {
        Some(desk) if !waits => listen(settings, shared, desk).await,
        // What will be, so that the first rules let it in.
        Some(_) => shared.dns_listen.store(Arc::new(settings.dns.listen.iter().copied().collect())),
        None => {}
    }
}

/// Answers on the own addresses: on the sockets that the agent before has handed on, or on new ones.
pub(super) async fn listen(settings: &Settings, shared: &Shared, desk: &Desk) {
    let mut listening = BTreeSet::new();
    let mut faults = Vec::new();
    for addr in &settings.dns.listen {
        if let Err(error) = link::bring(addr.ip()).await {
            warn!(%addr, %error, "the address cannot be added to this machine");
        }
        match answer_at(*addr, shared, desk) {
            Ok(()) => _ = listening.insert(*addr),
            Err(error) => faults.push(format!("{error:#}")),
        }
    }
    for fault in &faults {
        warn!("{fault}");
    }
    info!(listening = ?listening, domain = settings.dns.domain, "answering names");
    shared.dns_faults.store(Arc::new(faults));
    shared.dns_listen.store(Arc::new(listening));
}

fn answer_at(addr: SocketAddr, shared: &Shared, desk: &Desk) -> anyhow::Result<()> {
    let take = |purpose| shared.listeners.take(purpose, addr);
    let bound = match (take(Purpose::DnsDatagrams), take(Purpose::DnsStreams)) {
        (Some(udp), Some(tcp)) => desk.adopt(addr, udp, tcp),
        (one, other) => {
            drop((one, other));
            desk.bind(addr)?
        }
    };
    shared.listeners.keep(Purpose::DnsDatagrams, addr, &bound.udp);
    shared.listeners.keep(Purpose::DnsStreams, addr, &bound.tcp);
    Ok(desk.serve(bound)?)
}

/// Whether this agent itself answers at `addr`, or a packet to it comes back here.
fn leads_back(state: &Shared, listen: &[SocketAddr], addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let snapshot = state.snapshot.load();
    let everywhere = |own: &&SocketAddr| own.port() == addr.port() && own.ip().is_unspecified();
    let offered = |protocol| snapshot.external.contains_key(&Frontend { ip, port: addr.port(), protocol });
    ip.is_unspecified()
        || state.is_captured(ip)
        || (listen.iter().any(|own| everywhere(&own))
            && (ip.is_loopback() || snapshot.here.addresses.contains(&ip)))
        || offered(Protocol::Udp)
        || offered(Protocol::Tcp)
}

/// The endpoints of the cluster's own DNS that this node can reach.
fn endpoints(snapshot: &Snapshot, frontends: &BTreeSet<Frontend>) -> Vec<SocketAddr> {
    let udp = frontends.iter().filter(|frontend| frontend.protocol == Protocol::Udp);
    let sets = udp.filter_map(|at| snapshot.frontends.get(at).map(|port| port.backends(at.ip)));
    let all: BTreeSet<SocketAddr> = sets.flat_map(|set| &set.eligible).map(|b| b.addr.0).collect();
    all.into_iter().collect()
}

/// Takes away the addresses that were brought along.
pub(super) async fn end(settings: &Settings) {
    if settings.dns.mode == DnsMode::Off {
        return;
    }
    if let Err(error) = link::remove().await {
        warn!(%error, "the DNS server's own address could not be taken away; `edgesplice cleanup` removes it");
    }
}

/// Streams to the cluster's own DNS are answered here.
pub(super) fn takeover(shared: &Arc<Shared>) -> Takeover {
    let shared = Arc::clone(shared);
    Arc::new(move |dst| {
        let frontend = Frontend { ip: dst.ip(), port: dst.port(), protocol: Protocol::Tcp };
        if !shared.dns.load().contains(&frontend) {
            return None;
        }
        let resolver = Arc::clone(shared.resolver.get()?);
        let handler: Handler =
            Box::new(move |stream, client| Box::pin(resolver.serve_stream(stream, client)));
        Some(handler)
    })
}
