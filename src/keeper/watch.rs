//! Whether a worker still shows that it moves. Pure: the time is given.

use std::time::{Duration, Instant};

/// How often a worker shows that it moves.
pub const BEAT: Duration = Duration::from_secs(2);
/// How often the keeper looks while it hears nothing.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// Silence after which a worker counts as stuck. The thread that speaks has nothing else to do, so that the busiest
/// board gives it its millisecond in that time; a memory card that stalls does so for some seconds.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// Most that one look adds to the silence. A keeper that did not run itself, as in a machine that was suspended or a
/// container that was paused, has heard nothing because nobody could speak.
const ONE_LOOK: Duration = Duration::from_secs(3);

/// What was heard of one worker.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// `None`: it need not speak, as long as it starts and once it ends.
    looked: Option<Instant>,
    silent: Duration,
}

impl Watch {
    /// It has spoken, and is to do so from now on.
    pub(super) fn heard(&mut self, now: Instant) {
        *self = Self { looked: Some(now), silent: Duration::ZERO };
    }

    /// It need not speak any more.
    pub(super) fn rest(&mut self) {
        *self = Self::default();
    }

    /// Whether it is to be looked at every [`LOOK`].
    pub(super) fn is_on(&self) -> bool {
        self.looked.is_some()
    }

    /// A look, after everything that it said has been heard. `true`: it is stuck.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let Some(last) = &mut self.looked else { return false };
        let last = std::mem::replace(last, now);
        self.silent += now.saturating_duration_since(last).min(ONE_LOOK);
        self.silent >= SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every `every` for `time`, and says when the watch was over.
    fn looks(watch: &mut Watch, from: Instant, every: Duration, time: Duration) -> Option<Duration> {
        let mut after = every;
        while after <= time {
            if watch.look(from + after) {
                return Some(after);
            }
            after += every;
        }
        None
    }

    #[test]
    fn silence_is_noticed() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        watch.heard(now);
        let noticed = looks(&mut watch, now, LOOK, Duration::from_mins(1)).unwrap();
        assert!(noticed >= SILENCE && noticed <= SILENCE + LOOK, "{noticed:?}");
    }

    #[test]
    fn who_speaks_is_let_alone() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        for beat in 0..100 {
            let now = begun + BEAT * beat;
            assert!(!watch.look(now));
            watch.heard(now);
        }
    }

    #[test]
    fn who_starts_or_ends_need_not_speak() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        assert!(!watch.is_on());
        assert_eq!(looks(&mut watch, now, LOOK, Duration::from_mins(5)), None);
        watch.heard(now);
        assert!(watch.is_on());
        watch.rest();
        assert!(!watch.is_on());
        assert_eq!(looks(&mut watch, now, LOOK, Duration::from_mins(5)), None);
    }

    #[test]
    fn a_keeper_that_did_not_run_itself_has_no_say() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        watch.heard(now);
        // Suspended for a night; the first look after it comes before the worker could speak.
        let morning = now + Duration::from_hours(9);
        assert!(!watch.look(morning));
        watch.heard(morning + Duration::from_secs(1));
        assert!(!watch.look(morning + LOOK));
        // A worker that stays silent all the same is stuck.
        assert!(looks(&mut watch, morning + LOOK, LOOK, SILENCE).is_some());
    }

    #[test]
    fn looks_that_come_late_need_several() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        watch.heard(now);
        let noticed = looks(&mut watch, now, Duration::from_mins(1), Duration::from_hours(1)).unwrap();
        assert_eq!(noticed, Duration::from_mins(5));
    }
}
