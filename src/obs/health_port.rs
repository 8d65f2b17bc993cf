//! The answer to a load balancer that asks whether this node has endpoints of a Service (`healthCheckNodePort`).
//!
//! Whatever is asked, on whatever path, the answer is the same: 200 while there is an endpoint and the proxy works, 503
//! otherwise, with the numbers as JSON. Other headers and fields than kube-proxy's would surprise somebody.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A load balancer asks from a few places; this bounds memory and descriptors when somebody else comes.
const MOST_CONNECTIONS: usize = 32;
/// Time for a whole connection.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long accepting pauses when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is told about a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceHealth {
    /// Which Service.
    pub service: ServiceName,
    /// Its ready endpoints on this node.
    pub local_endpoints: usize,
    /// Whether the proxy works.
    pub service_proxy_healthy: bool,
}

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// Gives the present state; `None` where the Service is gone.
pub type ServiceHealthHandler = Arc<dyn Fn() -> Option<ServiceHealth> + Send + Sync>;

/// Answers on `listener` until `stop` is cancelled.
pub async fn serve(listener: TcpListener, handler: ServiceHealthHandler, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (listener.accept().await, slot)
            } => accepted,
        };
        let (stream, slot) = match accepted {
            (Ok((stream, _)), slot) => (stream, slot),
            (Err(e), _) => {
                debug!("a health check port cannot accept: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |_| {
                let answer = answer(handler());
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(TOTAL_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Who does not finish in time is cut off.
            let _ = tokio::time::timeout(TOTAL_TIMEOUT, connection).await;
        });
    }
}

fn answer(health: Option<ServiceHealth>) -> Response<Full<Bytes>> {
    let good = health.as_ref().is_some_and(|h| h.local_endpoints > 0 && h.service_proxy_healthy);
    let weight = health.as_ref().map_or(0, |h| h.local_endpoints);
    let body = health.and_then(|h| serde_json::to_vec(&h).ok()).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // For balancers that weigh nodes by their endpoints (KEP-3836).
    headers.insert(
        header::HeaderName::from_static("x-load-balancing-endpoint-weight"),
        HeaderValue::from(weight),
    );
    response
}
