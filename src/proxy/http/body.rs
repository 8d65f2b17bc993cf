//! The bodies that pass through: read as the other side takes them, never as a whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::record::Record;
use super::upstream1::Http1;
use super::upstream2::Stream;
use super::visitor::Visitor;

/// A request's body.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// There is none.
    Empty,
    /// It comes from the client.
    Stream(Incoming),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// Where an answer's body comes from.
#[derive(Debug)]
enum From {
    /// From us.
    Own(Option<Bytes>),
    /// From a backend, over a connection that goes back to the pool at its end.
    Http1(Incoming, Option<Box<Http1>>),
    /// From a backend, over one stream of a connection, which counts for as long.
    Http2(Incoming, #[expect(dead_code, reason = "it is there to be dropped")] Stream),
}

/// An answer's body. While it lives its request counts as under way.
#[derive(Debug)]
pub(super) struct AnswerBody {
    from: From,
    visitor: Arc<Visitor>,
    record: Option<Record>,
}

impl AnswerBody {
    /// No body, and nothing to write down at its end.
    pub(super) fn none(visitor: Arc<Visitor>) -> Self {
        Self { from: From::Own(None), visitor, record: None }
    }

    /// A text of our own.
    pub(super) fn own(text: &'static str, visitor: Arc<Visitor>, record: Record) -> Self {
        let text = Some(Bytes::from_static(text.as_bytes())).filter(|text| !text.is_empty());
        Self { from: From::Own(text), visitor, record: Some(record) }
    }

    /// What comes over `conn`.
    pub(super) fn http1(body: Incoming, conn: Box<Http1>, visitor: Arc<Visitor>, record: Record) -> Self {
        let mut new = Self { from: From::Http1(body, Some(conn)), visitor, record: Some(record) };
        if new.is_end_stream() {
            new.settle();
        }
        new
    }

    /// What comes over a stream of an HTTP/2 connection.
    pub(super) fn http2(body: Incoming, stream: Stream, visitor: Arc<Visitor>, record: Record) -> Self {
        Self { from: From::Http2(body, stream), visitor, record: Some(record) }
    }

    /// Gives the connection back, after the body's end.
    fn settle(&mut self) {
        if let From::Http1(_, conn) = &mut self.from
            && let Some(mut conn) = conn.take()
            && conn.is_free()
            && let Some(record) = &self.record
        {
            self.visitor.pool().put(record.backend(), conn);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = match &mut this.from {
            From::Own(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            From::Http2(body, _) => ready!(Pin::new(body).poll_frame(cx)),
            From::Http1(body, conn) => {
                ready!(poll_driven(body, conn.as_deref_mut(), &this.visitor.looks, cx))
            }
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Some(record) = &mut this.record
        {
            record.sent(data.len());
        }
        let ended = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || this.is_end_stream(),
            Some(Err(_)) => false,
        };
        if ended {
            this.settle();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Own(text) => text.is_none(),
            From::Http1(body, _) | From::Http2(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            From::Http1(body, _) | From::Http2(body, _) => body.size_hint(),
        }
    }
}

/// Asks for a frame, moves bytes if there is none, and asks again.
fn poll_driven(
    body: &mut Incoming,
    conn: Option<&mut Http1>,
    looks: &AtomicU32,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    let mut nobody = Context::from_waker(Waker::noop());
    let Some(conn) = conn else { return Pin::new(body).poll_frame(cx) };
    if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(&mut nobody) {
        return Poll::Ready(frame);
    }
    // Whether it has ended or not: the body knows what that means for it.
    let ended = conn.poll(looks, cx).is_ready();
    match Pin::new(&mut *body).poll_frame(&mut nobody) {
        Poll::Pending if ended => Pin::new(body).poll_frame(cx),
        other => other,
    }
}
