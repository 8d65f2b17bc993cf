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
    /// Names; absent where DNS is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsReport>,
    /// The rules on this node.
    #[serde(default)]
    pub rules: RulesReport,
    /// What the agent has given up; absent where it was told not to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardening: Option<HardeningReport>,
    /// The captured ranges.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<String>,
    /// What people should know: each a line.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Every service port.
    pub services: Vec<ServiceReport>,
}

/// What the agent has given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HardeningReport {
    /// The capabilities that are left, without `CAP_`.
    pub capabilities: Vec<String>,
    /// Whether no program that is started can gain rights.
    pub no_new_privileges: bool,
    /// How many system calls are forbidden; 0 where there is no filter.
    pub system_calls_forbidden: usize,
    /// The version of Landlock that limits where files are written; 0 where the kernel has none.
    pub landlock: i32,
    /// What could not be given up, and why; each a line.
    pub notes: Vec<String>,
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
    /// Objects that cannot be read and are passed over; the first few stand among the warnings.
    #[serde(default)]
    pub unreadable: usize,
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
    /// Clients whose first packet is held until a backend is connected; absent where that is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldReport>,
    /// UDP flows now.
    #[serde(default)]
    pub udp_flows: u64,
    /// Datagrams that could be passed on to nobody.
    #[serde(default)]
    pub udp_dropped_total: u64,
    /// UDP flows that ended because their backend was reported unreachable.
    #[serde(default)]
    pub udp_unreachable_total: u64,
}

/// Clients whose first packet is held until a backend is connected.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldReport {
    /// Clients that were held.
    pub held_total: u64,
    /// Clients that were refused because no backend answered.
    pub refused_total: u64,
    /// Backends that were connected for a client that did not come.
    pub unpaired_total: u64,
    /// Clients that were let through undialled for want of room.
    pub passed_total: u64,
}

/// Names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsReport {
    /// Where DNS is answered: own addresses, then those of the cluster.
    pub addresses: Vec<String>,
    /// The servers for other names; those of the cluster first, where they are asked first.
    #[serde(default)]
    pub upstreams: Vec<UpstreamReport>,
    /// Queries for the cluster's names.
    pub cluster_queries_total: u64,
    /// Queries for other names.
    pub foreign_queries_total: u64,
    /// Packets that were refused or dropped.
    pub refused_total: u64,
    /// Questions sent to servers for other names.
    pub upstream_questions_total: u64,
    /// Questions that no server answered.
    pub upstream_failures_total: u64,
    /// Answers about other names given from memory.
    pub cached_answers_total: u64,
    /// Answers about other names given out beyond their time because nobody could be asked.
    pub stale_answers_total: u64,
}

/// A server for names that are not the cluster's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamReport {
    /// Its address.
    pub address: String,
    /// Whether it answered the last questions, or was never asked.
    pub up: bool,
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
    /// Passes over the rules that failed; each is tried again.
    #[serde(default)]
    pub failures_total: u64,
    /// The last fault; empty when the last pass was good.
    pub last_error: String,
    /// Whether backends on this node can see their clients' addresses, where a Service asks for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_source: bool,
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
    /// What its HTTP requests came to; absent where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpReport>,
    /// Connections that were reset because no backend could be used.
    #[serde(default)]
    pub refused_total: u64,
    /// Dials that failed because every local port towards the backend was in use.
    #[serde(default)]
    pub out_of_ports_total: u64,
    /// Every endpoint known, usable or not.
    pub backends: Vec<BackendReport>,
}

/// What the HTTP requests of a service port came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpReport {
    /// Requests that were answered, each class of status: 1xx to 5xx.
    pub requests_by_class: [u64; 5],
    /// Requests whose client went away before there was an answer.
    pub unanswered_total: u64,
    /// Requests sent again after a byte of them had been sent.
    pub retries_total: u64,
    /// Connections that spoke something else than HTTP and were relayed.
    pub not_http_total: u64,
    /// Requests that were turned away because `connectionPool.http` allows no more.
    #[serde(default)]
    pub limited_total: u64,
    /// Upper bounds of the latency buckets, in seconds.
    pub latency_bounds: Vec<f64>,
    /// Requests by the time to their answer's head; one more than there are bounds.
    pub latency_counts: Vec<u64>,
    /// Sum of those times, in seconds.
    pub latency_sum: f64,
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
    /// HTTP requests since start.
    #[serde(default)]
    pub requests_total: u64,
    /// Whether it may be picked.
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
    /// The way there and what is set for it, step by step, each a line.
    #[serde(default)]
    pub notes: Vec<String>,
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

/// One finding of `check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A short stable name for scripts: `ipset-missing`.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what comes of it.
    pub what: String,
    /// The command that mends it; empty where none does.
    pub mend: String,
}

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The agent cannot work, or works wrongly.
    Problem,
    /// The agent works, but worse than it could.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// The word in JSON and on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small agent's status for tests.
    pub(crate) fn sample() -> Status {
        let backend = |address: &str, state: &str, reason: &str| BackendReport {
            address: address.to_owned(),
            reach: "host-port".to_owned(),
            node: Some("node-b".to_owned()),
            zone: Some("z1".to_owned()),
            pod: Some("web-0".to_owned()),
            state: state.to_owned(),
            reason: reason.to_owned(),
            active_connections: 1,
            connections_total: 20,
            failures_total: 3,
            requests_total: 0,
            eligible: None,
        };
        Status {
            version: "0.1.0".to_owned(),
            node: "node-a".to_owned(),
            ready: false,
            conditions: vec![Condition {
                name: "rules".to_owned(),
                ok: false,
                detail: "xtables lock is held".to_owned(),
            }],
            source: SourceReport {
                kind: "manifests".to_owned(),
                state: "error".to_owned(),
                age_seconds: 61.5,
                message: "web.yaml, document 2, line 7: no kind".to_owned(),
                unreadable: 0,
            },
            proxy: ProxyReport {
                port: 15001,
                active_connections: 2,
                accepted_total: 40,
                refused_total: 1,
                accept_pauses_total: 0,
                hold: None,
                udp_flows: 3,
                udp_dropped_total: 0,
                udp_unreachable_total: 1,
            },
            dns: Some(DnsReport { addresses: vec!["169.254.96.16:53".to_owned()], ..DnsReport::default() }),
            rules: RulesReport {
                backend: "nft".to_owned(),
                refuse_before_accept: true,
                repairs_total: 1,
                failures_total: 0,
                last_error: String::new(),
                keeps_source: false,
                installed: true,
                warnings: Vec::new(),
            },
            hardening: None,
            service_cidrs: vec!["10.96.0.0/12".to_owned()],
            warnings: vec!["kube-proxy's chains are here too".to_owned()],
            services: vec![ServiceReport {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                port: PortReport {
                    name: "http".to_owned(),
                    protocol: "TCP".to_owned(),
                    port: 80,
                    app_protocol: None,
                },
                frontends: vec!["10.96.0.10:80".to_owned()],
                mode: "tcp".to_owned(),
                policy: "least-request".to_owned(),
                active_connections: 2,
                connections_total: 40,
                bytes_in_total: 1536,
                bytes_out_total: 1 << 20,
                http: Some(HttpReport {
                    requests_by_class: [0, 30, 0, 2, 1],
                    unanswered_total: 1,
                    retries_total: 2,
                    limited_total: 0,
                    not_http_total: 1,
                    latency_bounds: vec![0.001, 0.1],
                    latency_counts: vec![20, 12, 1],
                    latency_sum: 3.5,
                }),
                refused_total: 4,
                out_of_ports_total: 0,
                backends: vec![
                    backend("192.0.2.2:30080", "ready", ""),
                    backend("192.0.2.3:30080", "ejected", "connection refused, back in 8s"),
                ],
            }],
        }
    }

    #[test]
    fn the_words_of_the_contract_stand_in_the_json() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["serviceCIDRs"][0], "10.96.0.0/12");
        assert_eq!(json["proxy"]["acceptedTotal"], 40);
        assert_eq!(json["services"][0]["port"]["appProtocol"], serde_json::Value::Null);
        assert_eq!(json["services"][0]["backends"][0]["failuresTotal"], 3);
        assert_eq!(json["services"][0]["backends"][0].get("eligible"), None);
        assert_eq!(serde_json::to_value(Verdict::NotIntercepted).unwrap(), "not-intercepted");
    }
}
