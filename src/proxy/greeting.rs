//! The PROXY protocol header, version 2: it tells a backend whom it is really talking to.
//!
//! The format is section 2.2 of HAProxy's `proxy-protocol.txt`.

use std::net::{IpAddr, SocketAddr};

/// What every header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header of a connection from `client` to `service`. Both are of one family, as one connection's ends are.
pub(super) fn header(client: SocketAddr, service: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(52);
    bytes.extend_from_slice(&SIGNATURE);
    match (client.ip().to_canonical(), service.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend_from_slice(&[PROXY, TCP4, 0, 12]);
            bytes.extend_from_slice(&from.octets());
            bytes.extend_from_slice(&to.octets());
        }
        (from, to) => {
            bytes.extend_from_slice(&[PROXY, TCP6, 0, 36]);
            bytes.extend_from_slice(&v6(from));
            bytes.extend_from_slice(&v6(to));
        }
    }
    bytes.extend_from_slice(&client.port().to_be_bytes());
    bytes.extend_from_slice(&service.port().to_be_bytes());
    bytes
}

fn v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_specification() {
        let client = "[::ffff:10.1.2.3]:40000".parse().unwrap();
        let service = "10.96.0.1:80".parse().unwrap();
        let tail = [10, 1, 2, 3, 10, 96, 0, 1, 0x9c, 0x40, 0, 80];
        assert_eq!(header(client, service)[12..], [&[0x21, 0x11, 0, 12][..], &tail].concat());
        let got = header("[fd44::5]:1".parse().unwrap(), "[fd00::1]:443".parse().unwrap());
        assert_eq!((got.len(), &got[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
        assert_eq!(got[48..], [0, 1, 1, 187]);
    }
}
