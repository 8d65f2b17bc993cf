//! What would stop the agent on this machine, or make it work wrongly: everything that `check` looks at.
//!
//! The packet filter and the kernel are the business of `rules`; here are the rest of the machine and the order of
//! the result. Nothing here changes anything, and nothing is printed.

mod clock;
mod disk;
mod marks;
mod ports;
mod reach;

use crate::config::Settings;
use crate::dns;
use crate::obs::api::{Finding, Severity};
use crate::rules;

use super::{control, instance, neighbours, offline};

pub use disk::refuse_impossible;

/// What a look at the machine brought.
#[derive(Clone, Debug, Default)]
pub struct Checkup {
    /// The packet filter that the agent would use, and why; empty if there is none.
    pub packet_filter: String,
    /// What is as it is on most nodes, and what to do if it is to be otherwise; each a line.
    pub notes: Vec<String>,
    /// What was found, the worst first; nothing on a healthy node.
    pub findings: Vec<Finding>,
}

fn finding(id: &str, severity: Severity, what: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { id: id.to_owned(), severity, what: what.into(), mend: mend.into() }
}

/// Looks at this machine. Fails only if it cannot begin.
pub fn check(settings: &Settings) -> anyhow::Result<Checkup> {
    offline::runtime()?.block_on(async {
        let mut findings = Vec::new();
        let mut known = rules::Known {
            ranges: settings.intercept.service_cidrs.clone(),
            dns: neighbours::own_servers(settings),
            ..rules::Known::default()
        };
        if settings.source.manifests.is_some() {
            match offline::begin(settings).await {
                Ok((snapshot, found)) => {
                    known.alone = Some(control::skipped(&snapshot));
                    known.ranges = found;
                }
                Err(error) => findings.push(finding(
                    "source-manifests",
                    Severity::Problem,
                    format!("{error:#}"),
                    "mend the file; `edgesplice run` refuses to start with it",
                )),
            }
        }
        let rules = rules::checkup(&settings.intercept, &known).await;
        findings.extend(rules.findings.into_iter().map(from_rules));
        let names = dns::probe::findings(&settings.dns, &known.ranges, instance::holder().is_some()).await;
        let (notes, names): (Vec<Finding>, _) = names.into_iter().partition(is_usual);
        findings.extend(names);
        findings.extend(marks::check());
        findings.extend(ports::check(settings));
        findings.extend(disk::check(&settings.state_dir));
        findings.extend(clock::check().await);
        findings.extend(reach::check(&settings.source).await);
        findings.sort_by_key(|finding| finding.severity);
        let notes = notes.into_iter().map(|note| format!("{}; {}", note.what, note.mend)).collect();
        Ok(Checkup { packet_filter: rules.packet_filter, notes, findings })
    })
}

/// Whether it is no fault but a choice. Processes of the host itself find the cluster's names only where somebody has
/// arranged for it, on nodes of every Kubernetes; pods do without.
fn is_usual(finding: &Finding) -> bool {
    finding.severity == Severity::Info && finding.id.starts_with("dns-")
}

fn from_rules(found: rules::Finding) -> Finding {
    let severity = match found.severity {
        rules::Severity::Problem => Severity::Problem,
        rules::Severity::Warning => Severity::Warning,
        rules::Severity::Info => Severity::Info,
    };
    finding(found.id, severity, found.what, found.mend)
}
