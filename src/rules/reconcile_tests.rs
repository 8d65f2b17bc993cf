//! The reconciler against a machine in memory, with faults.

use std::time::Duration;

use super::*;
use crate::model::{Frontend, Protocol};
use crate::rules::fake::{Fake, failure};
use crate::rules::{leftovers, names};

fn settings(backend: IptablesBackend) -> InterceptSettings {
    InterceptSettings {
        service_cidrs: Vec::new(),
        iptables_backend: backend,
        remove_stale: false,
        kubernetes_service: false,
        sync_period: Duration::from_secs(2),
        own_mark: 2,
        refuse_mark: 1,
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
    // The two families have a range, a table and a rule each.
    assert_eq!(rules.report().repairs_total, 2 + 6);
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
