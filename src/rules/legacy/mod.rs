//! What older EdgeMesh versions, and this program itself, leave on a node, and how it goes without a trace of anybody
//! else's being touched.
//!
//! `shapes` is the table of versions, `pattern` compares one rule with it. `read` turns the machine into `facts`;
//! `scan` (with `table` for rules and `items` for the rest) turns facts into a `plan`, purely; `backup` and `remove`
//! carry it out. `report` is the outcome as the public contract has it. Nothing here decides what this program
//! installs: that is the business of the parent module.

mod backup;
pub(super) mod conntrack;
mod facts;
mod files;
mod items;
mod links;
mod netns;
mod pattern;
mod plan;
mod read;
mod remove;
mod report;
mod scan;
pub mod shapes;
mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};

pub use backup::default_folder;
pub use facts::{Facts, Process, Ruleset, Unreadable};
pub use netns::{Netns, within};
pub use plan::{Options, Plan};
pub use read::{Roots, facts};
pub use remove::{Context, Outcome, Step, script, steps};
pub use report::{ItemReport, KeptReport, Report, RulesetReport, TableReport};
pub(in crate::rules) use scan::{K3S, KUBE_PROXY};
pub use scan::{live, plan};

use crate::rules::apply::Firewall;
use crate::rules::names;

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What goes and what stays.
    pub options: Options,
    /// Change nothing.
    pub dry_run: bool,
    /// Where the backup goes.
    pub backup: PathBuf,
    /// Also look into the network namespaces of pods.
    pub pod_netns: bool,
}

/// One network namespace's share of a cleanup.
struct Work {
    /// `None` for the caller's own.
    netns: Option<Netns>,
    facts: Facts,
    plan: Plan,
}

/// How often a plan is made anew when the rules change between reading and removing.
const TRIES: usize = 3;
/// The pause before that.
const PAUSE: Duration = Duration::from_millis(200);

/// Removes what older versions and this program left in this network namespace and, if asked, in those of pods. What
/// is anybody else's stays as it is. Fails with a sentence that says how far it came; run again, it goes on from
/// there.
pub async fn clean<F>(firewall: &F, roots: &Roots, request: &Request) -> anyhow::Result<Report>
where
    F: Firewall + Clone + 'static,
{
    let mut report = Report { dry_run: request.dry_run, ..Report::default() };
    let facts = read::facts(firewall, roots, &request.options).await?;
    if facts.rulesets.is_empty() {
        report.notes.push("no iptables programs are installed, so rules could not be looked for".to_owned());
    }
    let plan = scan::plan(&facts, &request.options);
    let mut work = vec![Work { netns: None, facts, plan }];
    if request.pod_netns {
        for netns in netns::others(roots) {
            match look_into(firewall, roots, request, netns.clone()).await {
                Ok(found) => work.extend(found),
                // A pod may end at any time; and a namespace without rules support has no rules.
                Err(error) => report.notes.push(format!("{}: {error:#}", netns.path.display())),
            }
        }
    }
    for part in &work {
        report.add(&part.plan, part.netns.as_ref().map(|netns| netns.label.as_str()));
    }
    if request.dry_run {
        return Ok(report);
    }
    let broken = if work.iter().any(|part| part.plan.changes()) {
        let backup = back_up(roots, request, &work)?;
        if let Some(backup) = &backup {
            report.backup = Some(backup.folder().display().to_string());
            report.restore = backup.restore_command();
        }
        backup.map(|backup| {
            format!(
                "the removal broke off; the backup is in {}; run cleanup again",
                backup.folder().display()
            )
        })
    } else {
        None
    };
    let broken = broken.unwrap_or_else(|| "the removal broke off; run cleanup again".to_owned());
    for Work { netns, facts, plan } in work {
        let outcome = match netns {
            None => carry_out(firewall, roots, &request.options, facts, plan).await,
            Some(netns) => {
                let (firewall, roots, options) = (firewall.clone(), roots.clone(), pod_options(request));
                let inside = move || async move { carry_out(&firewall, &roots, &options, facts, plan).await };
                within(&netns.path, inside).await.and_then(std::convert::identity)
            }
        };
        let outcomes = outcome.with_context(|| broken.clone())?;
        for outcome in outcomes {
            report.conntrack_deleted += outcome.conntrack_deleted;
            report.notes.extend(outcome.note);
        }
    }
    Ok(report)
}

/// What older versions left here, one line each, for the agent's start and for `check`.
pub fn stale(facts: &Facts, options: &Options) -> Vec<String> {
    // As if forced: whether it is alive is for `cleanup` to find out.
    let options = Options { force: true, ..options.clone() };
    let mut lines = Vec::new();
    for ruleset in &facts.rulesets {
        let name = format!("{} {}", ruleset.backend.as_str(), ruleset.family.as_str());
        let facts = Facts { rulesets: vec![ruleset.clone()], ..Facts::default() };
        let plan = scan::plan(&facts, &options);
        let versions: Vec<&String> =
            plan.versions.iter().filter(|version| *version != "edgesplice").collect();
        let chains: Vec<&str> = plan
            .tables()
            .flat_map(|table| &table.chains)
            .map(String::as_str)
            .filter(|chain| !is_own(chain))
            .collect();
        if !chains.is_empty() {
            let versions = versions.iter().map(|version| version.as_str()).collect::<Vec<_>>().join("; ");
            let chains = chains.join(", ");
            lines.push(format!("rules of {versions} are still installed ({name}: {chains})"));
        }
    }
    let mut theirs = facts.clone();
    theirs.routes.retain(|route| route.protocol != names::ROUTE_PROTOCOL);
    let plan = scan::plan(&theirs, &options);
    for (kind, items) in [("link", &plan.links), ("route", &plan.routes), ("file", &plan.files)] {
        let stale = items.iter().filter(|item| item.remove);
        lines.extend(stale.map(|item| format!("{kind} {} is still there: {}", item.name, item.reason)));
    }
    let dead = plan.name_servers.iter().filter(|(_, item)| item.remove);
    lines.extend(dead.map(|(_, item)| format!("in {}, {}", item.name, item.reason)));
    lines
}

fn is_own(chain: &str) -> bool {
    let own = shapes::FOOTPRINTS.iter().filter(|footprint| footprint.place == shapes::Place::Own);
    own.flat_map(|footprint| footprint.chains).any(|shape| shape.name == chain)
}

fn pod_options(request: &Request) -> Options {
    Options { pod: true, ..request.options.clone() }
}

/// Reads and judges another network namespace; `None` if there is nothing to say about it.
async fn look_into<F>(
    firewall: &F,
    roots: &Roots,
    request: &Request,
    netns: Netns,
) -> anyhow::Result<Option<Work>>
where
    F: Firewall + Clone + 'static,
{
    let (firewall, roots, options) = (firewall.clone(), roots.clone(), pod_options(request));
    let inside = move || async move {
        let facts = read::facts(&firewall, &roots, &options).await?;
        let plan = scan::plan(&facts, &options);
        anyhow::Ok((facts, plan))
    };
    let (facts, plan) = within(&netns.path, inside).await??;
    let found = plan.changes() || plan.blocked();
    Ok(found.then_some(Work { netns: Some(netns), facts, plan }))
}

/// Writes the backup of everything that is about to change; `None` if that is neither rules nor files.
fn back_up(roots: &Roots, request: &Request, work: &[Work]) -> anyhow::Result<Option<backup::Backup>> {
    let files = |plan: &Plan| {
        plan.files.iter().chain(plan.name_servers.iter().map(|(_, item)| item)).any(|item| item.remove)
    };
    if !work.iter().any(|part| part.plan.changes_rules() || files(&part.plan)) {
        return Ok(None);
    }
    let mut backup = backup::Backup::create(&request.backup)?;
    for part in work {
        if part.plan.changes_rules() {
            backup.rules(&part.facts, &part.plan, part.netns.as_ref())?;
        }
        backup.files(roots, &part.plan)?;
    }
    Ok(Some(backup))
}

/// Removes and looks again, until a scan finds nothing more to remove.
async fn carry_out<F: Firewall>(
    firewall: &F,
    roots: &Roots,
    options: &Options,
    mut facts: Facts,
    mut plan: Plan,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for left in (0..TRIES).rev() {
        let mut failure = None;
        let context = Context { firewall, roots, facts: &facts, plan: &plan };
        for step in steps(&plan) {
            if options.pod && !matches!(step, Step::Rules { .. }) {
                continue;
            }
            match context.execute(&step).await {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let before = plan.rulesets.clone();
        facts = read::facts(firewall, roots, options).await?;
        plan = scan::plan(&facts, options);
        match failure {
            None if !plan.changes_rules() => return Ok(outcomes),
            // The same step on the same rules would fail in the same way.
            Some(error) if left == 0 || before == plan.rulesets => return Err(error),
            None if left == 0 => {
                bail!("rules come back as soon as they are removed: something is still writing them")
            }
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(outcomes)
}
