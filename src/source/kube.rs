//! The connection to an API server: configuration, credentials and TLS.
//!
//! The only file that names `kube`. What is asked and how answers are read stands elsewhere: this file turns a path
//! into a stream of bytes or a `Fault`.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use http_body_util::BodyExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::fault::{Fault, Hints};
use crate::config::Credentials;

/// The program's name in the server's audit log.
const USER_AGENT: &str = concat!("edgesplice/", env!("CARGO_PKG_VERSION"));
/// Time for TCP and TLS; a node that reaches its server at all does so in this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// First probe on an idle connection. With [`KEEPALIVE_AGAIN`], a peer that vanished without a word is noticed within 35 s:
/// later, its own retransmissions are so far apart that news comes up to a minute after the way is free again (measured
/// after a cut of 60 s: 51 s). A watch costs some 10 bytes a second so.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Between two probes that are not answered; three are sent.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
/// Most of an error's text that is shown.
const MOST_ERROR_TEXT: usize = 4096;

/// Where the server's address and our credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The environment and the service account of a pod.
    InCluster,
    /// A kubeconfig file, its current context.
    Kubeconfig(PathBuf),
    /// An address, with credentials in files.
    Url {
        /// `http://` or `https://`, host and port.
        url: String,
        /// What to show besides.
        credentials: Credentials,
    },
}

/// A connection to one API server.
#[derive(Debug)]
pub(super) struct ApiClient {
    origin: Origin,
    server: String,
    hints: Hints,
    /// Built at the first request and again after [`Self::forget`]: an exec plugin may need the network.
    client: Mutex<Option<Client>>,
}

#[derive(Clone)]
struct Client {
    kube: kube::Client,
    /// Read for each request: requests are rare, and the kubelet turns tokens at any time.
    token_file: Option<PathBuf>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// An answer whose head has arrived.
pub(super) struct Answer {
    body: Body,
}

impl ApiClient {
    /// Reads the configuration; asks nothing of the network.
    pub(super) async fn new(origin: Origin) -> Result<Self, Fault> {
        let config = load(&origin).await?;
        let hints = hints(&origin);
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        Ok(Self { origin, server, hints, client: Mutex::new(None) })
    }

    /// Scheme, host and port, as configured.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// Reads configuration and credential files again before the next request.
    pub(super) async fn forget(&self) {
        *self.client.lock().await = None;
    }

    async fn client(&self) -> Result<Client, Fault> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let mut config = load(&self.origin).await?;
        // A token in the file itself comes first, as in client-go.
        let token_file = config.auth_info.token_file.take().filter(|_| config.auth_info.token.is_none());
        let client = Client { kube: build(config).await?, token_file: token_file.map(PathBuf::from) };
        Ok(slot.insert(client).clone())
    }

    /// Sends `GET path` and waits up to `patience` for the head of a successful answer.
    pub(super) async fn get(&self, path: &str, patience: Duration) -> Result<Answer, Fault> {
        let (status, after, mut answer) =
            self.send(http::Request::get(path), Body::empty(), patience).await?;
        // The other form, a date, is not sent by any API server.
        let retry_after = after.and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
        match status.as_u16() {
            200..=299 => Ok(answer),
            401 => Err(Fault::Unauthorized),
            403 => Err(Fault::Forbidden),
            404 => Err(Fault::NotFound),
            410 => Err(Fault::Gone),
            code => {
                Err(Fault::Status { code, message: answer.error_text(status, patience).await, retry_after })
            }
        }
    }

    /// Sends `POST path` and gives back the status and the first few KiB of whatever is answered within `patience`.
    pub(super) async fn post(
        &self,
        path: &str,
        json: String,
        patience: Duration,
    ) -> Result<(u16, Vec<u8>), Fault> {
        let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        let (status, _, mut answer) = self.send(request, json.into_bytes().into(), patience).await?;
        Ok((status.as_u16(), answer.start(patience).await))
    }

    /// Sends `PATCH path` with what changes (RFC 7396) and gives back the status of whatever is answered within `patience`.
    pub(super) async fn patch(&self, path: &str, json: String, patience: Duration) -> Result<u16, Fault> {
        let request =
            http::Request::patch(path).header(http::header::CONTENT_TYPE, "application/merge-patch+json");
        let (status, _, mut answer) = self.send(request, json.into_bytes().into(), patience).await?;
        // Read to its end, so that the connection can be used again.
        answer.start(patience).await;
        Ok(status.as_u16())
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Body,
        patience: Duration,
    ) -> Result<(http::StatusCode, Option<String>, Answer), Fault> {
        let client = self.client().await?;
        let mut request = request
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::USER_AGENT, USER_AGENT)
            .body(body)
            .map_err(|e| Fault::Setup(format!("cannot put the question: {e}")))?;
        if let Some(file) = &client.token_file {
            request.headers_mut().insert(http::header::AUTHORIZATION, bearer(file)?);
        }
        let response = match timeout(patience, client.kube.send(request)).await {
            Err(_) => return Err(Fault::Timeout(patience)),
            Ok(Err(e)) => return Err(network_fault(&e)),
            Ok(Ok(response)) => response,
        };
        let after = response.headers().get(http::header::RETRY_AFTER).and_then(|v| v.to_str().ok());
        let after = after.map(str::to_owned);
        Ok((response.status(), after, Answer { body: response.into_body() }))
    }
}

impl Answer {
    /// The next piece, `None` at the end.
    pub(super) async fn chunk(&mut self, patience: Duration) -> Result<Option<hyper::body::Bytes>, Fault> {
        loop {
            match timeout(patience, self.body.frame()).await {
                Err(_) => return Err(Fault::Timeout(patience)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(network_fault(&e)),
                // Trailers carry nothing for us.
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The first [`MOST_ERROR_TEXT`] bytes, or what came of them.
    async fn start(&mut self, patience: Duration) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < MOST_ERROR_TEXT
            && let Ok(Some(chunk)) = self.chunk(patience).await
        {
            bytes.extend_from_slice(&chunk);
        }
        bytes.truncate(MOST_ERROR_TEXT);
        bytes
    }

    /// The message of a `Status` object, or the first line of anything else.
    async fn error_text(&mut self, status: http::StatusCode, patience: Duration) -> String {
        let bytes = self.start(patience).await;
        let text = String::from_utf8_lossy(&bytes);
        let message = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|v| v.get("message")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| text.lines().next().unwrap_or_default().to_owned());
        let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
        if message.is_empty() { status.canonical_reason().unwrap_or_default().to_owned() } else { message }
    }
}

fn hints(origin: &Origin) -> Hints {
    match origin {
        Origin::InCluster => Hints {
            address: "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT in the environment".to_owned(),
            credentials: "the token of the pod's service account".to_owned(),
            ca: "ca.crt of the pod's service account".to_owned(),
        },
        Origin::Kubeconfig(path) => {
            let path = path.display();
            Hints {
                address: format!("`server` in {path}"),
                credentials: format!("the user's credentials in {path}"),
                ca: format!("`certificate-authority` in {path}"),
            }
        }
        Origin::Url { .. } => Hints {
            address: "`source.metaserver.url`".to_owned(),
            credentials: "`source.metaserver.tokenFile` and `source.metaserver.tlsCertFile`".to_owned(),
            ca: "`source.metaserver.tlsCaFile`".to_owned(),
        },
    }
}

fn bearer(file: &Path) -> Result<HeaderValue, Fault> {
    let bad = |why: &dyn Display| Fault::Setup(format!("cannot use the token in {}: {why}", file.display()));
    let token = std::fs::read_to_string(file).map_err(|e| bad(&e))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|e| bad(&e))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn load(origin: &Origin) -> Result<kube::Config, Fault> {
    match origin {
        Origin::InCluster => kube::Config::incluster()
            .map_err(|e| Fault::Setup(format!("cannot use the pod's service account: {}", chain(&e)))),
        Origin::Kubeconfig(path) => kubeconfig(path).await,
        Origin::Url { url, credentials } => from_url(url, credentials),
    }
}

async fn kubeconfig(path: &Path) -> Result<kube::Config, Fault> {
    let shown = path.display();
    let bad = |e: &dyn Error| Fault::Setup(format!("cannot use kubeconfig {shown}: {}", chain(e)));
    let file = Kubeconfig::read_from(path).map_err(|e| bad(&e))?;
    if file.clusters.iter().filter_map(|c| c.cluster.as_ref()).any(|c| c.proxy_url.is_some()) {
        return Err(Fault::Setup(format!(
            "kubeconfig {shown}: `proxy-url` is not supported; name a server that this node reaches directly"
        )));
    }
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|e| bad(&e))?;
    // Left over from HTTPS_PROXY in the environment: the node's way to its API server is direct.
    config.proxy_url = None;
    Ok(config)
}

fn from_url(url: &str, files: &Credentials) -> Result<kube::Config, Fault> {
    let uri: http::Uri = url
        .parse()
        .ok()
        .filter(|u: &http::Uri| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some())
        .ok_or_else(|| {
            Fault::Setup(format!(
                "`{url}` is no server's address; write http://HOST:PORT or https://HOST:PORT"
            ))
        })?;
    let name = |file: &Option<PathBuf>| file.as_ref().map(|f| f.display().to_string());
    let mut config = kube::Config::new(uri);
    config.root_cert_file.clone_from(&files.ca_file);
    config.auth_info = AuthInfo {
        token_file: name(&files.token_file),
        client_certificate: name(&files.cert_file),
        client_key: name(&files.key_file),
        ..AuthInfo::default()
    };
    Ok(config)
}

async fn build(config: kube::Config) -> Result<kube::Client, Fault> {
    let bad = |e: kube::Error| Fault::Setup(format!("cannot use the credentials: {}", chain(&e)));
    // An exec plugin runs here, and takes its time.
    let prepared = tokio::task::spawn_blocking(move || {
        let auth = config.auth_layer()?;
        let headers = config.extra_headers_layer()?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false); // the TLS connector on top brings `https`
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_AGAIN));
        tcp.set_keepalive_retries(Some(3));
        tcp.set_nodelay(true);
        let tls = config.rustls_https_connector_with_connector(tcp)?;
        Ok((config, auth, headers, tls))
    });
    let (config, auth, headers, tls) = prepared
        .await
        .map_err(|e| Fault::Setup(format!("reading the credentials failed: {e}")))?
        .map_err(bad)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(tls);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(headers)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, "default"))
}

/// The messages of an error and its causes; each layer that only repeats the one below is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}

fn network_fault(error: &kube::Error) -> Fault {
    if let kube::Error::Auth(_) = error {
        return Fault::Setup(format!("cannot use the credentials: {}", chain(error)));
    }
    let mut innermost: &dyn Error = error;
    let mut kind = None;
    loop {
        if let Some(io) = innermost.downcast_ref::<io::Error>() {
            kind = Some(io.kind());
        }
        match innermost.source() {
            Some(cause) => innermost = cause,
            None => break,
        }
    }
    let text = innermost.to_string();
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => Fault::Refused,
        Some(io::ErrorKind::TimedOut) => Fault::Timeout(CONNECT_TIMEOUT),
        _ if text.contains("corrupt message") => Fault::Tls("the server does not speak TLS".to_owned()),
        // `BadSignature`: an authority of the same name with another key, as after the cluster was set up anew.
        _ if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
            Fault::Tls("the server's certificate is signed by an authority that is not trusted".to_owned())
        }
        _ if text.contains("certificate") || text.contains("fatal alert") => Fault::Tls(text),
        _ => Fault::Network(chain(innermost)),
    }
}
/// Reads a kubeconfig, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_text(text: &str) {
    let _ = kube::config::Kubeconfig::from_yaml(text);
}
