//! Bodies under way: what is left of one, and bytes that wait for their receiver.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use super::super::strict::{Body, Chunks, Fault, Passed, put_size};

/// What is left of a body.
#[derive(Debug)]
pub(super) enum Left {
    /// Nothing: it has ended.
    Nothing,
    /// So many bytes.
    Length(u64),
    /// Chunks. Boxed, for they are rare and large.
    Chunks(Box<Chunks>),
    /// Everything that comes.
    UntilEnd,
}

impl Left {
    /// The whole of it.
    pub(super) fn of(body: Body) -> Self {
        match body {
            Body::None | Body::Length(0) => Self::Nothing,
            Body::Length(length) => Self::Length(length),
            Body::Chunked => Self::Chunks(Box::default()),
            Body::UntilEnd => Self::UntilEnd,
        }
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Takes `bytes`, which come next, and gives what the other side gets, which is `told` to it as such a body. `out` is
    /// for what has to be put together; it is empty.
    pub(super) fn pass<'a>(
        &mut self,
        bytes: &'a [u8],
        out: &'a mut Vec<u8>,
        told: Body,
    ) -> Result<(&'a [u8], Passed), Fault> {
        let all = Passed { taken: bytes.len(), content: bytes.len(), ended: false };
        match self {
            Self::Nothing => Ok((&[], Passed { taken: 0, content: 0, ended: true })),
            Self::Length(left) => {
                let n = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= n as u64;
                let ended = *left == 0;
                if ended {
                    *self = Self::Nothing;
                }
                Ok((&bytes[..n], Passed { taken: n, content: n, ended }))
            }
            Self::Chunks(chunks) => {
                let passed = chunks.pass(bytes, out, told == Body::UntilEnd)?;
                if passed.ended {
                    *self = Self::Nothing;
                }
                Ok((out, passed))
            }
            Self::UntilEnd if told == Body::Chunked => {
                put_size(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
                Ok((out, all))
            }
            Self::UntilEnd => Ok((bytes, all)),
        }
    }
}

/// Bytes for a receiver that has not taken them yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) bytes: Vec<u8>,
    /// How many of them it has taken.
    pub(super) sent: usize,
}

impl Pending {
    /// Whether it has taken all.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Adds `bytes` behind the others.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if self.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets everything, and the room for it.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Delivers what waits. Ready when nothing does any more.
    pub(super) fn poll(&mut self, to: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.bytes[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        Poll::Ready(Ok(()))
    }

    /// Delivers `bytes` at once, as far as `to` takes them, and keeps the rest.
    pub(super) fn deliver(
        &mut self,
        bytes: &[u8],
        to: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        let mut rest = bytes;
        if self.is_empty() {
            while !rest.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => rest = &rest[n..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        if !rest.is_empty() {
            self.add(rest);
        }
        Ok(())
    }
}
