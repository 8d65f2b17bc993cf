//! The client's side of an HTTP connection as hyper sees it: what was read before, then the socket, each byte checked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::balance::PortCounters;

use super::strict::{Fault, Strict};

/// What the connection's task has to know of the wire while hyper owns it. One task uses it, so that the order of
/// memory does not matter.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// A head has begun and not ended.
    in_head: AtomicBool,
    /// A message is being read.
    in_message: AtomicBool,
    /// Written bytes were not flushed yet.
    unflushed: AtomicBool,
    /// Bytes were read since somebody asked.
    heard: AtomicBool,
    /// The fault is in a body, of a request that was taken.
    in_body: AtomicBool,
    /// Bytes were written since the last message that came alone began.
    answered: AtomicBool,
    fault: AtomicU8,
}

const NO_FAULT: u8 = 0;
const MALFORMED: u8 = 1;
const TOO_LARGE: u8 = 2;

impl Gauge {
    /// True if a request's head has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        self.in_head.load(Relaxed)
    }

    /// True if a request has begun and not ended.
    pub(super) fn in_message(&self) -> bool {
        self.in_message.load(Relaxed)
    }

    /// True if nothing is under way in either direction.
    pub(super) fn is_quiet(&self) -> bool {
        !self.in_message.load(Relaxed) && !self.unflushed.load(Relaxed)
    }

    /// Whether the fault is in the body of a request that was taken.
    pub(super) fn fault_in_body(&self) -> bool {
        self.in_body.load(Relaxed)
    }

    /// Whether an answer to the message under way may have begun.
    pub(super) fn answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// Whether bytes were read since the last call.
    pub(super) fn take_heard(&self) -> bool {
        self.heard.swap(false, Relaxed)
    }

    /// The status that the client's bytes deserve, if they are at fault.
    pub(super) fn refusal(&self) -> Option<http::StatusCode> {
        match self.fault.load(Relaxed) {
            MALFORMED => Some(http::StatusCode::BAD_REQUEST),
            TOO_LARGE => Some(http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            _ => None,
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// Bytes that were read to tell the protocol, or came behind what hyper took.
    ahead: Vec<u8>,
    /// Checks HTTP/1; `None` lets everything pass.
    strict: Option<Strict>,
    gauge: Arc<Gauge>,
    counters: Arc<PortCounters>,
}

impl Wire {
    /// A wire on which `ahead` was read already.
    pub(super) fn new(stream: TcpStream, ahead: Vec<u8>, strict: bool, counters: Arc<PortCounters>) -> Self {
        let strict = strict.then(Strict::default);
        Self { stream, ahead, strict, gauge: Arc::default(), counters }
    }

    /// What it shows while hyper owns it.
    pub(super) fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }

    /// The socket.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The socket, and the bytes that nobody has taken yet.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.ahead)
    }

    /// Takes the bytes that were read into account. At a fault those before it are kept and the rest is thrown away.
    fn check(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() {
            return Ok(());
        }
        self.gauge.heard.store(true, Relaxed);
        self.counters.bytes_in.fetch_add(bytes.len() as u64, Relaxed);
        let Some(strict) = &mut self.strict else { return Ok(()) };
        if strict.between() {
            self.gauge.answered.store(false, Relaxed);
        }
        let Err((good, fault)) = strict.feed(bytes) else {
            self.gauge.in_head.store(strict.in_head(), Relaxed);
            self.gauge.in_message.store(!strict.between(), Relaxed);
            return Ok(());
        };
        let code = if let Fault::Malformed(why) = fault {
            tracing::debug!(why, "a request was refused");
            MALFORMED
        } else {
            TOO_LARGE
        };
        self.gauge.in_body.store(strict.in_body(), Relaxed);
        self.gauge.fault.store(code, Relaxed);
        buf.set_filled(before + good);
        // A read of nothing would be the end of the stream.
        if good == 0 { Err(refused()) } else { Ok(()) }
    }
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the request is refused")
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.gauge.fault.load(Relaxed) != NO_FAULT {
            return Poll::Ready(Err(refused()));
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead.drain(..n);
            if this.ahead.is_empty() {
                this.ahead = Vec::new();
            }
        }
        Poll::Ready(this.check(buf, before))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.gauge.unflushed.store(true, Relaxed);
        this.gauge.answered.store(true, Relaxed);
        let n = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.counters.bytes_out.fetch_add(n as u64, Relaxed);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.gauge.unflushed.store(true, Relaxed);
        this.gauge.answered.store(true, Relaxed);
        let n = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.counters.bytes_out.fetch_add(n as u64, Relaxed);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.gauge.unflushed.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
