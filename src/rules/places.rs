//! How often a lost first place is taken back. Pure: the caller brings the time.
//!
//! A program that insists on the first place itself (Calico does, with `chainInsertMode: Insert`) would fight with us
//! for ever. Standing second does no harm as long as the other one lets packets pass, so that we get slower and
//! slower, and the fight costs next to nothing. Rules that are missing or wrong are never waited for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::apply::Family;

/// So often in a row the place is taken back at once.
const AT_ONCE: u32 = 3;
/// The pause after that; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Who keeps the place for this long beyond the pause has won it, and the count starts anew.
const PEACE: Duration = Duration::from_mins(1);

/// A built-in chain's table, by family.
pub type Place = (Family, &'static str);

/// The fights that are going on.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<Place, Contest>);

#[derive(Clone, Copy, Debug)]
struct Contest {
    /// Times in a row that the place was taken back.
    retaken: u32,
    last: Instant,
    /// It is lost now, and to be taken back only once the pause is over.
    waiting: bool,
}

impl Contest {
    fn pause(&self) -> Duration {
        match self.retaken.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            // Beyond 2^5 the longest pause is reached.
            Some(more) => (FIRST_PAUSE * (1 << more.min(5))).min(LONGEST_PAUSE),
        }
    }

    fn due(&self) -> Instant {
        self.last + self.pause()
    }
}

impl Places {
    /// The place is lost at `now`: whether it is to be taken back at once. If so, it is counted as taken.
    pub fn retake(&mut self, place: Place, now: Instant) -> bool {
        let Some(contest) = self.0.get_mut(&place) else {
            self.0.insert(place, Contest { retaken: 1, last: now, waiting: false });
            return true;
        };
        if now < contest.due() {
            contest.waiting = true;
            return false;
        }
        let peaceful = !contest.waiting && now > contest.due() + PEACE;
        *contest =
            Contest { retaken: if peaceful { 1 } else { contest.retaken + 1 }, last: now, waiting: false };
        true
    }

    /// Whether a place is waiting to be taken back and may be now, so that the rules must be read though nobody
    /// changed them.
    pub fn is_due(&self, now: Instant) -> bool {
        self.0.values().any(|contest| contest.waiting && now >= contest.due())
    }

    /// Tables in which the place is lost for now, each with the pause.
    pub fn lost(&self) -> impl Iterator<Item = (Place, Duration)> {
        self.0.iter().filter(|(_, contest)| contest.waiting).map(|(place, contest)| (*place, contest.pause()))
    }

    /// Forgets the fights of a family: its places could not be taken back for another reason.
    pub fn forget(&mut self, family: Family) {
        self.0.retain(|(of, _), _| *of != family);
    }

    /// The place stands: nothing is to be waited for.
    pub fn stands(&mut self, place: Place) {
        if let Some(contest) = self.0.get_mut(&place) {
            contest.waiting = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: Place = (Family::V4, "nat");

    /// Times, in seconds, at which the place is taken back from someone who takes it every `every` seconds.
    fn fight(every: u64, until: u64) -> Vec<u64> {
        let start = Instant::now();
        let mut places = Places::default();
        let times = (0..until).step_by(usize::try_from(every).unwrap());
        times.filter(|at| places.retake(NAT, start + Duration::from_secs(*at))).collect()
    }

    #[test]
    fn a_stubborn_opponent_costs_less_and_less() {
        assert_eq!(fight(2, 100), [0, 2, 4, 14, 34, 74]);
        let day = fight(2, 86_400).len();
        assert!((280..310).contains(&day), "{day} times in a day");
    }

    #[test]
    fn who_comes_now_and_then_is_answered_at_once() {
        let hourly: Vec<u64> = (0..10).map(|hour| hour * 3600).collect();
        assert_eq!(fight(3600, 36_000), hourly);
    }

    #[test]
    fn a_waiting_place_is_remembered_and_shown() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut places = Places::default();
        for seconds in [0, 2, 4] {
            assert!(places.retake(NAT, at(seconds)));
        }
        assert!(!places.is_due(at(5)), "nothing is lost");
        assert!(!places.retake(NAT, at(6)));
        assert_eq!(places.lost().collect::<Vec<_>>(), [(NAT, FIRST_PAUSE)]);
        assert!(!places.is_due(at(13)) && places.is_due(at(14)));
        assert!(places.retake((Family::V6, "nat"), at(6)), "another table is another fight");
        places.stands(NAT);
        assert!(!places.is_due(at(20)) && places.lost().next().is_none());
    }
}
