//! Passing on: a request's bytes to the backend, its answer's head and body to the client.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::strict::{Answer, Body, Fault, HeadReader, Passed};
use super::super::vital;
use super::ask::Ask;
use super::compose::{self, Fate, Manner, Wishes};
use super::desk::{self, Desk};
use super::exchange::Failed;
use super::flow::Left;
use super::{Backend, Conn, Next};
use crate::net::sock;

/// Informational answers before the real one. Nobody sends more than one or two.
const MOST_INTERIM: usize = 16;
/// What a client that waits for it is told before it sends a body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// An answer whose head was passed on.
pub(super) struct Passing {
    pub(super) status: u16,
    /// What has still to come of the body, and how it is framed for the client.
    left: Left,
    told: Body,
    /// The backend's connection is good for another request after it.
    reusable: bool,
    /// So is the client's.
    keeps: bool,
    /// Both speak something else from here on, which may have begun with these bytes.
    tunnel: Option<Vec<u8>>,
    /// The client has gone.
    gone: bool,
}

/// How a request's way to the backend stands.
pub(super) enum Up {
    /// All of it was delivered.
    Done,
    /// The client's part is at fault.
    ByClient,
    /// The backend takes no more.
    Broken,
}

/// How an answer's way to the client ended.
enum Down {
    Done,
    /// The client has gone.
    Gone,
    /// It broke off.
    Broken,
}

/// An answer's head under way.
#[derive(Default)]
pub(super) struct Coming {
    bytes: Vec<u8>,
    reader: Option<HeadReader>,
    pub(super) heard: bool,
    interim: usize,
}

impl Coming {
    /// What it means that the connection has ended here.
    pub(super) fn broken_off(&self, backend: &Backend) -> Failed {
        Failed::Broken { stale: backend.used && !self.heard, heard: self.heard }
    }
}

/// Reads what has come into the desk's room, and has it worked on. `None` of the work: more is needed.
fn poll_read<T>(
    desk: &mut Desk,
    from: &mut TcpStream,
    cx: &mut Context<'_>,
    mut work: impl FnMut(&mut Desk, &mut Context<'_>, Result<&[u8], ()>) -> Option<T>,
) -> Poll<T> {
    loop {
        let mut room = std::mem::take(&mut desk.read);
        let mut buffer = ReadBuf::new(&mut room);
        let came = match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
            Poll::Pending => Some(Poll::Pending),
            Poll::Ready(Ok(())) => work(desk, cx, Ok(buffer.filled())).map(Poll::Ready),
            Poll::Ready(Err(_)) => work(desk, cx, Err(())).map(Poll::Ready),
        };
        desk.read = room;
        if let Some(came) = came {
            return came;
        }
    }
}

impl Conn<'_> {
    pub(super) fn count_out(&self, bytes: usize) {
        self.visitor.counters.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// Passes the request on, as far as its client sends it and its receiver takes it.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>, ask: &mut Ask, to: &mut Backend) -> Poll<Up> {
        loop {
            if !ask.to.is_empty() {
                let before = ask.to.sent;
                let done = ask.to.poll(&mut to.stream, cx);
                ask.unsent &= ask.to.sent == before;
                if ready!(done).is_err() {
                    return Poll::Ready(Up::Broken);
                }
            }
            if ask.left.is_over() {
                return Poll::Ready(Up::Done);
            }
            if std::mem::take(&mut ask.expects) {
                self.count_out(CONTINUE.len());
                if self.back.deliver(CONTINUE, &mut self.client, cx).is_err() {
                    return Poll::Ready(Up::ByClient);
                }
            }
            let Self { client, ahead, fresh, visitor, .. } = self;
            let moved = desk::with(|desk| {
                poll_read(desk, client, cx, |desk, cx, bytes| {
                    let Ok(bytes @ [_, ..]) = bytes else { return Some(Err(Up::ByClient)) };
                    visitor.counters.bytes_in.fetch_add(bytes.len() as u64, Relaxed);
                    desk.out.clear();
                    let Ok((pass, passed)) = ask.left.pass(bytes, &mut desk.out, ask.body) else {
                        return Some(Err(Up::ByClient));
                    };
                    if passed.taken < bytes.len() {
                        ahead.extend_from_slice(&bytes[passed.taken..]);
                        *fresh = true;
                    }
                    Some(ask.to.deliver(pass, &mut to.stream, cx).map_err(|_| Up::Broken))
                })
            });
            if let Err(end) = ready!(moved) {
                return Poll::Ready(end);
            }
        }
    }

    /// Waits for the answer's head, and passes it on.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        ask: &mut Ask,
        from: &mut Backend,
        coming: &mut Coming,
    ) -> Poll<Result<Passing, Failed>> {
        let used = from.used;
        desk::with(|desk| {
            poll_read(desk, &mut from.stream, cx, |desk, cx, bytes| match bytes {
                Ok(bytes @ [_, ..]) => {
                    coming.heard = true;
                    if coming.bytes.is_empty() {
                        return self.look_at(desk, cx, ask, coming, bytes);
                    }
                    let mut all = std::mem::take(&mut coming.bytes);
                    all.extend_from_slice(bytes);
                    self.look_at(desk, cx, ask, coming, &all)
                }
                _ => Some(Err(Failed::Broken { stale: used && !coming.heard, heard: coming.heard })),
            })
        })
    }

    /// Looks whether `bytes` begin with a whole head, behind informational ones.
    fn look_at(
        &mut self,
        desk: &mut Desk,
        cx: &mut Context<'_>,
        ask: &mut Ask,
        coming: &mut Coming,
        bytes: &[u8],
    ) -> Option<Result<Passing, Failed>> {
        let mut bytes = bytes;
        loop {
            let mut reader = coming.reader.take().unwrap_or_else(|| desk.reader());
            let (answer, length) = match reader.answer(bytes) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    coming.reader = Some(reader);
                    coming.bytes.extend_from_slice(bytes);
                    return None;
                }
                Err(fault) => return Some(Err(no_answer(fault))),
            };
            if answer.status >= 200 || answer.status == 101 {
                let (head, rest) = bytes.split_at(length);
                let passing = self.begin(desk, cx, ask, (answer, &reader, head), rest);
                desk.put_reader(reader);
                return Some(passing);
            }
            desk.put_reader(reader);
            coming.interim += 1;
            if coming.interim > MOST_INTERIM {
                return Some(Err(Failed::NoAnswer("too many informational answers")));
            }
            bytes = &bytes[length..];
            if bytes.is_empty() {
                return None;
            }
        }
    }

    /// Passes a head on, with what has come of the body.
    fn begin(
        &mut self,
        desk: &mut Desk,
        cx: &mut Context<'_>,
        ask: &mut Ask,
        (answer, reader, head): (Answer, &HeadReader, &[u8]),
        rest: &[u8],
    ) -> Result<Passing, Failed> {
        let status = answer.status;
        let upgraded = status == 101;
        if upgraded && !(ask.upgrade && ask.left.is_over()) {
            return Err(Failed::NoAnswer("an upgrade that nobody asked for"));
        }
        let tunnel = upgraded || ask.connect && (200..300).contains(&status);
        let wishes = Wishes::of(head, &reader.fields);
        let (body, told) = if tunnel {
            (Body::None, Body::None)
        } else {
            (compose::body_of(answer, ask.head), compose::told_as(answer, ask.head, ask.old))
        };
        let keeps = ask.keeps && told != Body::UntilEnd && !self.is_stopping();
        let fate = match () {
            () if upgraded => Fate::Upgraded,
            () if tunnel => Fate::Kept,
            () => ask.fate(keeps),
        };
        let mut left = Left::of(body);
        let mut chunks = desk.buffer();
        let (first, passed) = if left.is_over() || rest.is_empty() {
            (&[][..], Passed::default())
        } else {
            left.pass(rest, &mut chunks, told).map_err(no_answer)?
        };
        if let Ok(status) = StatusCode::from_u16(status) {
            ask.record.answered(status);
        }
        ask.record.sent(passed.content);
        desk.out.clear();
        let cookie = ask.cookie.as_ref().map(http::HeaderValue::as_bytes);
        compose::answer(&mut desk.out, head, (reader, wishes), Manner { body: told, fate }, cookie);
        desk.out.extend_from_slice(first);
        desk.put_buffer(chunks);
        self.count_out(desk.out.len());
        if told == Body::UntilEnd {
            // Whoever takes the end of the stream for the end of the answer must not take a death of this process for it.
            sock::reset_on_close(&self.client);
        }
        let gone = self.back.deliver(&desk.out, &mut self.client, cx).is_err();
        let behind = &rest[passed.taken..];
        Ok(Passing {
            status,
            left,
            told,
            reusable: wishes.keeps(answer.http_10) && (tunnel || behind.is_empty()),
            keeps,
            tunnel: tunnel.then(|| behind.to_vec()),
            gone,
        })
    }

    /// Passes the rest of an answer on, and of the request.
    pub(super) async fn pass_back(
        &mut self,
        ask: &mut Ask,
        mut passing: Passing,
        mut backend: Backend,
    ) -> Next {
        if passing.gone {
            return Next::Close { lingers: false };
        }
        let mut broken = false;
        let is_sent = |ask: &Ask| ask.left.is_over() && ask.to.is_empty();
        let end = if passing.left.is_over() && self.back.is_empty() {
            Down::Done
        } else {
            poll_fn(|cx| {
                loop {
                    if !broken && !is_sent(ask) {
                        match self.poll_up(cx, ask, &mut backend) {
                            Poll::Ready(Up::ByClient) => return Poll::Ready(Down::Broken),
                            Poll::Ready(Up::Broken) => broken = true,
                            Poll::Ready(Up::Done) | Poll::Pending => {}
                        }
                    }
                    if let Poll::Ready(end) = self.poll_down(cx, ask, &mut passing, &mut backend) {
                        return Poll::Ready(end);
                    }
                    if !passing.left.is_over() {
                        backend.acknowledge();
                    }
                    ready!(self.poll_tick(cx));
                    if !passing.left.is_over() && vital::is_lost(&backend.stream) {
                        return Poll::Ready(Down::Broken);
                    }
                }
            })
            .await
        };
        let sent = is_sent(ask);
        desk::put(std::mem::take(&mut ask.to.bytes));
        match end {
            Down::Broken => Next::Reset,
            Down::Gone => Next::Close { lingers: false },
            Down::Done => {
                if passing.told == Body::UntilEnd {
                    sock::end_on_close(&self.client);
                }
                if let Some(ahead) = passing.tunnel {
                    return Next::HandOver(backend.stream, ahead);
                }
                self.rests_since = Instant::now();
                if passing.reusable && sent {
                    self.visitor.pool().put(ask.record.backend(), backend.rests(self.rests_since));
                }
                if passing.keeps && sent { Next::Again } else { Next::Close { lingers: !sent } }
            }
        }
    }

    /// Passes the rest of an answer's body on, as far as it has come and the client takes it.
    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        ask: &mut Ask,
        passing: &mut Passing,
        from: &mut Backend,
    ) -> Poll<Down> {
        loop {
            if ready!(self.back.poll(&mut self.client, cx)).is_err() {
                return Poll::Ready(Down::Gone);
            }
            if passing.left.is_over() {
                return Poll::Ready(Down::Done);
            }
            let Self { client, back, visitor, .. } = self;
            let moved = desk::with(|desk| {
                poll_read(desk, &mut from.stream, cx, |desk, cx, bytes| {
                    let Ok(bytes) = bytes else { return Some(Err(Down::Broken)) };
                    desk.out.clear();
                    let pass = if bytes.is_empty() {
                        if !matches!(passing.left, Left::UntilEnd) {
                            return Some(Err(Down::Broken));
                        }
                        (passing.left, passing.reusable) = (Left::Nothing, false);
                        if passing.told == Body::Chunked { &b"0\r\n\r\n"[..] } else { b"" }
                    } else {
                        let Ok((pass, passed)) = passing.left.pass(bytes, &mut desk.out, passing.told) else {
                            return Some(Err(Down::Broken));
                        };
                        ask.record.sent(passed.content);
                        passing.reusable &= passed.taken == bytes.len();
                        pass
                    };
                    visitor.counters.bytes_out.fetch_add(pass.len() as u64, Relaxed);
                    Some(back.deliver(pass, client, cx).map_err(|_| Down::Gone))
                })
            });
            if let Err(end) = ready!(moved) {
                return Poll::Ready(end);
            }
        }
    }
}

fn no_answer(fault: Fault) -> Failed {
    Failed::NoAnswer(match fault {
        Fault::Malformed(why) => why,
        Fault::TooLarge => "a head that is too large",
    })
}
