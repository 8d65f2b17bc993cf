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
    choose_in(&settings.source, &settings.state_dir, &Surroundings::look()).await
}

async fn choose_in(
    source: &SourceSettings,
    state_dir: &Path,
    around: &Surroundings,
) -> anyhow::Result<Chosen> {
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
            let last = Cache::open(state_dir).identity();
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

#[cfg(test)]
mod tests {
    use super::super::cache::{Shelf, file};
    use super::super::cached::Resumable;
    use super::*;

    fn settings(kind: SourceKind) -> SourceSettings {
        SourceSettings {
            kind,
            manifests: None,
            kubeconfig: None,
            // Discard: nobody listens there.
            metaserver: "http://127.0.0.1:9".to_owned(),
            metaserver_credentials: Credentials::default(),
        }
    }

    #[test]
    fn a_named_file_comes_before_the_pod_and_the_pod_before_found_files() {
        let around = Surroundings { in_cluster: true, kubeconfigs: vec!["/home/k".into()] };
        let named = SourceSettings { kubeconfig: Some("/named".into()), ..settings(SourceKind::Auto) };
        assert_eq!(around.origin(&named), Some(Origin::Kubeconfig("/named".into())));
        assert_eq!(around.origin(&settings(SourceKind::Auto)), Some(Origin::InCluster));
        let around = Surroundings { in_cluster: false, ..around };
        assert_eq!(around.origin(&settings(SourceKind::Auto)), Some(Origin::Kubeconfig("/home/k".into())));
        assert_eq!(Surroundings::default().origin(&settings(SourceKind::Auto)), None);
    }

    #[tokio::test]
    async fn auto_takes_files_then_what_answers_then_what_fed_it_before() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings::default();
        let mut auto = settings(SourceKind::Auto);
        let error = choose_in(&auto, dir.path(), &around).await.unwrap_err().to_string();
        for way in ["--manifests", "--kubeconfig", "--metaserver", "http://127.0.0.1:9"] {
            assert!(error.contains(way), "{error}");
        }
        let cache = Cache::open(dir.path());
        let (body, sum) = Shelf::default().body();
        let now = std::time::SystemTime::now();
        cache.save(&file(&body, sum, "metaserver http://127.0.0.1:9", now, 0).unwrap()).unwrap();
        let chosen = choose_in(&auto, dir.path(), &around).await.unwrap();
        assert!(matches!(chosen, Chosen::MetaServer(s) if s.identity() == "metaserver http://127.0.0.1:9"));
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        auto.metaserver = format!("http://{}", there.local_addr().unwrap());
        let chosen = choose_in(&auto, &dir.path().join("none"), &around).await.unwrap();
        assert!(matches!(chosen, Chosen::MetaServer(_)));
        auto.manifests = Some("/manifests".into());
        let chosen = choose_in(&auto, dir.path(), &around).await.unwrap();
        assert!(matches!(chosen, Chosen::Manifests(p) if p == Path::new("/manifests")));
    }

    #[tokio::test]
    async fn a_source_that_is_asked_for_and_not_configured_says_how_to() {
        let around = Surroundings::default();
        for (kind, way) in [(SourceKind::Manifests, "--manifests"), (SourceKind::Kubernetes, "--kubeconfig")]
        {
            let error =
                choose_in(&settings(kind), Path::new("/none"), &around).await.unwrap_err().to_string();
            assert!(error.contains(way), "{error}");
        }
        let bad =
            SourceSettings { metaserver: "127.0.0.1:10550".to_owned(), ..settings(SourceKind::MetaServer) };
        let error = choose_in(&bad, Path::new("/none"), &around).await.unwrap_err();
        assert!(format!("{error:#}").contains("write http://HOST:PORT"), "{error:#}");
    }
}
