//! What all dials of this process have come to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::obs::meter::{Histogram, Tally};

/// How one dial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialEnd {
    /// It connected.
    Connected,
    /// The backend refused or reset it.
    Refused,
    /// No answer in time.
    Timeout,
    /// The network knows no way there.
    Unreachable,
    /// Every local port towards the backend is in use.
    NoPorts,
    /// Another fault of this machine.
    Local,
    /// Another backend that was dialled later was faster.
    Outrun,
}

/// The words for [`DialEnd`], in its order.
const ENDS: [&str; 7] = ["connected", "refused", "timeout", "unreachable", "no-ports", "local", "outrun"];

/// What all dials of this process have come to. Relaxed atomics: two for each connection.
#[derive(Debug)]
pub struct Tallies {
    ends: Tally<7>,
    connect: Histogram,
    retries: AtomicU64,
    ejections: AtomicU64,
}

impl Default for Tallies {
    fn default() -> Self {
        Self {
            ends: Tally::new(&ENDS),
            connect: Histogram::default(),
            retries: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
        }
    }
}

impl Tallies {
    /// A dial connected after `took`.
    pub fn connected(&self, took: Duration) {
        self.ends.add(DialEnd::Connected as usize);
        self.connect.observe(took);
    }

    /// A dial ended without a connection.
    pub fn ended(&self, end: DialEnd) {
        self.ends.add(end as usize);
    }

    /// Another backend was dialled for a connection that had dialled one already.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn ejected(&self) {
        self.ejections.fetch_add(1, Relaxed);
    }

    /// Dials by their end.
    pub fn ends(&self) -> Vec<(&'static str, u64)> {
        self.ends.read()
    }

    /// Times that connecting took.
    pub fn connect(&self) -> &Histogram {
        &self.connect
    }

    /// Dials beyond the first of their connection.
    pub fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    /// Times that an address was taken out after failures.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }
}
