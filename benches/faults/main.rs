//! What faults cost, measured with a build like the one that is shipped.
//!
//! `crash`: the worker is killed under load. `kills`: so it is a hundred times, at random moments. `relist`: the API server has the agent list 10,000 services over and over.
//! `soak`: every fault at once, for ten minutes unless `SOAK_SECONDS` says otherwise, in the order that `SOAK_SEED` gives;
//! run it with `make soak`. `PROGRAM=path` takes another build of the agent than cargo made.

// It is a program for people: it prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::unwrap_used, reason = "a measurement ends where its set-up does")]

#[path = "../../tests/apiserver/mod.rs"]
#[allow(dead_code, reason = "the scripted server can do more than is used here")]
mod apiserver;
#[path = "../../tests/faults/cgroup.rs"]
mod cgroup;
#[path = "../../tests/faults/cloud.rs"]
mod cloud;
mod crash;
mod kills;
#[path = "../../tests/lab/mod.rs"]
mod lab;
mod plot;
mod relist;
#[path = "../../tests/faults/scene.rs"]
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
mod scene;
mod soak;

use lab::AgentBuilder;

fn main() {
    let what: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    match what.first().map(String::as_str) {
        Some("crash") => crash::run(),
        Some("kills") => kills::run(),
        Some("relist") => relist::run(),
        Some("soak") => soak::run(),
        _ => println!("one of crash, kills, relist, soak"),
    }
}

/// The build that is to be measured.
fn built(agent: AgentBuilder) -> AgentBuilder {
    match std::env::var("PROGRAM") {
        Ok(path) => agent.program(&path),
        Err(_) => agent,
    }
}

/// A quantile of sorted times, in milliseconds.
fn quantile(times: &[std::time::Duration], part: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    let place = (last as f64 * part).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    times.get(place as usize).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
