//! The reconciler against every fault: each operation of its life may fail, halfway through what it does, or be the last
//! one before the process dies; once, and twice. Whoever comes then brings the node to what is wanted, and takes
//! everything away at the end.

use std::collections::BTreeMap;

use super::fake::{Failing, Fake};
use super::plan::Wanted;
use super::reconcile::Reconciler;
use super::{leftovers, remove_leftovers};
use crate::config::{InterceptSettings, IptablesBackend};
use crate::model::{Frontend, Protocol};

/// Operations that a life's answer to a fault takes, about.
const REACTION: usize = 6;
/// How often a life tries each of its steps again.
const TRIES: usize = 4;

fn frontend(port: u16, protocol: Protocol) -> Frontend {
    Frontend { ip: "10.96.0.10".parse().unwrap(), port, protocol }
}

fn wanted(port: u16, served: &[Frontend]) -> Wanted {
    Wanted {
        ranges: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        skip: ["10.96.0.1".parse().unwrap()].into(),
        served: served.iter().copied().collect(),
        proxy_port: port,
        own_mark: 2,
        refuse_mark: 1,
        ..Wanted::default()
    }
}

/// What is wanted at first, and later: another frontend, and another range.
fn stages(port: u16) -> [Wanted; 2] {
    let first = wanted(port, &[frontend(80, Protocol::Tcp)]);
    let mut later = wanted(port, &[frontend(80, Protocol::Tcp), frontend(53, Protocol::Udp)]);
    later.ranges.push("172.30.0.0/16".parse().unwrap());
    [first, later]
}

async fn begin(machine: &Fake) -> Option<Reconciler<Fake>> {
    let settings = InterceptSettings {
        iptables_backend: IptablesBackend::Nft,
        own_mark: 2,
        refuse_mark: 1,
        ..InterceptSettings::default()
    };
    Reconciler::new(machine.clone(), &settings).await.ok()
}

/// One life of an agent: both stages, a check, and the end. Goes on as far as its faults let it.
async fn life(machine: &Fake, port: u16) {
    let Some(mut rules) = begin(machine).await else { return };
    for wanted in stages(port) {
        for _ in 0..TRIES {
            if machine.is_dead() || rules.apply(&wanted).await.is_ok() {
                break;
            }
        }
        let _ = rules.check().await;
    }
    for _ in 0..TRIES {
        if machine.is_dead() || rules.withdraw().await.is_ok() {
            break;
        }
    }
}

/// What stands after a life without faults, before its end.
async fn good(port: u16) -> String {
    let machine = Fake::default();
    let mut rules = begin(&machine).await.unwrap();
    rules.apply(&stages(port)[1]).await.unwrap();
    machine.sorted_picture()
}

/// Whoever comes after `machine` was left in some state makes it good, and then leaves nothing.
async fn recovers(machine: &Fake, good: &str, what: &str) {
    machine.plan_failures(BTreeMap::new());
    let mut rules = begin(machine).await.unwrap();
    rules.apply(&stages(2)[1]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(machine.sorted_picture() == good, "{what}: {}", machine.sorted_picture());
    rules.withdraw().await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(leftovers(machine).await.unwrap(), Vec::<String>::new(), "{what}");
    assert!(
        machine.sorted_picture() == Fake::default().sorted_picture(),
        "{what}: {}",
        machine.sorted_picture()
    );
}

async fn operations() -> usize {
    let machine = Fake::default();
    life(&machine, 1).await;
    machine.operations()
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_and_wherever_it_dies_the_next_one_puts_it_right() {
    let (count, good) = (operations().await, good(2).await);
    assert!(count > 20, "{count} operations are no life");
    let mut histories = 0;
    for first in 0..count {
        for kind in [Failing::Broken, Failing::Busy, Failing::Dies] {
            let machine = Fake::default();
            machine.plan_failures(BTreeMap::from([(first, kind)]));
            life(&machine, 1).await;
            recovers(&machine, &good, &format!("{kind:?} at {first}")).await;
            histories += 1;
            if kind == Failing::Dies {
                continue;
            }
            // It dies of what it does about it.
            for second in first + 1..=first + REACTION {
                let machine = Fake::default();
                machine.plan_failures(BTreeMap::from([(first, kind), (second, Failing::Dies)]));
                life(&machine, 1).await;
                recovers(&machine, &good, &format!("{kind:?} at {first}, dead at {second}")).await;
                histories += 1;
            }
        }
    }
    println!("{count} operations, {histories} histories");
}

#[tokio::test(start_paused = true)]
async fn two_lives_may_die_one_after_the_other() {
    let (count, good) = (operations().await, good(2).await);
    for first in 0..count {
        for second in (first % 5..count).step_by(5) {
            let machine = Fake::default();
            machine.plan_failures(BTreeMap::from([(first, Failing::Dies)]));
            life(&machine, 1).await;
            machine.plan_failures(BTreeMap::from([(second, Failing::Dies)]));
            // Of another version: with another port.
            life(&machine, 3).await;
            recovers(&machine, &good, &format!("dead at {first} and at {second}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn wherever_it_dies_nothing_is_left_after_the_clean_up() {
    let count = operations().await;
    for at in 0..count {
        let machine = Fake::default();
        machine.plan_failures(BTreeMap::from([(at, Failing::Dies)]));
        life(&machine, 1).await;
        machine.plan_failures(BTreeMap::new());
        remove_leftovers(&machine).await.unwrap_or_else(|error| panic!("dead at {at}: {error}"));
        assert_eq!(leftovers(&machine).await.unwrap(), Vec::<String>::new(), "dead at {at}");
        assert!(
            machine.sorted_picture() == Fake::default().sorted_picture(),
            "dead at {at}: {}",
            machine.sorted_picture()
        );
    }
}

#[tokio::test]
async fn a_table_that_somebody_uses_at_the_last_moment_stays_without_the_mark() {
    for (tampering, what) in
        [("first nat PREROUTING", "-j OTHER"), ("chain nat KUBE-SERVICES", "KUBE-SERVICES")]
    {
        let machine = Fake::default();
        let mut rules = begin(&machine).await.unwrap();
        rules.apply(&stages(1)[0]).await.unwrap();
        machine.tamper_before_removal(tampering);
        rules.withdraw().await.unwrap();
        assert_eq!(leftovers(&machine).await.unwrap(), Vec::<String>::new(), "{tampering}");
        let left = machine.sorted_picture();
        assert_eq!(left.matches(what).count(), 2, "in either family: {left}");
        assert!(!left.contains("mangle") && !left.contains("filter"), "{left}");
    }
}
