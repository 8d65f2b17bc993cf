//! One flow: a client of a frontend, and the backend it has.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use crate::balance::{Lease, Tick, Upstream};
use crate::model::PortId;

use crate::net::datagram::{self, Bunch};
use crate::net::sock;

use super::port::Port;
use super::table::{Flow, Stage};
use super::{Shared, with_buffer};

/// Answers passed on before others get their turn.
const BATCH: usize = 64;

/// One flow.
pub(super) struct Session {
    pub(super) client: SocketAddr,
    socket: UdpSocket,
    /// The service port as it was when the flow began: its counters live on.
    upstream: Arc<Upstream>,
    lease: Lease,
    shared: Arc<Shared>,
    /// When something last passed, a [`Tick`].
    last: AtomicU64,
    answered: AtomicBool,
    stream: AtomicBool,
}

/// A flow in its table. Its task ends with it, and its place among the flows is free again.
pub(super) struct Entry {
    pub(super) session: Arc<Session>,
    pub(super) task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
        // Now, not when the task has come to its end: the place is wanted by the next flow.
        self.session.shared.counters.sessions.fetch_sub(1, Relaxed);
    }
}

impl Flow for Session {
    fn stage(&self) -> Stage {
        match (self.stream.load(Relaxed), self.answered.load(Relaxed)) {
            (true, _) => Stage::Stream,
            (false, true) => Stage::Answered,
            (false, false) => Stage::Asked,
        }
    }

    fn last(&self) -> Tick {
        Tick(self.last.load(Relaxed))
    }
}

impl Flow for Entry {
    fn stage(&self) -> Stage {
        self.session.stage()
    }

    fn last(&self) -> Tick {
        self.session.last()
    }
}

impl Session {
    /// The caller has taken a place among the flows for it.
    pub(super) fn new(
        client: SocketAddr,
        socket: UdpSocket,
        upstream: Arc<Upstream>,
        lease: Lease,
        shared: Arc<Shared>,
        now: Tick,
    ) -> Self {
        upstream.counters.active.fetch_add(1, Relaxed);
        upstream.counters.total.fetch_add(1, Relaxed);
        lease.endpoint().began();
        let last = AtomicU64::new(now.0);
        let (answered, stream) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { client, socket, upstream, lease, shared, last, answered, stream }
    }

    /// The backend's address.
    pub(super) fn backend(&self) -> SocketAddr {
        self.lease.endpoint().addr
    }

    pub(super) fn belongs_to(&self, port: &PortId) -> bool {
        self.upstream.port.id == *port
    }

    pub(super) fn backend_failed(&self) {
        self.shared.upstreams.note_failure(self.lease.endpoint(), &self.upstream.ejection);
    }

    /// Passes datagrams on to the backend.
    pub(super) fn send(&self, bunch: Bunch<'_>, shared: &Shared) -> io::Result<()> {
        let sent = match datagram::send(&self.socket, bunch, None) {
            // News of the way's smaller packets, and not about this datagram: the kernel now knows, and cuts it up.
            Err(e) if sock::is_too_large(&e) => {
                datagram::forget_errors(&self.socket);
                datagram::send(&self.socket, bunch, None)?
            }
            sent => sent?,
        };
        self.upstream.counters.bytes_in.fetch_add(sent as u64, Relaxed);
        self.last.store(shared.upstreams.now().0, Relaxed);
        if self.answered.load(Relaxed) {
            self.stream.store(true, Relaxed);
        }
        Ok(())
    }

    /// Passes answers on until the flow has been silent for long, or its backend cannot be reached.
    pub(super) async fn run(self: Arc<Self>, port: Arc<Port>, shared: Arc<Shared>) {
        loop {
            let now = shared.upstreams.now();
            let end = self.last().after(self.stage().idle());
            if now >= end {
                return port.end(&self);
            }
            let wait = Duration::from_micros(end.0 - now.0);
            let Ok(ready) = tokio::time::timeout(wait, self.socket.readable()).await else { continue };
            match ready.and_then(|()| self.take_batch(&port, &shared)) {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => {}
                Err(e) => return port.failed(&self, &e, &shared),
            }
        }
    }

    /// Passes on what has arrived. `true`: there may be more.
    fn take_batch(&self, port: &Port, shared: &Shared) -> io::Result<bool> {
        with_buffer(|buffer| {
            for _ in 0..BATCH {
                let (length, size) = match datagram::receive(&self.socket, buffer) {
                    Ok((length, size, _)) => (length, size),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(e) if sock::is_too_large(&e) => {
                        datagram::forget_errors(&self.socket);
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                let now = shared.upstreams.now();
                self.last.store(now.0, Relaxed);
                if !self.answered.swap(true, Relaxed) {
                    self.lease.endpoint().answered(now);
                }
                match port.answer(self.client, Bunch { bytes: &buffer[..length], size }) {
                    Ok(_) => _ = self.upstream.counters.bytes_out.fetch_add(length as u64, Relaxed),
                    Err(_) => shared.dropped(self.client, "the answer cannot be sent"),
                }
            }
            Ok(true)
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.upstream.counters.active.fetch_sub(1, Relaxed);
    }
}
