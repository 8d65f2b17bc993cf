//! What the HTTP requests of a service port came to: by class of status, and how long they took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::PortCounters;

/// Upper bounds of the latency buckets, in microseconds: those of Prometheus' clients, and two below for what a local
/// network can do.
pub const LATENCY_BOUNDS_US: [u64; 13] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];
const BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;
/// Retries that may be saved up, and what a service port starts with.
const BUDGET_MOST: u64 = 10_000;
/// What one request adds to the budget, and one retry costs: one retry for five requests, as linkerd has it.
const BUDGET_EARN: u64 = 200;
const BUDGET_COST: u64 = 1_000;

/// What the HTTP requests of a service port came to.
#[derive(Debug)]
pub struct HttpCounters {
    /// Requests by class of status: 1xx to 5xx.
    classes: [AtomicU64; 5],
    /// Requests that ended without a status: the client went away.
    unanswered: AtomicU64,
    latency: [AtomicU64; BUCKETS],
    latency_us: AtomicU64,
    /// Requests sent again, after a byte of them had been sent.
    retries: AtomicU64,
    /// Connections that spoke something else and were relayed.
    not_http: AtomicU64,
    budget: AtomicU64,
    /// Requests that a bound turned away.
    limited: AtomicU64,
    /// Places taken, by [`Bound`].
    taken: [AtomicU32; 3],
}

/// What the `connectionPool.http` of a `DestinationRule` bounds for a service port as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Requests under way.
    Requests,
    /// Requests that wait for a new connection.
    Pending,
    /// Requests under way that were sent again.
    Retries,
}

/// One of a bounded number of places, given back when this goes.
#[derive(Debug)]
pub struct Place {
    counters: Arc<PortCounters>,
    bound: Bound,
}

impl Place {
    /// Takes a place where fewer than `most` are taken.
    pub fn take(counters: &Arc<PortCounters>, bound: Bound, most: u32) -> Option<Self> {
        let more = |taken| (taken < most).then_some(taken + 1);
        counters.http().taken[bound as usize].fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Self { counters: Arc::clone(counters), bound })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counters.http().taken[self.bound as usize].fetch_sub(1, Relaxed);
    }
}

/// [`HttpCounters`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpNumbers {
    /// Requests by class of status: 1xx to 5xx.
    pub classes: [u64; 5],
    /// Requests that ended without a status.
    pub unanswered: u64,
    /// Requests by time to the answer's head, one count more than there are [`LATENCY_BOUNDS_US`].
    pub latency: [u64; BUCKETS],
    /// Sum of those times, in microseconds.
    pub latency_us: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Connections that spoke something else.
    pub not_http: u64,
    /// Requests that a bound turned away.
    pub limited: u64,
}

impl Default for HttpCounters {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            unanswered: AtomicU64::new(0),
            latency: Default::default(),
            latency_us: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            not_http: AtomicU64::new(0),
            budget: AtomicU64::new(BUDGET_MOST),
            limited: AtomicU64::new(0),
            taken: Default::default(),
        }
    }
}

impl HttpCounters {
    /// A request was answered with `status`, after `took`.
    pub fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.classes[class].fetch_add(1, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BUCKETS - 1);
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_us.fetch_add(us, Relaxed);
        self.earn();
    }

    /// A request ended without an answer: its client went away.
    pub fn left(&self) {
        self.unanswered.fetch_add(1, Relaxed);
    }

    /// A request was turned away by a bound.
    pub fn limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }

    /// A connection turned out to speak something else. True for the first one.
    pub fn spoke_otherwise(&self) -> bool {
        self.not_http.fetch_add(1, Relaxed) == 0
    }

    /// Takes a retry out of the budget. `false`: there is none left.
    pub fn may_retry(&self) -> bool {
        let spend = |left: u64| left.checked_sub(BUDGET_COST);
        let may = self.budget.fetch_update(Relaxed, Relaxed, spend).is_ok();
        if may {
            self.retries.fetch_add(1, Relaxed);
        }
        may
    }

    fn earn(&self) {
        // Full most of the time, which is one load. Two that add at once may pass the most by a little.
        if self.budget.load(Relaxed) < BUDGET_MOST {
            self.budget.fetch_add(BUDGET_EARN, Relaxed);
        }
    }

    /// The numbers now.
    pub fn numbers(&self) -> HttpNumbers {
        HttpNumbers {
            classes: std::array::from_fn(|i| self.classes[i].load(Relaxed)),
            unanswered: self.unanswered.load(Relaxed),
            latency: std::array::from_fn(|i| self.latency[i].load(Relaxed)),
            latency_us: self.latency_us.load(Relaxed),
            retries: self.retries.load(Relaxed),
            not_http: self.not_http.load(Relaxed),
            limited: self.limited.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class_and_by_time() {
        let counters = HttpCounters::default();
        counters.answered(200, Duration::from_micros(400));
        counters.answered(204, Duration::from_millis(1));
        counters.answered(503, Duration::from_mins(1));
        counters.answered(999, Duration::ZERO);
        counters.left();
        let numbers = counters.numbers();
        assert_eq!((numbers.classes, numbers.unanswered), ([0, 2, 0, 0, 2], 1));
        assert_eq!((numbers.latency[0], numbers.latency[1], numbers.latency[BUCKETS - 1]), (2, 1, 1));
        assert_eq!(numbers.latency_us, 60_001_400);
    }

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let counters = HttpCounters::default();
        assert_eq!((0..100).filter(|_| counters.may_retry()).count(), 10, "what was saved up");
        (0..50).for_each(|_| counters.answered(200, Duration::ZERO));
        assert_eq!((0..100).filter(|_| counters.may_retry()).count(), 10, "one for five");
        assert_eq!(counters.numbers().retries, 20);
        assert!(counters.spoke_otherwise());
        assert!(!counters.spoke_otherwise());
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let counters = Arc::<PortCounters>::default();
        let take = |bound| Place::take(&counters, bound, 2);
        let (one, two) = (take(Bound::Requests), take(Bound::Requests));
        assert!(one.is_some() && two.is_some());
        assert!(take(Bound::Requests).is_none());
        assert!(take(Bound::Retries).is_some(), "each bound has places of its own");
        drop(one);
        assert!(take(Bound::Requests).is_some());
    }
}
