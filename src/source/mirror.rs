//! What a source has told so far, by fingerprint, so that a list becomes a difference: nothing is ever flushed.
//!
//! Pure: time comes in from outside.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::slim::{Object, ObjectKey};
use super::wire::{Content, Entry, fingerprint};
use super::{Unreadable, Update};

/// How far a list may be trusted when it does not mention an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// What is not in it is gone.
    Proof,
    /// Gone only if a list still does not mention it after `hold`. With `up_to`, the list knows of nothing younger
    /// than this version, so that its silence says nothing about such objects.
    Doubtful {
        /// How long the silence must last.
        hold: Duration,
        /// The newest version that the list can speak of.
        up_to: Option<u64>,
    },
    /// It says nothing.
    Nothing,
}

/// What is passed over although it was told. The default passes over nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Caution {
    /// An older state of an object than the known one.
    pub(super) older: bool,
    /// An unknown object that is not younger than this: a list of this version would have mentioned it, so that only
    /// its ghost is left in some store.
    pub(super) ghosts: Option<u64>,
}

#[derive(Debug)]
struct Known {
    fingerprint: u64,
    version: Option<u64>,
    /// The list in which it was last mentioned.
    round: u32,
    missing_since: Option<Instant>,
}

/// Everything told about one kind.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    known: HashMap<ObjectKey, Known>,
    round: u32,
    /// Objects that could not be read and what was said of them, so that each is logged once and not at every list.
    unreadable: BTreeMap<ObjectKey, Said>,
    /// Whether these have changed since they were last asked for.
    unreadable_changed: bool,
}

/// What was said of an object that cannot be read.
#[derive(Debug)]
struct Said {
    line: String,
    /// The list in which it was last mentioned.
    round: u32,
}

/// How many unreadable objects are named.
const NAMED: usize = 10;
/// How much is said of each.
const MOST_REASON: usize = 300;

impl Mirror {
    /// Starts from objects that were told in an earlier life.
    pub(super) fn prime<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        for object in objects {
            let known =
                Known { fingerprint: fingerprint(object), version: None, round: 0, missing_since: None };
            self.known.insert(object.key(), known);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// A list begins; [`Self::set`] follows for each entry of each page, then [`Self::finish`].
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Takes in one object and says what is new about it.
    pub(super) fn set(&mut self, entry: Entry, caution: Caution) -> Option<Update> {
        let round = self.round;
        let known = self.known.get_mut(&entry.key);
        let (object, fingerprint) = match entry.content {
            Content::Object(object, fingerprint) => (object, fingerprint),
            Content::Ended => return self.delete(&entry.key),
            Content::Unreadable(why) => {
                let kept = if known.is_some() { "; its last readable state stays in force" } else { "" };
                if let Some(known) = known {
                    (known.round, known.missing_since) = (round, None);
                }
                let why: String = why.chars().take(MOST_REASON).collect();
                let line = format!("{} cannot be read and is passed over: {why}{kept}", entry.key);
                if self.unreadable.get(&entry.key).is_none_or(|said| said.line != line) {
                    tracing::warn!("{line}");
                    self.unreadable_changed = true;
                }
                self.unreadable.insert(entry.key, Said { line, round });
                return None;
            }
        };
        self.unreadable_changed |= self.unreadable.remove(&entry.key).is_some();
        let Some(known) = known else {
            if entry.version.is_some_and(|v| caution.ghosts.is_some_and(|g| v <= g)) {
                return None;
            }
            let known = Known { fingerprint, version: entry.version, round, missing_since: None };
            self.known.insert(entry.key, known);
            return Some(Update::Upsert(object));
        };
        (known.round, known.missing_since) = (round, None);
        if caution.older && entry.version.is_some_and(|v| known.version.is_some_and(|k| v < k)) {
            return None;
        }
        known.version = entry.version;
        if known.fingerprint == fingerprint {
            return None;
        }
        known.fingerprint = fingerprint;
        Some(Update::Upsert(object))
    }

    /// One object is gone.
    pub(super) fn delete(&mut self, key: &ObjectKey) -> Option<Update> {
        self.unreadable_changed |= self.unreadable.remove(key).is_some();
        self.known.remove(key).map(|_| Update::Delete(key.clone()))
    }

    /// A list is complete: what follows for the objects that it did not mention.
    pub(super) fn finish(&mut self, silence: Silence, now: Instant) -> Vec<Update> {
        let round = self.round;
        let said = self.unreadable.len();
        self.unreadable.retain(|_, said| said.round == round);
        self.unreadable_changed |= self.unreadable.len() != said;
        let mut gone = Vec::new();
        for (key, known) in &mut self.known {
            if known.round == round {
                continue;
            }
            let sweep = match silence {
                Silence::Proof => true,
                Silence::Nothing => false,
                Silence::Doubtful { hold, up_to } => {
                    // An object of an earlier life has no version: nothing says that the list could know it.
                    let known_of = up_to.is_none_or(|up_to| known.version.is_some_and(|v| v <= up_to));
                    let since = *known.missing_since.get_or_insert(now);
                    known_of && now.saturating_duration_since(since) >= hold && since != now
                }
            };
            if sweep {
                gone.push(key.clone());
            }
        }
        gone.iter().filter_map(|key| self.delete(key)).collect()
    }

    /// The objects that cannot be read, if they are others than when last asked.
    pub(super) fn unreadable(&mut self) -> Option<Unreadable> {
        std::mem::take(&mut self.unreadable_changed).then(|| Unreadable {
            count: self.unreadable.len(),
            first: self.unreadable.values().take(NAMED).map(|said| said.line.clone()).collect(),
        })
    }

    /// How many objects the last list did not mention.
    pub(super) fn missing(&self) -> usize {
        self.known.values().filter(|k| k.round != self.round).count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::slim::Kind;
    use super::super::wire;
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn entries(items: &[(&str, &str, u64)]) -> Vec<Entry> {
        let items: Vec<String> = items
            .iter()
            .map(|(name, ip, version)| {
                format!(
                    r#"{{"metadata":{{"name":"{name}","namespace":"n","resourceVersion":"{version}"}},"spec":{{"clusterIP":"{ip}"}}}}"#
                )
            })
            .collect();
        wire::page(Kind::Service, format!(r#"{{"items":[{}]}}"#, items.join(",")).as_bytes()).unwrap().entries
    }

    fn list(mirror: &mut Mirror, items: &[(&str, &str, u64)], silence: Silence, now: Instant) -> Vec<String> {
        mirror.begin();
        let caution = Caution { older: silence != Silence::Proof, ghosts: None };
        let mut updates: Vec<Update> =
            entries(items).into_iter().filter_map(|e| mirror.set(e, caution)).collect();
        updates.extend(mirror.finish(silence, now));
        let mut told: Vec<String> = updates
            .iter()
            .map(|u| match u {
                Update::Upsert(object) => format!("+{}", object.key().name),
                Update::Delete(key) => format!("-{}", key.name),
                Update::Replace(_) => "replace".to_owned(),
            })
            .collect();
        told.sort();
        told
    }

    #[test]
    fn a_list_is_told_as_a_difference() {
        let (mut mirror, now) = (Mirror::default(), Instant::now());
        let first = [("a", "10.0.0.1", 1), ("b", "10.0.0.2", 2)];
        assert_eq!(list(&mut mirror, &first, Silence::Proof, now), ["+a", "+b"]);
        assert!(list(&mut mirror, &first, Silence::Proof, now).is_empty());
        let second = [("b", "10.0.0.3", 3), ("c", "10.0.0.4", 4)];
        assert_eq!(list(&mut mirror, &second, Silence::Proof, now), ["+b", "+c", "-a"]);
    }

    #[test]
    fn doubtful_silence_must_last() {
        let (mut mirror, now) = (Mirror::default(), Instant::now());
        let doubtful = Silence::Doubtful { hold: MINUTE, up_to: None };
        list(&mut mirror, &[("a", "10.0.0.1", 1), ("b", "10.0.0.2", 2)], Silence::Proof, now);
        assert!(list(&mut mirror, &[], doubtful, now).is_empty());
        assert!(list(&mut mirror, &[("a", "10.0.0.1", 1)], doubtful, now + MINUTE / 2).is_empty());
        assert_eq!(list(&mut mirror, &[], doubtful, now + MINUTE), ["-b"]);
        assert!(list(&mut mirror, &[], Silence::Nothing, now + 100 * MINUTE).is_empty());
        assert_eq!(mirror.missing(), 1);
        assert_eq!(list(&mut mirror, &[], Silence::Proof, now + 100 * MINUTE), ["-a"]);
    }

    #[test]
    fn an_old_list_neither_undoes_nor_removes_what_is_younger() {
        let (mut mirror, now) = (Mirror::default(), Instant::now());
        list(
            &mut mirror,
            &[("a", "10.0.0.1", 10), ("b", "10.0.0.2", 50), ("c", "10.0.0.5", 20)],
            Silence::Proof,
            now,
        );
        let old = Silence::Doubtful { hold: MINUTE, up_to: Some(30) };
        assert!(list(&mut mirror, &[("a", "10.0.0.9", 9)], old, now).is_empty());
        assert_eq!(list(&mut mirror, &[("a", "10.0.0.9", 9)], old, now + MINUTE), ["-c"]);
        assert_eq!(list(&mut mirror, &[("a", "10.0.0.7", 60)], Silence::Proof, now + MINUTE), ["+a", "-b"]);
    }

    #[test]
    fn ghosts_are_told_from_what_is_new() {
        let mut mirror = Mirror::default();
        list(&mut mirror, &[("a", "10.0.0.1", 10)], Silence::Proof, Instant::now());
        let caution = Caution { older: true, ghosts: Some(30) };
        let mut set = |name, version| mirror.set(entries(&[(name, "10.0.0.3", version)]).remove(0), caution);
        assert!(set("ghost", 30).is_none(), "the list of version 30 would have had it");
        assert!(set("new", 31).is_some());
        assert!(set("a", 9).is_none(), "older than what is known");
        assert!(set("a", 11).is_some());
    }

    #[test]
    fn objects_of_an_earlier_life_stay_until_there_is_proof() {
        let (mut mirror, now) = (Mirror::default(), Instant::now());
        let Content::Object(object, _) = entries(&[("a", "10.0.0.1", 1)]).remove(0).content else { panic!() };
        mirror.prime([&*object]);
        let old = Silence::Doubtful { hold: MINUTE, up_to: Some(u64::MAX) };
        assert!(list(&mut mirror, &[], old, now).is_empty());
        assert!(list(&mut mirror, &[], old, now + 9 * MINUTE).is_empty());
        assert!(list(&mut mirror, &[("a", "10.0.0.1", 1)], Silence::Proof, now).is_empty(), "nothing new");
        assert_eq!(list(&mut mirror, &[], Silence::Proof, now), ["-a"]);
    }
}
