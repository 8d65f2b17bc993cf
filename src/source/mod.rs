//! Where Kubernetes objects come from.
//!
//! A source turns files or an API into [`Update`]s of slim objects and says how it is doing ([`SourceStatus`]).
//! It knows nothing of snapshots, rules or connections, and nothing downstream ever asks it anything.

mod backoff;
pub mod cache;
pub mod cached;
pub mod choose;
pub mod events;
mod fault;
pub mod follow;
pub mod kube;
pub mod kubernetes;
mod live;
pub mod manifests;
pub mod metaserver;
mod mirror;
mod range;
mod resource;
pub mod slim;
mod trust;
mod wire;

use std::future::Future;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use slim::{Object, ObjectKey};

#[cfg(any(test, fuzzing))]
pub(crate) use wire::read_bytes as read_answer;

/// News from a source.
#[derive(Clone, Debug)]
pub enum Update {
    /// The full state: whatever is not in it is gone.
    Replace(Vec<Object>),
    /// One object was added or changed.
    Upsert(Box<Object>),
    /// One object is gone.
    Delete(ObjectKey),
}

/// How fresh the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// The source has delivered its full state and keeps it current.
    Synced,
    /// Serving from the disk cache; the source has not answered yet.
    Cached,
    /// The source was synced and has been lost since.
    Stale,
    /// The source's newest state could not be read; the last good one stays in force.
    Error,
}

impl SourceState {
    /// The word of the public contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Cached => "cached",
            Self::Stale => "stale",
            Self::Error => "error",
        }
    }
}

/// A source's own account of itself.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    /// `manifests`, `kubernetes` or `metaserver`.
    pub kind: &'static str,
    /// How fresh the data is.
    pub state: SourceState,
    /// When the data in force was last known to be current.
    pub fresh_at: Instant,
    /// What is wrong, in words; empty when nothing is.
    pub message: String,
    /// Objects that cannot be read and are passed over.
    pub unreadable: Unreadable,
}

/// Objects that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// How many.
    pub count: usize,
    /// The first few, one line each: which, why, and what follows.
    pub first: Vec<String>,
}

/// Where a source puts its news.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Updates, in order.
    pub updates: mpsc::Sender<Update>,
    /// The latest status.
    pub status: watch::Sender<SourceStatus>,
}

/// Something that delivers objects until it is stopped.
pub trait Source: Send + 'static {
    /// Runs until `stop` is cancelled. Faults are reported through the sink's status and retried; an error is
    /// returned only when going on makes no sense.
    fn run(self, sink: Sink, stop: CancellationToken) -> impl Future<Output = anyhow::Result<()>> + Send;
}
