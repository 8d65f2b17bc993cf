//! Who listens in this network namespace, as the kernel's socket lists tell it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Lines};
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

/// State `LISTEN` in `/proc/net/tcp` (`TCP_LISTEN` in `include/net/tcp_states.h`).
const LISTEN: &str = "0A";
/// State `TCP_CLOSE`, which in `/proc/net/udp` is that of every socket without a peer.
const NO_PEER: &str = "07";

/// The sockets of the calling thread's network namespace, as far as they can be read.
pub fn listening() -> Vec<Listening> {
    [tcp(), udp()].into_iter().flat_map(Result::unwrap_or_default).collect()
}

/// The TCP listeners.
pub fn tcp() -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    each_listener(|_, listener| found.push(listener))?;
    Ok(found)
}

/// Connections that wait to be accepted by the listeners on TCP port `port`, in the calling thread's network namespace.
pub fn waiting(port: u16) -> u64 {
    let mut sum = 0;
    let read = each_listener(|line, listener| {
        if listener.address.port() == port {
            sum += queue(line).unwrap_or_default();
        }
    });
    if read.is_ok() { sum } else { 0 }
}

/// The queue of a listener: for one, the kernel prints it in the place of received bytes.
fn queue(line: &str) -> Option<u64> {
    let (_, waiting) = line.split_ascii_whitespace().nth(4)?.split_once(':')?;
    u64::from_str_radix(waiting, 16).ok()
}

/// Hands on each TCP listener with its line. The kernel lists them before all other sockets, of which a node may have very
/// many: those are not read.
fn each_listener(mut each: impl FnMut(&str, Listening)) -> io::Result<()> {
    for lines in tables(["tcp", "tcp6"]) {
        for line in lines?.skip(1) {
            let line = line?;
            if state(&line) != Some(LISTEN) {
                break;
            }
            if let Some(listener) = parse(&line, false) {
                each(&line, listener);
            }
        }
    }
    Ok(())
}

/// The UDP sockets without a peer.
pub fn udp() -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for lines in tables(["udp", "udp6"]) {
        for line in lines?.skip(1) {
            let line = line?;
            found.extend(parse(&line, true).filter(|_| state(&line) == Some(NO_PEER)));
        }
    }
    Ok(found)
}

/// The lines of the kernel's lists; `/proc/net` would be the first thread's.
fn tables(names: [&'static str; 2]) -> impl Iterator<Item = io::Result<Lines<BufReader<File>>>> {
    let open = |name| match File::open(format!("/proc/thread-self/net/{name}")) {
        // A kernel without IPv6 has no list for it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened.map(|file| BufReader::new(file).lines())),
    };
    names.into_iter().filter_map(open)
}

fn state(line: &str) -> Option<&str> {
    line.split_ascii_whitespace().nth(3)
}

/// One line, whatever its state.
fn parse(line: &str, udp: bool) -> Option<Listening> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, inode) = (fields.next()?, fields.nth(7)?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // The kernel prints each 32-bit word of the address in the machine's byte order.
    let word =
        |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, to) in octets.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(Listening { udp, address: SocketAddr::new(ip, port), inode: inode.parse().ok()? })
}

/// Reads a line of the kernel's lists, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_line(line: &str) {
    let _ = (parse(line, false), state(line), queue(line));
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
        assert_eq!((parse(line, false), state(line)), (Some(wanted), Some(LISTEN)));
        assert_eq!(parse("junk", false), None);
        let line = "  1: 0000000000000000FFFF00001060FEA9:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 18";
        let wanted = Listening { udp: true, address: "169.254.96.16:53".parse().unwrap(), inode: 18 };
        assert_eq!((parse(line, true), state(line)), (Some(wanted), Some(NO_PEER)));
    }

    #[test]
    fn finds_what_listens_in_either_family_and_no_connections() {
        use std::net::{TcpListener, TcpStream, UdpSocket};
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let address = listener.local_addr().unwrap();
            let stream = TcpStream::connect(address).unwrap();
            let there = |udp, address| listening().iter().any(|one| one.udp == udp && one.address == address);
            assert!(there(false, address) && !there(false, stream.local_addr().unwrap()));
            let socket = UdpSocket::bind(at).unwrap();
            let address = socket.local_addr().unwrap();
            assert!(there(true, address));
            socket.connect(address).unwrap();
            assert!(!there(true, address), "it has a peer");
        }
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
