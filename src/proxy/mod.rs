//! The data plane: accept, find the service port, dial, relay.
//!
//! A connection's way: `accept` takes it, `conn` reads where it wanted to go, finds the service port and has [`dial`]
//! connect a backend before a byte is read from the client, [`relay`] moves the bytes until both sides have
//! ended. On HTTP ports `http` answers requests instead. Datagrams have a way of their own, [`udp`]. What does not
//! belong here: which backends exist (`model`), which of them is picked (`balance`), and how packets get here (`rules`).

mod accept;
mod conn;
pub mod dial;
mod greeting;
pub mod hold;
mod http;
mod knock;
pub mod probe;
pub mod relay;
mod sources;
pub mod udp;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use anyhow::Context as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::balance::Upstreams;
use crate::config::{ProxySettings, keys};
use crate::life::Drain;
use crate::net::sock;
use crate::obs::meter::Tally;

pub use http::Gate;
#[cfg(any(test, fuzzing))]
pub(crate) use http::{read_beginning, read_requests};
pub use knock::{Knock, Reply};

use dial::{DialLimits, TcpDialer};
use relay::PipePool;
use sources::Sources;

/// Descriptors left for everything that is not a connection: files, DNS, the admin endpoint, the source.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Most pipes at once. Beyond that, streams are copied; a busy node has far fewer bulk streams than connections.
const MAX_PIPES: u64 = 1024;

/// Says which addresses must never be dialled (captured ranges, our own listener). The model leaves those out
/// already; this is the last line of defence against a loop.
pub type Guard = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// Says whether packets from a backend, the second address, to a client, the first, pass this machine's packet filter,
/// and are brought back to the socket that stands for the client.
pub type ComesHome = Arc<dyn Fn(std::net::IpAddr, std::net::IpAddr) -> bool + Send + Sync>;

/// Reads where a client wanted to go; the second argument is the client's address.
pub type Destination = Arc<dyn Fn(&TcpStream, SocketAddr) -> std::io::Result<SocketAddr> + Send + Sync>;

/// Serves a connection in this process instead of passing it on.
pub type Handler = Box<dyn FnOnce(TcpStream, SocketAddr) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Says whether connections to an address are served in this process, and by whom.
pub type Takeover = Arc<dyn Fn(SocketAddr) -> Option<Handler> + Send + Sync>;

/// What the data plane has seen.
#[derive(Debug)]
pub struct Counters {
    /// Connections open now.
    pub active: AtomicU64,
    /// Connections accepted since start.
    pub accepted: AtomicU64,
    /// Connections reset because they had nowhere to go.
    pub refused: AtomicU64,
    /// The same by why: the acceptor dialled directly, no service port there, a limit, no backend, this machine's fault.
    pub refusals: Tally<7>,
    /// Times that accepting paused at a limit.
    pub accept_pauses: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            active: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refusals: Tally::new(&conn::REFUSALS),
            accept_pauses: AtomicU64::new(0),
        }
    }
}

/// The data plane, bound but not serving yet.
pub struct Proxy {
    listeners: Vec<TcpListener>,
    shared: Shared,
}

/// What all connections share.
struct Shared {
    port: u16,
    counters: Arc<Counters>,
    limits: DialLimits,
    max_connections: u64,
    sources: Sources,
    destination: Destination,
    guard: Guard,
    takeover: Takeover,
    gate: Gate,
    /// Where backends wait that were dialled before their client was accepted.
    hold: Option<Arc<hold::Hold>>,
    comes_home: ComesHome,
    dialer: TcpDialer,
    pipes: PipePool,
    http: http::Http,
    stopping: AtomicBool,
    /// Told when no new work is taken.
    stop: Notify,
    killed: AtomicBool,
    kill: Notify,
    /// Told when a connection has ended.
    ended: Notify,
    /// The parts that accept, in the order of [`Shard::place`].
    parts: Vec<accept::Part>,
    knock: Arc<Knock>,
}

impl Proxy {
    /// Binds the acceptor with `shards` sockets on one port, see [`Self::into_shards`]. `own_mark` is the packet mark of
    /// outbound connections; 0 sets none (tests).
    ///
    /// Fails if the port is taken or the mark may not be set.
    pub fn bind_sharded(settings: &ProxySettings, own_mark: u32, shards: usize) -> anyhow::Result<Self> {
        let listen = |port| {
            // A later data plane may have another number of parts, beside these sockets for a moment.
            sock::listen(port, true).with_context(|| {
                format!("cannot listen on TCP port {port}; choose another one with --proxy-port")
            })
        };
        let mut listeners = vec![listen(settings.port)?];
        let port = sock::local_addr(&listeners[0]).context("cannot read the acceptor's own port")?.port();
        for _ in 1..shards {
            listeners.push(listen(port)?);
        }
        Self::on(listeners, settings, own_mark)
    }

    /// Takes over sockets that [`Self::bind_sharded`] has bound for an earlier data plane of `shards` parts. `None` if
    /// they are not as `settings` say.
    ///
    /// Fails if the mark may not be set.
    pub fn adopt(
        sockets: Vec<OwnedFd>,
        settings: &ProxySettings,
        own_mark: u32,
        shards: usize,
    ) -> anyhow::Result<Option<Self>> {
        let listeners: Vec<TcpListener> = sockets.into_iter().map(TcpListener::from).collect();
        let port =
            listeners.first().and_then(|listener| sock::local_addr(listener).ok()).map(|addr| addr.port());
        if listeners.len() != shards || (settings.port != 0 && port != Some(settings.port)) {
            return Ok(None);
        }
        Self::on(listeners, settings, own_mark).map(Some)
    }

    fn on(listeners: Vec<TcpListener>, settings: &ProxySettings, own_mark: u32) -> anyhow::Result<Self> {
        if own_mark != 0 {
            sock::check_mark(own_mark).with_context(|| {
                format!(
                    "cannot set packet mark {own_mark:#x} on a socket; run as root or grant CAP_NET_ADMIN"
                )
            })?;
        }
        let port = sock::local_addr(&listeners[0]).context("cannot read the acceptor's own port")?.port();
        let descriptors = sock::nofile().context("cannot read the limit of open descriptors")?;
        let max_pipes = MAX_PIPES.min(descriptors / 16);
        let by_descriptors = descriptors
            .saturating_sub(RESERVED_DESCRIPTORS + 2 * max_pipes + udp::max_sessions(descriptors))
            / 2;
        let max_connections = match settings.max_connections {
            0 => by_descriptors.max(1),
            n => u64::try_from(n).unwrap_or(u64::MAX),
        };
        Ok(Self {
            listeners,
            shared: Shared {
                port,
                counters: Arc::default(),
                limits: DialLimits {
                    connect_timeout: settings.connect_timeout,
                    budget: settings.dial_budget,
                    stagger: settings.dial_stagger,
                },
                max_connections,
                sources: Sources::new(settings.max_per_source),
                destination: Arc::new(sock::original_dst),
                guard: Arc::new(|_| false),
                takeover: Arc::new(|_| None),
                gate: Gate::default(),
                hold: None,
                comes_home: Arc::new(|_, _| false),
                dialer: TcpDialer { mark: own_mark, speaks_first: false },
                pipes: PipePool::new(usize::try_from(max_pipes).unwrap_or(usize::MAX)),
                http: http::Http::new(&settings.http).with_context(|| {
                    format!("cannot open the access log; give another {}", keys::ACCESS_LOG)
                })?,
                stopping: AtomicBool::new(false),
                stop: Notify::new(),
                killed: AtomicBool::new(false),
                kill: Notify::new(),
                ended: Notify::new(),
                parts: Vec::new(),
                knock: Arc::default(),
            },
        })
    }

    /// Binds the acceptor with one socket, for one runtime.
    pub fn bind(settings: &ProxySettings, own_mark: u32) -> anyhow::Result<Self> {
        Self::bind_sharded(settings, own_mark, 1)
    }

    /// Reads destinations with `destination` instead of from conntrack.
    #[must_use]
    pub fn with_destination(mut self, destination: Destination) -> Self {
        self.shared.destination = destination;
        self
    }

    /// Never dials an address for which `guard` says true.
    #[must_use]
    pub fn with_guard(mut self, guard: Guard) -> Self {
        self.shared.guard = guard;
        self
    }

    /// Hands connections to addresses for which `takeover` has someone to that one.
    #[must_use]
    pub fn with_takeover(mut self, takeover: Takeover) -> Self {
        self.shared.takeover = takeover;
        self
    }

    /// Lets names choose the service at the addresses of `gate`.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.shared.gate = gate;
        self
    }

    /// Lets backends for which `comes_home` says true see their client's address, where the service asks for it.
    #[must_use]
    pub fn with_sources(mut self, comes_home: ComesHome) -> Self {
        self.shared.comes_home = comes_home;
        self
    }

    /// Dials backends for the clients that `hold` brings before they are accepted.
    #[must_use]
    pub fn with_hold(mut self, hold: Option<hold::Hold>) -> Self {
        self.shared.hold = hold.map(Arc::new);
        self
    }

    /// The acceptor's sockets, for whoever keeps them beyond this process's end.
    pub fn sockets(&self) -> &[TcpListener] {
        &self.listeners
    }

    /// The port that was bound.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// What the data plane has seen; stays valid while it serves.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Most connections at once.
    pub fn max_connections(&self) -> u64 {
        self.shared.max_connections
    }

    /// What answers the agent's own probe of the acceptor.
    pub fn knock(&self) -> Arc<Knock> {
        Arc::clone(&self.shared.knock)
    }

    /// The pipes of streams, for their numbers.
    pub fn pipes(&self) -> PipePool {
        self.shared.pipes.clone()
    }

    /// One part for each socket, each to be served on a runtime of its own. The kernel spreads new connections over
    /// them by a hash; a part that has clearly more than another hands new ones on.
    pub fn into_shards(mut self) -> Vec<Shard> {
        let (parts, inboxes): (Vec<_>, Vec<_>) = self.listeners.iter().map(|_| accept::Part::new()).unzip();
        self.shared.parts = parts;
        let shared = Arc::new(self.shared);
        let part = |(place, (listener, inbox))| Shard { listener, inbox, place, shared: Arc::clone(&shared) };
        self.listeners.into_iter().zip(inboxes).enumerate().map(part).collect()
    }

    /// Serves all sockets on the current runtime, see [`Shard::serve`].
    pub async fn serve(self, upstreams: Arc<Upstreams>, drain: Drain) -> anyhow::Result<()> {
        let shards = self.into_shards().into_iter();
        futures_util::future::try_join_all(shards.map(|s| s.serve(Arc::clone(&upstreams), drain.clone())))
            .await
            .map(drop)
    }
}

/// One of the acceptor's sockets, and the connections that come in on it.
pub struct Shard {
    listener: TcpListener,
    inbox: accept::Inbox,
    place: usize,
    shared: Arc<Shared>,
}

impl Shard {
    /// Serves until `drain` stops and the last connection has ended, or `drain` kills, which resets what is left.
    ///
    /// Runs on the current runtime, which should be the data plane's own.
    pub async fn serve(self, upstreams: Arc<Upstreams>, drain: Drain) -> anyhow::Result<()> {
        let Self { listener, inbox, place, shared } = self;
        let listener = tokio::net::TcpListener::from_std(listener)
            .context("cannot hand the acceptor's socket to the runtime")?;
        if let Some(hold) = shared.hold.clone() {
            let holding = hold::run(hold, place, Arc::clone(&shared), Arc::clone(&upstreams), drain.clone());
            drain.spawn("hold", holding);
        }
        let acceptor = accept::Acceptor::new(listener, inbox, place, Arc::clone(&shared), upstreams)?;
        drain.spawn("accept", acceptor.run(drain.clone()));
        let pool = &shared.parts[place].http;
        let _ = drain.stop().run_until_cancelled(pool.keep_swept()).await;
        shared.stopping.store(true, Release);
        shared.stop.notify_waiters();
        tokio::select! {
            () = drain.kill().cancelled() => {
                shared.killed.store(true, Release);
                shared.kill.notify_waiters();
                // A killed connection ends when it is next polled, which needs this runtime to go on.
                shared.idle().await;
            }
            () = shared.idle() => {}
        }
        // While the runtime that their sockets belong to still runs.
        pool.clear();
        Ok(())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("port", &self.port)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Waits until no connection is open.
    async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.counters.active.load(Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Waits until running connections must end at once.
    async fn until_killed(&self) {
        let kill = self.kill.notified();
        if !self.killed.load(Acquire) {
            kill.await;
        }
    }
}
