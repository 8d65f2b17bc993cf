//! Moving bytes between a client and a backend until both have ended.
//!
//! Each direction runs in gears of its own. Idle, it holds no buffer. Messages go through a scratch buffer of the
//! thread (`copy`); only what the receiver would not take at once is kept. A direction that streams moves to
//! `splice(2)` with a pooled pipe (`splice`) and gives the pipe back when it falls silent.
//!
//! Ends keep their meaning: end of stream becomes a shut write half while the other direction goes on, a reset
//! becomes a reset, and an orderly close never turns into one. Both sockets are set to reset for as long as the relay
//! runs: if the process dies, the kernel must not tell either side that the other one has said all.

mod copy;
mod direction;
mod pipe;
mod splice;
mod vigil;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;

use crate::balance::PortCounters;
use crate::net::sock;

use direction::{Direction, Fault};
pub use pipe::{PipePool, PipeStats};
use vigil::{Side, Vigil};

/// How a relayed connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides ended their streams, and all was delivered.
    Orderly,
    /// The client's side broke.
    ClientReset,
    /// The backend's side broke.
    BackendReset,
}

/// Where a direction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Bytes may come.
    Open,
    /// The source has ended its stream and everything was delivered.
    Ended,
    /// The receiver broke. What the receiver had sent before is still passed on.
    Broken,
}

/// One connection's two directions. Poll it until it ends, then drop it, which closes both sockets; dropped before, it
/// resets them.
#[derive(Debug)]
pub struct Relay {
    client: TcpStream,
    backend: TcpStream,
    up: Direction,
    down: Direction,
    up_flow: Flow,
    down_flow: Flow,
    vigil: Vigil,
    /// What the backend said first has been acknowledged.
    acknowledged: bool,
    counters: Arc<PortCounters>,
}

impl Relay {
    /// Relays between `client`, which is set to reset already, and `backend`, counting on `counters` as bytes are delivered.
    pub fn new(client: TcpStream, backend: TcpStream, counters: Arc<PortCounters>) -> Self {
        sock::reset_on_close(&backend);
        Self {
            client,
            backend,
            up: Direction::default(),
            down: Direction::default(),
            up_flow: Flow::Open,
            down_flow: Flow::Open,
            vigil: Vigil::new(),
            acknowledged: false,
            counters,
        }
    }

    /// Delivers first what was read from the client (`up`) and from the backend (`down`) before.
    #[must_use]
    pub fn with_ahead(mut self, up: &[u8], down: &[u8]) -> Self {
        self.up = Direction::after(up);
        self.down = Direction::after(down);
        self
    }

    /// Moves what can be moved. Ready once the connection has ended; the coming drop resets both sides, unless both ended
    /// in good order.
    pub fn poll(&mut self, cx: &mut Context<'_>, pipes: &PipePool) -> Poll<End> {
        let end = match self.poll_end(cx, pipes) {
            Poll::Ready(end) => end,
            Poll::Pending => {
                let (up, down) = (self.up.take_moved(), self.down.take_moved());
                if up || down {
                    self.vigil.note(up, down);
                }
                if down && !self.acknowledged {
                    // The rest of an answer may wait for it. Where that has come already, the connection is over by now,
                    // and there is a packet less.
                    self.acknowledged = true;
                    sock::acknowledge(&self.backend);
                }
                match ready!(self.vigil.poll(cx, &self.client, &self.backend)) {
                    Side::Client => End::ClientReset,
                    Side::Backend => End::BackendReset,
                }
            }
        };
        if end == End::Orderly {
            sock::end_on_close(&self.client);
            sock::end_on_close(&self.backend);
        }
        Poll::Ready(end)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, pipes: &PipePool) -> Poll<End> {
        let (mut from_client, mut to_client) = self.client.split();
        let (mut from_backend, mut to_backend) = self.backend.split();

        if self.up_flow == Flow::Open {
            let counter = &self.counters.bytes_in;
            let ends = self.down_flow != Flow::Broken;
            let up = self.up.poll(cx, &mut from_client, &mut to_backend, counter, pipes, ends);
            if let Poll::Ready(done) = up {
                match settle(cx, done, self.down_flow, &mut to_backend) {
                    Some(flow) => self.up_flow = flow,
                    None => return Poll::Ready(End::ClientReset),
                }
            }
        }
        if self.down_flow == Flow::Open {
            let counter = &self.counters.bytes_out;
            let ends = self.up_flow != Flow::Broken;
            let down = self.down.poll(cx, &mut from_backend, &mut to_client, counter, pipes, ends);
            if let Poll::Ready(done) = down {
                match settle(cx, done, self.up_flow, &mut to_client) {
                    Some(flow) => self.down_flow = flow,
                    None => return Poll::Ready(End::BackendReset),
                }
            }
        }
        match (self.up_flow, self.down_flow) {
            (Flow::Ended, Flow::Ended) => Poll::Ready(End::Orderly),
            // What a broken peer sent before it broke is still passed on, but nobody waits for a receiver for it.
            (Flow::Broken, Flow::Open) if !self.down.is_blocked() => Poll::Pending,
            (Flow::Open, Flow::Broken) if !self.up.is_blocked() => Poll::Pending,
            (Flow::Broken, _) => Poll::Ready(End::BackendReset),
            (_, Flow::Broken) => Poll::Ready(End::ClientReset),
            (Flow::Open, _) | (_, Flow::Open) => Poll::Pending,
        }
    }
}

/// What a finished direction means: its new state, or `None` when its source was reset.
fn settle(
    cx: &mut Context<'_>,
    done: Result<(), Fault>,
    opposite: Flow,
    dst: &mut WriteHalf<'_>,
) -> Option<Flow> {
    match done {
        // With both streams ended, closing the sockets says it all. And what comes after a failed write looks like
        // the end of the stream, because the kernel tells of a reset only once: that must not be passed on as one.
        Ok(()) if opposite != Flow::Open => Some(Flow::Ended),
        Ok(()) => match Pin::new(dst).poll_shutdown(cx) {
            Poll::Ready(Err(_)) => Some(Flow::Broken),
            Poll::Ready(Ok(())) | Poll::Pending => Some(Flow::Ended),
        },
        Err(Fault::Write) => Some(Flow::Broken),
        Err(Fault::Read) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::ErrorKind;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;

    /// Two ends of one connection; the second is to be relayed.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let relayed = far.unwrap().0;
        sock::reset_on_close(&relayed);
        (near.unwrap(), relayed)
    }

    async fn run(mut relay: Relay) -> End {
        let pipes = PipePool::new(4);
        poll_fn(|cx| relay.poll(cx, &pipes)).await
    }

    /// The kernel tells of a reset only once. Here the relay hears of it when it writes, after which a read looks like
    /// the end of the stream.
    #[tokio::test]
    async fn a_reset_learnt_by_writing_is_not_passed_on_as_an_end() {
        let ((mut client, near_client), (mut backend, near_backend)) =
            (connection().await, connection().await);
        client.write_all(&[0; 1000]).await.unwrap();
        backend.write_all(b"so far").await.unwrap();
        sleep(Duration::from_millis(20)).await;
        backend.set_zero_linger().unwrap();
        drop(backend);
        sleep(Duration::from_millis(20)).await;
        assert_eq!(run(Relay::new(near_client, near_backend, Arc::default())).await, End::BackendReset);

        let mut got = [0; 6];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"so far", "what came before the reset is delivered");
        assert_eq!(client.read(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn only_what_has_ended_on_both_sides_is_ended() {
        let ((mut client, near_client), (mut backend, near_backend)) =
            (connection().await, connection().await);
        let relay = tokio::spawn(run(Relay::new(near_client, near_backend, Arc::default())));
        let mut bytes = Vec::new();
        client.write_all(b"all").await.unwrap();
        client.shutdown().await.unwrap();
        backend.read_to_end(&mut bytes).await.unwrap();
        backend.write_all(&bytes).await.unwrap();
        drop(backend);
        assert_eq!(relay.await.unwrap(), End::Orderly);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"all");

        // As when the process dies.
        let ((mut client, near_client), (mut backend, near_backend)) =
            (connection().await, connection().await);
        let relay = tokio::spawn(run(Relay::new(near_client, near_backend, Arc::default())));
        client.write_all(b"half").await.unwrap();
        backend.read_exact(&mut [0; 4]).await.unwrap();
        relay.abort();
        assert!(relay.await.unwrap_err().is_cancelled());
        for side in [&mut client, &mut backend] {
            assert_eq!(side.read(&mut [0; 16]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_client_that_breaks_while_its_bytes_are_stuck_ends_the_connection() {
        let ((mut client, near_client), (mut backend, near_backend)) =
            (connection().await, connection().await);
        let relay = tokio::spawn(run(Relay::new(near_client, near_backend, Arc::default())));
        let chunk = vec![0; 1 << 20];
        while tokio::time::timeout(Duration::from_millis(200), client.write_all(&chunk)).await.is_ok() {}
        client.set_zero_linger().unwrap();
        drop(client);
        sleep(Duration::from_millis(50)).await;
        // The backend does not read, and what it says has no receiver any more.
        backend.write_all(b"hello?").await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(2), relay).await.unwrap().unwrap();
        assert_eq!(end, End::ClientReset);
    }
}
