//! The server that all contenders lead to: HTTP/1 on one port, HTTP/2 with prior knowledge on another.

use std::convert::Infallible;
use std::net::TcpListener;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::Node;

/// HTTP/1.
pub(crate) const HTTP1_PORT: u16 = 80;
/// HTTP/2.
pub(crate) const HTTP2_PORT: u16 = 82;
/// The body of each answer.
pub(crate) const BODY: [u8; 256] = [b'a'; 256];

/// Starts the server in `node`. It ends with the program.
pub(crate) fn start(node: &Node) {
    let listen = |port| {
        let listener =
            node.enter(|| TcpListener::bind(("0.0.0.0", port))).expect("the server's port is free");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        listener
    };
    let (http1, http2) = (listen(HTTP1_PORT), listen(HTTP2_PORT));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let [http1, http2] =
                [http1, http2].map(|l| tokio::net::TcpListener::from_std(l).expect("a listener"));
            loop {
                tokio::select! {
                    Ok((stream, _)) = http1.accept() => drop(tokio::spawn(answer(stream))),
                    Ok((stream, _)) = http2.accept() => drop(tokio::spawn(streams(stream))),
                }
            }
        });
    });
}

/// Answers by hand: the server is to cost as little as can be.
async fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut reply = format!(
        "HTTP/1.1 200 OK\r\nServer: origin\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        BODY.len()
    )
    .into_bytes();
    reply.extend_from_slice(&BODY);
    let mut buffer = Vec::with_capacity(4096);
    while matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
        while let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            if stream.write_all(&reply).await.is_err() {
                return;
            }
        }
    }
}

async fn streams(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&BODY))))
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
