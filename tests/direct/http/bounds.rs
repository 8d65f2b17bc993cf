//! `connectionPool.http` of a DestinationRule: how many requests at once, and how connections to backends are used.

use std::convert::Infallible;

use bytes::Bytes;
use edgesplice::model::HttpPool;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::{Notify, Semaphore};

use super::*;

/// A proxy with one HTTP port of `backend`, with `pool`.
fn bounded(backend: SocketAddr, pool: HttpPool) -> Lab {
    http_lab_with(&[backend], &settings(), |port| port.http_pool = Some(Box::new(pool)))
}

/// A backend that answers a request only when it is told to. Says by the permits how many it has got.
async fn held() -> (SocketAddr, Arc<Semaphore>, Arc<Notify>) {
    let (got, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (gets, goes) = (Arc::clone(&got), Arc::clone(&go));
    let addr = backend_of(move |stream| {
        let (got, go) = (Arc::clone(&gets), Arc::clone(&goes));
        async move {
            let mut reader = Reader::new(stream);
            while reader.message().await.is_some() {
                got.add_permits(1);
                go.notified().await;
                reader.send(ok("held")).await;
            }
        }
    })
    .await;
    (addr, got, go)
}

async fn arrived(got: &Semaphore) {
    got.acquire().await.unwrap().forget();
}

#[tokio::test]
async fn a_connection_carries_as_many_requests_as_it_is_to_carry() {
    let (backend, accepted) = named("a").await;
    let lab = bounded(backend, HttpPool { max_requests_per_connection: Some(2), ..HttpPool::default() });
    let mut client = Reader::new(lab.connect().await);
    for _ in 0..6 {
        assert_eq!(client.ask(GET).await.text(), "a");
    }
    assert_eq!(accepted.load(Relaxed), 3);
}

#[tokio::test]
async fn a_connection_is_kept_idle_for_as_long_as_the_rule_says() {
    for (idle_timeout, connections) in [(Some(Duration::from_millis(200)), 2), (Some(Duration::ZERO), 1)] {
        let (backend, accepted) = named("a").await;
        let lab = bounded(backend, HttpPool { idle_timeout, ..HttpPool::default() });
        let mut client = Reader::new(lab.connect().await);
        client.ask(GET).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.ask(GET).await;
        assert_eq!(accepted.load(Relaxed), connections, "{idle_timeout:?}");
    }
}

#[tokio::test]
async fn requests_beyond_the_bound_are_told_and_counted() {
    let (backend, got, go) = held().await;
    let lab = bounded(backend, HttpPool { max_requests: Some(1), ..HttpPool::default() });
    let mut first = Reader::new(lab.connect().await);
    first.send(GET).await;
    arrived(&got).await;
    let mut second = Reader::new(lab.connect().await);
    let refused = second.ask(GET).await;
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")));
    assert!(refused.text().contains("DestinationRule"), "{refused:?}");
    let numbers = || lab.upstream().counters.http().numbers();
    assert_eq!((numbers().limited, numbers().classes[4]), (1, 1));
    go.notify_one();
    assert_eq!(first.message().await.unwrap().text(), "held");
    // The place came back, and the connection that was told is still good.
    second.send(GET).await;
    arrived(&got).await;
    go.notify_one();
    assert_eq!(second.message().await.unwrap().text(), "held");
    assert_eq!(numbers().limited, 1);
}

#[tokio::test]
async fn repetitions_are_bounded() {
    let (got, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (gets, goes, count) = (Arc::clone(&got), Arc::clone(&go), AtomicUsize::new(0));
    // Drops the first, third and fourth request that it sees, keeps the second waiting, and answers the fifth.
    let backend = backend_of(move |stream| {
        let (got, go, number) = (Arc::clone(&gets), Arc::clone(&goes), count.fetch_add(1, Relaxed));
        async move {
            let mut reader = Reader::new(stream);
            reader.message().await.unwrap();
            got.add_permits(1);
            match number {
                1 => {
                    go.notified().await;
                    reader.send(ok("late")).await;
                }
                0 | 2 | 3 => {}
                _ => reader.send(ok("again")).await,
            }
        }
    })
    .await;
    let lab = bounded(backend, HttpPool { max_retries: Some(1), ..HttpPool::default() });
    let mut first = Reader::new(lab.connect().await);
    first.send(GET).await;
    arrived(&got).await;
    arrived(&got).await;
    let mut second = Reader::new(lab.connect().await);
    assert_eq!(second.ask(GET).await.status(), 502, "the only repetition is under way");
    go.notify_one();
    assert_eq!(first.message().await.unwrap().text(), "late");
    assert_eq!(second.ask(GET).await.text(), "again");
    assert_eq!(lab.upstream().counters.http().numbers().retries, 2);
}

#[tokio::test]
async fn requests_that_wait_for_a_connection_are_bounded() {
    let (silent, _full) = crate::harness::hanging().await;
    let lab = bounded(silent, HttpPool { max_pending: Some(1), ..HttpPool::default() });
    let mut first = Reader::new(lab.connect().await);
    first.send(GET).await;
    let numbers = || lab.upstream().counters.http().numbers();
    let mut second = Reader::new(lab.connect().await);
    // Whichever of the two came first waits.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(second.ask(GET).await.status(), 503);
    assert_eq!((numbers().limited, numbers().classes[4]), (1, 1), "the first is still waiting");
    assert_eq!(first.message().await.unwrap().status(), 503, "nobody ever accepts");
}

/// An HTTP/2 backend that answers when it is told to, and counts its connections.
async fn held_http2() -> (SocketAddr, Arc<AtomicUsize>, Arc<Semaphore>) {
    let (accepted, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, goes) = (Arc::clone(&accepted), Arc::clone(&go));
    let addr = backend_of(move |stream| {
        count.fetch_add(1, Relaxed);
        let go = Arc::clone(&goes);
        let answer = service_fn(move |_request: Request<hyper::body::Incoming>| {
            let go = Arc::clone(&go);
            async move {
                go.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"two"))))
            }
        });
        async move {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        }
    })
    .await;
    (addr, accepted, go)
}

#[tokio::test]
async fn http2_connections_are_bounded_too() {
    let pools = [
        (HttpPool { max_concurrent_streams: Some(1), ..HttpPool::default() }, 3),
        (HttpPool { max_requests_per_connection: Some(2), ..HttpPool::default() }, 2),
        (HttpPool::default(), 1),
    ];
    for (pool, connections) in pools {
        let (backend, accepted, go) = held_http2().await;
        let lab = bounded(backend, pool.clone());
        let send = h2::http2(&lab).await;
        let asked: Vec<_> = (0..3)
            .map(|_| {
                let mut send = send.clone();
                tokio::spawn(async move {
                    let request = Request::get("http://web/").body(Full::default()).unwrap();
                    send.send_request(request).await.unwrap().status().as_u16()
                })
            })
            .collect();
        crate::harness::eventually("the connections are there", || accepted.load(Relaxed) == connections)
            .await;
        go.add_permits(3);
        for answer in asked {
            assert_eq!(answer.await.unwrap(), 200);
        }
        assert_eq!(accepted.load(Relaxed), connections, "{pool:?}");
    }
}

#[tokio::test]
async fn http2_requests_beyond_the_bound_are_told() {
    let (backend, accepted, go) = held_http2().await;
    let lab = bounded(backend, HttpPool { max_requests: Some(1), ..HttpPool::default() });
    let mut send = h2::http2(&lab).await;
    let request = || Request::get("http://web/").body(Full::default()).unwrap();
    let first = tokio::spawn(send.send_request(request()));
    crate::harness::eventually("it is under way", || accepted.load(Relaxed) == 1).await;
    assert_eq!(send.send_request(request()).await.unwrap().status(), 503);
    go.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(lab.upstream().counters.http().numbers().limited, 1);
}
