//! Addresses at which `Host` chooses the service. Pure.
//!
//! Everywhere else the address that was dialled does. Here it is one of the agent's own, as with the oldest EdgeMesh,
//! whose names all led to addresses of its own: the name is all that tells services apart.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Finds the address of a service by a host name.
type Find = dyn Fn(&str) -> Option<IpAddr> + Send + Sync;

/// Where names choose, and what they choose from.
#[derive(Clone)]
pub struct Gate {
    /// Whether connections to an address are such.
    pub is: Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>,
    /// The address of the service that a host name stands for. Names come in lower case and without a dot at the end.
    pub find: Arc<Find>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { is: Arc::new(|_| false), find: Arc::new(|_| None) }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// The address of the service that `host`, as a request has it, names on a connection to `port`. A request for another
    /// port than its connection's is nobody's here.
    pub(super) fn service(&self, host: &[u8], port: u16) -> Option<IpAddr> {
        let host = std::str::from_utf8(host).ok()?.to_ascii_lowercase();
        let (name, asked) = host.split_once(':').unwrap_or((&host, ""));
        // What a URL for port 80 leaves out.
        if !asked.is_empty() && asked.parse() != Ok(port) {
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        (self.find)(name)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_name_counts_and_the_port_must_be_the_one_that_was_dialled() {
        let web = IpAddr::from(Ipv4Addr::new(10, 96, 0, 10));
        let gate = Gate {
            is: Arc::new(|_| true),
            find: Arc::new(move |name| (name == "web.default").then_some(web)),
        };
        for host in ["web.default", "Web.Default:8080", "web.default.:8080", "web.default.", "web.default:"] {
            assert_eq!(gate.service(host.as_bytes(), 8080), Some(web), "{host}");
        }
        for host in [
            "",
            ":8080",
            "web",
            "web.default:80",
            "web.default:x",
            "web.default:8080:1",
            "web.default..",
            "\u{e9}",
        ] {
            assert_eq!(gate.service(host.as_bytes(), 8080), None, "{host}");
        }
        assert_eq!(gate.service(b"\xff", 80), None);
        assert_eq!(Gate::default().service(b"web.default", 80), None);
    }
}
