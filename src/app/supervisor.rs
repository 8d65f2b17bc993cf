//! What systemd hears of the agent (`Type=notify`): that it is ready, that it moves, that it stops.
//!
//! The watchdog is fed only while the data plane moves: an agent whose acceptor is stuck refuses every service, and a
//! restart is what helps. That the source is out of reach is no reason for a restart, so it has no part in this.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::report::Reporter;
use crate::obs::api::Condition;

/// How often the agent looks at itself, unless the watchdog is shorter.
const LOOK: Duration = Duration::from_secs(1);
/// A start counts as done after this time even where something is still waited for, such as a source without a cache:
/// whatever is ordered after this unit, edgecore perhaps, may be what it waits for.
const PATIENCE: Duration = Duration::from_secs(20);
/// The watchdog is fed this often in each of its periods.
const FEEDS: u32 = 3;

/// Keeps the service manager informed until `stop` is cancelled. Does nothing where none asks (no `NOTIFY_SOCKET`).
/// Says nothing more once `left` is cancelled: what the service manager knows is then the next agent's to say.
pub(super) async fn run(
    reporter: Arc<Reporter>,
    stopping: CancellationToken,
    stop: CancellationToken,
    left: CancellationToken,
) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let tell = |states: &[NotifyState<'_>]| {
        if let Err(error) = sd_notify::notify(states) {
            debug!(%error, "the service manager cannot be told");
        }
    };
    let look = || Look::of(&reporter.conditions(), &reporter.live());
    let following = follow(tell, look, sd_notify::watchdog_enabled(), stopping, stop);
    left.run_until_cancelled(following).await;
}

/// What the agent sees of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    /// What is not there yet, in words; empty: ready.
    waiting: String,
    /// Whether the data plane moves.
    moves: bool,
}

impl Look {
    fn of(ready: &[Condition], live: &[Condition]) -> Self {
        let waiting = ready.iter().filter(|condition| !condition.ok);
        let waiting: Vec<String> = waiting.map(|one| format!("{}: {}", one.name, one.detail)).collect();
        // A status is one line.
        let waiting = waiting.join("; ").replace('\n', " ");
        Self { waiting, moves: live.iter().all(|condition| condition.ok) }
    }
}

async fn follow(
    tell: impl Fn(&[NotifyState<'_>]),
    look: impl Fn() -> Look,
    watchdog: Option<Duration>,
    stopping: CancellationToken,
    stop: CancellationToken,
) {
    let feed = watchdog.map_or(LOOK, |period| (period / FEEDS).max(Duration::from_millis(1)));
    let mut ticks = tokio::time::interval(feed.min(LOOK));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = Instant::now();
    let mut ready = false;
    let mut told: Option<String> = None;
    let mut ending = false;
    let mut stuck = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                if !ending {
                    tell(&[NotifyState::Stopping]);
                }
                return;
            }
            () = stopping.cancelled(), if !ending => {
                ending = true;
                tell(&[NotifyState::Stopping, NotifyState::Status("stopping: open connections may end")]);
            }
            _ = ticks.tick() => {
                let now = look();
                if watchdog.is_some() && now.moves {
                    tell(&[NotifyState::Watchdog]);
                }
                if !now.moves && !stuck {
                    warn!("the data plane does not move; the watchdog is not fed");
                }
                stuck = !now.moves;
                if !ready && !ending && (now.waiting.is_empty() || begun.elapsed() >= PATIENCE) {
                    ready = true;
                    tell(&[NotifyState::Ready]);
                }
                let status = if now.waiting.is_empty() { "serving".to_owned() } else { now.waiting };
                if !ending && told.as_ref() != Some(&status) {
                    tell(&[NotifyState::Status(&status)]);
                    told = Some(status);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Runs [`follow`] for `seconds`, with `look` asked at each second, and returns what was told.
    async fn told(
        seconds: u64,
        watchdog: Option<u64>,
        look: impl Fn(u64) -> Look,
        stop_at: u64,
    ) -> Vec<(u64, String)> {
        let told = Mutex::new(Vec::new());
        let begun = Instant::now();
        let now = || begun.elapsed().as_secs();
        let tell = |states: &[NotifyState<'_>]| {
            let lines = states.iter().map(|state| (now(), state.to_string()));
            told.lock().expect("no panic").extend(lines);
        };
        let (stopping, stop) = (CancellationToken::new(), CancellationToken::new());
        let watchdog = watchdog.map(Duration::from_secs);
        let end = async {
            tokio::time::sleep(Duration::from_secs(stop_at)).await;
            stopping.cancel();
            tokio::time::sleep(Duration::from_secs(seconds - stop_at)).await;
            stop.cancel();
        };
        tokio::join!(follow(tell, || look(now()), watchdog, stopping.clone(), stop.clone()), end);
        told.into_inner().expect("no panic")
    }

    fn at(told: &[(u64, String)], wanted: &str) -> Vec<u64> {
        told.iter().filter(|(_, line)| line == wanted).map(|(at, _)| *at).collect()
    }

    fn waiting(what: &str) -> Look {
        Look { waiting: what.to_owned(), moves: true }
    }

    #[tokio::test(start_paused = true)]
    async fn ready_once_and_each_status_once() {
        let look = |now| if now < 3 { waiting("rules: not yet") } else { waiting("") };
        let told = told(9, None, look, 8).await;
        assert_eq!(at(&told, "READY=1"), [3]);
        assert_eq!(at(&told, "STATUS=rules: not yet"), [0]);
        assert_eq!(at(&told, "STATUS=serving"), [3]);
        assert_eq!(at(&told, "STOPPING=1"), [8]);
        assert_eq!(at(&told, "WATCHDOG=1"), [0_u64; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_waits_for_its_source_does_not_hold_up_the_boot() {
        let told = told(30, None, |_| waiting("snapshot: waiting for the source"), 29).await;
        assert_eq!(at(&told, "READY=1"), [PATIENCE.as_secs()]);
        assert_eq!(at(&told, "STATUS=serving"), [0_u64; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_the_data_plane_moves_and_while_connections_end() {
        let look = |now| Look { waiting: String::new(), moves: !(4..8).contains(&now) };
        let told = told(12, Some(3), look, 10).await;
        assert_eq!(at(&told, "WATCHDOG=1"), [0, 1, 2, 3, 8, 9, 10, 11]);
    }

    #[test]
    fn what_is_waited_for_is_one_line() {
        let condition = |ok, detail: &str| Condition { name: "rules".into(), ok, detail: detail.into() };
        let look = Look::of(&[condition(true, "x"), condition(false, "a\nb")], &[condition(false, "")]);
        assert_eq!(look, Look { waiting: "rules: a b".to_owned(), moves: false });
    }
}
