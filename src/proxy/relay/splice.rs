//! The high gear: bytes go from socket to socket through a kernel pipe and never enter this process.
//!
//! The pipe is empty whenever the source is read. So `EAGAIN` from the source can only mean that it has nothing, and
//! `EAGAIN` from the receiver only that it is full, and the pipe itself never has to be waited for.

use std::future::Future as _;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::copy::Leftover;
use super::direction::{Fault, Step};
use super::pipe::PooledPipe;

/// Silence after which the pipe is given back, so that parked connections hold none.
pub(super) const IDLE: Duration = Duration::from_secs(1);

/// A direction in the splice gear.
#[derive(Debug)]
pub(super) struct Splicer {
    pipe: PooledPipe,
    moved: u64,
    /// `moved` when the timer last ran out.
    moved_before: u64,
    idle: Pin<Box<Sleep>>,
}

impl Splicer {
    /// Shifts up with an empty pipe.
    pub(super) fn new(pipe: PooledPipe) -> Self {
        Self { pipe, moved: 0, moved_before: 0, idle: Box::pin(sleep(IDLE)) }
    }

    /// Bytes read from the source that the receiver has not taken.
    pub(super) fn in_flight(&self) -> usize {
        self.pipe.in_flight
    }

    /// Delivers what is in the pipe, then fills it once.
    pub(super) fn step(
        &mut self,
        cx: &mut Context<'_>,
        src: &TcpStream,
        dst: &TcpStream,
        leftover: &mut Leftover,
        count: &AtomicU64,
    ) -> Poll<Result<Step, Fault>> {
        while self.pipe.in_flight > 0 {
            ready!(dst.poll_write_ready(cx)).map_err(|_| Fault::Write)?;
            match dst.try_io(Interest::WRITABLE, || self.drain(dst)) {
                Ok(0) => return Poll::Ready(Err(Fault::Write)),
                Ok(n) => {
                    self.pipe.in_flight = self.pipe.in_flight.saturating_sub(n);
                    count.fetch_add(n as u64, Relaxed);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if is_unfit(&e) => return Poll::Ready(self.empty_into(leftover)),
                Err(_) => return Poll::Ready(Err(Fault::Write)),
            }
        }
        loop {
            match src.poll_read_ready(cx) {
                Poll::Ready(ready) => ready.map_err(|_| Fault::Read)?,
                Poll::Pending => {
                    ready!(self.poll_idle(cx));
                    return Poll::Ready(Ok(Step::Idle));
                }
            }
            match src.try_io(Interest::READABLE, || self.fill(src)) {
                Ok(0) => return Poll::Ready(Ok(Step::Eof)),
                Ok(n) => {
                    self.pipe.in_flight = n;
                    self.moved = self.moved.wrapping_add(n as u64);
                    return Poll::Ready(Ok(Step::Moved(n)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if is_unfit(&e) => return Poll::Ready(Ok(Step::Unfit)),
                Err(_) => return Poll::Ready(Err(Fault::Read)),
            }
        }
    }

    /// Ready when nothing has moved for [`IDLE`] to twice that: the timer is not touched while bytes flow.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.idle.as_mut().poll(cx));
            if self.moved == self.moved_before {
                return Poll::Ready(());
            }
            self.moved_before = self.moved;
            self.idle.as_mut().reset(Instant::now() + IDLE);
        }
    }

    fn fill(&self, src: &TcpStream) -> io::Result<usize> {
        let (_, writer, capacity) = self.pipe.ends().ok_or(io::ErrorKind::BrokenPipe)?;
        transfer(src, writer, capacity)
    }

    fn drain(&self, dst: &TcpStream) -> io::Result<usize> {
        let (reader, ..) = self.pipe.ends().ok_or(io::ErrorKind::BrokenPipe)?;
        transfer(reader, dst, self.pipe.in_flight)
    }

    /// Takes the pipe's content back into this process, for a receiver that cannot be spliced to.
    fn empty_into(&mut self, leftover: &mut Leftover) -> Result<Step, Fault> {
        let (reader, ..) = self.pipe.ends().ok_or(Fault::Read)?;
        let mut bytes = vec![0; self.pipe.in_flight];
        let mut filled = 0;
        while filled < bytes.len() {
            match nix::unistd::read(reader, &mut bytes[filled..]) {
                Ok(n) if n > 0 => filled += n,
                _ => return Err(Fault::Read),
            }
        }
        *leftover = Leftover::of(&bytes);
        self.pipe.in_flight = 0;
        Ok(Step::Unfit)
    }
}

fn transfer(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    splice(from, None, to, None, len, flags).map_err(io::Error::from)
}

/// True if the kernel cannot splice these sockets at all.
fn is_unfit(e: &io::Error) -> bool {
    matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::ENOSYS | Errno::EBADF))
}
