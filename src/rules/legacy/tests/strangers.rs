//! Rules of somebody else's in chains of EdgeMesh's, and such that lead to them.

use super::*;

#[test]
fn one_stranger_among_the_targets_keeps_them_all() {
    let mut dump = fixture("f7");
    let stranger = Rule {
        chain: "KUBE-PORTALS-HOST".to_owned(),
        text: "-d 10.1.1.1/32 -p tcp -m comment --comment \"a/b\" -m tcp --dport 1 -j DNAT --to-destination 192.168.5.1:1".to_owned(),
    };
    dump.tables[0].rules.push(stranger);
    assert!(!judge(dump).changes_rules());
}

#[test]
fn a_strangers_rule_in_a_chain_keeps_the_chain_and_all_that_hangs_on_it() {
    for at in 0..=1 {
        let mut dump = fixture("f4");
        let chain = ["EDGE-MESH", "EDGE-MESH-TCP"][at];
        let foreign = Rule { chain: chain.to_owned(), text: "-s 10.9.9.9/32 -j RETURN".to_owned() };
        dump.tables[0].rules.push(foreign.clone());
        let (left, plan) = cleaned(dump.clone(), &Options { force: true, ..Options::default() });
        assert_eq!(left, dump);
        assert!(plan.blocked() && kept(&plan).contains(&foreign.line()));
        assert!(
            kept(&plan).contains(&"-N EDGE-MESH".to_owned())
                && kept(&plan).contains(&"-N EDGE-MESH-TCP".to_owned())
        );
        // Its rules and the jumps still have their effect, so each is named, once.
        let lines = left.tables[0].rules.iter().map(Rule::line).filter(|line| line.contains("EDGE-MESH"));
        let named: Vec<String> = kept(&plan).into_iter().filter(|line| line.starts_with("-A ")).collect();
        assert_eq!(named, lines.collect::<Vec<_>>());
    }
}

/// What a table is without the rules that name one of these chains as their place or their target.
fn without(mut dump: Dump, chains: &[&str]) -> Dump {
    for table in &mut dump.tables {
        table.rules.retain(|rule| {
            !chains.contains(&rule.chain.as_str())
                && !chains.contains(&rule.target().unwrap_or_default().as_str())
        });
    }
    dump
}

#[test]
fn a_strangers_jump_keeps_an_empty_chain_and_needs_force() {
    for jump in ["-s 10.9.9.9/32 -j EDGE-MESH", "-d 9.251.0.0/16 -p tcp -g EDGE-MESH"] {
        let mut dump = fixture("f2");
        let foreign = Rule { chain: "DOCKER".to_owned(), text: jump.to_owned() };
        let mut bare = without(dump.clone(), &["EDGE-MESH"]);
        bare.tables[0].rules.push(foreign.clone());
        dump.tables[0].rules.push(foreign.clone());
        let (left, plan) = cleaned(dump.clone(), &Options::default());
        assert_eq!(left, bare);
        assert!(plan.blocked() && plan.versions == ["EdgeMesh of KubeEdge v1.3.0 to v1.7.x"]);
        assert_eq!(kept(&plan), [foreign.line(), "-N EDGE-MESH".to_owned()]);
        let why = plan.tables().flat_map(|table| &table.kept);
        for reason in why.map(|kept| &kept.reason) {
            assert!(
                reason.contains("by hand and run cleanup again") && reason.contains("--force"),
                "{reason}"
            );
        }
        let again = judge(left);
        let says = |plan: &Plan| plan.tables().flat_map(|table| table.kept.clone()).collect::<Vec<_>>();
        assert!(again.blocked() && says(&again) == says(&plan));
        let (left, plan) = cleaned(dump, &Options { force: true, ..Options::default() });
        assert!(
            !plan.blocked()
                && !left.tables[0].has_chain("EDGE-MESH")
                && !left.tables[0].rules.contains(&foreign)
        );
    }
}

#[test]
fn only_the_chain_that_a_stranger_leads_to_outlives_its_rules() {
    for (at, goes) in [("EDGE-MESH", "EDGE-MESH-TCP"), ("EDGE-MESH-TCP", "EDGE-MESH")] {
        let mut dump = fixture("f5");
        let mut bare = without(dump.clone(), &[at, goes]);
        for (dump, chain) in [(&mut dump, "MYCHAIN"), (&mut bare, "MYCHAIN")] {
            dump.tables[0].chains.push(Chain { name: chain.to_owned(), policy: "-".to_owned() });
            let text = format!("-s 10.1.1.1/32 -p tcp -j {at}");
            dump.tables[0].rules.push(Rule { chain: chain.to_owned(), text });
        }
        bare.tables[0].chains.retain(|chain| chain.name != goes);
        let (left, plan) = cleaned(dump, &Options::default());
        assert_eq!(left, bare, "{at}");
        assert_eq!(kept(&plan).len(), 2);
        let chain = plan.tables().flat_map(|table| &table.kept).find(|kept| kept.rule == format!("-N {at}"));
        assert!(chain.unwrap().reason.contains("rules in MYCHAIN lead"), "{chain:?}");
    }
}

#[test]
fn a_chain_that_would_be_emptied_stays_full_while_edgemesh_is_alive() {
    let mut dump = fixture("f5");
    dump.tables[0]
        .rules
        .push(Rule { chain: "DOCKER".to_owned(), text: "-s 10.9.9.9/32 -j EDGE-MESH".to_owned() });
    let mut facts = facts_of(dump);
    let address = "169.254.96.16:40001".parse().unwrap();
    facts.listeners = vec![Listening { udp: false, address, inode: 0 }];
    let found = plan(&facts, &Options::default());
    assert!(!found.changes() && found.refused.len() == 1);
    let named: Vec<&Kept> = found.tables().flat_map(|table| &table.kept).collect();
    let of = |rule: &str| {
        named.iter().filter(|kept| kept.rule == rule).map(|kept| &kept.reason).collect::<Vec<_>>()
    };
    assert!(matches!(of("-N EDGE-MESH")[..], [reason] if reason.contains("is alive")), "{named:#?}");
    assert!(matches!(of("-N EDGE-MESH-TCP")[..], [reason] if reason.contains("is alive")), "{named:#?}");
}
