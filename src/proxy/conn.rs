//! One connection's life: where to, to whom, then bytes.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::task::Poll;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tracing::debug;

use crate::balance::{PortCounters, Upstream, Upstreams};
use crate::model::{Frontend, Mode, Protocol, Via};
use crate::net::sock;

use super::dial::{self, ClientDialer, DialError, Request, TcpDialer};
use super::greeting;
use super::http::{self, Outcome};
use super::relay::Relay;
use super::{Handler, Shared};

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    /// The part of the acceptor that serves it.
    place: usize,
}

impl Ticket {
    pub(super) fn new(shared: Arc<Shared>, place: usize) -> Self {
        shared.counters.accepted.fetch_add(1, Relaxed);
        shared.counters.active.fetch_add(1, Relaxed);
        shared.parts[place].active.fetch_add(1, Relaxed);
        Self { shared, place }
    }

    /// The part of the acceptor that serves the connection.
    pub(super) fn place(&self) -> usize {
        self.place
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.parts[self.place].active.fetch_sub(1, Relaxed);
        shared.counters.active.fetch_sub(1, Relaxed);
        shared.ended.notify_waiters();
    }
}

/// Counts a connection of a service port as open for as long as it lives.
struct Visit<'a>(&'a PortCounters);

impl<'a> Visit<'a> {
    fn new(counters: &'a PortCounters) -> Self {
        counters.active.fetch_add(1, Relaxed);
        counters.total.fetch_add(1, Relaxed);
        Self(counters)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// Why a connection has nowhere to go.
enum Refusal {
    /// No packet filter sent it here.
    Direct,
    /// No service port is offered there.
    Unknown(SocketAddr),
    /// The client has as many connections as one address may have.
    Greedy,
    /// The service port has as many connections as it may have.
    Full,
    /// No backend could be connected.
    Dial(DialError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("it dialled the acceptor itself"),
            Self::Unknown(dst) => write!(f, "no service port is offered at {dst} to this client"),
            Self::Greedy => {
                f.write_str("its address has as many connections as it may (proxy.maxConnectionsPerSource)")
            }
            Self::Full => f.write_str("the service port has as many connections as it may"),
            Self::Dial(e) => e.fmt(f),
        }
    }
}

/// The words for a connection that had nowhere to go, for metrics; [`Refusal::kind`] is the place among them.
pub(super) const REFUSALS: [&str; 7] =
    ["direct", "unknown", "source-limit", "service-limit", "no-backend", "local", "shed"];
/// The place of connections that were turned away because this machine has no room.
pub(super) const SHED: usize = 6;

impl Refusal {
    fn kind(&self) -> usize {
        match self {
            Self::Direct => 0,
            Self::Unknown(_) => 1,
            Self::Greedy => 2,
            Self::Full => 3,
            Self::Dial(why) => kind_of(why),
        }
    }
}

/// The place among [`REFUSALS`] of clients for whom no backend was connected.
pub(super) fn kind_of(why: &DialError) -> usize {
    if matches!(why, DialError::Local(_)) { 5 } else { 4 }
}

/// Serves one accepted connection, which is set to reset, to its end.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` would hold its arguments twice, in each idle connection"
)]
pub(super) fn run(
    mut client: TcpStream,
    peer: SocketAddr,
    ticket: Ticket,
    upstreams: Arc<Upstreams>,
) -> impl Future<Output = ()> + Send {
    async move {
        let shared = &*ticket.shared;
        let (dst, upstream, via) = match route(&client, peer, shared, &upstreams) {
            Ok(Way::Upstream(dst, upstream, via)) => (dst, upstream, via),
            Ok(Way::Here(handler)) => {
                let Some(_entry) = shared.sources.enter(peer.ip().to_canonical()) else {
                    return refuse(&client, peer, shared, &Refusal::Greedy);
                };
                sock::end_on_close(&client);
                tokio::select! {
                    () = handler(client, peer) => {}
                    () = shared.until_killed() => {}
                }
                return;
            }
            Ok(Way::ByName(dst)) => {
                let Some(_entry) = shared.sources.enter(peer.ip().to_canonical()) else {
                    return refuse(&client, peer, shared, &Refusal::Greedy);
                };
                sock::end_on_close(&client);
                // Whoever speaks no HTTP names nobody.
                if let Some((client, _)) =
                    Box::pin(requests(client, (peer, dst), &ticket, &upstreams, None)).await
                {
                    refuse(&client, peer, shared, &Refusal::Unknown(dst));
                }
                return;
            }
            Err(why) => return refuse(&client, peer, shared, &why),
        };
        let Some(_entry) = shared.sources.enter(peer.ip().to_canonical()) else {
            return refuse(&client, peer, shared, &Refusal::Greedy);
        };
        let _visit = Visit::new(&upstream.counters);
        if upstream
            .port
            .max_connections
            .is_some_and(|most| upstream.counters.active.load(Relaxed) > most.into())
        {
            upstream.counters.refused.fetch_add(1, Relaxed);
            return refuse(&client, peer, shared, &Refusal::Full);
        }

        let mut ahead = Vec::new();
        if shared.http.serves(&upstream) {
            sock::end_on_close(&client);
            // Boxed: requests need more room than a relay.
            match Box::pin(requests(client, (peer, dst), &ticket, &upstreams, Some(&upstream))).await {
                Some(same) => {
                    (client, ahead) = same;
                    sock::reset_on_close(&client);
                }
                None => return,
            }
        }

        let waiting =
            shared.hold.as_ref().and_then(|hold| hold.take(sock::unmapped(peer), dst, ticket.place()));
        let dialled = match waiting {
            Some(waiting) => Ok(waiting),
            // Boxed: a dial needs more room than a relay, and for a short time only.
            None => Box::pin(connect(&client, peer, (dst, via), shared, &upstreams, &upstream)).await,
        };
        let (backend, _lease) = match dialled {
            Ok(dialled) => dialled,
            Err(e) => {
                upstream.counters.refused.fetch_add(1, Relaxed);
                // An HTTP client is told more than a refusal says.
                if matches!(e, DialError::Exhausted { all_refused: true, .. })
                    && upstream.port.mode != Mode::Http
                {
                    upstreams.hold(&upstream, dst.ip());
                }
                return refuse(&client, peer, shared, &Refusal::Dial(e));
            }
        };

        if upstream.port.proxy_protocol {
            let header = greeting::header(sock::unmapped(peer), dst);
            // The send buffer of a new connection holds many times that. A failure shows in the relay.
            let _ = backend.try_write(&header);
        }

        let mut relay = Relay::new(client, backend, Arc::clone(&upstream.counters)).with_ahead(&ahead, &[]);
        drop(ahead);
        relay_to_end(&mut relay, shared, peer).await;
    }
}

/// Serves a client of an HTTP port, or of a place where names choose. Gives back one that turned out to be none, and what was read of it.
async fn requests(
    client: TcpStream,
    (peer, dst): (SocketAddr, SocketAddr),
    ticket: &Ticket,
    upstreams: &Arc<Upstreams>,
    upstream: Option<&Arc<Upstream>>,
) -> Option<(TcpStream, Vec<u8>)> {
    let shared = &ticket.shared;
    let ends = (sock::unmapped(peer), dst);
    let mut kill = pin!(shared.kill.notified());
    let mut watching = false;
    let mut work = pin!(http::serve(client, ends, ticket.place, shared, upstreams, upstream));
    let outcome = poll_fn(|cx| {
        if !watching {
            // As in `relay_to_end`.
            watching = true;
            let _ = kill.as_mut().poll(cx);
        }
        if shared.killed.load(Acquire) {
            return Poll::Ready(None);
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await?;
    match outcome {
        Outcome::Done => None,
        Outcome::NotHttp(client, ahead) => Some((client, ahead)),
        Outcome::Upgraded(mut relay, _counted) => {
            relay_to_end(&mut relay, shared, peer).await;
            None
        }
    }
}

/// Moves bytes until the connection has ended, or must.
async fn relay_to_end(relay: &mut Relay, shared: &Shared, peer: SocketAddr) {
    let mut kill = pin!(shared.kill.notified());
    let mut watching = false;
    let end = poll_fn(|cx| {
        if !watching {
            // Polled once, to be woken by it; what it says is read from the flag, which costs no lock.
            watching = true;
            let _ = kill.as_mut().poll(cx);
        }
        if shared.killed.load(Acquire) {
            return Poll::Ready(None);
        }
        relay.poll(cx, &shared.pipes).map(Some)
    })
    .await;
    debug!(%peer, ?end, "connection ended");
}

/// Where a connection goes.
enum Way {
    /// To a backend of the service port that the client asked for at this address, by the way that it came.
    Upstream(SocketAddr, Arc<Upstream>, Via),
    /// To whom the requests name.
    ByName(SocketAddr),
    /// Nowhere: it is served in this process.
    Here(Handler),
}

/// Where the client wanted to go.
fn route(
    client: &TcpStream,
    peer: SocketAddr,
    shared: &Shared,
    upstreams: &Upstreams,
) -> Result<Way, Refusal> {
    let dst = (shared.destination)(client, peer).map_err(|_| Refusal::Direct)?;
    // Not redirected, the original destination is our own address. A service may use our port number, though.
    if dst.port() == shared.port && sock::local_addr(client).map_or(true, |own| own == dst) {
        return Err(Refusal::Direct);
    }
    if let Some(handler) = (shared.takeover)(dst) {
        return Ok(Way::Here(handler));
    }
    let frontend = Frontend { ip: dst.ip(), port: dst.port(), protocol: Protocol::Tcp };
    let client = peer.ip().to_canonical();
    match upstreams.route(&frontend, client) {
        Some((upstream, via)) => Ok(Way::Upstream(dst, upstream, via)),
        None if shared.http.is_on() && (shared.gate.is)(dst) => Ok(Way::ByName(dst)),
        None => Err(Refusal::Unknown(dst)),
    }
}

async fn connect(
    client: &TcpStream,
    peer: SocketAddr,
    (dst, via): (SocketAddr, Via),
    shared: &Shared,
    upstreams: &Upstreams,
    upstream: &Upstream,
) -> Result<(TcpStream, crate::balance::Lease), DialError> {
    let request = Request {
        upstreams,
        upstream,
        pool: upstream.pool_via(via, dst.ip()),
        client: peer.ip().to_canonical().into(),
        picked: None,
        avoid: &[],
        limits: shared.limits,
        guard: &*shared.guard,
    };
    // A client that only shut its write half is still there; one that is gone has reset its socket.
    let gone = async {
        tokio::select! {
            _ = client.ready(Interest::ERROR) => {}
            () = shared.until_killed() => {}
        }
    };
    // Most clients have sent their request by now.
    let speaks_first = upstream.port.proxy_protocol || sock::has_bytes(client);
    let dialer = TcpDialer { speaks_first, ..shared.dialer };
    let (client, comes_home) = (request.client.ip, &shared.comes_home);
    dial::dial(&ClientDialer { dialer, upstream, client, comes_home }, request, gone).await
}

/// Resets the client: after accept, that is all that can still be said.
fn refuse(client: &TcpStream, peer: SocketAddr, shared: &Shared, why: &Refusal) {
    if !matches!(why, Refusal::Dial(DialError::ClientGone)) {
        shared.counters.refused.fetch_add(1, Relaxed);
        shared.counters.refusals.add(why.kind());
    }
    sock::reset_on_close(client);
    debug!(%peer, %why, "connection refused");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// What an idle connection costs in this process, besides its two sockets: its task holds this and no buffer.
    #[test]
    fn a_connection_is_small() {
        let size = size_of_output(run);
        assert!(size <= 832, "the task of a connection takes {size} bytes");
    }
}
