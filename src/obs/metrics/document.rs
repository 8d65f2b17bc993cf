//! The documentation of all metrics, made from their tables.

use std::fmt::Write as _;

use super::encode::Kind;
use super::families::GROUPS;
use super::{MOST_BACKENDS, MOST_SERVICES, PREFIX};

/// The text of `docs/metrics.md`.
pub fn document() -> String {
    let mut text = format!(
        "# Metrics\n\n\
         <!-- Made from src/obs/metrics/families; `UPDATE_DOCS=1 cargo test --test metrics` writes it anew. -->\n\n\
         `GET /metrics` at the admin address (`127.0.0.1:10265` unless `admin.listen` says otherwise) answers in\n\
         OpenMetrics 1.0 text. Counters begin at 0 when the agent starts. A number that cannot be read on this machine\n\
         is left out: a wrong zero would be believed.\n\n\
         **Cardinality is bounded.** At most {MOST_SERVICES} service ports and {MOST_BACKENDS} of their backends have series of their own: all\n\
         of them where there are no more, else those that have had clients on this node first, then by name. The\n\
         families `{PREFIX}_services_unlisted` and `{PREFIX}_backends_unlisted` say how many are left out; every sum over all\n\
         of them has a family without these labels. All other labels have a fixed, small set of values.\n\n\
         A dashboard for Grafana and alert rules for Prometheus stand in `deploy/observability/`.\n"
    );
    for (heading, families) in GROUPS {
        let _ = write!(
            text,
            "\n## {heading}\n\n| name | type | labels | what it is |\n| --- | --- | --- | --- |\n"
        );
        for family in *families {
            let ending = match family.kind {
                Kind::Counter => "_total",
                Kind::Info => "_info",
                Kind::Gauge | Kind::Histogram => "",
            };
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(
                text,
                "| `{PREFIX}_{}{ending}` | {} | {} | {} |",
                family.name,
                family.kind.as_str(),
                labels.join(", "),
                family.help
            );
        }
    }
    text
}
