//! The admin endpoint's thread: a runtime of its own, so that neither a scrape nor a page that somebody has open is felt
//! by anything else, and so that health is told even when another part is stuck.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::obs::admin::AdminServer;

use super::report::Reporter;

/// Threads for answers that take long. Each page and scrape waits for its turn.
const MOST_BLOCKING: usize = 4;

/// Serves until `stop` is cancelled, on a thread of its own.
pub(super) fn start(
    server: AdminServer,
    reporter: Arc<Reporter>,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MOST_BLOCKING)
        .thread_name("admin-work")
        .build()
        .context("cannot start the admin runtime")?;
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::spawn(Arc::clone(&reporter.prober).run(stop.clone()));
                if let Err(error) = server.serve(reporter.handlers(), stop).await {
                    error!("the admin endpoint has failed: {error:#}");
                }
            });
            // A look at the machine may still be under way; nobody waits for it.
            runtime.shutdown_background();
        })
        .context("cannot start the admin thread")
}
