//! Follows the chain by which names are asked on this machine, step by step, and says where it leads past this agent.
//!
//! `judge` has the steps: what a pod asks, what a host process asks, who listens between them and this agent, and whom
//! this agent asks for foreign names. `kubelet` reads what the kubelet tells pods. Both are pure; this file looks at
//! the machine. Nothing here changes anything.

mod judge;
mod kubelet;

#[cfg(any(test, fuzzing))]
pub(crate) use kubelet::read_text as read_kubelet;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::UdpSocket;

use super::wire::{self, flag};
use crate::config::{DnsMode, DnsSettings};
use crate::net::sock;
use crate::obs::api::Finding;

use kubelet::Kubelet;

/// The node's resolver configuration.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What tells the C library where names are looked up.
const NSSWITCH: &str = "/etc/nsswitch.conf";
/// There while systemd-resolved runs.
const RESOLVED_RUNS: &str = "/run/systemd/resolve/resolv.conf";
/// Its configuration: a file, and folders of more. Later ones go over earlier ones.
const RESOLVED_CONF: [&str; 4] = [
    "/etc/systemd/resolved.conf",
    "/usr/lib/systemd/resolved.conf.d",
    "/run/systemd/resolved.conf.d",
    "/etc/systemd/resolved.conf.d",
];
/// How long an answer may take that comes from memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found on the machine.
#[derive(Debug, Default)]
struct Facts {
    resolv_conf: String,
    nsswitch: String,
    /// The text of all configuration files of systemd-resolved; `None` if it does not run.
    resolved: Option<String>,
    /// The addresses of this machine.
    local: Vec<IpAddr>,
    kubelet: Option<Kubelet>,
    /// The captured ranges, as far as they are known.
    ranges: Vec<IpNet>,
    /// Where the agent should answer and does not; none if it does not run.
    silent: Vec<SocketAddr>,
}

/// Where a process or a pod of this node would not find the cluster's names. `ranges` are those that are captured;
/// `running` says whether an agent is at work here, which then has to answer.
pub async fn findings(settings: &DnsSettings, ranges: &[IpNet], running: bool) -> Vec<Finding> {
    if settings.mode == DnsMode::Off {
        return Vec::new();
    }
    let read = |path: &'static str| async move { tokio::fs::read_to_string(path).await.unwrap_or_default() };
    let mut silent = Vec::new();
    for addr in settings.listen.iter().filter(|_| running) {
        if !answers(*addr, &settings.domain).await {
            silent.push(*addr);
        }
    }
    let facts = Facts {
        resolv_conf: read(RESOLV_CONF).await,
        nsswitch: read(NSSWITCH).await,
        resolved: Path::new(RESOLVED_RUNS).exists().then(resolved_conf),
        local: local(),
        kubelet: kubelet::read(),
        ranges: ranges.to_vec(),
        silent,
    };
    judge::judge(settings, &facts)
}

/// Asks `addr` for the version of the cluster's records, which takes no Service to be answered.
async fn answers(addr: SocketAddr, domain: &str) -> bool {
    let mut question = Vec::new();
    for label in std::iter::once("dns-version").chain(domain.split('.')) {
        question.push(u8::try_from(label.len()).unwrap_or(0));
        question.extend(label.bytes());
    }
    question.extend([0, 0, 16, 0, 1]);
    let id = fastrand::u16(..);
    let ask = async {
        let socket = UdpSocket::from_std(sock::udp_connect(addr, 0)?)?;
        socket.send(&wire::with_question(id, flag::RECURSION_DESIRED, &question)).await?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await?;
        Ok::<_, std::io::Error>(wire::answers(&answer[..length], id, &question))
    };
    matches!(tokio::time::timeout(PATIENCE, ask).await, Ok(Ok(true)))
}

fn resolved_conf() -> String {
    let mut text = String::new();
    for place in RESOLVED_CONF.map(PathBuf::from) {
        let entries = std::fs::read_dir(&place).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        files.sort();
        files.push(place);
        for file in files {
            text.push_str(&std::fs::read_to_string(file).unwrap_or_default());
            text.push('\n');
        }
    }
    text
}

fn local() -> Vec<IpAddr> {
    let ip = |a: nix::ifaddrs::InterfaceAddress| {
        let address = a.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    nix::ifaddrs::getifaddrs().map(|list| list.filter_map(ip).collect()).unwrap_or_default()
}
