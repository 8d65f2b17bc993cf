//! Connecting a backend: the next one at once when a dial fails, beside it when a dial hangs, each at most once.
//!
//! Nothing has been read from the client by then, so every retry is safe.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::balance::{Caller, DialEnd, Lease, Pool, Upstream, Upstreams};
use crate::net::sock;

/// How a backend is connected; tests put something else in its place.
pub trait Dialer: Send + Sync {
    /// What a successful dial gives.
    type Stream: Send;
    /// Connects to `addr`. Dropping the future gives up.
    fn dial(&self, addr: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Dials over TCP with the options of [`sock::connect`].
#[derive(Clone, Copy, Debug)]
pub struct TcpDialer {
    /// Packet mark; 0 for none.
    pub mark: u32,
    /// There are bytes to send as soon as a backend is connected, see [`sock::connect`].
    pub speaks_first: bool,
}

/// Dials backends of one service port for one client, whose address those on this node see if the service asks for it.
pub(super) struct ClientDialer<'a> {
    /// What is dialled with.
    pub(super) dialer: TcpDialer,
    /// The service port.
    pub(super) upstream: &'a Upstream,
    /// The client.
    pub(super) client: IpAddr,
    /// Says whether what the second address sends to the first comes by this machine.
    pub(super) comes_home: &'a super::ComesHome,
}

impl Dialer for ClientDialer<'_> {
    type Stream = TcpStream;

    fn dial(&self, addr: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send {
        let keep = self.upstream.keeps_source(addr) && (self.comes_home)(self.client, addr.ip());
        let source = Some(self.client).filter(|_| keep);
        sock::connect_from(source, addr, self.dialer.mark, self.dialer.speaks_first)
    }
}

impl Dialer for TcpDialer {
    type Stream = TcpStream;

    fn dial(&self, addr: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send {
        sock::connect(addr, self.mark, self.speaks_first)
    }
}

/// How long dials may take.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits {
    /// One dial, unless the service port sets its own.
    pub connect_timeout: Duration,
    /// All dials of one connection together.
    pub budget: Duration,
    /// When the next dial starts beside one that hangs.
    pub stagger: Duration,
}

/// Why no backend was connected.
#[derive(Debug, Error)]
pub enum DialError {
    /// The service port has none any more.
    #[error("the service port has no eligible backend")]
    NoBackend,
    /// All were tried, or as many as the time allowed.
    #[error("none of {tried} backends could be connected, the last said: {last}")]
    Exhausted {
        /// How many were tried.
        tried: usize,
        /// What the last dial to end said.
        last: io::Error,
        /// Every backend of the service port was tried, and each refused the connection.
        all_refused: bool,
    },
    /// This machine lacks descriptors or memory; no backend is to blame.
    #[error("cannot open a connection on this machine: {0}")]
    Local(io::Error),
    /// The client has gone.
    #[error("the client has gone")]
    ClientGone,
}

/// Who wants to be connected to what.
pub struct Request<'a> {
    /// All service ports, for their clock.
    pub upstreams: &'a Upstreams,
    /// The service port.
    pub upstream: &'a Upstream,
    /// Its backends of the frontend's family.
    pub pool: &'a Pool,
    /// The client, for policies and affinity that look at it.
    pub client: Caller,
    /// The backend that was picked for it already, if one was.
    pub picked: Option<usize>,
    /// Backends that it is not to be connected to.
    pub avoid: &'a [usize],
    /// How long dials may take.
    pub limits: DialLimits,
    /// Says which addresses must not be dialled.
    pub guard: &'a (dyn Fn(SocketAddr) -> bool + Send + Sync),
}

/// So many times its timeout a dial may take once nobody else is left to be dialled, where the service port sets no timeout
/// of its own. A first packet that was lost is sent again by the kernel after 1 s, and after 2 s or 3 s, and its answer
/// needs time: a single backend behind a bad link must not cost a client its connection for that.
const PATIENCE: f64 = 3.5;

/// One dial under way.
struct Attempt<F> {
    dial: Pin<Box<F>>,
    lease: Lease,
    started: Instant,
    deadline: Instant,
    /// It has taken longer than its timeout, which was counted against its backend.
    late: bool,
}

enum Event<S> {
    Done(usize, io::Result<S>),
    Timer,
    ClientGone,
}

/// Connects `request` to a backend. `client_gone` is watched as soon as the first dial does not succeed at once.
pub async fn dial<D: Dialer>(
    dialer: &D,
    request: Request<'_>,
    client_gone: impl Future<Output = ()>,
) -> Result<(D::Stream, Lease), DialError> {
    let mut request = request;
    let Request { upstreams, upstream, limits, .. } = request;
    let tallies = upstreams.tallies();
    let timeout = upstream.port.connect_timeout.unwrap_or(limits.connect_timeout);
    let begun = Instant::now();
    let end = begun + limits.budget;
    let mut next_start = begun;
    let mut tried = request.avoid.to_vec();
    let mut attempts = Vec::with_capacity(1);
    let mut last = DialError::NoBackend;
    let (mut exhausted, mut slow) = (false, false);
    let mut refusals = 0;
    let mut client_gone = pin!(client_gone);
    let mut timer = pin!(sleep_until(end));

    loop {
        let now = Instant::now();
        while !exhausted && now < end && (attempts.is_empty() || now >= next_start) {
            match request.next(&mut tried) {
                Some(lease) => {
                    if tried.len() > 1 {
                        tallies.retried();
                    }
                    next_start = now + limits.stagger;
                    let dial = Box::pin(dialer.dial(lease.endpoint().addr));
                    attempts.push(Attempt {
                        dial,
                        lease,
                        started: now,
                        deadline: end.min(now + timeout),
                        late: false,
                    });
                }
                None => exhausted = true,
            }
        }
        let Some(due) = attempts.iter().map(|a| a.deadline).min() else { return Err(last) };
        timer.as_mut().reset(if exhausted { due } else { due.min(next_start) });

        let event = poll_fn(|cx| {
            for (i, attempt) in attempts.iter_mut().enumerate() {
                if let Poll::Ready(result) = attempt.dial.as_mut().poll(cx) {
                    return Poll::Ready(Event::Done(i, result));
                }
            }
            if slow && client_gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::ClientGone);
            }
            timer.as_mut().poll(cx).map(|()| Event::Timer)
        })
        .await;
        slow = true;

        match event {
            Event::Done(i, Ok(stream)) => {
                let winner = attempts.swap_remove(i);
                let took = winner.started.elapsed();
                winner.lease.endpoint().succeeded(upstreams.now(), took);
                tallies.connected(took);
                // Whoever had more than the stagger and still lost to a later start does not answer.
                for loser in attempts.iter().filter(|a| !a.late && a.started < winner.started) {
                    upstreams.note_failure(loser.lease.endpoint(), &upstream.ejection);
                    tallies.ended(DialEnd::Outrun);
                }
                return Ok((stream, winner.lease));
            }
            Event::Done(i, Err(e)) => {
                let loser = attempts.swap_remove(i);
                if !loser.late {
                    tallies.ended(end_of(&e));
                }
                if sock::is_shortage(&e) {
                    return Err(DialError::Local(e));
                }
                if !loser.late && !sock::is_local_fault(&e) {
                    upstreams.note_failure(loser.lease.endpoint(), &upstream.ejection);
                }
                if sock::is_out_of_ports(&e) {
                    note_lack_of_ports(&loser.lease, upstream);
                }
                refusals += usize::from(e.kind() == io::ErrorKind::ConnectionRefused);
                let all_refused = refusals == request.pool.endpoints().len();
                last = DialError::Exhausted { tried: tried.len(), last: e, all_refused };
                // The next one starts at once.
                next_start = begun;
            }
            Event::Timer => {
                let now = Instant::now();
                let patience = upstream.port.connect_timeout.is_none().then_some(timeout.mul_f64(PATIENCE));
                attempts.retain_mut(|a| {
                    if now < a.deadline || std::mem::replace(&mut a.late, true) {
                        return now < a.deadline;
                    }
                    upstreams.note_failure(a.lease.endpoint(), &upstream.ejection);
                    tallies.ended(DialEnd::Timeout);
                    last = timed_out(tried.len());
                    a.deadline = patience.map_or(now, |time| end.min(a.started + time));
                    exhausted && now < a.deadline
                });
            }
            Event::ClientGone => return Err(DialError::ClientGone),
        }
    }
}

fn timed_out(tried: usize) -> DialError {
    DialError::Exhausted { tried, last: io::ErrorKind::TimedOut.into(), all_refused: false }
}

/// What a failed dial counts as.
fn end_of(e: &io::Error) -> DialEnd {
    match e.kind() {
        _ if sock::is_out_of_ports(e) => DialEnd::NoPorts,
        _ if sock::is_local_fault(e) => DialEnd::Local,
        io::ErrorKind::TimedOut => DialEnd::Timeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => DialEnd::Unreachable,
        _ => DialEnd::Refused,
    }
}

/// Counts it, and says so once in a while.
fn note_lack_of_ports(lease: &Lease, upstream: &Upstream) {
    const EVERY: u64 = 1_000;
    let count = upstream.counters.out_of_ports.fetch_add(1, Relaxed);
    if count.is_multiple_of(EVERY) {
        tracing::warn!(
            service = %upstream.port.id,
            backend = %lease.endpoint().addr,
            dials = count + 1,
            "no free port for another connection to this backend; raise net.ipv4.ip_local_port_range, or add backends"
        );
    }
}

impl Request<'_> {
    /// The next backend that was not tried, counted in. Those that must not be dialled count as tried.
    fn next(&mut self, tried: &mut Vec<usize>) -> Option<Lease> {
        loop {
            let picked = self.picked.take();
            let index = match picked {
                Some(index) => index,
                None => self.upstream.pick(self.pool, self.client, tried, self.upstreams.now())?,
            };
            tried.push(index);
            let endpoint = &self.pool.endpoints()[index];
            if !(self.guard)(endpoint.addr) {
                return Some(endpoint.lease());
            }
            tracing::debug!(backend = %endpoint.addr, "not dialled: it would lead back here");
        }
    }
}

#[cfg(test)]
mod tests;
