//! A live source with the last good objects before it and behind it: served from at once, replaced by the first full
//! state, and kept on disk from then on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::life::pen::Pen;

pub use super::cache::LastGood;
use super::cache::{Cache, Shelf, file};
use super::{Sink, Source, SourceState, SourceStatus, Unreadable, Update};

/// Shortest time between two writes of a small cache; a large one is written more seldom, see [`spacing`].
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// Unchanged objects are written again after this, so that their age on disk stays true to the hour.
const REFRESH_EVERY: Duration = Duration::from_hours(1);
/// How often it is looked whether the objects may be written, while another agent does it.
const PEN_EVERY: Duration = Duration::from_secs(1);
/// Time between attempts while the disk refuses.
const RETRY_EVERY: Duration = Duration::from_mins(1);

/// A source that can take up where an earlier life has ended.
pub trait Resumable: Source {
    /// Kind and address of the server: what the objects on disk are filed under.
    fn identity(&self) -> &str;
    /// The source's name in `status`.
    fn kind(&self) -> &'static str;
    /// A number to be kept with the objects, where the source needs one.
    fn mark(&self) -> Option<Arc<AtomicU64>> {
        None
    }
    /// Takes over what an earlier life has left.
    fn resume(&mut self, last: &LastGood);
}

/// A live source with a cache on disk.
#[derive(Debug)]
pub struct CachedSource<S> {
    inner: S,
    cache: Cache,
    write_every: Duration,
    pen: Arc<Pen>,
}

impl<S: Resumable> CachedSource<S> {
    /// Keeps `inner`'s objects in `state_dir`.
    pub fn new(inner: S, state_dir: &Path) -> Self {
        Self { inner, cache: Cache::open(state_dir), write_every: WRITE_EVERY, pen: Arc::new(Pen::new(true)) }
    }

    /// Writes only while `pen` is held.
    #[must_use]
    pub fn with_pen(mut self, pen: Arc<Pen>) -> Self {
        self.pen = pen;
        self
    }

    /// With another shortest time between two writes than ten seconds.
    #[must_use]
    pub fn with_write_every(mut self, every: Duration) -> Self {
        self.write_every = every;
        self
    }
}

impl<S: Resumable> Source for CachedSource<S> {
    async fn run(mut self, sink: Sink, stop: CancellationToken) -> anyhow::Result<()> {
        let identity = self.inner.identity().to_owned();
        let kind = self.inner.kind();
        let mut note = String::new();
        let last = match self.cache.load(&identity) {
            Ok(last) => last,
            Err(unusable) => {
                tracing::warn!("{unusable}");
                note = unusable.to_string();
                None
            }
        };
        let mut serving_from = None;
        if let Some(last) = last {
            tracing::info!(
                source = kind,
                "serving {} objects from the cache, {} old",
                last.objects.len(),
                humantime::format_duration(Duration::from_secs(last.age().as_secs()))
            );
            self.inner.resume(&last);
            let fresh_at = last.current_at();
            sink.status.send_replace(SourceStatus {
                kind,
                state: SourceState::Cached,
                fresh_at,
                message: String::new(),
                unreadable: Unreadable::default(),
            });
            if sink.updates.send(Update::Replace(last.objects)).await.is_err() {
                return Ok(());
            }
            serving_from = Some(fresh_at);
        }
        let mark = self.inner.mark();
        let keeper = Keeper {
            cache: self.cache,
            identity,
            mark,
            shelf: Shelf::default(),
            write_every: self.write_every,
            written: None,
            looked: None,
            due: None,
            trouble: String::new(),
            pen: self.pen,
        };
        Relay { sink, serving_from, note, keeper }.run(self.inner, stop).await
    }
}

/// Stands between the live source and the rest.
struct Relay {
    sink: Sink,
    /// Set as long as the objects in force come from the disk: when they were current.
    serving_from: Option<std::time::Instant>,
    /// What was wrong with the cache at the start.
    note: String,
    keeper: Keeper,
}

impl Relay {
    async fn run<S: Source>(mut self, inner: S, stop: CancellationToken) -> anyhow::Result<()> {
        let (updates_in, mut updates) = mpsc::channel(64);
        let first = self.sink.status.borrow().clone();
        let (status_in, mut status) = watch::channel(first);
        let running = inner.run(Sink { updates: updates_in, status: status_in }, stop);
        tokio::pin!(running);
        let mut writing: Option<Writing> = None;
        let end = loop {
            let due = self.keeper.due.filter(|_| writing.is_none());
            tokio::select! {
                biased;
                Some(update) = updates.recv() => {
                    if let Update::Replace(_) = update {
                        self.serving_from = None;
                    }
                    self.keeper.follow(&update);
                    if self.sink.updates.send(update).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(()) = status.changed() => {
                    let told = status.borrow_and_update().clone();
                    self.forward(told);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    writing = self.keeper.begin(&status.borrow());
                }
                // A slow disk holds up no update.
                done = async { Some(writing.as_mut()?.done().await) }, if writing.is_some() => {
                    if let (Some(done), Some(writing)) = (done, writing.take()) {
                        self.keeper.finish(writing, done);
                    }
                    let told = status.borrow().clone();
                    self.forward(told);
                }
                end = &mut running => break end,
            }
        };
        if let Some(mut writing) = writing {
            let done = writing.done().await;
            self.keeper.finish(writing, done);
        }
        let told = status.borrow().clone();
        self.keeper.write_last(&told).await;
        end
    }

    fn forward(&self, mut told: SourceStatus) {
        if let Some(fresh_at) = self.serving_from {
            (told.state, told.fresh_at) = (SourceState::Cached, fresh_at);
        }
        // What was wrong at the start is of no interest once the live source has delivered.
        let note = if told.state == SourceState::Synced { "" } else { self.note.as_str() };
        let parts = [told.message.as_str(), note, self.keeper.trouble.as_str()];
        told.message = parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join("; ");
        self.sink.status.send_replace(told);
    }
}

/// What stands on the disk.
struct Written {
    checksum: String,
    at: Instant,
}

/// A write under way.
struct Writing {
    /// `false`: it is another agent's to write by now.
    work: tokio::task::JoinHandle<std::io::Result<bool>>,
    checksum: String,
    begun: Instant,
}

impl Writing {
    async fn done(&mut self) -> std::io::Result<bool> {
        (&mut self.work).await.map_err(std::io::Error::other).flatten()
    }
}

/// Writes the objects to disk, not more often than a flash can take.
struct Keeper {
    cache: Cache,
    identity: String,
    mark: Option<Arc<AtomicU64>>,
    shelf: Shelf,
    write_every: Duration,
    written: Option<Written>,
    /// Until when the objects are not looked at again: each look goes through all of them.
    looked: Option<Instant>,
    /// When to write next.
    due: Option<Instant>,
    /// Why the last write failed.
    trouble: String,
    pen: Arc<Pen>,
}

impl Keeper {
    fn follow(&mut self, update: &Update) {
        self.shelf.apply(update);
        let now = Instant::now();
        // The first full state is worth a write at once.
        let soon = self.looked.map_or(now, |until| until.max(now));
        // A failed attempt keeps its own time.
        if self.trouble.is_empty() {
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// Begins to write, if there is something worth it.
    fn begin(&mut self, status: &SourceStatus) -> Option<Writing> {
        let now = Instant::now();
        if self.pen.try_writing().is_none() {
            self.due = Some(now + PEN_EVERY);
            return None;
        }
        let (body, checksum) = self.shelf.body();
        let spacing = spacing(self.write_every, body.len());
        self.looked = Some(now + spacing);
        if let Some(written) = &self.written {
            let same = written.checksum == checksum;
            let again = if same { REFRESH_EVERY } else { spacing };
            if now.duration_since(written.at) < again {
                self.due = Some(written.at + again);
                return None;
            }
        }
        let saved_at =
            SystemTime::now().checked_sub(status.fresh_at.elapsed()).unwrap_or_else(SystemTime::now);
        let mark = self.mark.as_ref().map_or(0, |m| m.load(Ordering::Relaxed));
        let text =
            file(&body, checksum.clone(), &self.identity, saved_at, mark).map_err(std::io::Error::other);
        drop(body);
        let (cache, pen) = (self.cache.clone(), Arc::clone(&self.pen));
        let work = move || {
            let Some(_writing) = pen.try_writing() else { return Ok(false) };
            text.and_then(|text| cache.save(&text)).map(|()| true)
        };
        // Set anew by what comes meanwhile, and at the end.
        self.due = None;
        Some(Writing { work: tokio::task::spawn_blocking(work), checksum, begun: now })
    }

    fn finish(&mut self, writing: Writing, result: std::io::Result<bool>) {
        let now = Instant::now();
        match result {
            Ok(false) => _ = self.due.get_or_insert(now + PEN_EVERY),
            Ok(true) => {
                if !self.trouble.is_empty() {
                    tracing::info!("the cache {} is written again", self.cache.path().display());
                    self.trouble.clear();
                }
                self.written = Some(Written { checksum: writing.checksum, at: writing.begun });
                self.due.get_or_insert(writing.begun + REFRESH_EVERY);
            }
            Err(e) => {
                let trouble = format!(
                    "cannot write the cache {}: {e}; after a restart with the server out of reach this node would \
                     start from an older state",
                    self.cache.path().display()
                );
                if trouble != self.trouble {
                    tracing::warn!("{trouble}");
                }
                self.trouble = trouble;
                self.due = Some(now + RETRY_EVERY.min(self.write_every * 6));
            }
        }
    }

    /// The last chance: whatever has changed, and a true age.
    async fn write_last(&mut self, status: &SourceStatus) {
        if self.due.is_none() {
            return; // nothing was ever delivered: what is on disk is still the best
        }
        if let Some(written) = &mut self.written {
            // Within seconds of a write of the same objects, their age on disk is good enough.
            if written.at.elapsed() < WRITE_EVERY && written.checksum == self.shelf.body().1 {
                return;
            }
            self.written = None;
        }
        if let Some(mut writing) = self.begin(status) {
            let done = writing.done().await;
            self.finish(writing, done);
        }
    }
}

/// Ten seconds for each MiB: a flash of a few hundred write cycles outlives the board at a megabyte in ten seconds.
fn spacing(shortest: Duration, bytes: usize) -> Duration {
    let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    shortest.saturating_mul(mib.max(1))
}
