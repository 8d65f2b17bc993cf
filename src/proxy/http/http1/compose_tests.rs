use super::*;

const SENDER: Sender<'_> = Sender { client: b"10.0.0.7", host: &"10.96.0.10:80" };

/// The request to the backend that `text` becomes, and whether it asks for an upgrade.
fn forwarded(text: &str) -> (String, bool) {
    let mut reader = HeadReader::default();
    let (read, length) = reader.request(text.as_bytes()).unwrap().unwrap();
    let head = &text.as_bytes()[..length];
    let target = target(&head[read.method.clone()], &head[read.target.clone()]).unwrap();
    let wishes = Wishes::of(head, &reader.fields);
    let mut out = Vec::new();
    let upgrade = request(&mut out, head, (&read, &reader.fields), (wishes, target), &SENDER);
    // What is written is what a strict reader takes for one request.
    let mut again = HeadReader::default();
    let (_, length) = again.request(&out).unwrap().expect("a whole head");
    assert_eq!(length, out.len());
    (String::from_utf8(out).unwrap(), upgrade)
}

/// The answer to the client that `text` becomes.
fn returned(text: &str, to_head: bool, old: bool, fate: Fate) -> String {
    let mut reader = HeadReader::default();
    let (read, length) = reader.answer(text.as_bytes()).unwrap().unwrap();
    let head = &text.as_bytes()[..length];
    let manner = Manner { body: told_as(read, to_head, old), fate };
    let mut out = Vec::new();
    answer(&mut out, head, (&reader, Wishes::of(head, &reader.fields)), manner, Some(b"stick=1"));
    assert!(HeadReader::default().answer(&out).unwrap().is_some());
    String::from_utf8(out).unwrap()
}

#[test]
fn what_concerns_one_connection_ends_here() {
    let (text, upgrade) = forwarded(
        "POST /a?b HTTP/1.1\r\nConnection: keep-alive, X-Hop\r\nconnection: host, content-length\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: gzip\r\nUpgrade: websocket\r\nHOST: web\r\n\
         content-length:003\r\nTraceparent: 00-1-2-01\r\nExpect: 100-continue\r\nX:y \t\r\n\r\n",
    );
    assert!(!upgrade, "an upgrade has to stand in Connection");
    assert_eq!(
        text,
        "POST /a?b HTTP/1.1\r\nHOST: web\r\nTraceparent: 00-1-2-01\r\nX:y \t\r\nx-forwarded-for: 10.0.0.7\r\n\
         x-forwarded-proto: http\r\nContent-Length: 3\r\n\r\n"
    );
}

#[test]
fn who_asked_is_added_to_who_asked_before() {
    let (text, _) = forwarded(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n\
         X-Forwarded-Proto: https\r\nConnection: X-Forwarded-For\r\nTE: trailers\r\nTransfer-Encoding: Chunked\r\n\r\n",
    );
    assert_eq!(
        text,
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nTE: trailers\r\n\
         x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.0.0.7\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let (text, _) = forwarded("GET / HTTP/1.0\r\n\r\n");
    assert!(text.starts_with("GET / HTTP/1.1\r\nHost: 10.96.0.10:80\r\n"), "{text}");
}

#[test]
fn upgrades_pass_but_not_to_http_2() {
    let (text, upgrade) = forwarded(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Key: k\r\n\r\n",
    );
    assert!(upgrade);
    assert!(
        text.ends_with("Connection: upgrade\r\nUpgrade: websocket\r\n\r\n") && text.contains("X-Key: k\r\n"),
        "{text}"
    );
    for protocol in ["h2c", "H2"] {
        let (text, upgrade) = forwarded(&format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: A\r\n\r\n"
        ));
        assert!(!upgrade && !text.to_lowercase().contains("upgrade") && !text.contains("HTTP2"), "{text}");
    }
}

#[test]
fn a_target_that_names_its_host_beats_the_header() {
    let cases = [
        ("GET", "http://b.example/x?y", "GET /x?y HTTP/1.1\r\nHost: b.example\r\n"),
        ("GET", "HTTPS://b:8443", "GET / HTTP/1.1\r\nHost: b:8443\r\n"),
        ("GET", "http://b?q", "GET /?q HTTP/1.1\r\nHost: b\r\n"),
        ("OPTIONS", "http://b", "OPTIONS * HTTP/1.1\r\nHost: b\r\n"),
        ("OPTIONS", "*", "OPTIONS * HTTP/1.1\r\nHost: a\r\n"),
        ("CONNECT", "c:443", "CONNECT c:443 HTTP/1.1\r\nHost: a\r\n"),
    ];
    for (method, target, begin) in cases {
        let (text, _) = forwarded(&format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(text.starts_with(begin) && !text[begin.len()..].contains("Host:"), "{text}");
    }
    for bad in ["x", "*", "ftp://b/", "http://", "http:///x", "http://u@b/", "b:80"] {
        assert!(target(b"GET", bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn answers_are_stripped_too() {
    let text = returned(
        "HTTP/1.1 200 Fine\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nUpgrade: h2c\r\nETag: 1\r\nKeep-Alive: x\r\n\
         content-length: 5\r\nSet-Cookie: a\r\n\r\n",
        false,
        false,
        Fate::Kept,
    );
    assert_eq!(
        text,
        "HTTP/1.1 200 Fine\r\nETag: 1\r\nSet-Cookie: a\r\nContent-Length: 5\r\nSet-Cookie: stick=1\r\n\r\n"
    );
    let upgraded = returned(
        "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        false,
        false,
        Fate::Upgraded,
    );
    assert!(upgraded.contains("\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"), "{upgraded}");
}

#[test]
fn bodies_are_framed_for_who_reads_them() {
    let of = |status, body| Answer { status, http_10: false, body };
    let cases = [
        (of(200, Body::Length(5)), false, false, Body::Length(5), Body::Length(5)),
        (of(200, Body::Chunked), false, false, Body::Chunked, Body::Chunked),
        (of(200, Body::Chunked), false, true, Body::Chunked, Body::UntilEnd),
        (of(200, Body::UntilEnd), false, false, Body::UntilEnd, Body::Chunked),
        (of(200, Body::UntilEnd), false, true, Body::UntilEnd, Body::UntilEnd),
        // No body, whatever is said of one.
        (of(200, Body::Length(5)), true, false, Body::None, Body::Length(5)),
        (of(200, Body::Chunked), true, false, Body::None, Body::None),
        (of(304, Body::Length(5)), false, false, Body::None, Body::Length(5)),
        (of(204, Body::Length(5)), false, false, Body::None, Body::None),
        (of(204, Body::UntilEnd), false, false, Body::None, Body::None),
    ];
    for (answer, to_head, old, body, told) in cases {
        assert_eq!((body_of(answer, to_head), told_as(answer, to_head, old)), (body, told), "{answer:?}");
    }
}
