//! An HTTP/1 connection of a client, from its first request to its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::net::sock;

use super::body::AnswerBody;
use super::strict::MAX_HEAD;
use super::visitor::{Upgrade, Visitor};
use super::wire::{Gauge, Wire};
use super::{exchange, reply};

/// Time between two looks at a connection. One that was quiet for the whole of it is parked.
const TICK: Duration = Duration::from_secs(2);
/// How long a client is listened to after it was told why it is not served, so that it can read that: bytes that
/// arrive at a closed socket make the kernel take the answer back.
const LINGER: Duration = Duration::from_secs(2);
/// Room beside a head in hyper's buffer, so that [`MAX_HEAD`] is what ends too large a one.
const BESIDE_HEAD: usize = 16 * 1024;

/// Answers the requests of one connection.
#[derive(Debug)]
pub(super) struct Answers(pub(super) Arc<Visitor>);

type Answer = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>;

impl Service<Request<Incoming>> for Answers {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        Box::pin(exchange::answer(Arc::clone(&self.0), request))
    }
}

/// hyper's side of a client's connection.
type Conn = Connection<TokioIo<Wire>, Answers>;

/// What ended a stretch of a connection.
enum Event {
    /// hyper has done with it.
    Ended(hyper::Result<()>),
    /// Nothing is under way.
    Quiet,
    /// A head took too long.
    Slow,
}

/// What is left to do with a connection that hyper let go.
enum Next {
    /// Wait for its next request, without hyper and its buffers.
    Park(Wire),
    /// It was handed over to a backend.
    HandOver(TcpStream, Vec<u8>, Upgrade),
    /// The client is told why it is not served.
    Refuse(Wire, StatusCode),
    /// All is said. The client may still be sending (`lingers`).
    Close(Wire, bool),
    /// An answer broke off, which only a reset can tell.
    Reset(Wire),
}

/// Serves `wire` to its end, or until it is handed over: then with the bytes that nobody has taken yet.
pub(super) async fn serve(mut wire: Wire, visitor: &Arc<Visitor>) -> Option<(TcpStream, Vec<u8>, Upgrade)> {
    loop {
        // Boxed, so that a parked connection does not pay for it.
        match Box::pin(stretch(wire, visitor)).await {
            Next::Park(parked) => {
                if !wait(&parked, visitor).await {
                    return None;
                }
                wire = parked;
            }
            Next::HandOver(client, ahead, upgrade) => return Some((client, ahead, upgrade)),
            Next::Refuse(mut wire, status) => {
                visitor.counters.http().answered(status.as_u16(), Duration::ZERO);
                let told = wire.write_all(reply::refusal(status).as_bytes()).await;
                if told.is_ok() {
                    Box::pin(linger(wire)).await;
                }
                return None;
            }
            Next::Close(wire, lingers) => {
                if lingers {
                    Box::pin(linger(wire)).await;
                }
                return None;
            }
            Next::Reset(wire) => {
                sock::reset_on_close(wire.stream());
                return None;
            }
        }
    }
}

/// Serves requests until nothing is under way for a while, or the connection ends.
async fn stretch(wire: Wire, visitor: &Arc<Visitor>) -> Next {
    let gauge = wire.gauge();
    let mut conn = Builder::new()
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD + BESIDE_HEAD)
        .serve_connection(TokioIo::new(wire), Answers(Arc::clone(visitor)));
    let event = watch(&mut conn, &gauge, visitor).await;
    let half_told = !visitor.is_idle() && gauge.answered();
    let parts = conn.into_parts();
    let wire = parts.io.into_inner();
    let Event::Ended(how) = event else {
        return match event {
            Event::Slow => Next::Refuse(wire, StatusCode::REQUEST_TIMEOUT),
            _ => Next::Park(wire),
        };
    };
    if let Some(upgrade) = visitor.take_upgrade() {
        let (client, rest) = wire.into_parts();
        return Next::HandOver(client, [&parts.read_buf[..], &rest].concat(), upgrade);
    }
    // To hyper that is the end of the stream, or a failure, depending on where it was.
    if let Some(status) = gauge.refusal() {
        return match gauge.fault_in_body() && gauge.answered() {
            true if half_told => Next::Reset(wire),
            true => Next::Close(wire, true),
            false => Next::Refuse(wire, status),
        };
    }
    match how {
        Ok(()) => Next::Close(wire, gauge.in_message()),
        // hyper has said so itself.
        Err(error) if error.is_parse() => Next::Close(wire, true),
        Err(error) if error.is_incomplete_message() => Next::Close(wire, false),
        Err(error) => {
            tracing::debug!(peer = %visitor.peer, %error, "an HTTP connection broke");
            Next::Reset(wire)
        }
    }
}

/// Moves bytes until something ends.
async fn watch(conn: &mut Conn, gauge: &Gauge, visitor: &Visitor) -> Event {
    let head_timeout = visitor.shared.http.head_timeout;
    let mut tick = pin!(sleep(TICK));
    let mut stop = pin!(visitor.shared.until_stopping());
    let mut stopping = false;
    // The head that was under way at the last look: which request's, and since when.
    let mut head: Option<(u64, Instant)> = None;
    poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            Pin::new(&mut *conn).graceful_shutdown();
        }
        if let Poll::Ready(how) = conn.poll_without_shutdown(cx) {
            return Poll::Ready(Event::Ended(how));
        }
        while tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            tick.as_mut().reset(now + TICK);
            visitor.looks.fetch_add(1, Relaxed);
            if visitor.is_idle() && gauge.is_quiet() && !gauge.take_heard() && !stopping {
                return Poll::Ready(Event::Quiet);
            }
            let request = visitor.begun.load(Relaxed);
            head = match head {
                _ if !gauge.in_head() => None,
                Some((of, since)) if of == request => {
                    // What was answered before must have been written.
                    if now - since >= head_timeout && visitor.is_idle() {
                        return Poll::Ready(Event::Slow);
                    }
                    Some((of, since))
                }
                _ => Some((request, now)),
            };
        }
        Poll::Pending
    })
    .await
}

/// Waits for the next request of a connection on which nothing is under way. `false`: there will be none.
async fn wait(wire: &Wire, visitor: &Visitor) -> bool {
    let idle = visitor.shared.http.idle_timeout;
    tokio::select! {
        ready = timeout(idle, wire.stream().readable()) => matches!(ready, Ok(Ok(()))),
        () = visitor.shared.until_stopping() => false,
    }
}

/// Ends our side, and passes over what the client still sends for a while.
async fn linger(wire: Wire) {
    let (mut stream, _) = wire.into_parts();
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut waste = vec![0; 8 * 1024];
    let rest = async { while matches!(stream.read(&mut waste).await, Ok(1..)) {} };
    // Whoever is still sending after that is told by a reset.
    let _ = timeout(LINGER, rest).await;
}
