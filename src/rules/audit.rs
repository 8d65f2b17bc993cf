//! Holds what stands in the packet filter against the plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::dump::Dump;
use super::names::{COMMENT, CREATED_CHAIN};
use super::plan::FamilyPlan;
use super::render::{jumps_into_own, stands_first};

/// How this machine's `iptables-save` prints own chains, where it differs from the plan's own wording: rules by
/// table and chain. Read back right after a restore.
pub type Wording = BTreeMap<(&'static str, &'static str), Vec<String>>;

/// Each thing that is not as planned, as a line for people; empty when all is well.
pub fn differences(
    plan: &FamilyPlan,
    dump: &Dump,
    wording: &Wording,
    created: &BTreeSet<&'static str>,
) -> Vec<String> {
    let mut found = Vec::new();
    for table in &plan.tables {
        let now = dump.table(table.name);
        for chain in &table.chains {
            let Some(now) = now.filter(|now| now.has_chain(chain.name)) else {
                found.push(format!("{}: chain {} is missing", table.name, chain.name));
                continue;
            };
            let expected = wording.get(&(table.name, chain.name)).unwrap_or(&chain.rules);
            if !now.rules_of(chain.name).map(|rule| &rule.text).eq(expected) {
                found.push(format!("{}: chain {} was changed", table.name, chain.name));
            }
        }
        if created.contains(table.name) && !now.is_some_and(|now| now.has_chain(CREATED_CHAIN)) {
            found.push(format!("{}: chain {CREATED_CHAIN} is missing", table.name));
        }
        for (from, to) in &table.jumps {
            if !stands_first(now, from, to) {
                found.push(format!("{}: the jump from {from} to {to} is not in the first place", table.name));
            }
        }
        let strays = now.into_iter().flat_map(jumps_into_own);
        for stray in strays.filter(|rule| !table.jumps.iter().any(|(from, _)| *from == rule.chain)) {
            found.push(format!("{}: stray jump `{}`", table.name, stray.line()));
        }
    }
    found
}

/// Reads the machine's wording of own chains from a dump taken right after a restore. Only what can be the plan in
/// other words is believed: as many rules, each with our comment.
pub fn wording(plan: &FamilyPlan, dump: &Dump) -> Wording {
    let mut wording = Wording::new();
    for table in &plan.tables {
        let Some(now) = dump.table(table.name) else { continue };
        for chain in &table.chains {
            let rules: Vec<String> = now.rules_of(chain.name).map(|rule| rule.text.clone()).collect();
            let plausible =
                rules.len() == chain.rules.len() && rules.iter().all(|rule| rule.contains(COMMENT));
            if plausible && rules != chain.rules {
                wording.insert((table.name, chain.name), rules);
            }
        }
    }
    wording
}
