//! What has been told and what is to be told next. Pure: time comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{About, Notice, Notices, Reason};

/// How long something must have held: what passes by itself within this is nobody's business.
const SETTLED: Duration = Duration::from_secs(10);
/// How often it is told again while it holds. API servers keep events for an hour.
const AGAIN: Duration = Duration::from_mins(30);
/// What has ceased is remembered for so long, so that one that comes and goes is one event.
const FORGOTTEN: Duration = Duration::from_hours(2);
/// The shortest time between two messages about the same.
const SPACING: Duration = Duration::from_mins(5);
/// Services with the same trouble that are told one by one; more of them are told as one, about the node.
const MOST_SINGLE: usize = 10;
/// Names of Services in that one.
const MOST_NAMED: usize = 5;
/// Events at once, and the time in which one more may be sent after those.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(30);

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) notice: Notice,
    /// How often it has been told, this time included: 1 makes a new event.
    pub(super) count: u32,
}

#[derive(Debug, Default)]
struct Entry {
    since: Option<Duration>,
    ceased: Duration,
    told: Option<Duration>,
    count: u32,
}

type Key = (Reason, About);

/// What is known of each notice.
#[derive(Debug)]
pub(super) struct Book {
    entries: BTreeMap<Key, Entry>,
    tokens: u32,
    refilled: Duration,
    now: Duration,
}

impl Default for Book {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), tokens: BURST, refilled: Duration::ZERO, now: Duration::ZERO }
    }
}

impl Book {
    /// What is to be told at `now`, given all that holds. Each step is to be answered by [`Self::told`] or
    /// [`Self::failed`].
    pub(super) fn look(&mut self, notices: &Notices, now: Duration) -> Vec<Step> {
        self.now = now;
        while self.tokens < BURST && now >= self.refilled + REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        let notices = gather(notices);
        let held: BTreeSet<Key> = notices.iter().map(|n| (n.reason, n.about.clone())).collect();
        for (key, entry) in &mut self.entries {
            if entry.since.is_some() && !held.contains(key) {
                entry.since = None;
                entry.ceased = now;
            }
        }
        self.entries.retain(|_, entry| entry.since.is_some() || now < entry.ceased + FORGOTTEN);
        let mut steps = Vec::new();
        for notice in notices {
            let entry = self.entries.entry((notice.reason, notice.about.clone())).or_default();
            let since = *entry.since.get_or_insert(now);
            // Told since it began: again after a while. Told before that: at once, but not too often.
            let due = match entry.told {
                None => since + SETTLED,
                Some(told) if told >= since => told + AGAIN,
                Some(told) => (since + SETTLED).max(told + SPACING),
            };
            if now >= due && self.tokens > 0 {
                self.tokens -= 1;
                steps.push(Step { count: entry.count + 1, notice });
            }
        }
        steps
    }

    /// The step was done.
    pub(super) fn told(&mut self, step: &Step) {
        let now = self.now;
        if let Some(entry) = self.entry(step) {
            entry.told = Some(now);
            entry.count = step.count;
        }
    }

    /// The step was not done: it comes again.
    pub(super) fn failed(&mut self, step: &Step) {
        let _ = self.entry(step);
        self.tokens = (self.tokens + 1).min(BURST);
    }

    fn entry(&mut self, step: &Step) -> Option<&mut Entry> {
        self.entries.get_mut(&(step.notice.reason, step.notice.about.clone()))
    }
}

/// Many Services with the same trouble become one notice about the node: then the node is what is wrong.
fn gather(notices: &Notices) -> Vec<Notice> {
    let services = |reason: Reason| {
        notices.iter().filter(move |n| n.reason == reason && matches!(n.about, About::Service { .. }))
    };
    let reasons: BTreeSet<Reason> = notices.iter().map(|n| n.reason).collect();
    let many: Vec<Reason> = reasons.into_iter().filter(|r| services(*r).count() > MOST_SINGLE).collect();
    let mut gathered: Vec<Notice> = many
        .iter()
        .map(|reason| {
            let named = services(*reason).filter_map(|notice| match &notice.about {
                About::Service { namespace, name } => Some(format!("{namespace}/{name}")),
                About::Node => None,
            });
            let named: Vec<String> = named.take(MOST_NAMED).collect();
            let count = services(*reason).count();
            let message =
                format!("{count} Services, among them {}: see `edgesplice status`", named.join(", "));
            Notice { about: About::Node, reason: *reason, message }
        })
        .collect();
    let single = |n: &&Notice| !(many.contains(&n.reason) && matches!(n.about, About::Service { .. }));
    gathered.extend(notices.iter().filter(single).cloned());
    gathered
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn web(reason: Reason) -> Notice {
        let about = About::Service { namespace: "shop".to_owned(), name: "web".to_owned() };
        Notice { about, reason, message: "so it is".to_owned() }
    }

    fn some(n: usize) -> Notices {
        let one = |n| Notice {
            about: About::Service { namespace: "shop".to_owned(), name: format!("s{n:02}") },
            ..web(Reason::NoReachableBackend)
        };
        Arc::new((0..n).map(one).collect())
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// Looks, and does what is to be done.
    fn counts(book: &mut Book, notices: &Notices, at: u64) -> Vec<u32> {
        let steps = book.look(notices, S(at));
        for step in &steps {
            book.told(step);
        }
        steps.iter().map(|step| step.count).collect()
    }

    #[test]
    fn what_lasts_is_told_once_and_again_after_a_while() {
        let (mut book, held, none) = (Book::default(), some(1), some(0));
        assert!(counts(&mut book, &held, 0).is_empty(), "it may pass");
        assert!(counts(&mut book, &none, 5).is_empty());
        assert!(counts(&mut book, &held, 9).is_empty(), "it has begun anew");
        assert!(counts(&mut book, &held, 18).is_empty());
        assert_eq!(counts(&mut book, &held, 19), [1]);
        assert!(counts(&mut book, &held, 600).is_empty());
        assert_eq!(counts(&mut book, &held, 19 + 1800), [2]);
    }

    #[test]
    fn what_comes_and_goes_is_one_event_that_counts() {
        let (mut book, held, none) = (Book::default(), some(1), some(0));
        let mut told = Vec::new();
        for at in (0..1_200).step_by(5) {
            let now = if at % 60 < 40 { &held } else { &none };
            told.extend(counts(&mut book, now, at));
        }
        assert_eq!(told, [1, 2, 3, 4], "every five minutes at most");
        assert!(counts(&mut book, &none, 20_000).is_empty() && book.entries.is_empty(), "forgotten");
    }

    #[test]
    fn many_become_one_about_the_node() {
        let mut book = Book::default();
        let many = some(200);
        book.look(&many, S(0));
        let steps = book.look(&many, S(10));
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].notice.about, About::Node);
        assert!(steps[0].notice.message.starts_with("200 Services, among them shop/s00, "), "{steps:?}");
    }

    #[test]
    fn there_are_never_many_at_once() {
        let mut book = Book::default();
        let mut all: Vec<Notice> = some(10).to_vec();
        all.extend(some(10).iter().map(|n| Notice { reason: Reason::UnsupportedProtocol, ..n.clone() }));
        all.extend(some(10).iter().map(|n| Notice { reason: Reason::ConflictingProxy, ..n.clone() }));
        let all: Notices = Arc::new(all);
        book.look(&all, S(0));
        assert_eq!(counts(&mut book, &all, 10).len(), 20);
        assert_eq!(counts(&mut book, &all, 41).len(), 1);
        assert_eq!(counts(&mut book, &all, 400).len(), 9);
    }

    #[test]
    fn what_could_not_be_told_comes_again() {
        let (mut book, held) = (Book::default(), some(1));
        book.look(&held, S(0));
        let step = book.look(&held, S(10)).remove(0);
        book.failed(&step);
        assert_eq!(counts(&mut book, &held, 15), [1]);
    }
}
