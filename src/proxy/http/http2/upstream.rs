//! HTTP/2 connections to a backend, each shared by many requests.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::super::pool::Terms;
use super::body::RequestBody;
use super::line::Line;

/// Window of a stream and of a connection: what may be under way to a client that does not read.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Time between two looks at whether the backend's machine is still there. Not by pings: servers of gRPC end connections
/// on which they get more than one in five minutes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A handle on a connection. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::proxy::http) struct Http2 {
    send: SendRequest<RequestBody>,
    load: Arc<Load>,
}

#[derive(Debug)]
struct Load {
    streams: AtomicUsize,
    /// Requests that it has carried, those under way among them.
    carried: AtomicU32,
    terms: Terms,
    last: Mutex<Instant>,
}

/// Counts a stream for as long as it lives.
#[derive(Debug)]
pub(super) struct Stream(Arc<Load>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Http2 {
    /// Speaks HTTP/2 on `stream`, in a task that ends with the connection.
    pub(super) async fn over(stream: TcpStream, terms: Terms) -> hyper::Result<Self> {
        let line = Line::new(stream);
        let signal = line.signal();
        let (send, conn) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .max_header_list_size(u32::try_from(super::super::strict::MAX_HEAD).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(line))
            .await?;
        tokio::spawn(async move {
            let mut conn = pin!(conn);
            loop {
                match timeout(LOOK_EVERY, conn.as_mut()).await {
                    Err(_time) => signal.doubt(),
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        return tracing::debug!(%error, "an HTTP/2 connection to a backend has failed");
                    }
                }
            }
        });
        let (streams, carried) = (AtomicUsize::new(0), AtomicU32::new(0));
        let load = Load { streams, carried, terms, last: Mutex::new(Instant::now()) };
        Ok(Self { send, load: Arc::new(load) })
    }

    /// Whether it can still carry requests.
    pub(in crate::proxy::http) fn is_open(&self) -> bool {
        !self.send.is_closed() && self.send.is_ready()
    }

    /// Whether it can carry one more.
    pub(in crate::proxy::http) fn has_room(&self) -> bool {
        self.streams() < self.load.terms.streams && !self.is_spent()
    }

    /// Whether it has carried what it is to carry.
    fn is_spent(&self) -> bool {
        self.load.carried.load(Relaxed) >= self.load.terms.requests
    }

    /// Streams under way.
    pub(in crate::proxy::http) fn streams(&self) -> usize {
        self.load.streams.load(Relaxed)
    }

    /// Whether nothing is under way, and it has carried what it is to carry or been idle for as long as it may.
    pub(in crate::proxy::http) fn is_over(&self, now: Instant) -> bool {
        let last = *self.load.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.streams() == 0
            && (self.is_spent() || now.saturating_duration_since(last) >= self.load.terms.keep)
    }

    /// Sends `request` and waits for the answer's head. A request that could not be sent comes back.
    pub(super) async fn send(
        mut self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Stream), (Option<Request<RequestBody>>, hyper::Error)> {
        self.load.streams.fetch_add(1, Relaxed);
        self.load.carried.fetch_add(1, Relaxed);
        let stream = Stream(Arc::clone(&self.load));
        match self.send.try_send_request(request).await {
            Ok(answer) => Ok((answer, stream)),
            Err(mut error) => Err((error.take_message(), error.into_error())),
        }
    }
}
