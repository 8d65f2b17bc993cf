//! The JSON of the public contract: `status` and `resolve`. Fields may be added, never changed.

use serde::{Deserialize, Serialize};

/// The answer of `/api/v1/status` and `status -o json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Whether every readiness condition holds.
    pub ready: bool,
    /// Each readiness condition.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The source and the age of its data.
    pub source: SourceReport,
    /// The data plane.
    pub proxy: ProxyReport,
    /// The rules on this node.
    #[serde(default)]
    pub rules: RulesReport,
    /// The captured ranges.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<String>,
    /// What people should know: each a line.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Every service port.
    pub services: Vec<ServiceReport>,
}

/// One readiness condition.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What must hold: `snapshot`, `rules`, `listeners`.
    pub name: String,
    /// Whether it does.
    pub ok: bool,
    /// More about it.
    pub detail: String,
}

/// The source and the age of its data.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceReport {
    /// `manifests`, `kubernetes` or `metaserver`.
    pub kind: String,
    /// `synced`, `cached`, `stale` or `error`.
    pub state: String,
    /// Seconds since the data in force was last known to be current.
    pub age_seconds: f64,
    /// What is wrong; empty when nothing is.
    pub message: String,
}

/// The data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyReport {
    /// The acceptor's port.
    pub port: u16,
    /// Connections open now.
    pub active_connections: u64,
    /// Connections accepted since start.
    pub accepted_total: u64,
    /// Connections closed because they had nowhere to go (direct dials, unknown destinations, no usable backend).
    pub refused_total: u64,
    /// Times that accepting paused at the descriptor or connection limit.
    #[serde(default)]
    pub accept_pauses_total: u64,
}

/// The rules on this node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesReport {
    /// `nft` or `legacy`.
    pub backend: String,
    /// Whether unserved destinations are refused before accept (needs ipset), or reset after it.
    pub refuse_before_accept: bool,
    /// Times the rules were found changed by others and repaired.
    pub repairs_total: u64,
    /// The last fault; empty when the last pass was good.
    pub last_error: String,
    /// Whether the rules are in.
    #[serde(default)]
    pub installed: bool,
    /// What this machine lacks, and what follows: each a line.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One service port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReport {
    /// The namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port.
    pub port: PortReport,
    /// `clusterIP:port`, each.
    pub frontends: Vec<String>,
    /// `tcp`, `http` or `udp`.
    pub mode: String,
    /// The balancing policy.
    #[serde(default)]
    pub policy: String,
    /// Connections open now.
    pub active_connections: u64,
    /// Connections since start.
    pub connections_total: u64,
    /// Bytes from clients to backends.
    pub bytes_in_total: u64,
    /// Bytes from backends to clients.
    pub bytes_out_total: u64,
    /// Every endpoint known, usable or not.
    pub backends: Vec<BackendReport>,
}

/// A service's port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortReport {
    /// Its name, may be empty.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// `appProtocol` as written.
    pub app_protocol: Option<String>,
}

/// One endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendReport {
    /// The address this node dials, or the endpoint's own where it cannot be reached.
    pub address: String,
    /// `pod`, `host-port`, `host-network`, `external` or `unreachable`.
    pub reach: String,
    /// The node it runs on.
    pub node: Option<String>,
    /// The zone it runs in.
    pub zone: Option<String>,
    /// The pod behind it.
    #[serde(default)]
    pub pod: Option<String>,
    /// `ready`, `ejected`, `draining` or `unreachable`.
    pub state: String,
    /// Why, in words; empty when it is simply ready.
    pub reason: String,
    /// Connections open now.
    pub active_connections: u64,
    /// Connections since start.
    pub connections_total: u64,
    /// Failed dials since start.
    pub failures_total: u64,
    /// Only in `resolve`: whether it may be picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eligible: Option<bool>,
}

/// The answer of `/api/v1/resolve` and `resolve -o json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolution {
    /// What was asked.
    pub target: String,
    /// The service port it leads to.
    pub service: Option<ResolvedService>,
    /// The frontend it leads to, `ip:port`.
    pub frontend: Option<String>,
    /// `tcp`, `http` or `udp`; null where there is no service port.
    pub mode: Option<String>,
    /// The balancing policy; null where there is no service port.
    pub policy: Option<String>,
    /// Every endpoint known, usable or not.
    pub backends: Vec<BackendReport>,
    /// What a client gets.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
}

/// The service port a target leads to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedService {
    /// The namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port's number.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The port's name.
    #[serde(default)]
    pub port_name: String,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A backend is picked and the bytes are relayed.
    Proxied,
    /// The connection is refused.
    Refused,
    /// The packets are left alone.
    NotIntercepted,
}
