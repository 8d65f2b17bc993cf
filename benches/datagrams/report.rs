//! The tables for people, and the same as Markdown and JSON under `docs/bench/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde_json::{Value, json};

use crate::Plan;
use crate::facts::Facts;
use crate::figure::short;
use crate::load::Outcome;

/// What a reader must know, in the file itself.
const NOTES: &str = "\
Medians over the rounds; in brackets the ratio to kernel DNAT of the same run. The load generator (one thread), the
server and the contender share the machine's cores, so the figures compare within one run only. Each client has a socket
of its own and asks again when it has its answer, or has so many on the way. `own CPU` is the user and system time of
the contender's processes, `machine CPU` that of the whole machine, both per 1,000 answers. `direct` is plain
forwarding without any rule; nginx runs with two workers behind a REDIRECT. The names are those of 1,000 Services:
dnsmasq has them in a hosts file, unbound (two threads, no validator) as local data. A search path is the full name with
one more suffix, as `ndots:5` makes it.
";

/// Takes one figure out of an outcome.
type Figure = fn(&Outcome) -> f64;

/// UDP, or DNS.
pub(crate) struct Half {
    title: &'static str,
    anchor: Option<&'static str>,
    unit: &'static str,
    /// The loads, in the order of the table.
    pub(crate) order: Vec<&'static str>,
    /// The contenders, in the order of the table.
    pub(crate) kinds: Vec<&'static str>,
    outcomes: BTreeMap<(&'static str, &'static str), Vec<Outcome>>,
    /// Bytes of resident memory for each flow.
    pub(crate) sessions: Option<f64>,
    /// Datagrams that had no room in the sockets of a contender's node, in all loads together.
    pub(crate) overflowed: Vec<(&'static str, u64)>,
    /// Resident memory of contenders, in KiB.
    pub(crate) resident: Vec<(&'static str, u64)>,
}

impl Half {
    /// Without any figure yet; `anchor` is the contender that others are divided by.
    pub(crate) fn new(title: &'static str, anchor: Option<&'static str>, unit: &'static str) -> Self {
        Self {
            title,
            anchor,
            unit,
            order: Vec::new(),
            kinds: Vec::new(),
            outcomes: BTreeMap::new(),
            sessions: None,
            overflowed: Vec::new(),
            resident: Vec::new(),
        }
    }

    /// Notes one run.
    pub(crate) fn add(&mut self, load: &'static str, kind: &'static str, outcome: Outcome) {
        self.outcomes.entry((load, kind)).or_default().push(outcome);
    }

    fn median(&self, load: &'static str, kind: &'static str, of: impl Fn(&Outcome) -> f64) -> f64 {
        let mut values: Vec<f64> = self.outcomes.get(&(load, kind)).into_iter().flatten().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn table(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header(std::iter::once(self.title).chain(self.kinds.iter().copied()));
        for load in &self.order {
            let rows: [(String, Figure); 5] = [
                (format!("{load}, {}/s", self.unit), |o| o.rate),
                ("  p50, µs".to_owned(), |o| o.p50_us),
                ("  p99, µs".to_owned(), |o| o.p99_us),
                ("  own CPU, ms".to_owned(), |o| o.own_cpu_ms),
                ("  machine CPU, ms".to_owned(), |o| o.all_cpu_ms),
            ];
            for (title, of) in rows {
                let anchor = self.anchor.map_or(f64::NAN, |anchor| self.median(load, anchor, of));
                let cell = |kind: &&'static str| {
                    let value = self.median(load, kind, of);
                    let ratio = value / anchor;
                    if ratio.is_finite() { format!("{} ({ratio:.2})", short(value)) } else { short(value) }
                };
                table.add_row(std::iter::once(title).chain(self.kinds.iter().map(cell)));
            }
            let lost = |kind: &&'static str| {
                self.outcomes.get(&(load, *kind)).into_iter().flatten().map(|o| o.lost).sum::<u64>()
            };
            if self.kinds.iter().any(|kind| lost(kind) > 0) {
                let cells = self.kinds.iter().map(|kind| lost(kind).to_string());
                table.add_row(std::iter::once("  lost, all rounds".to_owned()).chain(cells));
            }
        }
        if !self.overflowed.is_empty() {
            let cells = self.overflowed.iter().map(|(_, count)| count.to_string());
            let title = "no room in a socket of the node (RcvbufErrors), all loads and rounds";
            table.add_row(std::iter::once(title.to_owned()).chain(cells));
        }
        if !self.resident.is_empty() {
            let cells = self.resident.iter().map(|(_, kib)| short(*kib as f64 / 1024.0));
            table.add_row(std::iter::once("resident memory, MB".to_owned()).chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn added(&self) -> Option<String> {
        let first = self.order.first().filter(|_| self.kinds.contains(&"direct"))?;
        let over =
            |kind, of: fn(&Outcome) -> f64| self.median(first, kind, of) - self.median(first, "direct", of);
        let line = |kind: &&'static str| {
            let (p50, p99) = (over(kind, |o| o.p50_us), over(kind, |o| o.p99_us));
            format!("{kind} {p50:+.1} / {p99:+.1}")
        };
        let all: Vec<String> = self.kinds.iter().filter(|kind| **kind != "direct").map(line).collect();
        Some(format!("Latency added to plain forwarding, one client, p50 / p99, µs: {}.\n", all.join("; ")))
    }

    fn notes(&self) -> String {
        let mut text = self.added().unwrap_or_default();
        if let Some(bytes) = self.sessions {
            let _ = writeln!(text, "Resident memory of the agent for each UDP flow: {bytes:.0} bytes.");
        }
        text
    }

    fn json(&self) -> Value {
        let of = |load: &&'static str| {
            let kinds =
                self.kinds.iter().map(|kind| ((*kind).to_owned(), json!(self.outcomes.get(&(*load, *kind)))));
            ((*load).to_owned(), Value::Object(kinds.collect()))
        };
        json!({"loads": Value::Object(self.order.iter().map(of).collect()), "bytesPerFlow": self.sessions,
            "overflowed": self.overflowed, "residentKib": self.resident})
    }
}

/// Prints the tables and writes the files.
pub(crate) fn finish(facts: &Facts, plan: &Plan, halves: &[Half]) {
    let name = if plan.quick { "datagrams-quick" } else { "datagrams" };
    let mut text = String::new();
    for (fact, value) in facts.iter().filter(|(fact, _)| *fact != "haproxy") {
        let _ = writeln!(text, "- {fact}: {value}");
    }
    let _ = writeln!(text, "- rounds: {} of {} s each", plan.rounds, plan.each.as_secs_f64());
    println!("{text}");
    let mut markdown = format!("# Datagrams and names\n\n{text}");
    for half in halves {
        println!("{}\n{}", half.table(presets::UTF8_FULL_CONDENSED), half.notes());
        let _ = write!(markdown, "\n{}\n\n{}", half.table(presets::ASCII_MARKDOWN), half.notes());
    }
    let _ = write!(markdown, "\n{NOTES}");
    let all: serde_json::Map<_, _> = halves.iter().map(|half| (half.title.to_owned(), half.json())).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench");
    let written = fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join(format!("{name}.md")), markdown))
        .and_then(|()| fs::write(folder.join(format!("{name}.json")), format!("{:#}\n", Value::Object(all))));
    match written {
        Ok(()) => println!("written to {0}/{name}.md and .json", folder.display()),
        Err(error) => eprintln!("{}: {error}", folder.display()),
    }
}
