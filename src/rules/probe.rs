//! What on this machine would stop the rules from working, or make them work wrongly. Changes nothing.

pub(super) mod lock;
mod networks;
mod standing;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::apply::{Backend, Family, HostTools};
use super::detect::{StartError, detect};
use super::legacy::{self, Options, Roots};
use super::machine::{CAP_NET_ADMIN, CAP_NET_RAW, Lacks, Machine as _, effective_capabilities};
use super::scratch::{FEATURES, Lack, QUEUE, lacking};
use crate::config::{ConnectMode, InterceptSettings, IptablesBackend};
use crate::net::sock;

/// What to do where something could not be looked at.
const AS_ROOT: &str = "run `edgesplice check` as root on the node";
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
    /// A finding.
    pub fn new(
        id: &'static str,
        severity: Severity,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { id, severity, what: what.into(), mend: mend.into() }
    }
}

use Severity::{Info, Problem, Warning};

/// What a look at the machine brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkup {
    /// The back end that the agent would use, and why; empty if there is none.
    pub packet_filter: String,
    /// What was found, the worst first; nothing on a healthy node.
    pub findings: Vec<Finding>,
}

/// What is known of the agent that would run, or runs, on the machine.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The ranges that are captured, as far as they are known.
    pub ranges: Vec<IpNet>,
    /// The addresses in them that are left alone, if they are known.
    pub alone: Option<BTreeSet<IpAddr>>,
    /// The addresses at which it answers DNS.
    pub dns: BTreeSet<IpAddr>,
}

/// Looks at this machine.
pub async fn checkup(settings: &InterceptSettings, known: &Known) -> Checkup {
    let mut found = Vec::new();
    let packet_filter = rules(settings, known, &mut found).await.unwrap_or_default();
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    found.extend(effective_capabilities(&status).and_then(missing_capability));
    networks::check(&known.ranges, known.alone.as_ref(), &mut found).await;
    kernel(&Kernel::read(), &mut found);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Checkup { packet_filter, findings: found }
}

async fn rules(settings: &InterceptSettings, known: &Known, found: &mut Vec<Finding>) -> Option<String> {
    let detection = match detect(&HostTools, settings.iptables_backend).await {
        Ok(detection) => detection,
        Err(error) => {
            found.push(start_error(&error));
            return None;
        }
    };
    let backend = detection.backend;
    against_hints(settings.iptables_backend, backend, found).await;
    if let Some(range) = known.ranges.iter().find(|range| range.addr().is_ipv6() && !detection.v6) {
        let what = format!("the Services of {range} are not served: {}", detection.no_v6);
        let mend = "enable IPv6 on this node, and install ip6tables";
        found.push(Finding::new("no-ipv6", Warning, what, mend));
    }
    let held = lock(backend, found).await;
    if !(held && backend == Backend::Legacy) {
        // With the lock held, the probes would only wait for it.
        features(backend, detection.v6, found).await;
        if settings.connect == ConnectMode::BeforeAccept
            && let Lacks::Something(said) = HostTools.lacks(backend, detection.v6, &QUEUE).await
        {
            found.push(missing_queues(&said));
        }
    }
    let options = Options { own_servers: known.dns.clone(), starting: true, ..Options::default() };
    match legacy::facts(&HostTools, &Roots::default(), &options).await {
        Ok(facts) => standing::judge(settings, backend, &known.ranges, (&facts, &options), found),
        Err(error) => found.push(Finding::new("unprobed", Warning, format!("{error:#}"), AS_ROOT)),
    }
    Some(format!("iptables-{}: {}", backend.as_str(), detection.why))
}

/// The back end was set by hand, and the hint chains say otherwise.
async fn against_hints(setting: IptablesBackend, backend: Backend, found: &mut Vec<Finding>) {
    if setting == IptablesBackend::Auto {
        return;
    }
    if let Ok(hinted) = detect(&HostTools, IptablesBackend::Auto).await
        && hinted.hinted
        && hinted.backend != backend
    {
        let (set, other) = (backend.as_str(), hinted.backend.as_str());
        let what = format!("intercept.iptablesBackend is {set}, but this node uses {other}: {}", hinted.why);
        let mend = "set intercept.iptablesBackend to auto";
        found.push(Finding::new("backend-mismatch", Warning, what, mend));
    }
}

/// Whether somebody holds the lock of the legacy programs.
async fn lock(backend: Backend, found: &mut Vec<Finding>) -> bool {
    let path = lock::path();
    let Some(holder) = lock::holder(&path).await else { return false };
    // The nft programs do not take it.
    let severity = if backend == Backend::Legacy { Problem } else { Info };
    let what = format!(
        "the xtables lock {} has been held for over a second by {holder}; legacy rules cannot be changed meanwhile",
        path.display()
    );
    found.push(Finding::new("xtables-lock", severity, what, format!("fuser -v {}", path.display())));
    true
}

async fn features(backend: Backend, v6: bool, found: &mut Vec<Finding>) {
    for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || v6) {
        match lacking(backend, family, &FEATURES).await {
            Ok(lacks) => found.extend(lacks.iter().map(|lack| missing_feature(lack, family))),
            Err(why) => {
                let what = format!("what the {} packet filter can do is unknown: {why}", family.as_str());
                found.push(Finding::new("unprobed", Warning, what, AS_ROOT));
            }
        }
    }
}

/// `ipset` matches are looked up, and legacy tables read, over raw sockets. `CAP_NET_ADMIN` is `detect`'s to miss.
fn missing_capability(set: u64) -> Option<Finding> {
    let has = |bit: u32| set & (1 << bit) != 0;
    if has(CAP_NET_RAW) || !has(CAP_NET_ADMIN) {
        return None;
    }
    let what =
        "the capability CAP_NET_RAW is missing: iptables can neither match ip sets nor use legacy tables";
    let mend = "run as root, or add NET_RAW to the container's securityContext.capabilities";
    Some(Finding::new("missing-capability", Problem, what, mend))
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

fn missing_queues(said: &str) -> Finding {
    let what = format!(
        "intercept.connect is before-accept, but packets cannot be held ({said}): backends are dialled after accept"
    );
    let mend = format!("modprobe {}, or set intercept.connect to after-accept", QUEUE[0].modules[0]);
    Finding::new("no-queues", Warning, what, mend)
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
            open_files: sock::hard_nofile().ok(),
        }
    }
}

fn kernel(kernel: &Kernel, found: &mut Vec<Finding>) {
    if kernel.ip_forward == Some(0) {
        let what = "net.ipv4.ip_forward is 0: services work, but pods reach nothing else beyond this node";
        found.push(Finding::new("ip-forward", Warning, what, "sysctl -w net.ipv4.ip_forward=1"));
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
    fn raw_sockets_are_needed_beside_the_right_to_administer() {
        let (admin, raw) = (1 << CAP_NET_ADMIN, 1 << CAP_NET_RAW);
        for (set, missing) in [(admin | raw, false), (admin, true), (0, false)] {
            assert_eq!(missing_capability(set).is_some(), missing);
        }
    }
}
