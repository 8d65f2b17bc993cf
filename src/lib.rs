//! `edgesplice`: the transparent service interceptor for KubeEdge edge nodes.
//!
//! Data flows one way: `config → source → model → rules | dns | proxy(→ balance)`. A module may use what stands to
//! its left; `net`, `obs` and `life` are leaves that anyone may use and that use nothing of ours. `app` wires the
//! parts and only `cli` and the tests import it. `tests/layout.rs` holds the source to this table.
#![forbid(unsafe_code)]

// Composition root: binds everything, wires it, and hands back a handle to the running agent.
pub mod app;
// Choice of a backend: policies, health and ejection.
pub mod balance;
// The commands, one file each.
pub mod cli;
// What the user configured, validated and immutable.
pub mod config;
// Names: the cluster's own, and others relayed.
pub mod dns;
// What the process gives up before it begins its work.
pub mod confine;
// Handing the node over to the next agent: who says and does what, pure.
pub mod handover;
// The parent process that outlives the agent's work.
pub mod keeper;
// Readers under hostile input, for tests and fuzzing.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
// Starting, draining and ending of tasks; who may write.
pub mod life;
// Services, backends and how each is reached: pure, no I/O.
pub mod model;
// Sockets: builders, options, original destination.
pub mod net;
// Logs, metrics and the admin endpoint.
pub mod obs;
// The data plane: accept, route, dial, relay.
pub mod proxy;
// Packet-filter rules, routes and sets on the node.
pub mod rules;
// Where Kubernetes objects come from.
pub mod source;
