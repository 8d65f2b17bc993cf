//! Noticing changes: inotify for speed, a slow comparison of the files' stamps for certainty.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::source::{Sink, Source, SourceState, SourceStatus, Unreadable, Update};

use super::files::{self, Stamps};
use super::{Loaded, load};

/// A change is read once nothing more has happened for this long: editors and `kubectl` write in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// A change is read after this long at the latest, even if files keep changing.
const LONGEST_QUIET: Duration = Duration::from_secs(1);
/// How often the stamps are compared, for whatever inotify does not see (network file systems, links that lead
/// elsewhere, a watch that could not be set).
const POLL: Duration = Duration::from_secs(2);
/// How many warnings the status message repeats; all of them are logged.
const SHOWN_WARNINGS: usize = 3;

/// The source `manifests`: a file or a folder, read again on every change.
#[derive(Debug)]
pub struct ManifestSource {
    path: PathBuf,
    first: Loaded,
}

impl ManifestSource {
    /// A source for `path`, whose present content `first` the caller has loaded already, so that a start with bad
    /// manifests fails before anything has been touched.
    pub fn new(path: PathBuf, first: Loaded) -> Self {
        Self { path: std::path::absolute(&path).unwrap_or(path), first }
    }
}

impl Source for ManifestSource {
    async fn run(self, sink: Sink, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { path, first } = self;
        let Loaded { objects, warnings, fingerprint, stamps } = first;
        let mut state = State { path, sink, fingerprint, stamps, failed: false };
        if state.sink.updates.send(Update::Replace(objects)).await.is_err() {
            return Ok(());
        }
        state.good(&warnings);

        let (wake, mut woken) = mpsc::channel(1);
        let mut eyes = Eyes::open(&state.path, wake);
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let look = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = woken.recv() => {
                    settle(&mut woken).await;
                    true
                }
                _ = poll.tick() => false,
            };
            // First the watches, then the look: what changes in between wakes us again.
            eyes.follow(&state.path);
            if !state.look(look).await {
                return Ok(());
            }
        }
    }
}

/// Waits until the changes have come to rest.
async fn settle(woken: &mut mpsc::Receiver<()>) {
    let end = tokio::time::Instant::now() + LONGEST_QUIET;
    loop {
        let quiet = (tokio::time::Instant::now() + QUIET).min(end);
        match tokio::time::timeout_at(quiet, woken.recv()).await {
            Ok(Some(())) if tokio::time::Instant::now() < end => {}
            _ => return,
        }
    }
}

/// What is in force, and what it was read from.
struct State {
    path: PathBuf,
    sink: Sink,
    fingerprint: u64,
    stamps: Stamps,
    failed: bool,
}

impl State {
    /// Compares the stamps, and reads again if they differ or if `surely`. False once nobody listens any more.
    async fn look(&mut self, surely: bool) -> bool {
        let (path, before) = (self.path.clone(), self.stamps.clone());
        let read = tokio::task::spawn_blocking(move || {
            let stamps = files::stamps(&path);
            if stamps == before && !surely {
                return None;
            }
            Some((stamps, load(&path)))
        });
        match read.await {
            Ok(None) => self.still_current(),
            Ok(Some((_, Ok(loaded)))) => return self.loaded(loaded).await,
            Ok(Some((stamps, Err(fault)))) => {
                self.stamps = stamps;
                self.bad(&fault.to_string());
            }
            // The reader panicked (or the runtime ends): keep what is in force, and say so.
            Err(error) => self.bad(&format!("{}: reading it failed: {error}", self.path.display())),
        }
        true
    }

    async fn loaded(&mut self, loaded: Loaded) -> bool {
        self.stamps = loaded.stamps;
        if loaded.fingerprint == self.fingerprint {
            if self.failed {
                self.good(&loaded.warnings);
            } else {
                self.still_current();
            }
            return true;
        }
        info!(path = %self.path.display(), objects = loaded.objects.len(), "manifests read again");
        if self.sink.updates.send(Update::Replace(loaded.objects)).await.is_err() {
            return false;
        }
        self.fingerprint = loaded.fingerprint;
        self.good(&loaded.warnings);
        true
    }

    fn good(&mut self, warnings: &[String]) {
        self.failed = false;
        for warning in warnings {
            warn!("{warning}");
        }
        let mut message = warnings.iter().take(SHOWN_WARNINGS).cloned().collect::<Vec<_>>().join("; ");
        if warnings.len() > SHOWN_WARNINGS {
            message.push_str("; and more");
        }
        let state = SourceState::Synced;
        let status = SourceStatus {
            kind: "manifests",
            state,
            fresh_at: Instant::now(),
            message,
            unreadable: Unreadable::default(),
        };
        self.sink.status.send_replace(status);
    }

    fn bad(&mut self, fault: &str) {
        let known = self.failed && self.sink.status.borrow().message == fault;
        self.failed = true;
        if known {
            return;
        }
        warn!("manifests: {fault}; the last good state stays in force");
        self.sink.status.send_modify(|status| {
            status.state = SourceState::Error;
            fault.clone_into(&mut status.message);
        });
    }

    /// The files are those in force: the data is fresh, which is no news worth waking anyone for.
    fn still_current(&self) {
        if !self.failed {
            self.sink.status.send_if_modified(|status| {
                status.fresh_at = Instant::now();
                false
            });
        }
    }
}

/// The inotify watches: on the path's folder (a file may be replaced by renaming another one over it, and a
/// `ConfigMap` volume swaps its `..data` link there), and on the path itself if that is a folder.
struct Eyes {
    watcher: Option<RecommendedWatcher>,
    /// What is watched: path, device and inode. A folder made anew under the old name needs a new watch.
    watched: Vec<(PathBuf, (u64, u64))>,
}

impl Eyes {
    fn open(path: &Path, wake: mpsc::Sender<()>) -> Self {
        let ours = path.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| concerns(&event, &ours)) {
                // Full means that a look is due anyway.
                let _ = wake.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| warn!("manifests: no inotify ({error}); looking every {} s", POLL.as_secs()))
            .ok();
        let mut eyes = Self { watcher, watched: Vec::new() };
        eyes.follow(path);
        eyes
    }

    /// Sets the watches that are missing.
    fn follow(&mut self, path: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        let folder = path.is_dir().then_some(path);
        let wanted = path.parent().into_iter().chain(folder).filter_map(|p| {
            let stamp = files::stamp(p)?;
            Some((p.to_owned(), (stamp.0, stamp.1)))
        });
        let wanted: Vec<_> = wanted.collect();
        for (old, _) in self.watched.iter().filter(|w| !wanted.contains(w)) {
            // Gone together with its folder: then there is nothing to take down.
            let _ = watcher.unwatch(old);
        }
        self.watched.retain(|w| wanted.contains(w));
        for want in wanted {
            if !self.watched.contains(&want) {
                match watcher.watch(&want.0, RecursiveMode::NonRecursive) {
                    Ok(()) => self.watched.push(want),
                    Err(error) => tracing::debug!(path = %want.0.display(), %error, "cannot be watched"),
                }
            }
        }
    }
}

/// Whether an event is about our file or folder. Reading is no change (it would wake us by our own doing), and
/// neighbours in the same folder are no business of ours, apart from the `..data` of a `ConfigMap` volume.
fn concerns(event: &Event, ours: &Path) -> bool {
    let reading = match event.kind {
        EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
        _ => false,
    };
    let swap = |p: &Path| {
        p.parent() == ours.parent() && p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".."))
    };
    !reading && (event.paths.is_empty() || event.paths.iter().any(|p| p.starts_with(ours) || swap(p)))
}

#[cfg(test)]
mod tests;
