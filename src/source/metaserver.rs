//! `KubeEdge`'s `MetaServer` as a source: the API of the cloud while that is in reach, the edge's own store otherwise.
//!
//! Its watch replays everything as `ADDED` and never sends what was deleted in a gap, so that each connection begins
//! with a list; how far a list is believed is decided in `trust`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio_util::sync::CancellationToken;

use super::cached::{LastGood, Resumable};
use super::follow::Timing;
use super::kube::{ApiClient, Origin};
use super::live::Live;
use super::resource::{
    DESTINATION_RULES, ENDPOINTS, NODES, Need, PODS, Resource, SERVICE_CIDRS, SERVICES, SLICES,
};
use super::slim::Kind;
use super::trust::Trust;
use super::{Sink, Source};
use crate::config::Credentials;

/// What is followed. No selectors: the edge's own store honours only some of them.
const RESOURCES: &[Resource] = &[
    SERVICES,
    Resource { need: Need::Replaceable, ..SLICES },
    Resource { instead_of: Some(Kind::EndpointSlice), ..ENDPOINTS },
    PODS,
    NODES,
    SERVICE_CIDRS,
    DESTINATION_RULES,
];

/// Follows a `MetaServer`.
#[derive(Debug)]
pub struct MetaServerSource {
    live: Live,
    trust: Arc<Trust>,
    identity: String,
}

impl MetaServerSource {
    /// For the `MetaServer` at `url`; asks nothing of the network. Errors name the address or file and the fault.
    pub async fn new(url: &str, credentials: Credentials) -> anyhow::Result<Self> {
        let api = ApiClient::new(Origin::Url { url: url.to_owned(), credentials }).await?;
        let identity = format!("metaserver {}", api.server());
        let trust = Arc::new(Trust::default());
        let live = Live {
            kind: "metaserver",
            api: Arc::new(api),
            resources: RESOURCES,
            timing: Timing::metaserver(),
            trust: Some(trust.clone()),
            // Nothing says that an edge passes `dryRun` on, and without it a Service might be made.
            ask_range: false,
            known: Vec::new(),
            known_at: None,
        };
        Ok(Self { live, trust, identity })
    }

    /// With another patience than [`Timing::metaserver`].
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.live.timing = timing;
        self
    }
}

impl Source for MetaServerSource {
    async fn run(self, sink: Sink, stop: CancellationToken) -> anyhow::Result<()> {
        self.live.run(sink, stop).await
    }
}

impl Resumable for MetaServerSource {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn kind(&self) -> &'static str {
        self.live.kind
    }

    fn mark(&self) -> Option<Arc<AtomicU64>> {
        Some(self.trust.shared_mark())
    }

    /// Offline, the edge's own store may lack what was known when the cloud was there.
    fn resume(&mut self, last: &LastGood) {
        self.trust.remember(last.mark);
        self.live.known.clone_from(&last.objects);
        self.live.known_at = Some(last.current_at());
    }
}
