//! Which backend a connection goes to: policies, health, affinity, and the data plane's view of the snapshot.
//!
//! Picking is pure: time comes in, nothing is dialled here, and no lock is taken (services with client affinity
//! excepted). What does not belong here: sockets, timeouts, retries; those are `proxy`'s.

pub mod affinity;
pub mod health;
mod http;
mod pool;
mod tallies;
mod upstream;
mod upstreams;

pub use health::{EjectionPolicy, Health, Standing, Tick};
pub use http::{Bound, HttpCounters, HttpNumbers, LATENCY_BOUNDS_US, Place};
pub use pool::{Caller, Endpoint, Lease, Pool, key_of};
pub use tallies::{DialEnd, Tallies};
pub use upstream::{PortCounters, Upstream};
pub use upstreams::{BackendState, BackendView, Carried, Held, PortView, Upstreams};
