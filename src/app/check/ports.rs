//! The addresses that the agent binds: whether somebody has them already.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::finding;
use crate::app::instance;
use crate::config::{DnsMode, Settings, keys};
use crate::net::listening::{Listening, listening};
use crate::obs::api::{Finding, Severity};

/// One address that the agent binds.
struct Wanted {
    key: &'static str,
    address: SocketAddr,
    udp: bool,
    /// What it means if it cannot.
    severity: Severity,
}

/// Looks for sockets in the way, other than those of a running agent.
pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let there = listening();
    let agent = instance::holder();
    // Sockets of an agent in another container cannot be told from others.
    let hidden = agent.is_some_and(|pid| pid <= 0);
    let own = instance::sockets();
    let foreign: Vec<Listening> =
        there.into_iter().filter(|one| !hidden && !own.contains(&one.inode)).collect();
    let blocked = |wanted: &Wanted| {
        let one = foreign.iter().find(|one| one.udp == wanted.udp && one.is_in_the_way_of(wanted.address))?;
        let protocol = if wanted.udp { "UDP" } else { "TCP" };
        let who = owner(one.inode).map(|owner| format!(" of {owner}")).unwrap_or_default();
        let what = format!(
            "{} ({}) cannot be bound: a {protocol} socket{who} has {}",
            wanted.key, wanted.address, one.address
        );
        let mend = format!("stop it, or set {} to another address", wanted.key);
        Some(finding("port-in-use", wanted.severity, what, mend))
    };
    wanted(settings).iter().filter_map(blocked).collect()
}

fn wanted(settings: &Settings) -> Vec<Wanted> {
    let tcp = |key, address| Wanted { key, address, udp: false, severity: Severity::Problem };
    let mut wanted = vec![tcp(keys::ADMIN_LISTEN, settings.admin.listen)];
    if settings.proxy.port != 0 {
        for any in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            wanted.push(tcp(keys::PROXY_PORT, SocketAddr::new(any, settings.proxy.port)));
        }
    }
    if settings.dns.mode == DnsMode::Auto {
        for (address, udp) in
            settings.dns.listen.iter().flat_map(|address| [(*address, false), (*address, true)])
        {
            // `auto` answers wherever it can, so that the rest of the agent does not hang on it.
            wanted.push(Wanted { key: keys::DNS_LISTEN, address, udp, severity: Severity::Warning });
        }
    }
    wanted
}

/// The process that has a socket open.
fn owner(inode: u64) -> Option<String> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| instance::sockets_of(*pid).contains(&inode))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({})", name.trim_end()))
}
