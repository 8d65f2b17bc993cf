//! Connections to backends that wait for the next request.
//!
//! Each thread of the data plane has its own, so that a connection stays where its socket is polled, and its lock is
//! never waited for but by the sweep's neighbours on the same thread.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout};

use crate::model::HttpPool;

use super::http1::Backend;
use super::http2::Http2;

/// Idle connections kept per backend and thread. More come and go with bursts.
const MOST_IDLE: usize = 128;
/// Streams on one HTTP/2 connection before another one is opened. Servers allow 100 to 250.
const MOST_STREAMS: usize = 100;
/// How long an idle connection is kept, where no `DestinationRule` says otherwise. Servers close theirs after 5 s (Node.js) to 75 s (nginx).
const KEEP: Duration = Duration::from_secs(30);
/// How long a connection may have been idle for a request that cannot be sent twice. No server in use closes idle
/// connections that soon, so that none is met while it does.
const SAFE_IDLE: Duration = Duration::from_secs(1);
/// How long a request waits for another one's HTTP/2 connection.
const TURN: Duration = Duration::from_millis(250);
/// Time between two sweeps.
const SWEEP: Duration = Duration::from_secs(5);

/// How a connection to a backend is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// How long it is kept idle.
    pub(super) keep: Duration,
    /// Requests that it carries.
    pub(super) requests: u32,
    /// Streams at once, if it speaks HTTP/2.
    pub(super) streams: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self { keep: KEEP, requests: u32::MAX, streams: MOST_STREAMS }
    }
}

impl Terms {
    /// What a `DestinationRule` asks for.
    pub(super) fn of(pool: &HttpPool) -> Self {
        let streams = pool.max_concurrent_streams.map_or(MOST_STREAMS, |n| n as usize);
        Self {
            // As in Istio, none is no wish.
            keep: pool.idle_timeout.filter(|time| !time.is_zero()).unwrap_or(KEEP),
            requests: pool.max_requests_per_connection.unwrap_or(u32::MAX),
            streams: streams.min(MOST_STREAMS),
        }
    }
}

/// The connections of one thread.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pool {
    http1: Mutex<HashMap<SocketAddr, Vec<Backend>>>,
    http2: Mutex<HashMap<SocketAddr, Vec<Http2>>>,
    /// Whose turn it is to open an HTTP/2 connection, by backend.
    turns: Mutex<HashMap<SocketAddr, Arc<Turn>>>,
}

type Turn = tokio::sync::Mutex<()>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A connection to `backend` that can carry a request at the moment `now`. `careful`: one that cannot be sent twice.
    pub(super) fn take(&self, backend: SocketAddr, careful: bool, now: Instant) -> Option<Backend> {
        loop {
            // The last one given back is the warmest.
            let conn = lock(&self.http1).get_mut(&backend)?.pop()?;
            let fits = !careful || conn.idle(now) < SAFE_IDLE;
            if fits && !conn.is_over(now) && conn.is_alive(careful) {
                return Some(conn);
            }
        }
    }

    /// Keeps `conn` for later, unless it has carried all that it is to carry.
    pub(super) fn put(&self, backend: SocketAddr, conn: Backend) {
        if conn.is_spent() {
            return;
        }
        let mut idle = lock(&self.http1);
        let waiting = idle.entry(backend).or_default();
        if waiting.len() < MOST_IDLE {
            waiting.push(conn);
        }
    }

    /// An HTTP/2 connection to `backend` with room for a stream.
    pub(super) fn share(&self, backend: SocketAddr) -> Option<Http2> {
        let mut shared = lock(&self.http2);
        let conns = shared.get_mut(&backend)?;
        let now = Instant::now();
        conns.retain(|conn| conn.is_open() && !conn.is_over(now));
        conns.iter().filter(|conn| conn.has_room()).min_by_key(|conn| conn.streams()).cloned()
    }

    /// Waits until nobody else opens an HTTP/2 connection to `backend`, so that requests that come together share one.
    /// Not for long: whoever opens one may be waiting for a backend that does not answer.
    pub(super) async fn turn(&self, backend: SocketAddr) -> Option<OwnedMutexGuard<()>> {
        let turn = Arc::clone(lock(&self.turns).entry(backend).or_default());
        timeout(TURN, turn.lock_owned()).await.ok()
    }

    /// Shares `conn` with later requests.
    pub(super) fn add(&self, backend: SocketAddr, conn: Http2) {
        lock(&self.http2).entry(backend).or_default().push(conn);
    }

    /// Throws away what has been idle for long, for ever.
    pub(in crate::proxy) async fn keep_swept(&self) {
        loop {
            sleep(SWEEP).await;
            self.sweep(Instant::now());
        }
    }

    fn sweep(&self, now: Instant) {
        lock(&self.http1).retain(|_, conns| {
            conns.retain(|conn| !conn.is_over(now) && conn.is_alive(true));
            !conns.is_empty()
        });
        lock(&self.http2).retain(|_, conns| {
            conns.retain(|conn| conn.is_open() && !conn.is_over(now));
            !conns.is_empty()
        });
        // Nobody waits for a turn that only this table knows.
        lock(&self.turns).retain(|_, turn| Arc::strong_count(turn) > 1);
    }

    /// Throws everything away.
    pub(in crate::proxy) fn clear(&self) {
        lock(&self.http1).clear();
        lock(&self.http2).clear();
    }
}
