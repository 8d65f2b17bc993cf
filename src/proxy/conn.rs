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
use crate::model::{Frontend, Protocol};
use crate::net::sock;

use super::dial::{self, DialError, Request};
use super::relay::Relay;
use super::{Handler, Shared};

/// Counts a connection as open for as long as it lives.
pub(super) struct Ticket(Arc<Shared>);

impl Ticket {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.counters.accepted.fetch_add(1, Relaxed);
        shared.counters.active.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.counters.active.fetch_sub(1, Relaxed);
        self.0.ended.notify_waiters();
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
    /// No backend could be connected.
    Dial(DialError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("it dialled the acceptor itself"),
            Self::Unknown(dst) => write!(f, "no service port is offered at {dst}"),
            Self::Dial(e) => e.fmt(f),
        }
    }
}

/// Serves one accepted connection to its end.
pub(super) async fn run(client: TcpStream, peer: SocketAddr, ticket: Ticket, upstreams: Arc<Upstreams>) {
    let shared = &*ticket.0;
    let (dst, upstream) = match route(&client, peer, shared, &upstreams) {
        Ok(Way::Upstream(dst, upstream)) => (dst, upstream),
        Ok(Way::Here(handler)) => {
            tokio::select! {
                () = handler(client, peer) => {}
                () = shared.until_killed() => {}
            }
            return;
        }
        Err(why) => return refuse(&client, peer, shared, &why),
    };
    let _visit = Visit::new(&upstream.counters);

    // Boxed: a dial needs more room than a relay, and for a short time only.
    let dialled = Box::pin(connect(&client, peer, dst, shared, &upstreams, &upstream)).await;
    let (backend, _lease) = match dialled {
        Ok(dialled) => dialled,
        Err(e) => {
            upstream.counters.refused.fetch_add(1, Relaxed);
            return refuse(&client, peer, shared, &Refusal::Dial(e));
        }
    };

    let mut relay = Relay::new(client, backend, Arc::clone(&upstream.counters));
    let mut kill = pin!(shared.kill.notified());
    let mut watching = false;
    let end = poll_fn(|cx| {
        if !watching {
            // Polled once, to be woken by it; what it says is read from the flag, which costs no lock.
            watching = true;
            let _ = kill.as_mut().poll(cx);
        }
        if shared.killed.load(Acquire) {
            relay.reset();
            return Poll::Ready(None);
        }
        relay.poll(cx, &shared.pipes).map(Some)
    })
    .await;
    debug!(%peer, service = %upstream.port.id, ?end, "connection ended");
}

/// Where a connection goes.
enum Way {
    /// To a backend of the service port that the client asked for at this address.
    Upstream(SocketAddr, Arc<Upstream>),
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
    let upstream = upstreams.lookup(&frontend).ok_or(Refusal::Unknown(dst))?;
    Ok(Way::Upstream(dst, upstream))
}

async fn connect(
    client: &TcpStream,
    peer: SocketAddr,
    dst: SocketAddr,
    shared: &Shared,
    upstreams: &Upstreams,
    upstream: &Upstream,
) -> Result<(TcpStream, crate::balance::Lease), DialError> {
    let request = Request {
        upstreams,
        upstream,
        pool: upstream.pool(dst.ip()),
        client: peer.ip().to_canonical(),
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
    dial::dial(&shared.dialer, request, gone).await
}

/// Resets the client: after accept, that is all that can still be said.
fn refuse(client: &TcpStream, peer: SocketAddr, shared: &Shared, why: &Refusal) {
    if !matches!(why, Refusal::Dial(DialError::ClientGone)) {
        shared.counters.refused.fetch_add(1, Relaxed);
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
        assert!(size <= 1024, "the task of a connection takes {size} bytes");
    }
}
