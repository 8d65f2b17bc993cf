//! The Kubernetes API as a source.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::cached::{LastGood, Resumable};
use super::events::Recorder;
use super::follow::Timing;
use super::kube::{ApiClient, Origin};
use super::live::Live;
use super::resource::{DESTINATION_RULES, NODES, PODS, Resource, SERVICE_CIDRS, SERVICES, SLICES};
use super::{Sink, Source};

/// What is followed. Services carry no selector: one that opts out has to be known all the same, because its
/// `ClusterIP`s lie inside a captured range and must be left alone. Slices that have opted out are of no use to us.
/// Neither `Endpoints` nor `Namespace`s are needed.
static RESOURCES: [Resource; 6] = resources(
    // `!service.kubernetes.io/service-proxy-name,!service.edgemesh.kubeedge.io/service-proxy-name,noproxy!=edgemesh`.
    // Not `!service.kubernetes.io/headless`: the names of headless Services are answered from their slices.
    "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C\
     %21service.edgemesh.kubeedge.io%2Fservice-proxy-name%2Cnoproxy%21%3Dedgemesh",
);

/// The same where the label `service-proxy-name` chooses the Services that are ours.
static RESOURCES_BY_NAME: [Resource; 6] =
    resources("&labelSelector=%21service.edgemesh.kubeedge.io%2Fservice-proxy-name%2Cnoproxy%21%3Dedgemesh");

const fn resources(slice_query: &'static str) -> [Resource; 6] {
    [
        SERVICES,
        Resource { query: slice_query, ..SLICES },
        // `status.phase!=Succeeded,status.phase!=Failed`
        Resource { query: "&fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed", ..PODS },
        NODES,
        Resource {
            paths: &[
                "/apis/networking.k8s.io/v1/servicecidrs",
                "/apis/networking.k8s.io/v1beta1/servicecidrs",
            ],
            ..SERVICE_CIDRS
        },
        DESTINATION_RULES,
    ]
}

/// Follows a Kubernetes API server.
#[derive(Debug)]
pub struct KubernetesSource {
    live: Live,
    identity: String,
}

impl KubernetesSource {
    /// Reads the configuration that `origin` names; asks nothing of the network. Errors name the file and the fault.
    pub async fn new(origin: Origin) -> anyhow::Result<Self> {
        let api = ApiClient::new(origin).await?;
        let identity = format!("kubernetes {}", api.server());
        let live = Live {
            kind: "kubernetes",
            api: Arc::new(api),
            resources: &RESOURCES,
            timing: Timing::kubernetes(),
            trust: None,
            ask_range: true,
            known: Vec::new(),
            known_at: None,
        };
        Ok(Self { live, identity })
    }

    /// Where `name` is not empty, Services are chosen by their label `service-proxy-name`, and slices with that label
    /// are followed as well.
    #[must_use]
    pub fn with_service_proxy_name(mut self, name: &str) -> Self {
        self.live.resources = if name.is_empty() { &RESOURCES } else { &RESOURCES_BY_NAME };
        self
    }

    /// Without asking the server for the Service range: it is known.
    #[must_use]
    pub fn with_known_range(mut self) -> Self {
        self.live.ask_range = false;
        self
    }

    /// What tells this cluster's users by events, in the name of `node`.
    pub fn recorder(&self, node: &str) -> Recorder {
        Recorder::new(Arc::clone(&self.live.api), node)
    }

    /// With another patience than [`Timing::kubernetes`].
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.live.timing = timing;
        self
    }
}

impl Source for KubernetesSource {
    async fn run(self, sink: Sink, stop: CancellationToken) -> anyhow::Result<()> {
        self.live.run(sink, stop).await
    }
}

impl Resumable for KubernetesSource {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn kind(&self) -> &'static str {
        self.live.kind
    }

    /// Nothing to take over: the first full state comes from the API server itself and is true.
    fn resume(&mut self, _: &LastGood) {}
}
