//! Tells from a connection's first bytes what its client speaks. Pure.
//!
//! In doubt it is not HTTP: a connection that is relayed goes to one backend from its first to its last byte, as it
//! would without us, so that a mistake in that direction costs the balancing of its requests and nothing else.

/// What every HTTP/2 connection with prior knowledge begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest request line that is waited for where its method is not one of [`METHODS`].
const LONGEST_LINE: usize = 1024;
/// Methods by which a request is known at once: those of RFC 9110, PATCH, and the usual ones of `WebDAV`. `CONNECT` is
/// not among them, with which NATS and STOMP begin as well.
const METHODS: [&[u8]; 14] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"REPORT",
];

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something else.
    Other,
    /// Too early to tell.
    Unknown,
}

/// What the client that began with `bytes` speaks.
pub(super) fn speaks(bytes: &[u8]) -> Speaks {
    if bytes.starts_with(PREFACE) {
        return Speaks::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Speaks::Unknown;
    }
    // RFC 9112, section 2.2: an empty line before a request is passed over.
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    if bytes.is_empty() || bytes == b"\r" {
        return Speaks::Unknown;
    }
    let word = bytes.iter().position(|b| !is_method(*b));
    match word {
        None if bytes.len() <= LONGEST_LINE => Speaks::Unknown,
        Some(end @ 1..) if bytes[end] == b' ' => {
            if METHODS.contains(&&bytes[..end]) {
                return Speaks::Http1;
            }
            match bytes.iter().position(|b| *b == b'\n') {
                Some(newline) => by_version(&bytes[..newline]),
                None if bytes.len() <= LONGEST_LINE => Speaks::Unknown,
                None => Speaks::Other,
            }
        }
        _ => Speaks::Other,
    }
}

/// What a client that said nothing more than `bytes` for a while is taken for: nobody else begins with half of that.
pub(super) fn presumed(bytes: &[u8]) -> Speaks {
    match speaks(bytes) {
        Speaks::Unknown if PREFACE.starts_with(bytes) && bytes.len() > 4 => Speaks::Http2,
        Speaks::Unknown if METHODS.iter().any(|m| !bytes.is_empty() && m.starts_with(bytes)) => Speaks::Http1,
        Speaks::Unknown => Speaks::Other,
        known => known,
    }
}

fn is_method(b: u8) -> bool {
    b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_')
}

/// A first line that begins like a request: its end tells.
fn by_version(line: &[u8]) -> Speaks {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") { Speaks::Http1 } else { Speaks::Other }
}

/// Reads how a client may begin, for tests with hostile ones: what was told once stays.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(bytes: &[u8]) {
    let mut told = Speaks::Unknown;
    for end in 0..=bytes.len().min(2 * LONGEST_LINE) {
        let now = speaks(&bytes[..end]);
        assert!(told == Speaks::Unknown || told == now, "{told:?}, then {now:?} after {end} bytes");
        assert_ne!(presumed(&bytes[..end]), Speaks::Unknown);
        told = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        let long = [b'A'; LONGEST_LINE + 1];
        let cases: &[(&[u8], Speaks)] = &[
            (b"", Speaks::Unknown),
            (b"G", Speaks::Unknown),
            (b"GET", Speaks::Unknown),
            (b"GET ", Speaks::Http1),
            (b"\r\nGET /", Speaks::Http1),
            (b"\r\n\r\nGET /", Speaks::Other),
            (b"GET / HTTP/1.1\n", Speaks::Http1),
            (b"get / HTTP/1.1\r\n", Speaks::Other),
            (b"BREW /pot HTTP/1.1\r\n", Speaks::Http1),
            (b"BREW /pot", Speaks::Unknown),
            (b"CONNECT host:443 HTTP/1.1\r\n", Speaks::Http1),
            (b"CONNECT {\"verbose\":false}\r\n", Speaks::Other),
            (b"CONNECT\naccept-version:1.2\n", Speaks::Other),
            (b"EHLO lab\r\n", Speaks::Other),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Speaks::Other),
            (b"*3\r\n$3\r\nSET\r\n", Speaks::Other),
            (b"\x16\x03\x01\x02\x00", Speaks::Other),
            (b"\0", Speaks::Other),
            (b"hello\n", Speaks::Other),
            (b"PRI", Speaks::Unknown),
            (b"PRI * HTTP/2.0\r\n", Speaks::Unknown),
            (PREFACE, Speaks::Http2),
            (&long, Speaks::Other),
        ];
        for (bytes, want) in cases {
            assert_eq!(speaks(bytes), *want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn silence_after_half_a_word_is_taken_for_what_begins_so() {
        for (bytes, want) in [
            (&b""[..], Speaks::Other),
            (b"G", Speaks::Http1),
            (b"PO", Speaks::Http1),
            (b"PRI * ", Speaks::Http2),
            (b"BREW /pot", Speaks::Other),
            (b"PING", Speaks::Other),
        ] {
            assert_eq!(presumed(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
