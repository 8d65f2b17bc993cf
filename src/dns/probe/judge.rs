//! The steps of the chain. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Facts, NSSWITCH, RESOLV_CONF};
use crate::config::{DnsSettings, UpstreamFrom};
use crate::dns::servers;
use crate::obs::api::{Finding, Severity};

/// Where `NodeLocal DNSCache` listens unless told otherwise (KEP-1024).
const NODE_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
/// The stubs of systemd-resolved: for programs as they are, and for those that do all by themselves.
const RESOLVED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// Goes along the chain. Empty where every pod and every process of the host gets to this agent.
pub(super) fn judge(settings: &DnsSettings, facts: &Facts) -> Vec<Finding> {
    let Some(own) = settings.listen.first() else { return Vec::new() };
    let chain = Chain { settings, facts, own: own.ip(), servers: servers::parse(&facts.resolv_conf) };
    [chain.agent(), chain.pods(), chain.node_local(), chain.host(), chain.upstream()]
        .into_iter()
        .flatten()
        .collect()
}

fn finding(id: &str, severity: Severity, what: String, mend: String) -> Finding {
    Finding { id: id.to_owned(), severity, what, mend }
}

struct Chain<'a> {
    settings: &'a DnsSettings,
    facts: &'a Facts,
    own: IpAddr,
    servers: Vec<SocketAddr>,
}

impl Chain<'_> {
    fn is_own(&self, server: &SocketAddr) -> bool {
        self.settings.listen.contains(server)
    }

    /// Whether packets to `ip` come to this agent: its own address, or a ClusterIP.
    fn leads_here(&self, ip: IpAddr) -> bool {
        self.settings.listen.iter().any(|own| own.ip() == ip)
            || self.facts.ranges.iter().any(|range| range.contains(&ip))
    }

    /// A running agent answers at its own address.
    fn agent(&self) -> Vec<Finding> {
        let silent = self.facts.silent.iter().map(|addr| {
            let what = format!("the agent runs, and no answer comes from its DNS address {addr}");
            let mend = "look for it in the warnings of `edgesplice status`, and for a firewall that drops it";
            finding("dns-silent", Severity::Warning, what, mend.to_owned())
        });
        silent.collect()
    }

    /// What the kubelet writes into pods' resolver configuration leads here.
    fn pods(&self) -> Vec<Finding> {
        let Some(kubelet) = &self.facts.kubelet else { return Vec::new() };
        let (path, parent, own, domain) = (&kubelet.path, &kubelet.parent, self.own, &self.settings.domain);
        let warn = |what: String, mend: String| finding("dns-pods", Severity::Warning, what, mend);
        let restart = "and restart it; pods get it when they are made anew";
        let mut found = Vec::new();
        // Where the ranges are not known, an address that is somebody else's for certain is told all the same.
        let foreign = |ip: &IpAddr| {
            !self.leads_here(*ip) && (!self.facts.ranges.is_empty() || *ip == NODE_LOCAL || ip.is_loopback())
        };
        let elsewhere = kubelet.servers.iter().find(|server| match server.parse() {
            Ok(ip) => foreign(&ip),
            Err(_) => true,
        });
        if kubelet.servers.is_empty() {
            found.push(warn(
                format!("{path} names no DNS server for pods: they ask the node's own, which do not know *.{domain}"),
                format!("{path}: `{parent}clusterDNS: [{own}]`, {restart}"),
            ));
        } else if let Some(server) = elsewhere {
            found.push(warn(
                format!("{path} gives pods the DNS server {server}, which is not this agent"),
                format!("{path}: `{parent}clusterDNS: [{own}]`, {restart}"),
            ));
        }
        let told = kubelet.domain.as_deref().map(|told| told.trim_end_matches('.').to_ascii_lowercase());
        if told.as_deref() != Some(domain.as_str()) {
            let what = match told {
                Some(told) => format!(
                    "{path} says that the cluster's domain is {told}; this agent answers for {domain}"
                ),
                None => format!(
                    "{path} names no cluster domain: pods find full names only, no `SERVICE.NAMESPACE`"
                ),
            };
            found.push(warn(
                what,
                format!(
                    "{path}: `{parent}clusterDomain: {domain}`, {restart}; or dns.domain, if that is wrong"
                ),
            ));
        }
        found
    }

    /// Nobody else on this machine has an address that pods are given.
    fn node_local(&self) -> Vec<Finding> {
        let cluster = |ip: &&IpAddr| self.facts.ranges.iter().any(|range| range.contains(*ip));
        let mut found = Vec::new();
        if self.facts.local.contains(&NODE_LOCAL) {
            found.push(finding(
                "dns-node-local",
                Severity::Warning,
                format!("NodeLocal DNSCache answers on {NODE_LOCAL}: pods that use it do not ask this agent"),
                format!(
                    "in the kubelet's (KubeEdge: edgecore.yaml, edged) configuration: `clusterDNS: [{}]`",
                    self.own
                ),
            ));
        }
        if let Some(ip) = self.facts.local.iter().find(cluster) {
            found.push(finding(
                "dns-node-local",
                Severity::Warning,
                format!(
                    "{ip} lies in the service range and is an address of this machine, as NodeLocal DNSCache makes \
                     it: what goes there is answered by whoever listens, not by this agent"
                ),
                format!(
                    "take NodeLocal DNSCache off this node; if it has left the address behind: `ip address del {ip} \
                     dev LINK`, with the link that `ip address` shows it on"
                ),
            ));
        }
        found
    }

    /// A process of the host asks this agent first.
    fn host(&self) -> Vec<Finding> {
        let (own, domain) = (self.own, &self.settings.domain);
        let info = |id: &str, what: String, mend: String| vec![finding(id, Severity::Info, what, mend)];
        let by_stub = self.servers.iter().any(|server| RESOLVED.contains(&server.ip()));
        if let Some(resolved) = &self.facts.resolved
            && (by_stub || asks_resolved(&self.facts.nsswitch))
        {
            if is_told(resolved, own, domain) {
                return Vec::new();
            }
            let who = if by_stub { RESOLV_CONF } else { NSSWITCH };
            return info(
                "dns-resolved",
                format!(
                    "systemd-resolved answers this host's processes ({who} leads to it) and does not know *.{domain}"
                ),
                format!(
                    "for host processes: in /etc/systemd/resolved.conf.d/edgesplice.conf, section [Resolve]: \
                     `DNS={own}` and `Domains=~{domain}`; then `systemctl restart systemd-resolved`"
                ),
            );
        }
        let Some(first) = self.servers.first() else {
            return info(
                "dns-resolv-conf",
                format!(
                    "{RESOLV_CONF} names no DNS server: host processes do not find *.{domain} (pods do not mind)"
                ),
                format!("for host processes: first line of {RESOLV_CONF}: `nameserver {own}`"),
            );
        };
        if self.is_own(first) || (first.port() == 53 && self.leads_here(first.ip())) {
            return Vec::new();
        }
        if first.ip().is_loopback() {
            return info(
                "dns-resolv-conf",
                format!(
                    "host processes ask {}, a DNS server of this machine, and do not find *.{domain} unless that asks \
                     this agent (pods do not mind)",
                    first.ip()
                ),
                format!(
                    "for host processes: in dnsmasq's configuration `server=/{domain}/{own}`, in unbound's \
                     `forward-zone: name: \"{domain}.\" forward-addr: {own}`; or first line of {RESOLV_CONF}: \
                     `nameserver {own}`"
                ),
            );
        }
        let mend = format!("for host processes: first line of {RESOLV_CONF}: `nameserver {own}`");
        if self.servers.iter().any(|server| self.is_own(server)) {
            // Somebody meant host processes to ask this agent.
            let what = format!(
                "{RESOLV_CONF} names {} before this agent: host processes take its word that *.{domain} does not exist",
                first.ip()
            );
            return vec![finding("dns-resolv-conf", Severity::Warning, what, mend)];
        }
        let what = format!(
            "{RESOLV_CONF} does not name this agent: host processes do not find *.{domain} (pods do not mind)"
        );
        info("dns-resolv-conf", what, mend)
    }

    /// There is someone to ask for foreign names.
    fn upstream(&self) -> Vec<Finding> {
        let alone = self.settings.upstreams.is_empty()
            && self.settings.upstream_from == UpstreamFrom::Node
            && self.servers.iter().all(|server| self.is_own(server) || self.leads_here(server.ip()));
        if !alone {
            return Vec::new();
        }
        vec![finding(
            "dns-upstream",
            Severity::Warning,
            format!("{RESOLV_CONF} names no DNS server besides this agent: foreign names cannot be answered"),
            "give one with --dns-upstream ADDR, or add it as the second `nameserver` line".to_owned(),
        )]
    }
}

/// Whether the C library asks systemd-resolved before it looks into `/etc/resolv.conf`.
fn asks_resolved(nsswitch: &str) -> bool {
    let hosts = nsswitch.lines().find_map(|line| line.trim_start().strip_prefix("hosts:"));
    let words = hosts.unwrap_or_default().split(['#']).next().unwrap_or_default().split_whitespace();
    words.take_while(|word| *word != "dns").any(|word| word == "resolve")
}

/// Whether systemd-resolved is told to ask `own` for `domain`.
fn is_told(conf: &str, own: IpAddr, domain: &str) -> bool {
    let lines = || conf.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let values = |key: &str| {
        let key = key.to_owned();
        lines()
            .filter_map(move |line| line.split_once('=').filter(|(name, _)| name.trim() == key))
            .flat_map(|(_, value)| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect::<Vec<String>>()
    };
    // A server may carry a port and a name: `169.254.96.16:53#name`.
    let address = |server: &String| {
        let server = server.split('#').next().unwrap_or_default();
        server.parse::<IpAddr>().or_else(|_| server.parse::<SocketAddr>().map(|addr| addr.ip())).ok()
    };
    let covers = |routed: &String| {
        let routed = routed.trim_start_matches('~').trim_end_matches('.');
        routed.is_empty() || domain == routed || domain.ends_with(&format!(".{routed}"))
    };
    values("DNS").iter().any(|server| address(server) == Some(own)) && values("Domains").iter().any(covers)
}

#[cfg(test)]
mod tests {
    use super::super::kubelet::Kubelet;
    use super::*;
    use crate::config::DnsMode;

    const OWN: &str = "nameserver 169.254.96.16\nnameserver 192.0.2.1\n";

    fn settings() -> DnsSettings {
        DnsSettings {
            mode: DnsMode::Auto,
            listen: vec![([169, 254, 96, 16], 53).into()],
            domain: "cluster.local".to_owned(),
            upstreams: Vec::new(),
            upstream_from: UpstreamFrom::Node,
        }
    }

    fn good() -> Facts {
        Facts { resolv_conf: OWN.to_owned(), ..Facts::default() }
    }

    fn ids(facts: &Facts) -> Vec<String> {
        judge(&settings(), facts).into_iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn a_good_chain_has_no_findings() {
        assert!(ids(&good()).is_empty());
        let ranges = vec!["10.96.0.0/16".parse().unwrap()];
        let by_cluster = "nameserver 10.96.0.10\nnameserver 192.0.2.1\n".to_owned();
        assert!(ids(&Facts { resolv_conf: by_cluster, ranges, ..Facts::default() }).is_empty());
    }

    #[test]
    fn the_host_asks_the_first_server_only() {
        let with = |text: &str| ids(&Facts { resolv_conf: text.to_owned(), ..Facts::default() });
        assert_eq!(with("nameserver 192.0.2.1\n"), ["dns-resolv-conf"]);
        assert_eq!(with("nameserver 192.0.2.1\nnameserver 169.254.96.16\n"), ["dns-resolv-conf"]);
        assert_eq!(with("nameserver 169.254.96.16\n"), ["dns-upstream"]);
        assert_eq!(with(""), ["dns-resolv-conf", "dns-upstream"]);
        let stub = Facts { resolv_conf: "nameserver 127.0.0.1\n".to_owned(), ..Facts::default() };
        assert!(judge(&settings(), &stub)[0].mend.contains("server=/cluster.local/169.254.96.16"));
    }

    #[test]
    fn resolved_must_be_told() {
        let stub = "nameserver 127.0.0.53\n";
        let with = |resolv_conf: &str, nsswitch: &str, resolved: &str| {
            ids(&Facts {
                resolv_conf: resolv_conf.to_owned(),
                nsswitch: nsswitch.to_owned(),
                resolved: Some(resolved.to_owned()),
                ..Facts::default()
            })
        };
        assert_eq!(with(stub, "", "[Resolve]\n#DNS=169.254.96.16\n"), ["dns-resolved"]);
        assert!(
            with(stub, "", "[Resolve]\nDNS=192.0.2.9 169.254.96.16#x\nDomains=~cluster.local\n").is_empty()
        );
        assert!(with(stub, "", "[Resolve]\nDNS=169.254.96.16\nDomains=~.\n").is_empty());
        assert_eq!(with(stub, "", "[Resolve]\nDNS=169.254.96.16\nDomains=~example\n"), ["dns-resolved"]);
        // The C library passes resolv.conf by.
        let nss = "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns # all\n";
        assert_eq!(with(OWN, nss, ""), ["dns-resolved"]);
        assert!(with(OWN, "hosts: files dns resolve\n", "").is_empty());
    }

    #[test]
    fn pods_are_sent_here_by_the_kubelet() {
        let with = |servers: &[&str], domain: Option<&str>, ranges: &[&str]| {
            let kubelet = Kubelet {
                path: "/etc/kubeedge/config/edgecore.yaml".to_owned(),
                parent: "modules.edged.".to_owned(),
                servers: servers.iter().map(ToString::to_string).collect(),
                domain: domain.map(str::to_owned),
            };
            let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            judge(&settings(), &Facts { kubelet: Some(kubelet), ranges, ..good() })
        };
        let domain = Some("cluster.local");
        assert!(with(&["169.254.96.16"], domain, &[]).is_empty());
        assert!(with(&["10.96.0.10"], domain, &["10.96.0.0/16"]).is_empty());
        assert!(with(&["10.96.0.10"], domain, &[]).is_empty(), "it may well be the cluster's");
        for (servers, told, ranges) in [
            (&[][..], domain, &[][..]),
            (&["169.254.20.10"], domain, &[]),
            (&["10.96.0.10"], domain, &["10.43.0.0/16"]),
            (&["169.254.96.16"], None, &[]),
            (&["169.254.96.16"], Some("edge.example"), &[]),
        ] {
            let found = with(servers, told, ranges);
            assert_eq!(found.len(), 1, "{servers:?} {told:?}: {found:?}");
            assert_eq!(found[0].id, "dns-pods");
            assert!(found[0].mend.contains("edgecore.yaml: `modules.edged.cluster"), "{found:?}");
        }
    }

    #[test]
    fn others_that_answer_on_this_machine_are_found() {
        let local = |ip: &str| vec![ip.parse().unwrap()];
        assert_eq!(ids(&Facts { local: local("169.254.20.10"), ..good() }), ["dns-node-local"]);
        let ranges = vec!["10.96.0.0/16".parse().unwrap()];
        assert_eq!(ids(&Facts { local: local("10.96.0.10"), ranges, ..good() }), ["dns-node-local"]);
        let silent = vec!["169.254.96.16:53".parse().unwrap()];
        assert_eq!(ids(&Facts { silent, ..good() }), ["dns-silent"]);
    }
}
