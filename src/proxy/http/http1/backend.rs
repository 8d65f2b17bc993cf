//! One HTTP/1 connection to a backend. It belongs to whoever uses it; a connection that waits costs nothing but its
//! socket.

use std::task::{Context, Waker};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::pool::Terms;
use super::super::vital;
use crate::net::sock;

/// A connection.
#[derive(Debug)]
pub(in crate::proxy::http) struct Backend {
    /// The socket.
    pub(super) stream: TcpStream,
    /// When its last answer ended.
    idle_since: Instant,
    /// How long it may be idle, and how many requests it is still to carry.
    terms: Terms,
    /// It has carried a request before.
    pub(super) used: bool,
    /// What came of an answer whose rest did not come with it has been acknowledged.
    acknowledged: bool,
}

impl Backend {
    /// A new one.
    pub(super) fn new(stream: TcpStream, now: Instant, terms: Terms) -> Self {
        Self { stream, idle_since: now, terms, used: false, acknowledged: false }
    }

    /// Its answer has ended, and nothing came behind it.
    pub(super) fn rests(self, now: Instant) -> Self {
        let requests = self.terms.requests.saturating_sub(1);
        Self {
            idle_since: now,
            terms: Terms { requests, ..self.terms },
            used: true,
            acknowledged: false,
            ..self
        }
    }

    /// Has what has come of an answer acknowledged, for its rest may wait for that; once an answer.
    pub(super) fn acknowledge(&mut self) {
        if !std::mem::replace(&mut self.acknowledged, true) {
            sock::acknowledge(&self.stream);
        }
    }

    /// How long nobody has used it.
    pub(in crate::proxy::http) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.idle_since)
    }

    /// Whether it has carried what it is to carry.
    pub(in crate::proxy::http) fn is_spent(&self) -> bool {
        self.terms.requests == 0
    }

    /// Whether it has been idle for as long as it may.
    pub(in crate::proxy::http) fn is_over(&self, now: Instant) -> bool {
        self.idle(now) >= self.terms.keep
    }

    /// Whether it can carry a request: its backend has not closed it, as far as the runtime knows. `probe` asks the kernel,
    /// which may know more.
    pub(in crate::proxy::http) fn is_alive(&self, probe: bool) -> bool {
        let told = self.stream.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        // What the runtime was told may be about bytes that were read since.
        !((told || probe) && vital::has_news(&self.stream))
    }
}
