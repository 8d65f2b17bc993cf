//! How far an edge's `MetaServer` can be believed. Pure.
//!
//! With the cloud in reach its lists come from the API server. Without, they come from its own store, which may be
//! older, incomplete, or empty although the objects exist (seen: `200` with no Endpoints at all); such a list gives
//! itself away by a `resourceVersion` that is missing or lower than one that was given before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::mirror::Silence;

/// What is known of one `MetaServer`, over all kinds.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// The highest version that any list has borne; 0: none has. One etcd numbers all kinds.
    mark: Arc<AtomicU64>,
    /// One bit for each lane whose last list held something.
    filled: AtomicU64,
}

/// One list, in numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listing {
    /// Which kind: a bit number.
    pub(super) lane: usize,
    /// The highest version seen before it was asked for: kinds are listed at the same time, and a list that took long is not
    /// older than the cloud because a shorter one was quicker.
    pub(super) mark: u64,
    /// The list's version.
    pub(super) version: Option<u64>,
    /// The newest version among its objects.
    pub(super) newest: Option<u64>,
    /// How many objects it holds.
    pub(super) items: usize,
    /// How many objects of the kind were known before.
    pub(super) known: usize,
}

/// What to make of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) silence: Silence,
    /// It speaks for the cloud and not only for the edge's own store.
    pub(super) first_hand: bool,
    /// Why it is doubted; for people.
    pub(super) doubt: Option<String>,
}

impl Trust {
    /// The highest version seen, to be kept over a restart; 0: none.
    pub(super) fn mark(&self) -> u64 {
        self.mark.load(Ordering::Relaxed)
    }

    /// The same, live.
    pub(super) fn shared_mark(&self) -> Arc<AtomicU64> {
        self.mark.clone()
    }

    /// Takes over what an earlier life has seen.
    pub(super) fn remember(&self, mark: u64) {
        self.mark.fetch_max(mark, Ordering::Relaxed);
    }

    /// Judges a list. `hold`: how long a sudden emptiness must last, longer than the time in which every kind is
    /// listed once; `hold_all`: the same where all kinds are empty at once.
    pub(super) fn judge(&self, list: Listing, hold: Duration, hold_all: Duration) -> Verdict {
        let bit = 1u64 << (list.lane % 64);
        let filled = if list.items > 0 {
            self.filled.fetch_or(bit, Ordering::Relaxed) | bit
        } else {
            self.filled.fetch_and(!bit, Ordering::Relaxed) & !bit
        };
        let mark = list.mark;
        let first_hand = list.version.is_some_and(|v| v >= mark);
        if let Some(version) = list.version {
            self.remember(version);
        }
        let came = match list.version {
            Some(version) => format!("list version {version} after {mark}"),
            None => "a list without version".to_owned(),
        };
        let own_store =
            || Some(format!("answers from its own store ({came}): the cloud is out of its reach"));
        let sudden = list.items == 0 && list.known > 0;
        let hold_empty = if filled == 0 { hold_all } else { hold };
        let (silence, doubt) = match (first_hand, sudden) {
            (true, false) => (Silence::Proof, None),
            (true, true) => (
                Silence::Doubtful { hold: hold_empty, up_to: None },
                Some(format!(
                    "suddenly lists none where {} were; they are kept until that has lasted",
                    list.known
                )),
            ),
            // A server that never gives versions cannot be told from one that has lost its cloud: only time tells.
            (false, true) if mark == 0 => (Silence::Doubtful { hold: hold_all, up_to: None }, own_store()),
            (false, false) if mark == 0 => (Silence::Doubtful { hold, up_to: None }, None),
            (false, true) => (Silence::Nothing, own_store()),
            (false, false) => {
                let up_to = list.version.max(list.newest).unwrap_or(0);
                (Silence::Doubtful { hold, up_to: Some(up_to) }, own_store())
            }
        };
        // Without any version ever, there is nothing better to be had than what it says.
        Verdict { silence, first_hand: first_hand || (mark == 0 && doubt.is_none()), doubt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(200);
    const HOLD_ALL: Duration = Duration::from_mins(15);

    fn judge(trust: &Trust, lane: usize, version: Option<u64>, items: usize, known: usize) -> Verdict {
        judge_asked_at(trust, trust.mark(), lane, (version, items, known))
    }

    fn judge_asked_at(
        trust: &Trust,
        mark: u64,
        lane: usize,
        (version, items, known): (Option<u64>, usize, usize),
    ) -> Verdict {
        let listing = Listing { lane, mark, version, newest: (items > 0).then_some(7), items, known };
        trust.judge(listing, HOLD, HOLD_ALL)
    }

    #[test]
    fn a_list_that_took_long_is_as_good_as_one_that_was_quick() {
        let trust = Trust::default();
        trust.remember(90);
        let asked_at = trust.mark();
        assert!(judge(&trust, 0, Some(105), 3, 3).first_hand);
        let slow = judge_asked_at(&trust, asked_at, 1, (Some(100), 3, 3));
        assert_eq!((slow.silence, slow.first_hand, slow.doubt), (Silence::Proof, true, None));
        assert_eq!(trust.mark(), 105);
    }

    #[test]
    fn a_list_from_the_cloud_is_proof() {
        let trust = Trust::default();
        for (version, items, known) in [(100, 3, 0), (100, 3, 3), (120, 2, 3), (121, 0, 0)] {
            let verdict = judge(&trust, 0, Some(version), items, known);
            assert_eq!((verdict.silence, verdict.first_hand), (Silence::Proof, true), "{version}");
        }
        assert_eq!(trust.mark(), 121);
    }

    #[test]
    fn sudden_emptiness_must_last_and_longer_when_everything_is_empty() {
        let trust = Trust::default();
        judge(&trust, 0, Some(100), 3, 0);
        judge(&trust, 1, Some(100), 3, 0);
        let one = judge(&trust, 0, Some(110), 0, 3);
        assert_eq!(one.silence, Silence::Doubtful { hold: HOLD, up_to: None });
        assert!(one.doubt.unwrap().contains("suddenly lists none where 3 were"));
        let both = judge(&trust, 1, Some(110), 0, 3);
        assert_eq!(both.silence, Silence::Doubtful { hold: HOLD_ALL, up_to: None });
    }

    #[test]
    fn the_edges_own_store_is_known_by_its_versions() {
        let trust = Trust::default();
        trust.remember(5022);
        let back = judge(&trust, 0, Some(334), 3, 5);
        assert_eq!(back.silence, Silence::Doubtful { hold: HOLD, up_to: Some(334) });
        assert!(!back.first_hand && back.doubt.unwrap().contains("334 after 5022"));
        assert_eq!(judge(&trust, 1, None, 0, 5).silence, Silence::Nothing);
        assert_eq!(trust.mark(), 5022, "an old list does not lower the mark");
        assert!(judge(&trust, 0, Some(5023), 3, 5).first_hand);
    }

    #[test]
    fn a_server_that_never_gives_versions_is_believed_after_a_while() {
        let trust = Trust::default();
        let some = judge(&trust, 0, None, 3, 5);
        assert_eq!((some.silence, some.first_hand), (Silence::Doubtful { hold: HOLD, up_to: None }, true));
        assert_eq!(judge(&trust, 0, None, 0, 5).silence, Silence::Doubtful { hold: HOLD_ALL, up_to: None });
    }
}
