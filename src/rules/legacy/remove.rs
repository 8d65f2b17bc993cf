//! Carries a plan out, step by step. Every step can be repeated, and the order is such that what is left after a cut
//! between any two of them is still recognised by the next scan.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Context as _;

use super::conntrack::{self, Targets};
use super::facts::Facts;
use super::files;
use super::items::RESOLVER;
use super::links::Netlink;
use super::plan::{Plan, TablePlan};
use super::read::Roots;
use super::scan::AGENT;
use super::shapes::MESH_ADDRESS;
use crate::rules::apply::{Backend, Family, Firewall};

/// One step of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Feed a script to one back end and family: one table, all or nothing.
    Rules {
        /// The back end.
        backend: Backend,
        /// The family.
        family: Family,
        /// The script.
        script: String,
    },
    /// Delete routes and policy rules.
    Routes,
    /// Take dead name servers out of the resolver's file.
    NameServers,
    /// Destroy this program's sets, which its rules no longer use.
    Sets,
    /// Delete connection-tracking entries that lead to a dead proxy.
    Conntrack,
    /// Delete links.
    Links,
    /// Delete files.
    Files,
}

/// The script that cleans one table: jumps first, because a chain that is still used cannot be deleted, then the
/// chains' contents, which may use one another, then the chains.
pub fn script(table: &TablePlan) -> String {
    let mut text = format!("*{}\n", table.name);
    for rule in &table.jumps {
        let _ = writeln!(text, "-D {} {}", rule.chain, rule.text);
    }
    for chain in table.chains.iter().chain(&table.emptied) {
        let _ = writeln!(text, "-F {chain}");
    }
    for chain in &table.chains {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    text
}

/// The steps of a plan. `nat` comes after the other tables, the routes and the resolver's file: its rules prove what
/// those are. Links come after the rules for the same reason.
pub fn steps(plan: &Plan) -> Vec<Step> {
    let rules = |nat: bool| {
        plan.rulesets.iter().flat_map(move |ruleset| {
            let tables =
                ruleset.tables.iter().filter(move |table| table.changes() && (table.name == "nat") == nat);
            tables.map(|table| Step::Rules {
                backend: ruleset.backend,
                family: ruleset.family,
                script: script(table),
            })
        })
    };
    let any = |mut items: std::slice::Iter<'_, super::plan::Item>| items.any(|item| item.remove);
    let mut steps: Vec<Step> = rules(false).collect();
    let rest = [
        (Step::Routes, any(plan.routes.iter()) || any(plan.policy_rules.iter())),
        (Step::NameServers, plan.name_servers.iter().any(|(_, item)| item.remove)),
    ];
    steps.extend(rest.into_iter().filter(|(_, wanted)| *wanted).map(|(step, _)| step));
    steps.extend(rules(true));
    let rest = [
        (Step::Sets, any(plan.sets.iter())),
        // Even without rules: they may have been removed by a cleanup that was cut short.
        (Step::Conntrack, plan.refused.is_empty()),
        (Step::Links, any(plan.links.iter())),
        (Step::Files, any(plan.files.iter())),
    ];
    steps.extend(rest.into_iter().filter(|(_, wanted)| *wanted).map(|(step, _)| step));
    steps
}

/// What one step needs to know.
pub struct Context<'a, F> {
    /// The packet filter of the caller's network namespace.
    pub firewall: &'a F,
    /// Where files are found.
    pub roots: &'a Roots,
    /// What the plan was made from.
    pub facts: &'a Facts,
    /// The plan.
    pub plan: &'a Plan,
}

/// What came of a step, where that was not known before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Connection-tracking entries deleted.
    pub conntrack_deleted: u64,
    /// Something that did not work and does no harm.
    pub note: Option<String>,
}

impl<F: Firewall> Context<'_, F> {
    /// Carries out one step.
    pub async fn execute(&self, step: &Step) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        match step {
            Step::Rules { backend, family, script } => {
                let name = format!("{} {}", backend.as_str(), family.as_str());
                self.firewall
                    .restore(*backend, *family, script)
                    .await
                    .with_context(|| format!("cannot remove the {name} rules"))?;
            }
            Step::Routes => self.routes().await?,
            Step::NameServers => {
                let items = self.plan.name_servers.iter().filter(|(_, item)| item.remove);
                let dead: BTreeSet<IpAddr> = items.map(|(server, _)| *server).collect();
                files::drop_name_servers(&self.roots.at(RESOLVER), &dead)?;
            }
            Step::Sets => {
                for item in self.plan.sets.iter().filter(|item| item.remove) {
                    // An unknown set is one that is gone already.
                    let done = self.firewall.ipset_restore(&format!("-exist destroy {}\n", item.name)).await;
                    done.with_context(|| format!("cannot destroy the set {}", item.name))?;
                }
            }
            Step::Conntrack => match conntrack::delete(&self.targets(), &self.facts.listeners) {
                Ok(count) => outcome.conntrack_deleted = count,
                // A kernel without connection tracking has no such connections either.
                Err(_) if !self.plan.changes_rules() => {}
                Err(error) => {
                    outcome.note = Some(format!("{error:#}; old connections may hang until they time out"));
                }
            },
            Step::Links => {
                let netlink = Netlink::open()?;
                for item in self.plan.links.iter().filter(|item| item.remove) {
                    if let Some(link) = self.facts.link(&item.name) {
                        netlink.delete_link(link).await?;
                    }
                }
            }
            Step::Files => {
                for item in self.plan.files.iter().filter(|item| item.remove) {
                    files::remove(&self.roots.at(&item.name))?;
                }
            }
        }
        Ok(outcome)
    }

    async fn routes(&self) -> anyhow::Result<()> {
        let netlink = Netlink::open()?;
        // First, so that nobody is led into a table that has lost a part.
        if self.plan.policy_rules.iter().any(|item| item.remove) {
            netlink.delete_policy_rules().await?;
        }
        for item in self.plan.routes.iter().filter(|item| item.remove) {
            for route in self.facts.routes.iter().filter(|route| route.to_string() == item.name) {
                netlink.delete_route(route, &self.facts.links).await?;
            }
        }
        Ok(())
    }

    /// Where dead connections lead: every target of the removed rules, and all of EdgeMesh's own address unless its
    /// agent is there.
    fn targets(&self) -> Targets {
        let mut targets = self.plan.targets.clone();
        if !self.facts.processes.iter().any(|process| process.name == AGENT) {
            targets.insert((IpAddr::V4(MESH_ADDRESS), None));
        }
        targets
    }
}
