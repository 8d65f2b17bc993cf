//! How a service port is treated: what is spoken on it, how a backend is picked, how failures are counted.

use std::sync::Arc;
use std::time::Duration;

use crate::source::slim::{self, DestinationRule};

use super::types::{CookieRule, HttpPool, Mode, OutlierDetection, Policy, Protocol};

impl From<slim::Protocol> for Protocol {
    fn from(protocol: slim::Protocol) -> Self {
        match protocol {
            slim::Protocol::Tcp => Self::Tcp,
            slim::Protocol::Udp => Self::Udp,
            slim::Protocol::Sctp => Self::Sctp,
        }
    }
}

/// What stands for HTTP in an `appProtocol` and in the name of a port.
const HTTP_PROTOCOLS: [&str; 7] =
    ["http", "http2", "h2c", "grpc", "ws", "kubernetes.io/h2c", "kubernetes.io/ws"];

/// `appProtocol` decides, else the port's name up to its first dash. What is encrypted passes byte by byte.
pub(super) fn mode(port: &slim::ServicePort) -> Mode {
    if port.protocol == slim::Protocol::Udp {
        return Mode::Udp;
    }
    let word = match &port.app_protocol {
        Some(protocol) => protocol,
        None => port.name.split('-').next().unwrap_or(""),
    };
    let http = HTTP_PROTOCOLS.iter().any(|known| word.eq_ignore_ascii_case(known));
    if http { Mode::Http } else { Mode::Tcp }
}

/// Reads the annotation `edgesplice.io/load-balancing`.
fn annotated(text: &str) -> Option<Policy> {
    Some(match text.trim() {
        "least-request" => Policy::LeastRequest,
        "round-robin" => Policy::RoundRobin,
        "random" => Policy::Random,
        "source-ip" => Policy::SourceIp,
        other => {
            let name = other.strip_prefix("header:")?.trim();
            Policy::Header(header_name(name)?)
        }
    })
}

/// A header field's name: an RFC 9110 token.
fn header_name(name: &str) -> Option<Arc<str>> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (!name.is_empty() && name.bytes().all(token)).then(|| Arc::from(name))
}

/// The policy of a Service: its annotation, else its DestinationRule, else the default. What cannot be honoured is
/// named in `warnings`.
pub(super) fn policy(
    service: &slim::Service,
    rule: Option<&DestinationRule>,
    warnings: &mut Vec<String>,
) -> Policy {
    let who = format!("Service {}/{}", service.namespace, service.name);
    if let Some(text) = &service.load_balancing {
        if let Some(policy) = annotated(text) {
            return policy;
        }
        warnings.push(format!(
            "{who}: annotation edgesplice.io/load-balancing: {text:?} is not one of least-request, round-robin, \
             random, source-ip, header:<Name>; passed over"
        ));
    }
    let Some(rule) = rule else { return Policy::default() };
    let what = format!("DestinationRule {}/{}", rule.namespace, rule.name);
    if let Some(header) = &rule.hash_header {
        if let Some(header) = header_name(header) {
            return Policy::Header(header);
        }
        warnings.push(format!("{what}: {header:?} is not the name of an HTTP header; passed over"));
    }
    if let Some(cookie) = &rule.hash_cookie {
        let path_fits = !cookie.path.bytes().any(|b| b == b';' || b.is_ascii_control());
        if let Some(name) = header_name(&cookie.name).filter(|_| path_fits) {
            let (name, path) = ((*name).into(), cookie.path.clone());
            return Policy::Cookie(Arc::new(CookieRule { name, path, ttl: cookie.ttl }));
        }
        warnings.push(format!(
            "{what}: {:?} is not the name of a cookie, or its path is none; passed over",
            cookie.name
        ));
    }
    if rule.hash_source_ip {
        return Policy::SourceIp;
    }
    if rule.hash_unsupported {
        warnings.push(format!(
            "{what}: consistentHash knows httpHeaderName, httpCookie and useSourceIp only; the default policy is used"
        ));
    }
    match rule.simple.as_deref() {
        None | Some("" | "UNSPECIFIED" | "LEAST_CONN" | "LEAST_REQUEST") => Policy::LeastRequest,
        Some("ROUND_ROBIN") => Policy::RoundRobin,
        Some("RANDOM") => Policy::Random,
        Some(other) => {
            warnings
                .push(format!("{what}: loadBalancer.simple {other:?} is not supported; the default is used"));
            Policy::LeastRequest
        }
    }
}

/// The policy as it applies to a port of `mode`: a header or a cookie can be read on HTTP ports only.
pub(super) fn policy_for(policy: &Policy, mode: Mode) -> Policy {
    match policy {
        Policy::Header(_) | Policy::Cookie(_) if mode != Mode::Http => Policy::default(),
        other => other.clone(),
    }
}

/// How the connections of a Service are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Connections {
    /// Timeout of one dial.
    pub(super) timeout: Option<Duration>,
    /// Most at once.
    pub(super) most: Option<u32>,
    /// Bounds on HTTP requests.
    pub(super) http: Option<Box<HttpPool>>,
    /// Whether each begins with a PROXY protocol header.
    pub(super) proxy_protocol: bool,
    /// Whether backends on this node see the client's own address.
    pub(super) keep_source: bool,
}

/// Reads how the connections of a Service are made: its annotations, else its DestinationRule. What cannot be
/// honoured is named in `warnings`.
pub(super) fn connections(
    service: &slim::Service,
    rule: Option<&DestinationRule>,
    warnings: &mut Vec<String>,
) -> Connections {
    let mut bad = |key: &str, text: &str, wanted: &str| {
        warnings.push(format!(
            "Service {}/{}: annotation edgesplice.io/{key}: {text:?} is not {wanted}; passed over",
            service.namespace, service.name
        ));
    };
    let mut found = Connections {
        timeout: rule.and_then(|rule| rule.connect_timeout),
        most: rule.and_then(|rule| rule.max_connections),
        http: rule.and_then(|rule| rule.http_pool.clone()),
        proxy_protocol: false,
        keep_source: false,
    };
    if let Some(text) = &service.connect_timeout {
        match humantime::parse_duration(text.trim()) {
            Ok(timeout) if !timeout.is_zero() => found.timeout = Some(timeout),
            _ => bad("connect-timeout", text, "a time such as 500ms"),
        }
    }
    if let Some(text) = &service.max_connections {
        match text.trim().parse() {
            Ok(most @ 1..) => found.most = Some(most),
            _ => bad("max-connections", text, "a number above 0"),
        }
    }
    if let Some(text) = &service.proxy_protocol {
        match text.trim() {
            "v2" => found.proxy_protocol = true,
            "off" | "" => {}
            _ => bad("proxy-protocol", text, "v2 or off"),
        }
    }
    if let Some(text) = &service.source_address {
        match text.trim() {
            "preserve" => found.keep_source = true,
            "off" | "" => {}
            _ => bad("source-address", text, "preserve or off"),
        }
    }
    found
}

/// The ejection settings of a DestinationRule.
pub(super) fn outlier(rule: Option<&DestinationRule>) -> OutlierDetection {
    rule.map_or_else(OutlierDetection::default, |rule| OutlierDetection {
        consecutive_errors: rule.consecutive_errors,
        base_ejection_time: rule.base_ejection_time,
        max_ejection_percent: rule.max_ejection_percent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_decides_before_the_port_name() {
        let cases = [
            ("http-0", None, Mode::Http),
            ("http", None, Mode::Http),
            ("HTTP-web", None, Mode::Http),
            ("http2-0", None, Mode::Http),
            ("https", None, Mode::Tcp),
            ("grpc-api", None, Mode::Http),
            ("tcp-0", None, Mode::Tcp),
            ("rest-0", None, Mode::Tcp),
            ("", None, Mode::Tcp),
            ("web", Some("http"), Mode::Http),
            ("web", Some("HTTP"), Mode::Http),
            ("http-0", Some("tcp"), Mode::Tcp),
            ("tcp-0", Some("kubernetes.io/h2c"), Mode::Http),
            ("http-0", Some("kubernetes.io/wss"), Mode::Tcp),
            ("x", Some("kubernetes.io/ws"), Mode::Http),
        ];
        for (name, app, want) in cases {
            let mut port = slim::ServicePort {
                name: name.into(),
                protocol: slim::Protocol::Tcp,
                port: 80,
                target: slim::PortRef::Number(80),
                app_protocol: app.map(Arc::from),
                node_port: None,
            };
            assert_eq!(mode(&port), want, "{name} {app:?}");
            port.protocol = slim::Protocol::Udp;
            assert_eq!(mode(&port), Mode::Udp);
        }
    }

    #[test]
    fn annotation_values_are_those_of_the_contract() {
        let header = |name: &str| Some(Policy::Header(Arc::from(name)));
        let cases = [
            ("least-request", Some(Policy::LeastRequest)),
            ("round-robin", Some(Policy::RoundRobin)),
            (" random ", Some(Policy::Random)),
            ("source-ip", Some(Policy::SourceIp)),
            ("header:X-User", header("X-User")),
            ("header: X-User", header("X-User")),
            ("header:", None),
            ("header:a b", None),
            ("RoundRobin", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(annotated(text), want, "{text:?}");
        }
    }
}
