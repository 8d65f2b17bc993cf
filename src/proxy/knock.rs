//! The agent's own probe of the acceptor: a connection to a served frontend, by the way that every client's takes
//! through the packet filter, the queue and the accepting loop, and answered there. No backend hears of it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::net::sock;

/// What the acceptor answers: no server greets with this byte alone.
const ANSWER: u8 = 0x06;

/// Which connection is the probe, so that the acceptor knows it when it comes.
#[derive(Debug, Default)]
pub struct Knock {
    /// The probe's port; 0 while none is under way. The accepting loop reads this and, as a rule, nothing else.
    port: AtomicU32,
    from: Mutex<Option<SocketAddr>>,
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The acceptor has answered.
    Answered,
    /// Nothing was connected: refused, or no way there. The packet filter does not lead here, at least not now.
    NotLed(io::ErrorKind),
    /// It was connected and then ended without the answer: turned away for want of room, or led to somebody else.
    Ended,
    /// It was connected, and nobody said a word.
    Silent,
}

impl Knock {
    /// True if a connection from `peer` is the probe under way.
    #[inline]
    pub(super) fn is(&self, peer: SocketAddr) -> bool {
        self.port.load(Relaxed) == u32::from(peer.port()) && self.is_from(peer)
    }

    #[cold]
    fn is_from(&self, peer: SocketAddr) -> bool {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) == Some(sock::unmapped(peer))
    }

    /// Connects to `frontend` and waits for the acceptor's answer, each at most for `patience`. An error says that the
    /// probe itself could not be made.
    pub async fn probe(&self, frontend: SocketAddr, patience: Duration) -> io::Result<Reply> {
        let socket = bound_towards(frontend)?;
        let own = socket.local_addr()?;
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
        self.port.store(own.port().into(), Relaxed);
        let reply = ask(socket, frontend, patience).await;
        self.port.store(0, Relaxed);
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(reply)
    }
}

/// A socket whose address and port are known before its first packet leaves.
fn bound_towards(frontend: SocketAddr) -> io::Result<TcpSocket> {
    let any = if frontend.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Connecting a UDP socket sends nothing and tells which address the kernel would take.
    let route = UdpSocket::bind(SocketAddr::new(any, 0))?;
    route.connect(frontend)?;
    let socket = if frontend.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(route.local_addr()?.ip(), 0))?;
    Ok(socket)
}

async fn ask(socket: TcpSocket, frontend: SocketAddr, patience: Duration) -> Reply {
    let mut stream = match timeout(patience, socket.connect(frontend)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Reply::NotLed(e.kind()),
        Err(_) => return Reply::NotLed(io::ErrorKind::TimedOut),
    };
    sock::reset_on_close(&stream);
    let mut answer = [0; 1];
    match timeout(patience, stream.read(&mut answer)).await {
        Ok(Ok(1)) if answer[0] == ANSWER => Reply::Answered,
        Ok(_) => Reply::Ended,
        Err(_) => Reply::Silent,
    }
}

/// Answers the probe on the thread that would serve a client.
pub(super) async fn answer(client: TcpStream) {
    if client.writable().await.is_ok() {
        let _ = client.try_write(&[ANSWER]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn served(answers: bool) -> (Reply, bool) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let knock = Knock::default();
        let serve = async {
            let (client, peer) = listener.accept().await.unwrap();
            let known = knock.is(peer);
            if answers && known {
                answer(client).await;
            }
            known
        };
        let (reply, known) = tokio::join!(knock.probe(addr, PATIENCE), serve);
        assert_eq!(knock.port.load(Relaxed), 0);
        (reply.unwrap(), known)
    }

    #[tokio::test]
    async fn the_acceptor_knows_the_probe_and_answers_it() {
        assert_eq!(served(true).await, (Reply::Answered, true));
        assert_eq!(served(false).await, (Reply::Ended, true));
    }

    #[tokio::test]
    async fn others_are_not_taken_for_it() {
        let knock = Knock::default();
        assert!(!knock.is("127.0.0.1:1".parse().unwrap()));
        knock.port.store(7, Relaxed);
        *knock.from.lock().unwrap() = Some("10.0.0.1:7".parse().unwrap());
        assert!(knock.is("[::ffff:10.0.0.1]:7".parse().unwrap()) && !knock.is("10.0.0.2:7".parse().unwrap()));
    }

    #[tokio::test]
    async fn silence_and_refusal_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let knock = Knock::default();
        assert_eq!(knock.probe(addr, Duration::from_millis(100)).await.unwrap(), Reply::Silent);
        drop(listener);
        let reply = knock.probe(addr, PATIENCE).await.unwrap();
        assert_eq!(reply, Reply::NotLed(io::ErrorKind::ConnectionRefused));
    }
}
