//! Which source feeds this node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cache::Cache;
use super::kube::Origin;
use super::kubernetes::KubernetesSource;
use super::metaserver::MetaServerSource;
use crate::config::{Credentials, Settings, SourceKind, SourceSettings};

/// Where the kubelet mounts a pod's token.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// How long a `MetaServer` may take to accept a connection; it is on this node.
const PROBE: Duration = Duration::from_secs(2);

/// The source that feeds this node.
#[derive(Debug)]
pub enum Chosen {
    /// Files: the file or folder.
    Manifests(PathBuf),
    /// The Kubernetes API.
    Kubernetes(KubernetesSource),
    /// `KubeEdge`'s `MetaServer`.
    MetaServer(MetaServerSource),
}

/// What the process finds around itself.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    /// It runs in a pod that may talk to the API.
    in_cluster: bool,
    /// Kubeconfig files that exist, best first.
    kubeconfigs: Vec<PathBuf>,
}

impl Surroundings {
    fn look() -> Self {
        let in_cluster =
            std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(POD_TOKEN).exists();
        let named = std::env::var_os("KUBECONFIG").unwrap_or_default();
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
        let kubeconfigs = std::env::split_paths(&named).chain(home).filter(|p| p.is_file()).collect();
        Self { in_cluster, kubeconfigs }
    }

    /// Where a Kubernetes API is configured, if anywhere: as told, else the pod's, else a kubeconfig.
    fn origin(&self, settings: &SourceSettings) -> Option<Origin> {
        match &settings.kubeconfig {
            Some(path) => Some(Origin::Kubeconfig(path.clone())),
            None if self.in_cluster => Some(Origin::InCluster),
            None => self.kubeconfigs.first().cloned().map(Origin::Kubeconfig),
        }
    }
}

/// Chooses the source, and says in the log which and why. Errors say what was looked for and how to name a source.
pub async fn choose(settings: &Settings) -> anyhow::Result<Chosen> {
    choose_in(settings, &Surroundings::look()).await
}

async fn choose_in(settings: &Settings, around: &Surroundings) -> anyhow::Result<Chosen> {
    let source = &settings.source;
    match source.kind {
        SourceKind::Manifests => match &source.manifests {
            Some(path) => Ok(Chosen::Manifests(path.clone())),
            None => bail!("`source.kind` is manifests: name the file or folder with `--manifests PATH`"),
        },
        SourceKind::Kubernetes => match around.origin(source) {
            Some(origin) => kubernetes(origin).await,
            None => bail!(
                "`source.kind` is kubernetes, but this is no pod with a service account, and neither KUBECONFIG nor \
                 ~/.kube/config names a file that exists: name one with `--kubeconfig FILE`"
            ),
        },
        SourceKind::MetaServer => metaserver(source, "as told").await,
        SourceKind::Auto => {
            if let Some(path) = &source.manifests {
                tracing::info!("source: manifests in {}, since a path is given", path.display());
                return Ok(Chosen::Manifests(path.clone()));
            }
            if let Some(origin) = around.origin(source) {
                return kubernetes(origin).await;
            }
            if answers(&source.metaserver).await {
                return metaserver(source, "since it answers").await;
            }
            // After a power cut this may start before edgecore does.
            let last = Cache::open(&settings.state_dir).identity();
            if last.is_some_and(|l| l.starts_with("metaserver ")) {
                return metaserver(source, "since it fed this node before").await;
            }
            bail!(
                "no source of Services found: no `--manifests PATH`; no Kubernetes API (this is no pod with a service \
                 account, and neither `--kubeconfig FILE`, KUBECONFIG nor ~/.kube/config names a file); and no \
                 MetaServer answers at {} (`--metaserver URL`)",
                source.metaserver
            )
        }
    }
}

async fn kubernetes(origin: Origin) -> anyhow::Result<Chosen> {
    match &origin {
        Origin::InCluster => tracing::info!(
            "source: the Kubernetes API, with this pod's service account; its address is normally that of the Service \
             default/kubernetes, which this agent leaves to others unless it is told to capture it"
        ),
        Origin::Kubeconfig(path) => tracing::info!("source: the Kubernetes API, by {}", path.display()),
        Origin::Url { url, .. } => tracing::info!("source: the Kubernetes API at {url}"),
    }
    Ok(Chosen::Kubernetes(KubernetesSource::new(origin).await?))
}

async fn metaserver(source: &SourceSettings, why: &str) -> anyhow::Result<Chosen> {
    tracing::info!("source: MetaServer at {}, {why}", source.metaserver);
    let files: Credentials = source.metaserver_credentials.clone();
    let source = MetaServerSource::new(&source.metaserver, files).await;
    Ok(Chosen::MetaServer(source.context("`source.metaserver`")?))
}

/// True if something accepts connections at the address of `url`.
async fn answers(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    matches!(timeout(PROBE, TcpStream::connect((host, port))).await, Ok(Ok(_)))
}
