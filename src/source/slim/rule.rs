//! DestinationRule of Istio: the few fields that choose and watch over backends.

use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::fields::{GoDuration, nullable};
use super::meta::RawMeta;

/// A DestinationRule; it concerns the Service of the same name and namespace.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct DestinationRule {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// `trafficPolicy.loadBalancer.simple` as written.
    pub simple: Option<Box<str>>,
    /// `consistentHash.httpHeaderName`.
    pub hash_header: Option<Arc<str>>,
    /// `consistentHash.useSourceIp`.
    pub hash_source_ip: bool,
    /// `consistentHash.httpCookie`.
    pub hash_cookie: Option<HashCookie>,
    /// `consistentHash` holds something else (a query parameter), which is not supported.
    pub hash_unsupported: bool,
    /// The smallest of `outlierDetection`'s counts of consecutive errors that is set; 0 where all that are set
    /// are 0, which switches ejection off.
    pub consecutive_errors: Option<u32>,
    /// `outlierDetection.baseEjectionTime`.
    pub base_ejection_time: Option<Duration>,
    /// `outlierDetection.maxEjectionPercent`, at most 100.
    pub max_ejection_percent: Option<u8>,
    /// `connectionPool.tcp.connectTimeout`.
    pub connect_timeout: Option<Duration>,
    /// `connectionPool.tcp.maxConnections`.
    pub max_connections: Option<u32>,
    /// `connectionPool.http`, where it says anything that is honoured.
    pub http_pool: Option<Box<HttpPool>>,
}

/// `connectionPool.http`. As in Istio a 0 sets nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpPool {
    /// Requests under way at once, over HTTP/1 as well, whatever the name says.
    #[serde(rename = "http2MaxRequests", default, deserialize_with = "above_zero")]
    pub max_requests: Option<u32>,
    /// Requests that wait for a new connection at once.
    #[serde(rename = "http1MaxPendingRequests", default, deserialize_with = "above_zero")]
    pub max_pending: Option<u32>,
    /// Requests that one connection to a backend carries.
    #[serde(default, deserialize_with = "above_zero")]
    pub max_requests_per_connection: Option<u32>,
    /// Requests under way at once that are being sent again.
    #[serde(default, deserialize_with = "above_zero")]
    pub max_retries: Option<u32>,
    /// Streams at once on one HTTP/2 connection to a backend.
    #[serde(default, deserialize_with = "above_zero")]
    pub max_concurrent_streams: Option<u32>,
    /// How long a connection to a backend is kept without a request.
    #[serde(default, deserialize_with = "ttl")]
    pub idle_timeout: Option<Duration>,
}

fn above_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Ok(Option::<u32>::deserialize(deserializer)?.filter(|n| *n > 0))
}

/// A cookie by which clients come back to the same backend.
#[derive(Clone, Debug, PartialEq, Hash, Deserialize)]
pub struct HashCookie {
    /// Its name.
    #[serde(default)]
    pub name: Box<str>,
    /// Its path; may be empty.
    #[serde(default)]
    pub path: Box<str>,
    /// Its lifetime. With one a client that has no such cookie gets one; zero is a cookie of the session.
    #[serde(default, deserialize_with = "ttl")]
    pub ttl: Option<Duration>,
}

fn ttl<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<GoDuration>::deserialize(deserializer)?.map(|ttl| ttl.0))
}

#[derive(Deserialize)]
struct RawRule {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(default, deserialize_with = "nullable")]
    traffic_policy: TrafficPolicy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TrafficPolicy {
    #[serde(default, deserialize_with = "nullable")]
    load_balancer: LoadBalancer,
    #[serde(default, deserialize_with = "nullable")]
    outlier_detection: Outlier,
    #[serde(default, deserialize_with = "nullable")]
    connection_pool: ConnectionPool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancer {
    #[serde(default)]
    simple: Option<Box<str>>,
    #[serde(default, deserialize_with = "nullable")]
    consistent_hash: ConsistentHash,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConsistentHash {
    #[serde(default)]
    http_header_name: Option<Arc<str>>,
    #[serde(default, deserialize_with = "nullable")]
    use_source_ip: bool,
    #[serde(default)]
    http_cookie: Option<HashCookie>,
    #[serde(default)]
    http_query_parameter_name: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outlier {
    #[serde(default)]
    consecutive_errors: Option<u32>,
    #[serde(rename = "consecutive5xxErrors", default)]
    consecutive_5xx_errors: Option<u32>,
    #[serde(default)]
    consecutive_gateway_errors: Option<u32>,
    #[serde(default)]
    base_ejection_time: Option<GoDuration>,
    #[serde(default)]
    max_ejection_percent: Option<u32>,
}

#[derive(Default, Deserialize)]
struct ConnectionPool {
    #[serde(default, deserialize_with = "nullable")]
    tcp: TcpPool,
    #[serde(default, deserialize_with = "nullable")]
    http: HttpPool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcpPool {
    #[serde(default)]
    connect_timeout: Option<GoDuration>,
    #[serde(default)]
    max_connections: Option<u32>,
}

impl<'de> Deserialize<'de> for DestinationRule {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawRule { metadata, spec } = RawRule::deserialize(from)?;
        let policy = spec.traffic_policy;
        let hash = policy.load_balancer.consistent_hash;
        let outlier = policy.outlier_detection;
        // A failed dial counts as every kind of error, so that the smallest limit is the one that strikes.
        let counts =
            [outlier.consecutive_errors, outlier.consecutive_5xx_errors, outlier.consecutive_gateway_errors];
        let set = || counts.into_iter().flatten();
        Ok(Self {
            namespace: metadata.namespace(),
            name: metadata.name.0,
            simple: policy.load_balancer.simple,
            hash_header: hash.http_header_name.filter(|h| !h.is_empty()),
            hash_source_ip: hash.use_source_ip,
            hash_cookie: hash.http_cookie.filter(|cookie| !cookie.name.is_empty()),
            hash_unsupported: hash.http_query_parameter_name.is_some(),
            consecutive_errors: set().filter(|n| *n > 0).min().or_else(|| set().next()),
            base_ejection_time: outlier.base_ejection_time.map(|d| d.0),
            max_ejection_percent: outlier
                .max_ejection_percent
                .map(|p| u8::try_from(p.min(100)).unwrap_or(100)),
            connect_timeout: policy.connection_pool.tcp.connect_timeout.map(|d| d.0),
            max_connections: policy.connection_pool.tcp.max_connections.filter(|n| *n > 0),
            http_pool: Some(policy.connection_pool.http)
                .filter(|pool| *pool != HttpPool::default())
                .map(Box::new),
        })
    }
}
