//! Reading and writing one family's rules on behalf of the reconciler.

use std::collections::BTreeSet;

use futures_util::future::try_join_all;

use super::apply::{Backend, Family};
use super::audit;
use super::dump::Dump;
use super::leftovers::read;
use super::machine::Machine;
use super::names::CREATED_CHAIN;
use super::peek::{self, UNREADABLE};
use super::plan::{FamilyPlan, Plan};
use super::reconcile::{Reconciler, RulesError};
use super::render;

impl<M: Machine> Reconciler<M> {
    pub(super) async fn dump(&self, family: Family) -> Result<Dump, RulesError> {
        let dump = read(&self.machine, self.backend, family).await?;
        dump.ok_or(RulesError::ProgramsGone(self.backend.as_str()))
    }

    /// The rules of each of the plan's families, asked for at the same time.
    pub(super) async fn dumps(&self, target: &Plan) -> Result<Vec<Dump>, RulesError> {
        try_join_all(target.families.iter().map(|plan| self.dump(plan.family))).await
    }

    /// Keeps the warnings about a family's tables that cannot be read up to date.
    pub(super) fn tell_unreadable(&mut self, plan: &FamilyPlan, dump: &Dump) {
        let ours = |name: &&String| plan.tables.iter().any(|table| table.name == name.as_str());
        let now: Vec<String> = dump
            .unreadable
            .iter()
            .filter(ours)
            .map(|table| peek::warning(plan.family, table, &dump.hidden))
            .collect();
        let start = format!("{UNREADABLE} {} ", plan.family.as_str());
        self.report.warnings.retain(|line| !line.starts_with(&start) || now.contains(line));
        for line in now {
            self.warn(line);
        }
    }

    /// Writes one family's rules and reads back how the machine words them.
    pub(super) async fn install(&mut self, plan: &FamilyPlan, dump: &Dump) -> Result<(), RulesError> {
        self.write(plan, dump).await?;
        let now = self.dump(plan.family).await?;
        self.read_back(plan, &now);
        Ok(())
    }

    pub(super) async fn write(&mut self, plan: &FamilyPlan, dump: &Dump) -> Result<(), RulesError> {
        let family = plan.family;
        self.created.extend(self.creates(plan, dump).into_iter().map(|table| (family, table)));
        self.verified = None;
        let script = render::install(plan, dump, &self.created_in(family));
        Ok(self.machine.restore(self.backend, family, &script).await?)
    }

    /// The tables of `plan` that exist only because of this program, or will, and so bear its mark. Legacy tables come with
    /// the kernel.
    fn creates(&self, plan: &FamilyPlan, dump: &Dump) -> Vec<&'static str> {
        let ours = |name: &&str| dump.table(name).is_none_or(|now| now.has_chain(CREATED_CHAIN));
        let names = plan.tables.iter().map(|table| table.name).filter(ours);
        if self.backend == Backend::Nft { names.collect() } else { Vec::new() }
    }

    /// What [`Self::apply`] would have standing now, as `iptables-save` prints it: one text for each family. Changes
    /// nothing.
    pub async fn preview(&self, target: &Plan) -> Result<Vec<(Family, String)>, RulesError> {
        let dumps = self.dumps(target).await?;
        let created = target.families.iter().zip(&dumps);
        let created = created
            .flat_map(|(plan, dump)| self.creates(plan, dump).into_iter().map(|table| (plan.family, table)));
        Ok(render::save_form(target, &created.collect()))
    }

    pub(super) fn read_back(&mut self, plan: &FamilyPlan, now: &Dump) {
        self.tell_unreadable(plan, now);
        self.wording.insert(plan.family, audit::wording(plan, now));
    }

    fn created_in(&self, family: Family) -> BTreeSet<&'static str> {
        self.created.iter().filter(|(of, _)| *of == family).map(|(_, table)| *table).collect()
    }
}
