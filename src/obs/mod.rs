//! Logs, metrics and the admin endpoint. A leaf: anyone may use it, it uses nothing of ours.

pub mod api;
/// Logging to standard error.
pub mod log;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, or `unknown` where the build had no history at hand.
pub const COMMIT: &str = env!("EDGESPLICE_COMMIT");
