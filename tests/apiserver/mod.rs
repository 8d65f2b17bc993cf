//! A scripted API server: lists, pages, watches, bookmarks, expiry, cuts, silence and errors, on command.
//!
//! In process and on loopback. It keeps a history as etcd does, so that a watch can be taken up where it ended, and
//! it counts what it is asked. `MetaServer` is a second personality: it has the quirks that were seen on real edges.

mod serve;
mod tls;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use tls::Authority;

/// How one resource answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mood {
    /// As it should.
    Well,
    /// Takes the request and never says a word.
    Silent,
    /// Answers after this time.
    Slow(Duration),
    /// Answers with this status, and perhaps `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// Is some other web server.
    Html,
    /// Begins each watch and ends it at once.
    CutsWatches,
}

/// Which server it plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Personality {
    Kubernetes,
    /// Watches replay everything as `ADDED` whatever version is asked for, know no bookmarks, and never tell what
    /// was deleted in between.
    MetaServer,
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) resource: String,
    pub(crate) watch: bool,
    pub(crate) query: HashMap<String, String>,
}

/// One change, as etcd keeps it.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    resource: String,
    old: Option<Value>,
    new: Option<Value>,
}

struct Watcher {
    resource: String,
    query: HashMap<String, String>,
    lines: mpsc::UnboundedSender<String>,
}

struct State {
    personality: Personality,
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    history: Vec<Change>,
    compacted: u64,
    gone_as_event: bool,
    expire_pages: bool,
    pages: HashMap<String, Vec<Value>>,
    moods: HashMap<String, Mood>,
    absent: HashSet<String>,
    /// `MetaServer` with its cloud away: the version its lists bear, and kinds that come back empty without any.
    offline: Option<(Option<u64>, HashSet<String>)>,
    /// `MetaServer`: what its own store still holds although it is gone.
    ghosts: Vec<(String, Value)>,
    token: Option<String>,
    /// What a Service outside the range is told; `None`: nobody may make Services.
    ranges: Option<Vec<String>>,
    asked: Vec<Asked>,
    /// Events as they stand now.
    events: Vec<Value>,
    /// Whether events may be made.
    events_forbidden: bool,
    watchers: Vec<Watcher>,
}

/// The server's handle; dropping it ends the server.
pub(crate) struct ApiServer {
    pub(crate) addr: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    /// Cancelled and replaced by [`ApiServer::cut`].
    connections: Arc<Mutex<CancellationToken>>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.cancel();
        self.connections.lock().unwrap().cancel();
    }
}

impl ApiServer {
    pub(crate) async fn start(personality: Personality) -> Self {
        Self::start_with(personality, "127.0.0.1:0".parse().unwrap(), None).await
    }

    /// With TLS: a certificate of `authority` for 127.0.0.1, and client certificates of the same authority demanded.
    pub(crate) async fn start_tls(personality: Personality, authority: &Authority) -> Self {
        Self::start_with(personality, "127.0.0.1:0".parse().unwrap(), Some(authority)).await
    }

    pub(crate) async fn start_with(
        personality: Personality,
        addr: SocketAddr,
        authority: Option<&Authority>,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        Self::start_on(personality, listener, authority)
    }

    /// On a listener that may have been made elsewhere.
    pub(crate) fn start_on(
        personality: Personality,
        listener: TcpListener,
        authority: Option<&Authority>,
    ) -> Self {
        let state = State {
            personality,
            version: 100,
            objects: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            gone_as_event: false,
            expire_pages: false,
            pages: HashMap::new(),
            moods: HashMap::new(),
            absent: HashSet::new(),
            offline: None,
            ghosts: Vec::new(),
            token: None,
            ranges: None,
            asked: Vec::new(),
            events: Vec::new(),
            events_forbidden: false,
            watchers: Vec::new(),
        };
        let server = Self {
            addr: listener.local_addr().unwrap(),
            scheme: if authority.is_some() { "https" } else { "http" },
            state: Arc::new(Mutex::new(state)),
            stop: CancellationToken::new(),
            connections: Arc::new(Mutex::new(CancellationToken::new())),
        };
        let acceptor = authority.map(Authority::acceptor);
        tokio::spawn(serve::accept(
            listener,
            acceptor,
            server.state.clone(),
            server.stop.clone(),
            server.connections.clone(),
        ));
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates or changes an object and returns its version.
    pub(crate) fn set(&self, resource: &str, mut object: Value) -> u64 {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (resource.to_owned(), path_of(&object));
        let old = state.objects.insert(key, object.clone());
        state.record(Change { version, resource: resource.to_owned(), old, new: Some(object) });
        version
    }

    /// Deletes an object; `namespace` is empty where it has none.
    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        let key = (resource.to_owned(), format!("{namespace}/{name}"));
        if let Some(old) = state.objects.remove(&key) {
            state.version += 1;
            let version = state.version;
            state.record(Change { version, resource: resource.to_owned(), old: Some(old), new: None });
        }
    }

    /// Every object of a resource.
    pub(crate) fn objects(&self, resource: &str) -> Vec<Value> {
        let state = self.state();
        state.objects.iter().filter(|((r, _), _)| r == resource).map(|(_, o)| o.clone()).collect()
    }

    /// How `resource`, or `*` for all, answers from now on.
    pub(crate) fn mood(&self, resource: &str, mood: Mood) {
        self.state().moods.insert(resource.to_owned(), mood);
    }

    /// The server does not know `resource`.
    pub(crate) fn absent(&self, resource: &str) {
        self.state().absent.insert(resource.to_owned());
    }

    /// The server knows `resource` after all.
    pub(crate) fn appear(&self, resource: &str) {
        self.state().absent.remove(resource);
    }

    /// Only this bearer token is let in.
    pub(crate) fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Lets anyone ask for Services, and refuses those outside `ranges` (one of each family at most) by naming them.
    pub(crate) fn name_ranges(&self, ranges: &[&str]) {
        self.state().ranges = Some(ranges.iter().map(|r| (*r).to_owned()).collect());
    }

    /// Forgets its history: older versions are gone, told by a status or by an event in the watch.
    pub(crate) fn compact(&self, as_event: bool) {
        let mut state = self.state();
        state.version += 1;
        state.compacted = state.version;
        state.gone_as_event = as_event;
        state.history.clear();
    }

    /// The next continuation of a list is told to be too old.
    pub(crate) fn expire_pages(&self) {
        self.state().expire_pages = true;
    }

    /// Sends a bookmark to every watch that asked for them.
    pub(crate) fn bookmark(&self) {
        let mut state = self.state();
        state.version += 1;
        let line = json!({"type": "BOOKMARK", "object": {"kind": "x", "metadata": {"resourceVersion": state.version.to_string()}}});
        for watcher in &state.watchers {
            if watcher.query.get("allowWatchBookmarks").is_some_and(|v| v == "true") {
                let _ = watcher.lines.send(format!("{line}\n"));
            }
        }
    }

    /// Ends every watch in good order.
    pub(crate) fn end_watches(&self) {
        self.state().watchers.clear();
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.state().watchers.clear();
        std::mem::take(&mut *self.connections.lock().unwrap()).cancel();
    }

    /// `MetaServer` loses its cloud: lists bear `version`, and those of `empty` hold nothing and bear none.
    pub(crate) fn go_offline(&self, version: Option<u64>, empty: &[&str]) {
        let empty = empty.iter().map(|r| (*r).to_owned()).collect();
        self.state().offline = Some((version, empty));
    }

    /// Removes an object without telling anyone: it happened while nobody was connected, or the edge never stored it.
    pub(crate) fn lose(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().objects.remove(&(resource.to_owned(), format!("{namespace}/{name}")))
    }

    /// Puts back what [`Self::lose`] took.
    pub(crate) fn find(&self, resource: &str, object: Value) {
        self.state().objects.insert((resource.to_owned(), path_of(&object)), object);
    }

    /// `MetaServer`'s store goes on replaying an object that is gone.
    pub(crate) fn haunt(&self, resource: &str, object: Value) {
        self.state().ghosts.push((resource.to_owned(), object));
    }

    pub(crate) fn go_online(&self) {
        self.state().offline = None;
    }

    /// Every event that was made, as it stands now.
    #[allow(dead_code, reason = "only the agent makes events")]
    pub(crate) fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    /// Nobody may make events.
    #[allow(dead_code, reason = "only the agent makes events")]
    pub(crate) fn forbid_events(&self) {
        self.state().events_forbidden = true;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// How many lists (first pages) or watches of `resource` were asked for.
    pub(crate) fn count(&self, resource: &str, watch: bool) -> usize {
        let state = self.state();
        let first =
            |a: &&Asked| a.resource == resource && a.watch == watch && !a.query.contains_key("continue");
        state.asked.iter().filter(first).count()
    }

    /// How many watches of `resource` are open.
    pub(crate) fn watching(&self, resource: &str) -> usize {
        let mut state = self.state();
        state.watchers.retain(|w| !w.lines.is_closed());
        state.watchers.iter().filter(|w| w.resource == resource).count()
    }
}

fn path_of(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

impl State {
    fn record(&mut self, change: Change) {
        self.watchers.retain(|w| match line(w, &change) {
            Some(line) => w.lines.send(line).is_ok(),
            None => true,
        });
        self.history.push(change);
    }
}

/// What a watch is told of a change; leaving the selection looks like a deletion, entering it like a creation.
fn line(watcher: &Watcher, change: &Change) -> Option<String> {
    if watcher.resource != change.resource {
        return None;
    }
    let seen = |o: &Option<Value>| o.clone().filter(|o| selected(&watcher.query, o));
    let (kind, mut object) = match (seen(&change.old), seen(&change.new)) {
        (None, None) => return None,
        (None, Some(new)) => ("ADDED", new),
        (Some(_), Some(new)) => ("MODIFIED", new),
        (Some(old), None) => ("DELETED", change.new.clone().unwrap_or(old)),
    };
    object["metadata"]["resourceVersion"] = json!(change.version.to_string());
    Some(format!("{}\n", json!({"type": kind, "object": object})))
}

/// Whether an object is in the selection of a request.
fn selected(query: &HashMap<String, String>, object: &Value) -> bool {
    let labels = query.get("labelSelector").map(String::as_str).unwrap_or_default();
    let by_label = labels.split(',').filter(|t| !t.is_empty()).all(|term| {
        let value = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        if let Some(key) = term.strip_prefix('!') {
            return value(key).is_none();
        }
        let (key, unwanted) = term.split_once("!=").expect("a selector this server understands");
        value(key) != Some(unwanted)
    });
    let fields = query.get("fieldSelector").map(String::as_str).unwrap_or_default();
    let by_field = fields.split(',').filter(|t| !t.is_empty()).all(|term| {
        let phase = term.strip_prefix("status.phase!=").expect("a selector this server understands");
        object["status"]["phase"].as_str() != Some(phase)
    });
    by_label && by_field
}
