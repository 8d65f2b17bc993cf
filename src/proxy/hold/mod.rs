//! Honest connect: a client's first packet is held by the packet filter until a backend is connected, so that a service
//! whose backends do not answer refuses, and `connect` never says more than is true.
//!
//! A queue brings the packet; the backend is dialled as for an accepted connection; the packet goes on, marked so that
//! the rules see it only once; the acceptor finds the connected backend by the client's address and destination. Where
//! none answers, the packet is marked for refusal. Nothing depends on this: what is let through without a backend is
//! dialled for after accept. What does not belong here: rules (`rules`), the queue's wire format (`net::queue`).

mod syn;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::balance::{Lease, Upstream, Upstreams};
use crate::life::Drain;
use crate::model::{Frontend, Mode, Protocol, Via};
use crate::net::queue::{MESSAGE, Packet, Queue, Verdict};

use super::dial::{self, ClientDialer, DialError, Request};
use super::{Shared, conn};
use syn::Syn;
#[cfg(any(test, fuzzing))]
pub(crate) use syn::read_bytes as read_packet;
use waiting::{Arrival, Waiting};

/// Most clients at once that are held or have a backend waiting. A flood of first packets costs as many backend
/// connections for three seconds; what comes beyond is accepted first, where it costs none.
const MOST: usize = 1024;
/// Most packets that the kernel holds in one queue. More than [`MOST`], as retransmissions come on top.
const MOST_QUEUED: u32 = 4096;
/// How often backends are looked for that have waited too long.
const SWEEP: Duration = Duration::from_secs(1);
/// Packets that are read before others get their turn.
const BATCH: usize = 32;

/// What was seen.
#[derive(Debug, Default)]
pub struct HoldCounters {
    /// Clients that were held while a backend was dialled.
    pub held: AtomicU64,
    /// Clients that were refused because no backend answered.
    pub refused: AtomicU64,
    /// Backends that were connected for a client that did not come.
    pub unpaired: AtomicU64,
    /// Clients that were let through undialled for want of room.
    pub passed: AtomicU64,
}

/// The queues of held packets and what waits for them.
#[derive(Debug)]
pub struct Hold {
    queues: Box<[Arc<Queue>]>,
    waiting: Waiting<Held, Ready>,
    marks: Marks,
    counters: Arc<HoldCounters>,
}

/// The marks that the rules know.
#[derive(Clone, Copy, Debug)]
struct Marks {
    own: u32,
    refuse: u32,
}

/// A backend that is connected, and the part of the acceptor on whose runtime it is.
#[derive(Debug)]
struct Ready {
    stream: TcpStream,
    lease: Lease,
    place: usize,
}

/// A held packet. Its verdict is given when it is dropped; unless said otherwise, it is let through.
#[derive(Debug)]
struct Held {
    queue: Arc<Queue>,
    id: u32,
    mark: u32,
    marks: Marks,
    verdict: Verdict,
}

impl Hold {
    /// Takes `count` queues from number `first` on, one for each part of the acceptor. With `own_mark` and `refuse_mark`
    /// together a packet passes the rules that held it; with `refuse_mark` alone it is refused.
    ///
    /// Fails where the kernel has no queues, or another process has one of these.
    pub fn open(first: u16, count: u16, own_mark: u32, refuse_mark: u32) -> io::Result<Self> {
        let numbers = (0..count).map(|n| first.saturating_add(n));
        let queues: io::Result<Vec<_>> =
            numbers.map(|number| Queue::bind(number, MOST_QUEUED).map(Arc::new)).collect();
        Ok(Self {
            queues: queues?.into(),
            waiting: Waiting::new(MOST),
            marks: Marks { own: own_mark, refuse: refuse_mark },
            counters: Arc::default(),
        })
    }

    /// What was seen; stays valid while this serves.
    pub fn counters(&self) -> Arc<HoldCounters> {
        Arc::clone(&self.counters)
    }

    /// The backend that waits for `client`, which was accepted by the part at `place` and wanted to go `to`.
    pub(super) fn take(
        &self,
        client: SocketAddr,
        to: SocketAddr,
        place: usize,
    ) -> Option<(TcpStream, Lease)> {
        let ready = self.waiting.take(client, to)?;
        let stream = if ready.place == place {
            ready.stream
        } else {
            // From the one runtime to the other.
            let moved = ready.stream.into_std().and_then(TcpStream::from_std);
            moved.inspect_err(|error| debug!(%error, %client, "a waiting backend was lost")).ok()?
        };
        Some((stream, ready.lease))
    }
}

/// Takes held packets from the queue of the part at `place` until `drain` stops.
pub(super) async fn run(
    hold: Arc<Hold>,
    place: usize,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    drain: Drain,
) {
    let Some(queue) = hold.queues.get(place).map(Arc::clone) else { return };
    let holder = Holder { hold, queue: Arc::clone(&queue), place, shared, upstreams };
    let work = async {
        if let Err(error) = holder.serve(&drain).await {
            warn!(%error, "new connections are held no more; backends are dialled after accept");
        }
    };
    drain.stop().run_until_cancelled(work).await;
    // From here on the listener speaks for itself.
    if let Err(error) = queue.close() {
        debug!(%error, "a queue could not be given back");
    }
}

/// One part's queue.
struct Holder {
    hold: Arc<Hold>,
    queue: Arc<Queue>,
    place: usize,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
}

impl Holder {
    async fn serve(&self, drain: &Drain) -> io::Result<()> {
        let messages = self.queue.messages()?;
        let mut buffer = vec![0; MESSAGE];
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ready = messages.readable() => {
                    ready?;
                    for _ in 0..BATCH {
                        match messages.try_recv(&mut buffer) {
                            Ok(length) => self.arrived(Packet::read(&buffer[..length]), drain),
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            // The kernel had no room to tell of a packet, and let it through.
                            Err(error) if is_overrun(&error) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                // One part looks after all.
                _ = sweep.tick(), if self.place == 0 => {
                    let late = self.hold.waiting.overdue(Instant::now());
                    self.hold.counters.unpaired.fetch_add(late.len() as u64, Relaxed);
                }
            }
        }
    }

    fn held(&self, id: u32, mark: u32) -> Held {
        let marks = self.hold.marks;
        let verdict = Verdict::Again(mark | marks.own | marks.refuse);
        Held { queue: Arc::clone(&self.queue), id, mark, marks, verdict }
    }

    /// Has a backend dialled for the client, unless that is somebody else's business.
    fn arrived(&self, packet: Option<Packet<'_>>, drain: &Drain) {
        let Some(Packet { id, mark, bytes }) = packet else { return };
        // Dropped on the way, it is let through.
        let held = self.held(id, mark);
        let Some(syn) = Syn::parse(bytes) else { return };
        let Some((upstream, via)) = self.route(&syn) else { return };
        match self.hold.waiting.arrive(&syn, held) {
            Arrival::First => {}
            Arrival::Double(packet) => return packet.forget(),
            Arrival::Late(packet) => return drop(packet),
            Arrival::Full(packet) => {
                self.hold.counters.passed.fetch_add(1, Relaxed);
                return drop(packet);
            }
        }
        self.hold.counters.held.fetch_add(1, Relaxed);
        let dial = Dial {
            syn,
            place: self.place,
            hold: Arc::clone(&self.hold),
            shared: Arc::clone(&self.shared),
            upstreams: Arc::clone(&self.upstreams),
            ended: false,
        };
        drop(drain.tasks().spawn(dial.run(upstream, via)));
    }

    /// The service port, if a backend is to be dialled for the client now. HTTP clients are told more than a refusal says,
    /// and limits are the acceptor's business.
    fn route(&self, syn: &Syn) -> Option<(Arc<Upstream>, Via)> {
        let (shared, to) = (&self.shared, syn.to);
        // The agent's own probe is answered by the acceptor; no backend is to hear of it.
        if (shared.takeover)(to).is_some() || shared.knock.is(syn.client) {
            return None;
        }
        let frontend = Frontend { ip: to.ip(), port: to.port(), protocol: Protocol::Tcp };
        let (upstream, via) = self.upstreams.route(&frontend, syn.client.ip())?;
        let active = shared.counters.active.load(Relaxed);
        let open = upstream.counters.active.load(Relaxed);
        let room = active + (self.hold.waiting.len() as u64) < shared.max_connections
            && upstream.port.max_connections.is_none_or(|most| open < most.into());
        (room && !shared.http.serves(&upstream)).then_some((upstream, via))
    }
}

/// A dial for a client that is held. Dropped before its end, the client is let through.
struct Dial {
    syn: Syn,
    place: usize,
    hold: Arc<Hold>,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    ended: bool,
}

impl Dial {
    async fn run(mut self, upstream: Arc<Upstream>, via: Via) {
        let Self { syn, shared, upstreams, .. } = &self;
        let request = Request {
            upstreams,
            upstream: &upstream,
            pool: upstream.pool_via(via, syn.to.ip()),
            client: syn.client.ip().into(),
            picked: None,
            avoid: &[],
            limits: shared.limits,
            guard: &*shared.guard,
        };
        let dialer = ClientDialer {
            // Nothing is said before the client is accepted.
            dialer: shared.dialer,
            upstream: &upstream,
            client: syn.client.ip(),
            comes_home: &shared.comes_home,
        };
        let dialled = dial::dial(&dialer, request, shared.until_killed()).await;
        self.ended = true;
        let Self { syn, shared, upstreams, hold, .. } = &self;
        match dialled {
            Ok((stream, lease)) => {
                let ready = Ready { stream, lease, place: self.place };
                // Both are dropped: the packet goes on; a backend that nobody waits for is closed.
                drop(hold.waiting.connected(syn, ready, Instant::now()));
            }
            Err(DialError::ClientGone) => drop(hold.waiting.failed(syn)),
            Err(why) => {
                debug!(peer = %syn.client, %why, "connection refused before it was accepted");
                for counter in [&hold.counters.refused, &shared.counters.refused, &upstream.counters.refused]
                {
                    counter.fetch_add(1, Relaxed);
                }
                shared.counters.refusals.add(conn::kind_of(&why));
                if matches!(why, DialError::Exhausted { all_refused: true, .. })
                    && upstream.port.mode != Mode::Http
                {
                    upstreams.hold(&upstream, syn.to.ip());
                }
                if let Some(packet) = hold.waiting.failed(syn) {
                    packet.refuse();
                }
            }
        }
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.hold.waiting.failed(&self.syn));
        }
    }
}

impl Held {
    /// Has it refused.
    fn refuse(mut self) {
        self.verdict = Verdict::Again(self.mark | self.marks.refuse);
    }

    /// Lets it vanish: another one stands for it.
    fn forget(mut self) {
        self.verdict = Verdict::Drop;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.queue.decide(self.id, self.verdict) {
            debug!(%error, "a held packet is gone");
        }
    }
}

fn is_overrun(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS)
}
