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

use super::{instance, offline};

/// What a look at the machine brought.
#[derive(Clone, Debug, Default)]
pub struct Checkup {
    /// The packet filter that the agent would use, and why; empty if there is none.
    pub packet_filter: String,
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
        let mut ranges = settings.intercept.service_cidrs.clone();
        if settings.source.manifests.is_some() {
            match offline::begin(settings).await {
                Ok((_, found)) => ranges = found,
                Err(error) => findings.push(finding(
                    "source-manifests",
                    Severity::Problem,
                    format!("{error:#}"),
                    "mend the file; `edgesplice run` refuses to start with it",
                )),
            }
        }
        let rules = rules::checkup(&settings.intercept, &ranges).await;
        findings.extend(rules.findings.into_iter().map(from_rules));
        findings.extend(dns::probe::findings(&settings.dns, &ranges, instance::holder().is_some()).await);
        findings.extend(marks::check());
        findings.extend(ports::check(settings));
        findings.extend(disk::check(&settings.state_dir));
        findings.extend(clock::check().await);
        findings.extend(reach::check(&settings.source).await);
        findings.sort_by_key(|finding| finding.severity);
        Ok(Checkup { packet_filter: rules.packet_filter, findings })
    })
}

fn from_rules(found: rules::Finding) -> Finding {
    let severity = match found.severity {
        rules::Severity::Problem => Severity::Problem,
        rules::Severity::Warning => Severity::Warning,
        rules::Severity::Info => Severity::Info,
    };
    finding(found.id, severity, found.what, found.mend)
}
