//! What the page is fed with: the status as server-sent events, made once for all who listen, and only while somebody
//! does.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{AdminHandlers, Body};
use crate::obs::api::{Finding, Status};

/// The content type of the events.
pub(super) const CONTENT_TYPE: &str = "text/event-stream";
/// Pages that may listen at once.
pub(super) const MOST_LISTENERS: usize = 16;
/// How often the status is made anew while somebody listens.
const EVERY: Duration = Duration::from_secs(2);
/// It may take this share of the time between two.
const SHARE: u32 = 20;
/// How often this machine is looked over while somebody listens.
const LOOK_AGAIN: Duration = Duration::from_mins(5);
/// Service ports and backends that a page is told of at most; more are no use on a screen.
const MOST_SERVICES: usize = 500;
const MOST_BACKENDS: usize = 2_000;
/// A page that has listened for so long is asked to come again, so that none is kept for ever.
const LONGEST: Duration = Duration::from_hours(1);

/// What a page shows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    /// Milliseconds since the agent began to serve pages, for rates.
    at_millis: u64,
    /// Service ports that are not in `status`.
    omitted_services: usize,
    /// What `check` says; null before the first look.
    findings: Option<&'a [Finding]>,
    /// Seconds since that look.
    findings_age_seconds: Option<u64>,
    status: &'a Status,
}

/// Makes the status and gives it to whoever listens.
pub(super) struct Feed {
    handlers: Arc<AdminHandlers>,
    stop: CancellationToken,
    begun: Instant,
    latest: watch::Sender<Bytes>,
    /// Told when a page has come.
    came: Notify,
    places: Arc<Semaphore>,
    findings: Mutex<Option<(Instant, Vec<Finding>)>>,
    looking: Arc<tokio::sync::Mutex<()>>,
}

impl Feed {
    /// Listeners are let go once `stop` is cancelled.
    pub(super) fn new(handlers: Arc<AdminHandlers>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            handlers,
            stop,
            begun: Instant::now(),
            latest: watch::channel(Bytes::new()).0,
            came: Notify::new(),
            places: Arc::new(Semaphore::new(MOST_LISTENERS)),
            findings: Mutex::default(),
            looking: Arc::default(),
        })
    }

    /// Works for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            while self.latest.receiver_count() == 0 {
                self.came.notified().await;
            }
            let (this, started) = (Arc::clone(&self), Instant::now());
            let made = tokio::task::spawn_blocking(move || this.make()).await;
            if let Ok(event) = made {
                self.latest.send_replace(event);
            }
            self.look_over();
            tokio::time::sleep(EVERY.max(started.elapsed() * SHARE)).await;
            if self.latest.receiver_count() == 0 {
                // The next page is not to begin with what was true long ago.
                self.latest.send_replace(Bytes::new());
            }
        }
    }

    /// Looks the machine over, beside the events: it takes a second or two.
    fn look_over(self: &Arc<Self>) {
        let fresh = |(at, _): &(Instant, Vec<Finding>)| at.elapsed() < LOOK_AGAIN;
        let known = self.findings.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(fresh);
        // One look at a time.
        let Some(looking) = Arc::clone(&self.looking).try_lock_owned().ok().filter(|_| !known) else {
            return;
        };
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let found = (this.handlers.check)();
            *this.findings.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), found));
            drop(looking);
        });
    }

    /// One event.
    fn make(&self) -> Bytes {
        let mut status = (self.handlers.status)();
        let all = status.services.len();
        if all > MOST_SERVICES {
            // Those with clients first.
            status.services.sort_by_key(|s| (s.active_connections == 0, s.connections_total == 0));
            status.services.truncate(MOST_SERVICES);
        }
        let mut room = MOST_BACKENDS;
        for service in &mut status.services {
            service.backends.truncate(room);
            room -= service.backends.len();
        }
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let view = View {
            at_millis: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            omitted_services: all - status.services.len(),
            findings: findings.as_ref().map(|(_, found)| found.as_slice()),
            findings_age_seconds: findings.as_ref().map(|(at, _)| at.elapsed().as_secs()),
            status: &status,
        };
        let json = serde_json::to_string(&view).unwrap_or_default();
        Bytes::from(format!("event: status\ndata: {json}\n\n"))
    }

    /// The body of an answer that goes on until the client leaves; `None` if too many listen.
    pub(super) fn listen(&self) -> Option<Body> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let listener = Listener {
            latest: self.latest.subscribe(),
            first: true,
            stop: self.stop.clone(),
            end: tokio::time::Instant::now() + LONGEST,
            _place: place,
        };
        self.came.notify_one();
        let frames = stream::unfold(listener, |mut listener| async move {
            let event = listener.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(event)), listener))
        });
        Some(BodyExt::boxed_unsync(StreamBody::new(frames)))
    }
}

/// One page. A page that does not read gets no memory: it misses what is superseded.
struct Listener {
    latest: watch::Receiver<Bytes>,
    first: bool,
    stop: CancellationToken,
    end: tokio::time::Instant,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.first) {
            let now = self.latest.borrow_and_update().clone();
            // How long to wait before coming again.
            let head = Bytes::from_static(b"retry: 2000\n\n");
            return Some(if now.is_empty() { head } else { [head, now].concat().into() });
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
                changed = self.latest.changed() => changed.ok()?,
            }
            let now = self.latest.borrow_and_update().clone();
            if !now.is_empty() {
                return Some(now);
            }
        }
    }
}
