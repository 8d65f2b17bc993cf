//! The sockets: datagrams and streams.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Resolver, Step};

/// Datagrams taken before others get their turn.
const BATCH: usize = 64;
/// The largest query that is read; a question with EDNS takes some 300 bytes.
const LARGEST_QUERY: usize = 4_096;
/// Queries that wait for foreign servers, for each socket.
const WAITING: usize = 1_024;
/// Streams at once on one listener.
const STREAMS: usize = 256;
/// Silence until a stream is closed (RFC 7766 says: some seconds).
const IDLE: Duration = Duration::from_secs(10);

pub(super) fn udp(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket)
}

pub(super) fn tcp(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

/// Answers datagrams until `closed`.
pub(super) async fn datagrams(socket: UdpSocket, resolver: Arc<Resolver>, closed: CancellationToken) {
    let socket = Arc::new(socket);
    let room = Arc::new(Semaphore::new(WAITING));
    let mut buffer = vec![0; LARGEST_QUERY];
    loop {
        tokio::select! {
            biased;
            () = closed.cancelled() => return,
            ready = socket.readable() => if ready.is_err() { return },
        }
        for _ in 0..BATCH {
            let (length, client) = match socket.try_recv_from(&mut buffer) {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // An error that some client's host reported about an answer.
                Err(_) => continue,
            };
            let asked = Instant::now();
            match resolver.begin(&buffer[..length], client.ip().to_canonical(), false) {
                Step::Reply(answer) => {
                    resolver.note(&answer, asked);
                    let _ = socket.try_send_to(&answer, client);
                }
                Step::Ask(query) => {
                    // With that many waiting, the servers are gone, and the client asks again.
                    let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
                    let (socket, resolver) = (Arc::clone(&socket), Arc::clone(&resolver));
                    tokio::spawn(async move {
                        let answer = resolver.finish(&query, false).await;
                        resolver.note(&answer, asked);
                        let _ = socket.try_send_to(&answer, client);
                        drop(place);
                    });
                }
                Step::Drop => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Takes streams for as long as the runtime lives.
pub(super) async fn accept(listener: TcpListener, resolver: Arc<Resolver>) {
    let room = Arc::new(Semaphore::new(STREAMS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, peer)) => {
                let resolver = Arc::clone(&resolver);
                tokio::spawn(async move {
                    stream(client, peer.ip().to_canonical(), resolver).await;
                    drop(place);
                });
            }
            // Out of descriptors, or the client has gone: a pause helps against the one and does not hurt the other.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Answers the queries of one stream, one after the other.
pub(super) async fn stream(mut stream: TcpStream, client: IpAddr, resolver: Arc<Resolver>) {
    while let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await {
        let length = usize::from(length);
        if length > LARGEST_QUERY {
            return;
        }
        let mut packet = vec![0; length];
        let Ok(Ok(_)) = timeout(IDLE, stream.read_exact(&mut packet)).await else { return };
        let asked = Instant::now();
        let answer = match resolver.begin(&packet, client, true) {
            Step::Reply(answer) => answer,
            Step::Ask(query) => resolver.finish(&query, true).await,
            Step::Drop => return,
        };
        resolver.note(&answer, asked);
        let Ok(length) = u16::try_from(answer.len()) else { return };
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        let Ok(Ok(())) = timeout(IDLE, stream.write_all(&framed)).await else { return };
    }
}
