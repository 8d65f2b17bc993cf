//! Sockets: the only place in the program that sets a socket option or a process limit, and the list of those that
//! listen.
//!
//! Plain std and tokio types go in and out. Nothing here knows services, snapshots or settings.

pub mod datagram;
pub mod diag;
pub mod link;
pub mod listening;
pub mod netlink;
pub mod parcel;
pub mod queue;
pub mod shelf;
pub mod sock;
