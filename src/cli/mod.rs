//! The commands, one file each, and what they share: output and exit codes.
//!
//! Nothing here decides anything about traffic; nothing else in the crate prints.

/// `cleanup`: what older versions and this program left.
pub mod cleanup;
/// Results on standard output.
pub mod out;

pub use out::Output;

/// How a command ended. The numbers are part of the public contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed while running; one line says why.
    Failed = 1,
    /// `check` found a problem, or `cleanup` kept something that it may not remove.
    Found = 2,
    /// Wrong flags or configuration; nothing was changed.
    Usage = 64,
}
