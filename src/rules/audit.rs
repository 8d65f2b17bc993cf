//! Holds what stands in the packet filter against the plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::dump::{Dump, Rule};
use super::names::{COMMENT, CREATED_CHAIN};
use super::peek::HIDDEN;
use super::plan::FamilyPlan;
use super::render::{jumps_into_own, stands_behind, stands_first};

/// How this machine's `iptables-save` prints own chains, where it differs from the plan's own wording: rules by
/// table and chain. Read back right after a restore.
pub type Wording = BTreeMap<(&'static str, &'static str), Vec<String>>;

/// One thing that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table.
    pub table: &'static str,
    /// What it is, in words.
    pub what: String,
    /// Our jump stands, but somebody else's rule stands before it: that rule.
    pub before_us: Option<String>,
}

/// Each thing that is not as planned; empty when all is well.
pub fn differences(
    plan: &FamilyPlan,
    dump: &Dump,
    wording: &Wording,
    created: &BTreeSet<&'static str>,
) -> Vec<Difference> {
    let mut found = Vec::new();
    for table in &plan.tables {
        let now = dump.table(table.name);
        let mut add = |what: String, before_us: Option<String>| {
            let what = format!("{}: {what}", table.name);
            found.push(Difference { table: table.name, what, before_us });
        };
        for chain in &table.chains {
            let Some(now) = now.filter(|now| now.has_chain(chain.name)) else {
                add(format!("chain {} is missing", chain.name), None);
                continue;
            };
            let expected = wording.get(&(table.name, chain.name)).unwrap_or(&chain.rules);
            if !now.rules_of(chain.name).map(|rule| &rule.text).eq(expected) {
                add(format!("chain {} was changed", chain.name), None);
            }
        }
        if created.contains(table.name) && !now.is_some_and(|now| now.has_chain(CREATED_CHAIN)) {
            add(format!("chain {CREATED_CHAIN} is missing"), None);
        }
        for (from, to) in &table.jumps {
            if !stands_first(now, from, to) {
                let before_us = now.and_then(|now| stands_behind(now, from, to)).map(Rule::line);
                add(format!("the jump from {from} to {to} is not in the first place"), before_us);
            }
        }
        let strays = now.into_iter().flat_map(jumps_into_own);
        for stray in strays.filter(|rule| !table.jumps.iter().any(|(from, _)| *from == rule.chain)) {
            add(format!("stray jump `{}`", stray.line()), None);
        }
    }
    found
}

/// Reads the machine's wording of own chains from a dump taken right after a restore. Only what can be the plan in
/// other words is believed: as many rules, with our comment where the plan has it. A chain that cannot be read even now stands as it was
/// written; nothing is gained by writing it again.
pub fn wording(plan: &FamilyPlan, dump: &Dump) -> Wording {
    let mut wording = Wording::new();
    for table in &plan.tables {
        let Some(now) = dump.table(table.name) else { continue };
        for chain in &table.chains {
            let rules: Vec<String> = now.rules_of(chain.name).map(|rule| rule.text.clone()).collect();
            let mut both = rules.iter().zip(&chain.rules);
            let plausible = rules.len() == chain.rules.len()
                && both.all(|(read, planned)| read.contains(COMMENT) || !planned.contains(COMMENT));
            let hidden = rules == [HIDDEN];
            if (plausible || hidden) && rules != chain.rules {
                wording.insert((table.name, chain.name), rules);
            }
        }
    }
    wording
}
