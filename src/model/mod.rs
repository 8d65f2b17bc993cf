//! What this node serves: services, their frontends, the backends of each and the way each backend is reached.
//!
//! Everything here is pure: objects go in, an immutable [`Snapshot`] comes out, and whatever was left out carries
//! its reason. No sockets, no files, no clock; those belong to `source`, `rules` and `proxy`.
//!
//! The way of an object: [`Store`] keeps it and knows which services it concerns (`index`), `build` turns one
//! Service into its ports, `gather` collects the endpoints of a port, `reach` finds the address that this node
//! dials, `onward` bars those that would come back here by way of other Services, `topology` says which of them may be
//! picked, `traffic` reads how, `exposure` finds what is offered outside of the cluster. [`diff`] compares two
//! snapshots, [`ranges`] finds what to capture, [`explain`] answers for one destination.

mod build;
pub mod diff;
pub mod explain;
mod exposure;
mod external;
mod gather;
mod index;
mod local;
mod names;
mod onward;
pub mod ranges;
mod reach;
mod store;
#[cfg(test)]
mod testing;
mod topology;
mod traffic;
mod types;
mod unsupported;

pub use external::{Audience, Door, External, ExternalFrontend, ExternalKind, HealthCheck, Here, Via};
pub use local::Local;
pub use store::Store;
pub use types::*;
pub use unsupported::unsupported;
