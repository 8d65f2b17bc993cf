//! The task that owns the rules while the agent runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::machine::Machine;
use super::plan::Wanted;
use super::reconcile::Reconciler;
use crate::life::pen::Pen;
use crate::obs::api::RulesReport;

/// First pause after a failed attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause after failed attempts: what was in the way may go at any time, and then no more than five seconds
/// are to pass.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Applies what is wanted whenever it changes, checks and mends in between, and reports after each step. Until the
/// first `wanted` with a range arrives, nothing is touched, so that what a killed agent left goes on working; nor is it
/// while `pen` is not held, and after it was laid down everything is done anew.
/// Returns the reconciler once `stop` is cancelled or the sender of `wanted` is gone; withdrawing is the caller's
/// decision.
pub async fn run<M: Machine>(
    mut reconciler: Reconciler<M>,
    mut wanted: watch::Receiver<Arc<Wanted>>,
    report: watch::Sender<RulesReport>,
    pen: Arc<Pen>,
    stop: CancellationToken,
) -> Reconciler<M> {
    report.send_replace(reconciler.report());
    let mut begun = false;
    let mut laid_down = 0;
    let mut pending = true;
    let mut pause = FIRST_PAUSE;
    let mut next = Instant::now();
    wanted.mark_changed();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return reconciler,
            changed = wanted.changed() => {
                if changed.is_err() {
                    return reconciler;
                }
                pending = true;
            }
            () = tokio::time::sleep_until(next) => {}
        }
        let target = Arc::clone(&wanted.borrow_and_update());
        begun |= !target.ranges.is_empty();
        if !begun {
            next = Instant::now() + reconciler.period();
            continue;
        }
        let writing = tokio::select! {
            biased;
            () = stop.cancelled() => return reconciler,
            writing = pen.writing() => writing,
        };
        if writing.laid_down != laid_down {
            laid_down = writing.laid_down;
            reconciler.distrust();
            pending = true;
        }
        // What was wanted may have changed while the pen was not held.
        let target = Arc::clone(&wanted.borrow_and_update());
        let result = if pending { reconciler.apply(&target).await } else { reconciler.check().await };
        match result {
            Ok(()) => {
                pending = false;
                pause = FIRST_PAUSE;
                next = Instant::now() + reconciler.period();
            }
            Err(error) => {
                if pending {
                    error!(%error, retry_in = ?pause, "the rules could not be installed");
                } else {
                    warn!(%error, retry_in = ?pause, "the rules could not be checked");
                }
                next = Instant::now() + pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        report.send_replace(reconciler.report());
    }
}
