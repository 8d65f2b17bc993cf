//! The chunks of a body, read strictly and written anew: what two readers could see differently does not pass.

use super::line;
use super::{Fault, MAX_HEAD, MAX_LINES};

/// Longest line that begins a chunk. Nobody needs chunk extensions, and thousands of small chunks with long ones are
/// a way to keep a proxy busy.
pub(super) const MAX_CHUNK_LINE: usize = 256;
/// Most hex digits of a chunk's size: fifteen is more than any disk holds, and cannot overflow.
const MAX_CHUNK_DIGITS: usize = 15;
/// Trailers that would be read as part of a head, or concern one connection.
const KEPT_BACK: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "expect",
    "trailer",
    "http2-settings",
    "x-forwarded-for",
    "x-forwarded-proto",
    "authorization",
    "cookie",
];

/// What the next byte is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The line that begins a chunk.
    Line,
    /// So many bytes of a chunk are left, its CRLF included.
    Chunk(u64),
    /// A line behind the last chunk.
    Trailer,
    /// The body has ended.
    End,
}

/// Reads one body.
#[derive(Debug)]
pub(in crate::proxy::http) struct Chunks {
    place: Place,
    /// What has come of the line under way.
    line: Vec<u8>,
    /// Bytes and lines of the trailers so far.
    size: usize,
    lines: usize,
}

/// What a piece of a body came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy::http) struct Passed {
    /// Bytes of the piece that belong to the body.
    pub(in crate::proxy::http) taken: usize,
    /// Bytes of the content among them.
    pub(in crate::proxy::http) content: usize,
    /// The body has ended with it.
    pub(in crate::proxy::http) ended: bool,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { place: Place::Line, line: Vec::new(), size: 0, lines: 0 }
    }
}

impl Chunks {
    /// Takes `bytes`, which come next, and adds what passes to `out`: as chunks of the same sizes without extensions, or
    /// the `bare` content.
    pub(in crate::proxy::http) fn pass(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        bare: bool,
    ) -> Result<Passed, Fault> {
        let mut passed = Passed { taken: 0, content: 0, ended: false };
        while passed.taken < bytes.len() && self.place != Place::End {
            let rest = &bytes[passed.taken..];
            passed.taken += match self.place {
                Place::Chunk(left) => {
                    let n = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    check_end(left, &rest[..n])?;
                    let content = usize::try_from(left.saturating_sub(2)).map_or(n, |most| most.min(n));
                    out.extend_from_slice(if bare { &rest[..content] } else { &rest[..n] });
                    passed.content += content;
                    let left = left - n as u64;
                    self.place = if left == 0 { Place::Line } else { Place::Chunk(left) };
                    n
                }
                _ => self.feed_line(rest, out, bare)?,
            };
        }
        passed.ended = self.place == Place::End;
        Ok(passed)
    }

    /// Takes the rest of a line, or what there is of it.
    fn feed_line(&mut self, bytes: &[u8], out: &mut Vec<u8>, bare: bool) -> Result<usize, Fault> {
        let newline = memchr::memchr(b'\n', bytes);
        let piece = &bytes[..newline.map_or(bytes.len(), |end| end + 1)];
        self.size += piece.len();
        if self.place == Place::Line && self.size > MAX_CHUNK_LINE {
            return Err(Fault::Malformed("a chunk's first line is too long"));
        }
        if self.size > MAX_HEAD {
            return Err(Fault::TooLarge);
        }
        if newline.is_none() {
            self.line.extend_from_slice(piece);
        } else if self.line.is_empty() {
            self.end_line(piece, out, bare)?;
        } else {
            let mut whole = std::mem::take(&mut self.line);
            whole.extend_from_slice(piece);
            self.end_line(&whole, out, bare)?;
        }
        Ok(piece.len())
    }

    /// Takes a whole line with its end.
    fn end_line(&mut self, whole: &[u8], out: &mut Vec<u8>, bare: bool) -> Result<(), Fault> {
        let Some((text, _)) = line::split(whole)? else { return Ok(()) };
        if self.place == Place::Line {
            self.size = 0;
            let size = chunk_size(text)?;
            self.place = if size == 0 { Place::Trailer } else { Place::Chunk(size + 2) };
            if !bare {
                put_size(out, size);
            }
            return Ok(());
        }
        if text.is_empty() {
            self.place = Place::End;
            if !bare {
                out.extend_from_slice(b"\r\n");
            }
            return Ok(());
        }
        self.lines += 1;
        if self.lines > MAX_LINES {
            return Err(Fault::TooLarge);
        }
        let (colon, _) = line::field(text)?;
        let name = &text[..colon];
        let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
        if ["content-length", "transfer-encoding", "host"].iter().any(is) {
            return Err(Fault::Malformed("a trailer that belongs into the head"));
        }
        if !bare && !KEPT_BACK.iter().any(is) {
            out.extend_from_slice(whole);
        }
        Ok(())
    }
}

/// Writes the line that begins a chunk of `size` bytes.
pub(in crate::proxy::http) fn put_size(out: &mut Vec<u8>, size: u64) {
    let digits = (u64::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (4 * digit) & 15) as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The size that a chunk's first line says.
fn chunk_size(text: &[u8]) -> Result<u64, Fault> {
    let digits = text.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > MAX_CHUNK_DIGITS {
        return Err(Fault::Malformed("a chunk's size is no number, or too large a one"));
    }
    // An extension begins with a semicolon; blanks before it are what old senders leave.
    let behind = &text[digits..];
    let blanks = behind.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    if !matches!(behind.get(blanks), None | Some(b';')) || !line::is_text(behind) {
        return Err(Fault::Malformed("something else than an extension behind a chunk's size"));
    }
    let digit = |b: &u8| u64::from(char::from(*b).to_digit(16).unwrap_or(0));
    Ok(text[..digits].iter().fold(0, |size, b| size * 16 + digit(b)))
}

/// The last two bytes of a chunk must be its line's end.
fn check_end(left: u64, bytes: &[u8]) -> Result<(), Fault> {
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
