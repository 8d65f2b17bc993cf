//! The first packet of a TCP connection, as far as it says who wants to go where. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The number of TCP among the protocols of IP.
const TCP: u8 = 6;
/// IPv6 extension headers that may stand before TCP: hop-by-hop options, routing, destination options.
const PASSED_OVER: [u8; 3] = [0, 43, 60];

/// Who wants to be connected to what. The same in each retransmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Syn {
    /// The client.
    pub(super) client: SocketAddr,
    /// Where it wants to go.
    pub(super) to: SocketAddr,
    /// The initial sequence number: another one from the same client's port is another connection.
    pub(super) sequence: u32,
}

impl Syn {
    /// Reads an IP packet. `None`: it is no whole TCP header that opens a connection.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (from, to, tcp) = match packet.first()? >> 4 {
            4 => v4(packet)?,
            6 => v6(packet)?,
            _ => return None,
        };
        let flags = tcp.get(13)?;
        // SYN without ACK, RST or FIN.
        (flags & 0b1_0111 == 0b0_0010).then_some(())?;
        let port = |at| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            client: SocketAddr::new(from, port(0)?),
            to: SocketAddr::new(to, port(2)?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        })
    }
}

fn v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let address = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into());
    let length = usize::from(packet.first()? & 0xf) * 4;
    (*packet.get(9)? == TCP).then_some((address(12)?, address(16)?, packet.get(length..)?))
}

fn v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let address = |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into());
    let (mut next, mut at) = (*packet.get(6)?, 40);
    while PASSED_OVER.contains(&next) {
        next = *packet.get(at)?;
        at += usize::from(*packet.get(at + 1)?) * 8 + 8;
    }
    (next == TCP).then_some((address(8)?, address(24)?, packet.get(at..)?))
}

/// Reads a held packet, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(packet: &[u8]) {
    if let Some(syn) = Syn::parse(packet) {
        assert_eq!(syn.client.is_ipv4(), syn.to.is_ipv4());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(flags: u8) -> Vec<u8> {
        let mut header = vec![0x9c, 0x40, 0, 80, 0, 0, 1, 2, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0];
        header.extend([2, 4, 5, 0xb4]);
        header
    }

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 96, 0, 9];
        // One word of options.
        packet.extend([1; 4]);
        packet.extend(payload);
        packet
    }

    fn ipv6(extended: bool, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, if extended { 60 } else { TCP }, 64];
        packet.extend("fd44::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("fd00:10:96::9".parse::<Ipv6Addr>().unwrap().octets());
        if extended {
            packet.extend([TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        packet.extend(payload);
        packet
    }

    #[test]
    fn both_families_with_options() {
        let found = Syn::parse(&ipv4(TCP, &tcp(0x02))).unwrap();
        assert_eq!(found.client, "10.0.0.1:40000".parse().unwrap());
        assert_eq!((found.to, found.sequence), ("10.96.0.9:80".parse().unwrap(), 0x102));
        for extended in [false, true] {
            let found = Syn::parse(&ipv6(extended, &tcp(0x02))).unwrap();
            assert_eq!(found.client, "[fd44::2]:40000".parse().unwrap());
            assert_eq!(found.to, "[fd00:10:96::9]:80".parse().unwrap());
        }
        // With ECN asked for.
        assert!(Syn::parse(&ipv4(TCP, &tcp(0xc2))).is_some());
    }

    #[test]
    fn what_opens_no_connection_is_none() {
        for flags in [0, 0x10, 0x12, 0x04, 0x03, 0x06] {
            assert_eq!(Syn::parse(&ipv4(TCP, &tcp(flags))), None, "{flags:#x}");
        }
        assert_eq!(Syn::parse(&ipv4(17, &tcp(0x02))), None);
        assert_eq!(Syn::parse(&[]), None);
    }

    #[test]
    fn what_is_cut_short_is_none() {
        for whole in [ipv4(TCP, &tcp(0x02)), ipv6(true, &tcp(0x02))] {
            let header = whole.len() - 24 + 14;
            for length in 0..header {
                assert_eq!(Syn::parse(&whole[..length]), None, "{length}");
            }
        }
    }
}
