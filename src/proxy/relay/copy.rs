//! The low gear: read into the thread's scratch buffer, write at once, keep only what was not taken.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use nix::libc::MSG_MORE;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
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

/// Delivers what is left over, then passes on one read. `last_may_wait`: the end of the stream will follow its last
/// bytes at once, so they may wait for it.
pub(super) fn step(
    cx: &mut Context<'_>,
    src: &mut ReadHalf<'_>,
    dst: &mut WriteHalf<'_>,
    leftover: &mut Leftover,
    count: &AtomicU64,
    last_may_wait: bool,
) -> Poll<Result<Step, Fault>> {
    ready!(flush(cx, dst, leftover, count))?;
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *src).poll_read(cx, &mut read)).map_err(|_| Fault::Read)?;
        let mut filled = read.filled().len();
        if filled == 0 {
            return Poll::Ready(Ok(Step::Eof));
        }
        let mut after = After::Open;
        if filled < SCRATCH {
            // No system call unless the poll that woke us said that there is more, or that the stream has ended.
            after = match src.try_read(&mut buffer[filled..]) {
                Ok(0) => After::End,
                Ok(more) => {
                    filled += more;
                    After::Open
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => After::Open,
                Err(_) => After::Fault,
            };
        }
        let bytes = &buffer[..filled];
        let written = match after {
            After::End if last_may_wait => write_last(dst.as_ref(), cx, bytes),
            _ => Pin::new(dst).poll_write(cx, bytes),
        };
        let taken = match written {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Write)),
            Poll::Pending => 0,
        };
        count.fetch_add(taken as u64, Relaxed);
        if taken < bytes.len() {
            *leftover = Leftover::of(&bytes[taken..]);
        }
        match after {
            // The kernel tells of a reset only once.
            After::Fault => Poll::Ready(Err(Fault::Read)),
            After::End if taken == bytes.len() => Poll::Ready(Ok(Step::Eof)),
            After::End | After::Open => Poll::Ready(Ok(Step::Moved(filled))),
        }
    })
}

/// What is known of the source once its bytes are read.
enum After {
    /// More may come.
    Open,
    /// The stream ends here.
    End,
    /// It broke.
    Fault,
}

/// Writes the last bytes of a stream and leaves them to the end that follows at once, so that both go in one packet.
fn write_last(dst: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(dst.poll_write_ready(cx))?;
        match dst.try_io(Interest::WRITABLE, || SockRef::from(dst).send_with_flags(bytes, MSG_MORE)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
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
