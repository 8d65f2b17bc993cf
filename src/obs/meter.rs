//! Counting on the hot path: relaxed atomics in fixed places, no lock and no allocation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of every histogram's buckets, in microseconds: a local connect takes some ten of them, the longest
/// dial some seconds, and a full pass over a large rule set longer still.
const BOUNDS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is longer than all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS.partition_point(|bound| *bound < us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// What has been counted so far. Taken while others count on, so that the sum may be ahead of the counts.
    pub fn read(&self) -> Distribution {
        let bounds = BOUNDS.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(|n| n.load(Relaxed))).collect();
        Distribution {
            count: buckets.iter().map(|(_, n)| n).sum(),
            sum: self.sum_us.load(Relaxed) as f64 / 1e6,
            buckets,
        }
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Upper bound in seconds, and how many are in that bucket alone; the last bound is [`f64::INFINITY`].
    pub buckets: Vec<(f64, u64)>,
    /// Seconds in all.
    pub sum: f64,
    /// How many.
    pub count: u64,
}

/// Counts of one thing by a fixed list of kinds.
#[derive(Debug)]
pub struct Tally<const N: usize> {
    kinds: &'static [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Tally<N> {
    /// Nothing of any of these kinds.
    pub fn new(kinds: &'static [&'static str; N]) -> Self {
        Self { kinds, counts: [const { AtomicU64::new(0) }; N] }
    }

    /// Counts one of the kind at `index`; one beyond the list counts as the last.
    pub fn add(&self, index: usize) {
        self.counts[index.min(N - 1)].fetch_add(1, Relaxed);
    }

    /// How many there are of each kind.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        self.kinds.iter().copied().zip(self.counts.iter().map(|n| n.load(Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let histogram = Histogram::default();
        for us in [0, 100, 101, 999_999, 11_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let read = histogram.read();
        let filled: Vec<(f64, u64)> = read.buckets.iter().copied().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(0.000_1, 2), (0.000_25, 1), (1.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((read.count, (read.sum * 1e6).round()), (5, 12_000_200.0));
    }

    #[test]
    fn kinds_are_counted_each() {
        let tally = Tally::new(&["a", "b"]);
        tally.add(0);
        tally.add(1);
        tally.add(7);
        assert_eq!(tally.read(), [("a", 1), ("b", 2)]);
    }
}
