//! What the user configured: file, environment and flags, merged, checked, immutable.
//!
//! `raw.rs` holds the shape users write; [`Settings`] is what the rest of the program sees. No other module may look
//! at raw values, the environment or flags.

#[expect(missing_docs, reason = "each constant is the key's name and nothing else")]
pub mod keys;
mod layers;
mod parse;
mod print;
mod raw;
mod resolve;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use layers::{Origin, Override};
pub use resolve::Inputs;

/// Wrong flags, environment, configuration file or manifests: the message names the key, the value, the place and the
/// way out. The process ends with exit code 64, and nothing has been changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// An error with this one line for the user.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Everything configurable, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name, in lower case.
    pub node_name: String,
    /// Where the last good snapshot is kept.
    pub state_dir: PathBuf,
    /// Where objects come from.
    pub source: SourceSettings,
    /// What is captured, and how.
    pub intercept: InterceptSettings,
    /// The data plane.
    pub proxy: ProxySettings,
    /// How backends are reached.
    pub backends: BackendSettings,
    /// Names.
    pub dns: DnsSettings,
    /// The admin endpoint.
    pub admin: AdminSettings,
    /// What the agent gives up before it begins its work.
    pub hardening: HardeningSettings,
    /// Logging.
    pub log: LogSettings,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    /// Which source.
    pub kind: SourceKind,
    /// File or folder for `manifests`.
    pub manifests: Option<PathBuf>,
    /// Kubeconfig file for `kubernetes`.
    pub kubeconfig: Option<PathBuf>,
    /// MetaServer's URL for `metaserver`.
    pub metaserver: String,
    /// What to show to MetaServer, and whom to trust.
    pub metaserver_credentials: Credentials,
}

/// Files that say who we are to a server and which certificates we trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// PEM certificates of the authorities that may have signed the server's certificate (`tlsCaFile`).
    pub ca_file: Option<PathBuf>,
    /// PEM client certificate (`tlsCertFile`).
    pub cert_file: Option<PathBuf>,
    /// PEM key of the client certificate (`tlsKeyFile`).
    pub key_file: Option<PathBuf>,
    /// A bearer token, read again for each request (`tokenFile`).
    pub token_file: Option<PathBuf>,
}

/// Which source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Manifests if a path is given, else Kubernetes if configured, else MetaServer if it answers.
    Auto,
    /// The Kubernetes API.
    Kubernetes,
    /// KubeEdge's MetaServer.
    MetaServer,
    /// Plain files.
    Manifests,
}

/// The label that names the proxy of a Service (KEP-2447); see [`InterceptSettings::service_proxy_name`].
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// What is captured, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptSettings {
    /// The ClusterIP ranges; empty: found out.
    pub service_cidrs: Vec<IpNet>,
    /// Which iptables programs are used.
    pub iptables_backend: IptablesBackend,
    /// Remove stale rules of older EdgeMesh versions at start.
    pub remove_stale: bool,
    /// Capture `default/kubernetes` as well.
    pub kubernetes_service: bool,
    /// Start although kube-proxy is at work on this node.
    pub coexist_with_kube_proxy: bool,
    /// Serve only Services whose label `service.kubernetes.io/service-proxy-name` has this value; empty: only those
    /// without the label.
    pub service_proxy_name: String,
    /// On which of this host's addresses node ports are served; `None` where they are not.
    pub node_ports: Option<NodePortAddresses>,
    /// Serve `externalIPs` as well. Whoever may write Services can then take over any address for this node's clients
    /// (CVE-2020-8554).
    pub external_ips: bool,
    /// When a backend is dialled for a client of a captured range.
    pub connect: ConnectMode,
    /// How often the rules are checked and repaired.
    pub sync_period: Duration,
    /// Packet mark of the agent's own connections; one bit.
    pub own_mark: u32,
    /// Packet mark of new packets that are refused; one bit.
    pub refuse_mark: u32,
}

/// When a backend is dialled for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectMode {
    /// Once the client is accepted. Where every backend fails, the client is reset.
    AfterAccept,
    /// While the client's first packet is held. Where every backend fails, the client is refused.
    BeforeAccept,
}

/// What holds where nothing is configured.
impl Default for InterceptSettings {
    fn default() -> Self {
        Self {
            service_cidrs: Vec::new(),
            iptables_backend: IptablesBackend::Auto,
            remove_stale: false,
            kubernetes_service: false,
            coexist_with_kube_proxy: false,
            service_proxy_name: String::new(),
            node_ports: Some(NodePortAddresses::Primary),
            external_ips: false,
            connect: ConnectMode::AfterAccept,
            sync_period: Duration::from_secs(2),
            own_mark: 0x10,
            refuse_mark: 0x20,
        }
    }
}

/// On which of this host's addresses node ports are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The Node's own address, one of each family.
    Primary,
    /// The addresses of this host's interfaces inside these ranges.
    Ranges(Vec<IpNet>),
}

/// Which iptables programs are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesBackend {
    /// By the host's hint chains.
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// The data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Port of the acceptor; 0: any free one.
    pub port: u16,
    /// Worker threads; 0: one per core, at most two.
    pub workers: usize,
    /// How long running connections may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Time for one dial.
    pub connect_timeout: Duration,
    /// Time for all dials of one connection together.
    pub dial_budget: Duration,
    /// When the next dial starts beside one that hangs.
    pub dial_stagger: Duration,
    /// Most connections at once; 0: as many as descriptors allow.
    pub max_connections: usize,
    /// Most connections at once from one client address; 0: as many as it likes.
    pub max_per_source: usize,
    /// Keep the rules in place at the end (`--keep-rules`).
    pub keep_rules: bool,
    /// Take the node over from an agent that runs (`--take-over`), instead of refusing to start beside it.
    pub take_over: bool,
    /// How HTTP ports are served.
    pub http: HttpSettings,
}

/// How HTTP ports are served.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    /// Balance requests; otherwise they are relayed like other ports.
    pub on: bool,
    /// How long a request's head may take.
    pub head_timeout: Duration,
    /// How long a client's connection may be without a request.
    pub idle_timeout: Duration,
    /// How long an answer's head may take; zero: as long as it likes.
    pub request_timeout: Duration,
    /// Where each request is written down; `-`: standard output.
    pub access_log: Option<PathBuf>,
    /// Which share of the requests is, from 0 to 1.
    pub access_log_share: f64,
}

// A share is a number.
impl Eq for HttpSettings {}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            on: true,
            // What nginx and HAProxy's manual allow is 60 s and 10 s; a head is a few packets.
            head_timeout: Duration::from_secs(10),
            // Envoy's. A waiting connection costs little here.
            idle_timeout: Duration::from_hours(1),
            request_timeout: Duration::ZERO,
            access_log: None,
            access_log_share: 1.0,
        }
    }
}

/// How backends are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Whether pods on other nodes can be dialled at their own address.
    pub pod_network: PodNetwork,
}

/// Whether pods on other nodes can be dialled at their own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// If a route other than the default route covers the address.
    Auto,
    /// Always.
    Routed,
    /// Never.
    None,
}

/// Names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Whether the agent answers DNS.
    pub mode: DnsMode,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain.
    pub domain: String,
    /// Upstream servers; empty: those of `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
    /// Who is asked before them.
    pub upstream_from: UpstreamFrom,
}

/// Who is asked for foreign names before the upstream servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamFrom {
    /// Nobody.
    Node,
    /// The live endpoints of the cluster's own DNS.
    KubeDns,
}

/// Whether the agent answers DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsMode {
    /// Wherever it can.
    Auto,
    /// Not at all.
    Off,
}

/// The admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// What the agent gives up before it begins its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardeningSettings {
    /// Whether it gives up rights, system calls and places to write that it does not need, as far as the kernel can.
    pub on: bool,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A level or a filter in `tracing-subscriber`'s syntax.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
