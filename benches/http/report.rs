//! The table for people, and the same as Markdown and JSON under `docs/bench/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde_json::json;

use crate::facts::Facts;
use crate::load::{MEASURES, Outcome};

const NOTES: &str = "\
Medians over the rounds; in brackets the ratio to nginx of the same run. The load generator, the server and the
contender share the machine's cores, so the figures compare within one run only. All proxies run in HTTP mode and keep
connections to the backend: HAProxy with `nbthread 2` and `http-reuse always`, nginx with two workers and `keepalive
512`, for h2c with `grpc_pass`. All add X-Forwarded-For. An answer's body has 256 bytes. `own CPU` is the user and
system time of the contender's processes, `machine CPU` that of the whole machine, client and server included.
Memory is what 1,000 connections add that have made one request each and then wait for ten seconds.
";
const ANCHOR: &str = "nginx";
const OURS: &str = "edgesplice";

/// Collects what is measured.
pub(crate) struct Report<'a> {
    facts: &'a Facts,
    kinds: Vec<&'static str>,
    rounds: (usize, Duration),
    quick: bool,
    outcomes: BTreeMap<(&'static str, &'static str), Vec<Outcome>>,
    idle: BTreeMap<&'static str, f64>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        facts: &'a Facts,
        kinds: Vec<&'static str>,
        rounds: (usize, Duration),
        quick: bool,
    ) -> Self {
        Self { facts, kinds, rounds, quick, outcomes: BTreeMap::new(), idle: BTreeMap::new() }
    }

    /// Notes one run.
    pub(crate) fn add(&mut self, measure: &'static str, kind: &'static str, outcome: Outcome) {
        self.outcomes.entry((measure, kind)).or_default().push(outcome);
    }

    /// Notes what an idle connection costs, in KiB.
    pub(crate) fn add_idle(&mut self, kind: &'static str, kib: f64) {
        self.idle.insert(kind, kib);
    }

    /// Prints the table and writes the files.
    pub(crate) fn finish(self) {
        let name = if self.quick { "http-quick" } else { "http" };
        let mut text = String::new();
        for (fact, value) in self.facts {
            let _ = writeln!(text, "- {fact}: {value}");
        }
        let _ = writeln!(text, "- rounds: {} of {} s each", self.rounds.0, self.rounds.1.as_secs_f64());
        let goals = self.goals();
        println!("{text}\n{}\n\n{goals}", self.table(presets::UTF8_FULL_CONDENSED));
        let markdown = format!(
            "# HTTP side by side\n\n{text}\n## Goals\n\n{goals}\n## Figures\n\n{}\n\n{NOTES}",
            self.table(presets::ASCII_MARKDOWN)
        );
        let mut measures = serde_json::Map::new();
        for ((measure, kind), outcomes) in &self.outcomes {
            measures.entry(*measure).or_insert_with(|| json!({}))[*kind] = json!(outcomes);
        }
        let json = json!({"measures": measures, "idleKib": self.idle});
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench");
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join(format!("{name}.md")), markdown))
            .and_then(|()| fs::write(folder.join(format!("{name}.json")), format!("{json:#}\n")));
        match written {
            Ok(()) => println!("written to {0}/{name}.md and .json", folder.display()),
            Err(error) => eprintln!("{}: {error}", folder.display()),
        }
    }

    fn median(&self, measure: &'static str, kind: &'static str, of: impl Fn(&Outcome) -> f64) -> f64 {
        let mut values: Vec<f64> =
            self.outcomes.get(&(measure, kind)).into_iter().flatten().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn goals(&self) -> String {
        let mut text = String::from("| measure | goal | figure | |\n|---|---|---:|---|\n");
        let mut goal = |what: &str, bound: &str, figure: f64, met: bool| {
            let verdict = match (figure.is_nan(), met) {
                (true, _) => "not measured",
                (_, true) => "met",
                (_, false) => "missed",
            };
            let _ = writeln!(text, "| {what} | {bound} | {figure:.2} | {verdict} |");
        };
        for measure in MEASURES.iter().filter(|measure| measure.title.starts_with("HTTP/1.1")) {
            let cost = |kind| self.median(measure.title, kind, |o| o.own_cpu_us);
            let share = cost(ANCHOR) / cost(OURS);
            let what = format!("{}: requests per CPU second, of nginx's", measure.title);
            goal(&what, "≥ 1.00", share, share >= 1.0);
        }
        let idle = self.idle.get(OURS).copied().unwrap_or(f64::NAN);
        goal("memory per idle HTTP connection, KiB", "≤ 12", idle, idle <= 12.0);
        text
    }

    fn table(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        let titles = self.kinds.iter().map(|kind| if *kind == "haproxy" { "HAProxy" } else { kind });
        table.set_header(std::iter::once("measure").chain(titles));
        for measure in &MEASURES {
            let mut row = |title: String, of: fn(&Outcome) -> f64| {
                let anchor = self.median(measure.title, ANCHOR, of);
                let cell = |kind: &&'static str| {
                    let value = self.median(measure.title, kind, of);
                    if value >= 1000.0 {
                        format!("{value:.0} ({:.2})", value / anchor)
                    } else {
                        format!("{value:.1} ({:.2})", value / anchor)
                    }
                };
                table.add_row(std::iter::once(title).chain(self.kinds.iter().map(cell)));
            };
            row(format!("{}, requests/s", measure.title), |o| o.rate);
            row("  p50, µs".to_owned(), |o| o.p50_us);
            row("  p99, µs".to_owned(), |o| o.p99_us);
            row("  own CPU, µs per request".to_owned(), |o| o.own_cpu_us);
            row("  machine CPU, µs per request".to_owned(), |o| o.all_cpu_us);
        }
        let cell =
            |kind: &&'static str| self.idle.get(kind).map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
        let title = "memory per idle connection, KiB".to_owned();
        table.add_row(std::iter::once(title).chain(self.kinds.iter().map(cell)));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}
