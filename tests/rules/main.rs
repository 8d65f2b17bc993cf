//! The node's packet filter for real: both back ends, both families, host processes and pods.
//!
//! Needs root, for it makes network namespaces; without, it fails.

mod lab;
mod machines;
mod ways;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgesplice::config::{InterceptSettings, IptablesBackend};
use edgesplice::life::pen::Pen;
use edgesplice::model::{Frontend, Protocol};
use edgesplice::rules::apply::{Family, HostTools};
use edgesplice::rules::nft::{self, Removal};
use edgesplice::rules::routes::{self, Entry};
use edgesplice::rules::{self, Machine, Reconciler, Wanted};
use ipnet::IpNet;
use lab::Lab;
use machines::{Disturbed, WithoutIpset};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const OWN_MARK: u32 = 0x0200_0000;
const REFUSE_MARK: u32 = 0x0100_0000;
const BACKENDS: [IptablesBackend; 2] = [IptablesBackend::Nft, IptablesBackend::Legacy];
const REFUSED: &str = "ECONNREFUSED";

/// A host firewall that lets nothing in but answers and ICMP.
const DEFAULT_DENY: &str = "*filter\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A INPUT -p PING -j ACCEPT\n-P INPUT DROP\nCOMMIT\n";

fn settings(backend: IptablesBackend) -> InterceptSettings {
    InterceptSettings {
        iptables_backend: backend,
        own_mark: OWN_MARK,
        refuse_mark: REFUSE_MARK,
        ..InterceptSettings::default()
    }
}

fn frontend(text: &str) -> Frontend {
    let address: SocketAddr = text.parse().expect("an address and port");
    Frontend { ip: address.ip(), port: address.port(), protocol: Protocol::Tcp }
}

fn wanted(port: u16) -> Wanted {
    Wanted {
        ranges: ["10.96.0.0/16", "fd00:96::/112"].map(|range| range.parse().expect("a range")).into(),
        skip: ["10.96.0.1", "fd00:96::1"].map(|ip| ip.parse::<IpAddr>().expect("an address")).into(),
        served: ["10.96.0.10:80", "[fd00:96::a]:80"].into_iter().map(frontend).collect(),
        listeners: BTreeSet::new(),
        proxy_port: port,
        own_mark: OWN_MARK,
        refuse_mark: REFUSE_MARK,
        ..Wanted::default()
    }
}

fn program(backend: IptablesBackend) -> &'static str {
    if backend == IptablesBackend::Nft { "nft" } else { "legacy" }
}

/// A lab with the rules in.
fn installed(backend: IptablesBackend) -> (Lab, Reconciler<HostTools>) {
    let lab = Lab::new();
    let reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
    (lab, reconciler)
}

fn install<M: Machine>(lab: &Lab, machine: M, backend: IptablesBackend, wanted: &Wanted) -> Reconciler<M> {
    lab.node.block_on(async {
        let mut reconciler = Reconciler::new(machine, &settings(backend)).await.expect("a packet filter");
        reconciler.apply(wanted).await.expect("the rules go in");
        reconciler
    })
}

fn assert_serves_and_refuses(lab: &Lab, context: &str) {
    let nodes = [["10.9.0.1", "10.8.0.1"], ["fd09::1", "fd08::1"]];
    for client in lab.clients() {
        let context = format!("{context}, from {}", client.name);
        let cases = [
            ("10.96.0.10:80", "10.96.0.10:81", "10.96.7.7:80", "10.96.0.10:53", "10.9.0.1"),
            ("[fd00:96::a]:80", "[fd00:96::a]:81", "[fd00:96::77]:80", "[fd00:96::a]:53", "[fd09::1]"),
        ];
        for (family, (served, port, address, udp, node)) in cases.into_iter().enumerate() {
            let answer = client.tcp(served).unwrap_or_else(|e| panic!("{served}: {e} ({context})"));
            let (original, source) = answer.split_once(" from ").expect("the acceptor's answer");
            assert_eq!(original, served, "{context}");
            if client.name == lab.node.name {
                assert!(nodes[family].contains(&source), "the node's own source is {source} ({context})");
            }
            for refused in [port, address] {
                assert_eq!(client.tcp(refused), Err(REFUSED.to_owned()), "{refused} ({context})");
            }
            assert_eq!(client.udp(udp), Err(REFUSED.to_owned()), "udp {udp} ({context})");
            let direct = format!("{node}:{}", lab.acceptor.port);
            assert_eq!(client.tcp(&direct), Err(REFUSED.to_owned()), "{direct} ({context})");
        }
    }
}

fn serves_and_refuses(backend: IptablesBackend) {
    for bridge_calls in [false, true] {
        let lab = Lab::new();
        lab.bridge_calls_iptables(bridge_calls);
        let tools = program(backend);
        for (program, icmp) in [("iptables", "icmp"), ("ip6tables", "ipv6-icmp")] {
            let deny = DEFAULT_DENY.replace("PING", icmp);
            lab.node.sh(&format!("{program}-{tools}-restore --noflush <<'X'\n{deny}X"));
        }
        let _reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
        assert_serves_and_refuses(&lab, &format!("{tools}, bridge-nf-call-iptables={bridge_calls}"));
    }
}

#[test]
fn serves_and_refuses_with_nft() {
    serves_and_refuses(IptablesBackend::Nft);
}

#[test]
fn serves_and_refuses_with_legacy() {
    serves_and_refuses(IptablesBackend::Legacy);
}

#[test]
fn leaves_own_packets_and_skipped_addresses_alone() {
    for backend in BACKENDS {
        let (lab, _reconciler) = installed(backend);
        for to in ["10.96.0.10:80", "[fd00:96::a]:80"] {
            assert!(lab.node.tcp_marked(to, OWN_MARK).is_err());
        }
        for client in lab.clients() {
            for to in ["10.96.0.1:443", "[fd00:96::1]:443"] {
                assert!(client.tcp(to).is_err());
            }
        }
        assert_eq!(lab.acceptor.count(), 0);
        // What another proxy does with an address that we leave alone works as if we were not there.
        let tools = program(backend);
        lab.node.sh(&format!(
            "iptables-{tools} -t nat -A PREROUTING -d 10.96.0.1 -p tcp --dport 443 -j DNAT --to-destination 10.8.0.2:7"
        ));
        assert_eq!(lab.routed.tcp("10.96.0.1:443"), Err(REFUSED.to_owned()), "the pod's own refusal");
        let hits =
            lab.node.sh(&format!("iptables-{tools} -t nat -nvL PREROUTING -x | awk '/DNAT/{{print $1}}'"));
        assert_eq!(hits.trim(), "1");
    }
}

#[test]
fn withdraws_without_a_trace() {
    for backend in BACKENDS {
        for foreign in [false, true] {
            let lab = Lab::new();
            let tools = program(backend);
            if backend == IptablesBackend::Legacy {
                // The kernel never gives a legacy table back once it was asked for.
                lab.node.sh("for t in nat mangle filter; do iptables-legacy -t $t -S; ip6tables-legacy -t $t -S; done");
            }
            if foreign {
                lab.node.sh(&format!(
                    "iptables-{tools} -t nat -A PREROUTING -d 192.0.2.1/32 -j RETURN; iptables-{tools} -P FORWARD DROP
                     ip6tables-{tools} -t mangle -N OTHER; ip6tables-{tools} -t mangle -A OUTPUT -j OTHER
                     ipset create other hash:ip; ip route add 198.51.100.0/24 dev br0"
                ));
            }
            let before = lab.state();
            let mut reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
            assert_ne!(lab.state(), before);
            assert!(lab.node.tcp("10.96.0.10:80").is_ok());
            lab.node.block_on(reconciler.withdraw()).unwrap();
            assert_eq!(lab.state(), before, "{tools}, foreign {foreign}");
            assert!(lab.node.block_on(rules::leftovers(&HostTools)).unwrap().is_empty());
        }
    }
}

#[test]
fn mends_what_others_do_to_the_rules() {
    for backend in BACKENDS {
        let (lab, mut reconciler) = installed(backend);
        let good = lab.state();
        let tools = program(backend);
        let tampering = [
            "for t in nat mangle filter; do iptables-TOOLS -t $t -F; done",
            "for t in nat mangle filter; do iptables-TOOLS -t $t -F; iptables-TOOLS -t $t -X; done",
            "ip6tables-TOOLS -t nat -F; ip6tables-TOOLS -t nat -X",
            "iptables-TOOLS -t nat -D PREROUTING -j EDGESPLICE",
            "ip6tables-TOOLS -D INPUT -j EDGESPLICE-INPUT",
            "iptables-TOOLS -t nat -I EDGESPLICE -p tcp -j ACCEPT",
            "iptables-TOOLS -t nat -D EDGESPLICE 1",
            "iptables-TOOLS -I OUTPUT -j EDGESPLICE-INPUT",
            "iptables-TOOLS -t nat -A PREROUTING -j EDGESPLICE",
            "ipset flush edgesplice-served-v4",
            "ipset add edgesplice-served-v6 fd00:96::b,tcp:1",
            "iptables-TOOLS -t mangle -F EDGESPLICE; ip6tables-TOOLS -t mangle -F EDGESPLICE; sleep 0.5
             ipset destroy edgesplice-served-v4; ipset destroy edgesplice-served-v6",
            "ip route flush table 238",
            "ip -6 route flush table 238",
            "ip rule del pref 238; ip -6 rule del pref 238",
            "ip route del throw 10.96.0.1 table 238",
            "ip rule del pref 237; ip -6 route flush table 237",
        ];
        for line in tampering {
            lab.node.sh(&line.replace("TOOLS", tools));
            assert_ne!(lab.state(), good, "no effect: {line}");
            let repairs = reconciler.report().repairs_total;
            lab.node.block_on(reconciler.check()).unwrap();
            assert_eq!(lab.state(), good, "{tools}: {line}");
            assert!(reconciler.report().repairs_total > repairs);
        }
        let generation = || lab.node.run(|| HostTools.nft_generation()).expect("an answer");
        let before = generation();
        let repairs = reconciler.report().repairs_total;
        lab.node.block_on(reconciler.check()).unwrap();
        assert_eq!(generation(), before);
        lab.node.sh(
            "iptables-nft -A OUTPUT -d 192.0.2.3 -j RETURN; iptables-nft -D OUTPUT -d 192.0.2.3 -j RETURN",
        );
        assert!(generation() > before);
        assert_eq!(reconciler.report().repairs_total, repairs, "nothing to mend, nothing mended");
        assert_serves_and_refuses(&lab, tools);
    }
}

#[test]
fn takes_back_the_first_place_and_leaves_the_others_rule() {
    for backend in BACKENDS {
        let (lab, mut reconciler) = installed(backend);
        let tools = program(backend);
        for (table, chain) in
            [("nat", "PREROUTING"), ("nat", "OUTPUT"), ("mangle", "OUTPUT"), ("filter", "INPUT")]
        {
            lab.node.sh(&format!("iptables-{tools} -t {table} -I {chain} -d 192.0.2.9/32 -j RETURN"));
            lab.node.block_on(reconciler.check()).unwrap();
            let rules = lab.node.sh(&format!("iptables-{tools} -t {table} -S {chain}"));
            let rules: Vec<&str> = rules.lines().collect();
            assert!(rules[1].contains("EDGESPLICE") && rules[2].contains("192.0.2.9"), "{rules:?}");
        }
    }
}

#[test]
fn the_task_mends_within_five_seconds_and_stops_when_told() {
    let (lab, reconciler) = installed(IptablesBackend::Nft);
    let good = lab.state();
    let want = wanted(lab.acceptor.port);
    let stop = CancellationToken::new();
    let (send, receive) = watch::channel(Arc::new(want.clone()));
    let (report, reported) = watch::channel(edgesplice::obs::api::RulesReport::default());
    std::thread::scope(|scope| {
        // A failed assertion must stop the task as well, or the scope waits for it.
        let _guard = stop.clone().drop_guard();
        let task = scope.spawn(|| {
            lab.node.block_on(rules::run(reconciler, receive, report, Arc::new(Pen::new(true)), stop.clone()))
        });
        std::thread::sleep(Duration::from_millis(500));
        lab.node.sh("iptables-nft -t nat -F; iptables-nft -t nat -X; ipset flush edgesplice-served-v4");
        let tampered = Instant::now();
        while lab.state() != good {
            assert!(tampered.elapsed() < Duration::from_secs(5), "not mended in time");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut more = want.clone();
        more.served.insert(frontend("10.96.0.11:81"));
        send.send(Arc::new(more)).unwrap();
        let changed = Instant::now();
        while lab.node.tcp("10.96.0.11:81").is_err() {
            assert!(changed.elapsed() < Duration::from_secs(2), "the change did not take effect");
        }
        stop.cancel();
        let mut reconciler = task.join().unwrap();
        let report = reported.borrow().clone();
        assert!(report.installed && report.repairs_total > 0 && report.last_error.is_empty(), "{report:?}");
        lab.node.block_on(reconciler.withdraw()).unwrap();
    });
}

#[test]
fn a_change_of_backends_touches_sets_only_and_takes_milliseconds() {
    for backend in BACKENDS {
        let (lab, mut reconciler) = installed(backend);
        let tools = program(backend);
        let counters = || {
            lab.node
                .sh(&format!("iptables-{tools}-save -c -t nat | grep -c '^\\[0:0\\] -A EDGESPLICE' || true"))
        };
        lab.node.tcp("10.96.0.10:80").unwrap();
        let before = counters();
        let mut want = wanted(lab.acceptor.port);
        want.served.insert(frontend("10.96.0.11:80"));
        let started = Instant::now();
        lab.node.block_on(reconciler.apply(&want)).unwrap();
        let took = started.elapsed();
        assert!(lab.node.tcp("10.96.0.11:80").is_ok());
        assert_eq!(counters(), before, "rules were written");
        assert!(took < Duration::from_millis(100), "{took:?}");
        want.served.remove(&frontend("10.96.0.10:80"));
        lab.node.block_on(reconciler.apply(&want)).unwrap();
        assert_eq!(lab.routed.tcp("10.96.0.10:80"), Err(REFUSED.to_owned()));
    }
}

#[test]
fn foreign_rules_keep_their_counters() {
    for backend in BACKENDS {
        let lab = Lab::new();
        let tools = program(backend);
        lab.node.sh(&format!("iptables-{tools} -A INPUT -p udp --dport 9 -j ACCEPT"));
        for _ in 0..3 {
            assert_eq!(lab.routed.udp("10.9.0.1:9"), Err(REFUSED.to_owned()));
        }
        let count = || lab.node.sh(&format!("iptables-{tools} -nvxL INPUT | awk '/udp dpt:9/{{print $1}}'"));
        assert_eq!(count().trim(), "3");
        let mut reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
        lab.node.sh(&format!("iptables-{tools} -F EDGESPLICE-INPUT"));
        lab.node.block_on(reconciler.check()).unwrap();
        assert_eq!(count().trim(), "3");
        lab.node.block_on(reconciler.withdraw()).unwrap();
        assert_eq!(count().trim(), "3");
    }
}

#[test]
fn takes_over_from_a_killed_agent_and_cleans_up_after_one() {
    for backend in BACKENDS {
        let lab = Lab::new();
        if backend == IptablesBackend::Legacy {
            lab.node.sh(
                "for t in nat mangle filter; do iptables-legacy -t $t -S; ip6tables-legacy -t $t -S; done",
            );
        }
        let before = lab.state();
        let mut stale = wanted(9);
        stale.ranges.push("10.50.0.0/16".parse().unwrap());
        stale.refuse_mark = 0x0400_0000;
        stale.served.insert(frontend("10.96.9.9:80"));
        drop(install(&lab, HostTools, backend, &stale));
        assert_eq!(
            lab.node.tcp("10.96.0.10:80"),
            Err(REFUSED.to_owned()),
            "nobody listens on the stale port"
        );
        drop(install(&lab, HostTools, backend, &wanted(lab.acceptor.port)));
        assert_serves_and_refuses(&lab, program(backend));
        let entries = lab.node.block_on(routes::standing()).unwrap().own;
        assert!(!entries.contains(&Entry::ToRange("10.50.0.0/16".parse().unwrap())), "{entries:?}");
        assert!(!entries.contains(&Entry::RefuseRule(Family::V4, stale.refuse_mark)), "{entries:?}");
        let left = lab.node.block_on(rules::leftovers(&HostTools)).unwrap();
        assert!(
            left.iter().any(|line| line.contains("chain EDGESPLICE"))
                && left.iter().any(|l| l.contains("ip set"))
        );
        lab.node.block_on(rules::remove_leftovers(&HostTools)).unwrap();
        assert_eq!(lab.state(), before, "{}", program(backend));
    }
}

/// The nft tables of a lab's node.
fn tables(lab: &Lab) -> String {
    lab.node.sh("nft list tables")
}

#[test]
fn who_dies_before_the_tables_go_has_left_them_to_the_next_one() {
    for next_agent in [true, false] {
        let lab = Lab::new();
        let before = lab.state();
        let dies = || Err(std::io::Error::other("killed"));
        let mut reconciler =
            install(&lab, Disturbed(&dies), IptablesBackend::Nft, &wanted(lab.acceptor.port));
        let error = lab.node.block_on(reconciler.withdraw()).unwrap_err().to_string();
        assert!(error.contains("nft table ipv4 mangle, filter, nat: killed"), "{error}");
        assert_eq!(lab.node.sh("iptables-nft-save; ip6tables-nft-save").matches(":EDGESPLICE").count(), 6);
        let left = lab.node.block_on(rules::leftovers(&HostTools)).unwrap();
        assert!(
            left.len() == 6 && left.iter().all(|line| line.ends_with("chain EDGESPLICE-CREATED")),
            "{left:?}"
        );
        if next_agent {
            let mut next = install(&lab, HostTools, IptablesBackend::Nft, &wanted(lab.acceptor.port));
            lab.node.block_on(next.withdraw()).unwrap();
        } else {
            lab.node.block_on(rules::remove_leftovers(&HostTools)).unwrap();
        }
        assert_eq!(lab.state(), before, "next agent: {next_agent}");
    }
}

#[test]
fn a_table_that_somebody_uses_at_the_last_moment_stays_with_all_that_is_theirs() {
    // What iptables sees, and what it does not; what the kernel would not remove, and what only the generation tells.
    for (meddling, stays) in [
        ("iptables-nft -t nat -A POSTROUTING -s 192.0.2.9 -j ACCEPT", "192.0.2.9"),
        ("iptables-nft -t nat -N OTHER", "OTHER"),
        ("nft add set ip nat others '{ type ipv4_addr; }'", "set others"),
        ("nft add chain ip nat others '{ type filter hook input priority 5; }'", "chain others"),
        ("iptables-nft -t mangle -P FORWARD DROP", "policy drop"),
    ] {
        for next in [false, true] {
            let lab = Lab::new();
            let node = &lab.node;
            let once = std::sync::Once::new();
            let meddle = || {
                once.call_once(|| drop(node.sh(meddling)));
                if next { Err(std::io::Error::other("killed")) } else { Ok(()) }
            };
            let mut reconciler =
                install(&lab, Disturbed(&meddle), IptablesBackend::Nft, &wanted(lab.acceptor.port));
            let done = node.block_on(reconciler.withdraw());
            assert_eq!(done.is_err(), next, "{meddling}: {done:?}");
            if next {
                node.block_on(rules::remove_leftovers(&HostTools)).unwrap();
            }
            let left = node.sh("nft list ruleset");
            assert_eq!(tables(&lab).lines().count(), 1, "{meddling}, killed {next}: {left}");
            assert!(
                left.contains(stays) && !left.contains("EDGESPLICE"),
                "{meddling}, killed {next}: {left}"
            );
        }
    }
}

#[test]
fn tables_go_all_at_once_or_not_at_all() {
    let lab = Lab::new();
    let node = &lab.node;
    let remove = |names: &[&str], generation| {
        node.run(|| nft::remove_tables(Family::V6, names, generation)).expect("an answer")
    };
    let all = ["nat", "mangle", "filter"];
    node.sh("for t in nat mangle filter; do ip6tables-nft -t $t -N EDGESPLICE-CREATED; done");
    let generation = || HostTools.nft_generation();
    let before = node.run(generation);
    node.sh("ip6tables-nft -A OUTPUT -j EDGESPLICE-CREATED");
    assert_eq!(remove(&all, before), Removal::Changed);
    let now = node.run(generation);
    assert!(before.is_some() && before != now);
    assert_eq!(remove(&all, now), Removal::InUse(vec!["filter".to_owned()]));
    assert_eq!(tables(&lab), all.map(|name| format!("table ip6 {name}\n")).concat());
    // What is not there is no obstacle.
    node.sh("ip6tables-nft -F OUTPUT; nft delete chain ip6 filter OUTPUT; nft delete chain ip6 nat EDGESPLICE-CREATED");
    assert_eq!(remove(&["raw", "nat", "mangle", "filter"], node.run(generation)), Removal::Gone);
    assert_eq!(tables(&lab), "");
    assert_eq!(remove(&all, None), Removal::Gone);
}

#[test]
fn follows_the_hint_chains_and_never_makes_a_legacy_table() {
    let lab = Lab::new();
    let names = || lab.node.sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names");
    let mut reconciler = install(&lab, HostTools, IptablesBackend::Auto, &wanted(lab.acceptor.port));
    assert_eq!(reconciler.report().backend, "nft");
    assert_eq!(names(), "");
    lab.node.sh("iptables-legacy -t mangle -N KUBE-IPTABLES-HINT");
    for _ in 0..15 {
        lab.node.block_on(reconciler.check()).unwrap();
    }
    assert_eq!(reconciler.report().backend, "legacy");
    assert!(!lab.node.sh("iptables-nft-save; ip6tables-nft-save").contains("EDGESPLICE"));
    assert_serves_and_refuses(&lab, "moved to legacy");
}

#[test]
fn a_table_that_iptables_cannot_read_gets_no_second_jump_and_is_left_as_it_was() {
    // The native rule stands beside our chains, in a chain we jump from, or in our own.
    for chain in ["POSTROUTING", "PREROUTING", "EDGESPLICE"] {
        for early in [true, false] {
            let lab = Lab::new();
            lab.node.sh("iptables-nft -t nat -A POSTROUTING -s 192.0.2.9 -j ACCEPT
                iptables-nft -t nat -A PREROUTING -s 192.0.2.9 -j ACCEPT");
            let spoil = || {
                lab.node.sh(&format!(
                    "nft add chain ip nat {chain}; nft add rule ip nat {chain} tcp option maxseg size 5 counter"
                ));
            };
            if early {
                spoil();
            }
            let mut reconciler = install(&lab, HostTools, IptablesBackend::Nft, &wanted(lab.acceptor.port));
            if !early {
                spoil();
            }
            let jumps = || lab.node.sh("nft list table ip nat | grep -c 'jump EDGESPLICE'").trim().to_owned();
            let context = format!("{chain}, early {early}");
            for _ in 0..3 {
                lab.node.sh("iptables-nft -A OUTPUT -j RETURN; iptables-nft -D OUTPUT -j RETURN");
                lab.node.block_on(reconciler.check()).unwrap();
                assert_eq!(jumps(), "2", "{context}");
            }
            let report = reconciler.report();
            let told = report.warnings.iter().any(|line| line.contains("cannot read the table ipv4 nat"));
            // Own chains are written anew, and can be read again.
            assert_eq!(told, chain != "EDGESPLICE", "{context}: {report:?}");
            for client in lab.clients() {
                assert!(client.tcp("10.96.0.10:80").is_ok(), "{context}");
            }
            lab.node.sh("iptables-nft -t nat -D OUTPUT -j EDGESPLICE");
            lab.node.block_on(reconciler.check()).unwrap();
            assert_eq!(jumps(), "2", "{context}: mended");
            lab.node.sh("iptables-nft -t nat -I PREROUTING -j EDGESPLICE");
            lab.node.block_on(reconciler.withdraw()).unwrap();
            let left = lab.node.sh("nft list ruleset; ipset list -n; ip route show table all; ip rule");
            let ours = ["EDGESPLICE", "edgesplice", "237"];
            assert!(!ours.iter().any(|name| left.contains(name)), "{context}: {left}");
            assert_eq!(left.matches("192.0.2.9").count(), 2, "{context}: {left}");
            assert_eq!(left.contains("maxseg"), chain != "EDGESPLICE", "{context}: {left}");
        }
    }
}

#[test]
fn a_native_rule_before_our_jump_hides_it_and_nothing_is_captured_after_the_end() {
    let (lab, mut reconciler) = installed(IptablesBackend::Nft);
    lab.node.sh("nft insert rule ip nat PREROUTING tcp option maxseg size 5 counter");
    let jumps =
        || lab.node.sh("nft list chain ip nat PREROUTING | grep -c 'jump EDGESPLICE'").trim().to_owned();
    for _ in 0..3 {
        lab.node.sh("iptables-nft -A OUTPUT -j RETURN; iptables-nft -D OUTPUT -j RETURN");
        lab.node.block_on(reconciler.check()).unwrap();
        assert_eq!(jumps(), "1");
    }
    assert!(lab.routed.tcp("10.96.0.10:80").is_ok());
    let warnings = reconciler.report().warnings;
    assert!(
        warnings.len() == 1
            && warnings[0].contains("stands before our jump in PREROUTING and hides it")
            && warnings[0].contains("`nft -a list table ip nat`"),
        "{warnings:?}"
    );
    let error = lab.node.block_on(reconciler.withdraw()).unwrap_err().to_string();
    for word in ["a native nft rule in ipv4 nat", "`nft -a list table ip nat`", "`edgesplice cleanup`"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(reconciler.report().last_error, error);
    let chain = lab.node.sh("nft list chain ip nat EDGESPLICE");
    assert!(!chain.contains("redirect"), "{chain}");
    let handle = lab.node.sh("nft -a list chain ip nat PREROUTING | sed -n 's/.*maxseg.*handle //p'");
    lab.node.sh(&format!("nft delete rule ip nat PREROUTING handle {handle}"));
    lab.node.block_on(reconciler.withdraw()).unwrap();
    assert!(lab.node.block_on(rules::leftovers(&HostTools)).unwrap().is_empty());
}

#[test]
fn what_is_left_alone_is_forwarded() {
    for backend in BACKENDS {
        let lab = Lab::new();
        lab.bridged.sh("ip addr add 10.96.0.1/32 dev lo; ip addr add fd00:96::1/128 dev lo");
        lab.node.sh("ip route add 10.96.0.1/32 via 10.8.0.2; ip -6 route add fd00:96::1/128 via fd08::2");
        let _reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
        // The pod that has the address answers: nobody listens there.
        for to in ["10.96.0.1:443", "[fd00:96::1]:443"] {
            assert_eq!(lab.routed.tcp(to), Err(REFUSED.to_owned()), "{to}");
        }
        let hits = lab.bridged.sh("grep -E '^Tcp: [0-9]' /proc/net/snmp | cut -d' ' -f15");
        assert_ne!(hits.trim(), "0", "resets sent by the pod");
    }
}

#[test]
fn reads_routes_and_addresses() {
    let (lab, _reconciler) = installed(IptablesBackend::Nft);
    lab.node.sh("ip route add default via 10.8.0.9; ip route add unreachable 203.0.113.0/24");
    let routes = lab.node.block_on(routes::non_default_routes()).unwrap();
    let has = |net: &str| routes.contains(&net.parse::<IpNet>().unwrap());
    assert!(has("10.8.0.0/24") && has("10.9.0.2/32") && has("fd08::/64"), "{routes:?}");
    assert!(!has("10.96.0.0/16") && !has("0.0.0.0/0") && !has("203.0.113.0/24"), "{routes:?}");
    let addresses = lab.node.block_on(routes::local_addresses()).unwrap();
    for ip in ["10.8.0.1", "10.9.0.1", "fd09::1", "127.0.0.1", "::1"] {
        assert!(addresses.contains(&ip.parse().unwrap()), "{ip} in {addresses:?}");
    }
}

#[test]
fn a_hundred_thousand_frontends_load_and_rules_do_not_grow() {
    let (lab, mut reconciler) = installed(IptablesBackend::Nft);
    let count = || lab.node.sh("iptables-nft-save | grep -c EDGESPLICE");
    let before = count();
    let mut want = wanted(lab.acceptor.port);
    want.served.extend((0..100_000_u32).map(|n| Frontend {
        ip: {
            let [_, _, high, low] = n.to_be_bytes();
            IpAddr::from([10, 96, high, low])
        },
        port: 1000 + u16::try_from(n >> 16).unwrap(),
        protocol: Protocol::Tcp,
    }));
    lab.node.block_on(reconciler.apply(&want)).unwrap();
    assert!(lab.routed.tcp("10.96.200.200:1000").is_ok());
    want.served.insert(frontend("10.96.0.11:81"));
    lab.node.block_on(reconciler.apply(&want)).unwrap();
    lab.node.block_on(reconciler.check()).unwrap();
    assert_eq!((reconciler.report().repairs_total, count()), (0, before));
    lab.node.block_on(reconciler.withdraw()).unwrap();
}

#[test]
fn without_ipset_the_ranges_are_captured_and_udp_is_refused() {
    for backend in BACKENDS {
        let lab = Lab::new();
        lab.bridge_calls_iptables(true);
        if backend == IptablesBackend::Legacy {
            lab.node.sh(
                "for t in nat mangle filter; do iptables-legacy -t $t -S; ip6tables-legacy -t $t -S; done",
            );
        }
        let before = lab.state();
        let mut reconciler = install(&lab, WithoutIpset, backend, &wanted(lab.acceptor.port));
        let report = reconciler.report();
        assert!(
            !report.refuse_before_accept && report.warnings.iter().any(|line| line.contains("ipset")),
            "{report:?}"
        );
        for client in lab.clients() {
            for to in ["10.96.0.10:80", "10.96.0.10:81", "[fd00:96::77]:80"] {
                assert!(
                    client.tcp(to).is_ok_and(|answer| answer.starts_with(to)),
                    "{to} from {}",
                    client.name
                );
            }
            for to in ["10.96.0.10:53", "[fd00:96::a]:53"] {
                assert_eq!(client.udp(to), Err(REFUSED.to_owned()), "{to} from {}", client.name);
            }
            assert!(client.tcp("10.96.0.1:443").is_err());
        }
        lab.node.block_on(reconciler.check()).unwrap();
        assert_eq!(reconciler.report().repairs_total, 0);
        lab.node.block_on(reconciler.withdraw()).unwrap();
        assert_eq!(lab.state(), before);
    }
}

#[test]
fn a_healthy_node_has_no_problems_and_a_killed_agent_is_found() {
    for backend in BACKENDS {
        let lab = Lab::new();
        let settings =
            InterceptSettings { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()], ..settings(backend) };
        let known = rules::Known { ranges: settings.service_cidrs.clone(), ..rules::Known::default() };
        let look = || lab.node.block_on(rules::checkup(&settings, &known));
        let find = || look().findings;
        let bad = |found: &[rules::Finding]| -> Vec<String> {
            let worst = found.iter().filter(|finding| finding.severity != rules::Severity::Info);
            worst.map(|finding| format!("{}: {}", finding.id, finding.what)).collect()
        };
        let before = lab.state();
        let healthy = look();
        assert_eq!(bad(&healthy.findings), [""; 0], "{}", program(backend));
        assert!(healthy.packet_filter.contains(program(backend)), "{}", healthy.packet_filter);
        assert_eq!(lab.state(), before, "check changes nothing");
        let reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
        assert_eq!(bad(&find()), [""; 0], "while it runs");
        drop(reconciler);
        drop(install(&lab, HostTools, backend, &wanted(9)));
        lab.node.sh("ip addr add 10.96.3.3/32 dev br0");
        let found = find();
        for id in ["own-leftovers", "range-overlap"] {
            let finding = found.iter().find(|finding| finding.id == id).expect(id);
            assert!(finding.severity == rules::Severity::Problem && !finding.mend.is_empty());
        }
    }
}
