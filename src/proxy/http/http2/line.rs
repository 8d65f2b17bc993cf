//! The backend's side of an HTTP/2 connection as hyper sees it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::super::vital;

/// What the owner of a connection has to know of the line while hyper owns it.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// The next read that finds nothing is to ask the kernel whether what was sent has arrived.
    doubt: AtomicBool,
}

impl Signal {
    /// Has the next read find out whether the backend's machine is still there.
    pub(super) fn doubt(&self) {
        self.doubt.store(true, Relaxed);
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
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() && this.signal.doubt.swap(false, Relaxed) && vital::is_lost(&this.stream) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
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
