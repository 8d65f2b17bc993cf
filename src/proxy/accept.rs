//! Taking connections, and pausing without dying when this machine has no room for more.

use std::fs::File;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::balance::Upstreams;
use crate::life::Drain;
use crate::net::sock;

use super::Shared;
use super::conn::{self, Ticket};

/// First pause after a failed accept; it doubles up to `FIRST_PAUSE << LAST_STEP`.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The step at which waiting has lasted a third of a second and whoever is queued is turned away instead.
const LAST_STEP: u32 = 6;
/// Most connections turned away at once.
const SHED_BATCH: usize = 4096;
/// Accepting goes on once this part of the connections allowed is free.
const ROOM: u64 = 16;
/// Least time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// One accepting loop. There may be several, each with a listener of its own.
pub(super) struct Acceptor {
    listener: TcpListener,
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
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
    ) -> anyhow::Result<Self> {
        let spare = Some(open_spare().context("cannot open /dev/null")?);
        Ok(Self { listener, shared, upstreams, spare, failures: 0, warned: None })
    }

    /// Accepts until `drain` stops.
    pub(super) async fn run(mut self, drain: Drain) {
        let stop = drain.stop().clone();
        let mut stopped = pin!(stop.cancelled());
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = self.turn(&drain) => {}
            }
        }
    }

    /// Waits for room, accepts one connection and starts it.
    async fn turn(&mut self, drain: &Drain) {
        self.wait_for_room().await;
        match self.listener.accept().await {
            Ok((client, peer)) => {
                self.failures = 0;
                let ticket = Ticket::new(Arc::clone(&self.shared));
                let work = conn::run(client, peer, ticket, Arc::clone(&self.upstreams));
                drop(drain.tasks().spawn(work));
            }
            // The client was gone before we came to it.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => self.pause(&e).await,
        }
    }

    async fn wait_for_room(&self) {
        let shared = &self.shared;
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
                Ok(true) => self.shared.counters.refused.fetch_add(1, Relaxed),
                Ok(false) | Err(_) => break,
            };
        }
        self.spare = open_spare().ok();
    }
}

fn open_spare() -> io::Result<File> {
    File::open("/dev/null")
}
