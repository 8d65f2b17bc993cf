//! Who listens in this network namespace, as the kernel's socket lists tell it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket that takes connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Whether it is a UDP socket.
    pub udp: bool,
    /// Where it listens; the unspecified address stands for all.
    pub address: SocketAddr,
    /// The socket's number, as `/proc/PID/fd` names it.
    pub inode: u64,
}

impl Listening {
    /// Whether a socket bound to `wanted` would be refused because of this one. An unspecified IPv6 address is taken
    /// to stand for IPv4 as well, as it does unless the socket says otherwise.
    pub fn is_in_the_way_of(&self, wanted: SocketAddr) -> bool {
        let (ip, other) = (self.address.ip(), wanted.ip());
        let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
        self.address.port() == wanted.port() && (ip == other || covers(ip, other) || covers(other, ip))
    }
}

/// The sockets of the calling thread's network namespace; `/proc/net` would be the first thread's.
pub fn listening() -> Vec<Listening> {
    let mut found = Vec::new();
    for (file, udp) in [("tcp", false), ("tcp6", false), ("udp", true), ("udp6", true)] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| parse(line, udp)));
    }
    found
}

/// Connections that wait to be accepted by the listeners on TCP port `port`, in the calling thread's network namespace.
pub fn waiting(port: u16) -> u64 {
    let texts = ["tcp", "tcp6"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    texts.iter().flatten().flat_map(|text| text.lines().skip(1)).filter_map(|line| queue(line, port)).sum()
}

/// The queue of a listener on `port`: for one, the kernel prints it in the place of received bytes.
fn queue(line: &str, port: u16) -> Option<u64> {
    let listener = parse(line, false).filter(|listener| listener.address.port() == port);
    let queues = line.split_ascii_whitespace().nth(4).filter(|_| listener.is_some())?;
    u64::from_str_radix(queues.split_once(':')?.1, 16).ok()
}

/// One line of `/proc/net/tcp` or `/proc/net/udp`.
fn parse(line: &str, udp: bool) -> Option<Listening> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    // 0A is TCP_LISTEN; 07, TCP_CLOSE, is every UDP socket without a peer.
    if *state != if udp { "07" } else { "0A" } {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // The kernel prints each 32-bit word of the address in the machine's byte order.
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)?.to_canonical(),
        _ => return None,
    };
    Some(Listening { udp, address: SocketAddr::new(ip, port), inode: inode.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_at_a_listener_is_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(waiting(addr.port()), 0);
        let _clients = [(); 2].map(|()| std::net::TcpStream::connect(addr).unwrap());
        assert_eq!(waiting(addr.port()), 2);
        let _accepted = listener.accept().unwrap();
        assert_eq!(waiting(addr.port()), 1);
    }

    #[test]
    fn reads_listening_sockets() {
        let line =
            "   1: 1060FEA9:9C41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1";
        let wanted = Listening { udp: false, address: "169.254.96.16:40001".parse().unwrap(), inode: 17 };
        assert_eq!(parse(line, false), Some(wanted));
        assert_eq!(parse(&line.replace(" 0A ", " 01 "), false), None);
        let line = "  1: 0000000000000000FFFF00001060FEA9:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 18";
        let wanted = Listening { udp: true, address: "169.254.96.16:53".parse().unwrap(), inode: 18 };
        assert_eq!(parse(line, true), Some(wanted));
    }

    #[test]
    fn an_unspecified_address_is_in_the_way_of_all() {
        let at = |text: &str| Listening { udp: false, address: text.parse().unwrap(), inode: 0 };
        for (there, wanted, clash) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.2:53", false),
            ("127.0.0.1:53", "127.0.0.1:54", false),
            ("0.0.0.0:53", "127.0.0.1:53", true),
            ("[::]:53", "127.0.0.1:53", true),
            ("0.0.0.0:53", "[::1]:53", false),
            ("127.0.0.1:53", "0.0.0.0:53", true),
        ] {
            assert_eq!(at(there).is_in_the_way_of(wanted.parse().unwrap()), clash, "{there} {wanted}");
        }
    }
}
