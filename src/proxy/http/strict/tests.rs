use proptest::prelude::*;

use super::*;

/// Feeds `bytes` in pieces of `piece`; says where it ended and how.
fn fed(bytes: &[u8], piece: usize) -> Result<bool, Fault> {
    let mut strict = Strict::default();
    for part in bytes.chunks(piece.max(1)) {
        strict.feed(part).map_err(|(_, fault)| fault)?;
    }
    Ok(strict.between())
}

const GOOD: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nhOST:a\r\nX: a:b \t\r\nY:\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA ;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n",
];

/// The table of shapes by which requests are smuggled.
const BAD: &[&str] = &[
    // Two lengths, or a length and a coding.
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    // Codings that are none, or hidden.
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n\r\n",
    "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    // Lines that end, or go on, in more than one way.
    "GET / HTTP/1.1\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\tX: b\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    // Names that are none.
    "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
    // Whose request is it.
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    // Request lines.
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    // Chunks.
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\ny\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3 4\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n X: y\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
];

#[test]
fn ordinary_requests_pass_however_they_are_cut() {
    for text in GOOD {
        for piece in 1..=text.len() {
            assert_eq!(fed(text.as_bytes(), piece), Ok(true), "{text:?} in pieces of {piece}");
        }
    }
}

#[test]
fn doubtful_requests_are_refused_however_they_are_cut() {
    for text in BAD {
        for piece in 1..=text.len() {
            let got = fed(text.as_bytes(), piece);
            assert!(matches!(got, Err(Fault::Malformed(_))), "{text:?} in pieces of {piece}: {got:?}");
        }
    }
}

#[test]
fn sizes_are_bounded() {
    let huge = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    assert_eq!(fed(huge.as_bytes(), 4096), Err(Fault::TooLarge));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(MAX_HEAD / 6));
    assert_eq!(fed(many.as_bytes(), 4096), Err(Fault::TooLarge));
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extension = format!("{chunked}1;{}\r\n", "x".repeat(MAX_CHUNK_LINE));
    assert!(matches!(fed(extension.as_bytes(), 64), Err(Fault::Malformed(_))));
    let trailers = format!("{chunked}0\r\n{}", "X: y\r\n".repeat(MAX_HEAD / 6 + 1));
    assert_eq!(fed(trailers.as_bytes(), 4096), Err(Fault::TooLarge));
}

#[test]
fn what_stands_before_a_fault_is_told() {
    let first = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut strict = Strict::default();
    let got = strict.feed(format!("{first}GET / HTTP/1.1\nHost: a\r\n").as_bytes());
    assert_eq!(got.map_err(|(at, _)| at), Err(first.len()));
}

#[test]
fn it_tells_where_it_is() {
    let mut strict = Strict::default();
    assert!(strict.between() && !strict.in_head());
    strict.feed(b"POST / HTTP/1.1\r\n").unwrap();
    assert!(strict.in_head() && !strict.between());
    strict.feed(b"Host: a\r\nContent-Length: 1\r\n\r\n").unwrap();
    assert!(!strict.in_head() && !strict.between());
    strict.feed(b"x").unwrap();
    assert!(strict.between());
}

proptest! {
    /// Whatever comes, and however it is cut, the verdict is the same, and nothing panics.
    #[test]
    fn cuts_do_not_matter(bytes in "[GET /HP1.\r\n:;a0\\x00-\\x20]{0,120}", piece in 1_usize..40) {
        prop_assert_eq!(fed(bytes.as_bytes(), bytes.len().max(1)), fed(bytes.as_bytes(), piece));
    }

    /// Bytes behind a good head that says how long its body is do not matter.
    #[test]
    fn bodies_are_opaque(body in proptest::collection::vec(any::<u8>(), 1..300), piece in 1_usize..40) {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        let plain = [head.as_bytes(), &body].concat();
        prop_assert_eq!(fed(&plain, piece), Ok(true));
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let size = format!("{:x}\r\n", body.len());
        let chunked = [head.as_bytes(), size.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        prop_assert_eq!(fed(&chunked, piece), Ok(true));
    }
}
