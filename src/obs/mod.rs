//! Logs, metrics and the admin endpoint. A leaf: anyone may use it, it uses nothing of ours.

pub mod access;
/// The admin endpoint.
pub mod admin;
pub mod api;
pub mod health_port;
/// Logging to standard error.
pub mod log;
pub mod machine;
pub mod meter;
/// Metrics in OpenMetrics text.
pub mod metrics;
mod process;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, or `unknown` where the build had no history at hand.
pub const COMMIT: &str = env!("EDGESPLICE_COMMIT");
