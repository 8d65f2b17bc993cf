//! One HTTP/1 connection to a backend, driven by whoever uses it.
//!
//! hyper's client is two halves, one to send requests with and one that moves bytes, which usually gets a task of its
//! own. Here the task of the request moves both: no other task has to be woken, twice for each request, and a
//! connection that nobody uses costs nothing. Wake-ups between the halves go nowhere, because each is polled right
//! after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::RequestBody;
use super::line::{Line, Signal};
use super::strict::MAX_HEAD;

/// A connection.
#[derive(Debug)]
pub(super) struct Http1 {
    send: SendRequest<RequestBody>,
    conn: Connection<TokioIo<Line>, RequestBody>,
    signal: Arc<Signal>,
    /// When its last answer ended.
    idle_since: Instant,
    /// It has carried a request before.
    used: bool,
    /// The last look of its owner's that it knows of.
    seen: u32,
}

fn look(signal: &Signal, looks: &AtomicU32, seen: &mut u32) {
    let now = looks.load(Relaxed);
    if *seen != now {
        *seen = now;
        signal.doubt();
    }
}

/// Why a request got no answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// The request, if not a byte of it was sent.
    pub(super) unsent: Option<Request<RequestBody>>,
    /// Some of an answer came.
    pub(super) heard: bool,
    /// The connection had carried requests before.
    pub(super) reused: bool,
    /// What hyper says.
    pub(super) why: hyper::Error,
}

impl Http1 {
    /// Speaks HTTP/1 on `stream`.
    pub(super) async fn over(stream: TcpStream) -> hyper::Result<Self> {
        let line = Line::new(stream);
        let signal = line.signal();
        let (send, conn) = Builder::new()
            .preserve_header_case(true)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(line))
            .await?;
        Ok(Self { send, conn, signal, idle_since: Instant::now(), used: false, seen: 0 })
    }

    /// How long nobody has used it.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.idle_since)
    }

    /// Whether it can carry a request. `probe` asks the kernel whether the backend has closed it, which the runtime
    /// may not have noticed yet.
    pub(super) fn is_alive(&mut self, probe: bool) -> bool {
        self.signal.mark(probe);
        let mut cx = Context::from_waker(Waker::noop());
        self.conn.poll_without_shutdown(&mut cx).is_pending() && self.send.is_ready()
    }

    /// Sends `request` and waits for the answer's head. Whenever `looks` has changed, which its owner does every few
    /// seconds, it is found out whether the backend's machine is still there.
    pub(super) async fn send(
        mut self: Box<Self>,
        request: Request<RequestBody>,
        looks: &AtomicU32,
    ) -> Result<(Response<Incoming>, Box<Self>), Box<Unanswered>> {
        let reused = std::mem::replace(&mut self.used, true);
        let mut answer = pin!(self.send.try_send_request(request));
        let (conn, signal, mut seen) = (&mut self.conn, &*self.signal, looks.load(Relaxed));
        let got = poll_fn(|cx| {
            look(signal, looks, &mut seen);
            // Ended or not: what it has to say stands in the answer.
            let ended = conn.poll_without_shutdown(cx).is_ready();
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending if ended => answer.as_mut().poll(cx),
                other => other,
            }
        })
        .await;
        match got {
            Ok(answer) => {
                // From here on the body is asked for first, so that nobody has to be woken for it.
                let _ = self.conn.poll_without_shutdown(&mut Context::from_waker(Waker::noop()));
                Ok((answer, self))
            }
            Err(mut error) => Err(Box::new(Unanswered {
                unsent: error.take_message(),
                heard: self.signal.heard(),
                reused,
                why: error.into_error(),
            })),
        }
    }

    /// Moves bytes. Ready when the connection has ended. `looks` as in [`Self::send`].
    pub(super) fn poll(&mut self, looks: &AtomicU32, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        look(&self.signal, looks, &mut self.seen);
        self.conn.poll_without_shutdown(cx)
    }

    /// Whether it can carry another request, after an answer has ended.
    pub(super) fn is_free(&mut self) -> bool {
        self.idle_since = Instant::now();
        self.is_alive(false)
    }

    /// The socket of a connection whose answer was an upgrade, and bytes that came behind it.
    pub(super) async fn into_parts(mut self) -> Option<(TcpStream, Vec<u8>)> {
        poll_fn(|cx| self.conn.poll_without_shutdown(cx)).await.ok()?;
        let parts = self.conn.into_parts();
        Some((parts.io.into_inner().into_stream(), parts.read_buf.to_vec()))
    }
}
