//! What has changed between two snapshots, for those who hold something per service port.

use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::external::Door;
use super::types::{Frontend, PortId, ServicePort, Snapshot};

/// What has changed between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Service ports that are new.
    pub added: Vec<Arc<ServicePort>>,
    /// Service ports that are gone.
    pub removed: Vec<PortId>,
    /// Service ports that are not what they were, as before and as now.
    pub changed: Vec<(Arc<ServicePort>, Arc<ServicePort>)>,
    /// Frontends that have a backend now and had none (or did not exist).
    pub served: Vec<Frontend>,
    /// Frontends that had a backend and have none now (or are gone).
    pub unserved: Vec<Frontend>,
}

impl Diff {
    /// True if nothing has changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares two snapshots. Parts that they share are skipped, so that the cost is that of the change.
pub fn diff(old: &Snapshot, new: &Snapshot) -> Diff {
    let mut out = Diff::default();
    for item in old.ports.diff(&new.ports) {
        match item {
            DiffItem::Add(_, port) => out.added.push(port.clone()),
            DiffItem::Remove(id, _) => out.removed.push(id.clone()),
            DiffItem::Update { old: (_, before), new: (_, now) } => {
                out.changed.push((before.clone(), now.clone()));
            }
        }
    }
    for item in old.frontends.diff(&new.frontends) {
        let (frontend, before, now) = match item {
            DiffItem::Add(key, now) => (key, None, Some(now)),
            DiffItem::Remove(key, before) => (key, Some(before), None),
            DiffItem::Update { old: (key, before), new: (_, now) } => (key, Some(before), Some(now)),
        };
        let served = |port: Option<&Arc<ServicePort>>| port.is_some_and(|p| p.is_served(frontend.addr()));
        match (served(before), served(now)) {
            (false, true) => out.served.push(*frontend),
            (true, false) => out.unserved.push(*frontend),
            _ => {}
        }
    }
    out
}

/// The external frontends that are new or gone, or serve others than before: each with what the packet filter must
/// know of it now, `None` where it is gone.
pub fn doors(old: &Snapshot, new: &Snapshot) -> Vec<(Frontend, Option<Door>)> {
    let items = old.external.diff(&new.external).map(|item| match item {
        DiffItem::Add(at, port) | DiffItem::Update { new: (at, port), .. } => {
            (*at, Some(port.door(at.addr())))
        }
        DiffItem::Remove(at, _) => (*at, None),
    });
    items.collect()
}
