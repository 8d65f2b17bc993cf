//! Handing the node over from one agent to the next without a moment in which nobody serves it.
//!
//! The one that runs is the *giver*, the one that comes is the *taker*. Each is a state machine, [`giver`] and
//! [`taker`]: events in, actions out, no clock, no socket. [`words`] is what they say to each other. The order is such
//! that whoever dies, at whatever step, leaves one owner:
//!
//! ```text
//! taker                                   giver
//!   "take-over"  ─────────────────────────►  knows that somebody is coming: told to stop, it waits for them
//!   loads, until it could serve
//!   "yield"      ─────────────────────────►  stops writing rules, goes on serving
//!   has the lock ◄─────────────── "yielded"  with the lock and its listeners beside
//!   writes the rules, to its own port
//!   "done"       ─────────────────────────►  lets go of the lock, drains, ends
//! ```
//!
//! The end of the connection is a word as well: before "done" it makes the giver take everything back, and makes the
//! taker go on alone. What carries out the actions lives in `app`. What must not come in: sockets, rules, time.

pub mod giver;
pub mod taker;
pub mod words;

#[cfg(test)]
mod explore_tests;

pub use giver::Giver;
pub use taker::Taker;
