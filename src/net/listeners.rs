//! Where processes of this network namespace listen over TCP, and take datagrams.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State `LISTEN` in `/proc/net/tcp` (`TCP_LISTEN` in `include/net/tcp_states.h`).
const LISTEN: &str = "0A";
/// State `TCP_CLOSE`, which in `/proc/net/udp` is that of sockets without a peer.
const NO_PEER: &str = "07";

/// The addresses of all TCP listeners.
pub fn tcp() -> io::Result<BTreeSet<SocketAddr>> {
    let mut found = BTreeSet::new();
    each("tcp", |file| read(file, &mut found))?;
    Ok(found)
}

/// The addresses of all UDP sockets without a peer, each with the socket's number, as `/proc/PID/fd` names it.
pub fn udp() -> io::Result<Vec<(SocketAddr, u64)>> {
    let mut found = Vec::new();
    each("udp", |file| {
        for line in file.lines().skip(1) {
            found.extend(without_peer(&line?));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Opens the kernel's tables of both families, one after the other.
fn each(name: &str, mut work: impl FnMut(BufReader<File>) -> io::Result<()>) -> io::Result<()> {
    for name in [name.to_owned(), format!("{name}6")] {
        match File::open(format!("/proc/thread-self/net/{name}")) {
            Ok(file) => work(BufReader::new(file))?,
            // A kernel without IPv6 has no `tcp6` and no `udp6`.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A line of `/proc/net/udp` about a socket without a peer.
fn without_peer(line: &str) -> Option<(SocketAddr, u64)> {
    let mut words = line.split_whitespace().skip(1);
    let local = words.next()?;
    (words.nth(1)? == NO_PEER).then_some(())?;
    Some((address(local)?, words.nth(5)?.parse().ok()?))
}

/// Reads the listeners, which the kernel lists before all other sockets: a node may have very many of those.
fn read(lines: impl BufRead, found: &mut BTreeSet<SocketAddr>) -> io::Result<()> {
    for line in lines.lines().skip(1) {
        let line = line?;
        let mut words = line.split_whitespace().skip(1);
        let (Some(local), Some(state)) = (words.next(), words.nth(1)) else { continue };
        if state != LISTEN {
            break;
        }
        found.extend(address(local));
    }
    Ok(())
}

/// `0100007F:2845`: the address as 32-bit words in the machine's own order, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        let hex = ip.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = if ip.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(1)?, word(2)?, word(3)?];
        let mut octets = [0; 16];
        octets.iter_mut().zip(words.as_flattened()).for_each(|(to, from)| *to = *from);
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table_up_to_the_last_listener() {
        let line = |at: &str, state: &str| format!("   0: {at} 00000000:0000 {state} 0 0\n");
        let le = cfg!(target_endian = "little");
        let loopback = if le { "0100007F:2845" } else { "7F000001:2845" };
        let text = format!(
            "  sl  local\n{}{}{}",
            line(loopback, LISTEN),
            line("00000000:0001", "01"),
            line(loopback, LISTEN)
        );
        let mut found = BTreeSet::new();
        read(text.as_bytes(), &mut found).unwrap();
        assert_eq!(found, BTreeSet::from(["127.0.0.1:10309".parse().unwrap()]));
        assert_eq!(address("00000000000000000000000000000000:0050"), Some("[::]:80".parse().unwrap()));
        assert_eq!(address("junk"), None);
    }

    #[test]
    fn finds_sockets_for_datagrams_and_passes_over_those_with_a_peer() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(at).unwrap();
            let own = socket.local_addr().unwrap();
            let there = || udp().unwrap().into_iter().find(|(addr, _)| *addr == own);
            assert!(there().is_some_and(|(_, inode)| inode > 0), "{own}");
            socket.connect(own).unwrap();
            assert_eq!(there(), None);
        }
    }

    #[test]
    fn finds_a_listener_of_either_family() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(at).unwrap();
            assert!(tcp().unwrap().contains(&listener.local_addr().unwrap()));
        }
    }
}
