//! HTTP ports: each request is balanced by itself.
//!
//! A connection's first bytes are read and tell what it speaks (`sniff`). What is not HTTP goes back to `conn`, to be
//! relayed. HTTP/1 is read strictly (`strict`) and passed on by `http1`; HTTP/2 is hyper's (`http2`). Either way a request
//! takes the same steps: a `choice` of backends, a connection from the `pool` or a new dial, again where that is safe, and
//! a `record` of what came of it. A client that speaks HTTP/2 is answered by a backend over HTTP/2, one that speaks HTTP/1
//! over HTTP/1: what a backend can do is between it and its clients.
//!
//! What does not belong here: which backend is picked (`balance`), how one is dialled ([`super::dial`]), bytes of
//! connections that are no HTTP any more ([`super::relay`]).

mod choice;
mod gate;
mod http1;
mod http2;
mod pool;
mod record;
mod reply;
mod sniff;
mod stick;
mod strict;
mod visitor;
mod vital;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::balance::{PortCounters, Upstream, Upstreams};
use crate::config::HttpSettings;
use crate::net::sock;
use crate::obs::access::AccessLog;

use super::Shared;
use super::relay::Relay;
pub use gate::Gate;
pub(super) use pool::Pool;
use sniff::Speaks;
use visitor::Visitor;

#[cfg(any(test, fuzzing))]
pub(crate) use sniff::read_bytes as read_beginning;
#[cfg(any(test, fuzzing))]
pub(crate) use strict::read_bytes as read_requests;

/// How long a client may be silent until it is taken for one that waits for its server to speak first.
const PATIENCE: Duration = Duration::from_millis(300);
/// Bytes read to tell what a client speaks.
const SNIFF: usize = 2048;

/// How HTTP ports are served.
#[derive(Debug)]
pub(super) struct Http {
    /// Whether they are at all, or relayed like others.
    on: bool,
    head_timeout: Duration,
    idle_timeout: Duration,
    request_timeout: Duration,
    log: Option<AccessLog>,
    /// What connections to where names choose have seen; requests count with their services.
    by_name: Arc<PortCounters>,
}

impl Http {
    /// Fails if the access log cannot be opened.
    pub(super) fn new(settings: &HttpSettings) -> io::Result<Self> {
        let log = settings.access_log.as_deref().map(|path| AccessLog::open(path, settings.access_log_share));
        Ok(Self {
            on: settings.on,
            head_timeout: settings.head_timeout,
            idle_timeout: settings.idle_timeout,
            request_timeout: settings.request_timeout,
            log: log.transpose()?,
            by_name: Arc::default(),
        })
    }

    /// Whether any are.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether connections to `upstream` are looked into. A backend that is told each client's address by a header
    /// before the first byte needs a connection for each client.
    pub(super) fn serves(&self, upstream: &Upstream) -> bool {
        self.on && upstream.port.mode == crate::model::Mode::Http && !upstream.port.proxy_protocol
    }
}

/// What became of a connection.
pub(super) enum Outcome {
    /// It has ended.
    Done,
    /// It is no HTTP, and these bytes of it were read.
    NotHttp(TcpStream, Vec<u8>),
    /// It was handed over to a backend, and is relayed from here on. The guard keeps the backend counted.
    Upgraded(Relay, Box<dyn Send>),
}

/// Serves a client of an HTTP port. Without an `upstream` each request's `Host` chooses one.
pub(super) async fn serve(
    client: TcpStream,
    (peer, dst): (SocketAddr, SocketAddr),
    place: usize,
    shared: &Arc<Shared>,
    upstreams: &Arc<Upstreams>,
    upstream: Option<&Arc<Upstream>>,
) -> Outcome {
    let Ok((speaks, ahead)) = listen(&client).await else { return Outcome::Done };
    let http1 = match speaks {
        Speaks::Http1 => true,
        Speaks::Http2 => false,
        Speaks::Other | Speaks::Unknown => {
            // Who only connects and goes, as health checks do, speaks nothing.
            if (speaks == Speaks::Other || !ahead.is_empty())
                && let Some(upstream) = upstream
                && upstream.counters.http().spoke_otherwise()
            {
                tracing::warn!(
                    service = %upstream.port.id, %peer,
                    "a client of this HTTP port speaks something else, or waits for the server to begin; such \
                     connections are relayed as TCP. If none is HTTP, name the port tcp-... instead"
                );
            }
            return Outcome::NotHttp(client, ahead);
        }
    };
    let visitor = Visitor::new(
        Arc::clone(shared),
        Arc::clone(upstreams),
        place,
        (peer, dst),
        upstream.map(|upstream| &**upstream),
    );
    let visitor = Arc::new(visitor);
    if !http1 {
        Box::pin(http2::serve(client, ahead, &visitor)).await;
        return Outcome::Done;
    }
    match http1::serve(client, ahead, &visitor).await {
        None => Outcome::Done,
        Some((client, ahead, upgrade)) => {
            sock::reset_on_close(&client);
            let relay = Relay::new(client, upgrade.backend, Arc::clone(&visitor.counters))
                .with_ahead(&ahead, &upgrade.ahead);
            Outcome::Upgraded(relay, Box::new(upgrade.record))
        }
    }
}

/// Reads until it is clear what the client speaks, or it has been silent for long enough.
async fn listen(client: &TcpStream) -> io::Result<(Speaks, Vec<u8>)> {
    let until = Instant::now() + PATIENCE;
    let mut ahead = Vec::new();
    loop {
        match timeout_at(until, client.readable()).await {
            Err(_silent) => return Ok((sniff::presumed(&ahead), ahead)),
            Ok(ready) => ready?,
        }
        let mut buffer = [0; SNIFF];
        match client.try_read(&mut buffer) {
            // Nothing more will come: whatever it is, it is no request.
            Ok(0) => return Ok((Speaks::Unknown, ahead)),
            Ok(n) => ahead.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        let speaks = sniff::speaks(&ahead);
        if speaks != Speaks::Unknown {
            return Ok((speaks, ahead));
        }
    }
}

impl Shared {
    /// Waits until no new work is taken.
    async fn until_stopping(&self) {
        let stop = self.stop.notified();
        if !self.stopping.load(Acquire) {
            stop.await;
        }
    }
}
