//! One request's account: who carries it, how long it took, what came of it. Written when its answer has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::balance::{Bound, Lease, Place, PortCounters, Upstream};
use crate::obs::access::{AccessLog, Entry};

use super::reply::Trouble;
use super::visitor::Visitor;

/// A request under way.
#[derive(Debug)]
pub(super) struct Record {
    visitor: Arc<Visitor>,
    started: Instant,
    lease: Option<Lease>,
    /// The numbers of the service port that it is for, where that is not its connection's.
    counters: Option<Arc<PortCounters>>,
    /// Its places among those that are bounded for its service port.
    request: Option<Place>,
    retry: Option<Place>,
    status: Option<StatusCode>,
    sent: u64,
    /// What the access log is to say, where it wants to know.
    entry: Option<Box<Entry>>,
}

impl Record {
    /// Begins one; `entry` is asked for what the access log is to say, if that wants to know.
    pub(super) fn new(visitor: Arc<Visitor>, entry: impl FnOnce() -> Entry) -> Self {
        visitor.busy.fetch_add(1, Relaxed);
        let wanted = visitor.shared.http.log.as_ref().is_some_and(AccessLog::wants);
        let entry = wanted.then(|| Box::new(entry()));
        Self {
            visitor,
            started: Instant::now(),
            lease: None,
            counters: None,
            request: None,
            retry: None,
            status: None,
            sent: 0,
            entry,
        }
    }

    /// The service port that it is for. Fails where that has as many requests under way as it is to have.
    pub(super) fn for_service(&mut self, upstream: &Upstream) -> Result<(), Trouble> {
        if self.visitor.by_name {
            self.counters = Some(Arc::clone(&upstream.counters));
        }
        if let Some(entry) = &mut self.entry {
            entry.service = upstream.port.id.to_string();
        }
        if let Some(most) = upstream.port.http_pool.as_ref().and_then(|pool| pool.max_requests) {
            self.request = Some(place(upstream, Bound::Requests, most)?);
        }
        Ok(())
    }

    /// Whether it may be sent again beside others that were: `most` at once.
    pub(super) fn may_be_repeated(&mut self, upstream: &Upstream, most: u32) -> bool {
        if self.retry.is_none() {
            self.retry = Place::take(&upstream.counters, Bound::Retries, most);
        }
        self.retry.is_some()
    }

    fn counters(&self) -> &PortCounters {
        self.counters.as_ref().unwrap_or(&self.visitor.counters)
    }

    /// Who carries it now.
    pub(super) fn carried_by(&mut self, lease: Lease) {
        lease.endpoint().asked();
        self.lease = Some(lease);
    }

    /// The backend's address. Port 0 of nowhere if there is none.
    pub(super) fn backend(&self) -> SocketAddr {
        self.lease.as_ref().map_or_else(|| SocketAddr::from(([0; 4], 0)), |lease| lease.endpoint().addr)
    }

    /// Who carries it.
    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Its answer begins.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        let took = self.took();
        self.counters().http().answered(status.as_u16(), took);
        if let Some(entry) = &mut self.entry {
            entry.seconds = took.as_secs_f64();
        }
    }

    /// So many bytes of the answer's body were passed on.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// How long it has been under way.
    pub(super) fn took(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A place of `upstream`, of which there are `most`.
pub(super) fn place(upstream: &Upstream, bound: Bound, most: u32) -> Result<Place, Trouble> {
    Place::take(&upstream.counters, bound, most).ok_or_else(|| {
        upstream.counters.http().limited();
        Trouble::Limit
    })
}

/// What the access log is to say whatever the request is.
pub(super) fn entry(visitor: &Visitor) -> Entry {
    Entry { client: visitor.peer.to_string(), destination: visitor.dst.to_string(), ..Entry::default() }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.visitor.busy.fetch_sub(1, Relaxed);
        if self.status.is_none() {
            self.counters().http().left();
        }
        let Some(mut entry) = self.entry.take() else { return };
        entry.status = self.status.map(|status| status.as_u16());
        entry.backend = self.lease.as_ref().map(|lease| lease.endpoint().addr.to_string());
        entry.bytes = self.sent;
        entry.total_seconds = self.took().as_secs_f64();
        if let Some(log) = &self.visitor.shared.http.log {
            log.write(*entry);
        }
    }
}
