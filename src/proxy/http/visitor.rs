//! A client's connection as its requests see it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::HeaderValue;
use tokio::net::TcpStream;

use crate::balance::{PortCounters, Upstream, Upstreams};
use crate::model::{Frontend, Protocol, Via};

use super::super::Shared;
use super::pool::Pool;
use super::record::Record;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Visitor {
    /// What all connections share.
    pub(super) shared: Arc<Shared>,
    /// All service ports.
    pub(super) upstreams: Arc<Upstreams>,
    /// The part of the acceptor that serves it.
    pub(super) place: usize,
    /// The client.
    pub(super) peer: SocketAddr,
    /// The client's address, as `X-Forwarded-For` has it.
    pub(super) forwarded_for: HeaderValue,
    /// Where it wanted to go.
    pub(super) dst: SocketAddr,
    /// The numbers of the service port that it came for.
    pub(super) counters: Arc<PortCounters>,
    /// Requests under way, bodies included.
    pub(super) busy: AtomicUsize,
}

/// A backend to which the connection was handed over.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) backend: TcpStream,
    /// Bytes that came behind its answer.
    pub(super) ahead: Vec<u8>,
    /// Keeps it counted.
    pub(super) record: Record,
}

/// An address as a header's value, made once for all requests of a connection.
fn value_of(ip: IpAddr) -> HeaderValue {
    // An address's text has no character that a header may not have.
    HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

impl Visitor {
    pub(super) fn new(
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        place: usize,
        (peer, dst): (SocketAddr, SocketAddr),
        counters: Arc<PortCounters>,
    ) -> Self {
        Self {
            shared,
            upstreams,
            place,
            peer,
            forwarded_for: value_of(peer.ip()),
            dst,
            counters,
            busy: AtomicUsize::new(0),
        }
    }

    /// The service port it came for, as it is now. `None`: there is no such any more.
    pub(super) fn route(&self) -> Option<(Arc<Upstream>, Via)> {
        let frontend = Frontend { ip: self.dst.ip(), port: self.dst.port(), protocol: Protocol::Tcp };
        self.upstreams.route(&frontend, self.peer.ip())
    }

    /// The waiting connections of the thread that serves it.
    pub(super) fn pool(&self) -> &Pool {
        &self.shared.parts[self.place].http
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.busy.load(Relaxed) == 0
    }
}
