//! The server that all contenders lead to: keep-alive requests on one port, bytes without end on another.

use std::io::{Read, Write};
use std::net::TcpListener;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::{Node, Server};

/// Requests and answers.
pub(crate) const HTTP_PORT: u16 = 80;
/// Bytes without end, until the client goes.
pub(crate) const BULK_PORT: u16 = 81;
/// Size of one write and one read of the bulk stream, as iperf3 has it.
pub(crate) const BULK_CHUNK: usize = 128 * 1024;
/// What a request ends with when the connection is to be closed after the answer.
pub(crate) const CLOSE: u8 = b'!';
/// Length of each request.
pub(crate) const REQUEST: usize = 128;
/// Length of each answer.
pub(crate) const ANSWER: usize = 256;

/// Starts the server in `node`. It ends with the program; the bulk part when the value is dropped.
pub(crate) fn start(node: &Node) -> Server {
    let listener =
        node.enter(|| TcpListener::bind(("0.0.0.0", HTTP_PORT))).expect("the server's port is free");
    listener.set_nonblocking(true).expect("a listener can be made non-blocking");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        });
    });
    Server::start(node, BULK_PORT, |mut stream| {
        let chunk = vec![0x5a; BULK_CHUNK];
        // The client's first byte starts the stream.
        if stream.read_exact(&mut [0]).is_ok() {
            while stream.write_all(&chunk).is_ok() {}
        }
    })
}

async fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).await.is_ok() {
        if stream.write_all(&[b'a'; ANSWER]).await.is_err() || request[REQUEST - 1] == CLOSE {
            break;
        }
    }
}
