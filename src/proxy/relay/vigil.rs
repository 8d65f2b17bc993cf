//! Notices a peer that has died with bytes under way to it.
//!
//! Keep-alive probes find dead peers of silent connections only: the kernel sends none while something is
//! unacknowledged, and goes on retransmitting for a quarter of an hour. `TCP_USER_TIMEOUT` would end that sooner, but
//! also ends connections whose peer is alive and merely does not read (measured on Linux 6.18). What tells the two
//! apart is the acknowledgement of retransmissions and window probes, so that is looked at. A connection on which
//! nothing is under way is looked at once, which switches keep-alive on for it, and has no timer from then on.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::net::{diag, sock};

/// Time between two looks at a connection on which bytes move.
const EVERY: Duration = Duration::from_secs(15);
/// Unacknowledged for so long, the peer is taken for dead: as long as keep-alive takes on a silent connection.
const PATIENCE: Duration = Duration::from_mins(1);

/// One of a connection's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Who connected to us.
    Client,
    /// Whom we connected to.
    Backend,
}

/// The watch over one connection.
#[derive(Debug)]
pub(super) struct Vigil {
    timer: Option<Pin<Box<Sleep>>>,
    /// Keep-alive is on for the backend's side. The client's has it from the start.
    keeps_alive: bool,
    client: Peer,
    backend: Peer,
}

/// What has happened with a peer since the last look.
#[derive(Debug, Default)]
struct Peer {
    /// Bytes were written to it, or some were still under way.
    told: bool,
    /// Bytes came from it.
    heard: bool,
}

impl Vigil {
    /// A watch that begins now.
    pub(super) fn new() -> Self {
        Self {
            timer: Some(Box::pin(sleep(EVERY))),
            keeps_alive: false,
            client: Peer::default(),
            backend: Peer::default(),
        }
    }

    /// Notes that bytes have moved: from the client (`up`) and from the backend (`down`).
    pub(super) fn note(&mut self, up: bool, down: bool) {
        self.client.heard |= up;
        self.backend.told |= up;
        self.backend.heard |= down;
        self.client.told |= down;
        if self.timer.is_none() {
            self.timer = Some(Box::pin(sleep(EVERY)));
        }
    }

    /// Ready with the side that has died.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &TcpStream,
        backend: &TcpStream,
    ) -> Poll<Side> {
        loop {
            let Some(timer) = &mut self.timer else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            if !self.keeps_alive {
                self.keeps_alive = true;
                // A socket that has failed tells so when it is next read.
                let _ = sock::keep_alive(backend);
            }
            let looks = [
                self.client.look(|| diag::delivery(client).ok()),
                self.backend.look(|| diag::delivery(backend).ok()),
            ];
            match looks {
                [Look::Dead, _] => return Poll::Ready(Side::Client),
                [_, Look::Dead] => return Poll::Ready(Side::Backend),
                [Look::Quiet, Look::Quiet] => self.timer = None,
                [a, b] => {
                    let next = Instant::now() + a.wait().min(b.wait());
                    timer.as_mut().reset(next);
                }
            }
        }
    }
}

/// What a look at one side came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing is under way to it.
    Quiet,
    /// Look again after that time.
    Again(Duration),
    Dead,
}

impl Look {
    fn wait(self) -> Duration {
        if let Self::Again(wait) = self { wait } else { EVERY }
    }
}

impl Peer {
    fn look(&mut self, delivery: impl FnOnce() -> Option<diag::Delivery>) -> Look {
        let heard = std::mem::take(&mut self.heard);
        if !self.told {
            // What we hear may be answered, which needs no look before the next one.
            return if heard { Look::Again(EVERY) } else { Look::Quiet };
        }
        if heard {
            return Look::Again(EVERY);
        }
        match delivery() {
            Some(found) if found.unacknowledged > 0 && found.silence >= PATIENCE => Look::Dead,
            Some(found) if found.unacknowledged > 0 => {
                Look::Again(EVERY.min(PATIENCE.saturating_sub(found.silence)))
            }
            // Acknowledged; or a socket that has ended, which its next read tells.
            _ => {
                self.told = false;
                Look::Quiet
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(unacknowledged: u32, seconds: u64) -> diag::Delivery {
        diag::Delivery { unacknowledged, silence: Duration::from_secs(seconds) }
    }

    #[test]
    fn only_unacknowledged_bytes_and_silence_together_mean_death() {
        let mut peer = Peer { told: true, heard: false };
        assert_eq!(peer.look(|| Some(delivery(9, 20))), Look::Again(EVERY));
        assert_eq!(peer.look(|| Some(delivery(9, 50))), Look::Again(Duration::from_secs(10)));
        assert_eq!(peer.look(|| Some(delivery(9, 60))), Look::Dead);
        assert_eq!(
            peer.look(|| Some(delivery(0, 600))),
            Look::Quiet,
            "silent because there is nothing to say"
        );
        assert_eq!(peer.look(|| panic!("nobody asks")), Look::Quiet);
    }

    #[test]
    fn who_speaks_is_alive() {
        let mut peer = Peer { told: true, heard: true };
        assert_eq!(peer.look(|| panic!("nobody asks")), Look::Again(EVERY));
        assert_eq!(peer.look(|| Some(delivery(1, 1))), Look::Again(EVERY));
    }
}
