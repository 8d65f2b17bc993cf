//! What the cluster's users are told by events: found in the snapshot and in the neighbourhood.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::{Exclusion, ServiceId, ServicePort, Snapshot, unsupported};
use crate::source::events::{About, Notice, Notices, Reason, Recorder};

use super::control::Shared;
use super::neighbours::Warnings;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);

/// Finds what is to be told, and has it told, until `stop`.
pub(super) fn start(
    recorder: Recorder,
    shared: &Arc<Shared>,
    neighbours: &Warnings,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let (told, notices) = watch::channel(Notices::default());
    tasks.spawn(recorder.run(notices, stop.clone()));
    tasks.spawn(follow(Arc::clone(shared), neighbours.clone(), told, stop.clone()));
}

/// Keeps `notices` true until `stop`.
async fn follow(
    shared: Arc<Shared>,
    neighbours: Warnings,
    notices: watch::Sender<Notices>,
    stop: CancellationToken,
) {
    let mut seen: Arc<Snapshot> = Arc::default();
    let mut of_services = Vec::new();
    let work = async {
        loop {
            tokio::time::sleep(EVERY).await;
            let snapshot = shared.snapshot.load_full();
            if !Arc::ptr_eq(&snapshot, &seen) {
                of_services = in_snapshot(&snapshot);
                seen = snapshot;
            }
            let conflicts = neighbours.conflicts().into_iter().map(|message| Notice {
                about: About::Node,
                reason: Reason::ConflictingProxy,
                message,
            });
            notices.send_replace(Arc::new(of_services.iter().cloned().chain(conflicts).collect()));
        }
    };
    stop.run_until_cancelled(work).await;
}

fn in_snapshot(snapshot: &Snapshot) -> Vec<Notice> {
    let mut stranded: BTreeMap<&ServiceId, Vec<String>> = BTreeMap::new();
    for port in snapshot.ports.values() {
        if let Some(why) = unreachable(port) {
            stranded.entry(&port.id.service).or_default().push(why);
        }
    }
    let about =
        |id: &ServiceId| About::Service { namespace: id.namespace.to_string(), name: id.name.to_string() };
    let stranded = stranded.into_iter().map(|(id, why)| Notice {
        about: about(id),
        reason: Reason::NoReachableBackend,
        message: why.join("; "),
    });
    let unsupported = unsupported(snapshot).into_iter().map(|(id, message)| Notice {
        about: about(&id),
        reason: Reason::UnsupportedProtocol,
        message,
    });
    stranded.chain(unsupported).collect()
}

/// Why this node reaches none of the endpoints, where they themselves are ready.
fn unreachable(port: &ServicePort) -> Option<String> {
    let sets = [&port.v4, &port.v6];
    if sets.iter().any(|set| !set.eligible.is_empty()) {
        return None;
    }
    let all = sets.iter().flat_map(|set| &set.excluded);
    let is_ours = |why: &Exclusion| {
        matches!(why, Exclusion::Unreachable(_) | Exclusion::Loop(_) | Exclusion::Invalid(_))
    };
    let ours: Vec<_> = all.filter(|excluded| is_ours(&excluded.why)).collect();
    let first = ours.first()?;
    let (number, protocol) = (port.number, port.id.protocol);
    Some(format!(
        "port {number}/{protocol}: this node can reach none of its endpoints, such as {} ({})",
        first.backend.endpoint, first.why
    ))
}
