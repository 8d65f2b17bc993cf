//! What `resolve` can be asked, taken apart.

use std::net::IpAddr;
use std::sync::Arc;

use crate::source::slim::parse_ip;

use super::super::types::{Protocol, ServiceId};

/// A target that cannot be read. Each message says what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing was asked.
    #[error("the target is empty; expected IP:PORT, [IPV6]:PORT, NAME:PORT or NAME, with /udp for UDP")]
    Empty,
    /// The suffix after the slash.
    #[error("target {target:?}: unknown protocol {protocol:?}; expected /tcp or /udp")]
    Protocol {
        /// What was asked.
        target: String,
        /// The suffix.
        protocol: String,
    },
    /// The part after the last colon.
    #[error("target {target:?}: {port:?} is not a port from 1 to 65535")]
    Port {
        /// What was asked.
        target: String,
        /// The port's text.
        port: String,
    },
    /// An address by itself: the packet filter knows addresses with ports only.
    #[error("target {target:?}: an address needs a port, as in IP:PORT")]
    NoPort {
        /// What was asked.
        target: String,
    },
    /// The part before the port.
    #[error(
        "target {target:?}: {host:?} is neither an IP address nor a name; expected SERVICE[.NAMESPACE[.svc[.DOMAIN]]]"
    )]
    Host {
        /// What was asked.
        target: String,
        /// The host's text.
        host: String,
    },
}

/// A target, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: Option<PortWord>,
    pub(super) protocol: Protocol,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Host {
    Ip(IpAddr),
    Service(ServiceId),
    /// A name that cannot be a Service of this cluster.
    Foreign(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum PortWord {
    Number(u16),
    Name(String),
}

impl Target {
    pub(super) fn parse(target: &str, domain: &str) -> Result<Self, TargetError> {
        let text = target.trim();
        let (text, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, word)) if word.eq_ignore_ascii_case("tcp") => (rest, Protocol::Tcp),
            Some((rest, word)) if word.eq_ignore_ascii_case("udp") => (rest, Protocol::Udp),
            Some((_, word)) => {
                return Err(TargetError::Protocol { target: target.to_owned(), protocol: word.to_owned() });
            }
        };
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        let (host, port) = split(text);
        let ip = parse_ip(host.trim_start_matches('[').trim_end_matches(']'));
        let port = match port {
            None => None,
            Some(word) => Some(
                port_word(word, ip.is_some())
                    .ok_or_else(|| TargetError::Port { target: target.to_owned(), port: word.to_owned() })?,
            ),
        };
        let host = match ip {
            Some(_) if port.is_none() => return Err(TargetError::NoPort { target: target.to_owned() }),
            Some(ip) => Host::Ip(ip),
            None => name(host, domain)
                .ok_or_else(|| TargetError::Host { target: target.to_owned(), host: host.to_owned() })?,
        };
        Ok(Self { host, port, protocol })
    }
}

/// Host and port. An IPv6 address without brackets is taken whole.
fn split(text: &str) -> (&str, Option<&str>) {
    if let Some(end) = text.strip_prefix('[').and_then(|rest| rest.find(']')) {
        let (host, rest) = text.split_at(end + 2);
        return match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => (text, None),
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

fn port_word(word: &str, number_only: bool) -> Option<PortWord> {
    if word.bytes().all(|b| b.is_ascii_digit()) {
        return word.parse().ok().filter(|port| *port > 0).map(PortWord::Number);
    }
    let good = word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (!number_only && good).then(|| PortWord::Name(word.to_ascii_lowercase()))
}

/// `svc`, `svc.ns`, `svc.ns.svc` or `svc.ns.svc.<domain>`, with or without a dot at the end.
fn name(host: &str, domain: &str) -> Option<Host> {
    let lower = host.to_ascii_lowercase();
    let whole = lower.strip_suffix('.').unwrap_or(&lower);
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if whole.len() > 253 || !whole.split('.').all(label) {
        return None;
    }
    let domain = domain.trim_matches('.').to_ascii_lowercase();
    let inside =
        whole.strip_suffix(&domain).and_then(|rest| rest.strip_suffix('.')).filter(|_| !domain.is_empty());
    let labels: Vec<&str> = inside.unwrap_or(whole).split('.').collect();
    let (service, namespace) = match (labels.as_slice(), inside) {
        ([service], None) => (*service, "default"),
        ([service, namespace], None) | ([service, namespace, "svc"], _) => (*service, *namespace),
        _ => return Some(Host::Foreign(whole.to_owned())),
    };
    Some(Host::Service(ServiceId { namespace: Arc::from(namespace), name: Arc::from(service) }))
}
