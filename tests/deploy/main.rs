//! What is in `deploy/`, held to the rules of those who read it: kubectl, helm, Kubernetes' schemas, systemd, and a
//! container runtime that runs the agent with the rights of the `DaemonSet` and no others.
//!
//! The programs for it come from `scripts/tools.sh`, which `make test` calls: without them these tests fail.

#[path = "../lab/mod.rs"]
mod lab;

mod chart;
mod container;
mod discovery;
mod manifests;
mod packaging;
mod systemd;
mod tools;
