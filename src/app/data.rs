//! The data plane's own runtime, and the pulse that tells whether it moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::balance::Upstreams;
use crate::config::ProxySettings;
use crate::life::Drain;
use crate::proxy::Proxy;

/// Worker threads at most, where the user did not say: an edge node's cores are for its pods.
const MOST_WORKERS: usize = 2;
/// How often the data plane shows that it moves.
const BEAT: Duration = Duration::from_secs(1);
/// How old the last beat may be before the data plane counts as stuck.
const STUCK: Duration = Duration::from_secs(10);

/// The data plane's thread and runtime.
pub(super) struct DataPlane {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
    pulse: Pulse,
    runtime: Handle,
}

/// When the data plane last showed that it moves.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    epoch: Instant,
    /// Milliseconds after `epoch`.
    last: Arc<AtomicU64>,
}

impl Pulse {
    fn new() -> Self {
        Self { epoch: Instant::now(), last: Arc::default() }
    }

    fn beat(&self) {
        let millis = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Relaxed);
    }

    /// Time since the last beat, and whether that is still good.
    pub(super) fn age(&self) -> (Duration, bool) {
        let age = self.epoch.elapsed().saturating_sub(Duration::from_millis(self.last.load(Relaxed)));
        (age, age < STUCK)
    }
}

impl DataPlane {
    /// Starts the runtime in a thread of its own and serves on it.
    pub(super) fn start(
        proxy: Proxy,
        settings: &ProxySettings,
        upstreams: Arc<Upstreams>,
        drain: Drain,
    ) -> anyhow::Result<Self> {
        let workers = match settings.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS),
            n => n,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("data")
            .enable_all()
            .build()
            .context("cannot start the data plane's runtime")?;
        let handle = runtime.handle().clone();
        let pulse = Pulse::new();
        let beating = pulse.clone();
        let (done, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("data-main".to_owned())
            .spawn(move || {
                let result = runtime.block_on(async {
                    tokio::spawn(async move {
                        loop {
                            beating.beat();
                            tokio::time::sleep(BEAT).await;
                        }
                    });
                    tokio::spawn(proxy.serve(upstreams, drain)).await.context("the data plane has failed")?
                });
                let _ = done.send(result);
                // What is left are connections that were told to end; they are cut with the process.
                runtime.shutdown_background();
            })
            .context("cannot start the data plane's thread")?;
        Ok(Self { thread, ended, pulse, runtime: handle })
    }

    /// The runtime, for work that belongs to the data plane.
    pub(super) fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    /// The pulse, for the health report.
    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Ends only if the data plane ends without having been told to.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.ended).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => anyhow::anyhow!("the data plane has ended by itself"),
        }
    }

    /// Waits for the thread's end.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the data plane's thread has panicked");
        }
    }
}
