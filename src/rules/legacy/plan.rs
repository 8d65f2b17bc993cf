//! What is to go and what stays: the outcome of a scan, and the input of the removal.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::rules::apply::{Backend, Family};
use crate::rules::dump::Rule;

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Also remove what something live still uses, and jumps that EdgeMesh did not write.
    pub force: bool,
    /// Also remove the chain that KubeEdge's old guide told people to type.
    pub host_manual_rules: bool,
    /// EdgeMesh's `bridgeDeviceIP`, where it was configured.
    pub mesh_address: Option<IpAddr>,
    /// Look only for what older versions put into pods.
    pub pod: bool,
    /// Where this program answers DNS while it runs: `nameserver` lines with these addresses are meant for it.
    pub own_servers: BTreeSet<IpAddr>,
    /// Whether it is about to.
    pub starting: bool,
}

/// What is to go and what stays.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// One entry for each back end and family.
    pub rulesets: Vec<RulesetPlan>,
    /// Links.
    pub links: Vec<Item>,
    /// Routes.
    pub routes: Vec<Item>,
    /// Policy rules of this program.
    pub policy_rules: Vec<Item>,
    /// Ip sets of this program.
    pub sets: Vec<Item>,
    /// Files and folders of the table.
    pub files: Vec<Item>,
    /// `nameserver` lines, by address.
    pub name_servers: Vec<(IpAddr, Item)>,
    /// Whether something of this program's own is to be removed.
    pub own: bool,
    /// Why nothing of EdgeMesh's may be removed now: it is alive. Empty with `force`.
    pub refused: Vec<String>,
    /// The versions whose leftovers were found.
    pub versions: Vec<String>,
    /// Where the removed rules sent packets: conntrack entries that lead there are dead.
    pub targets: BTreeSet<(IpAddr, Option<u16>)>,
}

/// One back end and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesetPlan {
    /// The back end.
    pub backend: Backend,
    /// The family.
    pub family: Family,
    /// Its tables, those without a finding left out, in the order in which they are to be cleaned.
    pub tables: Vec<TablePlan>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablePlan {
    /// The table's name.
    pub name: String,
    /// Rules of other chains to be deleted one by one, as often as they occur.
    pub jumps: Vec<Rule>,
    /// Chains to be emptied and deleted.
    pub chains: Vec<String>,
    /// Chains to be emptied that stay, because somebody else's rule leads to them.
    pub emptied: Vec<String>,
    /// The rules in both.
    pub contents: Vec<Rule>,
    /// What stays.
    pub kept: Vec<Kept>,
}

/// Something that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The rule (`-A CHAIN …`) or the chain (`-N CHAIN`).
    pub rule: String,
    /// Why.
    pub reason: String,
    /// Whether it makes the cleanup end with exit code 2. Not so what cannot be read and has nothing to do with EdgeMesh.
    pub blocks: bool,
}

/// A link, route, file or set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is called.
    pub name: String,
    /// Whether it goes.
    pub remove: bool,
    /// Why it goes or stays.
    pub reason: String,
    /// Whether it stays although it should go.
    pub blocks: bool,
}

impl Item {
    /// Something that goes.
    pub fn removed(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), remove: true, reason: reason.into(), blocks: false }
    }

    /// Something that should go and stays.
    pub fn blocked(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), remove: false, reason: reason.into(), blocks: true }
    }

    /// Something in use, mentioned because it looks like ours to remove.
    pub fn left(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), remove: false, reason: reason.into(), blocks: false }
    }

    fn refuse(&mut self, reason: &str) {
        if self.remove {
            *self = Self::blocked(self.name.clone(), reason);
        }
    }
}

impl TablePlan {
    /// Whether the table is to be changed.
    pub fn changes(&self) -> bool {
        !self.jumps.is_empty() || !self.chains.is_empty() || !self.emptied.is_empty()
    }

    /// Keeps everything after all.
    pub(super) fn refuse(&mut self, reason: &str) {
        let keep = |rule| Kept { rule, reason: reason.to_owned(), blocks: true };
        // These are kept already, but not for being empty.
        let emptied: Vec<String> =
            std::mem::take(&mut self.emptied).iter().map(|name| format!("-N {name}")).collect();
        self.kept.retain(|kept| !emptied.contains(&kept.rule));
        self.kept.extend(emptied.into_iter().map(keep));
        let chains = std::mem::take(&mut self.chains);
        self.kept.extend(chains.into_iter().map(|name| keep(format!("-N {name}"))));
        self.kept.extend(std::mem::take(&mut self.jumps).iter().map(|rule| keep(rule.line())));
        self.contents.clear();
    }

    /// Adds another group's findings in the same table.
    pub(super) fn merge(&mut self, other: Self) {
        self.jumps.extend(other.jumps);
        self.chains.extend(other.chains);
        self.emptied.extend(other.emptied);
        self.contents.extend(other.contents);
        self.kept.extend(other.kept);
    }

    fn is_empty(&self) -> bool {
        !self.changes() && self.kept.is_empty()
    }
}

impl RulesetPlan {
    /// Leaves out tables without a finding, and puts `nat` last: the DNAT targets there prove whose the chains in
    /// `filter` are, so they must outlive them if the removal is cut short.
    pub(super) fn tidy(&mut self) {
        self.tables.retain(|table| !table.is_empty());
        self.tables.sort_by_key(|table| table.name == "nat");
    }
}

impl Plan {
    /// Everything but rules, for a look at all of it.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        let lists = [&self.links, &self.routes, &self.policy_rules, &self.sets, &self.files];
        lists.into_iter().flatten().chain(self.name_servers.iter().map(|(_, item)| item))
    }

    /// Every table with a finding.
    pub fn tables(&self) -> impl Iterator<Item = &TablePlan> {
        self.rulesets.iter().flat_map(|ruleset| &ruleset.tables)
    }

    /// Whether a rule would be removed.
    pub fn changes_rules(&self) -> bool {
        self.tables().any(TablePlan::changes)
    }

    /// Whether anything would be removed.
    pub fn changes(&self) -> bool {
        self.changes_rules() || self.items().any(|item| item.remove)
    }

    /// Whether something stays that should go.
    pub fn blocked(&self) -> bool {
        self.tables().any(|table| table.kept.iter().any(|kept| kept.blocks))
            || self.items().any(|item| item.blocks)
    }

    /// Keeps all links, files, routes and name servers of EdgeMesh after all.
    pub(super) fn refuse_items(&mut self, reason: &str) {
        let lists = [&mut self.links, &mut self.routes, &mut self.files];
        lists.into_iter().flatten().for_each(|item| item.refuse(reason));
        self.name_servers.iter_mut().for_each(|(_, item)| item.refuse(reason));
    }
}
