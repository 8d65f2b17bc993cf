//! Taking connections, and pausing without dying when this machine has no room for more.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use crate::balance::Upstreams;
use crate::life::Drain;
use crate::net::sock;

use super::Shared;
use super::conn::{self, Ticket};
use super::http::Pool;
use super::knock;

/// First pause after a failed accept; it doubles up to `FIRST_PAUSE << LAST_STEP`.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The step at which waiting has lasted a third of a second and whoever is queued is turned away instead.
const LAST_STEP: u32 = 6;
/// Most connections turned away at once.
const SHED_BATCH: usize = 4096;
/// Accepting goes on once this part of the connections allowed is free.
const ROOM: u64 = 16;
/// So many connections more than another part, and this share of the other's, a part may have before it hands new ones
/// on. The kernel's hash leaves one of two parts with 21 of 32 connections in one case out of ten, which then wait for
/// one thread while the other idles; handing over costs two system calls and a wake-up.
const SLACK: u64 = 2;
const SLACK_PART: u64 = 8;
/// Least time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What the parts of the acceptor know of one another.
#[derive(Debug)]
pub(super) struct Part {
    /// Connections that it serves.
    pub(super) active: AtomicU64,
    /// Connections to backends that wait for requests.
    pub(super) http: Pool,
    inbox: UnboundedSender<Accepted>,
}

/// Connections that another part has accepted.
pub(super) type Inbox = UnboundedReceiver<Accepted>;

/// A connection on its way to the part that serves it.
#[derive(Debug)]
pub(super) struct Accepted {
    client: std::net::TcpStream,
    peer: SocketAddr,
    ticket: Ticket,
}

impl Part {
    /// A part that nobody serves yet, and what is handed to it.
    pub(super) fn new() -> (Self, Inbox) {
        let (inbox, receiver) = unbounded_channel();
        (Self { active: AtomicU64::new(0), http: Pool::default(), inbox }, receiver)
    }
}

/// One accepting loop. There may be several, each with a listener of its own.
pub(super) struct Acceptor {
    listener: TcpListener,
    inbox: Inbox,
    place: usize,
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    /// A descriptor to give up when there are no others, so that queued clients can be told.
    spare: Option<File>,
    failures: u32,
    warned: Option<Instant>,
}

impl Acceptor {
    pub(super) fn new(
        listener: TcpListener,
        inbox: Inbox,
        place: usize,
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
    ) -> anyhow::Result<Self> {
        let spare = Some(open_spare().context("cannot open /dev/null")?);
        Ok(Self { listener, inbox, place, shared, upstreams, spare, failures: 0, warned: None })
    }

    /// Accepts until `drain` stops.
    pub(super) async fn run(mut self, drain: Drain) {
        let stop = drain.stop().clone();
        let mut stopped = pin!(stop.cancelled());
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => break,
                () = self.turn(&drain) => {}
            }
        }
        // What was handed over before the end is served; what comes later goes back to the sender.
        self.inbox.close();
        while let Some(accepted) = self.inbox.recv().await {
            self.take_over(accepted, &drain);
        }
    }

    /// Waits for room, accepts one connection and starts it.
    async fn turn(&mut self, drain: &Drain) {
        let accept = async {
            wait_for_room(&self.shared).await;
            self.listener.accept().await
        };
        let accepted = tokio::select! {
            biased;
            // These count already, so they need no room.
            Some(accepted) = self.inbox.recv() => return self.take_over(accepted, drain),
            accepted = accept => accepted,
        };
        match accepted {
            Ok((client, peer)) => {
                self.failures = 0;
                if self.shared.knock.is(peer) {
                    drop(drain.tasks().spawn(knock::answer(client)));
                    return;
                }
                // Until all is said: a client of a process that dies must not take that for the end of an answer.
                sock::reset_on_close(&client);
                let place = self.least_busy();
                let ticket = Ticket::new(Arc::clone(&self.shared), place);
                if place == self.place {
                    self.serve(client, peer, ticket, drain);
                } else {
                    self.hand_over(client, peer, ticket, drain);
                }
            }
            // The client was gone before we came to it.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => self.pause(&e).await,
        }
    }

    fn serve(&self, client: TcpStream, peer: SocketAddr, ticket: Ticket, drain: &Drain) {
        let work = conn::run(client, peer, ticket, Arc::clone(&self.upstreams));
        drop(drain.tasks().spawn(work));
    }

    /// The part that is to serve the next connection: this one, unless another has clearly fewer.
    fn least_busy(&self) -> usize {
        let parts = &self.shared.parts;
        let mine = parts[self.place].active.load(Relaxed);
        let others = parts.iter().enumerate().map(|(place, part)| (part.active.load(Relaxed), place));
        match others.min() {
            Some((least, place)) if mine > least + SLACK + least / SLACK_PART => place,
            _ => self.place,
        }
    }

    fn hand_over(&self, client: TcpStream, peer: SocketAddr, ticket: Ticket, drain: &Drain) {
        let to = &self.shared.parts[ticket.place()].inbox;
        // Nothing can be told to a client whose socket has failed already.
        let Ok(client) = client.into_std() else { return };
        if let Err(back) = to.send(Accepted { client, peer, ticket }) {
            self.take_over(back.0, drain);
        }
    }

    fn take_over(&self, accepted: Accepted, drain: &Drain) {
        let Accepted { client, peer, ticket } = accepted;
        match TcpStream::from_std(client) {
            Ok(client) => self.serve(client, peer, ticket, drain),
            Err(error) => {
                tracing::debug!(%error, %peer, "a connection could not be handed to another thread");
            }
        }
    }

    async fn pause(&mut self, e: &io::Error) {
        self.shared.counters.accept_pauses.fetch_add(1, Relaxed);
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(
                error = %e,
                active = self.shared.counters.active.load(Relaxed),
                "accepting pauses; if this lasts, raise the limit of open files (LimitNOFILE)"
            );
        }
        if self.failures >= LAST_STEP && sock::is_shortage(e) {
            self.shed();
        }
        sleep(FIRST_PAUSE * (1 << self.failures.min(LAST_STEP))).await;
        self.failures = self.failures.saturating_add(1);
    }

    /// Resets whoever is queued: better told than left waiting.
    fn shed(&mut self) {
        self.spare = None;
        for _ in 0..SHED_BATCH {
            match sock::shed(&self.listener) {
                Ok(true) => {
                    self.shared.counters.refused.fetch_add(1, Relaxed);
                    self.shared.counters.refusals.add(conn::SHED);
                }
                Ok(false) | Err(_) => break,
            }
        }
        self.spare = open_spare().ok();
    }
}

/// Waits until another connection may be open.
async fn wait_for_room(shared: &Shared) {
    if shared.counters.active.load(Relaxed) < shared.max_connections {
        return;
    }
    shared.counters.accept_pauses.fetch_add(1, Relaxed);
    // Room for more than one, so that it does not pause again at the next connection.
    let low = shared.max_connections - shared.max_connections / ROOM;
    loop {
        let ended = shared.ended.notified();
        if shared.counters.active.load(Relaxed) < shared.max_connections.min(low.max(1)) {
            return;
        }
        ended.await;
    }
}

fn open_spare() -> io::Result<File> {
    File::open("/dev/null")
}
