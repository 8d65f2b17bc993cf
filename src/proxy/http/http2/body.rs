//! The bodies that pass through: read as the other side takes them, never as a whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::super::record::Record;
use super::upstream::Stream;

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
    /// From a backend, over one stream of a connection, which counts for as long.
    Http2(Incoming, #[expect(dead_code, reason = "it is there to be dropped")] Stream),
}

/// An answer's body. While it lives its request counts as under way.
#[derive(Debug)]
pub(in crate::proxy::http) struct AnswerBody {
    from: From,
    record: Record,
}

impl AnswerBody {
    /// A text of our own.
    pub(in crate::proxy::http) fn own(text: &'static str, record: Record) -> Self {
        let text = Some(Bytes::from_static(text.as_bytes())).filter(|text| !text.is_empty());
        Self { from: From::Own(text), record }
    }

    /// What comes over a stream of an HTTP/2 connection.
    pub(super) fn http2(body: Incoming, stream: Stream, record: Record) -> Self {
        Self { from: From::Http2(body, stream), record }
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
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.record.sent(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Own(text) => text.is_none(),
            From::Http2(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            From::Http2(body, _) => body.size_hint(),
        }
    }
}
