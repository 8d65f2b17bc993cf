//! One kind of object, followed for ever: list, watch, resume, list again.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::backoff::Backoff;
use super::fault::{Attempt, Fault};
use super::kube::{Answer, ApiClient};
use super::mirror::{Caution, Mirror, Silence};
use super::range::{self, AskRange};
use super::resource::{Need, Resource};
use super::slim::Object;
use super::trust::{Listing, Trust};
use super::wire::{self, Event};
use super::{Unreadable, Update};

/// Time until a server that had no answer for the Service range is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Objects in one page of a list, as client-go asks for them.
const PAGE: usize = 500;
/// Largest answer to a list that is read; ten thousand pods in one page stay far below.
const MOST_LIST: usize = 256 << 20;
/// Largest line of a watch; etcd holds no object larger than 1.5 MiB unless told to.
const MOST_LINE: usize = 16 << 20;
/// How often a quiet but living watch is reported.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// How patient a source is. The defaults suit a real cluster; tests shorten them.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For the head of an answer.
    pub answer: Duration,
    /// For the next piece of a list.
    pub piece: Duration,
    /// For the next sign of life on a watch; bookmarks come about once a minute.
    pub idle: Duration,
    /// After this the server is asked to end a watch.
    pub watch: Duration,
    /// First wait after a failure.
    pub backoff_first: Duration,
    /// Longest wait between attempts.
    pub backoff_most: Duration,
    /// A watch that lived this long was a good one.
    pub steady: Duration,
    /// How long the first state waits for kinds that are not essential, once the others are there.
    pub grace: Duration,
    /// How often a kind that the server does not have is asked for again.
    pub absent: Duration,
    /// `MetaServer`: a fresh list after this time, whatever the watch says.
    pub relist: Duration,
    /// `MetaServer`: how long a doubtful absence must last; longer than `relist`.
    pub hold: Duration,
    /// `MetaServer`: the same when nothing of any kind is left.
    pub hold_all: Duration,
}

impl Timing {
    /// For a real API server.
    pub fn kubernetes() -> Self {
        Self {
            answer: Duration::from_secs(30),
            piece: Duration::from_secs(30),
            idle: Duration::from_secs(150),
            watch: Duration::from_mins(9),
            backoff_first: Duration::from_secs(1),
            backoff_most: Duration::from_secs(30),
            steady: Duration::from_secs(5),
            grace: Duration::from_secs(5),
            absent: Duration::from_mins(10),
            relist: Duration::from_mins(3),
            hold: Duration::from_secs(200),
            hold_all: Duration::from_mins(15),
        }
    }

    /// For `MetaServer`, which tries the cloud first: a list took 8 s and more with the cloud away.
    pub fn metaserver() -> Self {
        Self { answer: Duration::from_mins(1), piece: Duration::from_mins(1), ..Self::kubernetes() }
    }
}

/// What a follower tells.
#[derive(Debug)]
pub(super) enum News {
    /// Something changed.
    Change(Update),
    /// The kind has been listed in full.
    Listed {
        /// How many objects are known now.
        known: usize,
        /// How many of them the list did not mention.
        kept: usize,
        /// The list speaks for the cluster's present state.
        first_hand: bool,
        /// Why it is doubted.
        doubt: Option<String>,
    },
    /// The server does not have or does not give this kind, and we can do without.
    Absent,
    /// Other objects than before cannot be read.
    Unreadable(Unreadable),
    /// The watch lives.
    Alive,
    /// An attempt failed; one line for people.
    Failed(String),
}

/// Follows one kind of object.
pub(super) struct Follower {
    pub(super) lane: usize,
    pub(super) resource: &'static Resource,
    pub(super) api: Arc<ApiClient>,
    pub(super) timing: Timing,
    /// Set for `MetaServer`: list afresh each time, and judge what it says.
    pub(super) trust: Option<Arc<Trust>>,
    pub(super) news: mpsc::Sender<(usize, News)>,
    /// Whether the server's own word stands in for this kind where it has no such objects.
    ask_range: AskRange,
    mirror: Mirror,
    /// Which of the resource's paths this server knows.
    path: usize,
    /// What the watch after the last list may not tell.
    caution: Caution,
}

/// How a watch ended.
enum End {
    /// As it should, or by a cut; it can be taken up again.
    Over,
    /// Its version is no longer held, or it cannot be told what was missed.
    Lost(Option<Fault>),
    /// It never began.
    Failed(Fault),
}

impl Follower {
    pub(super) fn new(
        lane: usize,
        resource: &'static Resource,
        api: Arc<ApiClient>,
        timing: Timing,
        trust: Option<Arc<Trust>>,
        news: mpsc::Sender<(usize, News)>,
    ) -> Self {
        Self {
            lane,
            resource,
            api,
            timing,
            trust,
            news,
            ask_range: AskRange::Never,
            mirror: Mirror::default(),
            path: 0,
            caution: Caution::default(),
        }
    }

    /// Starts from objects that were told in an earlier life.
    pub(super) fn prime<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        self.mirror.prime(objects);
    }

    /// Asks the server for the Service range where it has no objects of this kind.
    pub(super) fn ask_range(&mut self) {
        self.ask_range = AskRange::Wanted;
    }

    /// Runs until dropped, or until nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.backoff_first, self.timing.backoff_most);
        while !self.news.is_closed() {
            match self.list().await {
                Ok(version) => self.watch_on(version, &mut backoff).await,
                Err(fault) if self.resource.need != Need::Required && fault.is_absence() => {
                    self.absent(&fault).await;
                }
                Err(fault) => self.failed("list", &fault, &mut backoff).await,
            }
        }
    }

    async fn tell(&self, news: News) {
        // A closed channel ends the loop in `run`.
        let _ = self.news.send((self.lane, news)).await;
    }

    /// Tells of a failure and waits.
    async fn failed(&self, verb: &str, fault: &Fault, backoff: &mut Backoff) {
        if fault.is_about_credentials() {
            self.api.forget().await;
        }
        let Resource { name, group, .. } = *self.resource;
        let attempt = Attempt { server: self.api.server(), verb, resource: name, group };
        let line = fault.explain(attempt, self.api.hints());
        let wait = backoff.next(fault.retry_after());
        tracing::debug!(resource = name, ?wait, "{line}");
        self.tell(News::Failed(line)).await;
        sleep(wait).await;
    }

    /// The server does not have this kind: the next older version of it at once, or all of it again much later.
    async fn absent(&mut self, fault: &Fault) {
        self.path = (self.path + 1) % self.resource.paths.len();
        if self.path > 0 && *fault == Fault::NotFound {
            return;
        }
        self.path = 0;
        tracing::debug!(resource = self.resource.name, %fault, "the server does not offer it");
        let mut wait = self.timing.absent;
        // What was there before the server stopped offering it goes once that has lasted.
        if *fault == Fault::NotFound && self.mirror.len() > 0 {
            self.mirror.begin();
            let silence = Silence::Doubtful { hold: self.timing.hold, up_to: None };
            for update in self.mirror.finish(silence, Instant::now()) {
                self.tell(News::Change(update)).await;
            }
            wait = wait.min(self.timing.hold);
        }
        self.settle_range(false).await;
        if matches!(self.ask_range, AskRange::Wanted) {
            wait = wait.min(ASK_AGAIN);
        }
        self.tell(News::Absent).await;
        sleep(wait + wait.mul_f64(fastrand::f64() / 2.0)).await;
    }

    /// Fetches a whole list and tells what is new in it. Returns the version to watch from.
    async fn list(&mut self) -> Result<Option<Box<str>>, Fault> {
        let mut more: Option<String> = None;
        let mut paged = self.trust.is_none();
        self.mirror.begin();
        let (version, verdict) = loop {
            let limit = if paged { format!("&limit={PAGE}") } else { String::new() };
            let place = more.as_ref().map_or_else(String::new, |t| format!("&continue={}", escape(t)));
            let query = format!("{}{limit}{place}", self.resource.query);
            let path = format!("{}?{}", self.resource.paths[self.path], query.trim_start_matches('&'));
            let mark = self.trust.as_ref().map_or(0, |trust| trust.mark());
            let page = match self.fetch(path.trim_end_matches('?')).await {
                // The list took longer than the server holds its state: once more, in one piece.
                Err(Fault::Gone) if more.is_some() => {
                    (more, paged) = (None, false);
                    self.mirror.begin();
                    continue;
                }
                answer => wire::page(self.resource.kind, &answer?)?,
            };
            let verdict = self.trust.as_ref().map(|trust| {
                let listing = Listing {
                    lane: self.lane,
                    mark,
                    version: page.version.as_deref().and_then(|v| v.parse().ok()),
                    newest: page.entries.iter().filter_map(|e| e.version).max(),
                    items: page.entries.len(),
                    known: self.mirror.len(),
                };
                trust.judge(listing, self.timing.hold, self.timing.hold_all)
            });
            if verdict.is_none() && page.version.is_none() {
                return Err(Fault::Foreign("the list bears no resourceVersion".to_owned()));
            }
            let caution = Caution { older: verdict.as_ref().is_some_and(|v| !v.first_hand), ghosts: None };
            for entry in page.entries {
                if let Some(update) = self.mirror.set(entry, caution) {
                    self.tell(News::Change(update)).await;
                }
            }
            more = page.more;
            if more.is_none() {
                break (page.version, verdict);
            }
        };
        let silence = verdict.as_ref().map_or(Silence::Proof, |v| v.silence);
        for update in self.mirror.finish(silence, Instant::now()) {
            self.tell(News::Change(update)).await;
        }
        let first_hand = verdict.as_ref().is_none_or(|v| v.first_hand);
        if verdict.is_some() {
            // The replay comes from the edge's own store, whoever answered the list.
            let listed = version.as_deref().and_then(|v| v.parse().ok());
            self.caution = Caution { older: true, ghosts: listed.filter(|_| first_hand) };
        }
        let doubt = verdict.and_then(|v| v.doubt);
        self.settle_range(self.mirror.len() > 0).await;
        self.tell_unreadable().await;
        self.tell(News::Listed { known: self.mirror.len(), kept: self.mirror.missing(), first_hand, doubt })
            .await;
        Ok(version)
    }

    /// Puts the server's own word in the place of missing `ServiceCIDR`s, and takes it away once there are some.
    async fn settle_range(&mut self, has_objects: bool) {
        match &mut self.ask_range {
            AskRange::Asked(answer) if has_objects => {
                if let Some(key) = answer.take() {
                    self.tell(News::Change(Update::Delete(key))).await;
                }
            }
            AskRange::Wanted if !has_objects => {
                let patience = self.timing.grace.min(self.timing.answer);
                let Some(answer) = range::ask(&self.api, patience).await else { return };
                self.ask_range = AskRange::Asked(answer.as_ref().map(Object::key));
                if let Some(object) = answer {
                    self.tell(News::Change(Update::Upsert(Box::new(object)))).await;
                }
            }
            _ => {}
        }
    }

    async fn tell_unreadable(&mut self) {
        if let Some(unreadable) = self.mirror.unreadable() {
            self.tell(News::Unreadable(unreadable)).await;
        }
    }

    async fn fetch(&self, path: &str) -> Result<Vec<u8>, Fault> {
        let mut answer = self.api.get(path, self.timing.answer).await?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk(self.timing.piece).await? {
            if body.len() + piece.len() > MOST_LIST {
                return Err(Fault::Foreign(format!("the answer is larger than {} MiB", MOST_LIST >> 20)));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Watches, and takes the watch up again where it ended, until a new list is needed.
    async fn watch_on(&mut self, mut version: Option<Box<str>>, backoff: &mut Backoff) {
        loop {
            let begun = Instant::now();
            let end = self.watch(&mut version).await;
            let steady = begun.elapsed() >= self.timing.steady;
            if steady {
                backoff.reset();
            }
            // MetaServer replays everything at each watch but never what was deleted in between.
            // Nor does a watch tell that a kind is served elsewhere by now, or no more.
            let absent = matches!(&end, End::Failed(fault) if self.resource.need != Need::Required && fault.is_absence());
            let list_next = self.trust.is_some() || absent || matches!(end, End::Lost(_));
            match end {
                End::Failed(fault) | End::Lost(Some(fault)) => self.failed("watch", &fault, backoff).await,
                _ if steady => sleep(backoff.pause()).await,
                _ if backoff.failures() > 0 => {
                    let fault =
                        Fault::Network("the server ends each watch as soon as it has begun".to_owned());
                    self.failed("watch", &fault, backoff).await;
                }
                _ => sleep(backoff.next(None)).await,
            }
            if list_next || self.news.is_closed() {
                return;
            }
        }
    }

    async fn watch(&mut self, version: &mut Option<Box<str>>) -> End {
        let bookmarks = if self.trust.is_none() { "&allowWatchBookmarks=true" } else { "" };
        let from = version.as_ref().map_or_else(String::new, |v| format!("&resourceVersion={}", escape(v)));
        let path = format!(
            "{}?watch=1&timeoutSeconds={}{}{bookmarks}{from}",
            self.resource.paths[self.path],
            // Not all nodes at once.
            self.timing.watch.mul_f64(0.5 + fastrand::f64() / 2.0).as_secs().max(1),
            self.resource.query
        );
        let answer = match self.api.get(&path, self.timing.answer).await {
            Ok(answer) => answer,
            Err(Fault::Gone) => return End::Lost(None),
            Err(fault) => return End::Failed(fault),
        };
        self.tell(News::Alive).await;
        match self.read_events(answer, version).await {
            // What a cut stream has left out comes again from the last version.
            Ok(()) | Err(Fault::Network(_) | Fault::Timeout(_) | Fault::Tls(_)) => End::Over,
            Err(Fault::Gone) => End::Lost(None),
            Err(fault) => End::Lost(Some(fault)),
        }
    }

    async fn read_events(&mut self, mut answer: Answer, version: &mut Option<Box<str>>) -> Result<(), Fault> {
        let until = self.trust.is_some().then(|| Instant::now() + self.timing.relist);
        let mut told = Instant::now();
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let patience = match until {
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => self.timing.idle,
            };
            let Some(piece) = answer.chunk(patience).await? else { return Ok(()) };
            let mut rest = &piece[..];
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let (line, after) = (&rest[..end], &rest[end + 1..]);
                rest = after;
                if buffer.is_empty() {
                    self.take(line, version).await?;
                } else {
                    buffer.extend_from_slice(line);
                    let line = std::mem::take(&mut buffer);
                    self.take(&line, version).await?;
                }
            }
            if buffer.len() + rest.len() > MOST_LINE {
                return Err(Fault::Foreign(format!(
                    "a line of the watch is longer than {} MiB",
                    MOST_LINE >> 20
                )));
            }
            buffer.extend_from_slice(rest);
            if told.elapsed() >= SIGN_OF_LIFE {
                told = Instant::now();
                self.tell(News::Alive).await;
            }
        }
    }

    async fn take(&mut self, line: &[u8], version: &mut Option<Box<str>>) -> Result<(), Fault> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let (update, newer) = match wire::event(self.resource.kind, line)? {
            None => return Ok(()),
            Some(Event::Failed(fault)) => return Err(fault),
            Some(Event::Bookmark(newer)) => (None, newer),
            Some(Event::Gone(key, newer)) => (self.mirror.delete(&key), newer),
            Some(Event::Set(entry, newer)) => (self.mirror.set(entry, self.caution), newer),
        };
        if let Some(update) = update {
            self.tell(News::Change(update)).await;
        }
        self.tell_unreadable().await;
        if newer.is_some() {
            *version = newer;
        }
        Ok(())
    }
}

/// Escapes a query value.
fn escape(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if text.bytes().all(plain) {
        return text.into();
    }
    let escaped =
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") });
    escaped.collect::<String>().into()
}
