//! What the kernel knows of a connection to a backend.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::net::diag;

/// Unacknowledged for so long, a backend's machine is taken for gone: four retransmissions on a local network.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// True if the socket has something to say: bytes, an end, or an error.
pub(super) fn has_news(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    !matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// True if nothing that was sent has been acknowledged for [`LOST_AFTER`]. A backend that is alive and merely takes its
/// time acknowledges what it gets.
pub(super) fn is_lost(stream: &TcpStream) -> bool {
    diag::delivery(stream).is_ok_and(|found| found.unacknowledged > 0 && found.silence >= LOST_AFTER)
}
