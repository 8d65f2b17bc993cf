//! A head, read line by line as it comes: what stands where, and how its body is framed.

use std::ops::Range;

use super::line;
use super::{Fault, MAX_HEAD, MAX_LINES};

/// What a header is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy::http) enum Kind {
    /// It passes, unless `Connection` names it.
    Other,
    /// It passes like others; policies and our own answers look at it.
    Cookie,
    ContentType,
    /// It says whose the message is, how it is framed, or what its connection is good for. Never taken over as it is.
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Te,
    Expect,
    ForwardedFor,
    ForwardedProto,
    /// It concerns one connection and says nothing to us.
    Hop,
}

fn kind_of(name: &[u8]) -> Kind {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match name.len() {
        2 if is("te") => Kind::Te,
        4 if is("host") => Kind::Host,
        6 if is("cookie") => Kind::Cookie,
        6 if is("expect") => Kind::Expect,
        7 if is("upgrade") => Kind::Upgrade,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Hop,
        12 if is("content-type") => Kind::ContentType,
        14 if is("content-length") => Kind::ContentLength,
        14 if is("http2-settings") => Kind::Hop,
        15 if is("x-forwarded-for") => Kind::ForwardedFor,
        16 if is("proxy-connection") => Kind::Hop,
        17 if is("transfer-encoding") => Kind::TransferEncoding,
        17 if is("x-forwarded-proto") => Kind::ForwardedProto,
        _ => Kind::Other,
    }
}

/// One header: where it stands within its head.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy::http) struct Field {
    /// What it is to us.
    pub(in crate::proxy::http) kind: Kind,
    line: u32,
    colon: u32,
    value: (u32, u32),
    end: u32,
}

impl Field {
    /// The name.
    pub(in crate::proxy::http) fn name(self, head: &[u8]) -> &[u8] {
        &head[at(self.line)..at(self.colon)]
    }

    /// The value, without blanks around it.
    pub(in crate::proxy::http) fn value(self, head: &[u8]) -> &[u8] {
        &head[at(self.value.0)..at(self.value.1)]
    }

    /// The whole line with its end.
    pub(in crate::proxy::http) fn line(self) -> Range<usize> {
        at(self.line)..at(self.end)
    }
}

fn at(place: u32) -> usize {
    place as usize
}

fn place(at: usize) -> u32 {
    // A head ends long before that.
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy::http) enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// To the end of the connection; answers only.
    UntilEnd,
}

/// What a request's first line and framing say.
#[derive(Clone, Debug)]
pub(in crate::proxy::http) struct Request {
    /// Where the method stands.
    pub(in crate::proxy::http) method: Range<usize>,
    /// Where the target stands.
    pub(in crate::proxy::http) target: Range<usize>,
    /// It is of HTTP/1.0.
    pub(in crate::proxy::http) http_10: bool,
    /// Its body.
    pub(in crate::proxy::http) body: Body,
}

/// What an answer's first line and framing say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy::http) struct Answer {
    /// The status.
    pub(in crate::proxy::http) status: u16,
    /// It is of HTTP/1.0.
    pub(in crate::proxy::http) http_10: bool,
    /// Its body as its headers have it, which not every answer has.
    pub(in crate::proxy::http) body: Body,
}

/// Reads one head after another. Feed it a head from its first byte on, again with more of it until it has ended.
#[derive(Debug, Default)]
pub(in crate::proxy::http) struct HeadReader {
    /// The headers so far.
    pub(in crate::proxy::http) fields: Vec<Field>,
    /// Where the first line stands, once it is there.
    first: Option<Range<usize>>,
    /// Where the line under way begins, and how far it was looked at.
    begin: usize,
    seen: usize,
    length: Option<u64>,
    chunked: bool,
    hosts: usize,
}

impl HeadReader {
    /// Forgets what was read.
    pub(in crate::proxy::http) fn reset(&mut self) {
        self.fields.clear();
        (self.first, self.begin, self.seen) = (None, 0, 0);
        (self.length, self.chunked, self.hosts) = (None, false, 0);
    }

    /// Reads a request's head, of which `bytes` is all that has come. Gives its length once it has ended. A fault comes
    /// with the place of the line that is at fault.
    pub(in crate::proxy::http) fn request(
        &mut self,
        bytes: &[u8],
    ) -> Result<Option<(Request, usize)>, Fault> {
        let Some(length) = self.lines(bytes, true)? else { return Ok(None) };
        let first = self.first.clone().unwrap_or_default();
        let (method, target, http_10) = line::request(&bytes[first.clone()])?;
        if self.chunked && http_10 {
            return Err(Fault::Malformed("Transfer-Encoding with HTTP/1.0"));
        }
        if self.hosts > 1 || (self.hosts == 0 && !http_10) {
            return Err(Fault::Malformed("not exactly one Host"));
        }
        let begin = first.start;
        let body = self.body()?.unwrap_or(Body::None);
        let (method, target) = (begin..begin + method, begin + method + 1..begin + target);
        Ok(Some((Request { method, target, http_10, body }, length)))
    }

    /// The same for an answer's head.
    pub(in crate::proxy::http) fn answer(&mut self, bytes: &[u8]) -> Result<Option<(Answer, usize)>, Fault> {
        let Some(length) = self.lines(bytes, false)? else { return Ok(None) };
        let (status, http_10) = line::status(&bytes[self.first.clone().unwrap_or_default()])?;
        if self.chunked && http_10 {
            return Err(Fault::Malformed("Transfer-Encoding with HTTP/1.0"));
        }
        let body = self.body()?.unwrap_or(Body::UntilEnd);
        Ok(Some((Answer { status, http_10, body }, length)))
    }

    /// Where the first line stands.
    pub(in crate::proxy::http) fn first(&self) -> Range<usize> {
        self.first.clone().unwrap_or_default()
    }

    fn body(&self) -> Result<Option<Body>, Fault> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Fault::Malformed("Transfer-Encoding beside Content-Length")),
            (true, None) => Ok(Some(Body::Chunked)),
            (false, length) => Ok(length.map(Body::Length)),
        }
    }

    /// Reads the lines that have ended. Gives the length of the head once the empty line has come.
    fn lines(&mut self, bytes: &[u8], request: bool) -> Result<Option<usize>, Fault> {
        // A line that comes in many pieces is not looked at from its beginning each time.
        if self.seen > self.begin && memchr::memchr(b'\n', &bytes[self.seen..]).is_none() {
            self.seen = bytes.len();
            return if bytes.len() > MAX_HEAD { Err(Fault::TooLarge) } else { Ok(None) };
        }
        while let Some((text, taken)) = line::split(&bytes[self.begin..])? {
            let begin = self.begin;
            self.begin += taken;
            if self.begin > MAX_HEAD {
                return Err(Fault::TooLarge);
            }
            if self.first.is_none() {
                if text.is_empty() && begin == 0 && request {
                    // RFC 9112, section 2.2: one empty line before a request may be.
                    continue;
                }
                let range = begin..begin + text.len();
                // Judged at once: what begins wrongly may never end.
                if request { line::request(text).map(drop) } else { line::status(text).map(drop) }?;
                self.first = Some(range);
            } else if text.is_empty() {
                return Ok(Some(self.begin));
            } else {
                self.field(bytes, begin, text)?;
            }
        }
        self.seen = bytes.len();
        if bytes.len() > MAX_HEAD { Err(Fault::TooLarge) } else { Ok(None) }
    }

    fn field(&mut self, bytes: &[u8], begin: usize, text: &[u8]) -> Result<(), Fault> {
        let (colon, value) = line::field(text)?;
        let kind = kind_of(&text[..colon]);
        match kind {
            Kind::ContentLength if self.length.is_some() => {
                return Err(Fault::Malformed("more than one Content-Length"));
            }
            Kind::ContentLength => self.length = Some(line::content_length(&text[value.clone()])?),
            Kind::TransferEncoding => {
                if self.chunked || !text[value.clone()].eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Malformed("a Transfer-Encoding other than chunked"));
                }
                self.chunked = true;
            }
            Kind::Host => self.hosts += 1,
            _ => {}
        }
        if self.fields.len() == MAX_LINES {
            return Err(Fault::TooLarge);
        }
        debug_assert!(begin + text.len() <= bytes.len(), "a line is part of what was read");
        let value = (place(begin + value.start), place(begin + value.end));
        let (line, colon, end) = (place(begin), place(begin + colon), place(self.begin));
        self.fields.push(Field { kind, line, colon, value, end });
        Ok(())
    }
}
