//! Sockets: the only place in the program that sets a socket option or a process limit.
//!
//! Plain std and tokio types go in and out. Nothing here knows services, snapshots or settings.

pub mod link;
pub mod sock;
