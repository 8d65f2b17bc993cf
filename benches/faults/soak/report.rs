//! What came of the soak: judged, printed, and written to `docs/bench/soak.*`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::lab::{Asked, Kind, Outcome as Answer, Tally};
use crate::plot::{Chart, svg};
use crate::quantile;

use super::{Look, Outcome};

/// How long after a fault something may still fail by it: the budget of a dial, and a moment.
const AFTER: Duration = Duration::from_secs(6);
/// Faults that Services on this node notice too: the others are about the way to other nodes.
const NEAR: [&str; 6] = [
    "worker killed (SIGKILL)",
    "worker stopped (SIGSTOP)",
    "out of memory",
    "few descriptors",
    "few local ports",
    "connection tracking full",
];
/// Lines about single questions at most.
const MOST: usize = 12;
const KINDS: [(Kind, &str); 3] =
    [(Kind::Connection, "new connections"), (Kind::Datagram, "datagrams"), (Kind::Name, "names")];

/// Writes the report and returns what is not as it should be.
pub(crate) fn write(outcome: &Outcome) -> Vec<String> {
    let faults = judge(outcome);
    let text = markdown(outcome, &faults);
    println!("{text}");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench");
    fs::write(dir.join("soak.md"), text).unwrap();
    let json = serde_json::to_string_pretty(&numbers(outcome, &faults)).unwrap();
    fs::write(dir.join("soak.json"), json + "\n").unwrap();
    fs::write(dir.join("soak.svg"), charts(outcome)).unwrap();
    faults
}

fn judge(outcome: &Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, tally) in [("other nodes", &outcome.far), ("this node", &outcome.near)] {
        let late = tally.failed().into_iter().filter(|asked| asked.at >= outcome.calm_from).count();
        if late > 0 {
            faults.push(format!("{late} questions to {name} failed while it was calm"));
        }
        let never = |asked: &&Asked| matches!(asked.outcome, Answer::Refused(_) | Answer::Wrong(_));
        for asked in tally.0.iter().filter(never) {
            faults.push(format!(
                "to {name}, after {:.1} s: {:?} {:?}",
                asked.at.as_secs_f64(),
                asked.kind,
                asked.outcome
            ));
        }
    }
    for asked in outcome.near.failed() {
        if !outcome
            .faults
            .iter()
            .any(|fault| NEAR.contains(&fault.what) && touches(asked, fault.from, fault.to))
        {
            faults.push(format!(
                "to this node, by no fault: after {:.1} s {:?}",
                asked.at.as_secs_f64(),
                asked.outcome
            ));
        }
    }
    for asked in outcome.far.failed() {
        if !outcome.faults.iter().any(|fault| touches(asked, fault.from, fault.to)) {
            faults.push(format!(
                "to other nodes, by no fault: after {:.1} s {:?}",
                asked.at.as_secs_f64(),
                asked.outcome
            ));
        }
    }
    let many = faults.len().saturating_sub(MOST);
    if many > 0 {
        faults.truncate(MOST);
        faults.push(format!("and {many} more"));
    }
    faults.extend(growth(outcome));
    faults
}

/// Whether a question overlaps with the time of a fault.
fn touches(asked: &Asked, from: Duration, to: Duration) -> bool {
    asked.at <= to + AFTER && asked.at + asked.took >= from
}

/// What was not flat.
fn growth(outcome: &Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    let calm: Vec<&Look> =
        outcome.looks.iter().filter(|look| look.at > outcome.calm_from + Duration::from_secs(10)).collect();
    let (Some(first), Some(last)) = (outcome.looks.first(), calm.last()) else {
        return vec!["nobody looked".to_owned()];
    };
    let mut flat = |what: &str, before: u64, after: u64, more: u64| {
        if after > before + more {
            faults.push(format!("{what} grew from {before} to {after}"));
        }
    };
    flat("the keeper's memory (KiB)", first.of_keeper.0, last.of_keeper.0, 512);
    flat("the keeper's descriptors", first.of_keeper.1 as u64, last.of_keeper.1 as u64, 0);
    // The worker that lives in the end, a while after its start, and at the end.
    let mut life = outcome.looks.iter().filter(|look| look.worker == last.worker);
    let young = life
        .clone()
        .find(|look| look.at > outcome.living_from + Duration::from_secs(30))
        .or_else(|| life.next());
    if let Some(young) = young {
        flat("the worker's memory (KiB)", young.of_worker.0, last.of_worker.0, young.of_worker.0 / 5 + 2_048);
        flat("the worker's descriptors", young.of_worker.1 as u64, last.of_worker.1 as u64, 64);
    }
    faults
}

fn markdown(outcome: &Outcome, faults: &[String]) -> String {
    let mut text = format!(
        "# Soak: every fault at once\n\n<!-- Written by `make soak`. -->\n\n\
         {:.0} s, seed {}, two cores, nodes as network namespaces; 1,000 services and some that change. Until {:.0} s workers die \
         too; from then on one worker lives through everything else; from {:.0} s on it is calm. `SOAK_SECONDS` and `SOAK_SEED` \
         make another run.\n\n",
        outcome.seconds,
        outcome.seed,
        outcome.living_from.as_secs_f64(),
        outcome.calm_from.as_secs_f64()
    );
    let verdict = if faults.is_empty() {
        "Nothing failed but what a fault itself cut: nothing was refused, everything that failed overlaps a fault, nothing failed \
         once it was calm, and memory and descriptors are flat."
            .to_owned()
    } else {
        format!("**Not as it should be:** {}.", faults.join("; "))
    };
    let _ = writeln!(text, "{verdict}\n");
    let [died, stuck] = outcome.restarts;
    let _ = writeln!(
        text,
        "The keeper started the agent again {died} times because it had died, {stuck} times because it was stuck.\n"
    );
    text.push_str("| clients of | asked | failed | how | p50 | p99 | longest |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    for (where_, tally) in
        [("Services on other nodes", &outcome.far), ("a Service on this node", &outcome.near)]
    {
        for (kind, name) in KINDS {
            line(&mut text, &format!("{where_}: {name}"), tally, kind);
        }
    }
    text.push_str("\n| fault | times | seconds in all | failed meanwhile, to other nodes | to this node |\n| --- | --- | --- | --- | --- |\n");
    let mut by_name = BTreeMap::<&str, Vec<(Duration, Duration)>>::new();
    for fault in &outcome.faults {
        by_name.entry(fault.what).or_default().push((fault.from, fault.to));
    }
    for (name, times) in &by_name {
        let seconds: f64 = times.iter().map(|(from, to)| to.saturating_sub(*from).as_secs_f64()).sum();
        let failed = |tally: &Tally| {
            let during = |asked: &&Asked| times.iter().any(|(from, to)| touches(asked, *from, *to));
            tally.failed().into_iter().filter(during).count()
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {seconds:.0} | {} | {} |",
            times.len(),
            failed(&outcome.far),
            failed(&outcome.near)
        );
    }
    text.push_str(
        "\nFaults overlap, so a failure may stand in several lines. What fails: connections that a worker had in hand when it died; \
         questions whose way or backend was gone; connections that found no descriptor, no local port or no room in the table \
         of connection tracking; datagrams that were lost on the way.\n\n\
         ![Memory and descriptors over time](soak.svg)\n",
    );
    text
}

fn line(text: &mut String, name: &str, tally: &Tally, kind: Kind) {
    let asked = tally.of(kind).count();
    if asked == 0 {
        return;
    }
    let mut how = BTreeMap::<String, usize>::new();
    for asked in tally.of(kind).filter(|asked| asked.outcome != Answer::Served) {
        *how.entry(format!("{:?}", asked.outcome)).or_default() += 1;
    }
    let failed: usize = how.values().sum();
    let how: Vec<String> = how.iter().map(|(how, count)| format!("{count} {how}")).collect();
    let times = tally.times(kind);
    let _ = writeln!(
        text,
        "| {name} | {asked} | {failed} | {} | {:.1} ms | {:.0} ms | {:.1} s |",
        how.join(", "),
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&times, 1.0) / 1e3
    );
}

fn numbers(outcome: &Outcome, faults: &[String]) -> serde_json::Value {
    let tally = |tally: &Tally| -> serde_json::Value {
        KINDS
            .iter()
            .map(|(kind, name)| {
                let times = tally.times(*kind);
                let failed = tally.count(*kind, |answer| *answer != Answer::Served);
                let p50 = if times.is_empty() { 0.0 } else { quantile(&times, 0.5) };
                let p99 = if times.is_empty() { 0.0 } else { quantile(&times, 0.99) };
                (
                    (*name).to_owned(),
                    json!({"asked": tally.of(*kind).count(), "failed": failed, "p50Ms": p50, "p99Ms": p99}),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let looks: Vec<_> = outcome
        .looks
        .iter()
        .map(|look| {
            json!([look.at.as_secs(), look.of_worker.0, look.of_worker.1, look.of_keeper.0, look.of_keeper.1])
        })
        .collect();
    let all: Vec<_> = outcome
        .faults
        .iter()
        .map(|fault| json!([fault.what, fault.from.as_secs_f64(), fault.to.as_secs_f64()]))
        .collect();
    json!({
        "seed": outcome.seed, "seconds": outcome.seconds, "calmFromSeconds": outcome.calm_from.as_secs_f64(),
        "livingFromSeconds": outcome.living_from.as_secs_f64(), "notAsItShouldBe": faults,
        "restarts": {"died": outcome.restarts[0], "stuck": outcome.restarts[1]},
        "otherNodes": tally(&outcome.far), "thisNode": tally(&outcome.near),
        "faults": {"columns": ["what", "fromSeconds", "toSeconds"], "rows": all},
        "looks": {"columns": ["second", "workerKiB", "workerDescriptors", "keeperKiB", "keeperDescriptors"], "rows": looks},
    })
}

fn charts(outcome: &Outcome) -> String {
    let points = |value: fn(&Look) -> f64| -> Vec<(f64, f64)> {
        outcome.looks.iter().map(|look| (look.at.as_secs_f64(), value(look))).collect()
    };
    let memory = Chart {
        title: "resident memory, MiB",
        lines: vec![
            ("worker", points(|look| look.of_worker.0 as f64 / 1024.0)),
            ("keeper (its own pages)", points(|look| look.of_keeper.0 as f64 / 1024.0)),
        ],
    };
    let descriptors = Chart {
        title: "open descriptors",
        lines: vec![
            ("worker", points(|look| look.of_worker.1 as f64)),
            ("keeper", points(|look| look.of_keeper.1 as f64)),
        ],
    };
    let deaths = outcome.faults.iter().filter(|fault| NEAR[..3].contains(&fault.what));
    let deaths: Vec<f64> = deaths.map(|fault| fault.from.as_secs_f64()).collect();
    svg(&[memory, descriptors], outcome.seconds, &deaths, "a worker dies")
}
