//! The periodic look at what stands: finding what others changed, and mending exactly that.

use std::time::Instant;

use tracing::{debug, warn};

use super::apply::{Backend, Family};
use super::audit::{self, Difference};
use super::detect::detect;
use super::ipset;
use super::leftovers::remove_rules;
use super::machine::Machine;
use super::plan::{FamilyPlan, Plan, Wanted, plan};
use super::reconcile::{Reconciler, RulesError};
use crate::config::IptablesBackend;

/// Every so many checks the members of the sets are compared one by one, and the back end's hint chains looked at.
const THOROUGH_EVERY: u32 = 15;
/// Sets up to this size are compared member by member; larger ones by their number of members.
const THOROUGH_MEMBERS: usize = 20_000;
/// Begins, behind the table's name, the warning about a first place that was lost.
const PLACE_LOST: &str = "another program keeps taking the first place";

impl<M: Machine> Reconciler<M> {
    /// Looks at sets, rules and routes, and mends what does not stand as applied.
    pub(super) async fn mend(&mut self, wanted: &Wanted) -> Result<(), RulesError> {
        let thorough = self.checks.is_multiple_of(THOROUGH_EVERY);
        if thorough && self.setting == IptablesBackend::Auto {
            self.follow_hints(wanted).await?;
        }
        let target = plan(wanted, self.capabilities);
        let mut mended = self.mend_sets(wanted, &target, thorough).await?;
        mended.extend(self.mend_rules(&target).await?);
        let (lost, foreign) = self.follow_routes(&target).await?;
        mended.extend(lost.iter().map(|entry| format!("missing: {entry}")));
        self.tell_obstacles(wanted, &target, &foreign).await?;
        if !mended.is_empty() {
            warn!(what = mended.join("; "), "someone changed the rules; mended");
            self.report.repairs_total += mended.len() as u64;
        }
        Ok(())
    }

    /// Writes rules anew that do not stand as planned. Where nothing in nft changed since the last look, there is
    /// nothing to read: on a node with ten thousand rules a look takes a fifth of a second.
    async fn mend_rules(&mut self, target: &Plan) -> Result<Vec<String>, RulesError> {
        let now = Instant::now();
        let generation = if self.backend == Backend::Nft { self.machine.nft_generation() } else { None };
        if generation.is_some() && generation == self.verified && !self.places.is_due(now) {
            return Ok(Vec::new());
        }
        self.verified = None;
        let mut mended = Vec::new();
        for plan in &target.families {
            let dump = self.dump(plan.family).await?;
            self.tell_unreadable(plan, &dump);
            let wording = self.wording.entry(plan.family).or_default();
            let created =
                self.created.iter().filter(|(of, _)| *of == plan.family).map(|(_, name)| *name).collect();
            let found = audit::differences(plan, &dump, wording, &created);
            if self.must_mend(plan, &found, now) {
                if let Err(error) = self.install(plan, &dump).await {
                    // What was not taken back does not count as a fight.
                    self.places.forget(plan.family);
                    return Err(error);
                }
                let family = plan.family.as_str();
                mended.extend(found.into_iter().map(|difference| format!("{family} {}", difference.what)));
            }
        }
        if mended.is_empty() {
            self.verified = generation;
        }
        Ok(mended)
    }

    /// Whether there is something to mend now. A place that somebody keeps taking is left to them for a while.
    fn must_mend(&mut self, plan: &FamilyPlan, found: &[Difference], now: Instant) -> bool {
        let mut must = found.iter().any(|difference| difference.before_us.is_none());
        for table in &plan.tables {
            let place = (plan.family, table.name);
            let warning = format!("in {} {}, {PLACE_LOST}", plan.family.as_str(), table.name);
            self.report.warnings.retain(|line| !line.starts_with(&warning));
            let mut lost = found.iter().filter(|difference| difference.table == table.name);
            let Some(rule) = lost.find_map(|difference| difference.before_us.as_ref()) else {
                self.places.stands(place);
                continue;
            };
            if self.places.retake(place, now) {
                must = true;
            } else if let Some((_, pause)) = self.places.lost().find(|(lost, _)| *lost == place) {
                let pause = pause.as_secs();
                let line =
                    format!("{warning}: `{rule}` stands there; it is taken back every {pause} s at most");
                // Not through `warn`: the line changes with the pause, and the log has said that it was mended.
                debug!("{line}");
                self.report.warnings.push(line);
            }
        }
        must
    }

    /// Loads sets anew that are missing or have other members than they should.
    async fn mend_sets(
        &self,
        wanted: &Wanted,
        target: &Plan,
        thorough: bool,
    ) -> Result<Vec<String>, RulesError> {
        let planned: Vec<ipset::Set> = target.families.iter().flat_map(FamilyPlan::needed_sets).collect();
        if planned.is_empty() {
            return Ok(Vec::new());
        }
        let heads = ipset::heads(&self.machine.ipset_list().await?.ok_or(RulesError::IpsetGone)?);
        let saved = if thorough && wanted.served.len() <= THOROUGH_MEMBERS {
            self.machine.ipset_save().await?
        } else {
            None
        };
        let mut script = String::new();
        let mut mended = Vec::new();
        for set in planned {
            let members = || set.members(wanted);
            let good = match (heads.get(set.name), &saved) {
                (None, _) => false,
                (Some(head), _) if head.entries != set.count(wanted) => false,
                (Some(_), None) => true,
                (Some(_), Some(saved)) => {
                    let saved = ipset::saved_members(saved, set.name);
                    members().iter().all(|member| saved.contains(member.as_str()))
                }
            };
            if !good {
                set.full_load(&members(), &heads, &mut script);
                mended.push(format!("ip set {} was changed", set.name));
            }
        }
        if !script.is_empty() {
            self.machine.ipset_restore(&script).await?;
        }
        Ok(mended)
    }

    /// Moves to the other back end if its hint chains have appeared there since the start.
    async fn follow_hints(&mut self, wanted: &Wanted) -> Result<(), RulesError> {
        let Ok(found) = detect(&self.machine, self.setting).await else { return Ok(()) };
        if found.backend == self.backend {
            return Ok(());
        }
        warn!(from = self.backend.as_str(), to = found.backend.as_str(), why = found.why, "moving the rules");
        let old = std::mem::replace(&mut self.backend, found.backend);
        self.wording.clear();
        let target = plan(wanted, self.capabilities);
        for plan in &target.families {
            let dump = self.dump(plan.family).await?;
            self.install(plan, &dump).await?;
        }
        for family in Family::ALL {
            remove_rules(&self.machine, old, family, &self.created).await?;
        }
        found.backend.as_str().clone_into(&mut self.report.backend);
        Ok(())
    }
}
