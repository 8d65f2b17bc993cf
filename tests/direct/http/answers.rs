//! Backends that mean no good, or know no better.

use super::*;
use crate::harness::manual;

/// A backend that says `answer` to everything and then waits for more.
async fn saying(answer: &'static str) -> SocketAddr {
    scripted(move |_, _| (answer.to_owned(), false)).await.0
}

/// Answers that two readers may read differently, or that are none. The unit tests have more of them.
const BROKEN: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 3\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 2oo OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "SSH-2.0-OpenSSH_9.2\r\n",
];

#[tokio::test]
async fn broken_answers_are_not_passed_on() {
    for answer in BROKEN {
        let lab = http_lab(&[saying(answer).await]);
        let mut client = Reader::new(lab.connect().await);
        let got = client.ask(GET).await;
        assert_eq!(got.status(), 502, "{answer:?}: {got:?}");
        assert_eq!(client.ask(GET).await.status(), 502, "{answer:?}: the client's connection goes on");
    }
}

#[tokio::test]
async fn heads_without_end_and_endless_preliminaries_are_not_passed_on() {
    let huge: &'static str = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(70_000)).leak();
    let many: &'static str = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(200)).leak();
    let hints: &'static str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1000).leak();
    for answer in [huge, many, hints] {
        let lab = http_lab(&[saying(answer).await]);
        let mut client = Reader::new(lab.connect().await);
        assert_eq!(client.ask(GET).await.status(), 502, "{:?}", &answer[..60]);
    }
    let few = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let lab = http_lab(&[saying(few).await]);
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.ask(GET).await.text(), "ok");
}

/// Bytes behind an answer are nobody's: not the next request's answer, on this connection or another one.
#[tokio::test]
async fn what_comes_behind_an_answer_is_nobodys() {
    let split =
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for answer in [
        split,
        "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ] {
        let (backend, accepted) = scripted(move |_, _| (answer.to_owned(), false)).await;
        let lab = http_lab(&[backend]);
        let mut client = Reader::new(lab.connect().await);
        for n in 1..=3 {
            let got = client.ask(GET).await;
            assert!(!got.text().contains("evil"), "{answer:?}: {got:?}");
            assert_eq!(accepted.load(Relaxed), n, "{answer:?}: such a connection is not used again");
        }
    }
}

#[tokio::test]
async fn chunks_are_framed_for_who_reads_them() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
    let lab = http_lab(&[saying(chunked).await]);
    let mut client = Reader::new(lab.connect().await);
    client.send(GET).await;
    assert_eq!(client.head().await.unwrap().header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.bytes(22).await.unwrap(), b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n");
    // An old client knows no chunks: the end of the connection ends the body.
    let mut old = Reader::new(lab.connect().await);
    old.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let head = old.head().await.unwrap();
    assert_eq!((head.header("transfer-encoding"), head.header("connection")), (None, Some("close")));
    assert_eq!(old.rest().await, b"ok");
    // One with a length keeps an old client's connection, and says so.
    let lab = http_lab(&[saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await]);
    let mut old = Reader::new(lab.connect().await);
    for _ in 0..2 {
        let answer = old.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!((answer.header("connection"), answer.text()), (Some("keep-alive"), "ok".into()));
    }
}

/// A backend that has heard enough answers before the body has ended: the client learns it, and its connection ends.
#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_passed_on() {
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = Reader::new(lab.connect().await);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin").await;
    let mut backend = Reader::new(backend.await.unwrap());
    backend.head().await.unwrap();
    backend.send("HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n").await;
    let answer = client.message().await.unwrap();
    assert_eq!((answer.status(), answer.text()), (413, "no\n".into()));
    assert_eq!(client.rest().await, b"");
    assert!(backend.rest().await.len() < 1_000_000, "the backend is not sent what it did not want");
}

/// A request behind one with a body, in one packet, on one connection.
#[tokio::test]
async fn bodies_and_pipelined_requests_are_told_apart() {
    let (backend, _) =
        scripted(|request, _| (ok(&format!("{} {}", request.first, request.text())), false)).await;
    let lab = http_lab(&[backend]);
    let all = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 19\r\n\r\nGET /x HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\n\
               Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    for piece in [all.len(), 1, 7, 40] {
        let mut client = Reader::new(lab.connect().await);
        let mut answers = Vec::new();
        let parts: Vec<Vec<u8>> = all.as_bytes().chunks(piece).map(<[u8]>::to_vec).collect();
        for part in parts {
            client.send(part).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            answers.push(client.message().await.unwrap().text());
        }
        assert_eq!(
            answers,
            ["POST /1 HTTP/1.1 GET /x HTTP/1.1\r\n\r\n", "POST /2 HTTP/1.1 abc", "GET /3 HTTP/1.1 "],
            "in pieces of {piece}"
        );
    }
}
