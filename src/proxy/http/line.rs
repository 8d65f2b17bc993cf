//! The backend's side of an HTTP/1 connection as hyper sees it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::diag;

/// Unacknowledged for so long, a backend's machine is taken for gone: four retransmissions on a local network.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// What the owner of a connection has to know of the line while hyper owns it. One task uses it at a time.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// Bytes came since [`Self::mark`].
    heard: AtomicBool,
    /// The next read is to ask the kernel, not the runtime, which may not have looked yet.
    probe: AtomicBool,
    /// The next read that finds nothing is to ask the kernel whether what was sent has arrived.
    doubt: AtomicBool,
}

impl Signal {
    /// Begins a request. `probe` finds out with a system call whether the backend has closed meanwhile.
    pub(super) fn mark(&self, probe: bool) {
        self.heard.store(false, Relaxed);
        self.probe.store(probe, Relaxed);
    }

    /// Has the next read find out whether the backend's machine is still there.
    pub(super) fn doubt(&self) {
        self.doubt.store(true, Relaxed);
    }

    /// True if a byte came since [`Self::mark`].
    pub(super) fn heard(&self) -> bool {
        self.heard.load(Relaxed)
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    signal: Arc<Signal>,
}

impl Line {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, signal: Arc::default() }
    }

    /// What it shows while hyper owns it.
    pub(super) fn signal(&self) -> Arc<Signal> {
        Arc::clone(&self.signal)
    }

    /// The socket.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// True if the socket has something to say: bytes, an end, or an error.
fn has_news(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    !matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// True if nothing that was sent has been acknowledged for [`LOST_AFTER`]. A backend that is alive and merely takes its
/// time acknowledges what it gets.
fn is_lost(stream: &TcpStream) -> bool {
    diag::delivery(stream).is_ok_and(|found| found.unacknowledged > 0 && found.silence >= LOST_AFTER)
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.signal.probe.load(Relaxed) {
            this.signal.probe.store(false, Relaxed);
            if has_news(&this.stream) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() && this.signal.doubt.swap(false, Relaxed) && is_lost(&this.stream) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(read)?;
        if buf.filled().len() > before {
            this.signal.heard.store(true, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
