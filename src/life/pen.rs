//! The right to write what outlives this process: the packet filter's rules and the cache on disk.
//!
//! Two agents may live on one node for a while, one that comes and one that goes; one of them holds the pen.

use tokio::sync::{RwLock, RwLockReadGuard, watch};

/// The pen of this process.
#[derive(Debug)]
pub struct Pen {
    /// Held while something is written; whoever takes the pen away waits for it.
    busy: RwLock<()>,
    hold: watch::Sender<Hold>,
}

/// Whether the pen is held, and how often it has been laid down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hold {
    ours: bool,
    laid_down: u64,
}

/// Permission for one write. It must not be kept for long.
#[derive(Debug)]
pub struct Writing<'a> {
    _busy: RwLockReadGuard<'a, ()>,
    /// How often the pen had been laid down before: where the number is another than at the last write, somebody else
    /// may have written in between.
    pub laid_down: u64,
}

impl Pen {
    /// A pen that this process holds, or does not hold yet.
    pub fn new(ours: bool) -> Self {
        Self { busy: RwLock::new(()), hold: watch::Sender::new(Hold { ours, laid_down: 0 }) }
    }

    /// Waits for the pen.
    pub async fn writing(&self) -> Writing<'_> {
        let mut hold = self.hold.subscribe();
        loop {
            let busy = self.busy.read().await;
            let now = *hold.borrow_and_update();
            if now.ours {
                return Writing { _busy: busy, laid_down: now.laid_down };
            }
            drop(busy);
            // The sender is `self`'s.
            let _ = hold.changed().await;
        }
    }

    /// Permission at once, or none.
    pub fn try_writing(&self) -> Option<Writing<'_>> {
        let busy = self.busy.try_read().ok()?;
        let now = *self.hold.borrow();
        now.ours.then_some(Writing { _busy: busy, laid_down: now.laid_down })
    }

    /// Whether the pen is held.
    pub fn is_held(&self) -> bool {
        self.hold.borrow().ours
    }

    /// Waits until the pen is held, without writing.
    pub async fn held(&self) {
        let _ = self.hold.subscribe().wait_for(|hold| hold.ours).await;
    }

    /// Gives the pen away, once nothing is being written any more.
    pub async fn lay_down(&self) {
        let _busy = self.busy.write().await;
        self.hold.send_modify(|hold| {
            hold.ours = false;
            hold.laid_down += 1;
        });
    }

    /// Takes the pen.
    pub fn take_up(&self) {
        self.hold.send_modify(|hold| hold.ours = true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_laid_down_only_between_two_writes() {
        let pen = Arc::new(Pen::new(true));
        let writing = pen.writing().await;
        let laid = tokio::spawn({
            let pen = Arc::clone(&pen);
            async move { pen.lay_down().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!laid.is_finished());
        drop(writing);
        laid.await.unwrap();
        assert!(pen.try_writing().is_none());
        let later = tokio::spawn({
            let pen = Arc::clone(&pen);
            async move { pen.writing().await.laid_down }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!later.is_finished());
        pen.take_up();
        assert_eq!(later.await.unwrap(), 1);
        pen.held().await;
    }
}
