//! What this program puts into the node's packet filter, and how it keeps it there.
//!
//! Planning ([`plan`]), rendering ([`render`]) and comparing ([`audit`]) are pure; applying goes through the
//! [`Firewall`](apply::Firewall) and [`Machine`] traits, so that the [`Reconciler`] can be tested against an
//! in-memory fake. Only chains, sets, routes and policy rules named in [`names`] are ever written, besides the jumps
//! into them. What older EdgeMesh versions left behind is the business of `legacy`; connections and Services are
//! nobody's here.

pub mod apply;
pub mod audit;
pub mod detect;
pub mod dump;
#[cfg(test)]
mod explore_tests;
#[cfg(test)]
pub(crate) mod fake;
pub mod firewall;
mod install;
pub mod ipset;
mod keep_source;
pub mod leftovers;
pub mod legacy;
pub mod machine;
mod mend;
pub mod names;
pub mod neighbours;
pub mod nft;
mod peek;
pub mod places;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod render;
pub mod routes;
pub mod run;
pub mod scratch;
mod ways;

#[cfg(any(test, fuzzing))]
pub(crate) mod hostile;

/// The file that iptables locks while it changes legacy rules.
pub fn lock_file() -> std::path::PathBuf {
    probe::lock::path()
}

pub use detect::StartError;
pub use leftovers::{leftovers, remove_leftovers};
pub use machine::Machine;
pub use plan::{Capabilities, Wanted};
pub use probe::{Checkup, Finding, Known, Severity, checkup};
pub use reconcile::{Reconciler, RulesError};
pub use run::run;
