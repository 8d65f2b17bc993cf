//! Clients that mean no good, or know no better.

use super::*;

/// Shapes by which requests are smuggled past one reader into another one. The unit tests have more of them.
const SMUGGLING: &[&str] = &[
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\nHost: a\n\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
];

#[tokio::test]
async fn smuggling_shapes_are_refused_and_reach_no_backend() {
    let (backend, accepted) = named("a").await;
    let lab = http_lab(&[backend]);
    for shape in SMUGGLING {
        let mut client = Reader::new(lab.connect().await);
        let answer = client.ask(shape).await;
        assert_eq!(answer.status(), 400, "{shape:?}: {answer:?}");
        assert_eq!(client.rest().await, b"", "{shape:?}: the connection ends");
    }
    assert_eq!(accepted.load(Relaxed), 0);
    // Behind a good one on the same connection, in the same packet: that one is answered, and nothing after it.
    for shape in SMUGGLING {
        let mut client = Reader::new(lab.connect().await);
        client.send(format!("{GET}{shape}")).await;
        assert_eq!(client.message().await.map(|m| m.status()), Some(200), "{shape:?}");
        assert_eq!(client.message().await.map(|m| m.status()), Some(400), "{shape:?}");
        assert_eq!(client.rest().await, b"", "{shape:?}");
    }
}

#[tokio::test]
async fn chunks_are_taken_as_they_are_written_or_not_at_all() {
    let (backend, _) = scripted(|request, _| (ok(&request.text()), false)).await;
    let lab = http_lab(&[backend]);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = Reader::new(lab.connect().await);
    let answer = client.ask(format!("{head}3;ext=\"a\"\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n")).await;
    assert_eq!(answer.text(), "abcde");
    assert_eq!(client.ask(GET).await.status(), 200, "and the connection goes on");
    for bad in ["3\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "zz\r\n", "3;a\nb\r\nabc\r\n0\r\n\r\n"] {
        let mut client = Reader::new(lab.connect().await);
        client.send(format!("{head}{bad}")).await;
        assert_eq!(client.message().await.map(|m| m.status()), Some(400), "{bad:?}");
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test]
async fn large_and_slow_heads_are_refused_and_others_unharmed() {
    let (backend, _) = named("a").await;
    let mut settings = settings();
    settings.http.head_timeout = Duration::from_secs(1);
    let lab = http_lab_with(&[backend], &settings, |_| {});
    let mut slow = Reader::new(lab.connect().await);
    slow.send("GET / HTTP/1.1\r\nHost: a\r\nX-").await;
    let mut large = Reader::new(lab.connect().await);
    large.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(70_000))).await;
    assert_eq!(large.message().await.unwrap().status(), 431);
    let mut many = Reader::new(lab.connect().await);
    many.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200))).await;
    assert_eq!(many.message().await.unwrap().status(), 431);
    let mut good = Reader::new(lab.connect().await);
    assert_eq!(good.ask(GET).await.status(), 200);
    let answer = slow.message().await.unwrap();
    assert_eq!((answer.status(), answer.header("connection")), (408, Some("close")));
    // A second head that stops halfway is refused as well, after an answer.
    let mut late = Reader::new(lab.connect().await);
    assert_eq!(late.ask(GET).await.status(), 200);
    late.send("GET /").await;
    assert_eq!(late.message().await.unwrap().status(), 408);
    assert_eq!(good.ask(GET).await.status(), 200, "a connection that waited for longer is none the worse");
}
