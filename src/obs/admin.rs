//! The admin endpoint: health, metrics, status, resolve. It reads and never changes anything.
//!
//! It may be slow or busy without harm: it lives apart from the data plane, serves few connections at a time, one
//! request each, and cuts off whoever dawdles.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::api::{Condition, Resolution, Status};
use super::metrics::{self, Metrics};

/// Probes and scrapers are few; this bounds memory and descriptors when somebody else comes.
const MOST_CONNECTIONS: usize = 64;
/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole connection: head, answer, and the last byte read by the client.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request head; hyper answers 431 above it, and allows no less than 8 KiB.
const LARGEST_HEAD: usize = 16 << 10;
/// How long accepting pauses when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Gives the agent's status.
pub type StatusHandler = Box<dyn Fn() -> Status + Send + Sync>;
/// Explains a destination, or says in words why it cannot be parsed.
pub type ResolveHandler = Box<dyn Fn(&str) -> Result<Resolution, String> + Send + Sync>;
/// Gives conditions, of which each must hold.
pub type ConditionsHandler = Box<dyn Fn() -> Vec<Condition> + Send + Sync>;

/// Where answers come from. Each is called for every request, off the runtime's own threads, except for the
/// conditions, which must be cheap.
pub struct AdminHandlers {
    /// For `/api/v1/status` and `/metrics`.
    pub status: StatusHandler,
    /// For `/api/v1/resolve`.
    pub resolve: ResolveHandler,
    /// Readiness, for `/readyz`.
    pub health: ConditionsHandler,
    /// Parts that must make progress, for `/healthz`: one that fails is stuck, and only a restart helps.
    pub live: ConditionsHandler,
}

/// The admin endpoint, bound and not yet serving.
#[derive(Debug)]
pub struct AdminServer {
    listener: std::net::TcpListener,
    addr: SocketAddr,
}

impl AdminServer {
    /// Binds `addr`. From here on connections queue up, and they are answered once [`Self::serve`] runs.
    pub fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        let bind = || {
            let listener = std::net::TcpListener::bind(addr)?;
            listener.set_nonblocking(true)?;
            let addr = listener.local_addr()?;
            io::Result::Ok(Self { listener, addr })
        };
        bind().with_context(|| {
            format!(
                "admin.listen is {addr}, which cannot be listened on: free it, or give another with --admin"
            )
        })
    }

    /// The address that was bound, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until `stop` is cancelled; what is being answered then is finished.
    pub async fn serve(self, handlers: AdminHandlers, stop: CancellationToken) -> anyhow::Result<()> {
        let listener = TcpListener::from_std(self.listener).context("the admin endpoint cannot be served")?;
        let shared = Arc::new(Shared::new(handlers));
        let connections = TaskTracker::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    open.retain(|connection| !connection.is_finished());
                    // Whoever has dawdled longest makes room: a probe must not wait for idle connections.
                    while open.len() >= MOST_CONNECTIONS {
                        if let Some(oldest) = open.pop_front() {
                            oldest.abort();
                        }
                    }
                    let shared = Arc::clone(&shared);
                    open.push_back(connections.spawn(serve_one(stream, shared)).abort_handle());
                }
                Err(e) => {
                    debug!("the admin endpoint cannot accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        connections.close();
        // Bounded by TOTAL_TIMEOUT.
        connections.wait().await;
        Ok(())
    }
}

async fn serve_one(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(TOTAL_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => debug!("admin connection: {e}"),
        Err(_) => debug!("admin connection: cut off after {TOTAL_TIMEOUT:?}"),
    }
}

struct Shared {
    handlers: Arc<AdminHandlers>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn new(handlers: AdminHandlers) -> Self {
        let handlers = Arc::new(handlers);
        let source = Arc::clone(&handlers);
        let metrics = Metrics::new(Arc::new(move || (source.status)()));
        Self { handlers, metrics: Arc::new(metrics) }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = if let Err((code, why)) = Self::admit(&request) {
            fault(code, why)
        } else {
            self.route(&request).await
        };
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    /// Turns away what may not be answered, whatever it asks for.
    fn admit<B>(request: &Request<B>) -> Result<(), (StatusCode, &'static str)> {
        // A web page whose name has been rebound to this address sends that name: a browser on this machine must not
        // read the cluster's layout out to it.
        let named = request.headers().get_all(header::HOST).iter().map(HeaderValue::to_str);
        let target = request.uri().authority().map(|a| Ok(a.as_str()));
        let mut hosts = named.chain(target).peekable();
        if hosts.peek().is_none() && request.version() != Version::HTTP_10 {
            return Err((StatusCode::BAD_REQUEST, "the Host header is missing"));
        }
        if !hosts.all(|host| host.is_ok_and(is_own_host)) {
            return Err((StatusCode::MISDIRECTED_REQUEST, "ask by address, or as localhost"));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered"));
        }
        Ok(())
    }

    async fn route<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let handlers = Arc::clone(&self.handlers);
        match request.uri().path() {
            "/healthz" => conditions(&(handlers.live)()),
            "/readyz" => conditions(&(handlers.health)()),
            "/metrics" => {
                let metrics = Arc::clone(&self.metrics);
                aside(move || match metrics.render() {
                    Ok(text) => reply(StatusCode::OK, metrics::CONTENT_TYPE, text),
                    Err(e) => {
                        fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("metrics cannot be written: {e}"))
                    }
                })
                .await
            }
            "/api/v1/status" => aside(move || json(StatusCode::OK, &(handlers.status)())).await,
            "/api/v1/resolve" => match target(request.uri().query()) {
                Ok(target) => {
                    aside(move || match (handlers.resolve)(&target) {
                        Ok(resolution) => json(StatusCode::OK, &resolution),
                        Err(why) => fault(StatusCode::BAD_REQUEST, &why),
                    })
                    .await
                }
                Err(why) => fault(StatusCode::BAD_REQUEST, why),
            },
            _ => fault(StatusCode::NOT_FOUND, "no such path"),
        }
    }
}

/// Runs what may take long (a node can have 10,000 services) off the runtime's threads.
async fn aside(work: impl FnOnce() -> Response<Full<Bytes>> + Send + 'static) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(work).await {
        Ok(response) => response,
        // The panic hook has logged what happened.
        Err(_) => {
            fault(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made; the agent's log says why")
        }
    }
}

/// Whether `host`, a `Host` header's value, cannot be a name that somebody on the internet has rebound to this address:
/// an address, or a single label such as `localhost` or a node's name, which no public domain has.
fn is_own_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<hyper::http::uri::Authority>() else { return false };
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    !host.contains('@') && (bare.parse::<IpAddr>().is_ok() || !name.trim_end_matches('.').contains('.'))
}

/// The `target` of a query, decoded.
fn target(query: Option<&str>) -> Result<String, &'static str> {
    let mut pairs = query.unwrap_or_default().split('&');
    let value = pairs.find_map(|pair| pair.strip_prefix("target="));
    let value =
        value.filter(|v| !v.is_empty()).ok_or("give a destination: ?target=IP:PORT, NAME:PORT or NAME")?;
    percent_decode(value).map(Cow::into_owned).ok_or("the target is not percent-encoded UTF-8")
}

fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            digit(bytes.next()?)? << 4 | digit(bytes.next()?)?
        } else {
            byte
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// 200 if all hold, else 503; the body names each.
fn conditions(conditions: &[Condition]) -> Response<Full<Bytes>> {
    let all = conditions.iter().all(|c| c.ok);
    let mut text = String::new();
    for c in conditions {
        let line =
            format!("{} {} {}", c.name, if c.ok { "ok" } else { "not ok" }, c.detail.replace('\n', " "));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if text.is_empty() {
        text.push_str("ok\n");
    }
    reply(
        if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
        "text/plain; charset=utf-8",
        text,
    )
}

fn json(code: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => reply(code, "application/json", body),
        Err(e) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", e.to_string()),
    }
}

fn fault(code: StatusCode, why: &str) -> Response<Full<Bytes>> {
    json(code, &serde_json::json!({ "error": why }))
}

fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
