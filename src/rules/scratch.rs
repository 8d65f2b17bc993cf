//! Tries each kind of rule that we need, one by one, in a network namespace made for it and gone afterwards.
//!
//! Here single rules are probed, so the `iptables` crate does it; the rules of the running agent never go through
//! it, because it starts a process for each rule and waits for the lock without limit.

use std::process::{Command, Stdio};
use std::time::Duration;

use iptables::IPTables;
use nix::sched::{CloneFlags, unshare};

use super::apply::{Backend, Family};

/// Longest time for all probes of one family together.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// The set that the probe for sets makes in its namespace.
const SET: &str = "probe";

/// One ability of the packet filter that we need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is for, in words.
    pub name: &'static str,
    /// The kernel module that has it, for IPv4 and IPv6.
    pub modules: [&'static str; 2],
    /// Whether the agent can do without.
    pub optional: bool,
    table: &'static str,
    chain: &'static str,
    rule: [&'static str; 2],
}

const fn need(
    name: &'static str,
    modules: [&'static str; 2],
    place: [&'static str; 2],
    rule: [&'static str; 2],
) -> Feature {
    Feature { name, modules, optional: false, table: place[0], chain: place[1], rule }
}

/// A rule that is the same in both families.
const fn both(text: &'static str) -> [&'static str; 2] {
    [text, text]
}

/// What the rules are made of.
pub const FEATURES: [Feature; 9] = [
    need("rule comments", both("xt_comment"), ["filter", "INPUT"], both("-m comment --comment x -j RETURN")),
    need("matching marks", both("xt_mark"), ["filter", "INPUT"], both("-m mark --mark 0x1/0x1 -j RETURN")),
    need("setting marks", both("xt_mark"), ["mangle", "OUTPUT"], both("-p tcp -j MARK --set-xmark 0x1/0x1")),
    need(
        "matching connection states",
        both("xt_conntrack"),
        ["mangle", "PREROUTING"],
        both("-m conntrack --ctstate NEW -j RETURN"),
    ),
    need(
        "matching this machine's own addresses",
        both("xt_addrtype"),
        ["mangle", "PREROUTING"],
        both("-m addrtype ! --src-type LOCAL -j RETURN"),
    ),
    need(
        "redirecting connections",
        both("xt_REDIRECT"),
        ["nat", "PREROUTING"],
        both("-p tcp -j REDIRECT --to-ports 1"),
    ),
    need(
        "refusing",
        ["ipt_REJECT", "ip6t_REJECT"],
        ["filter", "INPUT"],
        [
            "-p udp -j REJECT --reject-with icmp-port-unreachable",
            "-p udp -j REJECT --reject-with icmp6-port-unreachable",
        ],
    ),
    need(
        "resetting connections",
        ["ipt_REJECT", "ip6t_REJECT"],
        ["filter", "INPUT"],
        both("-p tcp -m tcp --dport 1 -j REJECT --reject-with tcp-reset"),
    ),
    Feature {
        optional: true,
        ..need(
            "matching ip sets",
            both("xt_set"),
            ["mangle", "OUTPUT"],
            both("-p tcp -m set ! --match-set probe dst,dst -j RETURN"),
        )
    },
];

/// What holding packets takes; needed only where `intercept.connect` asks for it.
pub const QUEUE: [Feature; 1] = [need(
    "holding packets",
    both("nfnetlink_queue"),
    ["mangle", "PREROUTING"],
    both(
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j NFQUEUE --queue-balance 1:2 --queue-bypass --queue-cpu-fanout",
    ),
)];

/// What it takes to let backends see their clients' addresses; needed only where a Service asks for it.
pub const CONNECTION_MARKS: [Feature; 2] = [
    need(
        "matching connection marks",
        both("xt_connmark"),
        ["mangle", "PREROUTING"],
        both("-p tcp -m connmark --mark 0x1/0x1 -m conntrack --ctdir REPLY -j RETURN"),
    ),
    need(
        "setting connection marks",
        both("xt_connmark"),
        ["mangle", "OUTPUT"],
        both("-p tcp -m addrtype ! --src-type LOCAL -j CONNMARK --set-xmark 0x1/0x1"),
    ),
];

/// What a feature's probe said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The feature that is missing.
    pub feature: Feature,
    /// What the program said.
    pub said: String,
}

/// Which of `features` are missing in one back end and family, or why that could not be found out.
pub async fn lacking(
    backend: Backend,
    family: Family,
    features: &'static [Feature],
) -> Result<Vec<Lack>, String> {
    let (send, receive) = tokio::sync::oneshot::channel();
    // A thread of its own: the namespace is the thread's, and ends with it.
    std::thread::Builder::new()
        .name("rule-probe".to_owned())
        .spawn(move || {
            // The receiver may have given up waiting.
            let _ = send.send(probe_all(backend, family, features));
        })
        .map_err(|error| format!("no thread for the probe: {error}"))?;
    match tokio::time::timeout(PROBE_LIMIT, receive).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err("the probe ended early".to_owned()),
        Err(_) => Err(format!("the probe did not end within {} s", PROBE_LIMIT.as_secs())),
    }
}

fn probe_all(backend: Backend, family: Family, features: &[Feature]) -> Result<Vec<Lack>, String> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("no network namespace can be made for the probe: {error}"))?;
    let (cmd, index) = match (backend, family) {
        (Backend::Nft, Family::V4) => ("iptables-nft", 0),
        (Backend::Nft, Family::V6) => ("ip6tables-nft", 1),
        (Backend::Legacy, Family::V4) => ("iptables-legacy", 0),
        (Backend::Legacy, Family::V6) => ("ip6tables-legacy", 1),
    };
    let tables = IPTables { cmd, has_check: true, has_wait: true, is_numeric: true };
    let mut lacking = Vec::new();
    for feature in features {
        let set = if feature.optional { make_set(family) } else { Ok(()) };
        let done = set.and_then(|()| {
            tables
                .append(feature.table, feature.chain, feature.rule[index])
                .map_err(|error| error.to_string())
        });
        if let Err(said) = done {
            lacking.push(Lack { feature: *feature, said: said.trim().replace('\n', "; ") });
        }
    }
    Ok(lacking)
}

fn make_set(family: Family) -> Result<(), String> {
    let family = if family == Family::V4 { "inet" } else { "inet6" };
    let output = Command::new("ipset")
        .args(["create", SET, "hash:ip,port", "family", family])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`ipset` could not be run: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_exactly_what_is_missing() {
        // Needs root for its network namespace.
        let unknown =
            need("nonsense", both("xt_nonsense"), ["filter", "INPUT"], both("-m nonsense -j RETURN"));
        for backend in Backend::ALL {
            for family in Family::ALL {
                let probe = move || probe_all(backend, family, &[FEATURES[0], unknown, FEATURES[7]]);
                let lacks = std::thread::spawn(probe).join().unwrap().unwrap();
                assert_eq!(lacks.iter().map(|lack| lack.feature).collect::<Vec<_>>(), [unknown]);
                assert!(lacks[0].said.contains("nonsense"), "{}", lacks[0].said);
            }
        }
    }
}
