//! One direction of a connection: which gear it is in, and when it shifts.

use std::future::Future as _;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};

use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::copy::{self, Leftover};
use super::pipe::PipePool;
use super::splice::Splicer;

/// Bytes one direction may move before other connections of the thread get their turn.
const POLL_BYTES: usize = 1 << 20;
/// Bytes moved until a direction may count as a stream; ztunnel grows its buffers at the same point.
pub(super) const STREAM_AFTER: usize = 128 * 1024;
/// Average read from which `splice` beats copying.
const STREAM_AVERAGE: usize = 16 * 1024;

/// Which half of a direction broke. The error itself carries nothing that anyone acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The source.
    Read,
    /// The receiver.
    Write,
}

/// What one round of a gear came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes were read; there may be more.
    Moved(usize),
    /// The source has ended its stream, with nothing in flight.
    Eof,
    /// The direction has fallen silent, with nothing in flight.
    Idle,
    /// The gear does not work on these sockets; whatever was in flight is in the leftover.
    Unfit,
}

#[derive(Debug, Default)]
pub(super) struct Direction {
    /// Set while in the splice gear.
    splicer: Option<Box<Splicer>>,
    leftover: Leftover,
    /// Bytes since the last try to shift up, as far as that matters.
    moved: usize,
    /// Smoothed size of a read.
    average: usize,
    /// `splice` does not work on these sockets.
    copy_only: bool,
    /// Bytes were read since somebody asked.
    progress: bool,
}

impl Direction {
    /// A direction in which `bytes` come first.
    pub(super) fn after(bytes: &[u8]) -> Self {
        Self { leftover: Leftover::of(bytes), ..Self::default() }
    }

    /// Ready when the source has ended with all delivered, or one half broke. Bytes are added to `count` as the
    /// receiver takes them. `last_may_wait`: whoever calls ends the receiver's stream as soon as this is ready.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        src: &mut ReadHalf<'_>,
        dst: &mut WriteHalf<'_>,
        count: &AtomicU64,
        pipes: &PipePool,
        last_may_wait: bool,
    ) -> Poll<Result<(), Fault>> {
        let mut spent = 0;
        loop {
            let step = match &mut self.splicer {
                Some(gear) => ready!(gear.step(cx, src.as_ref(), dst.as_ref(), &mut self.leftover, count))?,
                None => ready!(copy::step(cx, src, dst, &mut self.leftover, count, last_may_wait))?,
            };
            match step {
                Step::Moved(n) => {
                    spent += n;
                    self.progress = true;
                    self.note(n, pipes);
                }
                Step::Eof => {
                    self.progress = true;
                    self.splicer = None;
                    return Poll::Ready(Ok(()));
                }
                Step::Idle => self.shift_down(),
                Step::Unfit => {
                    self.shift_down();
                    self.copy_only = true;
                }
            }
            if spent >= POLL_BYTES {
                // Behind the I/O driver and every other task of this thread.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
        }
    }

    /// Whether bytes were read since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// True if bytes are in flight that the receiver has not taken.
    pub(super) fn is_blocked(&self) -> bool {
        !self.leftover.is_empty() || self.splicer.as_ref().is_some_and(|gear| gear.in_flight() > 0)
    }

    /// Takes a read of `n` bytes into account and shifts up when the direction has become a stream.
    fn note(&mut self, n: usize, pipes: &PipePool) {
        if self.splicer.is_some() || self.copy_only {
            return;
        }
        self.moved = self.moved.saturating_add(n);
        self.average = (self.average * 3 + n) / 4;
        if self.moved >= STREAM_AFTER && self.average >= STREAM_AVERAGE && self.leftover.is_empty() {
            // Without a pipe the direction goes on copying, and asks again after as many bytes.
            self.moved = 0;
            self.splicer = pipes.take().map(|pipe| Box::new(Splicer::new(pipe)));
        }
    }

    fn shift_down(&mut self) {
        self.splicer = None;
        self.moved = 0;
        self.average = 0;
    }
}
