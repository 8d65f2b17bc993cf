//! The table for people, and the same as Markdown and JSON under `docs/bench/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde_json::{Value, json};

use crate::Plan;
use crate::contenders::Contender;
use crate::facts::Facts;
use crate::figure::short;
use crate::goals::{self, Goal};
use crate::load::{AT_SHARE, MEASURES, Measure, Outcome};
use crate::plot;
use crate::scale::Size;

/// The contender that the others' figures are divided by.
const ANCHOR: &str = "dnat";
/// What a reader must know, in the file itself.
const NOTES: &str = "\
Medians over the rounds; in brackets the ratio to kernel DNAT of the same run. The load generator, the server and the
contender share the machine's cores, so the figures compare within one run only. Client pod, node and backend node are
network namespaces joined by veth; each contender has a node of its own. `direct` is plain forwarding without any rule;
`kernel DNAT` is one nat rule a port. HAProxy runs with `nbthread 2` and `splice-auto`, nginx with two workers; a
REDIRECT of the ClusterIP leads to either. Bulk goes from the backend to the client. A request is 128 bytes, an answer
256. The latency of a new connection runs from connect to the first byte of the answer; at 80 % of each contender's own
rate, connections are opened when they are due, a bunch a millisecond, however many are under way, and the latency
runs from then. `own CPU` is the user and
system time of the contender's processes; `machine CPU` is that of the whole machine in `/proc/stat`, client, server
and softirq included, so that kernel DNAT's work is counted. Either is per GB, per 1,000 requests or per 1,000 connections.
";

/// Collects what is measured.
pub(crate) struct Report<'a> {
    facts: &'a Facts,
    plan: &'a Plan,
    kinds: Vec<&'static str>,
    outcomes: BTreeMap<(&'static str, &'static str), Vec<Outcome>>,
    sizes: BTreeMap<String, Size>,
}

impl<'a> Report<'a> {
    /// An empty report on these contenders.
    pub(crate) fn new(facts: &'a Facts, contenders: &[Contender], plan: &'a Plan) -> Self {
        let kinds = contenders.iter().map(|contender| contender.kind).collect();
        Self { facts, plan, kinds, outcomes: BTreeMap::new(), sizes: BTreeMap::new() }
    }

    /// Notes one run.
    pub(crate) fn add(&mut self, measure: &'static str, kind: &'static str, outcome: Outcome) {
        self.outcomes.entry((measure, kind)).or_default().push(outcome);
    }

    /// Notes what full size costs.
    pub(crate) fn add_scale(&mut self, kind: &str, size: &Size) {
        self.sizes.insert(kind.to_owned(), size.clone());
    }

    /// Prints the table and writes the files.
    pub(crate) fn finish(self) {
        let name = if self.plan.quick { "quick" } else { "compare" };
        let mut text = String::new();
        for (fact, value) in self.facts {
            let _ = writeln!(text, "- {fact}: {value}");
        }
        let (rounds, each) = (self.plan.rounds, self.plan.each.as_secs_f64());
        let _ = writeln!(text, "- rounds: {rounds} of {each} s each");
        println!("{text}\n{}\n", self.table(presets::UTF8_FULL_CONDENSED));
        let goals = goals::markdown(&self.goals());
        println!("{goals}");
        let markdown = format!(
            "# Side by side\n\n{text}\n![rates]({name}.svg)\n\n## Goals\n\n{goals}\n## Figures\n\n{}\n\n{NOTES}",
            self.table(presets::ASCII_MARKDOWN)
        );
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench");
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join(format!("{name}.md")), markdown))
            .and_then(|()| fs::write(folder.join(format!("{name}.svg")), self.plot()))
            .and_then(|()| fs::write(folder.join(format!("{name}.json")), format!("{:#}\n", self.json())));
        match written {
            Ok(()) => println!("written to {0}/{name}.md, .svg and .json", folder.display()),
            Err(error) => eprintln!("{}: {error}", folder.display()),
        }
    }

    /// The goals of the design that one run can show.
    fn goals(&self) -> Vec<Goal> {
        const OURS: &str = "edgesplice";
        let ratio = |measure, of: fn(&Outcome) -> f64| {
            self.median(measure, OURS, of) / self.median(measure, ANCHOR, of)
        };
        let added =
            |of: fn(&Outcome) -> f64| self.median("latency", OURS, of) - self.median("latency", "direct", of);
        let resident = self.sizes.get(OURS).and_then(|size| size.resident_kib);
        let ready = self.sizes.get(OURS).and_then(|size| size.again_ms);
        vec![
            Goal::at_least("bulk, one stream, share of DNAT", "≥ 0.90", 0.90, ratio("bulk1", |o| o.rate)),
            Goal::at_most(
                "bulk, machine CPU per GB, of DNAT's",
                "≤ 1.20",
                1.20,
                ratio("bulk1", |o| o.all_cpu_ms),
            ),
            Goal::at_least(
                "keep-alive, 32 connections, share of DNAT",
                "≥ 0.62",
                0.62,
                ratio("keepAlive", |o| o.rate),
            ),
            Goal::at_least(
                "new connections, share of DNAT",
                "≥ 0.75",
                0.75,
                ratio("newConnections", |o| o.rate),
            ),
            Goal::at_most(
                "new connections at 80 % of the peak rate, p99 to the first byte, ms",
                "≤ 20",
                20.0,
                self.median(AT_SHARE, OURS, |o| o.p99_us) / 1e3,
            ),
            Goal::at_most(
                "the slowest of them, all rounds, ms",
                "no tail of one second",
                900.0,
                self.slowest(AT_SHARE, OURS) / 1e3,
            ),
            Goal::at_most("one connection, added p50, µs", "≤ 35", 35.0, added(|o| o.p50_us)),
            Goal::at_most("one connection, added p99, µs", "≤ 200", 200.0, added(|o| o.p99_us)),
            Goal::at_most(
                "resident memory, 1,000 services with 10,000 endpoints, MB",
                "≤ 12",
                12.0,
                resident.map_or(f64::NAN, |kib| kib as f64 / 1024.0),
            ),
            Goal::at_most(
                "second start to ready, 1,000 services, ms",
                "≤ 200",
                200.0,
                ready.unwrap_or(f64::NAN),
            ),
        ]
    }

    fn plot(&self) -> String {
        let group = |measure: &Measure| {
            let anchor = self.median(measure.key, ANCHOR, |outcome| outcome.rate);
            let share = |kind: &&'static str| self.median(measure.key, kind, |outcome| outcome.rate) / anchor;
            (measure.title.to_owned(), self.kinds.iter().map(share).collect())
        };
        plot::svg(&self.kinds, &MEASURES.iter().map(group).collect::<Vec<_>>())
    }

    fn median(&self, measure: &'static str, kind: &'static str, of: impl Fn(&Outcome) -> f64) -> f64 {
        let mut values: Vec<f64> =
            self.outcomes.get(&(measure, kind)).into_iter().flatten().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The slowest of all rounds, in microseconds.
    fn slowest(&self, measure: &'static str, kind: &'static str) -> f64 {
        let outcomes = self.outcomes.get(&(measure, kind)).into_iter().flatten();
        outcomes.map(|outcome| outcome.max_us).fold(f64::NAN, f64::max)
    }

    fn table(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        let title = |kind: &&str| match *kind {
            "dnat" => "kernel DNAT".to_owned(),
            "haproxy" => "HAProxy".to_owned(),
            "nginx" => "nginx stream".to_owned(),
            other => other.to_owned(),
        };
        table.set_header(std::iter::once("measure".to_owned()).chain(self.kinds.iter().map(title)));
        for measure in &MEASURES {
            self.rows(measure, &mut table);
        }
        self.size_row(&mut table, "resident memory, 1,000 services, MB", |size| {
            size.resident_kib.map(|kib| kib as f64 / 1024.0)
        });
        self.size_row(&mut table, "  without counting shared pages twice, MB", |size| {
            size.proportional_kib.map(|kib| kib as f64 / 1024.0)
        });
        self.size_row(&mut table, "  of that of its own, MB", |size| {
            size.private_kib.map(|kib| kib as f64 / 1024.0)
        });
        self.size_row(&mut table, "start to ready, 1,000 services, ms", |size| Some(size.ready_ms));
        self.size_row(&mut table, "second start, ms", |size| size.again_ms);
        self.size_row(&mut table, "rules, 1,000 services", |size| Some(size.rules as f64));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn rows(&self, measure: &Measure, table: &mut Table) {
        let row = |title: String, of: fn(&Outcome) -> f64| {
            let anchor = self.median(measure.key, ANCHOR, of);
            let cell = |kind: &&'static str| {
                let value = self.median(measure.key, kind, of);
                let ratio = value / anchor;
                if ratio.is_finite() { format!("{} ({ratio:.2})", short(value)) } else { short(value) }
            };
            std::iter::once(title).chain(self.kinds.iter().map(cell)).collect::<Vec<_>>()
        };
        let bulk = measure.unit == "Gbit/s";
        let per =
            if bulk { "GB".to_owned() } else { format!("1,000 {}", measure.unit.trim_end_matches("/s")) };
        table.add_row(row(format!("{}, {}", measure.title, measure.unit), |outcome| outcome.rate));
        if !bulk {
            table.add_row(row("  p50, µs".to_owned(), |outcome| outcome.p50_us));
            table.add_row(row("  p99, µs".to_owned(), |outcome| outcome.p99_us));
        }
        if measure.key == AT_SHARE {
            let slowest = |kind: &&'static str| short(self.slowest(measure.key, kind) / 1e3);
            let title = "  the slowest of all rounds, ms".to_owned();
            table.add_row(std::iter::once(title).chain(self.kinds.iter().map(slowest)));
        }
        if measure.key == "latency" {
            let direct = self.median(measure.key, "direct", |outcome| outcome.p50_us);
            let direct99 = self.median(measure.key, "direct", |outcome| outcome.p99_us);
            let added = |kind: &&'static str| {
                let p50 = self.median(measure.key, kind, |outcome| outcome.p50_us) - direct;
                let p99 = self.median(measure.key, kind, |outcome| outcome.p99_us) - direct99;
                if p50.is_finite() { format!("{p50:+.1} / {p99:+.1}") } else { "–".to_owned() }
            };
            let title = "  added to direct, p50 / p99, µs".to_owned();
            table.add_row(std::iter::once(title).chain(self.kinds.iter().map(added)));
        }
        table.add_row(row(format!("  own CPU, ms per {per}"), |outcome| outcome.own_cpu_ms));
        table.add_row(row(format!("  machine CPU, ms per {per}"), |outcome| outcome.all_cpu_ms));
        let failed = |kind: &&'static str| {
            let outcomes = self.outcomes.get(&(measure.key, *kind));
            outcomes.into_iter().flatten().map(|outcome| outcome.failed).sum::<u64>()
        };
        if self.kinds.iter().any(|kind| failed(kind) > 0) {
            let cells = self.kinds.iter().map(|kind| failed(kind).to_string());
            table.add_row(std::iter::once("  failed, all rounds".to_owned()).chain(cells));
        }
    }

    fn size_row(&self, table: &mut Table, title: &str, of: impl Fn(&Size) -> Option<f64>) {
        let cell = |kind: &&str| self.sizes.get(*kind).and_then(&of).map_or_else(|| "–".to_owned(), short);
        table.add_row(std::iter::once(title.to_owned()).chain(self.kinds.iter().map(cell)));
    }

    fn json(&self) -> Value {
        let facts: serde_json::Map<_, _> =
            self.facts.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let mut measures = serde_json::Map::new();
        for measure in &MEASURES {
            let mut of_kinds = serde_json::Map::new();
            for kind in &self.kinds {
                let median = |of: fn(&Outcome) -> f64| self.median(measure.key, kind, of);
                of_kinds.insert(
                    (*kind).to_owned(),
                    json!({
                        "rate": median(|outcome| outcome.rate),
                        "p50Us": median(|outcome| outcome.p50_us),
                        "p99Us": median(|outcome| outcome.p99_us),
                        "maxUs": Some(self.slowest(measure.key, kind)).filter(|slowest| slowest.is_finite()),
                        "ownCpuMs": median(|outcome| outcome.own_cpu_ms),
                        "allCpuMs": median(|outcome| outcome.all_cpu_ms),
                        "rounds": self.outcomes.get(&(measure.key, *kind)),
                    }),
                );
            }
            measures.insert(measure.key.to_owned(), json!({"unit": measure.unit, "contenders": of_kinds}));
        }
        json!({
            "facts": facts, "rounds": self.plan.rounds, "secondsEach": self.plan.each.as_secs_f64(),
            "notes": NOTES, "measures": measures, "size": self.sizes,
        })
    }
}
