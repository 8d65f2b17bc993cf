//! Builders for the two legs of a connection, the original destination, resets, and the descriptor limit.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Connections the kernel may hold for us before `accept`; it clamps this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Silence until the first keep-alive probe. Below conntrack's `nf_conntrack_tcp_timeout_close_wait` (60 s), so that
/// a half-closed connection that is silent for long keeps its conntrack entry, and with it its way back.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes until the peer is taken for dead: a minute after its last sign of life.
const KEEPALIVE_COUNT: u32 = 3;

// No TCP_USER_TIMEOUT: measured on Linux 6.18, it also ends a connection whose peer is alive, acknowledges every
// window probe and merely does not read for that long. A stalled reader must be able to stall.

/// Opens the acceptor's socket: `[::]:port` for both families, `0.0.0.0:port` where the kernel has no IPv6.
///
/// `port` 0 takes any free one. With `reuse_port` several sockets may share the port and the kernel spreads new
/// connections over them. Accepted sockets inherit `TCP_NODELAY` and the keep-alive settings from this one (Linux
/// copies the listener's socket), so that nothing has to be set per connection.
pub fn listen(port: u16, reuse_port: bool) -> io::Result<TcpListener> {
    match listen_on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), reuse_port) {
        Err(e) if lacks_ipv6(&e) => listen_on(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), reuse_port),
        other => other,
    }
}

fn lacks_ipv6(e: &io::Error) -> bool {
    matches!(errno(e), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn listen_on(addr: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

const fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT)
}

/// Where the client wanted to go before the packet filter redirected it, from the connection's conntrack entry.
///
/// `peer` is the client's address as `accept` gave it: it tells which family to ask for, because IPv4 clients of a
/// dual-stack socket look like `::ffff:a.b.c.d`. Fails with `ENOENT` or `ENOPROTOOPT` where there is no such entry.
pub fn original_dst(client: &TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client);
    let found =
        if unmapped(peer).is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    found
        .as_socket()
        .map(unmapped)
        .ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

/// The same address with an IPv4-mapped IPv6 address written as the IPv4 address that it is.
pub fn unmapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Connects to a backend with the options of the backend leg. `mark` 0 sets no packet mark. `speaks_first`: the caller
/// has bytes to send as soon as this is ready; they then go in the packet that ends the handshake. Without any, the
/// kernel would hold that packet back for up to 200 ms. It also delays the acknowledgement of what comes first, until
/// [`acknowledge`].
///
/// There is no timeout here: dropping the future closes the socket. Keep-alive is off, see [`keep_alive`].
pub async fn connect(addr: SocketAddr, mark: u32, speaks_first: bool) -> io::Result<TcpStream> {
    connect_from(None, addr, mark, speaks_first).await
}

/// The same from any free port of `source`, which need not be an address of this machine. Whoever calls this sees to it
/// that answers find their way; it needs `CAP_NET_ADMIN`.
pub async fn connect_from(
    source: Option<IpAddr>,
    addr: SocketAddr,
    mark: u32,
    speaks_first: bool,
) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    {
        let options = SockRef::from(&socket);
        if mark != 0 {
            options.set_mark(mark)?;
        }
        options.set_tcp_nodelay(true)?;
        if speaks_first {
            options.set_tcp_quickack(false)?;
        }
        if source.is_some() {
            if addr.is_ipv4() {
                options.set_ip_transparent_v4(true)?;
            } else {
                options.set_ip_transparent_v6(true)?;
            }
            // The port is chosen when the other end is known: one may serve many backends.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
        }
    }
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(addr).await
}

/// True if bytes have come that nobody has read.
pub fn has_bytes(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    SockRef::from(stream).peek(&mut byte).is_ok_and(|n| n > 0)
}

/// Has what has come acknowledged at once, and what comes next. The kernel otherwise holds an acknowledgement back for 40 ms
/// or more on a connection on which bytes go to and fro; a peer with Nagle's algorithm on that writes an answer in two
/// pieces keeps the second one for as long.
pub fn acknowledge(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_quickack(true);
}

/// Switches keep-alive on for a connection of [`connect`]. That takes four system calls, which a connection that is
/// over within seconds can do without.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_keepalive(&keepalive())
}

/// Room for datagrams that wait in a socket of a served frontend, for all its clients together; the kernel takes
/// memory as they come.
const FRONTEND_BUFFER: usize = 4 << 20;
/// Room for datagrams that wait in a socket to a backend: some dozen of the largest.
const SESSION_BUFFER: usize = 1 << 20;

/// Opens a UDP socket bound to `addr`, which need not be an address of this machine. `mark` 0 sets no packet mark.
/// Needs `CAP_NET_ADMIN`.
pub fn udp_transparent(addr: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = transparent(addr, Type::DGRAM, Protocol::UDP, mark)?;
    udp_buffers(&socket, FRONTEND_BUFFER);
    Ok(socket.into())
}

/// Opens a UDP socket bound to an address of this machine.
pub fn udp_listen(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    udp_buffers(&socket, FRONTEND_BUFFER);
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Listens on one address of this machine.
pub fn tcp_listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn transparent(addr: SocketAddr, kind: Type, protocol: Protocol, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind.nonblocking(), Some(protocol))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
    }
    // Beside a socket of a host process on the same port of every address, where that allows it too.
    socket.set_reuse_address(true)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Opens a UDP socket that is connected to `addr`, so that it takes datagrams from there alone and reports when that
/// is unreachable. `mark` 0 sets no packet mark.
pub fn udp_connect(addr: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    udp_buffers(&socket, SESSION_BUFFER);
    socket.connect(&addr.into())?;
    Ok(socket.into())
}

/// The sizes beyond the system's limits need `CAP_NET_ADMIN`; what is had without serves as well.
fn udp_buffers(socket: &Socket, size: usize) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = setsockopt(socket, sockopt::RcvBufForce, &size)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &size));
    let _ = setsockopt(socket, sockopt::SndBufForce, &size)
        .or_else(|_| setsockopt(socket, sockopt::SndBuf, &size));
}

/// True if `e` says that a datagram is larger than can be sent.
pub fn is_too_large(e: &io::Error) -> bool {
    errno(e) == Some(Errno::EMSGSIZE)
}

/// Finds out whether this process may set `mark` on a socket, which needs `CAP_NET_ADMIN`.
pub fn check_mark(mark: u32) -> io::Result<()> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?.set_mark(mark)
}

/// Makes the coming close of `stream` a reset: the peer sees `ECONNRESET`, unsent data is thrown away.
///
/// A socket that the peer has reset already cannot be told anything any more, so a failure means nothing.
pub fn reset_on_close(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Takes [`reset_on_close`] back: the coming close ends the stream, and what is unsent is still delivered.
pub fn end_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// Closes a connection that is still in the queue of `listener` with a reset. `false`: there was none.
pub fn shed(listener: impl AsFd) -> io::Result<bool> {
    match SockRef::from(&listener).accept() {
        Ok((socket, _)) => {
            let _ = socket.set_linger(Some(Duration::ZERO));
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// True if `e` says that this machine or process is short of descriptors or memory, which passes.
pub fn is_shortage(e: &io::Error) -> bool {
    matches!(errno(e), Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// True if a failed dial says nothing about the backend: the fault is on this machine.
pub fn is_local_fault(e: &io::Error) -> bool {
    is_shortage(e) || matches!(errno(e), Some(Errno::EADDRNOTAVAIL | Errno::EPERM | Errno::EACCES))
}

/// True if `e` says that every local port towards that address is in use.
pub fn is_out_of_ports(e: &io::Error) -> bool {
    errno(e) == Some(Errno::EADDRNOTAVAIL)
}

fn errno(e: &io::Error) -> Option<Errno> {
    e.raw_os_error().map(Errno::from_raw)
}

/// Raises this process's limit of open descriptors as far as it may. Returns the limit before and after.
pub fn raise_nofile() -> io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok((wide(soft), wide(hard.max(soft))))
}

/// The limit of open descriptors in force.
pub fn nofile() -> io::Result<u64> {
    Ok(wide(getrlimit(Resource::RLIMIT_NOFILE)?.0))
}

/// The limit to which this process may raise that of open descriptors.
pub fn hard_nofile() -> io::Result<u64> {
    Ok(wide(getrlimit(Resource::RLIMIT_NOFILE)?.1))
}

/// A limit in the width that we count in: 32-bit systems have it in 32 bits.
fn wide(limit: impl Into<u64>) -> u64 {
    limit.into()
}

/// The address a socket is bound to, unmapped.
pub fn local_addr(socket: impl AsFd) -> io::Result<SocketAddr> {
    let addr: SockAddr = SockRef::from(&socket).local_addr()?;
    addr.as_socket().map(unmapped).ok_or_else(|| io::Error::other("the socket is bound to no IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokio_listener() -> tokio::net::TcpListener {
        tokio::net::TcpListener::from_std(listen(0, false).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn accepted_sockets_inherit_the_listeners_options() {
        let listener = tokio_listener();
        let port = local_addr(&listener).unwrap().port();
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_COUNT);
    }

    #[tokio::test]
    async fn one_socket_serves_both_families() {
        let listener = tokio_listener();
        let port = local_addr(&listener).unwrap().port();
        for ip in [std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let client = TcpStream::connect((ip, port)).await.unwrap();
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!(unmapped(peer), client.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn backend_leg_has_its_options() {
        let listener = tokio_listener();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, local_addr(&listener).unwrap().port()));
        let stream = connect(addr, 0, false).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(!socket.keepalive().unwrap());
        keep_alive(&stream).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_COUNT);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None, "it would end connections whose reader pauses");
    }

    #[tokio::test]
    async fn original_destination_of_a_direct_dial_is_no_other_address() {
        let listener = tokio_listener();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, local_addr(&listener).unwrap().port()));
        let _client = TcpStream::connect(addr).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        // Without conntrack there is no answer, with it the address that was dialled.
        assert!(original_dst(&accepted, peer).map_or(true, |found| found == addr));
    }

    #[test]
    fn the_descriptor_limit_is_never_lowered() {
        let (before, after) = raise_nofile().unwrap();
        assert!(after >= before);
        assert_eq!(nofile().unwrap(), after);
    }
}
