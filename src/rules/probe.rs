//! What on this machine would stop the rules from working, or make them work wrongly. Changes nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};

use super::apply::{Backend, Family, HostTools};
use super::detect::{StartError, detect};
use super::dump::Dump;
use super::leftovers::read;
use super::names::{NAT_CHAIN, is_own_chain};
use super::routes;
use super::scratch::{Lack, lacking};
use crate::config::InterceptSettings;

/// Fewer open files than this, and a busy node runs out: two for each connection, four more while it streams, so
/// that this is 2,700 streaming connections.
const ENOUGH_FILES: u64 = 16_384;
/// What to raise the limit to.
const PLENTY_OF_FILES: u64 = 1_048_576;
/// Share of the connection-tracking table in percent from which new connections are in danger.
const CONNTRACK_FULL: u64 = 90;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// It works, but less well.
    Warning,
    /// It does not work, or works wrongly.
    Problem,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name for scripts, kebab-case.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, with the object and the value.
    pub what: String,
    /// The command that mends it, or what else to do; empty where nothing needs to be done.
    pub mend: String,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { id, severity, what: what.into(), mend: mend.into() }
    }
}

use Severity::{Info, Problem, Warning};

/// Looks at this machine, worst findings first.
pub async fn findings(settings: &InterceptSettings) -> Vec<Finding> {
    let mut found = Vec::new();
    rules(settings, &mut found).await;
    networks(settings, &mut found).await;
    kernel(&Kernel::read(), &mut found);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

async fn rules(settings: &InterceptSettings, found: &mut Vec<Finding>) {
    let detection = match detect(&HostTools, settings.iptables_backend).await {
        Ok(detection) => detection,
        Err(error) => {
            found.push(start_error(&error));
            return;
        }
    };
    let backend = detection.backend;
    let what = format!("the {} back end is used: {}", backend.as_str(), detection.why);
    found.push(Finding::new("iptables-backend", Info, what, ""));
    if !detection.v6 {
        let what = format!("IPv6 services are not served: {}", detection.no_v6);
        found.push(Finding::new("no-ipv6", Info, what, "enable IPv6 if the cluster uses it"));
    }
    for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || detection.v6) {
        match lacking(backend, family).await {
            Ok(lacks) => found.extend(lacks.iter().map(|lack| missing_feature(lack, family))),
            Err(why) => {
                let what = format!("what the {} packet filter can do is unknown: {why}", family.as_str());
                found.push(Finding::new(
                    "unprobed",
                    Warning,
                    what,
                    "run `edgesplice check` as root on the node",
                ));
            }
        }
    }
    let mut dumps = Vec::new();
    for backend in Backend::ALL {
        for family in Family::ALL {
            // A back end that cannot be read and is not ours to use has no rules in force.
            if let Ok(Some(dump)) = read(&HostTools, backend, family).await {
                dumps.push((backend, family, dump));
            }
        }
    }
    standing_rules(backend, &dumps, &listening_ports(), found);
}

fn start_error(error: &StartError) -> Finding {
    let (id, mend) = match error {
        StartError::NotPermitted => ("not-permitted", "sudo edgesplice check"),
        StartError::NoPrograms | StartError::NotInstalled(_) => {
            ("iptables-missing", "apt-get install iptables")
        }
        StartError::Unusable(_) => ("iptables-unusable", "modprobe nf_tables, or modprobe ip_tables"),
    };
    Finding::new(id, Problem, error.to_string(), mend)
}

fn missing_feature(lack: &Lack, family: Family) -> Finding {
    let Lack { feature, said } = lack;
    let module = feature.modules[usize::from(family == Family::V6)];
    let family = family.as_str();
    if feature.optional {
        let what = format!(
            "{family}: {} does not work, so what is not served is reset after the connect instead of refused \
             before it ({said})",
            feature.name
        );
        return Finding::new("no-ipset", Warning, what, format!("apt-get install ipset; modprobe {module}"));
    }
    let what = format!("{family}: {} does not work ({said})", feature.name);
    Finding::new("missing-feature", Problem, what, format!("modprobe {module}"))
}

/// What stands in the packet filter already.
fn standing_rules(
    backend: Backend,
    dumps: &[(Backend, Family, Dump)],
    listening: &BTreeSet<u16>,
    found: &mut Vec<Finding>,
) {
    let foreign = |dump: &Dump| {
        dump.tables.iter().flat_map(|table| &table.rules).filter(|rule| !is_own_chain(&rule.chain)).count()
    };
    let other = dumps.iter().filter(|(of, ..)| *of != backend);
    let others: usize = other.map(|(.., dump)| foreign(dump)).sum();
    let ours: usize = dumps.iter().filter(|(of, ..)| *of == backend).map(|(.., dump)| foreign(dump)).sum();
    if others > 0 && ours > 0 {
        let name = if backend == Backend::Nft { "legacy" } else { "nft" };
        let what = format!(
            "rules stand in both back ends: {ours} in {}, {others} in {name}; a packet passes both",
            backend.as_str()
        );
        let mend = format!("look at `iptables-{name}-save`, and remove what nobody keeps up to date");
        found.push(Finding::new("mixed-backends", Warning, what, mend));
    }
    for (of, family, dump) in dumps {
        let place = format!("{} {}", of.as_str(), family.as_str());
        let Some(nat) = dump.table("nat") else { continue };
        if nat.has_chain("KUBE-SERVICES") {
            let what = format!(
                "kube-proxy's chain KUBE-SERVICES stands in {place}; two proxies serve the same addresses"
            );
            let mend = "keep kube-proxy off this node, then run `kube-proxy --cleanup`";
            found.push(Finding::new("kube-proxy", Warning, what, mend));
        }
        let port = nat.rules_of(NAT_CHAIN).find_map(|rule| {
            let words = rule.words();
            let at = words.iter().position(|word| word == "--to-ports")?;
            words.get(at + 1)?.parse::<u16>().ok()
        });
        if let Some(port) = port.filter(|port| !listening.contains(port)) {
            let what = format!(
                "rules of an earlier run stand in {place} and lead to port {port}, where nobody listens"
            );
            found.push(Finding::new(
                "own-leftovers",
                Problem,
                what,
                "edgesplice cleanup, or start the agent",
            ));
        }
    }
}

/// Addresses and routes that configured ranges would swallow.
async fn networks(settings: &InterceptSettings, found: &mut Vec<Finding>) {
    let (Ok(addresses), Ok(routes)) = (routes::local_addresses().await, routes::non_default_routes().await)
    else {
        let what = "the routes of this machine cannot be listed";
        found.push(Finding::new("unprobed", Warning, what, "run `edgesplice check` as root on the node"));
        return;
    };
    overlaps(&settings.service_cidrs, &addresses, &routes, found);
}

fn overlaps(ranges: &[IpNet], addresses: &[IpAddr], routes: &[IpNet], found: &mut Vec<Finding>) {
    let mend = "set intercept.serviceCIDRs to the ranges that hold ClusterIPs only";
    for range in ranges {
        for address in addresses.iter().filter(|address| range.contains(*address)) {
            let what = format!("the range {range} covers {address}, an address of this machine");
            found.push(Finding::new("range-overlap", Problem, what, mend));
        }
        for route in routes.iter().filter(|route| range.contains(*route)) {
            let what = format!("the range {range} covers {route}, a network this machine has a route to");
            found.push(Finding::new("range-overlap", Warning, what, mend));
        }
    }
}

/// Values of the running kernel; `None` where there is no such value.
#[derive(Clone, Copy, Debug, Default)]
struct Kernel {
    ip_forward: Option<u64>,
    rp_filter: Option<u64>,
    conntrack_count: Option<u64>,
    conntrack_max: Option<u64>,
    open_files: Option<u64>,
}

impl Kernel {
    fn read() -> Self {
        let number = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
            text.trim().parse().ok()
        };
        Self {
            ip_forward: number("ipv4/ip_forward"),
            rp_filter: number("ipv4/conf/all/rp_filter"),
            conntrack_count: number("netfilter/nf_conntrack_count"),
            conntrack_max: number("netfilter/nf_conntrack_max"),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
        }
    }
}

fn kernel(kernel: &Kernel, found: &mut Vec<Finding>) {
    if kernel.ip_forward == Some(0) {
        let what = "net.ipv4.ip_forward is 0: services work, but pods reach nothing else beyond this node";
        found.push(Finding::new("ip-forward", Info, what, "sysctl -w net.ipv4.ip_forward=1"));
    }
    if kernel.rp_filter == Some(1) {
        let what =
            "net.ipv4.conf.all.rp_filter is 1: packets of pods that are routed over two paths are dropped";
        found.push(Finding::new("rp-filter", Info, what, "sysctl -w net.ipv4.conf.all.rp_filter=2"));
    }
    if let (Some(count), Some(max)) = (kernel.conntrack_count, kernel.conntrack_max)
        && max > 0
        && count.saturating_mul(100) >= max.saturating_mul(CONNTRACK_FULL)
    {
        let what = format!(
            "the connection-tracking table is nearly full: {count} of {max}; new connections will fail"
        );
        let mend = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2));
        found.push(Finding::new("conntrack-full", Problem, what, mend));
    }
    if let Some(hard) = kernel.open_files.filter(|hard| *hard < ENOUGH_FILES) {
        let what = format!("at most {hard} files may be open at once; a connection takes two to six");
        let mend =
            format!("set LimitNOFILE={PLENTY_OF_FILES} in the unit, or `ulimit -Hn {PLENTY_OF_FILES}`");
        found.push(Finding::new("open-files", Warning, what, mend));
    }
}

/// Ports with a TCP listener in this network namespace.
fn listening_ports() -> BTreeSet<u16> {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    ["tcp", "tcp6"].iter().flat_map(|name| ports_in(&read(name))).collect()
}

/// Reads `/proc/net/tcp`: the local ports of sockets in state `0A`, listening.
fn ports_in(text: &str) -> Vec<u16> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        (state == "0A").then(|| u16::from_str_radix(port, 16).ok()).flatten()
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(found: &[Finding]) -> Vec<&'static str> {
        found.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn a_healthy_kernel_has_no_findings() {
        let mut found = Vec::new();
        let healthy = Kernel {
            ip_forward: Some(1),
            rp_filter: Some(2),
            conntrack_count: Some(100),
            conntrack_max: Some(65_536),
            open_files: Some(1 << 20),
        };
        kernel(&healthy, &mut found);
        kernel(&Kernel::default(), &mut found);
        assert_eq!(found, []);
    }

    #[test]
    fn tight_limits_are_named_with_their_values() {
        let mut found = Vec::new();
        let tight = Kernel {
            conntrack_count: Some(95),
            conntrack_max: Some(100),
            open_files: Some(1024),
            ..Kernel::default()
        };
        kernel(&tight, &mut found);
        assert_eq!(ids(&found), ["conntrack-full", "open-files"]);
        assert!(found[0].what.contains("95 of 100") && found[0].mend.ends_with("=200"));
    }

    #[test]
    fn rules_that_lead_nowhere_and_rules_in_both_back_ends_are_found() {
        let dump = |text: &str| Dump::parse(text).unwrap();
        let nft = dump(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:EDGESPLICE - [0:0]\n:KUBE-SERVICES - [0:0]\n\
             -A PREROUTING -j KUBE-SERVICES\n-A EDGESPLICE -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n",
        );
        let legacy = dump("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n");
        let dumps = [(Backend::Nft, Family::V4, nft), (Backend::Legacy, Family::V4, legacy)];
        let mut found = Vec::new();
        standing_rules(Backend::Nft, &dumps, &BTreeSet::new(), &mut found);
        assert_eq!(ids(&found), ["mixed-backends", "kube-proxy", "own-leftovers"]);
        found.clear();
        standing_rules(Backend::Nft, &dumps[..1], &BTreeSet::from([15001]), &mut found);
        assert_eq!(ids(&found), ["kube-proxy"]);
    }

    #[test]
    fn a_range_over_this_machine_is_a_problem() {
        let mut found = Vec::new();
        let (range, route): (IpNet, IpNet) =
            ("10.96.0.0/12".parse().unwrap(), "10.97.0.0/24".parse().unwrap());
        overlaps(
            &[range],
            &["10.97.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
            &[route],
            &mut found,
        );
        assert_eq!(found.iter().map(|f| f.severity).collect::<Vec<_>>(), [Problem, Warning]);
    }

    #[test]
    fn reads_listening_ports() {
        let text = "  sl  local_address rem_address   st\n   0: 0100007F:2845 00000000:0000 0A 0\n   \
                    1: 0100007F:2846 0100007F:1 01 0\n";
        assert_eq!(ports_in(text), [0x2845]);
    }
}
