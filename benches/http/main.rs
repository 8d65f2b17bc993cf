//! HTTP side by side: the same requests through `HAProxy`, nginx and edgesplice, each in HTTP mode with connections to
//! the backend that are kept.
//!
//! Built like `compare`: a node, a client pod and a wire for each contender, all measured in turn within each round.
//! `QUICK=1` makes it short; `ROWS=haproxy,nginx,edgesplice` picks contenders.

// It is a program for people: it prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod contenders;
#[path = "../compare/cpu.rs"]
mod cpu;
#[path = "../compare/facts.rs"]
mod facts;
mod load;
mod origin;
mod report;

#[path = "../../tests/lab/mod.rs"]
mod lab;

use std::time::Duration;

use contenders::{Contender, KINDS, OTHER};
use lab::Lab;
use load::MEASURES;
use report::Report;

fn main() {
    let quick = std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
    let (rounds, each) = if quick { (3, Duration::from_millis(800)) } else { (5, Duration::from_secs(3)) };
    let wanted = std::env::var("ROWS").unwrap_or_else(|_| {
        let usual = KINDS.iter().filter(|kind| **kind != OTHER || std::env::var_os("OTHER").is_some());
        usual.copied().collect::<Vec<_>>().join(",")
    });
    let wanted: Vec<&str> = wanted.split(',').collect();
    let facts = facts::collect();
    let lab = Lab::new("benchhttp");
    let origin = lab.node("origin");
    origin::start(&origin);
    let contenders: Vec<Contender> = KINDS
        .iter()
        .filter(|kind| wanted.contains(kind))
        .map(|kind| Contender::new(kind, &lab, &origin))
        .collect();
    assert!(!contenders.is_empty(), "ROWS: there are {}", KINDS.join(", "));
    let mut report = Report::new(&facts, contenders.iter().map(|c| c.kind).collect(), (rounds, each), quick);
    for round in 0..rounds {
        for measure in &MEASURES {
            for place in 0..contenders.len() {
                // Another one goes first in each round.
                let contender = &contenders[(place + round) % contenders.len()];
                if round == 0 {
                    measure.run(contender, each / 5);
                }
                report.add(measure.title, contender.kind, measure.run(contender, each));
            }
            eprint!(".");
        }
    }
    eprintln!();
    for contender in &contenders {
        report.add_idle(contender.kind, load::idle(contender));
    }
    report.finish();
}
