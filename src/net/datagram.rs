//! Datagrams in bunches: what one client sends in one go passes through the kernel, and through this program, as one.
//!
//! Programs that send much (QUIC, tunnels) hand the kernel many datagrams of one size at once (`UDP_SEGMENT`), and
//! network cards put together what arrives so. A socket that takes bunches (`UDP_GRO`) gets them whole, with the size
//! of each datagram beside; sent on with that size, they come apart where they went together. Measured: a ninth of the
//! processor time, see `docs/bench/udp.md`. Where the kernel has none of it, each datagram is a bunch of one.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room for the one control message that is asked for.
fn control() -> Vec<u8> {
    nix::cmsg_space!(i32)
}

/// Datagrams of one sender, all of one size but the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Bunch<'a> {
    /// One after the other.
    pub bytes: &'a [u8],
    /// The size of each; that of the whole where it is one.
    pub size: usize,
}

impl<'a> Bunch<'a> {
    /// One datagram.
    pub fn one(bytes: &'a [u8]) -> Self {
        Self { bytes, size: bytes.len() }
    }

    /// Whether it is more than one.
    fn is_several(self) -> bool {
        self.size > 0 && self.bytes.len() > self.size
    }
}

/// Makes `socket` take bunches. A kernel that has none gives datagrams one by one, as before.
pub fn take_bunches(socket: &impl AsFd) {
    let _ = setsockopt(&socket.as_fd(), sockopt::UdpGroSegment, &true);
}

/// Makes a socket with a peer tell of every word from the network that the peer cannot be reached: without, Linux
/// tells of closed ports, and not of hosts that are gone.
pub fn tell_errors(socket: &impl AsFd) {
    let socket = socket.as_fd();
    let _ = setsockopt(&socket, sockopt::Ipv4RecvErr, &true);
    let _ = setsockopt(&socket, sockopt::Ipv6RecvErr, &true);
}

/// Takes the words about errors off a socket of [`tell_errors`] that is to live on: they take up room there.
pub fn forget_errors(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    let mut rest = [std::mem::MaybeUninit::uninit(); 8];
    while socket.recv_with_flags(&mut rest, MsgFlags::MSG_ERRQUEUE.bits()).is_ok() {}
}

/// Takes what has arrived into `buffer`: how many bytes, of what size each datagram is, and from whom; `None` if the
/// socket has a peer. Never waits.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, usize, Option<SocketAddr>)> {
    thread_local! {
        static CONTROL: RefCell<Vec<u8>> = RefCell::new(control());
    }
    CONTROL.with_borrow_mut(|control| {
        socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let fd = socket.as_raw_fd();
            let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(control), MsgFlags::empty())?;
            let size = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|one| match one {
                    ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
                    _ => None,
                })
            });
            let size = size.filter(|size| *size > 0).unwrap_or(message.bytes);
            Ok((message.bytes, size, message.address.as_ref().and_then(address)))
        })
    })
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| from.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// Sends `bunch` to `to`, or to the socket's peer. Never waits; returns how many bytes left.
///
/// An error says that nothing has left. It may be one that an earlier datagram met.
pub fn send(socket: &impl AsFd, bunch: Bunch<'_>, to: Option<SocketAddr>) -> io::Result<usize> {
    let socket = SockRef::from(socket);
    let one = |bytes: &[u8]| match to {
        Some(to) => socket.send_to(bytes, &to.into()),
        None => socket.send(bytes),
    };
    if !bunch.is_several() {
        return one(bunch.bytes);
    }
    match together(&socket, bunch, to) {
        Err(e) if is_for_bunches_only(&e) => {}
        sent => return sent,
    }
    // A way that takes no bunches: a smaller MTU than the client's, no checksums by the card, IPsec.
    let mut left = 0;
    for datagram in bunch.bytes.chunks(bunch.size) {
        match one(datagram) {
            Ok(length) => left += length,
            Err(e) if left == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(left)
}

fn together(socket: &SockRef<'_>, bunch: Bunch<'_>, to: Option<SocketAddr>) -> io::Result<usize> {
    let size = u16::try_from(bunch.size).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let to = to.map(SockaddrStorage::from);
    let parts = [IoSlice::new(bunch.bytes)];
    Ok(sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), to.as_ref())?)
}

/// Whether an error may be about the bunch and not about its datagrams.
fn is_for_bunches_only(e: &io::Error) -> bool {
    use nix::errno::Errno;
    e.kind() == io::ErrorKind::InvalidInput
        || e.raw_os_error().map(Errno::from_raw).is_some_and(|errno| {
            matches!(
                errno,
                Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (UdpSocket, UdpSocket) {
        let (a, b) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        b.connect(a.local_addr().unwrap()).await.unwrap();
        (a, b)
    }

    #[tokio::test]
    async fn a_bunch_keeps_its_boundaries_whoever_takes_it() {
        let bytes: Vec<u8> = (0..3_500_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let bunch = Bunch { bytes: &bytes, size: 1_000 };
        // Taken apart by the kernel.
        let (plain, sender) = pair().await;
        assert_eq!(send(&sender, bunch, None).unwrap(), 3_500);
        let mut buffer = vec![0; 65_536];
        for expected in bytes.chunks(1_000) {
            plain.readable().await.unwrap();
            let (length, from) = plain.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], from), (expected, sender.local_addr().unwrap()));
        }
        // Taken as it is.
        let (whole, sender) = pair().await;
        take_bunches(&whole);
        send(&sender, bunch, None).unwrap();
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            whole.readable().await.unwrap();
            let Ok((length, size, from)) = receive(&whole, &mut buffer) else { continue };
            assert!(size == 1_000 || length == size, "{length} {size}");
            assert_eq!(from, Some(sender.local_addr().unwrap()));
            got.extend_from_slice(&buffer[..length]);
        }
        assert_eq!(got, bytes);
    }

    #[tokio::test]
    async fn one_datagram_is_a_bunch_of_one() {
        let (a, b) = pair().await;
        take_bunches(&a);
        let mut buffer = vec![0; 65_536];
        for size in [0, 1, 65_507] {
            let bytes = vec![7; size];
            assert_eq!(send(&b, Bunch::one(&bytes), None).unwrap(), size);
            let got = loop {
                a.readable().await.unwrap();
                if let Ok(got) = receive(&a, &mut buffer) {
                    break got;
                }
            };
            assert_eq!(got, (size, size, Some(b.local_addr().unwrap())));
            send(&a, Bunch::one(&bytes), got.2).unwrap();
            b.readable().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_cannot_go_together_goes_one_by_one() {
        let (a, b) = pair().await;
        // More than the kernel takes in one go.
        let bytes = vec![1; 130];
        assert_eq!(send(&b, Bunch { bytes: &bytes, size: 1 }, None).unwrap(), 130);
        let mut buffer = [0; 64];
        for _ in 0..130 {
            a.readable().await.unwrap();
            assert_eq!(a.recv(&mut buffer).await.unwrap(), 1);
        }
    }
}
