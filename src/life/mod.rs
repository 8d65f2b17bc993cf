//! Starting, draining and ending of tasks.
//!
//! A stop has two steps: *stop* (take no new work, let the running work finish) and *kill* (drop what is left once
//! the drain timeout is over). Every long-lived task is spawned through [`Drain::spawn`], so that none is detached
//! without an owner.

pub mod pen;

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Shared view of the process's end. Clones refer to the same stop.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    stop: CancellationToken,
    kill: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A drain that nobody has started yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled once no new work may be taken.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled once running work must end at once.
    pub fn kill(&self) -> &CancellationToken {
        &self.kill
    }

    /// Spawns `work` on the current runtime, with `name` in its log context, and counts it as work to wait for.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(work.instrument(tracing::info_span!("task", name)))
    }

    /// The tracker itself, for the per-connection path, which can do without a span.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Stops the intake, waits up to `timeout` for the running work, then kills the rest.
    /// Returns how many tasks had to be killed.
    pub async fn run(&self, timeout: Duration) -> usize {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(timeout, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tasks.len();
        self.kill.cancel();
        // A killed task only has to notice: two seconds are ample, and a task that does not notice ends with us.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_work_that_ends_in_time() {
        let drain = Drain::new();
        drain.spawn("short", tokio::time::sleep(Duration::from_secs(1)));
        assert_eq!(drain.run(Duration::from_secs(5)).await, 0);
        assert!(!drain.kill().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn kills_work_that_outlasts_the_timeout() {
        let drain = Drain::new();
        let kill = drain.kill().clone();
        drain.spawn("long", async move { kill.cancelled().await });
        assert_eq!(drain.run(Duration::from_secs(5)).await, 1);
        assert!(drain.tasks().is_empty());
    }
}
