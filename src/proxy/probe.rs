//! Finds out when backends that all refused accept again.
//!
//! Clients of such a service port are refused before they are accepted, so none of them can find out. A dial to a port
//! that refuses costs two packets, and the backend does not notice it; only the one that succeeds is seen there, as a
//! connection that ends at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::balance::{Held, Upstreams};
use crate::net::sock;

/// Pause between two rounds: how long clients may be refused after a backend has come back.
const EVERY: Duration = Duration::from_millis(500);
/// Longest wait for an answer. A backend that gives none does not refuse.
const PATIENCE: Duration = Duration::from_secs(1);

/// Probes what is held until `stop` is cancelled. `mark` is the packet mark of outbound connections.
pub async fn run(upstreams: Arc<Upstreams>, mark: u32, stop: CancellationToken) {
    let mut changes = upstreams.health_changes();
    let work = async {
        loop {
            let held = upstreams.held();
            if held.is_empty() {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            sleep(EVERY).await;
            join_all(held.iter().map(|one| probe(&upstreams, one, mark))).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Releases `held` as soon as one of its backends does something else than refuse.
async fn probe(upstreams: &Upstreams, held: &Held, mark: u32) {
    for endpoint in held.pool().endpoints() {
        let started = tokio::time::Instant::now();
        let answer = timeout(PATIENCE, sock::connect(endpoint.addr, mark, false)).await;
        match answer {
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            // This machine's own trouble says nothing.
            Ok(Err(e)) if sock::is_local_fault(&e) => return,
            Ok(Ok(_)) => endpoint.health.succeeded(upstreams.now(), started.elapsed()),
            Ok(Err(_)) | Err(_) => {}
        }
        return upstreams.release(held);
    }
}
