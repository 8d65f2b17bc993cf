//! Where each HTTP/1 request of a connection begins and ends, told as strictly as RFC 9112 can be read. Pure.
//!
//! hyper reads requests, and is lenient where that is harmless for a server: it takes a bare LF for a line's end, lets
//! `Transfer-Encoding` win over `Content-Length`, and drops repeated lengths, all before we see a header. What one
//! reader passes over another one may go by, and a request that two readers see differently is how requests are
//! smuggled. So every byte goes through here on its way to hyper, and the first doubtful one ends the connection.

/// Most bytes of a request's head, and of a body's trailers.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Longest line that begins a chunk. Nobody needs chunk extensions, and thousands of small chunks with long ones are
/// a way to keep a proxy busy.
const MAX_CHUNK_LINE: usize = 256;
/// Most hex digits of a chunk's size: fifteen is more than any disk holds, and cannot overflow.
const MAX_CHUNK_DIGITS: usize = 15;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not what RFC 9112 allows, or two readers may read it differently.
    Malformed(&'static str),
    /// Its head is larger than [`MAX_HEAD`].
    TooLarge,
}

/// What the next byte is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A line of a head; the first one if nothing of it has come yet.
    Head,
    /// So many bytes of a body are left.
    Length(u64),
    /// The line that begins a chunk.
    ChunkLine,
    /// So many bytes of a chunk are left, its CRLF included.
    Chunk(u64),
    /// A line behind the last chunk.
    Trailer,
}

/// The reader. Feed it everything that the client sends.
#[derive(Debug)]
pub(super) struct Strict {
    place: Place,
    /// The line under way.
    line: Vec<u8>,
    /// Bytes of the head, or of the trailers, so far.
    size: usize,
    /// Lines of the head so far.
    lines: usize,
    http_10: bool,
    length: Option<u64>,
    chunked: bool,
    hosts: usize,
}

impl Default for Strict {
    fn default() -> Self {
        Self {
            place: Place::Head,
            line: Vec::new(),
            size: 0,
            lines: 0,
            http_10: false,
            length: None,
            chunked: false,
            hosts: 0,
        }
    }
}

impl Strict {
    /// True if a request's head has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        self.place == Place::Head && self.size > 0
    }

    /// True within a request's body.
    pub(super) fn in_body(&self) -> bool {
        self.place != Place::Head
    }

    /// True between two requests.
    pub(super) fn between(&self) -> bool {
        self.place == Place::Head && self.size == 0
    }

    /// Takes `bytes`, which come next. A fault comes with how many of them stand before the line that is at fault.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), (usize, Fault)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let taken = match self.place {
                Place::Length(left) => {
                    let n = left.min(rest.len() as u64);
                    self.place = if n == left { Place::Head } else { Place::Length(left - n) };
                    n
                }
                Place::Chunk(left) => {
                    let n = left.min(rest.len() as u64);
                    Self::check_chunk_end(left, &rest[..to_usize(n)]).map_err(|fault| (at, fault))?;
                    self.place = if n == left { Place::ChunkLine } else { Place::Chunk(left - n) };
                    n
                }
                Place::Head | Place::ChunkLine | Place::Trailer => {
                    self.feed_line(rest).map_err(|fault| (at, fault))? as u64
                }
            };
            at += to_usize(taken);
        }
        Ok(())
    }

    /// Takes the rest of a line, or what there is of it.
    fn feed_line(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let newline = bytes.iter().position(|b| *b == b'\n');
        let piece = &bytes[..newline.map_or(bytes.len(), |end| end + 1)];
        let most = if self.place == Place::ChunkLine { MAX_CHUNK_LINE } else { MAX_HEAD };
        self.size += piece.len();
        if self.size > most {
            return Err(match self.place {
                Place::ChunkLine => Fault::Malformed("a chunk's first line is too long"),
                _ => Fault::TooLarge,
            });
        }
        if newline.is_none() {
            self.line.extend_from_slice(piece);
        } else if self.line.is_empty() {
            self.end_line(piece)?;
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(piece);
            self.end_line(&line)?;
        }
        Ok(piece.len())
    }

    /// Takes a whole line with its end.
    fn end_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(Fault::Malformed("a line ends with LF alone"));
        };
        if line.iter().any(|b| matches!(b, b'\r' | 0)) {
            return Err(Fault::Malformed("CR or NUL within a line"));
        }
        match self.place {
            Place::ChunkLine => self.chunk_line(line),
            Place::Trailer => self.trailer_line(line),
            _ => self.head_line(line),
        }
    }

    fn head_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.lines += 1;
        if self.lines == 1 {
            if line.is_empty() {
                // One empty line before a request may be; it counts as nothing.
                self.lines = 0;
                return if self.size > 2 {
                    Err(Fault::Malformed("empty lines before a request"))
                } else {
                    Ok(())
                };
            }
            self.http_10 = line.ends_with(b" HTTP/1.0");
            return request_line(line);
        }
        if line.is_empty() {
            return self.end_head();
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Fault::Malformed("more than one Content-Length"));
            }
            self.length = Some(content_length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Malformed("a Transfer-Encoding other than chunked"));
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Fault> {
        if self.chunked && (self.length.is_some() || self.http_10) {
            return Err(Fault::Malformed("Transfer-Encoding beside Content-Length, or with HTTP/1.0"));
        }
        if self.hosts > 1 || (self.hosts == 0 && !self.http_10) {
            return Err(Fault::Malformed("not exactly one Host"));
        }
        let place = match (self.chunked, self.length) {
            (true, _) => Place::ChunkLine,
            (false, None | Some(0)) => Place::Head,
            (false, Some(length)) => Place::Length(length),
        };
        *self = Self { place, line: std::mem::take(&mut self.line), ..Self::default() };
        Ok(())
    }

    fn chunk_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.size = 0;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let behind = &line[digits..];
        if digits == 0 || digits > MAX_CHUNK_DIGITS {
            return Err(Fault::Malformed("a chunk's size is no number, or too large a one"));
        }
        // An extension begins with a semicolon; blanks before it are what old senders leave.
        let blanks = behind.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        if !matches!(behind.get(blanks), None | Some(b';')) {
            return Err(Fault::Malformed("something else than an extension behind a chunk's size"));
        }
        let size = line[..digits]
            .iter()
            .fold(0, |size, b| size * 16 + u64::from(char::from(*b).to_digit(16).unwrap_or(0)));
        self.place = if size == 0 { Place::Trailer } else { Place::Chunk(size + 2) };
        Ok(())
    }

    /// The last two bytes of a chunk must be its line's end.
    fn check_chunk_end(left: u64, bytes: &[u8]) -> Result<(), Fault> {
        let n = bytes.len() as u64;
        let tail = bytes.iter().rev().zip(0..).take(2);
        for (byte, from_end) in tail {
            // How many bytes of the chunk stand behind this one.
            let wanted = match left - n + from_end {
                0 => b'\n',
                1 => b'\r',
                _ => continue,
            };
            if *byte != wanted {
                return Err(Fault::Malformed("a chunk is longer than it says"));
            }
        }
        Ok(())
    }

    fn trailer_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        if line.is_empty() {
            *self = Self { line: std::mem::take(&mut self.line), ..Self::default() };
            return Ok(());
        }
        let (name, _) = field(line)?;
        let framing: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"host"];
        if framing.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Err(Fault::Malformed("a trailer that belongs into the head"));
        }
        Ok(())
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// `method SP target SP version`, with nothing else between or around.
fn request_line(line: &[u8]) -> Result<(), Fault> {
    let mut words = line.split(|b| *b == b' ');
    let shape = (words.next(), words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = shape else {
        return Err(Fault::Malformed("a request line is not method, target and version"));
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(Fault::Malformed("a method is no token"));
    }
    if target.is_empty() || target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(Fault::Malformed("a request target with a control character"));
    }
    if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
        return Err(Fault::Malformed("a version other than HTTP/1.1 and HTTP/1.0"));
    }
    Ok(())
}

/// A field's name and value.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Fault::Malformed("a header is folded"));
    }
    let Some(colon) = line.iter().position(|b| *b == b':') else {
        return Err(Fault::Malformed("a header without a colon"));
    };
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Fault::Malformed("a header's name is no token"));
    }
    if value.iter().any(|b| *b < b' ' && *b != b'\t' || *b == 0x7f) {
        return Err(Fault::Malformed("a control character in a header"));
    }
    Ok((name, value))
}

/// RFC 9110: digits, nothing else. Not a list of equal numbers either, which it allows and nobody sends in earnest.
fn content_length(value: &[u8]) -> Result<u64, Fault> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    number.ok_or(Fault::Malformed("a Content-Length that is no number"))
}

/// RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Reads what a client may send, for tests with hostile ones: however it is cut, it is judged alike, and what is kept of
/// it is bounded.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(bytes: &[u8]) {
    let mut whole = Strict::default();
    let judged = whole.feed(bytes);
    for step in [1, 7] {
        let mut cut = Strict::default();
        let mut at = 0;
        let piecemeal = bytes.chunks(step).try_for_each(|piece| {
            let fed = cut.feed(piece).map_err(|(before, fault)| (at + before, fault));
            at += piece.len();
            assert!(cut.line.len() <= MAX_HEAD);
            fed
        });
        match (&judged, &piecemeal) {
            (Ok(()), Ok(())) => assert_eq!(format!("{whole:?}"), format!("{cut:?}")),
            // Where the line at fault came in pieces, the place is that of its last piece.
            (Err((line, fault)), Err((piece, other))) => assert!(fault == other && line <= piece),
            _ => panic!("{judged:?} in one piece, and {piecemeal:?} in pieces of {step}"),
        }
    }
}

#[cfg(test)]
mod tests;
