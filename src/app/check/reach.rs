//! Whether the source that was chosen can be reached. With `auto`, nothing is known to be missing.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::TcpStream;

use super::finding;
use crate::config::{SourceKind, SourceSettings};
use crate::obs::api::{Finding, Severity};

/// Longest wait for a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connects to the source, and says nothing to it.
pub(super) async fn check(source: &SourceSettings) -> Option<Finding> {
    let problem =
        |what: String, mend: &str| Some(finding("source-unreachable", Severity::Problem, what, mend));
    match source.kind {
        SourceKind::Auto | SourceKind::Manifests => None,
        SourceKind::MetaServer => {
            let why = connect(&source.metaserver).await.err()?;
            let mend =
                "set modules.metaManager.metaServer.enable: true in edgecore.yaml, and restart edgecore";
            problem(format!("MetaServer at {} cannot be reached: {why}", source.metaserver), mend)
        }
        SourceKind::Kubernetes => {
            let path = source.kubeconfig.as_deref()?;
            let (server, why) = match server(path) {
                Ok(server) => {
                    let why = connect(&server).await.err()?;
                    (server, why)
                }
                Err(why) => return problem(why, "give a kubeconfig with --kubeconfig"),
            };
            let mend = "kubectl cluster-info; services go on from the last good snapshot meanwhile";
            problem(format!("the Kubernetes API at {server} cannot be reached: {why}"), mend)
        }
    }
}

async fn connect(url: &str) -> Result<(), String> {
    let (host, port) = host_and_port(url).ok_or_else(|| format!("{url} is no URL with a host"))?;
    match tokio::time::timeout(PATIENCE, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let (rest, default) = match url.split_once("://")? {
        ("http", rest) => (rest, 80),
        ("https", rest) => (rest, 443),
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, after)| after);
    // An IPv6 address stands in brackets, for it has colons itself.
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(default), |port| port.parse().ok())?;
    (!host.is_empty()).then_some((host, port))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct Cluster {
    server: String,
}

/// The server of the current context.
fn server(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    let config: Kubeconfig = serde_saphyr::from_str(&text)
        .map_err(|error| format!("{shown}: {}", error.to_string().lines().next().unwrap_or_default()))?;
    let current = &config.current_context;
    let context = config.contexts.iter().find(|context| context.name == *current);
    let cluster = context.map(|context| &context.context.cluster);
    let found = config.clusters.iter().find(|one| Some(&one.name) == cluster);
    found
        .map(|one| one.cluster.server.clone())
        .ok_or_else(|| format!("{shown}: the current context {current:?} names no cluster with a server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_host_and_port_of_a_url() {
        for (url, wanted) in [
            ("http://127.0.0.1:10550", Some(("127.0.0.1", 10550))),
            ("https://api.example/k8s", Some(("api.example", 443))),
            ("https://[fd00::1]:6443/", Some(("fd00::1", 6443))),
            ("http://[fd00::1]", Some(("fd00::1", 80))),
            ("https://user@host:1?x", Some(("host", 1))),
            ("ftp://x", None),
            ("https://:1", None),
            ("https://x:99999", None),
        ] {
            assert_eq!(host_and_port(url), wanted, "{url}");
        }
    }

    #[test]
    fn finds_the_server_of_the_current_context() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: edge\ncontexts:\n- name: edge\n  context: {cluster: c1, user: u}\n\
            clusters:\n- name: c0\n  cluster: {server: 'https://a:1'}\n- name: c1\n  cluster: {server: 'https://b:2'}\nusers: []\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!(server(&path).as_deref(), Ok("https://b:2"));
        std::fs::write(&path, text.replace("current-context: edge", "current-context: x")).unwrap();
        assert!(server(&path).unwrap_err().contains("\"x\" names no cluster"));
    }
}
