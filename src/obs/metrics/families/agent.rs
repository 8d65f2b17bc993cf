//! The agent itself, its source and its rules.

use super::super::encode::{Family, counter, gauge, histogram, info};
use super::super::figures::Scrape;
use crate::obs::api::{BackendReport, ServiceReport};
use crate::obs::{COMMIT, VERSION};

/// Every state of a source, so that one series each can say which one holds.
const SOURCE_STATES: [&str; 4] = ["synced", "cached", "stale", "error"];
/// Every state of a backend.
const BACKEND_STATES: [&str; 4] = ["ready", "ejected", "draining", "unreachable"];

/// Endpoints in `state`.
fn in_state(s: &Scrape, state: &str) -> usize {
    let backends = s.status.services.iter().flat_map(|service| &service.backends);
    backends.filter(|b: &&BackendReport| b.state == state).count()
}

/// Whether clients on this node are refused though the service has endpoints.
fn is_stranded(service: &ServiceReport) -> bool {
    !service.backends.is_empty() && service.backends.iter().all(|b| b.eligible == Some(false))
}

pub(super) const AGENT: &[Family] = &[
    info("build", &["version", "commit"], "What was built", |_, out| out.info(&[VERSION, COMMIT])),
    gauge("ready", &[], "Whether every readiness condition holds", |s, out| out.one(s.status.ready)),
    gauge("condition", &["condition"], "Whether a readiness condition holds", |s, out| {
        s.status.conditions.iter().try_for_each(|c| out.put(&[&c.name], c.ok))
    }),
    gauge("warnings", &[], "Warnings that `status` shows", |s, out| out.one(s.status.warnings.len())),
    counter(
        "selfprobes",
        &["result"],
        "Probes of the own acceptor by a connection to a served frontend, by what became of them",
        |s, out| out.counts(&s.figures.probes),
    ),
    histogram("selfprobe_duration_seconds", &[], "Time until the own acceptor answered a probe", |s, out| {
        out.histogram(&s.figures.probe_times)
    }),
    counter(
        "restarts",
        &["reason"],
        "Times that the keeper has started the agent's process again since the keeper itself began: the process had died, \
         or did not move any more",
        |s, out| out.counts(&s.figures.restarts),
    ),
    counter("admin_requests", &["path"], "Requests at the admin endpoint", |s, out| {
        out.counts(&s.figures.admin_requests)
    }),
];

pub(super) const SOURCE: &[Family] = &[
    gauge(
        "source_age_seconds",
        &["kind"],
        "Seconds since the data in force was last known to be current",
        |s, out| out.put(&[&s.status.source.kind], s.status.source.age_seconds),
    ),
    gauge("source_state", &["kind", "state"], "1 for the state that the source is in", |s, out| {
        SOURCE_STATES
            .iter()
            .try_for_each(|state| out.put(&[&s.status.source.kind, state], s.status.source.state == *state))
    }),
    gauge("source_unreadable_objects", &[], "Objects that cannot be read and are passed over", |s, out| {
        out.one(s.status.source.unreadable)
    }),
    counter(
        "source_updates",
        &["type"],
        "News from the source: full states, changed objects, deleted objects",
        |s, out| out.counts(&s.figures.updates),
    ),
    histogram(
        "snapshot_build_duration_seconds",
        &[],
        "Time to put news from the source in force, but for the packet filter",
        |s, out| out.histogram(&s.figures.build_times),
    ),
    gauge("snapshot_service_ports", &[], "Service ports known", |s, out| out.one(s.listed.all_services)),
    gauge("snapshot_backends", &["state"], "Endpoints of all service ports by state", |s, out| {
        BACKEND_STATES.iter().try_for_each(|state| out.put(&[state], in_state(s, state)))
    }),
    gauge(
        "snapshot_services_without_backend",
        &[],
        "Service ports that have endpoints, none of which may be picked on this node",
        |s, out| out.one(s.status.services.iter().filter(|service| is_stranded(service)).count()),
    ),
];

pub(super) const RULES: &[Family] = &[
    gauge("rules_installed", &[], "Whether the rules are in", |s, out| out.one(s.status.rules.installed)),
    gauge("rules_in_force", &[], "Whether the last pass over the rules was good", |s, out| {
        out.one(s.status.rules.last_error.is_empty())
    }),
    gauge(
        "rules_refuse_before_accept",
        &[],
        "Whether what nobody serves is refused before it is accepted",
        |s, out| out.one(s.status.rules.refuse_before_accept),
    ),
    counter("rules_repairs", &[], "Times that rules changed by others were repaired", |s, out| {
        out.one(s.status.rules.repairs_total)
    }),
    counter("rules_failures", &[], "Passes over the rules that failed", |s, out| {
        out.one(s.status.rules.failures_total)
    }),
    histogram("rules_sync_duration_seconds", &[], "Time to bring the rules to what is wanted", |s, out| {
        out.histogram(&s.figures.rules_times)
    }),
];
