//! Brings the node to what is wanted, keeps it there, and takes everything away again.
//!
//! Order, so that no packet meets half of the work: sets, policy rules, rules, and last the routes that lead host
//! processes into the ranges; at the end those routes first, then the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::ordmap;
use imbl::ordset::DiffItem;
use tracing::{debug, info, warn};

use super::apply::{Backend, Family, ToolError};
use super::audit::Wording;
use super::detect::{StartError, detect};
use super::dump::DumpError;
use super::ipset;
use super::leftovers::{remove_all, remove_rules, remove_sets};
use super::machine::{Lacks, Machine};
use super::places::Places;
use super::plan::{Capabilities, FamilyPlan, Plan, Wanted, plan};
use super::routes::{Entry, RouteError};
use super::scratch::QUEUE;
use crate::config::{ConnectMode, InterceptSettings, IptablesBackend};
use crate::model::{Frontend, Protocol};
use crate::obs::api::RulesReport;
use crate::obs::meter::Histogram;

/// A check may cost this share of the time between two checks.
const CHECK_SHARE: u32 = 40;
/// The longest time between two checks: whatever is tampered with is to be mended within five seconds, and on a busy
/// board the mending itself takes one or two.
const LONGEST_PERIOD: Duration = Duration::from_secs(3);

/// Why sets are given up before they were tried.
const NO_IPSET: &str = "the program `ipset` is not installed, or the kernel has no sets";
/// What follows where `intercept.connect` cannot be what it was told to be.
const NOT_HELD: &str = "intercept.connect is before-accept, but backends are dialled after accept";
/// What follows from a kernel without policy routing.
const NO_POLICY_ROUTING: &str = "the kernel has no policy routing: UDP services are refused, pods on a bridge may see a timeout instead of \
     a refusal, and addresses in a captured range that are left alone need a route of their own";
/// What follows for external frontends.
const NO_EXTERNAL: &str = "without ip sets, node ports, external addresses and load balancer addresses are not served; install the package `ipset`";

/// The rules could not be brought to what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Its output makes no sense.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A route or policy rule could not be handled.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// An empty table could not be removed.
    #[error("removing the empty nft table {family} {table}: {source}")]
    Table {
        /// The table.
        table: String,
        /// `ipv4` or `ipv6`.
        family: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A native rule hides our jump.
    #[error(
        "a jump of ours cannot be removed: a native nft rule in {} {table} stands before it and hides it from \
         iptables; it leads to an empty chain now and does nothing; find the rule with `nft -a list table {} {table}`, \
         move it to a table of its own, and run `edgesplice cleanup` ({source})",
        .family.as_str(), .family.nft()
    )]
    Hidden {
        /// The family.
        family: Family,
        /// The table.
        table: String,
        /// What the program said.
        source: Box<ToolError>,
    },
    /// The back end's programs were there, and are gone.
    #[error("`iptables-{0}-save` has been removed from this machine; install the package `iptables`")]
    ProgramsGone(&'static str),
    /// The same for sets.
    #[error("`ipset` has been removed from this machine; install the package `ipset`")]
    IpsetGone,
}

/// What is believed to be there, because it could be neither tried nor installed yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unproven {
    pub(super) queues: bool,
    pub(super) marks: bool,
}

/// Owner of everything that this program has in the packet filter of one machine.
#[derive(Debug)]
pub struct Reconciler<M> {
    pub(super) machine: M,
    pub(super) setting: IptablesBackend,
    sync_period: Duration,
    pub(super) backend: Backend,
    pub(super) capabilities: Capabilities,
    /// Rules with sets have been installed once, so that a later failure is not for want of sets.
    sets_proven: bool,
    /// Whether connections can be marked has been looked at.
    pub(super) probed_marks: bool,
    pub(super) unproven: Unproven,
    /// What is in force; `None` before the first success and after a failure, when everything is done anew.
    wanted: Option<Wanted>,
    pub(super) wording: BTreeMap<Family, Wording>,
    pub(super) created: BTreeSet<(Family, &'static str)>,
    /// The nft generation at which the rules were last seen to stand as planned.
    pub(super) verified: Option<u32>,
    pub(super) checks: u32,
    /// Fights for the first place.
    pub(super) places: Places,
    cost: Duration,
    times: Arc<Histogram>,
    /// The routes and policy rules that were last brought about.
    pub(super) routes: BTreeSet<Entry>,
    pub(super) report: RulesReport,
}

impl<M: Machine> Reconciler<M> {
    /// Looks at the machine; changes nothing.
    pub async fn new(machine: M, settings: &InterceptSettings) -> Result<Self, StartError> {
        let found = detect(&machine, settings.iptables_backend).await?;
        info!(backend = found.backend.as_str(), why = found.why, ipv6 = found.v6, "packet filter");
        let mut report = RulesReport { backend: found.backend.as_str().to_owned(), ..RulesReport::default() };
        if !found.v6 {
            report.warnings.push(format!("serving IPv4 only: {}", found.no_v6));
        }
        let ipset = matches!(machine.ipset_list().await, Ok(Some(_)));
        let families: &[Family] = if found.v6 { &Family::ALL } else { &[Family::V4] };
        let policy_routing = machine.has_policy_routing(families).await;
        let mut this = Self {
            machine,
            setting: settings.iptables_backend,
            sync_period: settings.sync_period,
            backend: found.backend,
            capabilities: Capabilities { v6: found.v6, policy_routing, ..Capabilities::ALL },
            sets_proven: false,
            probed_marks: false,
            unproven: Unproven::default(),
            wanted: None,
            wording: BTreeMap::new(),
            created: BTreeSet::new(),
            verified: None,
            checks: 0,
            places: Places::default(),
            cost: Duration::ZERO,
            times: Arc::default(),
            routes: BTreeSet::new(),
            report,
        };
        if !ipset {
            this.give_up_sets(NO_IPSET);
        }
        if settings.connect == ConnectMode::BeforeAccept {
            match this.machine.lacks(found.backend, found.v6, &QUEUE).await {
                Lacks::Something(why) => this.give_up_queues(&why),
                _ if !ipset => this.warn(format!("{NOT_HELD} (that takes ip sets)")),
                lacks => this.unproven.queues = lacks == Lacks::Unknown,
            }
        }
        if !policy_routing {
            this.warn(NO_POLICY_ROUTING.to_owned());
        }
        Ok(this)
    }

    /// Brings the node to `wanted`. Where only the served frontends changed, only sets are touched. What a killed
    /// agent left is taken over in the same step that replaces it.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<(), RulesError> {
        let started = Instant::now();
        let result = self.bring_about(wanted).await;
        let took = started.elapsed();
        self.times.observe(took);
        debug!(?took, ok = result.is_ok(), "rules applied");
        self.conclude(result)
    }

    /// Looks whether everything stands as applied, and mends what does not. Counts what it mended.
    pub async fn check(&mut self) -> Result<(), RulesError> {
        let Some(wanted) = self.wanted.clone() else { return Ok(()) };
        let started = Instant::now();
        self.checks = self.checks.wrapping_add(1);
        let result = self.mend(&wanted).await;
        self.cost = started.elapsed();
        self.conclude(result)
    }

    /// How long to wait until the next check: the configured period, stretched where reading the rules is slow
    /// because the node has very many.
    pub fn period(&self) -> Duration {
        let longest = LONGEST_PERIOD.max(self.sync_period);
        (self.cost * CHECK_SHARE).clamp(self.sync_period, longest)
    }

    /// Removes everything of ours, so that the machine is as if the agent had never been there.
    pub async fn withdraw(&mut self) -> Result<(), RulesError> {
        let wanted = self.wanted.take().unwrap_or_default();
        self.report.installed = false;
        let result = remove_all(&self.machine, &self.created).await;
        self.forget_flows(wanted.served.iter().chain(wanted.external.keys()));
        if result.is_ok() {
            self.created.clear();
            self.wording.clear();
            self.routes.clear();
        }
        if let Err(error) = &result {
            self.report.last_error = error.to_string();
        }
        result
    }

    /// Forgets what is in force, because somebody else may have written: the next [`Self::apply`] does everything anew.
    pub fn distrust(&mut self) {
        self.wanted = None;
        self.verified = None;
        self.report.installed = false;
    }

    /// The state for `status`.
    pub fn report(&self) -> RulesReport {
        self.report.clone()
    }

    /// How long it took each time to bring the rules to what was wanted; stays valid while this works on.
    pub fn times(&self) -> Arc<Histogram> {
        Arc::clone(&self.times)
    }

    /// What this machine can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The back end that was chosen.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    fn conclude(&mut self, result: Result<(), RulesError>) -> Result<(), RulesError> {
        self.report.installed = self.wanted.as_ref().is_some_and(|wanted| !wanted.ranges.is_empty());
        self.report.refuse_before_accept = self.capabilities.ipset;
        self.report.keeps_source = self.wanted.as_ref().is_some_and(|wanted| self.keeps_source(wanted));
        self.report.failures_total += u64::from(result.is_err());
        self.report.last_error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        result
    }

    pub(super) fn give_up_queues(&mut self, why: &str) {
        self.capabilities.queues = false;
        self.warn(format!("{NOT_HELD} (packets cannot be held: {why})"));
    }

    pub(super) fn warn(&mut self, text: String) {
        if !self.report.warnings.contains(&text) {
            warn!("{text}");
            self.report.warnings.push(text);
        }
    }

    async fn bring_about(&mut self, wanted: &Wanted) -> Result<(), RulesError> {
        self.probe_marks(wanted).await;
        let old = self.wanted.take();
        let fresh = old.is_none();
        loop {
            let before = self.capabilities;
            let target = plan(wanted, before);
            let standing = old.as_ref().map(|old| plan(old, before));
            let result = self.load_and_install(wanted, old.as_ref(), &target, standing.as_ref()).await;
            match result {
                // The machine turned out to have less than was thought: once more, with a humbler plan.
                Ok(()) if self.capabilities != before => {}
                Err(RulesError::Tool(error @ ToolError::Failed { .. }))
                    if !error.is_busy() && self.give_up_unproven(wanted, &error.to_string()) => {}
                Err(RulesError::Tool(error @ ToolError::Failed { .. }))
                    if before.source_sets
                        && target.families.iter().any(|plan| plan.guarded)
                        && !standing.iter().flat_map(|plan| &plan.families).any(|plan| plan.guarded)
                        && !error.is_busy() =>
                {
                    self.capabilities.source_sets = false;
                    self.warn(format!(
                        "sets of the type hash:ip,port,net cannot be used: who is not in a load balancer's source \
                         ranges is reset after the connect instead of dropped before it ({error})"
                    ));
                }
                Err(RulesError::Tool(error @ ToolError::Failed { .. }))
                    if before.ipset && !self.sets_proven && !error.is_busy() =>
                {
                    self.give_up_sets(&error.to_string());
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        self.sets_proven |= self.capabilities.ipset;
        self.unproven.queues &= wanted.queues == 0;
        self.unproven.marks &= !self.keeps_source(wanted);
        if !self.capabilities.ipset && !wanted.external.is_empty() {
            self.warn(NO_EXTERNAL.to_owned());
        }
        if let Some(old) = &old {
            self.forget_changed(old, wanted);
        }
        if fresh {
            self.sweep_other_backend().await;
        }
        self.wanted = Some(wanted.clone());
        Ok(())
    }

    /// Flows to frontends that are served no more count as known, and known packets are not refused. Those of host
    /// processes to frontends that were refused so far are remembered with the translation of their refusal.
    fn forget_changed(&self, old: &Wanted, new: &Wanted) {
        let changed = old.served.diff(&new.served).map(|item| match item {
            DiffItem::Add(frontend) | DiffItem::Remove(frontend) => frontend,
        });
        let doors = old.external.diff(&new.external).map(|item| match item {
            ordmap::DiffItem::Add(at, _)
            | ordmap::DiffItem::Remove(at, _)
            | ordmap::DiffItem::Update { new: (at, _), .. } => at,
        });
        self.forget_flows(changed.chain(doors));
    }

    /// Ends the kernel's memory of UDP flows to `frontends`, so that their next packets are treated as new ones.
    fn forget_flows<'a>(&self, frontends: impl Iterator<Item = &'a Frontend>) {
        let udp: BTreeSet<Frontend> = frontends.filter(|f| f.protocol == Protocol::Udp).copied().collect();
        if udp.is_empty() {
            return;
        }
        match self.machine.forget_flows(&udp) {
            Ok(count) => debug!(count, "forgot UDP flows"),
            Err(error) => warn!(%error, "UDP flows of services that are gone could not be forgotten"),
        }
    }

    fn give_up_sets(&mut self, why: &str) {
        self.capabilities.ipset = false;
        self.warn(format!(
            "ip sets cannot be used: what is not served is reset after the connect instead of refused before it ({why})"
        ));
    }

    async fn load_and_install(
        &mut self,
        wanted: &Wanted,
        old: Option<&Wanted>,
        target: &Plan,
        standing: Option<&Plan>,
    ) -> Result<(), RulesError> {
        // What a set will have marked must find its way at once.
        let delivered = |plan: &Plan| {
            plan.entries().into_iter().filter(|entry| !entry.is_to_range()).collect::<BTreeSet<Entry>>()
        };
        if standing.is_some_and(|standing| !delivered(target).is_subset(&delivered(standing))) {
            self.add_entries(target, |entry| !entry.is_to_range()).await?;
        }
        let mut spare_sets = true;
        if self.capabilities.ipset && !target.families.is_empty() {
            spare_sets = self.load_sets(wanted, old, target, standing).await?;
            if !self.capabilities.ipset {
                return Ok(());
            }
        }
        if standing == Some(target) {
            return Ok(());
        }
        let same = standing.is_some_and(|standing| {
            let pair = |(one, other): (&FamilyPlan, &FamilyPlan)| one.has_rules_of(other);
            standing.families.len() == target.families.len()
                && standing.families.iter().zip(&target.families).all(pair)
        });
        if same {
            return self.follow_routes(target).await.map(drop);
        }
        self.add_entries(target, |entry| !entry.is_to_range()).await?;
        let dumps = self.dumps(target).await?;
        for (plan, dump) in target.families.iter().zip(&dumps) {
            self.write(plan, dump).await?;
        }
        for (plan, now) in target.families.iter().zip(&self.dumps(target).await?) {
            self.read_back(plan, now);
        }
        for family in Family::ALL {
            if target.family(family).is_none() && (family == Family::V4 || self.capabilities.v6) {
                remove_rules(&self.machine, self.backend, family, &self.created).await?;
                self.wording.remove(&family);
            }
        }
        // Only now is taken away what is not needed: what is served must not be without a route while its range changes.
        self.follow_routes(target).await?;
        if !spare_sets {
            return Ok(());
        }
        let needed = needed_sets(target);
        remove_sets(&self.machine, |name| !needed.contains(&name)).await
    }

    /// Brings the sets to what is wanted. False if there are certainly none that the plan does not need.
    async fn load_sets(
        &mut self,
        wanted: &Wanted,
        old: Option<&Wanted>,
        target: &Plan,
        standing: Option<&Plan>,
    ) -> Result<bool, RulesError> {
        let mut script = String::new();
        let mut anew = Vec::new();
        for plan in &target.families {
            let standing = standing.and_then(|standing| standing.family(plan.family));
            // All sets of the plan stand: what changes is their members.
            match old.filter(|_| standing.is_some_and(|standing| standing.guarded || !plan.guarded)) {
                Some(old) => ipset::changes(plan.family, old, wanted, plan.guarded, &mut script),
                None => anew.push(plan.family),
            }
        }
        if !script.is_empty()
            && let Err(error) = self.machine.ipset_restore(&script).await
        {
            debug!(%error, "the change of the sets failed; loading them anew");
            anew = target.families.iter().map(|plan| plan.family).collect();
        }
        if anew.is_empty() {
            return Ok(true);
        }
        let Some(text) = self.machine.ipset_list().await? else {
            if self.sets_proven {
                return Err(RulesError::IpsetGone);
            }
            self.give_up_sets(NO_IPSET);
            return Ok(true);
        };
        let heads = ipset::heads(&text);
        let mut script = String::new();
        let anew = target.families.iter().filter(|plan| anew.contains(&plan.family));
        for set in anew.flat_map(FamilyPlan::needed_sets) {
            set.full_load(&set.members(wanted), &heads, &mut script);
        }
        self.machine.ipset_restore(&script).await?;
        let needed = needed_sets(target);
        Ok(heads.keys().any(|name| !needed.contains(&name.as_str())))
    }

    /// Removes what an earlier run left in the other back end. A fault there is no reason not to serve.
    async fn sweep_other_backend(&mut self) {
        for backend in Backend::ALL.into_iter().filter(|backend| *backend != self.backend) {
            for family in Family::ALL {
                match remove_rules(&self.machine, backend, family, &BTreeSet::new()).await {
                    Ok(true) => info!(backend = backend.as_str(), "removed rules of an earlier run"),
                    Ok(false) => {}
                    Err(error) => {
                        debug!(backend = backend.as_str(), %error, "the other back end cannot be read");
                    }
                }
            }
        }
    }
}

fn needed_sets(target: &Plan) -> Vec<&'static str> {
    target.families.iter().flat_map(FamilyPlan::needed_sets).map(|set| set.name).collect()
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
