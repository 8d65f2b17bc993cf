//! Places for flows: how many there are in all, and who has to give one up when they are all taken.
//!
//! The frontend with the most flows does, so that a flood at one service leaves the others what they have.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Somebody who has flows.
pub(super) trait Holder {
    /// How many.
    fn flows(&self) -> usize;
}

/// Who holds how many of the places.
pub(super) struct Places<H> {
    /// No holder has more flows than this: whoever gets more becomes the largest.
    record: AtomicUsize,
    largest: Mutex<Weak<H>>,
    all: Mutex<Vec<Weak<H>>>,
}

impl<H: Holder> Places<H> {
    pub(super) fn new() -> Self {
        Self { record: AtomicUsize::new(0), largest: Mutex::new(Weak::new()), all: Mutex::default() }
    }

    /// `holder` may have flows from now on. It is forgotten when nobody has it any more.
    pub(super) fn join(&self, holder: &Arc<H>) {
        let mut all = lock(&self.all);
        // Room is only made where there is none, so that this costs nothing on the average.
        if all.len() == all.capacity() {
            all.retain(|holder| holder.strong_count() > 0);
        }
        all.push(Arc::downgrade(holder));
    }

    /// `holder` has one more.
    pub(super) fn grown(&self, holder: &Arc<H>) {
        let flows = holder.flows();
        if flows > self.record.load(Relaxed) {
            let mut largest = lock(&self.largest);
            self.record.store(flows, Relaxed);
            *largest = Arc::downgrade(holder);
        }
    }

    /// Who has to give up a place for `own`: the one with the most flows, or one with at least half as many. To look
    /// at all of them for each new flow would be the attack itself.
    pub(super) fn debtor(&self, own: &Arc<H>) -> Arc<H> {
        let mut largest = lock(&self.largest);
        let known = largest.upgrade().filter(|known| known.flows() * 2 >= self.record.load(Relaxed));
        let found = known.or_else(|| {
            let mut all = lock(&self.all);
            all.retain(|holder| holder.strong_count() > 0);
            let found = all.iter().filter_map(Weak::upgrade).max_by_key(|holder| holder.flows())?;
            self.record.store(found.flows(), Relaxed);
            *largest = Arc::downgrade(&found);
            Some(found)
        });
        found.filter(|found| found.flows() >= own.flows()).unwrap_or_else(|| Arc::clone(own))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(AtomicUsize);

    impl Holder for Fake {
        fn flows(&self) -> usize {
            self.0.load(Relaxed)
        }
    }

    #[test]
    fn the_largest_pays_and_one_that_has_shrunk_does_not() {
        let places = Places::new();
        let [a, b, c] = [0, 0, 0].map(|n| Arc::new(Fake(AtomicUsize::new(n))));
        for one in [&a, &b, &c] {
            places.join(one);
        }
        let grow = |one: &Arc<Fake>, to: usize| {
            while one.flows() < to {
                one.0.fetch_add(1, Relaxed);
                places.grown(one);
            }
        };
        grow(&a, 100);
        grow(&b, 60);
        grow(&c, 3);
        for one in [&a, &b, &c] {
            assert!(Arc::ptr_eq(&places.debtor(one), &a));
        }
        // Still at least half as many as anybody ever had since the last look.
        a.0.store(50, Relaxed);
        assert!(Arc::ptr_eq(&places.debtor(&c), &a) && Arc::ptr_eq(&places.debtor(&b), &b));
        a.0.store(49, Relaxed);
        assert!(Arc::ptr_eq(&places.debtor(&c), &b));
        grow(&c, 61);
        assert!(Arc::ptr_eq(&places.debtor(&a), &c));
        drop(c);
        assert!(Arc::ptr_eq(&places.debtor(&a), &b));
        assert_eq!(places.all.lock().unwrap().len(), 2);
    }
}
