//! One served frontend: its socket and its flows.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::balance::{Lease, Tick, Upstream};
use crate::model::Frontend;
use crate::net::datagram::{self, Bunch};
use crate::net::sock;

use super::places::Holder;
use super::session::{Entry, Session};
use super::table::Table;
use super::{Shared, with_buffer};

/// Datagrams taken from one socket before others get their turn.
const BATCH: usize = 64;
/// Backends tried for one datagram.
const TRIES: usize = 3;
/// How long a backend that was reported unreachable is passed over by this frontend's new flows, if there are
/// others. Ejection for all service ports comes with repeated failures.
const AVOID: Duration = Duration::from_secs(1);

/// One served frontend.
pub(super) struct Port {
    frontend: Frontend,
    socket: UdpSocket,
    sessions: Mutex<Table<Entry>>,
    /// The backend last reported unreachable, and when.
    unreachable: Mutex<Option<(SocketAddr, Tick)>>,
    closed: CancellationToken,
}

impl Port {
    /// Must be called inside the runtime that is to serve it.
    pub(super) fn new(frontend: Frontend, socket: StdSocket) -> io::Result<Self> {
        datagram::take_bunches(&socket);
        Ok(Self {
            frontend,
            socket: UdpSocket::from_std(socket)?,
            sessions: Mutex::default(),
            unreachable: Mutex::default(),
            closed: CancellationToken::new(),
        })
    }

    /// Takes datagrams until it is closed.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        loop {
            tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                ready = self.socket.readable() => if ready.is_err() { return },
            }
            // Under load there is always one more: the others on this thread get their turn all the same.
            if self.take_batch(&shared) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Passes on what has arrived. `true`: there may be more.
    fn take_batch(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        with_buffer(|buffer| {
            for _ in 0..BATCH {
                match datagram::receive(&self.socket, buffer) {
                    Ok((length, size, Some(client))) => {
                        self.pass_on(client, Bunch { bytes: &buffer[..length], size }, shared);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                    // An error that some client's host reported about an answer; taken off the socket with this.
                    Ok((_, _, None)) | Err(_) => {}
                }
            }
            true
        })
    }

    fn pass_on(self: &Arc<Self>, client: SocketAddr, bunch: Bunch<'_>, shared: &Arc<Shared>) {
        for _ in 0..TRIES {
            let known = self.lock().get(&client).map(|entry| Arc::clone(&entry.session));
            let session = match known.map_or_else(|| self.begin(client, shared), Ok) {
                Ok(session) => session,
                Err(why) => return shared.dropped(client, &why),
            };
            match session.send(bunch, shared) {
                Ok(()) => return,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return shared.dropped(client, "the backend's socket is full");
                }
                // Larger than any route takes: nobody else would take it either.
                Err(e) if sock::is_too_large(&e) => return shared.dropped(client, "it is too large"),
                // What the send reports is the fate of an earlier datagram; this one has not left yet.
                Err(e) => self.failed(&session, &e, shared),
            }
        }
        shared.dropped(client, "no backend can be reached");
    }

    /// Begins a flow: picks a backend and connects a socket to it.
    fn begin(self: &Arc<Self>, client: SocketAddr, shared: &Arc<Shared>) -> Result<Arc<Session>, String> {
        let route = shared.upstreams.route(&self.frontend, client.ip());
        let (upstream, via) = route.ok_or("no service port is offered there to that client")?;
        let pool = upstream.pool_via(via, self.frontend.ip);
        let now = shared.upstreams.now();
        let mut tried: Vec<usize> =
            self.avoided(now).and_then(|addr| pool.position(addr)).into_iter().collect();
        let mut avoiding = !tried.is_empty();
        let mut last = String::from("no backend can be picked");
        loop {
            let Some(index) = upstream.pick(pool, client.ip(), &tried, now) else {
                if !std::mem::take(&mut avoiding) {
                    return Err(last);
                }
                // There is no other.
                tried.remove(0);
                continue;
            };
            tried.push(index);
            let endpoint = &pool.endpoints()[index];
            // At a node port of this node, this program itself would be the backend's client, over and over.
            let at = Frontend { ip: endpoint.addr.ip(), port: endpoint.addr.port(), ..self.frontend };
            if (shared.guard)(endpoint.addr) || shared.upstreams.is_offered(&at) {
                "it would lead back here".clone_into(&mut last);
                continue;
            }
            match sock::udp_connect(endpoint.addr, shared.own_mark).and_then(UdpSocket::from_std) {
                Ok(socket) => {
                    datagram::take_bunches(&socket);
                    datagram::tell_errors(&socket);
                    self.make_room(shared)?;
                    return Ok(self.enter(client, socket, &upstream, endpoint.lease(), shared));
                }
                Err(e) => {
                    if sock::is_shortage(&e) {
                        shared.places.debtor(self).lock().evict(now);
                        return Err(e.to_string());
                    }
                    if !sock::is_local_fault(&e) {
                        shared.upstreams.note_failure(endpoint, &upstream.ejection);
                    }
                    last = e.to_string();
                }
            }
        }
    }

    /// Takes a place among the flows of this process, if need be from the frontend that has the most.
    fn make_room(self: &Arc<Self>, shared: &Shared) -> Result<(), String> {
        // Another thread may be quicker to take the place that was made.
        for _ in 0..TRIES {
            if shared.admit() {
                return Ok(());
            }
            if !shared.places.debtor(self).lock().evict(shared.upstreams.now()) {
                break;
            }
        }
        if shared.admit() {
            return Ok(());
        }
        Err(format!("there are {} flows already", shared.max_sessions))
    }

    fn enter(
        self: &Arc<Self>,
        client: SocketAddr,
        socket: UdpSocket,
        upstream: &Arc<Upstream>,
        lease: Lease,
        shared: &Arc<Shared>,
    ) -> Arc<Session> {
        let now = shared.upstreams.now();
        let session =
            Arc::new(Session::new(client, socket, Arc::clone(upstream), lease, Arc::clone(shared), now));
        let task = tokio::spawn(Arc::clone(&session).run(Arc::clone(self), Arc::clone(shared)));
        let entry = Entry { session: Arc::clone(&session), task: task.abort_handle() };
        self.lock().insert(client, entry);
        shared.places.grown(self);
        session
    }

    /// Sends an answer to a client.
    pub(super) fn answer(&self, client: SocketAddr, bunch: Bunch<'_>) -> io::Result<usize> {
        datagram::send(&self.socket, bunch, Some(client))
    }

    /// Ends a flow whose backend cannot be reached, and remembers that for the next ones.
    pub(super) fn failed(&self, session: &Arc<Session>, e: &io::Error, shared: &Shared) {
        tracing::debug!(backend = %session.backend(), error = %e, "flow ended");
        if !sock::is_local_fault(e) {
            let now = shared.upstreams.now();
            session.backend_failed();
            shared.counters.unreachable.fetch_add(1, Relaxed);
            *self.unreachable.lock().unwrap_or_else(PoisonError::into_inner) = Some((session.backend(), now));
        }
        self.end(session);
    }

    /// Ends a flow, unless the client has a newer one.
    pub(super) fn end(&self, session: &Arc<Session>) {
        let mut sessions = self.lock();
        if sessions.get(&session.client).is_some_and(|entry| Arc::ptr_eq(&entry.session, session)) {
            sessions.remove(&session.client);
        }
    }

    fn avoided(&self, now: Tick) -> Option<SocketAddr> {
        let unreachable = *self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        unreachable.filter(|(_, at)| now < at.after(AVOID)).map(|(addr, _)| addr)
    }

    /// Ends the flows whose backend is gone, or is not for their client any more.
    pub(super) fn prune(&self, shared: &Shared) {
        self.lock().retain(|client, entry| {
            shared.upstreams.route(&self.frontend, client.ip()).is_some_and(|(upstream, via)| {
                entry.session.belongs_to(&upstream.port.id)
                    && upstream.pool_via(via, self.frontend.ip).position(entry.session.backend()).is_some()
            })
        });
    }

    /// Ends everything.
    pub(super) fn close(&self) {
        self.closed.cancel();
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Table<Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder for Port {
    fn flows(&self) -> usize {
        self.lock().len()
    }
}
