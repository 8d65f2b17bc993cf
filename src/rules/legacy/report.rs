//! The JSON of `cleanup -o json`, as the public contract has it. Fields may be added, never changed.

use serde::Serialize;

use super::plan::{Item, Plan};
use crate::rules::dump::Rule;

/// What a cleanup did, or with `dry_run` would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was changed because that was asked.
    pub dry_run: bool,
    /// The folder with the backup; null if no rule or file was removed.
    pub backup: Option<String>,
    /// The shell command that puts the rules back; null without a backup of rules.
    pub restore: Option<String>,
    /// The versions whose leftovers were found.
    pub versions: Vec<String>,
    /// Why nothing of EdgeMesh's was removed: it is alive.
    pub refused: Vec<String>,
    /// Back ends and families with a finding.
    pub rulesets: Vec<RulesetReport>,
    /// Links.
    pub links: Vec<ItemReport>,
    /// Routes.
    pub routes: Vec<ItemReport>,
    /// This program's policy rules.
    pub policy_rules: Vec<ItemReport>,
    /// This program's ip sets.
    pub sets: Vec<ItemReport>,
    /// Files, and `nameserver` lines of the resolver's file.
    pub files: Vec<ItemReport>,
    /// Connection-tracking entries that led to a proxy that is gone.
    pub conntrack_deleted: u64,
    /// What else should be known.
    pub notes: Vec<String>,
    /// Whether something stays that should go.
    #[serde(skip)]
    pub blocked: bool,
}

/// One back end and family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesetReport {
    /// The network namespace, if it is not the one that the command runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// `nft` or `legacy`.
    pub backend: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Tables with a finding.
    pub tables: Vec<TableReport>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableReport {
    /// `nat`, `filter`, …
    pub name: String,
    /// Names of the chains.
    pub removed_chains: Vec<String>,
    /// Rules as `iptables-save` prints them.
    pub removed_rules: Vec<String>,
    /// What stays.
    pub kept: Vec<KeptReport>,
}

/// Something that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptReport {
    /// The rule, or `-N CHAIN` for a chain.
    pub rule: String,
    /// Why.
    pub reason: String,
}

/// A link, route, set or file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ItemReport {
    /// What it is called.
    pub name: String,
    /// `removed` or `kept`.
    pub action: &'static str,
    /// Why.
    pub reason: String,
}

impl From<&Item> for ItemReport {
    fn from(item: &Item) -> Self {
        let action = if item.remove { "removed" } else { "kept" };
        Self { name: item.name.clone(), action, reason: item.reason.clone() }
    }
}

impl Report {
    /// Adds what one network namespace's plan says. `netns` is `None` for the caller's own.
    pub(super) fn add(&mut self, plan: &Plan, netns: Option<&str>) {
        let items = |items: &[Item]| items.iter().map(ItemReport::from).collect::<Vec<_>>();
        self.links.extend(items(&plan.links));
        self.routes.extend(items(&plan.routes));
        self.policy_rules.extend(items(&plan.policy_rules));
        self.sets.extend(items(&plan.sets));
        self.files.extend(items(&plan.files));
        self.files.extend(plan.name_servers.iter().map(|(_, item)| item.into()));
        self.refused.extend(plan.refused.iter().cloned());
        self.blocked |= plan.blocked();
        for version in &plan.versions {
            if !self.versions.contains(version) {
                self.versions.push(version.clone());
            }
        }
        for ruleset in plan.rulesets.iter().filter(|ruleset| !ruleset.tables.is_empty()) {
            let tables = ruleset.tables.iter().map(|table| TableReport {
                name: table.name.clone(),
                removed_chains: table.chains.clone(),
                removed_rules: table.jumps.iter().chain(&table.contents).map(Rule::line).collect(),
                kept: table
                    .kept
                    .iter()
                    .map(|kept| KeptReport { rule: kept.rule.clone(), reason: kept.reason.clone() })
                    .collect(),
            });
            self.rulesets.push(RulesetReport {
                netns: netns.map(str::to_owned),
                backend: ruleset.backend.as_str(),
                family: ruleset.family.as_str(),
                tables: tables.collect(),
            });
        }
    }

    /// Whether there was nothing to say.
    pub fn is_empty(&self) -> bool {
        let lists = [&self.links, &self.routes, &self.policy_rules, &self.sets, &self.files];
        self.rulesets.is_empty() && lists.iter().all(|list| list.is_empty()) && self.conntrack_deleted == 0
    }
}
