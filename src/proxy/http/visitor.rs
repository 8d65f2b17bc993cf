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
use super::reply::Trouble;

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
    /// The numbers of the service port that it came for, or of nobody.
    pub(super) counters: Arc<PortCounters>,
    /// It came to where each request's `Host` chooses the service.
    pub(super) by_name: bool,
    /// Requests under way, bodies included.
    pub(super) busy: AtomicUsize,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Route {
    /// The service port.
    pub(super) upstream: Arc<Upstream>,
    /// How its client comes to it.
    pub(super) via: Via,
    /// The address that it is asked for at.
    pub(super) ip: IpAddr,
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
        upstream: Option<&Upstream>,
    ) -> Self {
        let counters = upstream.map_or(&shared.http.by_name, |upstream| &upstream.counters);
        let counters = Arc::clone(counters);
        Self {
            shared,
            upstreams,
            place,
            peer,
            forwarded_for: value_of(peer.ip()),
            dst,
            counters,
            by_name: upstream.is_none(),
            busy: AtomicUsize::new(0),
        }
    }

    /// The service port that a request of it is for, as it is now; `host` is what the request says.
    pub(super) fn route(&self, host: &[u8]) -> Result<Route, Trouble> {
        let (port, protocol) = (self.dst.port(), Protocol::Tcp);
        let find = |ip| self.upstreams.route(&Frontend { ip, port, protocol }, self.peer.ip());
        if !self.by_name {
            let ip = self.dst.ip();
            let (upstream, via) = find(ip).ok_or(Trouble::NoBackend)?;
            return Ok(Route { upstream, via, ip });
        }
        let ip = self.shared.gate.service(host, port).ok_or(Trouble::Misdirected)?;
        let found = find(ip).filter(|(upstream, _)| self.shared.http.serves(upstream));
        let (upstream, via) = found.ok_or(Trouble::Misdirected)?;
        Ok(Route { upstream, via, ip })
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
