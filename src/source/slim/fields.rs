//! Values that need more than serde's own reading: addresses, ports, durations, nulls.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

/// Reads a field that may be null: null and absent both give the default.
pub(super) fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Transport protocol as manifests write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Parses an IP address the way Kubernetes does for stored objects: leading zeros are decimal (KEP-4858), and an
/// IPv4-mapped IPv6 address is the IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Some(v4) = parse_v4(text) {
        return Some(IpAddr::V4(v4));
    }
    let v6: Ipv6Addr = if let Ok(v6) = text.parse() {
        v6
    } else {
        // Only the dotted tail can be sloppy: put the strict form in its place.
        let (head, tail) = text.rsplit_once(':')?;
        format!("{head}:{}", parse_v4(tail)?).parse().ok()?
    };
    Some(IpAddr::V6(v6).to_canonical())
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// An address of an endpoint: parsed where it is one, kept as text where it is not, so that one bad entry does not
/// spoil the rest of its slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// Anything else: a name in an FQDN slice, or a mistake.
    Other(Box<str>),
}

impl Address {
    /// The IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Other(_) => None,
        }
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        parse_ip(text).map_or_else(|| Self::Other(text.into()), Self::Ip)
    }
}

struct AddressVisitor;

impl Visitor<'_> for AddressVisitor {
    type Value = Address;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Address, E> {
        Ok(Address::from(text))
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(AddressVisitor)
    }
}

/// A ClusterIP as written: an address, `None` (headless), or nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ClusterIp {
    #[default]
    Unset,
    Headless,
    Ip(IpAddr),
}

struct ClusterIpVisitor;

impl Visitor<'_> for ClusterIpVisitor {
    type Value = ClusterIp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an IP address or `None`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ClusterIp, E> {
        match text {
            "" => return Ok(ClusterIp::Unset),
            "None" => return Ok(ClusterIp::Headless),
            _ => {}
        }
        let ip = parse_ip(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
        // Capturing one of these would cut the node off from itself.
        if ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_multicast()
            || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
        {
            return Err(E::custom(format_args!("{ip} cannot be the address of a Service")));
        }
        Ok(ClusterIp::Ip(ip))
    }
}

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(ClusterIpVisitor)
    }
}

/// A port number from 1 to 65535; zero is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortNumber(pub(super) u16);

impl<'de> Deserialize<'de> for PortNumber {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_u64(PortVisitor { zero: false }).map(Self)
    }
}

/// A port number from 0 to 65535, where zero stands for "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortOrNone(pub(super) u16);

impl<'de> Deserialize<'de> for PortOrNone {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_u64(PortVisitor { zero: true }).map(Self)
    }
}

struct PortVisitor {
    zero: bool,
}

impl Visitor<'_> for PortVisitor {
    type Value = u16;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a port number from {} to 65535", u8::from(!self.zero))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u16, E> {
        match u16::try_from(number) {
            Ok(port) if port > 0 || self.zero => Ok(port),
            _ => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u16, E> {
        let unsigned =
            u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
        self.visit_u64(unsigned)
    }
}

/// A port by number or by the name that each pod gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortRef {
    /// The number.
    Number(u16),
    /// The name of a container port.
    Name(Box<str>),
}

/// An int-or-string port as written; zero and the empty string stand for "not set".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MaybePortRef(pub(super) Option<PortRef>);

struct PortRefVisitor;

impl Visitor<'_> for PortRefVisitor {
    type Value = MaybePortRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port number from 1 to 65535 or the name of a container port")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<MaybePortRef, E> {
        let port =
            u16::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
        Ok(MaybePortRef((port > 0).then_some(PortRef::Number(port))))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<MaybePortRef, E> {
        let unsigned =
            u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
        self.visit_u64(unsigned)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MaybePortRef, E> {
        if text.is_empty() {
            return Ok(MaybePortRef(None));
        }
        // A name has at least one letter, so that digits alone are a number in quotes.
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let number = text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
            return self.visit_u64(number);
        }
        Ok(MaybePortRef(Some(PortRef::Name(text.into()))))
    }

    fn visit_unit<E: de::Error>(self) -> Result<MaybePortRef, E> {
        Ok(MaybePortRef(None))
    }

    fn visit_none<E: de::Error>(self) -> Result<MaybePortRef, E> {
        Ok(MaybePortRef(None))
    }
}

impl<'de> Deserialize<'de> for MaybePortRef {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PortRefVisitor)
    }
}

/// Parses a duration as Istio and Go write it: `250ms`, `1.5s`, `1h2m`. Negative ones are refused.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
    }
    Some(total)
}

/// A duration field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GoDuration(pub(super) Duration);

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as `250ms`, `1s` or `5m`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        parse_duration(text).map(GoDuration).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(DurationVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        let cases = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.096.0.01", Some("10.96.0.1")),
            ("010.0.0.1", Some("10.0.0.1")),
            ("0.0.0.00", Some("0.0.0.0")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.01", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            (" 10.0.0.1", None),
            ("fe80::1%eth0", None),
            ("example.com", None),
            ("", None),
        ];
        for (text, want) in cases {
            let want = want.map(|w| w.parse::<IpAddr>().unwrap());
            assert_eq!(parse_ip(text), want, "{text:?}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases = [
            ("250ms", Some(250)),
            ("1.5s", Some(1500)),
            ("1h2m", Some(3_720_000)),
            ("0s", Some(0)),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1..5s", None),
            ("1d", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_duration(text), want.map(Duration::from_millis), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_ipv4_address_survives_leading_zeros(octets: [u8; 4], zeros in 0usize..4) {
            let pad = "0".repeat(zeros);
            let text = octets.map(|o| format!("{pad}{o}")).join(".");
            prop_assert_eq!(parse_ip(&text), Some(IpAddr::from(octets)));
        }

        #[test]
        fn any_ipv6_address_is_read_in_its_canonical_form(bits: u128) {
            let ip = IpAddr::V6(Ipv6Addr::from_bits(bits));
            prop_assert_eq!(parse_ip(&ip.to_string()), Some(ip.to_canonical()));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = parse_ip(&text);
            let _ = parse_duration(&text);
        }
    }
}
