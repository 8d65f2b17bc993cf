//! Which backend a request goes to, and a new connection to it.

use std::future::pending;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::{Bound, Caller, Endpoint, Lease};

use super::super::dial::{self, DialError, TcpDialer};
use super::pool::Terms;
use super::record::{Record, place};
use super::reply::Trouble;
use super::visitor::{Route, Visitor};

/// Times that a request may be sent: more than any service needs to find one backend of several that works.
pub(super) const MOST_TRIES: usize = 6;

/// One request's choice of backends.
pub(super) struct Choice<'a> {
    pub(super) visitor: &'a Visitor,
    pub(super) route: &'a Route,
    pub(super) caller: Caller,
}

impl Choice<'_> {
    fn pool(&self) -> &crate::balance::Pool {
        self.route.upstream.pool_via(self.route.via, self.route.ip)
    }

    /// The backend that is next at the moment `now`, which is none of `avoid` where there is another.
    pub(super) fn pick<'a>(&self, avoid: &'a [usize], now: Instant) -> Result<(usize, &'a [usize]), Trouble> {
        let (pool, now) = (self.pool(), self.visitor.upstreams.tick(now.into_std()));
        let pick = |avoid: &'a [usize]| {
            self.route.upstream.pick(pool, self.caller, avoid, now).map(|index| (index, avoid))
        };
        match pick(avoid) {
            // Every one has failed once. Better the same again than none.
            None if !avoid.is_empty() => pick(&[]),
            picked => picked,
        }
        .ok_or(Trouble::NoBackend)
    }

    /// The backend at `index`.
    pub(super) fn endpoint(&self, index: usize) -> &Arc<Endpoint> {
        &self.pool().endpoints()[index]
    }

    /// The place of the backend that `record` says carries the request.
    pub(super) fn position(&self, record: &Record) -> Option<usize> {
        self.pool().position(record.lease()?.endpoint().addr)
    }

    /// Connects the backend that was picked, or another one if it does not answer. A client that goes away meanwhile
    /// is noticed by whoever polls this. `speaks_first` as in [`crate::net::sock::connect`].
    pub(super) async fn dial(
        &self,
        (index, avoid): (usize, &[usize]),
        speaks_first: bool,
    ) -> Result<(TcpStream, Lease), Trouble> {
        let visitor = self.visitor;
        let pool = self.route.upstream.port.http_pool.as_ref();
        let bound = |most| place(&self.route.upstream, Bound::Pending, most);
        let _waits = pool.and_then(|pool| pool.max_pending).map(bound).transpose()?;
        let request = dial::Request {
            upstreams: &visitor.upstreams,
            upstream: &self.route.upstream,
            pool: self.pool(),
            client: self.caller,
            picked: Some(index),
            avoid,
            limits: visitor.shared.limits,
            guard: &*visitor.shared.guard,
        };
        let dialer = TcpDialer { speaks_first, ..visitor.shared.dialer };
        let (stream, lease) = dial::dial(&dialer, request, pending()).await.map_err(|error| match error {
            DialError::NoBackend | DialError::Exhausted { .. } | DialError::ClientGone => Trouble::NoBackend,
            DialError::Local(_) => Trouble::Overload,
        })?;
        // A socket that has failed already tells so when it is used.
        let _ = crate::net::sock::keep_alive(&stream);
        Ok((stream, lease))
    }

    /// Takes a repetition of `record`'s request out of the service port's budget. `false`: there is none left.
    pub(super) fn may_retry(&self, record: &mut Record) -> bool {
        let upstream = &self.route.upstream;
        let most = upstream.port.http_pool.as_ref().and_then(|pool| pool.max_retries);
        most.is_none_or(|most| record.may_be_repeated(upstream, most)) && upstream.counters.http().may_retry()
    }

    /// How new connections to backends are used.
    pub(super) fn terms(&self) -> Terms {
        self.route.upstream.port.http_pool.as_deref().map_or_else(Terms::default, Terms::of)
    }

    /// Counts the answer for or against its backend, where a `DestinationRule` wants that.
    pub(super) fn judge(&self, record: &Record, fault: bool) {
        let wanted = self.route.upstream.port.outlier.consecutive_errors.is_some_and(|most| most > 0);
        if let Some(lease) = record.lease().filter(|_| wanted) {
            lease.endpoint().judged(fault, self.visitor.upstreams.now(), &self.route.upstream.ejection);
        }
    }
}
