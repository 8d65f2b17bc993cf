//! The worker's side of its keeper: what outlives this process is left there, and the agent shows that it moves.
//!
//! A thread of its own does both. It shares no runtime with the work, so that it can tell when that is stuck, and it may
//! wait for a keeper that is slow.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::config::{ProxySettings, Settings};
use crate::keeper::{ACCEPTOR, BEAT, Restarts, Store};
use crate::life::pen::Pen;
use crate::net::shelf::{Shelf, Use, Word};
use crate::obs::api::Condition;
use crate::proxy::Proxy;

use super::data::{self, FIRST_SNAPSHOT};
use super::report::Reporter;

/// How often readiness is looked at until it is there.
const READY_LOOK: Duration = Duration::from_millis(50);
/// How late this thread may be until what it sees of the others says nothing: it has not run, so they have not either.
const LATE: Duration = Duration::from_secs(3);

/// The keeper, as the rest of the agent sees it. Everything works without one, and nothing outlives the process then.
pub(super) struct Kept {
    keeper: Option<(Store, Receiver<Word>)>,
    words: Sender<Word>,
    shelf: Arc<Shelf>,
    begin: CancellationToken,
    restarts: Restarts,
}

impl Kept {
    /// Takes what an earlier process has left.
    pub(super) fn new(keeper: Option<Store>) -> Self {
        let (words, heard) = channel();
        let begin = CancellationToken::new();
        let Some(mut store) = keeper else {
            begin.cancel();
            let (shelf, restarts) = (Arc::default(), Restarts::default());
            return Self { keeper: None, words, shelf, begin, restarts };
        };
        match store.last() {
            Some(last) => warn!("the agent's last process {last}; this one goes on where it stood"),
            None => begin.cancel(),
        }
        let left = Use::ALL.map(|of| (of, store.take(of.group())));
        let shelf = Arc::new(Shelf::new(left, words.clone()));
        let restarts = store.restarts();
        Self { keeper: Some((store, heard)), words, shelf, begin, restarts }
    }

    /// Where sockets are opened that are to outlive this process.
    pub(super) fn shelf(&self) -> Arc<Shelf> {
        Arc::clone(&self.shelf)
    }

    /// Cancelled once those who have queued while no process lived may be served: there is a snapshot, or there will be
    /// none so soon.
    pub(super) fn begin(&self) -> CancellationToken {
        self.begin.clone()
    }

    /// How often the agent has been started again.
    pub(super) fn restarts(&self) -> Restarts {
        self.restarts
    }

    /// Whether an agent of this keeper has worked before.
    pub(super) fn worked(&self) -> bool {
        self.keeper.as_ref().is_some_and(|(store, _)| store.worked())
    }

    /// Tells the keeper at once that the node is an agent's of another keeper.
    pub(super) fn yielded(&self) -> io::Result<()> {
        self.keeper.as_ref().map_or(Ok(()), |(store, _)| store.yielded())
    }

    /// What the keeper can be told later on.
    pub(super) fn words(&self) -> Words {
        Words(self.words.clone())
    }

    /// The acceptor on the sockets that the keeper holds, or on new ones for it to hold; and whether they were held.
    /// `theirs` is the port of the agent that has the node.
    pub(super) fn acceptor(
        &mut self,
        settings: &Settings,
        theirs: Option<u16>,
    ) -> anyhow::Result<(Proxy, bool)> {
        let (threads, own_mark) = (data::threads(&settings.proxy), settings.intercept.own_mark);
        let held = self.keeper.as_mut().map(|(store, _)| store.take(ACCEPTOR)).unwrap_or_default();
        let adopted = Proxy::adopt(held, &settings.proxy, own_mark, threads)?;
        let is_adopted = adopted.is_some();
        let proxy = match adopted {
            Some(proxy) => proxy,
            None if theirs == Some(settings.proxy.port) => {
                warn!(
                    port = settings.proxy.port,
                    "the agent that is here has the acceptor's port until it has ended: this one takes a free one, \
                     until its next start"
                );
                let free = ProxySettings { port: 0, ..settings.proxy.clone() };
                Proxy::bind_sharded(&free, own_mark, threads)?
            }
            None => Proxy::bind_sharded(&settings.proxy, own_mark, threads)?,
        };
        if let Some((store, _)) = &self.keeper
            && let Err(error) = store.keep(ACCEPTOR, proxy.sockets())
        {
            warn!(%error, "the acceptor's sockets will not outlive this process");
        }
        Ok((proxy, is_adopted))
    }

    /// Begins to speak with the keeper. Must be called on the control thread, which puts the first snapshot in force.
    pub(super) fn start(
        self,
        reporter: Arc<Reporter>,
        pen: Arc<Pen>,
        stopping: CancellationToken,
        tasks: &TaskTracker,
    ) -> anyhow::Result<()> {
        let Self { keeper, words, shelf, begin, .. } = self;
        let (upstreams, until) = (Arc::clone(&reporter.upstreams), stopping.clone());
        tasks.spawn(async move {
            let first = tokio::time::timeout(FIRST_SNAPSHOT, upstreams.begun());
            let _ = until.run_until_cancelled(first).await;
            // What was put in force has taken back what it needs: this task runs on the thread that does so.
            begin.cancel();
            shelf.let_go();
        });
        let Some((store, heard)) = keeper else { return Ok(()) };
        let stop = stopping.clone();
        tasks.spawn(async move {
            stop.cancelled().await;
            // From now on clients are to be refused, not left to queue.
            let _ = words.send(Word::LetGo(ACCEPTOR.to_owned()));
        });
        let speaking = move || {
            Speaker { store, reporter, pen, stopping, ready: false, ending: false, looked: None }.run(&heard);
        };
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(speaking)
            .context("cannot start the thread that speaks with the keeper")?;
        Ok(())
    }
}

/// The way to the keeper for those who have something to say; lost where there is none.
#[derive(Clone, Debug)]
pub(super) struct Words(Sender<Word>);

impl Words {
    /// The node is an agent's of another keeper.
    pub(super) fn yielded(&self) {
        let _ = self.0.send(Word::Yielded);
    }
}

struct Speaker {
    store: Store,
    reporter: Arc<Reporter>,
    pen: Arc<Pen>,
    stopping: CancellationToken,
    ready: bool,
    ending: bool,
    /// When it was last looked whether everything moves.
    looked: Option<Instant>,
}

impl Speaker {
    /// Speaks until this process has nothing more to say.
    fn run(mut self, heard: &Receiver<Word>) {
        let mut next = Instant::now();
        loop {
            let said = match heard.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Word::Keep(name, socket)) => self.store.keep(&name, &[socket]),
                Ok(Word::LetGo(name)) => self.store.keep::<OwnedFd>(&name, &[]),
                Ok(Word::Yielded) => {
                    // What is left to do is to let open connections end.
                    self.ending = true;
                    self.store.yielded()
                }
                Err(RecvTimeoutError::Timeout) => {
                    next = Instant::now() + if self.ready { BEAT } else { READY_LOOK };
                    self.beat()
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let said = said.and_then(|()| self.end());
            if let Err(error) = said {
                debug!(%error, "the keeper cannot be told");
            }
        }
    }

    /// Once the end has begun, nothing need move any more.
    fn end(&mut self) -> io::Result<()> {
        if self.ending || !self.stopping.is_cancelled() {
            return Ok(());
        }
        self.ending = true;
        self.store.ending()
    }

    fn beat(&mut self) -> io::Result<()> {
        if self.ending || self.stopping.is_cancelled() {
            return Ok(());
        }
        if !self.ready && self.reporter.conditions().iter().all(|condition| condition.ok) {
            self.ready = true;
            self.store.ready()?;
        }
        // Until it is ready, this comes by more often than it need speak.
        if self.looked.is_some_and(|at| at.elapsed() < BEAT / 2) {
            return Ok(());
        }
        if !self.pen.is_held() {
            // The node is being handed over: what waits for another agent is not stuck.
            self.looked = None;
            return self.store.moves();
        }
        // After a pause of the whole process the others have not had their turn yet.
        let late = self.looked.replace(Instant::now()).is_some_and(|at| at.elapsed() > BEAT + LATE);
        match self.reporter.live().into_iter().filter(|_| !late).find(|condition| !condition.ok) {
            None => self.store.moves(),
            Some(Condition { name, detail, .. }) => {
                error!("{name} is stuck: {detail}");
                self.store.stuck(&format!("{name}: {detail}"))
            }
        }
    }
}
