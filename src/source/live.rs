//! Several kinds followed at once: the first-sync gate, and one account of how all of them are doing.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::follow::{Follower, News, Timing};
use super::kube::ApiClient;
use super::resource::{Need, Resource};
use super::slim::{Kind, Object, ObjectKey};
use super::trust::Trust;
use super::{Sink, SourceState, SourceStatus, Unreadable, Update};

/// News on its way from the followers; more make them wait.
const NEWS_BUFFER: usize = 256;
/// How often the same trouble is logged again.
const REMIND: Duration = Duration::from_mins(5);
/// How often another trouble of a server that is in trouble already is logged.
const CHATTER: Duration = Duration::from_secs(15);

/// How many unreadable objects the status names.
const MOST_UNREADABLE: usize = 10;

/// A source that follows an API server.
#[derive(Debug)]
pub(super) struct Live {
    /// The source's name in `status`.
    pub(super) kind: &'static str,
    pub(super) api: Arc<ApiClient>,
    pub(super) resources: &'static [Resource],
    pub(super) timing: Timing,
    pub(super) trust: Option<Arc<Trust>>,
    /// Ask the server itself for the Service range where it has no `ServiceCIDR`s.
    pub(super) ask_range: bool,
    /// Objects of an earlier life, which stay until the server has proved that they are gone.
    pub(super) known: Vec<Object>,
    /// When those were current.
    pub(super) known_at: Option<Instant>,
}

/// How one kind is doing.
#[derive(Debug)]
struct Lane {
    resource: &'static Resource,
    /// It waits until it is needed.
    dormant: bool,
    /// Its first list is in, or it is known not to come.
    ready: bool,
    first_hand: bool,
    /// Last sign of life.
    seen: Instant,
    failed: Option<String>,
    doubt: Option<String>,
    unreadable: Unreadable,
}

type Following = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

impl Live {
    /// Follows until `stop`, or until nobody listens any more.
    pub(super) async fn run(mut self, sink: Sink, stop: CancellationToken) -> anyhow::Result<()> {
        let (news_in, mut news) = mpsc::channel(NEWS_BUFFER);
        let now = Instant::now();
        let known = std::mem::take(&mut self.known);
        let mut following = Following::new();
        let mut dormant: HashMap<usize, Follower> = HashMap::new();
        let mut lanes = Vec::new();
        for (number, resource) in self.resources.iter().enumerate() {
            let follower = self.follower(number, resource, &known, news_in.clone());
            let lane = Lane {
                resource,
                dormant: resource.instead_of.is_some(),
                ready: false,
                first_hand: true,
                seen: self.known_at.unwrap_or(now),
                failed: None,
                doubt: None,
                unreadable: Unreadable::default(),
            };
            if lane.dormant {
                dormant.insert(number, follower);
            } else {
                following.push(Box::pin(follower.run()));
            }
            lanes.push(lane);
        }
        let mut gate = Gate::new(known);
        // Kinds that we can do without hold the first state up for a moment only.
        let mut opens_at = None;
        let mut log = Log::new();
        let mut report = |lanes: &[Lane], open: bool| {
            let status = self.status(lanes, open);
            log.note(&status, self.api.server());
            sink.status.send_replace(status);
        };
        report(&lanes, false);
        loop {
            let grace = opens_at.filter(|_| !gate.is_open());
            let (number, news) = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep_until(grace.unwrap_or_else(tokio::time::Instant::now)), if grace.is_some() => {
                    if let Some(all) = gate.open()
                        && sink.updates.send(all).await.is_err()
                    {
                        return Ok(());
                    }
                    report(&lanes, true);
                    continue;
                }
                // Followers end only when nobody listens.
                Some(()) = following.next() => continue,
                Some(news) = news.recv() => news,
            };
            let lane = &mut lanes[number];
            let mut out = None;
            let mut told = false;
            match news {
                News::Change(update) => {
                    lane.seen = if lane.first_hand { Instant::now() } else { lane.seen };
                    out = gate.pass(update);
                }
                news => {
                    let wakes = lane.hear(news);
                    if wakes {
                        let kind = lane.resource.kind;
                        for (number, lane) in lanes.iter_mut().enumerate() {
                            if lane.resource.instead_of == Some(kind)
                                && let Some(follower) = dormant.remove(&number)
                            {
                                tracing::info!(
                                    "no {kind}s: following {}s in their stead",
                                    lane.resource.kind
                                );
                                lane.dormant = false;
                                following.push(Box::pin(follower.run()));
                            }
                        }
                    }
                    told = true;
                }
            }
            let due = |l: &Lane| !l.ready && !l.dormant;
            if gate.is_open() || lanes.iter().any(|l| due(l) && l.resource.need != Need::Optional) {
                // Nothing to decide.
            } else if lanes.iter().any(due) {
                opens_at.get_or_insert_with(|| tokio::time::Instant::now() + self.timing.grace);
            } else {
                out = gate.open();
            }
            if let Some(update) = out
                && sink.updates.send(update).await.is_err()
            {
                return Ok(());
            }
            if told {
                report(&lanes, gate.is_open());
            }
        }
    }

    fn follower(
        &self,
        number: usize,
        resource: &'static Resource,
        known: &[Object],
        news: mpsc::Sender<(usize, News)>,
    ) -> Follower {
        let (api, timing, trust) = (self.api.clone(), self.timing.clone(), self.trust.clone());
        let mut follower = Follower::new(number, resource, api, timing, trust, news);
        if self.ask_range && resource.kind == Kind::ServiceCidr {
            follower.ask_range();
        }
        follower.prime(known.iter().filter(|o| o.key().kind == resource.kind));
        follower
    }

    fn status(&self, lanes: &[Lane], open: bool) -> SourceStatus {
        let server = self.api.server();
        let active = || lanes.iter().filter(|l| !l.dormant);
        let needed = || active().filter(|l| l.resource.need != Need::Optional);
        let failed: Vec<&Lane> = active().filter(|l| l.failed.is_some()).collect();
        let waiting: Vec<&str> = active().filter(|l| !l.ready).map(|l| l.resource.name).collect();
        let mut parts = Vec::new();
        if let Some(line) = failed.first().and_then(|l| l.failed.as_deref()) {
            let others: Vec<&str> = failed[1..].iter().map(|l| l.resource.name).collect();
            let more =
                if others.is_empty() { String::new() } else { format!(" (also: {})", others.join(", ")) };
            parts.push(format!("{line}{more}"));
        } else if !open && !waiting.is_empty() {
            parts.push(format!("waiting for {server} to list {}", waiting.join(", ")));
        }
        parts.extend(active().filter_map(|l| l.doubt.clone()));
        let lost = needed().any(|l| l.failed.is_some() || !l.first_hand);
        let state = match (open, lost) {
            (false, _) => SourceState::Error,
            (true, true) => SourceState::Stale,
            (true, false) => SourceState::Synced,
        };
        let fresh_at = needed().map(|l| l.seen).min().unwrap_or_else(Instant::now);
        let mut unreadable = Unreadable::default();
        for lane in active() {
            unreadable.count += lane.unreadable.count;
            let room = MOST_UNREADABLE.saturating_sub(unreadable.first.len());
            unreadable.first.extend(lane.unreadable.first.iter().take(room).cloned());
        }
        SourceStatus { kind: self.kind, state, fresh_at, message: parts.join("; "), unreadable }
    }
}

impl Lane {
    /// Takes in news about this kind; true if it turns out to have no objects.
    fn hear(&mut self, news: News) -> bool {
        match news {
            News::Listed { known, kept, first_hand, doubt } => {
                (self.ready, self.first_hand, self.failed) = (true, first_hand, None);
                let name = self.resource.name;
                self.doubt = doubt.map(|doubt| match kept {
                    0 => format!("{name}: {doubt}"),
                    kept => format!("{name}: {doubt} ({kept} that it does not list are kept)"),
                });
                if first_hand {
                    self.seen = Instant::now();
                }
                known == 0
            }
            News::Absent => {
                (self.ready, self.failed, self.seen) = (true, None, Instant::now());
                true
            }
            News::Alive => {
                self.failed = None;
                if self.first_hand {
                    self.seen = Instant::now();
                }
                false
            }
            News::Unreadable(now) => {
                self.unreadable = now;
                false
            }
            News::Failed(line) => {
                self.failed = Some(line);
                false
            }
            News::Change(_) => false,
        }
    }
}

/// Holds everything back until all of it is there: half a state would take away what is in force.
struct Gate {
    pending: Option<HashMap<ObjectKey, Object>>,
}

impl Gate {
    fn new(known: Vec<Object>) -> Self {
        Self { pending: Some(known.into_iter().map(|o| (o.key(), o)).collect()) }
    }

    fn is_open(&self) -> bool {
        self.pending.is_none()
    }

    /// What goes on downstream for one change.
    fn pass(&mut self, update: Update) -> Option<Update> {
        let Some(pending) = &mut self.pending else { return Some(update) };
        match update {
            Update::Upsert(object) => {
                pending.insert(object.key(), *object);
            }
            Update::Delete(key) => {
                pending.remove(&key);
            }
            Update::Replace(all) => *pending = all.into_iter().map(|o| (o.key(), o)).collect(),
        }
        None
    }

    /// Everything is there: the full state, the first time.
    fn open(&mut self) -> Option<Update> {
        self.pending.take().map(|pending| Update::Replace(pending.into_values().collect()))
    }
}

/// Logs what changes in the status, and no more than that.
struct Log {
    last: Option<(SourceState, String)>,
    at: Instant,
}

impl Log {
    fn new() -> Self {
        Self { last: None, at: Instant::now() }
    }

    fn note(&mut self, status: &SourceStatus, server: &str) {
        let (state, message) = (status.state, &status.message);
        let quiet = match &self.last {
            None => false,
            Some((was, said)) if *was == state && said == message => {
                message.is_empty() || self.at.elapsed() < REMIND
            }
            Some((was, _)) => *was == state && self.at.elapsed() < CHATTER && state != SourceState::Synced,
        };
        if quiet {
            return;
        }
        if message.is_empty() {
            tracing::info!(source = status.kind, state = state.as_str(), "in step with {server}");
        } else if self.last.is_none() {
            tracing::info!(source = status.kind, "{message}");
        } else {
            tracing::warn!(source = status.kind, state = state.as_str(), "{message}");
        }
        (self.last, self.at) = (Some((state, message.clone())), Instant::now());
    }
}
