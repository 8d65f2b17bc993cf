use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::obs::api::Verdict;
use crate::obs::api::tests::sample;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_mins(1);

fn condition(name: &str, ok: bool) -> Condition {
    Condition { name: name.to_owned(), ok, detail: "so\nit is".to_owned() }
}

fn handlers() -> AdminHandlers {
    AdminHandlers {
        status: Box::new(sample),
        figures: Box::new(Figures::default),
        check: Box::new(Vec::new),
        resolve: Box::new(|target| match target {
            "panic" => panic!("as asked"),
            "bad" => Err("no such form".to_owned()),
            _ => Ok(Resolution {
                target: target.to_owned(),
                service: None,
                frontend: None,
                mode: None,
                policy: None,
                backends: Vec::new(),
                verdict: Verdict::NotIntercepted,
                why: "outside of every range".to_owned(),
                notes: Vec::new(),
            }),
        }),
        health: Box::new(|| vec![condition("snapshot", true), condition("rules", false)]),
        live: Box::new(|| vec![condition("reconciler", true)]),
    }
}

fn start() -> (SocketAddr, CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let server = AdminServer::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let (addr, stop) = (server.local_addr(), CancellationToken::new());
    (addr, stop.clone(), tokio::spawn(server.serve(handlers(), stop)))
}

/// Sends `request` as it stands and reads until the end.
async fn raw(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that closes with unread input resets; what came before counts.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(addr: SocketAddr, path: &str) -> String {
    raw(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n")).await
}

#[track_caller]
fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("an answer has a body").1
}

#[tokio::test]
async fn every_path_of_the_contract_answers() {
    let (addr, ..) = start();
    let answer = get(addr, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(body(&answer), "reconciler ok so it is\n");
    let answer = get(addr, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(body(&answer), "snapshot ok so it is\nrules not ok so it is\n");
    let answer = get(addr, "/metrics").await;
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{answer}"
    );
    assert!(body(&answer).ends_with("# EOF\n"), "{answer}");
    let answer = get(addr, "/api/v1/status").await;
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    assert_eq!(serde_json::from_str::<Status>(body(&answer)).unwrap().node, "node-a");
    let answer = get(addr, "/api/v1/resolve?x=1&target=%5B::1%5D%3a80").await;
    assert_eq!(serde_json::from_str::<Resolution>(body(&answer)).unwrap().target, "[::1]:80");
}

#[tokio::test]
async fn what_cannot_be_answered_gets_its_code() {
    let (addr, ..) = start();
    for (path, code) in [
        ("/ui/", 404),
        ("/ui/../page.js", 404),
        ("/api/v1/status/", 404),
        ("/api/v1/resolve", 400),
        ("/api/v1/resolve?target=", 400),
        ("/api/v1/resolve?target=bad", 400),
        ("/api/v1/resolve?target=%zz", 400),
        ("/api/v1/resolve?target=%ff", 400),
        ("/api/v1/resolve?target=%4", 400),
        ("/api/v1/resolve?target=panic", 500),
    ] {
        let answer = get(addr, path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {answer}");
        assert!(
            serde_json::from_str::<serde_json::Value>(body(&answer)).unwrap()["error"].is_string(),
            "{answer}"
        );
    }
    // A handler that panicked has not taken the endpoint with it.
    assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn only_reading_is_allowed() {
    let (addr, ..) = start();
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        let request =
            format!("{method} /api/v1/status HTTP/1.1\r\nHost: {addr}\r\nContent-Length: 0\r\n\r\n");
        let answer = raw(addr, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"),
            "{method}: {answer}"
        );
    }
    let answer = raw(addr, &format!("HEAD /api/v1/status HTTP/1.1\r\nHost: {addr}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-length: "), "{answer}");
    assert_eq!(body(&answer), "");
}

#[tokio::test]
async fn names_of_others_are_turned_away() {
    let (addr, ..) = start();
    for (host, code) in [
        ("localhost", 200),
        ("LOCALHOST:10265", 200),
        ("10.1.2.3", 200),
        ("[::1]:10265", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:10265", 421),
        ("localhost@evil.example", 421),
        ("evil.example@127.0.0.1", 421),
        ("", 421),
    ] {
        let answer = raw(addr, &format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{host:?}: {answer}");
    }
    let answer = raw(addr, "GET http://evil.example/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    let answer = raw(addr, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(raw(addr, "GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    assert!(raw(addr, "GET /healthz HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200 "));
}

#[tokio::test]
async fn a_huge_head_and_nonsense_are_turned_away() {
    let (addr, ..) = start();
    let answer = get(addr, &format!("/{}", "a".repeat(64 << 10))).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = raw(addr, "\u{1}\u{2}\u{3} nonsense\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_others_served_meanwhile() {
    let (addr, ..) = start();
    let mut slow = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /heal").await.unwrap();
        slow.push(stream);
    }
    // Every slot is taken, so that this one waits until the slow ones have been cut off.
    let answer = get(addr, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    for mut stream in slow {
        let mut answer = String::new();
        let end = tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await;
        assert!(end.is_ok(), "a slow client is still connected");
    }
}

#[tokio::test]
async fn it_stops_when_told() {
    let (addr, stop, server) = start();
    assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
    stop.cancel();
    tokio::time::timeout(LONG, server).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[test]
fn an_address_in_use_is_named() {
    let first = AdminServer::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let error = format!("{:#}", AdminServer::bind(first.local_addr()).unwrap_err());
    assert!(error.contains(&first.local_addr().to_string()) && error.contains("--admin"), "{error}");
}
