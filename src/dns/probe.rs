//! Looks at who answers names on this machine, and says what would make its processes pass by this agent. Changes
//! nothing.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::servers;
use crate::config::{DnsMode, DnsSettings};
use crate::obs::api::{Finding, Severity};

/// The node's resolver configuration.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where `NodeLocal DNSCache` listens unless told otherwise (KEP-1024).
const NODE_LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));
/// The stub of systemd-resolved.
const RESOLVED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));

/// What a node would have to change so that its processes and pods find the cluster's names here.
pub async fn findings(settings: &DnsSettings) -> Vec<Finding> {
    if settings.mode == DnsMode::Off {
        return Vec::new();
    }
    let text = tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default();
    let local: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .map(|list| {
            let ip = |a: nix::ifaddrs::InterfaceAddress| {
                let address = a.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            };
            list.filter_map(ip).collect()
        })
        .unwrap_or_default();
    judge(settings, &text, &local, Path::new("/run/systemd/resolve/resolv.conf").exists())
}

fn judge(settings: &DnsSettings, resolv_conf: &str, local: &[IpAddr], resolved_runs: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(own) = settings.listen.first() else { return found };
    let servers = servers::parse(resolv_conf);
    let mut add = |id: &str, severity, what: String, mend: String| {
        found.push(Finding { id: id.to_owned(), severity, what, mend });
    };
    if local.contains(&NODE_LOCAL) {
        add(
            "dns-node-local",
            Severity::Warning,
            format!("NodeLocal DNSCache answers on {NODE_LOCAL}: pods that use it do not ask this agent"),
            format!(
                "in the kubelet's (KubeEdge: edgecore.yaml, edged) configuration: `clusterDNS: [{}]`",
                own.ip()
            ),
        );
    }
    let domain = &settings.domain;
    if resolved_runs && servers.iter().any(|server| server.ip() == RESOLVED) {
        add(
            "dns-resolved",
            Severity::Info,
            format!(
                "systemd-resolved ({RESOLVED}) answers this host's processes and does not know *.{domain}"
            ),
            format!(
                "for host processes: in /etc/systemd/resolved.conf.d/edgesplice.conf, section [Resolve]: `DNS={}` and \
                 `Domains=~{domain}`",
                own.ip()
            ),
        );
    } else if !servers.iter().any(|server| is_own(server, settings)) {
        add(
            "dns-resolv-conf",
            Severity::Info,
            format!(
                "{RESOLV_CONF} does not name this agent: host processes do not find *.{domain} (pods do not mind)"
            ),
            format!("for host processes: first line of {RESOLV_CONF}: `nameserver {}`", own.ip()),
        );
    }
    if settings.upstreams.is_empty() && servers.iter().all(|server| is_own(server, settings)) {
        add(
            "dns-upstream",
            Severity::Warning,
            format!("{RESOLV_CONF} names no DNS server besides this agent: foreign names cannot be answered"),
            "give one with --dns-upstream ADDR, or add it as the second `nameserver` line".to_owned(),
        );
    }
    found
}

fn is_own(server: &SocketAddr, settings: &DnsSettings) -> bool {
    settings.listen.contains(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(resolv_conf: &str, local: &[IpAddr], resolved: bool) -> Vec<String> {
        let settings = DnsSettings {
            mode: DnsMode::Auto,
            listen: vec![([169, 254, 96, 16], 53).into()],
            domain: "cluster.local".to_owned(),
            upstreams: Vec::new(),
            upstream_from: crate::config::UpstreamFrom::Node,
        };
        judge(&settings, resolv_conf, local, resolved).into_iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn what_passes_by_is_found() {
        assert!(ids("nameserver 169.254.96.16\nnameserver 192.0.2.1\n", &[], false).is_empty());
        assert_eq!(ids("nameserver 192.0.2.1\n", &[], false), ["dns-resolv-conf"]);
        assert_eq!(ids("nameserver 169.254.96.16\n", &[], false), ["dns-upstream"]);
        assert_eq!(ids("nameserver 127.0.0.53\n", &[NODE_LOCAL], true), ["dns-node-local", "dns-resolved"]);
    }
}
