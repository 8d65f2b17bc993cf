//! An HTTP/2 connection of a client. Each of its streams is a request of its own.
//!
//! hyper reads and writes frames on both sides (`wire`, `line`); a request becomes one for a backend (`exchange`,
//! `headers`) and is sent over a connection that many share (`upstream`), bodies stream through (`body`). What does not
//! belong here: which backend, and the dial (`choice`); HTTP/1 (`http1`).

mod body;
mod exchange;
mod headers;
mod line;
mod upstream;
mod wire;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::strict::MAX_HEAD;
use super::visitor::Visitor;
pub(super) use body::AnswerBody;
pub(super) use upstream::Http2;
use wire::Wire;

/// Streams that a client may have open at once; RFC 9113 advises at least 100.
const MOST_STREAMS: u32 = 128;
/// Streams that a client may open and reset before they were looked at (CVE-2023-44487), and errors of its own making,
/// before it is sent away. Those that were looked at and then reset are bounded by [`MOST_STREAMS`].
const MOST_RESETS: usize = 20;
const MOST_ERRORS: usize = 64;
/// What may be under way from a client on one stream, and on all together, while the backend does not read.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of one answer that wait for a client that does not read.
const SEND_BUFFER: usize = 128 * 1024;
/// Silence until a client is asked whether it lives, and how long the answer may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(20);
/// Time between two looks at a connection.
const TICK: Duration = Duration::from_secs(5);

/// Answers the requests of one connection.
#[derive(Debug)]
struct Answers(Arc<Visitor>);

type Answer = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>;

impl Service<Request<Incoming>> for Answers {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        Box::pin(exchange::answer(Arc::clone(&self.0), request))
    }
}

/// Serves `client`, of which `ahead` was read already, to its end.
pub(super) async fn serve(client: TcpStream, ahead: Vec<u8>, visitor: &Arc<Visitor>) {
    let wire = Wire::new(client, ahead, Arc::clone(&visitor.counters));
    let idle_timeout = visitor.shared.http.idle_timeout;
    let mut conn = pin!(
        Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(MOST_STREAMS)
            .max_pending_accept_reset_streams(MOST_RESETS)
            .max_local_error_reset_streams(MOST_ERRORS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT)
            .serve_connection(TokioIo::new(wire), Answers(Arc::clone(visitor)))
    );
    let mut tick = pin!(sleep(TICK));
    let mut stop = pin!(visitor.shared.until_stopping());
    let (mut stopping, mut idle_since) = (false, None);
    let ended = poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            conn.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(how) = conn.as_mut().poll(cx) {
            return Poll::Ready(how);
        }
        while tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            tick.as_mut().reset(now + TICK);
            idle_since = visitor.is_idle().then(|| idle_since.unwrap_or(now));
            if !stopping && idle_since.is_some_and(|since| now - since >= idle_timeout) {
                stopping = true;
                conn.as_mut().graceful_shutdown();
            }
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(peer = %visitor.peer, %error, "an HTTP/2 connection broke");
    }
}
