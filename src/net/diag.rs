//! What the kernel knows of a connection beyond its socket's options, asked over `sock_diag(7)`.
//!
//! `TCP_INFO` would say the same about one socket, but has no safe binding.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use tokio::net::TcpStream;

use super::sock::unmapped;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `INET_DIAG_INFO` of `linux/inet_diag.h`: the attribute with `struct tcp_info`.
const INFO: u16 = 2;
/// Sizes of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const QUESTION: usize = 56;
const MESSAGE: usize = 72;
/// Offset of `idiag_wqueue` in `struct inet_diag_msg`: bytes written that the peer has not acknowledged.
const WRITE_QUEUE: usize = 60;
/// Offset of `tcpi_last_ack_recv` in `struct tcp_info`: milliseconds since the last acknowledgement.
const LAST_ACK: usize = 56;

/// How what was sent on a connection fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes that the peer has not acknowledged, sent or not.
    pub unacknowledged: u32,
    /// Time since the peer's last acknowledgement. A peer that is alive and merely does not read acknowledges every
    /// window probe.
    pub silence: Duration,
}

/// Asks how what was sent on `stream` fares. Fails with `ENOENT` for a connection that has ended.
pub fn delivery(stream: &TcpStream) -> io::Result<Delivery> {
    let (local, peer) = (unmapped(stream.local_addr()?), unmapped(stream.peer_addr()?));
    let link = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    sendto(link.as_raw_fd(), &question(local, peer), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    // The kernel has answered by the time that `sendto` returns.
    let mut answer = [0; 1024];
    let length = recv(link.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    parse(answer.get(..length).unwrap_or_default())
}

fn question(local: SocketAddr, peer: SocketAddr) -> [u8; HEADER + QUESTION] {
    let mut text = [0; HEADER + QUESTION];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        text[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let length = u32::try_from(HEADER + QUESTION).unwrap_or_default();
    put(&length.to_ne_bytes());
    put(&BY_FAMILY.to_ne_bytes());
    put(&REQUEST.to_ne_bytes());
    put(&[0; 8]);
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 } as u8;
    let tcp = SockProtocol::Tcp as u8;
    put(&[family, tcp, 1 << (INFO - 1), 0]);
    // In any state.
    put(&u32::MAX.to_ne_bytes());
    put(&local.port().to_be_bytes());
    put(&peer.port().to_be_bytes());
    put(&padded(local.ip()));
    put(&padded(peer.ip()));
    // On any interface, and without the cookie of an earlier answer.
    put(&[0; 4]);
    put(&[0xff; 8]);
    text
}

fn padded(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn parse(answer: &[u8]) -> io::Result<Delivery> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "sock_diag gave no answer that makes sense");
    let kind = u16_at(answer, 4).ok_or_else(bad)?;
    if kind != BY_FAMILY {
        // NLMSG_ERROR carries the negative error number.
        let number = u32_at(answer, HEADER).ok_or_else(bad)?.cast_signed();
        return Err(io::Error::from_raw_os_error(number.wrapping_neg()));
    }
    let unacknowledged = u32_at(answer, HEADER + WRITE_QUEUE).ok_or_else(bad)?;
    let mut at = HEADER + MESSAGE;
    while let (Some(length), Some(kind)) = (u16_at(answer, at), u16_at(answer, at + 2)) {
        if kind == INFO {
            let millis = u32_at(answer, at + 4 + LAST_ACK).ok_or_else(bad)?;
            return Ok(Delivery { unacknowledged, silence: Duration::from_millis(millis.into()) });
        }
        // Attributes are padded to four bytes.
        at += usize::from(length).max(4).next_multiple_of(4);
    }
    Err(bad())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Reads an answer, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(answer: &[u8]) {
    let _ = parse(answer);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn connection(ip: IpAddr, to: IpAddr) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (near, far) = tokio::join!(TcpStream::connect((to, port)), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_still_acknowledges() {
        let cases = [
            (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
            (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
            // An IPv4 connection of a socket for both families.
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::LOCALHOST)),
        ];
        for (ip, to) in cases {
            let (mut near, mut far) = connection(ip, to).await;
            near.write_all(b"hello").await.unwrap();
            far.read_exact(&mut [0; 5]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
            let quiet = delivery(&near).unwrap();
            assert_eq!(quiet.unacknowledged, 0);
            assert!(quiet.silence >= Duration::from_millis(40) && quiet.silence < Duration::from_secs(5));

            // Full on both sides: the rest waits, and each probe is answered.
            let chunk = vec![0; 1 << 20];
            let stuck = async { while far.write_all(&chunk).await.is_ok() {} };
            assert!(tokio::time::timeout(Duration::from_millis(700), stuck).await.is_err());
            let full = delivery(&far).unwrap();
            assert!(full.unacknowledged > 0);
            assert!(full.silence < Duration::from_millis(650), "{full:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_not_found() {
        let (near, mut far) = connection(Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()).await;
        near.set_zero_linger().unwrap();
        drop(near);
        assert!(far.read(&mut [0; 1]).await.is_err());
        assert!(delivery(&far).is_err());
    }
}
