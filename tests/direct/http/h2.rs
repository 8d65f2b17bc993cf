//! HTTP/2 with prior knowledge: streams, trailers, and floods of frames.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::harness::refusing;

type Answer = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// A gRPC-shaped backend: says its name and how long the request's body was, and ends with trailers. It takes all its
/// connections with it when `dies` is cancelled.
async fn grpc(name: &'static str, dies: CancellationToken) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(
                    request.headers().get("te").map(hyper::http::HeaderValue::as_bytes),
                    Some(&b"trailers"[..])
                );
                let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                let length = request.into_body().collect().await.map_or(0, |b| b.to_bytes().len());
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let text = Bytes::from(format!("{name} {host} {length}"));
                let frames = [Ok(Frame::data(text)), Ok::<_, Infallible>(Frame::trailers(trailers))];
                let body: Answer = StreamBody::new(futures_util::stream::iter(frames)).boxed();
                Ok::<_, Infallible>(Response::new(body))
            });
            tasks.spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    };
    tokio::spawn(async move {
        dies.run_until_cancelled(serve).await;
    });
    addr
}

pub(super) async fn http2(lab: &Lab) -> SendRequest<Full<Bytes>> {
    let (send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(lab.connect().await))
            .await
            .unwrap();
    tokio::spawn(conn);
    send
}

fn call(body: &'static [u8]) -> Request<Full<Bytes>> {
    Request::post("http://echo.default:50051/pkg.Service/Method")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from_static(body)))
        .unwrap()
}

/// Calls, and gives what came back, and the trailer.
async fn called(send: &mut SendRequest<Full<Bytes>>) -> (String, Option<String>) {
    send.ready().await.unwrap();
    let answer = send.send_request(call(b"question")).await.unwrap();
    let from_head = answer.headers().get("grpc-status").map(|s| s.to_str().unwrap().to_owned());
    let whole = answer.into_body().collect().await.unwrap();
    let status = whole.trailers().and_then(|t| t.get("grpc-status")).map(|s| s.to_str().unwrap().to_owned());
    (String::from_utf8(whole.to_bytes().to_vec()).unwrap(), status.or(from_head))
}

#[tokio::test]
async fn calls_of_one_connection_are_spread_and_a_backend_that_dies_is_not_noticed() {
    let dies = CancellationToken::new();
    let (a, b) = (grpc("a", CancellationToken::new()).await, grpc("b", CancellationToken::new()).await);
    let c = grpc("c", dies.clone()).await;
    let lab = http_lab_with(&[a, b, c], &settings(), |port| {
        port.policy = edgesplice::model::Policy::RoundRobin;
    });
    let mut send = http2(&lab).await;
    let mut seen = BTreeMap::new();
    for n in 0..30 {
        if n == 15 {
            dies.cancel();
            // The end of its connections is on its way.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let (text, status) = called(&mut send).await;
        assert_eq!(status.as_deref(), Some("0"), "call {n}");
        let (name, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "echo.default:50051 8", "call {n}");
        *seen.entry(name.to_owned()).or_insert(0) += 1;
    }
    assert_eq!(seen["c"], 5, "{seen:?}");
    assert_eq!(seen["a"] + seen["b"], 25, "{seen:?}");
    assert_eq!(lab.upstream().counters.http().numbers().classes, [0, 30, 0, 0, 0]);
}

#[tokio::test]
async fn grpc_clients_are_told_in_their_own_words() {
    let lab = http_lab(&[refusing().await]);
    let mut send = http2(&lab).await;
    assert_eq!(called(&mut send).await, (String::new(), Some("14".into())), "14 is UNAVAILABLE");
    let plain = Request::get("http://web/").body(Full::default()).unwrap();
    send.ready().await.unwrap();
    assert_eq!(send.send_request(plain).await.unwrap().status(), 503);
}

#[tokio::test]
async fn streams_flow_both_ways() {
    let backend = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            // Sends each piece back as it comes.
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        addr
    };
    let lab = http_lab(&[backend]);
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(lab.connect().await))
            .await
            .unwrap();
    tokio::spawn(conn);
    let (pieces, body) = mpsc::unbounded_channel::<Frame<Bytes>>();
    let stream = futures_util::stream::unfold(body, |mut body| async {
        let frame = body.recv().await?;
        Some((Ok::<_, Infallible>(frame), body))
    });
    let request = Request::post("http://web/").body(StreamBody::new(Box::pin(stream))).unwrap();
    pieces.send(Frame::data(Bytes::from_static(b"one"))).unwrap();
    let mut answer = send.send_request(request).await.unwrap();
    for piece in ["one", "two", "three"] {
        if piece != "one" {
            pieces.send(Frame::data(Bytes::from_static(piece.as_bytes()))).unwrap();
        }
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.data_ref().unwrap(), piece);
    }
    drop(pieces);
    while let Some(frame) = answer.frame().await {
        assert_eq!(frame.unwrap().data_ref().map(Bytes::len), Some(0), "nothing more comes");
    }
}

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
/// `GET / http` with authority `a`, in HPACK's static table.
pub(super) const GET_BLOCK: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

/// One frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends frames of `make` on a connection of its own until the other side has had enough, at most `most` times. Gives
/// the error code of its GOAWAY, or `None` where it closed without one or took everything.
async fn flood(lab: &Lab, most: u32, make: impl Fn(u32) -> Vec<u8>) -> (bool, Option<u32>) {
    let stream = lab.connect().await;
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            // Long enough to hold the last frames, short enough not to hold them all.
            bytes.extend_from_slice(&buffer[..n]);
        }
        bytes
    });
    let _ = write.write_all(PREFACE).await;
    let _ = write.write_all(&frame(SETTINGS, 0, 0, &[])).await;
    let mut refused = false;
    for n in 0..most {
        let sent = tokio::time::timeout(Duration::from_secs(10), write.write_all(&make(n))).await;
        if !matches!(sent, Ok(Ok(()))) {
            refused = true;
            break;
        }
    }
    let _ = write.shutdown().await;
    let bytes = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("it ends").unwrap();
    let mut at = 0;
    let mut code = None;
    while let Some(head) = bytes.get(at..at + 9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if head[3] == GOAWAY
            && let Some(payload) = bytes.get(at + 9 + 4..at + 9 + 8)
        {
            code = Some(u32::from_be_bytes(payload.try_into().unwrap()));
        }
        at += 9 + length;
    }
    (refused, code.filter(|code| *code != 0))
}

/// Whether a decent client is served.
pub(super) async fn still_serves(lab: &Lab) {
    let mut client = Reader::new(lab.connect().await);
    assert_eq!(client.ask(GET).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_ended_and_others_unharmed() {
    let (backend, accepted) = named("a").await;
    let lab = http_lab(&[backend]);
    // Rapid reset.
    let (refused, code) = flood(&lab, 20_000, |n| {
        let stream = 2 * n + 1;
        let open = frame(HEADERS, END_STREAM | END_HEADERS, stream, GET_BLOCK);
        [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    })
    .await;
    assert!(refused || code.is_some(), "twenty thousand streams were opened and reset");
    still_serves(&lab).await;
    // A head without end.
    let (refused, code) = flood(&lab, 20_000, |n| {
        let literal = [&[0x00, 1, b'x', 100][..], &[b'y'; 100]].concat();
        match n {
            0 => frame(HEADERS, END_STREAM, 1, GET_BLOCK),
            _ => frame(CONTINUATION, 0, 1, &literal.repeat(20)),
        }
    })
    .await;
    assert!(refused || code.is_some(), "a head of forty megabytes was taken");
    still_serves(&lab).await;
    // Questions that want answers: they may be answered, one by one.
    flood(&lab, 20_000, |_| frame(PING, 0, 0, &[7; 8])).await;
    still_serves(&lab).await;
    flood(&lab, 20_000, |_| frame(SETTINGS, 0, 0, &[])).await;
    still_serves(&lab).await;
    // Frames that cost nothing to send and say nothing.
    flood(&lab, 20_000, |n| match n {
        0 => frame(HEADERS, END_HEADERS, 1, GET_BLOCK),
        _ => frame(DATA, 0, 1, &[]),
    })
    .await;
    still_serves(&lab).await;
    flood(&lab, 20_000, |n| frame(WINDOW_UPDATE, 0, 0, &(1 + n % 2).to_be_bytes())).await;
    still_serves(&lab).await;
    flood(&lab, 20_000, |n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1])).await;
    still_serves(&lab).await;
    // Nonsense.
    for bytes in [
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, END_HEADERS, 2, GET_BLOCK),
        frame(HEADERS, END_HEADERS, 1, &[0xff; 20]),
        frame(SETTINGS, 0, 0, &[0; 5]),
        vec![0xff; 64],
    ] {
        let (_, code) = flood(&lab, 1, |_| bytes.clone()).await;
        assert!(code.is_some(), "{bytes:?} was taken for something");
    }
    still_serves(&lab).await;
    assert!(accepted.load(Relaxed) < 200, "{} connections to the backend", accepted.load(Relaxed));
    lab.until_idle().await;
}
