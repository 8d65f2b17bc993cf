//! HTTP/1 heads and chunks, read as strictly as RFC 9112 can be read. Pure.
//!
//! What one reader passes over another one may go by, and a message that two readers see differently is how requests
//! are smuggled and answers are split. So each byte of a head and of the framing of a body is looked at once, here,
//! for clients and backends alike, and the first doubtful one ends the connection: two lengths, a length beside a
//! coding, a line that ends with LF alone, folded lines, blanks before a colon, chunks that are longer than they say.

mod chunks;
mod head;
mod line;

pub(super) use chunks::{Chunks, Passed, put_size};
pub(super) use head::{Answer, Body, Field, HeadReader, Kind, Request};

/// Most bytes of a head, and of a body's trailers.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most lines of a head beside its first, and of a body's trailers.
const MAX_LINES: usize = 100;

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not what RFC 9112 allows, or two readers may read it differently.
    Malformed(&'static str),
    /// Its head has more than [`MAX_HEAD`] bytes or [`MAX_LINES`] lines.
    TooLarge,
}

/// Reads what a client or a backend may send, for tests with hostile ones: however it is cut, it is judged alike.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(bytes: &[u8]) {
    type Read = fn(&mut HeadReader, &[u8]) -> Result<Option<(Body, usize)>, Fault>;
    let request: Read = |reader, bytes| Ok(reader.request(bytes)?.map(|(request, end)| (request.body, end)));
    let answer: Read = |reader, bytes| Ok(reader.answer(bytes)?.map(|(answer, end)| (answer.body, end)));
    for read in [request, answer] {
        let whole = read(&mut HeadReader::default(), bytes).map_err(drop);
        for step in [1, 7] {
            let (mut reader, mut end, mut cut) = (HeadReader::default(), 0, Ok(None));
            while end < bytes.len() && cut == Ok(None) {
                end = bytes.len().min(end + step);
                cut = read(&mut reader, &bytes[..end]).map_err(drop);
            }
            assert_eq!(whole, cut, "in one piece, and in pieces of {step}");
        }
    }
    let pass = |step: usize| {
        let (mut chunks, mut out, mut taken) = (Chunks::default(), Vec::new(), 0);
        for piece in bytes.chunks(step) {
            let passed = chunks.pass(piece, &mut out, false).map_err(drop)?;
            taken += passed.taken;
            if passed.ended {
                break;
            }
        }
        Ok::<_, ()>((out, taken))
    };
    let whole = pass(bytes.len().max(1));
    for step in [1, 7] {
        assert_eq!(whole, pass(step), "a body in one piece, and in pieces of {step}");
    }
}

#[cfg(test)]
mod tests;
