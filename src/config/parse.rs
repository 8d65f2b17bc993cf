//! One parser a kind of value. Each takes the text as written and answers, when it cannot be used, with what to give
//! instead; the caller adds the key, the value and the place.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

/// No setting makes sense beyond a day, and deadlines computed from huge durations would overflow.
const LONGEST: Duration = Duration::from_hours(24);

/// Marks that kubelet and kube-proxy use for masquerading and dropping.
const KUBERNETES_MARKS: [u32; 2] = [0x4000, 0x8000];

/// Ranges that can never hold services: capturing them would cut the node off from itself or its links.
const NEVER_SERVICES: [&str; 6] =
    ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"];

/// One of a few words.
pub(super) fn word<T: Copy>(choices: &'static [(&'static str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        choices.iter().find(|(word, _)| *word == text).map(|&(_, value)| value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|&(word, _)| word).collect();
            format!("give one of {}", words.join(", "))
        })
    }
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "give true or false".to_owned())
}

/// The value of a label, or nothing: at most 63 letters, digits, `-`, `_` and `.`, a letter or digit at both ends.
pub(super) fn label_value(text: &str) -> Result<String, String> {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    if bytes.len() <= 63 && bytes.iter().copied().all(inside) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(text.to_owned());
    }
    Err("give the value of a label: at most 63 letters, digits, `-`, `_` or `.`, a letter or digit at both ends"
        .to_owned())
}

/// A port, or 0 where any free one will do.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| {
        let mut way_out = "give a port from 1 to 65535, or 0 for any free one".to_owned();
        if text.starts_with("tcp://") {
            // Kubernetes puts EDGESPLICE_PROXY_PORT into pods beside a Service called `edgesplice-proxy`.
            way_out.push_str(
                "; Kubernetes sets such variables for Services: set enableServiceLinks: false in the pod",
            );
        }
        way_out
    })
}

/// A count from 0 to `most`.
pub(super) fn count(most: usize) -> impl Fn(&str) -> Result<usize, String> {
    move |text| {
        text.parse()
            .ok()
            .filter(|n| *n <= most)
            .ok_or_else(|| format!("give a whole number from 0 to {most}"))
    }
}

/// A duration above zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).ok().filter(|d| !d.is_zero() && *d <= LONGEST).ok_or_else(|| {
        "give a duration above zero and at most 24h, such as 250ms, 1s, 1m30s or 5m".to_owned()
    })
}

/// A duration, or `0s` for none.
pub(super) fn duration_or_none(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|d| *d <= LONGEST)
        .ok_or_else(|| "give a duration of at most 24h, such as 30s or 5m, or 0s for none".to_owned())
}

/// A share from 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "give a share from 0 to 1, such as 0.01 for one request of a hundred".to_owned())
}

/// A packet mark of a single bit, decimal or with `0x`.
pub(super) fn mark(text: &str) -> Result<u32, String> {
    let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let value = value.ok().filter(|v| v.is_power_of_two());
    let value = value.ok_or_else(|| "give a mark of a single bit, such as 0x10".to_owned())?;
    if KUBERNETES_MARKS.contains(&value) {
        return Err("kubelet and kube-proxy use this mark themselves: give another single bit, such as 0x10"
            .to_owned());
    }
    Ok(value)
}

/// A range of service addresses.
pub(super) fn service_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet =
        text.parse().map_err(|_| "give a range such as 10.96.0.0/12 or fd00:10:96::/112".to_owned())?;
    if net.trunc() != net {
        return Err(format!("bits are set behind the prefix length: give {}", net.trunc()));
    }
    for never in NEVER_SERVICES {
        // The table holds literals, so none fails to parse; `tests::never_services_are_ranges` proves it.
        if never.parse::<IpNet>().is_ok_and(|never| overlap(&never, &net)) {
            return Err(format!(
                "it takes in {never}, which never holds services: give the cluster's service range"
            ));
        }
    }
    Ok(net)
}

/// `primary` (`None`), or a range of this host's addresses.
pub(super) fn node_port_addresses(text: &str) -> Result<Option<IpNet>, String> {
    if text == "primary" {
        return Ok(None);
    }
    let net: Result<IpNet, _> = text.parse();
    net.map(|net| Some(net.trunc()))
        .map_err(|_| "give `primary`, or ranges such as 192.168.0.0/16".to_owned())
}

/// Whether two ranges share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// `ADDR:PORT` to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let way_out = || "give ADDR:PORT, such as 127.0.0.1:10265 or [::1]:10265".to_owned();
    let addr: SocketAddr = text.parse().map_err(|_| way_out())?;
    if addr.ip().is_multicast() || addr.ip() == IpAddr::from([255, 255, 255, 255]) {
        return Err(format!("nobody can listen on this address: {}", way_out()));
    }
    Ok(addr)
}

/// `ADDR[:PORT]` of a DNS server; the port is 53 where it is not given.
pub(super) fn upstream(text: &str) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let addr = text.parse().or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    addr.ok()
        .filter(|a: &SocketAddr| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast())
        .ok_or_else(|| {
            "give the address of a DNS server, such as 10.0.0.2, 10.0.0.2:53 or [fd00::2]:53".to_owned()
        })
}

/// A node's name, in lower case.
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_ascii_lowercase();
    dns_name(&name).map(|()| name).map_err(|why| {
        format!(
            "{why}: give the Node object's name (lower-case letters, digits, `-` and `.`) with --node-name"
        )
    })
}

/// The cluster's domain, in lower case and without a dot at its end.
pub(super) fn domain(text: &str) -> Result<String, String> {
    let domain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    dns_name(&domain).map(|()| domain).map_err(|why| format!("{why}: give a domain such as cluster.local"))
}

/// RFC 1123: labels of at most 63 letters, digits and inner dashes, 253 in all.
fn dns_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 253 {
        return Err("a name has 1 to 253 characters".to_owned());
    }
    for label in name.split('.') {
        let fits = (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-');
        if !fits {
            return Err(format!("{label:?} is not a DNS label"));
        }
    }
    Ok(())
}

/// The URL of a MetaServer, without a slash at its end.
pub(super) fn url(text: &str) -> Result<String, String> {
    let way_out = || "give a URL such as http://127.0.0.1:10550".to_owned();
    let parsed: hyper::Uri = text.parse().map_err(|_| way_out())?;
    let scheme_fits = matches!(parsed.scheme_str(), Some("http" | "https"));
    let host = parsed.host().unwrap_or_default();
    // What stands behind the host must be a port: neither `@` nor a number beyond 65535 is one.
    let bare = parsed.authority().is_some_and(|a| a.as_str() == host);
    let port_fits = bare || (parsed.port_u16().is_some_and(|p| p != 0) && !text.contains('@'));
    if !scheme_fits || host.is_empty() || !port_fits || parsed.query().is_some() {
        return Err(way_out());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// A path, whether anything is there or not.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("give a path".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A path at which something must be.
pub(super) fn existing_path(text: &str) -> Result<PathBuf, String> {
    let path = path(text)?;
    match Path::new(&path).metadata() {
        Ok(_) => Ok(path),
        Err(e) => Err(format!("{e}: give a file or folder that exists")),
    }
}

/// A level or filter of the log.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    crate::obs::log::check_filter(text).map(|()| text.to_owned())
}
