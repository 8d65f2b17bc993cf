//! The judgement of one table: which chains go, which jumps, what stays and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use super::pattern::{Clauses, Pattern};
use super::plan::{Kept, TablePlan};
use super::shapes::{FOOTPRINTS, Footprint, LOOK_ALIKES, Place, Proof};
use crate::rules::dump::{Rule, Table};
use crate::rules::names;

/// A footprint with its shapes ready to be compared.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) footprint: &'static Footprint,
    /// Table, chain and shapes; no shapes if every rule there is the chain owner's.
    pub(super) chains: Vec<(&'static str, &'static str, Option<Vec<Pattern>>)>,
    jumps: Vec<(&'static str, Pattern)>,
}

/// Every footprint, in the order of the table in `shapes`.
pub(super) static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    FOOTPRINTS
        .iter()
        .map(|footprint| Row {
            footprint,
            chains: footprint
                .chains
                .iter()
                .map(|chain| {
                    let shapes =
                        chain.rules.map(|rules| rules.iter().map(|text| Pattern::new(text)).collect());
                    (chain.table, chain.name, shapes)
                })
                .collect(),
            jumps: footprint.jumps.iter().map(|(table, text)| (*table, Pattern::new(text))).collect(),
        })
        .collect()
});

impl Row {
    pub(super) fn owns(&self, table: &str, chain: &str) -> bool {
        self.chains.iter().any(|(t, name, _)| *t == table && *name == chain)
    }

    fn wrote(&self, table: &str, chain: &str, rule: &Clauses) -> bool {
        self.chains.iter().any(|(t, name, shapes)| {
            *t == table
                && *name == chain
                && shapes.as_ref().is_none_or(|shapes| shapes.iter().any(|shape| shape.matches(rule)))
        })
    }

    fn jumped(&self, table: &str, rule: &Clauses) -> bool {
        self.jumps.iter().any(|(t, shape)| *t == table && shape.matches(rule))
            || self.footprint.place == Place::Own
                && (rule.is_bare_jump()
                    || rule.value("--comment").is_some_and(|text| text.starts_with(names::COMMENT)))
    }
}

/// What the targets in the chains that kube-proxy's userspace mode also used say about their owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// All lead to EdgeMesh's address, or the chains are empty and nobody is left to use them.
    EdgeMesh,
    /// They lead elsewhere, or cannot be told apart: the reason to keep them.
    Unproven(String),
}

/// What the judgement of a table rests on besides the table.
pub(super) struct Judge<'a> {
    /// Which footprints are looked for.
    pub(super) rows: Vec<&'a Row>,
    /// Whose the chains with [`Proof::Target`] are.
    pub(super) shared: &'a Owner,
    /// Whether jumps of unknown shape go too.
    pub(super) force: bool,
}

/// A table's plan with what the rest of the scan needs to know about it.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) plan: TablePlan,
    /// For each thing that goes: the rows (indices into [`ROWS`]) that may have written it.
    pub(super) writers: Vec<BTreeSet<usize>>,
    /// The rules that go, chains' contents and jumps, taken apart.
    pub(super) gone: Vec<Clauses>,
    /// Every rule that the footprints' owner wrote, whether it goes or stays.
    pub(super) wrote: Vec<Clauses>,
}

/// What becomes of a chain with one of the names.
enum Fate {
    /// It goes with all its rules.
    Goes,
    /// Its rules go. Rules of others still lead to it from these chains, so iptables refuses to delete it; a jump into
    /// an empty chain comes straight back.
    Emptied(BTreeSet<String>),
    /// It stays as it is, and so does what leads to it.
    Stays {
        reason: String,
        /// Whether it is EdgeMesh's all the same: then every rule that stays with it is named.
        named: bool,
    },
}

impl Fate {
    fn stays(&self) -> bool {
        matches!(self, Self::Stays { .. })
    }
}

impl Judge<'_> {
    /// Judges one table.
    pub(super) fn table(&self, table: &Table) -> Verdict {
        let rules: Vec<(&Rule, Clauses)> = table.rules.iter().map(|rule| (rule, Clauses::of(rule))).collect();
        let mut verdict = Verdict {
            plan: TablePlan { name: table.name.clone(), ..TablePlan::default() },
            ..Verdict::default()
        };
        let fates = self.fates(table, &rules);
        for (rule, clauses) in &rules {
            if let Some(fate) = fates.get(rule.chain.as_str()) {
                let Fate::Stays { named, .. } = fate else { continue };
                let (name, known) = (&rule.chain, self.wrote(table, rule, clauses));
                if *named && known {
                    verdict.plan.keep(rule.line(), format!("EdgeMesh's, and goes once {name} can"));
                    verdict.wrote.push(clauses.clone());
                } else if *named {
                    verdict.plan.keep(rule.line(), format!("no EdgeMesh version wrote such a rule into {name}; delete it by hand and run cleanup again"));
                }
                continue;
            }
            let Some((target, fate)) = clauses.target().and_then(|name| Some((name, fates.get(name)?)))
            else {
                continue;
            };
            if matches!(fate, Fate::Stays { named: false, .. }) {
                continue;
            }
            let known = self.jumped(table, target, clauses);
            if known {
                verdict.wrote.push(clauses.clone());
            }
            if !known && !self.force {
                verdict.plan.keep(
                    rule.line(),
                    format!("no EdgeMesh version wrote such a jump to {target}; delete it by hand and run cleanup again, or --force removes it"),
                );
            } else if fate.stays() {
                verdict.plan.keep(rule.line(), format!("leads to {target}, which stays"));
            } else {
                verdict.writers.push(self.writers(|row| row.jumped(&table.name, clauses)));
                verdict.gone.push(clauses.clone());
                verdict.plan.jumps.push((*rule).clone());
            }
        }
        for (name, fate) in fates {
            if let Fate::Stays { reason, .. } = fate {
                verdict.plan.keep(format!("-N {name}"), reason);
                continue;
            }
            let inside = rules.iter().filter(|(rule, _)| rule.chain == name);
            let before = verdict.plan.contents.len();
            for (rule, clauses) in inside {
                verdict.writers.push(self.writers(|row| row.wrote(&table.name, name, clauses)));
                verdict.wrote.push(clauses.clone());
                verdict.gone.push(clauses.clone());
                verdict.plan.contents.push((*rule).clone());
            }
            let Fate::Emptied(users) = fate else {
                verdict.writers.push(self.writers(|row| row.owns(&table.name, name)));
                verdict.plan.chains.push(name.to_owned());
                continue;
            };
            // The next run finds it empty, and has nothing to do.
            if verdict.plan.contents.len() > before {
                verdict.plan.emptied.push(name.to_owned());
            }
            let users = Vec::from_iter(users).join(", ");
            verdict.plan.keep(
                format!("-N {name}"),
                format!("stays, without a rule, because rules in {users} lead to it; delete those by hand and run cleanup again, or use --force"),
            );
        }
        verdict
    }

    /// What becomes of each chain of the table that has one of the names.
    fn fates<'t>(&self, table: &'t Table, rules: &[(&Rule, Clauses)]) -> BTreeMap<&'t str, Fate> {
        let mut fates: BTreeMap<&str, Fate> = BTreeMap::new();
        for chain in &table.chains {
            if self.rows.iter().any(|row| row.owns(&table.name, &chain.name)) {
                let fate = match self.unproven(&table.name, &chain.name) {
                    Some(reason) => Fate::Stays { reason, named: false },
                    None => Fate::Goes,
                };
                fates.insert(&chain.name, fate);
            }
        }
        for (rule, clauses) in rules {
            let Some(fate) = fates.get_mut(rule.chain.as_str()) else { continue };
            if !fate.stays() && !self.wrote(table, rule, clauses) {
                *fate = Fate::Stays { reason: "holds a rule that is not EdgeMesh's".to_owned(), named: true };
            }
        }
        spread(&mut fates, rules);
        for (rule, clauses) in rules {
            let Some(target) = clauses.target() else { continue };
            if self.force || fates.contains_key(rule.chain.as_str()) || self.jumped(table, target, clauses) {
                continue;
            }
            match fates.get_mut(target) {
                Some(fate @ Fate::Goes) => *fate = Fate::Emptied(BTreeSet::from([rule.chain.clone()])),
                Some(Fate::Emptied(users)) => {
                    users.insert(rule.chain.clone());
                }
                _ => {}
            }
        }
        fates
    }

    /// Whether a rule in one of the chains has a known shape.
    fn wrote(&self, table: &Table, rule: &Rule, clauses: &Clauses) -> bool {
        self.rows.iter().any(|row| row.wrote(&table.name, &rule.chain, clauses))
    }

    /// Whether a rule elsewhere that leads to one of the chains has a known shape.
    fn jumped(&self, table: &Table, target: &str, clauses: &Clauses) -> bool {
        self.rows.iter().any(|row| row.owns(&table.name, target) && row.jumped(&table.name, clauses))
    }

    /// Why a chain with one of the shared names may not be called EdgeMesh's.
    fn unproven(&self, table: &str, chain: &str) -> Option<String> {
        let by_target = |row: &&&Row| row.footprint.proof == Proof::Target && row.owns(table, chain);
        match (self.rows.iter().find(by_target), self.shared) {
            (Some(_), Owner::Unproven(reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    fn writers(&self, wrote: impl Fn(&Row) -> bool) -> BTreeSet<usize> {
        let all = ROWS.iter().enumerate();
        let ours = all.filter(|(_, row)| self.rows.iter().any(|mine| std::ptr::eq(*mine, *row)));
        ours.filter(|(_, row)| wrote(row)).map(|(index, _)| index).collect()
    }
}

impl TablePlan {
    fn keep(&mut self, rule: String, reason: String) {
        self.kept.push(Kept { rule, reason, blocks: true });
    }
}

/// A chain that stays as it is keeps its rules, so the chains that they lead to stay, and so do the chains of ours that
/// lead to it: otherwise a stranger's rule in it would silently stop to work.
fn spread(fates: &mut BTreeMap<&str, Fate>, rules: &[(&Rule, Clauses)]) {
    loop {
        let mut next = None;
        for (rule, clauses) in rules {
            let Some(target) = clauses.target() else { continue };
            let (Some(from), Some(to)) = (fates.get(rule.chain.as_str()), fates.get(target)) else {
                continue;
            };
            match (from.stays(), to.stays()) {
                (true, false) => {
                    next = Some((target.to_owned(), format!("is used by {}, which stays", rule.chain)));
                }
                (false, true) => next = Some((rule.chain.clone(), format!("leads to {target}, which stays"))),
                _ => continue,
            }
            break;
        }
        let Some((name, reason)) = next else { return };
        if let Some(fate) = fates.get_mut(name.as_str()) {
            *fate = Fate::Stays { reason, named: true };
        }
    }
}

/// Chains that only look like EdgeMesh's, and hand-made ones that were not asked for.
pub(super) fn look_alikes(table: &Table, host_manual_rules: bool) -> Vec<Kept> {
    let kept = |name: &str, reason: &str| Kept {
        rule: format!("-N {name}"),
        reason: reason.to_owned(),
        blocks: true,
    };
    let mut found = Vec::new();
    for chain in &table.chains {
        let owner = ROWS.iter().find(|row| row.owns(&table.name, &chain.name));
        match owner {
            Some(row) if row.footprint.place == Place::ByHand && !host_manual_rules => {
                let all = table
                    .rules_of(&chain.name)
                    .all(|rule| row.wrote(&table.name, &chain.name, &Clauses::of(rule)));
                if all {
                    found.push(kept(
                        &chain.name,
                        "typed by hand after KubeEdge's old guide; --host-manual-rules removes it",
                    ));
                }
            }
            None if LOOK_ALIKES.iter().any(|start| chain.name.starts_with(start)) => {
                found.push(kept(&chain.name, "looks like EdgeMesh's, but no version used this name here"));
            }
            _ => {}
        }
    }
    found
}
