//! Faults, each with traffic running and counted: nothing is lost but what the fault itself cuts.
//!
//! `cargo test --test faults -- --nocapture` prints the lines of the table in `docs/bench/faults.md`. Backends that fail,
//! the limit of descriptors and used-up local ports are in `failures.rs` and `load.rs`; everything at once is
//! `make soak`.

#![allow(clippy::print_stdout, reason = "lines of a table, beside what is asserted")]
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up does")]

#[path = "../apiserver/mod.rs"]
#[allow(dead_code, reason = "the scripted server can do more than is tested here")]
mod apiserver;
mod cgroup;
#[allow(dead_code, reason = "shared with the benchmark")]
mod cloud;
#[path = "../lab/mod.rs"]
mod lab;
mod machine;
mod process;
#[allow(dead_code, reason = "shared with the benchmark")]
mod scene;
mod source;
mod wedge;
