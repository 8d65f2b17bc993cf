//! The reconciler against a machine in memory, with faults.

use super::*;
use crate::model::{Audience, Door, Frontend, Protocol};
use crate::rules::fake::{Fake, failure};
use crate::rules::{leftovers, names};

fn settings(backend: IptablesBackend) -> InterceptSettings {
    InterceptSettings {
        iptables_backend: backend,
        own_mark: 2,
        refuse_mark: 1,
        ..InterceptSettings::default()
    }
}

fn frontend(port: u16) -> Frontend {
    Frontend { ip: "10.96.0.10".parse().unwrap(), port, protocol: Protocol::Tcp }
}

fn wanted() -> Wanted {
    Wanted {
        ranges: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        listeners: BTreeSet::new(),
        skip: ["10.96.0.1".parse().unwrap()].into(),
        served: [frontend(80)].into_iter().collect(),
        proxy_port: 15001,
        own_mark: 2,
        refuse_mark: 1,
        ..Wanted::default()
    }
}

async fn reconciler(machine: Fake) -> Reconciler<Fake> {
    Reconciler::new(machine, &settings(IptablesBackend::Auto)).await.unwrap()
}

#[tokio::test]
async fn a_change_of_served_frontends_is_one_call() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.machine().take_calls();
    let mut more = wanted();
    more.served.insert(frontend(81));
    rules.apply(&more).await.unwrap();
    assert_eq!(rules.machine().take_calls(), ["ipset restore"]);
    rules.apply(&more).await.unwrap();
    assert!(rules.machine().take_calls().is_empty());
    let served = rules.machine().members(names::served_set(Family::V4)).unwrap();
    assert_eq!(served, ["10.96.0.10,tcp:80", "10.96.0.10,tcp:81"]);
}

#[tokio::test]
async fn a_lost_set_is_loaded_anew() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.machine().tamper("ipset lose edgesplice-served-v4");
    let mut more = wanted();
    more.served.insert(frontend(81));
    rules.apply(&more).await.unwrap();
    assert_eq!(rules.machine().members("edgesplice-served-v4").unwrap().len(), 2);
}

#[tokio::test]
async fn sets_and_routes_are_mended_and_counted() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let good = rules.machine().picture();
    for line in ["ipset flush edgesplice-served-v4", "ipset lose edgesplice-skip-v6", "route flush"] {
        rules.machine().tamper(line);
        assert_ne!(rules.machine().picture(), good);
        rules.check().await.unwrap();
        assert_eq!(rules.machine().picture(), good, "{line}");
    }
    // The two families have a range, a table and two rules each, and one of them an address that is left alone.
    assert_eq!(rules.report().repairs_total, 2 + 9);
}

#[tokio::test]
async fn routes_that_come_and_go_are_followed_and_are_no_repair() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let good = rules.machine().picture();
    rules.machine().tamper("route add 10.97.0.0/16");
    rules.check().await.unwrap();
    let throw = Entry::Throw("10.97.0.0/16".parse().unwrap());
    assert!(rules.machine().standing().await.unwrap().own.contains(&throw));
    rules.machine().tamper("route gone");
    rules.check().await.unwrap();
    assert_eq!(rules.machine().picture(), good);
    assert_eq!(rules.report().repairs_total, 0);
}

#[tokio::test]
async fn what_is_left_alone_is_a_matter_of_sets_and_routes() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.machine().take_calls();
    let mut more = wanted();
    more.skip.extend(["10.96.0.2", "192.0.2.1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    rules.apply(&more).await.unwrap();
    assert_eq!(rules.machine().take_calls(), ["ipset restore"]);
    let own = rules.machine().standing().await.unwrap().own;
    let throws: Vec<String> =
        own.iter().filter(|entry| matches!(entry, Entry::Throw(_))).map(ToString::to_string).collect();
    let throw = |ip: &str| format!("route throw {ip}/32 table 238 proto 237");
    assert_eq!(
        throws,
        [throw("10.96.0.1"), throw("10.96.0.2")],
        "outside of the ranges there is nothing to say"
    );
    rules.withdraw().await.unwrap();
    assert!(leftovers(rules.machine()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_kernel_with_one_routing_table_gets_nothing_meant_for_another() {
    let mut rules = reconciler(Fake { has_policy_routing: false, ..Fake::default() }).await;
    rules.apply(&wanted()).await.unwrap();
    let own = rules.machine().standing().await.unwrap().own;
    assert!(own.len() == 2 && own.iter().all(|entry| matches!(entry, Entry::MainToRange(_))), "{own:?}");
    assert!(rules.report().warnings[0].contains("no policy routing"));
    assert!(!rules.machine().picture().contains("0x3"), "no datagram is led to a table that is not there");
}

#[tokio::test]
async fn rules_are_read_only_when_something_changed() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let good = rules.machine().picture();
    rules.check().await.unwrap();
    rules.machine().take_calls();
    rules.check().await.unwrap();
    assert!(rules.machine().take_calls().is_empty());
    rules.machine().tamper("rules flush");
    rules.check().await.unwrap();
    assert_eq!(rules.machine().picture(), good);
}

#[tokio::test]
async fn a_program_that_insists_on_the_first_place_is_not_fought_at_full_speed() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let mut repairs = Vec::new();
    for _ in 0..6 {
        rules.machine().tamper("first nat PREROUTING");
        rules.check().await.unwrap();
        repairs.push(rules.report().repairs_total);
    }
    assert_eq!(repairs, [2, 4, 6, 6, 6, 6], "both families, three times");
    let warnings = rules.report().warnings;
    assert!(warnings.len() == 2 && warnings[0].starts_with("in ipv4 nat, another program"), "{warnings:?}");
    assert!(warnings[0].contains("-A PREROUTING -j OTHER"), "{warnings:?}");
    // What is really broken is mended meanwhile, and the place with it.
    rules.machine().tamper("rules flush");
    rules.check().await.unwrap();
    assert!(rules.report().repairs_total > 6);
    rules.check().await.unwrap();
    assert_eq!(rules.report().warnings, Vec::<String>::new());
}

#[tokio::test]
async fn attempts_that_fail_are_no_fight() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let good = rules.machine().picture();
    rules.machine().tamper("first nat PREROUTING");
    for _ in 0..6 {
        rules.machine().fail_next(failure(4, "Another app is currently holding the xtables lock."));
        assert!(rules.check().await.is_err());
    }
    rules.check().await.unwrap();
    assert_ne!(rules.machine().picture(), good, "the other rule stays");
    assert_eq!((rules.report().warnings, rules.report().repairs_total), (Vec::new(), 2));
}

#[tokio::test]
async fn a_held_lock_is_reported_and_survived() {
    let mut rules = reconciler(Fake::default()).await;
    rules.machine().fail_next(failure(4, "Another app is currently holding the xtables lock."));
    assert!(rules.apply(&wanted()).await.is_err());
    let report = rules.report();
    assert!(report.last_error.contains("xtables lock") && !report.installed, "{report:?}");
    rules.apply(&wanted()).await.unwrap();
    let report = rules.report();
    assert!(report.last_error.is_empty() && report.installed && report.refuse_before_accept, "{report:?}");
}

#[tokio::test]
async fn a_kernel_that_cannot_match_sets_is_served_without() {
    let mut rules = reconciler(Fake::default()).await;
    // The sets load, the rules that refer to them do not.
    rules.machine().fail_next(failure(1, "line 7 failed"));
    rules.apply(&wanted()).await.unwrap();
    let report = rules.report();
    assert!(report.installed && !report.refuse_before_accept && report.warnings.len() == 1, "{report:?}");
    assert!(!rules.machine().picture().contains("--match-set"));
    assert_eq!(rules.machine().members(names::served_set(Family::V4)), None);
}

/// One that may not make a network namespace, with all that could be tried there.
async fn untried() -> (Reconciler<Fake>, Wanted) {
    let settings =
        InterceptSettings { connect: ConnectMode::BeforeAccept, ..settings(IptablesBackend::Auto) };
    let rules = Reconciler::new(Fake { may_try: false, ..Fake::default() }, &settings).await.unwrap();
    (rules, Wanted { queues: 2, keep_source: true, ..wanted() })
}

#[tokio::test]
async fn what_could_not_be_tried_is_given_up_when_the_rules_say_no() {
    let (mut rules, all) = untried().await;
    for said in ["line 7 failed", "line 8 failed"] {
        rules.machine().fail_next(failure(1, said));
    }
    rules.apply(&all).await.unwrap();
    let report = rules.report();
    assert!(report.installed && report.refuse_before_accept && !report.keeps_source, "{report:?}");
    assert_eq!(report.warnings.len(), 2, "{report:?}");
    assert!(report.warnings[0].contains("line 7") && report.warnings[1].contains("line 8"), "{report:?}");
    assert!(!rules.machine().picture().contains("NFQUEUE"));
}

#[tokio::test]
async fn what_could_not_be_tried_and_was_installed_is_proven() {
    let (mut rules, all) = untried().await;
    rules.apply(&all).await.unwrap();
    assert!(rules.report().warnings.is_empty() && rules.report().keeps_source, "{:?}", rules.report());
    rules.machine().fail_next(failure(1, "line 7 failed"));
    let other = Wanted { proxy_port: 15002, ..all };
    assert!(rules.apply(&other).await.is_err());
    rules.apply(&other).await.unwrap();
    assert!(rules.machine().picture().contains("NFQUEUE") && rules.report().keeps_source);
}

#[tokio::test]
async fn a_failure_later_on_does_not_give_up_sets() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let mut other = wanted();
    other.proxy_port = 15002;
    rules.machine().fail_next(failure(1, "line 7 failed"));
    assert!(rules.apply(&other).await.is_err());
    rules.apply(&other).await.unwrap();
    assert!(rules.report().refuse_before_accept);
}

#[tokio::test]
async fn serves_ipv4_only_without_ipv6() {
    let mut rules = reconciler(Fake { has_ipv6: false, ..Fake::default() }).await;
    rules.apply(&wanted()).await.unwrap();
    assert!(rules.report().warnings[0].starts_with("serving IPv4 only"));
    assert!(!rules.machine().picture().contains("V6"));
}

#[tokio::test]
async fn a_range_that_goes_takes_its_rules_and_sets_with_it() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let mut less = wanted();
    less.ranges.pop();
    rules.apply(&less).await.unwrap();
    assert!(!rules.machine().picture().contains("V6") && rules.machine().picture().contains("V4"));
    less.ranges.clear();
    rules.apply(&less).await.unwrap();
    assert!(leftovers(rules.machine()).await.unwrap().is_empty());
    assert!(!rules.report().installed);
}

#[tokio::test]
async fn leaves_nothing_behind() {
    let clean = Fake::default().picture();
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.withdraw().await.unwrap();
    assert_eq!(rules.machine().picture(), clean);
}

#[tokio::test]
async fn a_fault_at_the_end_is_told_and_does_not_stop_the_rest() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.machine().fail_next(failure(1, "no"));
    assert!(rules.withdraw().await.is_err());
    let left = leftovers(rules.machine()).await.unwrap();
    assert!(left.iter().all(|line| line.starts_with("nft ipv4")), "{left:?}");
    rules.withdraw().await.unwrap();
    assert!(leftovers(rules.machine()).await.unwrap().is_empty());
}

#[tokio::test]
async fn says_what_is_missing() {
    let start =
        |machine: Fake, backend| async move { Reconciler::new(machine, &settings(backend)).await.err() };
    let none = Fake { backends: Vec::new(), ..Fake::default() };
    assert!(matches!(start(none, IptablesBackend::Auto).await, Some(StartError::NoPrograms)));
    let nft = Fake { backends: vec![Backend::Nft], ..Fake::default() };
    let error = start(nft, IptablesBackend::Legacy).await;
    assert!(matches!(error, Some(StartError::NotInstalled("legacy"))));
    let user = Fake { permitted: false, ..Fake::default() };
    assert!(matches!(start(user, IptablesBackend::Auto).await, Some(StartError::NotPermitted)));
}

/// `wanted` with an external frontend for `audience` from `sources`.
fn with_door(audience: Audience, sources: &[&str]) -> Wanted {
    let at = Frontend { ip: "192.168.77.1".parse().unwrap(), port: 30080, protocol: Protocol::Tcp };
    let sources = sources.iter().map(|net| net.parse().unwrap()).collect();
    Wanted { external: [(at, Door { audience, sources })].into_iter().collect(), ..wanted() }
}

#[tokio::test]
async fn external_frontends_are_a_matter_of_sets() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.machine().take_calls();
    let sets = names::external_sets(Family::V4);
    let member = vec!["192.168.77.1,tcp:30080".to_owned()];
    let none: Vec<String> = Vec::new();
    for (audience, nobody, here) in [
        (Audience::All, &none, &none),
        (Audience::Here, &none, &member),
        (Audience::Nobody, &member, &none),
        (Audience::All, &none, &none),
    ] {
        rules.apply(&with_door(audience, &[])).await.unwrap();
        assert_eq!(rules.machine().take_calls(), ["ipset restore"], "{audience:?}");
        let now = |set| rules.machine().members(set).unwrap();
        assert_eq!(
            (now(sets.all), now(sets.nobody), now(sets.here)),
            (member.clone(), nobody.clone(), here.clone())
        );
    }
    rules.apply(&wanted()).await.unwrap();
    assert_eq!(rules.machine().members(sets.all).unwrap(), none);
    rules.withdraw().await.unwrap();
    assert_eq!(rules.machine().members(sets.all), None);
}

#[tokio::test]
async fn source_ranges_come_and_go_with_their_sets() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    let sets = names::external_sets(Family::V4);
    assert_eq!(rules.machine().members(sets.sources), None, "not before anybody needs it");
    rules.apply(&with_door(Audience::All, &["10.0.0.0/8", "192.0.2.7/32"])).await.unwrap();
    let want = ["192.168.77.1,tcp:30080,10.0.0.0/8", "192.168.77.1,tcp:30080,192.0.2.7"];
    assert_eq!(rules.machine().members(sets.sources).unwrap(), want);
    assert_eq!(rules.machine().members(sets.guarded).unwrap(), ["192.168.77.1,tcp:30080"]);
    rules.machine().take_calls();
    rules.check().await.unwrap();
    assert_eq!(rules.report().repairs_total, 0);
    rules.apply(&with_door(Audience::All, &["10.0.0.0/8"])).await.unwrap();
    assert_eq!(rules.machine().members(sets.sources).unwrap(), want[..1]);
    rules.apply(&with_door(Audience::All, &[])).await.unwrap();
    assert_eq!(rules.machine().members(sets.sources), None);
}

#[tokio::test]
async fn a_kernel_without_that_type_of_set_serves_all_the_same() {
    let mut rules = reconciler(Fake::default()).await;
    rules.apply(&wanted()).await.unwrap();
    rules.machine().fail_next(failure(1, "Kernel error received: set type not supported"));
    rules.machine().fail_next(failure(1, "Kernel error received: set type not supported"));
    rules.apply(&with_door(Audience::All, &["10.0.0.0/8"])).await.unwrap();
    let sets = names::external_sets(Family::V4);
    assert_eq!(rules.machine().members(sets.all).unwrap().len(), 1);
    assert_eq!(rules.machine().members(sets.sources), None);
    assert!(rules.capabilities().ipset && rules.report().warnings[0].contains("hash:ip,port,net"));
}

#[tokio::test]
async fn without_sets_external_frontends_are_said_to_be_missing() {
    let mut rules = reconciler(Fake { has_ipset: false, ..Fake::default() }).await;
    rules.apply(&with_door(Audience::All, &[])).await.unwrap();
    assert!(rules.report().warnings.iter().any(|line| line.contains("node ports")), "{:?}", rules.report());
}
