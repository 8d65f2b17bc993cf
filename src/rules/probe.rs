//! What on this machine would stop the rules from working, or make them work wrongly. Changes nothing.

use crate::config::InterceptSettings;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// It works, but less well.
    Warning,
    /// It does not work, or works wrongly.
    Problem,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name for scripts, kebab-case.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, with the object and the value.
    pub what: String,
    /// The command that mends it, or what else to do.
    pub mend: String,
}

/// Looks at this machine.
pub async fn findings(settings: &InterceptSettings) -> Vec<Finding> {
    let _ = settings;
    Vec::new()
}
