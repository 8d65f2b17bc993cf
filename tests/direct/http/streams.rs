//! Bodies, upgrades, and ends.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::harness::{eventually, manual, pattern};

#[tokio::test]
async fn bodies_stream_both_ways_before_they_are_complete() {
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = Reader::new(lab.connect().await);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    let mut backend = Reader::new(backend.await.unwrap());
    let head = backend.head().await.unwrap();
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    assert_eq!(backend.bytes(10).await.unwrap(), b"5\r\nfirst\r\n");
    backend.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nback\r\n").await;
    let answer = client.head().await.unwrap();
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.bytes(9).await.unwrap(), b"4\r\nback\r\n");
    client.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(backend.bytes(16).await.unwrap(), b"6\r\nsecond\r\n0\r\n\r\n");
    backend.send("0\r\n\r\n").await;
    assert_eq!(client.bytes(5).await.unwrap(), b"0\r\n\r\n");
    // The same two connections again.
    client.send(GET).await;
    assert_eq!(backend.message().await.unwrap().first, "GET / HTTP/1.1");
    backend.send(ok("again")).await;
    assert_eq!(client.message().await.unwrap().text(), "again");
}

#[tokio::test]
async fn a_backend_that_does_not_read_holds_the_client_back() {
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = lab.connect().await;
    let total: usize = 64 << 20;
    client
        .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {total}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let backend = backend.await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let body = Arc::new(pattern(7, 1 << 20));
    let whole = Arc::clone(&body);
    let sending = tokio::spawn(async move {
        for _ in 0..64 {
            client.write_all(&whole).await.unwrap();
            count.fetch_add(whole.len() as u64, Relaxed);
        }
        client
    });
    // It comes to a stop: so long as one wait passes without a byte.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = sent.load(Relaxed);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < (total as u64) / 2, "{before} bytes were taken from the client and given to nobody");
    let mut backend = Reader::new(backend);
    backend.head().await.unwrap();
    for n in 0..64 {
        assert!(backend.bytes(1 << 20).await.unwrap() == *body, "piece {n} differs");
    }
    backend.send(ok("thanks")).await;
    let mut client = Reader::new(sending.await.unwrap());
    assert_eq!(client.message().await.unwrap().text(), "thanks");
}

#[tokio::test]
async fn a_large_answer_arrives_unchanged() {
    let body = pattern(3, 5 << 20);
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = Reader::new(lab.connect().await);
    client.send(GET).await;
    let mut backend = Reader::new(backend.await.unwrap());
    backend.message().await.unwrap();
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        backend.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len())).await;
        backend.send(&sent).await;
        backend
    });
    assert!(client.message().await.unwrap().body == body);
    drop(sending.await.unwrap());
    // One that only its end ends.
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = Reader::new(lab.connect().await);
    client.send(GET).await;
    let mut backend = Reader::new(backend.await.unwrap());
    backend.message().await.unwrap();
    backend.send("HTTP/1.1 200 OK\r\n\r\nto the end").await;
    drop(backend);
    assert_eq!(client.message().await.unwrap().text(), "to the end");
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    for head in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        let (addr, backend) = manual().await;
        let lab = http_lab(&[addr]);
        let mut client = Reader::new(lab.connect().await);
        client.send(GET).await;
        let mut backend = Reader::new(backend.await.unwrap());
        backend.message().await.unwrap();
        backend.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n5\r\nhello\r\n")).await;
        assert_eq!(client.head().await.unwrap().status(), 200);
        crate::harness::reset(backend.stream);
        let rest = String::from_utf8(client.rest().await).unwrap();
        assert!(!rest.ends_with("0\r\n\r\n") && rest.len() < 100, "{rest:?}");
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told() {
    let (backend, _) = scripted(|request, _| (ok(&request.text()), false)).await;
    let lab = http_lab(&[backend]);
    let mut client = Reader::new(lab.connect().await);
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().status(), 100);
    client.send("body").await;
    assert_eq!(client.message().await.unwrap().text(), "body");
}

#[tokio::test]
async fn an_upgraded_connection_is_relayed() {
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = Reader::new(lab.connect().await);
    client
        .send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
        .await;
    let mut backend = Reader::new(backend.await.unwrap());
    let request = backend.head().await.unwrap();
    assert_eq!(
        (request.header("upgrade"), request.header("connection")),
        (Some("websocket"), Some("upgrade"))
    );
    assert_eq!(request.header("sec-websocket-key"), Some("k"));
    // Its first bytes come right behind the answer.
    backend
        .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        .await;
    let answer = client.head().await.unwrap();
    assert_eq!((answer.status(), answer.header("upgrade")), (101, Some("websocket")));
    assert_eq!(client.bytes(5).await.unwrap(), b"hello");
    let noise = pattern(9, 300_000);
    client.send(&noise[..]).await;
    assert!(backend.bytes(noise.len()).await.unwrap() == noise);
    backend.send(&noise[..]).await;
    assert!(client.bytes(noise.len()).await.unwrap() == noise);
    backend.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"");
    drop((client, backend));
    lab.until_idle().await;
    assert_eq!(lab.view().backends[0].active, 0);
}

#[tokio::test]
async fn a_connection_that_waits_for_long_is_served_again() {
    let (backend, _) = named("a").await;
    let mut settings = settings();
    settings.http.idle_timeout = Duration::from_secs(12);
    let lab = http_lab_with(&[backend], &settings, |_| {});
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.ask(GET).await.text(), "a");
    // Parked by then, and not yet given up.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.ask(GET).await.text(), "a");
    assert_eq!(client.rest().await, b"", "in the end it is closed");
    lab.until_idle().await;
}

#[tokio::test]
async fn a_drain_lets_requests_end_and_closes_the_rest() {
    let (addr, backend) = manual().await;
    let lab = http_lab(&[addr]);
    let mut client = Reader::new(lab.connect().await);
    client.send(GET).await;
    let mut backend = Reader::new(backend.await.unwrap());
    backend.message().await.unwrap();
    lab.drain.stop().cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    backend.send(ok("done")).await;
    assert_eq!(client.message().await.unwrap().text(), "done");
    assert_eq!(client.rest().await, b"");
    eventually("nothing is open", || lab.counters.active.load(Relaxed) == 0).await;
}
