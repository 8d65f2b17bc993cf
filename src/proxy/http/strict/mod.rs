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

#[cfg(test)]
mod tests;
