//! Datagrams: one transparent socket for each served `IP:port`, one connected socket for each client of it.
//!
//! Packets arrive untranslated (see `rules`), so that answers sent from the same socket come from the address the
//! client asked. A flow keeps its backend for as long as connection tracking would keep it, and loses it at once when
//! that backend goes. What does not belong here: which backend is picked (`balance`), DNS.

mod places;
mod port;
mod session;
mod table;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::runtime::Handle;

use crate::balance::Upstreams;
use crate::model::Frontend;
use crate::net::shelf::{Shelf, Use};
use crate::net::sock;

use super::Guard;
use places::Places;
use port::Port;

/// Most flows at once, where descriptors allow: as many as a node of 200 busy pods has.
const MAX_SESSIONS: u64 = 65_536;

/// What the datagram side has seen.
#[derive(Debug, Default)]
pub struct UdpCounters {
    /// Flows now.
    pub sessions: AtomicU64,
    /// Datagrams that could be passed on to nobody.
    pub dropped: AtomicU64,
    /// Flows that ended because their backend was reported unreachable.
    pub unreachable: AtomicU64,
}

/// How many flows this process may have at once: an eighth of its descriptors.
pub fn max_sessions(descriptors: u64) -> u64 {
    MAX_SESSIONS.min(descriptors / 8).max(1)
}

/// What all ports share.
struct Shared {
    upstreams: Arc<Upstreams>,
    guard: Guard,
    own_mark: u32,
    max_sessions: u64,
    places: Places<Port>,
    counters: Arc<UdpCounters>,
}

/// All UDP frontends that are served. One owner opens and closes them as the snapshot changes.
pub struct UdpPlane {
    shared: Arc<Shared>,
    /// Each frontend lives on one of these.
    runtimes: Vec<Handle>,
    /// Where sockets are opened.
    shelf: Arc<Shelf>,
    /// How many frontends have been opened so far.
    opened: usize,
    ports: HashMap<Frontend, Arc<Port>>,
    /// Those that are to be opened once the node is this agent's: of two sockets at one address, the later one gets what
    /// comes. `None`: it is.
    waiting: Option<HashSet<Frontend>>,
}

impl UdpPlane {
    /// Nothing is served yet; the frontends will be spread over `runtimes`. `own_mark` is the packet mark of the datagrams sent,
    /// `guard` says which addresses must never be sent to.
    pub fn new(
        runtimes: Vec<Handle>,
        upstreams: Arc<Upstreams>,
        guard: Guard,
        own_mark: u32,
    ) -> io::Result<Self> {
        let counters = Arc::default();
        let max_sessions = max_sessions(sock::nofile()?);
        let places = Places::new();
        let shared = Shared { upstreams, guard, own_mark, max_sessions, places, counters };
        Ok(Self {
            shared: Arc::new(shared),
            runtimes,
            shelf: Arc::default(),
            opened: 0,
            ports: HashMap::new(),
            waiting: None,
        })
    }

    /// Opens sockets on `sockets`, so that they may outlive this process.
    #[must_use]
    pub fn with_shelf(mut self, sockets: Arc<Shelf>) -> Self {
        self.shelf = sockets;
        self
    }

    /// Opens nothing before [`Self::begin`].
    #[must_use]
    pub fn waiting(mut self, waits: bool) -> Self {
        self.waiting = waits.then(HashSet::new);
        self
    }

    /// Opens what has waited, and from now on everything at once. Returns what could not be opened.
    pub fn begin(&mut self) -> Vec<(Frontend, io::Error)> {
        let waiting = self.waiting.take().into_iter().flatten();
        waiting.filter_map(|frontend| Some((frontend, self.open(frontend).err()?))).collect()
    }

    /// What has been seen; stays valid while this serves.
    pub fn counters(&self) -> Arc<UdpCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// Opens `frontend`, so that datagrams to it are answered from now on. One that is open stays as it is.
    pub fn open(&mut self, frontend: Frontend) -> io::Result<()> {
        if self.ports.contains_key(&frontend) {
            return Ok(());
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.insert(frontend);
            return Ok(());
        }
        let socket = self.shelf.udp_transparent(frontend.addr(), self.shared.own_mark)?;
        let runtime = self
            .runtimes
            .get(self.opened % self.runtimes.len().max(1))
            .ok_or_else(|| io::Error::other("there is no runtime to serve it on"))?;
        self.opened = self.opened.wrapping_add(1);
        let port = {
            let _context = runtime.enter();
            Arc::new(Port::new(frontend, socket)?)
        };
        self.shared.places.join(&port);
        runtime.spawn(Arc::clone(&port).run(Arc::clone(&self.shared)));
        self.ports.insert(frontend, port);
        Ok(())
    }

    /// Whether `frontend` is open, or was by an earlier process.
    pub fn is_open(&self, frontend: &Frontend) -> bool {
        self.ports.contains_key(frontend) || self.shelf.holds(Use::Datagrams, frontend.addr())
    }

    /// Closes `frontend` and ends its flows.
    pub fn close(&mut self, frontend: &Frontend) {
        if let Some(waiting) = &mut self.waiting {
            waiting.remove(frontend);
        }
        if let Some(port) = self.ports.remove(frontend) {
            port.close();
            self.shelf.close(Use::Datagrams, frontend.addr());
        }
    }

    /// Ends the flows of `frontend` whose backend is its backend no more. To be called once the change is in force,
    /// so that the next datagram of such a flow finds one of the new ones.
    pub fn prune(&self, frontend: &Frontend) {
        if let Some(port) = self.ports.get(frontend) {
            port.prune(&self.shared);
        }
    }
}

impl Shared {
    /// Takes a place among the flows. `false`: all are taken.
    fn admit(&self) -> bool {
        let taken = self.counters.sessions.fetch_add(1, Relaxed);
        if taken >= self.max_sessions {
            self.counters.sessions.fetch_sub(1, Relaxed);
        }
        taken < self.max_sessions
    }

    fn dropped(&self, client: SocketAddr, why: &str) {
        self.counters.dropped.fetch_add(1, Relaxed);
        tracing::debug!(%client, why, "datagram dropped");
    }
}

/// Room for the largest datagram there is: 65,535 bytes with its headers.
const LARGEST: usize = 65_536;

/// Runs `work` with this thread's buffer, which is big enough for any datagram.
fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; LARGEST].into());
    }
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}
