//! The side-by-side comparison: the same load through plain forwarding, kernel DNAT, `HAProxy`, nginx and edgesplice.
//!
//! Each contender has a node, a client pod and a wire of its own to one backend node, so that none pays for another's
//! rules. All are measured in turn within each round, and the medians over the rounds are shown, so that a slow
//! minute of the machine falls on all. The load generator, the server and the contender share the machine's cores:
//! figures compare within one run and say nothing about another machine.
//!
//! Run it with `make bench`. `QUICK=1` makes it short; `ROWS=direct,dnat,haproxy,nginx,edgesplice,held` picks contenders
//! (`held` is edgesplice with `intercept.connect: before-accept`, left out unless it is named),
//! `MEASURES=bulk1,bulk8,keepAlive,newConnections,atShare,latency,size` what is measured (`atShare` needs `newConnections`), and `OTHER=path` takes another build of
//! edgesplice in as a contender.

// It is a program for people: it prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod contenders;
mod cpu;
mod facts;
#[path = "../shared/figure.rs"]
mod figure;
mod goals;
mod load;
mod origin;
mod plot;
mod report;
mod scale;

#[path = "../../tests/lab/mod.rs"]
mod lab;

use std::collections::HashMap;
use std::time::Duration;

use contenders::{Contender, HELD, KINDS, OTHER};
use lab::Lab;
use load::{AT_SHARE, MEASURES, Outcome, PEAK};
use report::Report;

/// How long and how often is measured.
struct Plan {
    quick: bool,
    rounds: usize,
    each: Duration,
}

fn main() {
    let quick = std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
    let plan = if quick {
        Plan { quick, rounds: 3, each: Duration::from_millis(800) }
    } else {
        Plan { quick, rounds: 5, each: Duration::from_secs(3) }
    };
    let wanted = std::env::var("ROWS").unwrap_or_else(|_| {
        let usual = KINDS.iter().filter(|kind| {
            ![HELD, OTHER].contains(kind) || **kind == OTHER && std::env::var_os("OTHER").is_some()
        });
        usual.copied().collect::<Vec<_>>().join(",")
    });
    let wanted: Vec<&str> = wanted.split(',').collect();
    let asked_for = std::env::var("MEASURES").unwrap_or_default();
    let measured = |key: &str| asked_for.is_empty() || asked_for.split(',').any(|wanted| wanted == key);
    if let Some(unknown) = wanted.iter().find(|row| !KINDS.contains(row)) {
        eprintln!("ROWS: there is no `{unknown}`; there are {}", KINDS.join(", "));
        std::process::exit(64);
    }
    let facts = facts::collect();
    let lab = Lab::new("bench");
    let origin = lab.node("origin");
    let _server = origin::start(&origin);
    let contenders: Vec<Contender> = KINDS
        .iter()
        .filter(|kind| wanted.contains(kind))
        .map(|kind| Contender::new(kind, &lab, &origin))
        .collect();
    let mut report = Report::new(&facts, &contenders, &plan);
    let mut peaks: HashMap<&str, f64> = HashMap::new();
    for round in 0..plan.rounds {
        for measure in MEASURES.iter().filter(|measure| measured(measure.key)) {
            for place in 0..contenders.len() {
                // Another one goes first in each round.
                let contender = &contenders[(place + round) % contenders.len()];
                let peak = peaks.get(contender.kind).copied();
                // Without a peak there is no share of it.
                let Some(peak) = peak.or((measure.key != AT_SHARE).then_some(0.0)) else { continue };
                if round == 0 {
                    measure.run(contender, plan.each / 5, peak);
                }
                let outcome: Outcome = measure.run(contender, plan.each, peak);
                if measure.key == PEAK {
                    peaks.insert(contender.kind, outcome.rate);
                }
                report.add(measure.key, contender.kind, outcome);
            }
            eprint!(".");
        }
    }
    eprintln!();
    drop(contenders);
    for kind in KINDS.iter().filter(|kind| wanted.contains(kind)) {
        if let Some(size) = measured("size").then(|| scale::measure(kind, &lab)).flatten() {
            report.add_scale(kind, &size);
        }
    }
    report.finish();
}
