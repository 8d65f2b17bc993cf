//! The composition root: binds everything first, wires it, and returns a handle to the running agent.
//!
//! Only `cli` and the tests import this module. No behaviour of its own belongs here beyond order: what starts
//! before what, and what ends before what.

pub mod instance;
