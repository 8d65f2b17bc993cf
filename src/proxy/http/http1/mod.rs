//! An HTTP/1 connection of a client, from its first request to its end.
//!
//! One task reads a request's head (`strict`), writes it anew for a backend (`compose`, `ask`), passes its body and the
//! answer on (`exchange`, `pass`, `flow`) over a connection of the pool (`backend`), and waits for the next request without any
//! buffer: bytes are read into the thread's `desk`, and only what a receiver would not take is kept. What does not
//! belong here: which backend, and the dial (`choice`); HTTP/2 (`http2`).

mod ask;
mod backend;
mod compose;
mod desk;
mod exchange;
mod flow;
mod pass;

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::net::sock;

use super::reply;
use super::strict::{Fault, HeadReader};
use super::visitor::{Upgrade, Visitor};
use ask::Ask;
pub(super) use backend::Backend;
use desk::Desk;
use flow::Pending;

/// Time between two looks at a connection on which something is under way.
const TICK: Duration = Duration::from_secs(2);
/// How long a client is listened to after it was told why it is not served, so that it can read that: bytes that
/// arrive at a closed socket make the kernel take the answer back.
const LINGER: Duration = Duration::from_secs(2);

/// What is left to do with a connection after an exchange.
enum Next {
    /// Wait for its next request.
    Again,
    /// It was handed over to a backend, of which these bytes came behind its answer.
    HandOver(TcpStream, Vec<u8>),
    /// All is said. The client may still be sending (`lingers`).
    Close { lingers: bool },
    /// An answer broke off, which only a reset can tell.
    Reset,
}

/// What came of waiting for a request.
enum Came {
    /// One, which stands in its place now.
    Request,
    /// One that is not served, and why.
    Refused(StatusCode),
    /// Nothing, and nothing will.
    Nothing,
}

/// A client's connection.
struct Conn<'a> {
    client: TcpStream,
    /// Bytes that were read and belong to no message yet.
    ahead: Vec<u8>,
    /// Nobody has looked at those.
    fresh: bool,
    /// The head under way, where one has begun.
    reader: Option<HeadReader>,
    /// What waits for the client to take it.
    back: Pending,
    /// One timer for everything; see [`TICK`]. While it waits for a request it stands where patience ends.
    clock: Pin<&'a mut Sleep>,
    /// Since when it has waited for its next request.
    rests_since: Instant,
    visitor: &'a Arc<Visitor>,
}

/// Serves `client` to its end, or until it is handed over: then with the bytes that nobody has taken yet.
pub(super) async fn serve(
    client: TcpStream,
    ahead: Vec<u8>,
    visitor: &Arc<Visitor>,
) -> Option<(TcpStream, Vec<u8>, Upgrade)> {
    let clock = pin!(sleep(TICK));
    visitor.counters.bytes_in.fetch_add(ahead.len() as u64, Relaxed);
    let mut conn = Conn {
        client,
        fresh: !ahead.is_empty(),
        ahead,
        reader: None,
        back: Pending::default(),
        clock,
        rests_since: Instant::now(),
        visitor,
    };
    // The request under way. It is large, and made, answered and dropped where it stands.
    let mut asked = None;
    // Registered once, to be woken by it; what it says is read from the flag, which costs no lock.
    let mut stop = pin!(visitor.shared.stop.notified());
    stop.as_mut().enable();
    poll_fn(|cx| {
        let _ = stop.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
    loop {
        let next = match (conn.request(&mut asked).await, &mut asked) {
            (Came::Request, Some(ask)) => conn.exchange(ask).await,
            (Came::Refused(status), _) => conn.refuse(status).await,
            (Came::Request | Came::Nothing, _) => Next::Close { lingers: false },
        };
        if !matches!(next, Next::HandOver(..)) {
            asked = None;
        }
        match next {
            Next::Again => {}
            Next::HandOver(backend, ahead) => {
                let upgrade = Upgrade { backend, ahead, record: asked?.record };
                return Some((conn.client, conn.ahead, upgrade));
            }
            Next::Close { lingers } => {
                if lingers || !conn.ahead.is_empty() {
                    Box::pin(linger(conn.client)).await;
                }
                return None;
            }
            Next::Reset => {
                sock::reset_on_close(&conn.client);
                return None;
            }
        }
    }
}

impl Conn<'_> {
    fn is_stopping(&self) -> bool {
        self.visitor.shared.stopping.load(Acquire)
    }

    /// Waits for the next request.
    async fn request(&mut self, asked: &mut Option<Ask>) -> Came {
        let begin = self.rests_since;
        let mut head_since = None;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(came) = self.poll_head(cx, asked) {
                    return Poll::Ready(came);
                }
                let (patience, since, refusal) = if self.ahead.is_empty() {
                    if self.is_stopping() {
                        return Poll::Ready(Came::Nothing);
                    }
                    (self.visitor.shared.http.idle_timeout, begin, Came::Nothing)
                } else {
                    let since = *head_since.get_or_insert_with(Instant::now);
                    let refusal = Came::Refused(StatusCode::REQUEST_TIMEOUT);
                    (self.visitor.shared.http.head_timeout, since, refusal)
                };
                let end = since + patience;
                // A connection in use moves its timer now and then, not with each request.
                if self.clock.deadline() > end {
                    self.clock.as_mut().reset(end);
                }
                ready!(self.clock.as_mut().poll(cx));
                if Instant::now() >= end {
                    return Poll::Ready(refusal);
                }
                self.clock.as_mut().reset(end);
            }
        })
        .await
    }

    /// Reads what has come of the next head.
    fn poll_head(&mut self, cx: &mut Context<'_>, asked: &mut Option<Ask>) -> Poll<Came> {
        desk::with(|desk| {
            if std::mem::take(&mut self.fresh) {
                let bytes = std::mem::take(&mut self.ahead);
                if let Some(came) = self.look(desk, &bytes, asked) {
                    return Poll::Ready(came);
                }
                self.ahead = bytes;
            }
            loop {
                let mut read = std::mem::take(&mut desk.read);
                let mut buffer = ReadBuf::new(&mut read);
                let got = Pin::new(&mut self.client).poll_read(cx, &mut buffer);
                let n = buffer.filled().len();
                let came = match got {
                    Poll::Pending => Some(Poll::Pending),
                    Poll::Ready(Err(_)) => Some(Poll::Ready(Came::Nothing)),
                    Poll::Ready(Ok(())) if n == 0 => Some(Poll::Ready(Came::Nothing)),
                    Poll::Ready(Ok(())) => {
                        self.visitor.counters.bytes_in.fetch_add(n as u64, Relaxed);
                        self.take(desk, &read[..n], asked).map(Poll::Ready)
                    }
                };
                desk.read = read;
                if let Some(came) = came {
                    return came;
                }
            }
        })
    }

    /// Takes bytes that have just come.
    fn take(&mut self, desk: &mut Desk, bytes: &[u8], asked: &mut Option<Ask>) -> Option<Came> {
        if self.ahead.is_empty() {
            let came = self.look(desk, bytes, asked);
            if came.is_none() {
                self.ahead.extend_from_slice(bytes);
            }
            return came;
        }
        let mut all = std::mem::take(&mut self.ahead);
        all.extend_from_slice(bytes);
        let came = self.look(desk, &all, asked);
        if came.is_none() {
            self.ahead = all;
        }
        came
    }

    /// Looks whether `bytes` begin with a whole head. What stands behind it and its body is kept.
    fn look(&mut self, desk: &mut Desk, bytes: &[u8], asked: &mut Option<Ask>) -> Option<Came> {
        let mut reader = self.reader.take().unwrap_or_else(|| desk.reader());
        let made = match reader.request(bytes) {
            Ok(None) => {
                self.reader = Some(reader);
                return None;
            }
            Ok(Some((request, length))) => {
                let (head, rest) = bytes.split_at(length);
                Ask::begin(asked, desk, self.visitor, head, (&request, &reader.fields), rest)
                    .map(|taken| &rest[taken..])
            }
            Err(fault) => Err(fault),
        };
        desk.put_reader(reader);
        Some(match made {
            Ok(rest) => {
                self.ahead.extend_from_slice(rest);
                self.fresh = !rest.is_empty();
                Came::Request
            }
            Err(fault) => {
                // Whatever else comes is not looked at.
                self.ahead.clear();
                Came::Refused(status_of(fault))
            }
        })
    }

    /// Tells the client why it is not served.
    async fn refuse(&mut self, status: StatusCode) -> Next {
        self.visitor.counters.http().answered(status.as_u16(), Duration::ZERO);
        let text = reply::refusal(status);
        self.visitor.counters.bytes_out.fetch_add(text.len() as u64, Relaxed);
        match self.client.write_all(text.as_bytes()).await {
            Ok(()) => Next::Close { lingers: true },
            Err(_) => Next::Close { lingers: false },
        }
    }
}

/// What a client is told about its fault.
fn status_of(fault: Fault) -> StatusCode {
    match fault {
        Fault::Malformed(why) => {
            tracing::debug!(why, "a request was refused");
            StatusCode::BAD_REQUEST
        }
        Fault::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
}

/// Ends our side, and passes over what the client still sends for a while.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut waste = vec![0; 8 * 1024];
    let rest = async { while matches!(stream.read(&mut waste).await, Ok(1..)) {} };
    // Whoever is still sending after that is told by a reset.
    let _ = timeout(LINGER, rest).await;
}
