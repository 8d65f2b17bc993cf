//! How long to wait before asking again.

use std::time::Duration;

/// Longest wait that a server can ask for with `Retry-After`; more is taken for a mistake.
const MOST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// Doubling waits with jitter on top, so that a thousand nodes do not come back in one second.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// Failures since the last [`Self::reset`].
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure: from the doubled base to half as much again, never less than the server asked.
    ///
    /// The base is a floor and not a mean: an attempt makes at most two requests, and this keeps the rate of a node
    /// below one request per second whatever the server does.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let base = self.first.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        let wait = base + base.mul_f64(fastrand::f64() / 2.0);
        wait.max(asked.unwrap_or_default().min(MOST_RETRY_AFTER))
    }

    /// The short wait after a connection that ended as it should.
    pub(super) fn pause(&self) -> Duration {
        self.first.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_most_with_jitter_above_the_floor() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        for floor in [1, 2, 4, 8, 16, 30, 30, 30] {
            let wait = backoff.next(None);
            assert!(wait >= floor * SECOND && wait <= floor * SECOND * 3 / 2, "{floor}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(None) <= SECOND * 3 / 2);
        assert!(backoff.pause() <= SECOND);
    }

    #[test]
    fn the_server_may_ask_for_more_but_not_for_ever() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        assert_eq!(backoff.next(Some(20 * SECOND)), 20 * SECOND);
        assert_eq!(backoff.next(Some(100_000 * SECOND)), MOST_RETRY_AFTER);
    }
}
