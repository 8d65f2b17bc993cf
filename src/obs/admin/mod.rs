//! The admin endpoint: health, metrics, status, resolve, and a page for people. It reads and never changes anything.
//!
//! It may be slow or busy without harm: it lives apart from the data plane, serves few connections at a time, one
//! request each, and cuts off whoever dawdles.
//!
//! `guard` says who is answered, `feed` makes the page's events, `page` holds the page itself. What does not belong
//! here: anything that the agent would do differently because somebody asked.

mod feed;
mod guard;
mod page;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::api::{Condition, Finding, Resolution, Status};
use super::meter::Tally;
use super::metrics::{self, Figures, Metrics, Runtime};
use feed::Feed;

/// Probes and scrapers are few; this bounds memory and descriptors when somebody else comes.
const MOST_CONNECTIONS: usize = 64;
/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole connection: head, answer, and the last byte read by the client.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for what is being answered when the end comes.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest request head; hyper answers 431 above it, and allows no less than 8 KiB.
const LARGEST_HEAD: usize = 16 << 10;
/// How long accepting pauses when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The paths that are counted, each; others count as the last.
const PATHS: [&str; 8] =
    ["/healthz", "/readyz", "/metrics", "/api/v1/status", "/api/v1/resolve", "/api/v1/events", "/", "other"];

/// An answer's body.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Gives the agent's status.
pub type StatusHandler = Box<dyn Fn() -> Status + Send + Sync>;
/// Explains a destination, or says in words why it cannot be parsed.
pub type ResolveHandler = Box<dyn Fn(&str) -> Result<Resolution, String> + Send + Sync>;
/// Gives conditions, of which each must hold.
pub type ConditionsHandler = Box<dyn Fn() -> Vec<Condition> + Send + Sync>;

/// Gives the numbers that are counted for metrics only.
pub type FiguresHandler = Box<dyn Fn() -> Figures + Send + Sync>;
/// Looks this machine over, as `check` does.
pub type CheckHandler = Box<dyn Fn() -> Vec<Finding> + Send + Sync>;

/// Where answers come from. Each is called for every request, off the runtime's own threads, except for the
/// conditions, which must be cheap.
pub struct AdminHandlers {
    /// For `/api/v1/status` and `/metrics`.
    pub status: StatusHandler,
    /// For `/metrics`, besides.
    pub figures: FiguresHandler,
    /// For the page, now and then while one is open; may take seconds.
    pub check: CheckHandler,
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
        let bind = || Self::on(std::net::TcpListener::bind(addr)?);
        bind().with_context(|| {
            format!(
                "admin.listen is {addr}, which cannot be listened on: free it, or give another with --admin"
            )
        })
    }

    /// The same on a socket that listens already.
    pub fn on(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// The socket.
    pub fn listener(&self) -> &std::net::TcpListener {
        &self.listener
    }

    /// The address that was bound, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until `stop` is cancelled; what is being answered then may end.
    pub async fn serve(self, handlers: AdminHandlers, stop: CancellationToken) -> anyhow::Result<()> {
        let listener = TcpListener::from_std(self.listener).context("the admin endpoint cannot be served")?;
        let shared = Arc::new(Shared::new(handlers, self.addr.ip().is_loopback(), stop.clone()));
        let feeding = tokio::spawn(Arc::clone(&shared.feed).run()).abort_handle();
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
        feeding.abort();
        connections.close();
        if tokio::time::timeout(STOP_TIMEOUT, connections.wait()).await.is_err() {
            open.iter().for_each(AbortHandle::abort);
        }
        Ok(())
    }
}

async fn serve_one(stream: TcpStream, shared: Arc<Shared>) {
    // Set by an answer that goes on for as long as the client listens.
    let lasting = Arc::new(AtomicBool::new(false));
    let lasts = Arc::clone(&lasting);
    let service = service_fn(move |request| {
        let (shared, lasting) = (Arc::clone(&shared), Arc::clone(&lasting));
        async move { Ok::<_, Infallible>(shared.answer(request, &lasting).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut ended = tokio::time::timeout(TOTAL_TIMEOUT, connection.as_mut()).await;
    if ended.is_err() && lasts.load(Relaxed) {
        // The feed itself ends after its time.
        ended = Ok(connection.await);
    }
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(e)) => debug!("admin connection: {e}"),
        Err(_) => debug!("admin connection: cut off after {TOTAL_TIMEOUT:?}"),
    }
}

struct Shared {
    handlers: Arc<AdminHandlers>,
    metrics: Arc<Metrics>,
    feed: Arc<Feed>,
    requests: Arc<Tally<8>>,
    /// Whether only this machine can ask.
    loopback: bool,
}

impl Shared {
    /// Must be called on the runtime that serves.
    fn new(handlers: AdminHandlers, loopback: bool, stop: CancellationToken) -> Self {
        let handlers = Arc::new(handlers);
        let requests = Arc::new(Tally::new(&PATHS));
        let (source, counted, runtime) =
            (Arc::clone(&handlers), Arc::clone(&requests), tokio::runtime::Handle::current());
        let metrics = Metrics::new(Arc::new(move || {
            let mut figures = (source.figures)();
            figures.admin_requests = counted.read();
            figures.runtimes.push(Runtime::of("admin", &runtime));
            ((source.status)(), figures)
        }));
        let feed = Feed::new(Arc::clone(&handlers), stop);
        Self { handlers, metrics: Arc::new(metrics), feed, requests, loopback }
    }

    async fn answer(&self, request: Request<Incoming>, lasting: &AtomicBool) -> Response<Body> {
        let path = request.uri().path();
        self.requests.add(PATHS.iter().position(|known| *known == path).unwrap_or(PATHS.len()));
        let mut response = if let Err((code, why)) = guard::admit(&request, self.loopback) {
            fault(code, why)
        } else {
            self.route(&request, lasting).await
        };
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        for (name, value) in page::HEADERS {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    }

    async fn route<B>(&self, request: &Request<B>, lasting: &AtomicBool) -> Response<Body> {
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
            "/api/v1/events" => self.events(request.method() == hyper::Method::HEAD, lasting),
            path => match page::file(path) {
                Some((content_type, text)) => reply(StatusCode::OK, content_type, text),
                None => fault(StatusCode::NOT_FOUND, "no such path"),
            },
        }
    }

    /// The status again and again, for the page.
    fn events(&self, head_only: bool, lasting: &AtomicBool) -> Response<Body> {
        if head_only {
            return reply(StatusCode::OK, feed::CONTENT_TYPE, "");
        }
        let Some(body) = self.feed.listen() else {
            let why = format!("{} pages listen already: close one", feed::MOST_LISTENERS);
            return fault(StatusCode::SERVICE_UNAVAILABLE, &why);
        };
        lasting.store(true, Relaxed);
        let mut response = reply(StatusCode::OK, feed::CONTENT_TYPE, "");
        *response.body_mut() = body;
        response
    }
}

/// Runs what may take long (a node can have 10,000 services) off the runtime's threads.
async fn aside(work: impl FnOnce() -> Response<Body> + Send + 'static) -> Response<Body> {
    match tokio::task::spawn_blocking(work).await {
        Ok(response) => response,
        // The panic hook has logged what happened.
        Err(_) => {
            fault(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made; the agent's log says why")
        }
    }
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
fn conditions(conditions: &[Condition]) -> Response<Body> {
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

fn json(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => reply(code, "application/json", body),
        Err(e) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", e.to_string()),
    }
}

fn fault(code: StatusCode, why: &str) -> Response<Body> {
    json(code, &serde_json::json!({ "error": why }))
}

fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Reads the head of a request, for tests with hostile ones: what is admitted names this machine.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_head(host: &[u8], query: &str) {
    if let Ok(target) = target(Some(query)) {
        assert!(target.len() <= query.len());
    }
    let Ok(value) = HeaderValue::from_bytes(host) else { return };
    let Ok(request) = Request::get("/").header(header::HOST, value).body(()) else { return };
    if guard::admit(&request, true).is_ok() {
        assert!(!String::from_utf8_lossy(host).contains('@'));
    }
}

#[cfg(test)]
mod tests;
