//! The low gear: read into the thread's scratch buffer, write at once, keep only what was not taken.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::direction::{Fault, Step};

/// Size of the scratch buffer: a loopback segment at its largest.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// Used within one poll and never across two, so one per thread is enough for all connections.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Bytes that the receiver has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Leftover {
    /// A copy of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), sent: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Delivers what is left over, then passes on one read.
pub(super) fn step(
    cx: &mut Context<'_>,
    src: &mut ReadHalf<'_>,
    dst: &mut WriteHalf<'_>,
    leftover: &mut Leftover,
    count: &AtomicU64,
) -> Poll<Result<Step, Fault>> {
    ready!(flush(cx, dst, leftover, count))?;
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(src).poll_read(cx, &mut read)).map_err(|_| Fault::Read)?;
        let bytes = read.filled();
        if bytes.is_empty() {
            return Poll::Ready(Ok(Step::Eof));
        }
        let taken = match Pin::new(dst).poll_write(cx, bytes) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Write)),
            Poll::Pending => 0,
        };
        count.fetch_add(taken as u64, Relaxed);
        if taken < bytes.len() {
            *leftover = Leftover::of(&bytes[taken..]);
        }
        Poll::Ready(Ok(Step::Moved(bytes.len())))
    })
}

fn flush(
    cx: &mut Context<'_>,
    dst: &mut WriteHalf<'_>,
    leftover: &mut Leftover,
    count: &AtomicU64,
) -> Poll<Result<(), Fault>> {
    while let Some(rest) = leftover.bytes.get(leftover.sent..).filter(|rest| !rest.is_empty()) {
        let n = ready!(Pin::new(&mut *dst).poll_write(cx, rest)).map_err(|_| Fault::Write)?;
        count.fetch_add(n as u64, Relaxed);
        leftover.sent += n;
        if leftover.sent == leftover.bytes.len() {
            *leftover = Leftover::default();
        }
    }
    Poll::Ready(Ok(()))
}
