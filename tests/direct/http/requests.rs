//! What each request goes through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::harness::{eventually, refusing};

#[tokio::test]
async fn requests_of_one_connection_are_spread() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let lab = http_lab_with(&[a.0, b.0, c.0], &settings(), |port| {
        port.policy = edgesplice::model::Policy::RoundRobin;
    });
    let mut client = Reader::new(lab.connect().await);
    let mut seen = BTreeMap::new();
    for _ in 0..30 {
        let answer = client.ask(GET).await;
        assert_eq!(answer.status(), 200);
        *seen.entry(answer.text()).or_insert(0) += 1;
    }
    assert_eq!(seen, BTreeMap::from([("a".into(), 10), ("b".into(), 10), ("c".into(), 10)]));
    assert_eq!([a.1, b.1, c.1].map(|n| n.load(Relaxed)), [1, 1, 1], "connections are kept");
    let numbers = lab.upstream().counters.http().numbers();
    assert_eq!((numbers.classes, numbers.unanswered), ([0, 30, 0, 0, 0], 0));
}

#[tokio::test]
async fn a_backend_that_dies_is_not_noticed() {
    let (a, b) = (named("a").await, named("b").await);
    // The third one answers five requests and then closes its door in the middle of the sixth.
    let (listener, c) = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    };
    let dying = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut reader = Reader::new(stream);
        for _ in 0..5 {
            reader.message().await.unwrap();
            reader.send(ok("c")).await;
        }
        reader.message().await.unwrap();
        drop(listener);
        crate::harness::reset(reader.stream);
    });
    let lab = http_lab_with(&[a.0, b.0, c], &settings(), |port| {
        port.policy = edgesplice::model::Policy::RoundRobin;
    });
    let mut client = Reader::new(lab.connect().await);
    for _ in 0..60 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    dying.await.unwrap();
    assert_eq!(lab.upstream().counters.http().numbers().classes[1], 60);
}

/// A backend that closes a connection after each answer without having said so.
#[tokio::test]
async fn stale_connections_are_never_seen() {
    let (closing, accepted) = scripted(|request, _| (ok(&request.first), true)).await;
    let lab = http_lab(&[closing]);
    let mut client = Reader::new(lab.connect().await);
    for n in 0..20 {
        let request = match n % 2 {
            0 => "GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
            _ => "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        };
        // The end of the connection is on its way when the next request comes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(client.ask(request).await.status(), 200, "request {n}");
    }
    assert_eq!(accepted.load(Relaxed), 20);
}

#[tokio::test]
async fn no_backend_is_told_with_a_status() {
    let lab = http_lab(&[refusing().await, refusing().await]);
    let mut client = Reader::new(lab.connect().await);
    for _ in 0..3 {
        let answer = client.ask(GET).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(answer.text().contains("no backend"), "{answer:?}");
    }
    let lab2 = http_lab(&[named("a").await.0]);
    let mut client = Reader::new(lab2.connect().await);
    assert_eq!(client.ask(GET).await.status(), 200);
    lab2.upstreams.apply(crate::harness::snapshot([]));
    assert_eq!(client.ask(GET).await.status(), 503, "the service went while the connection was open");
}

#[tokio::test]
async fn headers_are_those_of_a_proxy() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let (backend, _) = scripted(move |request, _| {
        keep.lock().unwrap().push(request.clone());
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Case: Kept\r\nKeep-Alive: timeout=5\r\n\r\n".to_owned(), false)
    })
    .await;
    let lab = http_lab(&[backend]);
    let mut client = Reader::new(lab.connect().await);
    let mut answer = client
        .ask("GET /a?b HTTP/1.1\r\nHost: other.example\r\nX-CamelCase: Yes\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nTE: trailers, gzip\r\nTraceparent: 00-aa-bb-01\r\nProxy-Connection: x\r\n\r\n")
        .await;
    answer.headers.sort();
    assert_eq!(answer.headers, [("Content-Length".into(), "0".into()), ("X-Case".into(), "Kept".into())]);
    let old =
        client.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n").await;
    assert_eq!(old.status(), 200);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].first, "GET /a?b HTTP/1.1");
    let mut got = seen[0].headers.clone();
    got.sort();
    let want = [
        ("Host", "other.example"),
        ("Traceparent", "00-aa-bb-01"),
        ("X-CamelCase", "Yes"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
    ];
    assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
    assert_eq!(seen[1].header("x-forwarded-for"), Some("1.2.3.4, 127.0.0.1"));
    assert_eq!(seen[1].header("host"), Some("10.96.0.10:80"), "an old client names none");
}

#[tokio::test]
async fn answers_come_in_the_order_of_pipelined_requests() {
    let (slow, fast) = (
        scripted(|request, _| {
            std::thread::sleep(Duration::from_millis(20));
            (ok(&request.first), false)
        })
        .await,
        scripted(|request, _| (ok(&request.first), false)).await,
    );
    let lab = http_lab(&[slow.0, fast.0]);
    let mut client = Reader::new(lab.connect().await);
    let all: Vec<_> = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(all.concat()).await;
    for n in 0..20 {
        assert_eq!(client.message().await.unwrap().text(), format!("GET /{n} HTTP/1.1"));
    }
}

#[tokio::test]
async fn broken_answers_are_told() {
    let (garbage, _) = scripted(|_, _| ("what is this\r\n\r\n".to_owned(), true)).await;
    let lab = http_lab(&[garbage]);
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.ask(GET).await.status(), 502);
    let (silent, accepted) = scripted(|_, _| (String::new(), true)).await;
    let lab = http_lab(&[silent]);
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.status(), 502);
    assert_eq!(accepted.load(Relaxed), 1, "a request that may have been carried out is not sent again");
    assert_eq!(client.ask(GET).await.status(), 502);
    assert!(accepted.load(Relaxed) > 2, "one that may be repeated is");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let (silent, held) = crate::harness::manual().await;
    let mut settings = settings();
    settings.http.request_timeout = Duration::from_millis(200);
    let lab = http_lab_with(&[silent], &settings, |_| {});
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.ask("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 504);
    let mut backend = Reader::new(held.await.unwrap());
    assert!(backend.message().await.is_some());
    assert!(backend.message().await.is_none(), "its connection is not used again");
}

#[tokio::test]
async fn what_is_not_http_is_relayed() {
    let lab = http_lab(&[crate::harness::echo().await]);
    for bytes in [&b"\x16\x03\x01\x00\x05hello"[..], b"EHLO lab\r\n", b"*1\r\n$4\r\nPING\r\n"] {
        let mut client = Reader::new(lab.connect().await);
        client.send(bytes).await;
        assert_eq!(client.bytes(bytes.len()).await.unwrap(), bytes);
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.rest().await, b"", "the end is passed on");
    }
    assert_eq!(lab.upstream().counters.http().numbers().not_http, 3);
    let greeting = crate::harness::backend_of(|mut stream| async move {
        let _ = stream.write_all(b"220 welcome\r\n").await;
    })
    .await;
    let lab = http_lab(&[greeting]);
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.rest().await, b"220 welcome\r\n", "a server that speaks first is heard");
}

#[tokio::test]
async fn old_clients_are_served_and_closed() {
    let (backend, _) = named("a").await;
    let lab = http_lab(&[backend]);
    let mut client = Reader::new(lab.connect().await);
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let text = String::from_utf8(client.rest().await).unwrap();
    assert!(text.starts_with("HTTP/1.") && text.ends_with("\r\n\r\na"), "{text}");
    // A client that says that it has no more to say still gets its answer.
    let mut client = Reader::new(lab.connect().await);
    client.send(GET).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.message().await.unwrap().text(), "a");
    assert_eq!(client.rest().await, b"");
    lab.until_idle().await;
}

#[tokio::test]
async fn a_header_or_a_cookie_leads_to_the_same_backend() {
    let (a, b, c) = (named("a").await.0, named("b").await.0, named("c").await.0);
    let lab = http_lab_with(&[a, b, c], &settings(), |port| {
        port.policy = edgesplice::model::Policy::Header("X-User".into());
    });
    let mut client = Reader::new(lab.connect().await);
    let mut by_user = BTreeMap::new();
    for n in 0..60 {
        let user = n % 20;
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nx-user: {user}\r\n\r\n")).await.text();
        assert_eq!(by_user.entry(user).or_insert_with(|| answer.clone()), &answer);
    }
    assert_eq!(by_user.values().collect::<std::collections::BTreeSet<_>>().len(), 3, "{by_user:?}");

    let rule = edgesplice::model::CookieRule {
        name: "stick".into(),
        path: "/".into(),
        ttl: Some(Duration::from_mins(1)),
    };
    let lab = http_lab_with(&[a, b, c], &settings(), |port| {
        port.policy = edgesplice::model::Policy::Cookie(Arc::new(rule));
    });
    for _ in 0..5 {
        let mut client = Reader::new(lab.connect().await);
        let first = client.ask(GET).await;
        let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        for _ in 0..5 {
            let again =
                client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: x=y; {cookie}\r\n\r\n")).await;
            assert_eq!((again.text(), again.header("set-cookie")), (first.text(), None));
        }
    }
}

#[tokio::test]
async fn a_backend_that_answers_with_errors_is_left_out_where_a_rule_says_so() {
    let (bad, count) =
        scripted(|_, _| ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_owned(), false)).await;
    let (good, _) = named("good").await;
    let _ = count;
    let lab = http_lab_with(&[bad, good], &settings(), |port| {
        port.policy = edgesplice::model::Policy::RoundRobin;
        port.outlier.consecutive_errors = Some(3);
        port.outlier.base_ejection_time = Some(Duration::from_mins(5));
    });
    let mut client = Reader::new(lab.connect().await);
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(client.ask(GET).await.status());
    }
    assert_eq!(codes.iter().filter(|code| **code == 500).count(), 3, "{codes:?}");
    eventually("it counts as ejected", || lab.states().contains(&edgesplice::balance::BackendState::Ejected))
        .await;
}

/// Answers that have no body, whatever their headers say.
#[tokio::test]
async fn answers_without_a_body_end_with_their_head() {
    let (backend, accepted) = scripted(|request, _| {
        let answer = match request.first.split(' ').nth(1) {
            Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
            Some("/304") => "HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        };
        (answer.to_owned(), false)
    })
    .await;
    let lab = http_lab(&[backend]);
    let mut client = Reader::new(lab.connect().await);
    for _ in 0..3 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.head().await.unwrap();
        assert_eq!((head.status(), head.header("content-length")), (200, Some("1000")));
        assert_eq!(client.ask("GET /204 HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 204);
        assert_eq!(client.ask("GET /304 HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 304);
    }
    assert_eq!(accepted.load(Relaxed), 1);
}
