//! What this node serves: services, their frontends, the backends of each and the way each backend is reached.
//!
//! Everything here is pure: objects go in, an immutable [`Snapshot`] comes out, and whatever was left out carries
//! its reason. No sockets, no files, no clock; those belong to `source`, `rules` and `proxy`.

mod types;

pub use types::*;
