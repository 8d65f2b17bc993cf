//! Events for the cluster's users: what they should know about their objects, as seen from this node.
//!
//! `Book` decides, with the clock as an argument: nothing that passes by itself is told, nothing is told again and again,
//! and many of one kind become one. The [`Recorder`] sends. A server that is away or does not want events is no fault:
//! what could not be told is told later or never.

mod book;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use super::kube::ApiClient;
use book::{Book, Step};

/// How often it is looked whether something is to be told.
const LOOK: Duration = Duration::from_secs(5);
/// Time for one answer of the server.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a refusal, the server is left alone for so long.
const PAUSE_REFUSED: Duration = Duration::from_hours(1);
/// After a failure, for so long.
const PAUSE_FAILED: Duration = Duration::from_secs(30);

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum About {
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// This node.
    Node,
}

/// Why there is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A Service has endpoints, and this node can reach none of them.
    NoReachableBackend,
    /// A Service has ports of a protocol that is not intercepted.
    UnsupportedProtocol,
    /// Another proxy serves the same Services on this node.
    ConflictingProxy,
}

impl Reason {
    /// The word in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoReachableBackend => "NoReachableBackend",
            Self::UnsupportedProtocol => "UnsupportedProtocol",
            Self::ConflictingProxy => "ConflictingProxy",
        }
    }

    /// True if every node of the cluster would say the same: one event for all of them is enough.
    fn is_the_clusters(self) -> bool {
        matches!(self, Self::UnsupportedProtocol)
    }
}

/// Something that holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub about: About,
    /// What it is.
    pub reason: Reason,
    /// In words.
    pub message: String,
}

/// All that holds now.
pub type Notices = Arc<Vec<Notice>>;

/// Tells the API server.
#[derive(Debug)]
pub struct Recorder {
    api: Arc<ApiClient>,
    node: String,
}

impl Recorder {
    pub(super) fn new(api: Arc<ApiClient>, node: &str) -> Self {
        Self { api, node: node.to_owned() }
    }

    /// Tells what `notices` hold until `stop`.
    pub async fn run(self, notices: watch::Receiver<Notices>, stop: CancellationToken) {
        let (mut book, begun) = (Book::default(), Instant::now());
        let work = async {
            loop {
                sleep(LOOK).await;
                let now = notices.borrow().clone();
                for step in book.look(&now, begun.elapsed()) {
                    if let Err(pause) = self.tell(&step).await {
                        book.failed(&step);
                        sleep(pause).await;
                        break;
                    }
                    book.told(&step);
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// Sends one event. An error says how long to leave the server alone.
    async fn tell(&self, step: &Step) -> Result<(), Duration> {
        let result = match self.send(step).await {
            // The server forgets events after an hour; then this is a new one.
            Ok(404) if step.count > 1 => self.create(step).await,
            other => other,
        };
        match result {
            // 409: another node has said it.
            Ok(200..=299 | 409) => Ok(()),
            Ok(401 | 403) => {
                tracing::info!(
                    "this identity may not create events; they need `create` and `patch` on events"
                );
                Err(PAUSE_REFUSED)
            }
            Ok(404 | 405) => Err(PAUSE_REFUSED),
            Ok(code) => {
                tracing::debug!(code, "an event was not accepted");
                Err(PAUSE_FAILED)
            }
            Err(fault) => {
                tracing::debug!(%fault, "an event could not be sent");
                Err(PAUSE_FAILED)
            }
        }
    }

    async fn send(&self, step: &Step) -> Result<u16, Fault> {
        if step.count == 1 {
            return self.create(step).await;
        }
        let change = json!({"count": step.count, "lastTimestamp": now(), "message": step.notice.message});
        let path = format!("{}/{}", events_of(&step.notice.about), self.name(&step.notice));
        self.api.patch(&path, change.to_string(), PATIENCE).await
    }

    async fn create(&self, step: &Step) -> Result<u16, Fault> {
        let about = &step.notice.about;
        let event = self.event(&step.notice, step.count, self.uid(about).await);
        Ok(self.api.post(&events_of(about), event.to_string(), PATIENCE).await?.0)
    }

    /// What `kubectl describe` looks events up by. Without it they still stand in `kubectl get events`.
    async fn uid(&self, about: &About) -> Option<String> {
        let About::Service { namespace, name } = about else { return Some(self.node.clone()) };
        let path =
            format!("/api/v1/namespaces/{namespace}/services?fieldSelector=metadata.name%3D{name}&limit=1");
        let mut answer = self.api.get(&path, PATIENCE).await.ok()?;
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk(PATIENCE).await {
            body.extend_from_slice(&chunk);
        }
        let list: Value = serde_json::from_slice(&body).ok()?;
        list["items"][0]["metadata"]["uid"].as_str().map(str::to_owned)
    }

    fn event(&self, notice: &Notice, count: u32, uid: Option<String>) -> Value {
        let mut object = match &notice.about {
            About::Service { namespace, name } => {
                json!({"apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name})
            }
            About::Node => json!({"apiVersion": "v1", "kind": "Node", "name": self.node}),
        };
        if let Some(uid) = uid {
            object["uid"] = uid.into();
        }
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": self.name(notice), "namespace": namespace_of(&notice.about)},
            "involvedObject": object, "type": "Warning", "reason": notice.reason.as_str(), "message": notice.message,
            "firstTimestamp": now(), "lastTimestamp": now(), "count": count,
            "source": {"component": "edgesplice", "host": self.node},
            "reportingComponent": "edgesplice", "reportingInstance": self.node,
        })
    }

    /// The event's own name: the same after a restart, so that it is counted on; its node's, unless all say the same.
    fn name(&self, notice: &Notice) -> String {
        let object = match &notice.about {
            About::Service { name, .. } => name,
            About::Node => &self.node,
        };
        let mut hasher = DefaultHasher::new();
        notice.reason.hash(&mut hasher);
        if !notice.reason.is_the_clusters() {
            self.node.hash(&mut hasher);
        }
        format!("{object}.{:016x}", hasher.finish())
    }
}

fn namespace_of(about: &About) -> &str {
    match about {
        About::Service { namespace, .. } => namespace,
        // Where the kubelet puts events about its node.
        About::Node => "default",
    }
}

fn events_of(about: &About) -> String {
    format!("/api/v1/namespaces/{}/events", namespace_of(about))
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
