//! Datagrams and names side by side: UDP echo through plain forwarding, kernel DNAT, nginx and edgesplice, and answers
//! for a cluster's names from edgesplice, dnsmasq and unbound on the same zone.
//!
//! As in `benches/compare`, each contender has a node, a client pod and a wire of its own; all are measured in turn
//! within each round, and medians over the rounds are shown. Load, server and contender share the machine's cores.
//!
//! `make bench` runs it after the comparison. `QUICK=1` makes it short; `cargo bench --bench datagrams -- udp`, or
//! `dns`, measures that half only.

// It is a program for people: it prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../compare/cpu.rs"]
#[allow(dead_code, reason = "shared with the comparison")]
mod cpu;
#[path = "../compare/facts.rs"]
mod facts;
#[path = "../shared/figure.rs"]
mod figure;
mod load;
mod names;
mod report;
mod ways;

#[path = "../../tests/lab/mod.rs"]
mod lab;

use std::time::Duration;

use lab::Lab;
use load::{Load, Outcome};
use report::Half;

/// How long and how often is measured.
struct Plan {
    quick: bool,
    rounds: usize,
    each: Duration,
}

/// What is measured: clients send through it from inside `client`.
trait Contender {
    /// Its name in the table.
    fn kind(&self) -> &'static str;
    /// Where clients are.
    fn client(&self) -> &lab::Netns;
    /// The processes that do the work.
    fn pids(&self) -> &[u32];
}

fn main() {
    let quick = std::env::var("QUICK").is_ok_and(|value| !value.is_empty() && value != "0");
    let plan = if quick {
        Plan { quick, rounds: 3, each: Duration::from_millis(500) }
    } else {
        Plan { quick, rounds: 5, each: Duration::from_secs(3) }
    };
    // Cargo itself passes `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let asked = |half: &str| wanted.is_empty() || wanted.iter().any(|w| w == half);
    let facts = facts::collect();
    let mut halves = Vec::new();
    if asked("udp") {
        halves.push(udp(&plan));
    }
    if asked("dns") {
        halves.push(dns(&plan));
    }
    report::finish(&facts, &plan, &halves);
}

fn udp(plan: &Plan) -> Half {
    let lab = Lab::new("bench-udp");
    let origin = lab.node("origin");
    ways::echo(&origin);
    let all: Vec<ways::Way> = ways::KINDS.iter().map(|kind| ways::Way::new(kind, &lab, &origin)).collect();
    let mut half = Half::new("UDP echo", Some("kernel DNAT"), "datagrams");
    rounds(plan, &all, &ways::LOADS, &mut half);
    half.overflowed = all.iter().map(|way| (way.kind, way.overflowed())).collect();
    drop(all);
    half.sessions = Some(ways::memory_per_session(&lab, &origin));
    half
}

fn dns(plan: &Plan) -> Half {
    let lab = Lab::new("bench-dns");
    let all: Vec<names::Server> = names::KINDS.iter().map(|kind| names::Server::new(kind, &lab)).collect();
    let mut half = Half::new("names", None, "answers");
    rounds(plan, &all, &names::LOADS, &mut half);
    for server in &all {
        half.resident.push((server.kind(), cpu::resident(server.pids())));
    }
    half
}

fn rounds<C: Contender>(plan: &Plan, contenders: &[C], loads: &[Load<C>], half: &mut Half) {
    for round in 0..plan.rounds {
        for load in loads {
            for place in 0..contenders.len() {
                // Another one goes first in each round.
                let contender = &contenders[(place + round) % contenders.len()];
                if round == 0 {
                    load.run(contender, plan.each / 5);
                }
                let outcome: Outcome = load.run(contender, plan.each);
                half.add(load.title, contender.kind(), outcome);
            }
            eprint!(".");
        }
    }
    eprintln!();
    half.order = loads.iter().map(|load| load.title).collect();
    half.kinds = contenders.iter().map(Contender::kind).collect();
}
