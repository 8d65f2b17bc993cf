//! Footprints with other parameters, among generated rules of somebody else.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::{cleaned, judge, kept};
use crate::rules::dump::{Chain, Dump, Rule, Table};
use crate::rules::legacy::Options;

/// Footprints with their own parameters, each as (jumps, chains, rules).
fn footprint() -> impl Strategy<Value = String> {
    let range = (1..224u8, 0..255u8, 8..29u8).prop_map(|(a, b, length)| format!("{a}.{b}.0.0/{length}"));
    let device = "[a-z][a-z0-9-]{0,8}";
    let root = range.clone().prop_flat_map(move |range| {
        (Just(range), device, 1..65535u16, any::<bool>()).prop_map(|(range, device, port, both)| {
            let interface = if both { format!("-i {device} ") } else { String::new() };
            format!(":EDGE-MESH - [0:0]\n-A PREROUTING -d {range} {interface}-p tcp -j EDGE-MESH\n-A EDGE-MESH -p tcp -j DNAT --to-destination 172.17.0.1:{port}\n")
        })
    });
    let tree = range.prop_map(|range| {
        format!(
            ":EDGE-MESH - [0:0]\n:EDGE-MESH-TCP - [0:0]\n-A OUTPUT -m comment --comment \"edgemesh root chain\" -j EDGE-MESH\n\
             -A EDGE-MESH -d {range} -p tcp -m comment --comment \"tcp service proxy\" -j EDGE-MESH-TCP\n\
             -A EDGE-MESH-TCP -p tcp -j DNAT --to-destination 169.254.96.16:40001\n"
        )
    });
    let portals = (prop_oneof![Just("EDGEMESH"), Just("KUBE")], proptest::collection::vec((any::<u32>(), 1..65535u16), 1..6))
        .prop_map(|(prefix, services)| {
            let mut text = format!(":{prefix}-PORTALS-HOST - [0:0]\n-A OUTPUT -m comment --comment \"handle ClusterIPs; NOTE: this must be before the NodePort rules\" -j {prefix}-PORTALS-HOST\n");
            for (address, port) in services {
                let address = std::net::Ipv4Addr::from(address);
                let _ = writeln!(text, "-A {prefix}-PORTALS-HOST -d {address}/32 -p udp -m comment --comment \"ns/svc:p-{port}\" -m udp --dport {port} -j DNAT --to-destination 169.254.96.16:{port}");
            }
            text
        });
    prop_oneof![root, tree, portals]
}

/// Somebody else's chains and rules: names that come close, comments with anything in them.
fn foreign() -> impl Strategy<Value = Vec<(String, String)>> {
    let chain = prop_oneof![
        Just("PREROUTING".to_owned()),
        Just("OUTPUT".to_owned()),
        Just("EDGE-MESH-CUSTOM".to_owned()),
        Just("KUBE-NODEPORTS".to_owned()),
        Just("KUBE-NODE-PORT".to_owned()),
        Just("EDGEMESH-PORTALS".to_owned()),
        "[A-Z]{3,8}-[a-z0-9]{2,6}",
    ];
    let text = prop_oneof![
        "-p tcp -m tcp --dport [1-9][0-9]{0,3} -j (ACCEPT|RETURN|EDGE-MESH-CUSTOM|MASQUERADE)",
        Just("-m comment --comment \"-j EDGE-MESH\" -j RETURN".to_owned()),
        Just("-m comment --comment \"edgemesh root chain\" -j ACCEPT".to_owned()),
        Just("-p tcp -j DNAT --to-destination 169.254.96.16:40001".to_owned()),
        "-m comment --comment \"[ -!#-\\[\\]-~]{0,30}\" -j (LOG|ACCEPT)",
        "-m x[a-z]{2,6} ! --odd [0-9]{1,4} --flag -j [A-Z]{4,9}",
    ];
    proptest::collection::vec((chain, text), 0..20)
}

/// The foreign rules with the footprints' lines spread among them.
fn mixed(
    foreign: &[(String, String)],
    footprints: &[String],
    spread: &[prop::sample::Index],
) -> (Table, Table) {
    let mut chains = vec![("PREROUTING".to_owned(), "ACCEPT"), ("OUTPUT".to_owned(), "ACCEPT")];
    let mut rules: Vec<Rule> =
        foreign.iter().map(|(chain, text)| Rule { chain: chain.clone(), text: text.clone() }).collect();
    for rule in &rules {
        if !chains.iter().any(|(name, _)| *name == rule.chain) {
            chains.push((rule.chain.clone(), "-"));
        }
    }
    let table = |chains: &[(String, &str)], rules: &[Rule]| Table {
        name: "nat".to_owned(),
        chains: chains
            .iter()
            .map(|(name, policy)| Chain { name: name.clone(), policy: (*policy).to_owned() })
            .collect(),
        rules: rules.to_vec(),
    };
    let clean = table(&chains, &rules);
    let mut at = spread.iter().cycle();
    for line in footprints.iter().flat_map(|text| text.lines()) {
        if let Some(name) = line.strip_prefix(':') {
            let name = name.split(' ').next().unwrap().to_owned();
            if !chains.iter().any(|(known, _)| *known == name) {
                chains.push((name, "-"));
            }
        } else {
            let (chain, text) = line.strip_prefix("-A ").unwrap().split_once(' ').unwrap();
            let index = at.next().map_or(0, |index| index.index(rules.len() + 1));
            rules.insert(index, Rule { chain: chain.to_owned(), text: text.to_owned() });
        }
    }
    (clean, table(&chains, &rules))
}

proptest! {
    #[test]
    fn whatever_is_mixed_in_goes_and_nothing_else(
        foreign in foreign(),
        footprints in proptest::collection::vec(footprint(), 0..5),
        spread in proptest::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let (clean, dirty) = mixed(&foreign, &footprints, &spread);
        let (left, plan) = cleaned(Dump { tables: vec![dirty], ..Dump::default() }, &Options::default());
        prop_assert_eq!(&left.tables[0], &clean);
        // Chains that look alike are named, and nothing else is.
        let named = kept(&plan);
        prop_assert!(named.iter().all(|line| line.strip_prefix("-N ").is_some_and(|name| clean.has_chain(name))));
        prop_assert_eq!(plan.blocked(), !named.is_empty());
        prop_assert_eq!(plan.changes_rules(), !footprints.is_empty());
    }

    #[test]
    fn a_strangers_rule_inside_is_never_lost(
        foreign in foreign(),
        footprints in proptest::collection::vec(footprint(), 1..5),
        spread in proptest::collection::vec(any::<prop::sample::Index>(), 8),
        inside in prop::sample::select(vec!["EDGE-MESH", "EDGE-MESH-TCP", "EDGEMESH-PORTALS-HOST", "KUBE-PORTALS-HOST"]),
        text in prop::sample::select(vec!["-s 10.0.0.1/32 -j RETURN", "-j ACCEPT", "-p tcp -m tcp --dport 1 -j REDIRECT --to-ports 2"]),
        force: bool,
    ) {
        let (_, mut dirty) = mixed(&foreign, &footprints, &spread);
        let rule = Rule { chain: inside.to_owned(), text: text.to_owned() };
        prop_assume!(dirty.has_chain(inside));
        dirty.rules.push(rule.clone());
        let into: Vec<Rule> = dirty.rules.iter().filter(|rule| rule.target().as_deref() == Some(inside)).cloned().collect();
        let (left, plan) = cleaned(Dump { tables: vec![dirty], ..Dump::default() }, &Options { force, ..Options::default() });
        prop_assert!(plan.blocked());
        prop_assert!(left.tables[0].rules.contains(&rule));
        for jump in into {
            prop_assert!(left.tables[0].rules.contains(&jump), "{} is gone", jump.line());
        }
    }

    #[test]
    fn a_strangers_jump_keeps_an_empty_chain_and_nothing_else(
        foreign in foreign(),
        footprints in proptest::collection::vec(footprint(), 1..5),
        spread in proptest::collection::vec(any::<prop::sample::Index>(), 8),
        targets in proptest::sample::subsequence(vec!["EDGE-MESH", "EDGE-MESH-TCP", "EDGEMESH-PORTALS-HOST", "KUBE-PORTALS-HOST"], 1..4),
        text in prop::sample::select(vec!["-s 10.0.0.1/32 -j", "-j", "-p tcp -m tcp --dport 1 -g"]),
        force: bool,
    ) {
        let (mut clean, mut dirty) = mixed(&foreign, &footprints, &spread);
        let targets: Vec<&str> = targets.into_iter().filter(|name| dirty.has_chain(name)).collect();
        prop_assume!(!targets.is_empty());
        for target in &targets {
            let rule = Rule { chain: "PREROUTING".to_owned(), text: format!("{text} {target}") };
            dirty.rules.push(rule.clone());
            if !force {
                clean.rules.push(rule);
            }
        }
        if !force {
            let all = dirty.chains.iter().filter(|chain| clean.has_chain(&chain.name) || targets.contains(&chain.name.as_str()));
            clean.chains = all.cloned().collect();
        }
        let (left, plan) = cleaned(Dump { tables: vec![dirty], ..Dump::default() }, &Options { force, ..Options::default() });
        prop_assert_eq!(&left.tables[0], &clean);
        let named = kept(&plan);
        for target in targets {
            prop_assert_eq!(named.contains(&format!("-N {target}")), !force);
            prop_assert_eq!(named.contains(&format!("-A PREROUTING {text} {target}")), !force);
        }
        prop_assert_eq!(kept(&judge(left)), named);
    }

    #[test]
    fn no_text_makes_the_scan_fail(text in "(-[AmjdpXg]|--[a-z]{1,9}|[ !\"\\\\a-zA-Z0-9./:-]){0,40}") {
        let rule = Rule { chain: "EDGE-MESH".to_owned(), text };
        let chain = Chain { name: "EDGE-MESH".to_owned(), policy: "-".to_owned() };
        let table = Table { name: "nat".to_owned(), chains: vec![chain], rules: vec![rule.clone()] };
        let plan = judge(Dump { tables: vec![table], ..Dump::default() });
        // Whatever it is, it is not EdgeMesh's.
        prop_assert!(!plan.changes_rules() && kept(&plan).contains(&rule.line()));
    }
}
