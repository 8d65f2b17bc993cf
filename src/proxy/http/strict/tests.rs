use proptest::prelude::*;

use super::chunks::MAX_CHUNK_LINE;
use super::*;

/// Reads the requests in `bytes`, which come in pieces of `piece`. True if the last one has ended.
fn fed(bytes: &[u8], piece: usize) -> Result<bool, Fault> {
    let (mut reader, mut chunks, mut out) = (HeadReader::default(), None::<Chunks>, Vec::new());
    let (mut have, mut skip) = (Vec::new(), 0_u64);
    for part in bytes.chunks(piece.max(1)) {
        have.extend_from_slice(part);
        loop {
            let n = skip.min(have.len() as u64);
            have.drain(..usize::try_from(n).unwrap());
            skip -= n;
            if skip > 0 {
                break;
            }
            if let Some(body) = &mut chunks {
                let passed = body.pass(&have, &mut out, false)?;
                have.drain(..passed.taken);
                if !passed.ended {
                    break;
                }
                chunks = None;
            }
            let Some((request, length)) = reader.request(&have)? else { break };
            reader.reset();
            have.drain(..length);
            match request.body {
                Body::Length(length) => skip = length,
                Body::Chunked => chunks = Some(Chunks::default()),
                _ => {}
            }
        }
    }
    Ok(have.is_empty() && skip == 0 && chunks.is_none())
}

/// The same for one answer.
fn answered(bytes: &[u8], piece: usize) -> Result<Option<Answer>, Fault> {
    let mut reader = HeadReader::default();
    let mut found = None;
    for end in (1..=bytes.len()).filter(|end| end % piece == 0 || *end == bytes.len()) {
        if found.is_none() {
            found = reader.answer(&bytes[..end])?;
        }
    }
    Ok(found.map(|(answer, _)| answer))
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

/// Answers that are taken for what they are.
#[test]
fn ordinary_answers_are_understood_however_they_are_cut() {
    let cases: &[(&str, u16, bool, Body)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", 200, false, Body::Length(3)),
        ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", 200, false, Body::Chunked),
        ("HTTP/1.1 404 \r\n\r\n", 404, false, Body::UntilEnd),
        ("HTTP/1.0 200 Fine, thanks\r\nServer: old\r\n\r\n", 200, true, Body::UntilEnd),
        ("HTTP/1.1 100 Continue\r\n\r\n", 100, false, Body::UntilEnd),
        ("HTTP/1.1 200 Gr\u{fc}n\r\nX: \u{e9}\r\nHost: a\r\nHost: b\r\n\r\n", 200, false, Body::UntilEnd),
    ];
    for (text, status, http_10, body) in cases {
        for piece in 1..=text.len() {
            let want = Answer { status: *status, http_10: *http_10, body: *body };
            assert_eq!(answered(text.as_bytes(), piece), Ok(Some(want)), "{text:?} in pieces of {piece}");
        }
    }
}

/// Answers by which one is made two, or two readers are made to see different ones.
const BAD_ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
    "HTTP/1.1 200 OK\r\nnothing\r\n\r\n",
    "HTTP/1.1 200 O\rK\r\n\r\n",
    "HTTP/1.1 20 OK\r\n\r\n",
    "HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/1.1 099 OK\r\n\r\n",
    "HTTP/1.1  200 OK\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    "\r\nHTTP/1.1 200 OK\r\n\r\n",
    "<html>\r\n\r\n",
];

#[test]
fn doubtful_answers_are_refused_however_they_are_cut() {
    for text in BAD_ANSWERS {
        for piece in 1..=text.len() {
            let got = answered(text.as_bytes(), piece);
            assert!(matches!(got, Err(Fault::Malformed(_))), "{text:?} in pieces of {piece}: {got:?}");
        }
    }
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
    assert_eq!(answered(huge.as_bytes(), 4096), Err(Fault::TooLarge));
    let many = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(MAX_LINES + 1));
    assert_eq!(answered(many.as_bytes(), 4096), Err(Fault::TooLarge));
}

/// What passes of a body in chunks, which comes in pieces of `piece`.
fn passed(text: &str, piece: usize, bare: bool) -> (String, usize) {
    let (mut chunks, mut out, mut content) = (Chunks::default(), Vec::new(), 0);
    for part in text.as_bytes().chunks(piece) {
        content += chunks.pass(part, &mut out, bare).unwrap().content;
    }
    (String::from_utf8(out).unwrap(), content)
}

#[test]
fn chunks_are_written_anew() {
    let text = "0005;x=\"y\"\r\nhello\r\nA \t;z\r\n0123456789\r\n00\r\nX-Sum: 1\r\nConnection: x\r\nCookie: a\r\n\r\n";
    for piece in 1..=text.len() {
        let want = "5\r\nhello\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n".to_owned();
        assert_eq!(passed(text, piece, false), (want, 15), "in pieces of {piece}");
        assert_eq!(passed(text, piece, true), ("hello0123456789".to_owned(), 15), "in pieces of {piece}");
    }
    let mut line = Vec::new();
    for size in [0, 1, 15, 16, 255, 256, 0xfff_ffff_ffff_ffff_u64] {
        line.clear();
        put_size(&mut line, size);
        assert_eq!(String::from_utf8_lossy(&line), format!("{size:x}\r\n"));
    }
}

#[test]
fn what_comes_behind_a_body_is_left() {
    let mut chunks = Chunks::default();
    let mut out = Vec::new();
    let got = chunks.pass(b"1\r\na\r\n0\r\n\r\nGET /", &mut out, false).unwrap();
    assert_eq!(got, Passed { taken: 11, content: 1, ended: true });
    assert_eq!(out, b"1\r\na\r\n0\r\n\r\n");
}

proptest! {
    /// Whatever comes, and however it is cut, the verdict is the same, and nothing panics.
    #[test]
    fn cuts_do_not_matter(bytes in "[GET /HP1.\r\n:;a0\\x00-\\x20]{0,120}", piece in 1_usize..40) {
        prop_assert_eq!(fed(bytes.as_bytes(), bytes.len().max(1)), fed(bytes.as_bytes(), piece));
    }

    /// The same for answers.
    #[test]
    fn cuts_of_answers_do_not_matter(bytes in "HTTP/1.1 2[0-9]0[OK.\r\n:;a0\\x00-\\x20]{0,80}", piece in 1_usize..40) {
        prop_assert_eq!(answered(bytes.as_bytes(), bytes.len()), answered(bytes.as_bytes(), piece));
    }

    /// Whatever passes of a body in chunks is one that a strict reader takes for the same.
    #[test]
    fn what_passes_is_clean(bytes in "[0-3]{1,2}(;x)?\r\n[a\r\n03;]{0,40}", piece in 1_usize..20) {
        let (mut chunks, mut out) = (Chunks::default(), Vec::new());
        let mut all = bytes.as_bytes().chunks(piece);
        let fine = all.all(|part| chunks.pass(part, &mut out, false).is_ok());
        if fine {
            let mut again = Vec::new();
            Chunks::default().pass(&out, &mut again, false).unwrap();
            prop_assert_eq!(out, again);
        }
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
