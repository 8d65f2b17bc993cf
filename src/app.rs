//! Composition root.

use anyhow::bail;

use crate::config::Settings;
use crate::obs::api::{Finding, Resolution};

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(_: Settings) -> anyhow::Result<()> {
    bail!("this build has no data plane")
}

/// Answers `resolve` from the source alone.
pub fn resolve_offline(_: &Settings, _: &str) -> anyhow::Result<Resolution> {
    bail!("this build has no source")
}

/// The rules that `run` would install.
pub fn render_rules(_: &Settings) -> anyhow::Result<String> {
    bail!("this build has no rules")
}

/// What would stop the agent on this machine.
pub fn check(_: &Settings) -> Vec<Finding> {
    Vec::new()
}
