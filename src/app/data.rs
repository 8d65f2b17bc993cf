//! The data plane's threads, one runtime each, and the pulse that tells whether they move.
//!
//! A connection stays on the thread whose socket accepted it. Measured against one runtime with as many workers: see
//! `docs/bench/syscalls.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::balance::Upstreams;
use crate::config::ProxySettings;
use crate::life::Drain;
use crate::life::pen::Pen;
use crate::proxy::{Proxy, Shard};

/// Threads at most, where the user did not say: an edge node's cores are for its pods.
const MOST_WORKERS: usize = 2;
/// Longest wait of clients that queued while no worker lived for the first snapshot: without a disk cache it may take
/// for ever, and they are better told.
pub(super) const FIRST_SNAPSHOT: Duration = Duration::from_secs(5);
/// How often a thread shows that it moves.
const BEAT: Duration = Duration::from_secs(1);
/// How old the last beat may be before a thread counts as stuck.
const STUCK: Duration = Duration::from_secs(10);

/// The data plane's threads.
pub(super) struct DataPlane {
    threads: Vec<JoinHandle<()>>,
    ended: mpsc::UnboundedReceiver<anyhow::Result<()>>,
    pulse: Pulse,
    runtimes: Vec<Handle>,
}

/// When something last showed that it moves.
#[derive(Debug)]
pub(super) struct Beat {
    epoch: Instant,
    /// In milliseconds after `epoch`.
    last: AtomicU64,
}

impl Beat {
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(super) fn beat(&self) {
        let millis = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Relaxed);
    }

    /// Time since the last beat.
    pub(super) fn age(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_millis(self.last.load(Relaxed)))
    }
}

/// When the threads of the data plane last showed that they move.
#[derive(Clone, Debug)]
pub(super) struct Pulse(Arc<[Beat]>);

impl Pulse {
    fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Beat::new()).collect())
    }

    /// Time since the last beat of the thread that is furthest behind, and whether that is still good.
    pub(super) fn age(&self) -> (Duration, bool) {
        let age = self.0.iter().map(Beat::age).max().unwrap_or_default();
        (age, age < STUCK)
    }
}

/// How many threads the data plane gets, and with them how many sockets the acceptor needs.
pub(super) fn threads(settings: &ProxySettings) -> usize {
    match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS),
        n => n,
    }
}

impl DataPlane {
    /// Starts a thread with a runtime for each of the acceptor's sockets and serves there.
    /// `adopted`: clients may have queued on the sockets already, so nobody is served before there is a snapshot. `pen`:
    /// nor before the node is this agent's: whoever comes earlier is another's.
    pub(super) fn start(
        proxy: Proxy,
        upstreams: &Arc<Upstreams>,
        drain: &Drain,
        adopted: bool,
        pen: &Arc<Pen>,
    ) -> anyhow::Result<Self> {
        let shards = proxy.into_shards();
        let pulse = Pulse::new(shards.len());
        let (done, ended) = mpsc::unbounded_channel();
        let mut threads = Vec::with_capacity(shards.len());
        let mut runtimes = Vec::with_capacity(shards.len());
        for (number, shard) in shards.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start a runtime of the data plane")?;
            runtimes.push(runtime.handle().clone());
            let (waited, stop) = (Arc::clone(upstreams), drain.stop().clone());
            let serving = serve(shard, number, pulse.clone(), Arc::clone(upstreams), drain.clone());
            let pen = Arc::clone(pen);
            let work = async move {
                tokio::select! {
                    () = pen.held() => {}
                    () = stop.cancelled() => {}
                }
                if adopted {
                    tokio::select! {
                        () = waited.begun() => {}
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(FIRST_SNAPSHOT) => {}
                    }
                }
                serving.await
            };
            let done = done.clone();
            let thread = std::thread::Builder::new()
                .name(format!("data-{number}"))
                .spawn(move || {
                    let _ = done.send(runtime.block_on(work));
                    // What is left are connections that were told to end; they are cut with the process.
                    runtime.shutdown_background();
                })
                .context("cannot start a thread of the data plane")?;
            threads.push(thread);
        }
        Ok(Self { threads, ended, pulse, runtimes })
    }

    /// The threads' runtimes, at least one, for work that belongs to the data plane.
    pub(super) fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// All runtimes of the agent but the admin endpoint's, each with its name. Called on the control thread.
    pub(super) fn named(&self) -> Vec<(String, Handle)> {
        let data = self.runtimes.iter().enumerate().map(|(n, handle)| (format!("data-{n}"), handle.clone()));
        data.chain([("control".to_owned(), Handle::current())]).collect()
    }

    /// The pulse, for the health report.
    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Ends only if a part of the data plane ends without having been told to.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.ended.recv().await {
            Some(Err(error)) => error,
            Some(Ok(())) | None => anyhow::anyhow!("a thread of the data plane has ended by itself"),
        }
    }

    /// Waits for the threads' end.
    pub(super) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane has panicked");
            }
        }
    }
}

async fn serve(
    shard: Shard,
    number: usize,
    pulse: Pulse,
    upstreams: Arc<Upstreams>,
    drain: Drain,
) -> anyhow::Result<()> {
    let beating = tokio::spawn(async move {
        loop {
            pulse.0[number].beat();
            tokio::time::sleep(BEAT).await;
        }
    });
    let served = tokio::spawn(shard.serve(upstreams, drain)).await.context("the data plane has failed")?;
    beating.abort();
    served
}
