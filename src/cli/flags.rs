//! Flags that several commands share, and how they become settings.
//!
//! Values stay text here: `config` alone knows what they must look like, so that a flag, its variable and its key in
//! the file are held to the same rules.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

use super::Output;
use crate::config::{Origin, Override, UsageError, keys};

/// Flags of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Flags of every command")]
pub struct GlobalArgs {
    /// Configuration file (YAML, kind `EdgespliceConfiguration`)
    #[arg(long, global = true, value_name = "FILE", env = "EDGESPLICE_CONFIG", hide_env_values = true)]
    config: Option<OsString>,
    /// What is logged to standard error: error, warn, info, debug, trace, off, or a filter [default: info]
    #[arg(long, global = true, value_name = "LEVEL", env = "EDGESPLICE_LOG_LEVEL", hide_env_values = true)]
    log_level: Option<String>,
    /// The form of a log line: text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT", env = "EDGESPLICE_LOG_FORMAT", hide_env_values = true)]
    log_format: Option<String>,
    /// The form of a result: table or json [default: table]
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        env = "EDGESPLICE_OUTPUT",
        hide_env_values = true
    )]
    output: Option<String>,
}

/// Where the agent's admin endpoint is.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// Where the admin endpoint listens [default: 127.0.0.1:10265]
    #[arg(long, value_name = "ADDR:PORT", env = "EDGESPLICE_ADMIN", hide_env_values = true)]
    admin: Option<String>,
}

/// Every flag that is a setting of the agent.
#[derive(Clone, Debug, Args)]
pub struct SettingsArgs {
    /// This node's name, as its Node object has it [default: `NODE_NAME`, else the host name]
    #[arg(long, value_name = "NAME", env = "EDGESPLICE_NODE_NAME", hide_env_values = true)]
    node_name: Option<String>,
    /// Where objects come from: auto, kubernetes, metaserver or manifests [default: auto]
    #[arg(long, value_name = "KIND", env = "EDGESPLICE_SOURCE", hide_env_values = true)]
    source: Option<String>,
    /// File or folder of manifests; watched, and reloaded on change
    #[arg(long, value_name = "PATH", env = "EDGESPLICE_MANIFESTS", hide_env_values = true)]
    manifests: Option<String>,
    /// Kubeconfig file [default: in-cluster, then KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE", env = "EDGESPLICE_KUBECONFIG", hide_env_values = true)]
    kubeconfig: Option<String>,
    #[arg(
        long,
        help = "MetaServer of edgecore [default: http://127.0.0.1:10550]",
        value_name = "URL",
        env = "EDGESPLICE_METASERVER",
        hide_env_values = true
    )]
    metaserver: Option<String>,
    /// Where the last good snapshot is kept [default: /var/lib/edgesplice]
    #[arg(long, value_name = "DIR", env = "EDGESPLICE_STATE_DIR", hide_env_values = true)]
    state_dir: Option<String>,
    /// Range of service addresses to capture; several with commas [default: found out]
    #[arg(long, value_name = "CIDR[,CIDR]", env = "EDGESPLICE_SERVICE_CIDR", hide_env_values = true)]
    service_cidr: Option<String>,
    /// Which iptables programs are used: auto, nft or legacy [default: auto]
    #[arg(long, value_name = "KIND", env = "EDGESPLICE_IPTABLES_BACKEND", hide_env_values = true)]
    iptables_backend: Option<String>,
    /// Start although kube-proxy is at work on this node; see also intercept.serviceProxyName
    #[arg(
        long,
        value_name = "BOOL",
        env = "EDGESPLICE_COEXIST_WITH_KUBE_PROXY",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    coexist_with_kube_proxy: Option<String>,
    /// Serve only Services whose label service.kubernetes.io/service-proxy-name has this value [default: those without]
    #[arg(long, value_name = "NAME", env = "EDGESPLICE_SERVICE_PROXY_NAME", hide_env_values = true)]
    service_proxy_name: Option<String>,
    /// Remove the rules that older EdgeMesh versions left, at start, with a backup
    #[arg(
        long,
        value_name = "BOOL",
        env = "EDGESPLICE_REMOVE_STALE",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    remove_stale: Option<String>,
    /// Port of the acceptor; 0 is any free one, and the rules carry it [default: 0]
    #[arg(long, value_name = "N", env = "EDGESPLICE_PROXY_PORT", hide_env_values = true)]
    proxy_port: Option<String>,
    /// Whether DNS is answered: auto or off [default: auto]
    #[arg(long, value_name = "MODE", env = "EDGESPLICE_DNS", hide_env_values = true)]
    dns: Option<String>,
    /// Where DNS is answered; several with commas [default: 169.254.96.16:53]
    #[arg(long, value_name = "ADDR:PORT[,…]", env = "EDGESPLICE_DNS_LISTEN", hide_env_values = true)]
    dns_listen: Option<String>,
    /// The cluster's domain [default: cluster.local]
    #[arg(long, value_name = "NAME", env = "EDGESPLICE_CLUSTER_DOMAIN", hide_env_values = true)]
    cluster_domain: Option<String>,
    /// Servers for all other names; several with commas [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDR[:PORT][,…]", env = "EDGESPLICE_DNS_UPSTREAM", hide_env_values = true)]
    dns_upstream: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Whether rights that are not needed are given up at the start: auto or off [default: auto]
    #[arg(long, value_name = "MODE", env = "EDGESPLICE_HARDENING", hide_env_values = true)]
    hardening: Option<String>,
    /// How long running connections may go on after SIGTERM [default: 30s]
    #[arg(long, value_name = "D", env = "EDGESPLICE_DRAIN_TIMEOUT", hide_env_values = true)]
    drain_timeout: Option<String>,
    /// Leave the rules in place at the end
    #[arg(
        long,
        value_name = "BOOL",
        env = "EDGESPLICE_KEEP_RULES",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    keep_rules: Option<String>,
    /// Take the node over from an agent that runs here, without a break; without one it is an ordinary start
    #[arg(
        long,
        value_name = "BOOL",
        env = "EDGESPLICE_TAKE_OVER",
        hide_env_values = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    take_over: Option<String>,
}

/// Which key each flag sets, by the flag's id.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("node_name", keys::NODE_NAME),
    ("source", keys::SOURCE_KIND),
    ("manifests", keys::MANIFESTS_PATH),
    ("kubeconfig", keys::KUBECONFIG),
    ("metaserver", keys::METASERVER_URL),
    ("state_dir", keys::STATE_DIR),
    ("service_cidr", keys::SERVICE_CIDRS),
    ("iptables_backend", keys::IPTABLES_BACKEND),
    ("coexist_with_kube_proxy", keys::COEXIST),
    ("service_proxy_name", keys::SERVICE_PROXY_NAME),
    ("remove_stale", keys::REMOVE_STALE),
    ("proxy_port", keys::PROXY_PORT),
    ("dns", keys::DNS_MODE),
    ("dns_listen", keys::DNS_LISTEN),
    ("cluster_domain", keys::DNS_DOMAIN),
    ("dns_upstream", keys::DNS_UPSTREAMS),
    ("admin", keys::ADMIN_LISTEN),
    ("hardening", keys::HARDENING_MODE),
    ("drain_timeout", keys::DRAIN_TIMEOUT),
    ("keep_rules", keys::KEEP_RULES),
    ("take_over", keys::TAKE_OVER),
    ("log_level", keys::LOG_LEVEL),
    ("log_format", keys::LOG_FORMAT),
];

/// The settings given by flags and variables. A variable that is set but empty counts as not set.
pub(super) fn overrides(matches: &ArgMatches) -> Vec<Override> {
    KEYS.iter()
        .filter_map(|&(id, key)| {
            let (text, origin) = given(matches, id)?;
            Some(Override { key, text, origin })
        })
        .collect()
}

impl GlobalArgs {
    /// The configuration file.
    pub(super) fn config(&self) -> Option<PathBuf> {
        self.config.as_ref().filter(|file| !file.is_empty()).map(PathBuf::from)
    }
}

/// The form of results.
pub(super) fn output(matches: &ArgMatches) -> Result<Output, UsageError> {
    match given(matches, "output") {
        None => Ok(Output::default()),
        Some((text, _)) if text == "table" => Ok(Output::Table),
        Some((text, _)) if text == "json" => Ok(Output::Json),
        Some((text, origin)) => {
            Err(UsageError::new(format!("{origin}: output is {text:?}: give one of table, json")))
        }
    }
}

/// The node's name where nothing else gives it: what Kubernetes' downward API is usually asked for, else the host name.
pub(super) fn default_node_name() -> Option<(String, Origin)> {
    let variable = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    if let Some(name) = variable {
        return Some((name, Origin::Env("NODE_NAME".to_owned())));
    }
    let host = nix::unistd::gethostname().ok()?.into_string().ok()?;
    Some((host, Origin::Default("host name")))
}

/// Reads the variable of a switch. Empty counts as not set.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// Stands in for the node's name in commands that do not need one.
pub(super) fn no_node_name() -> (String, Origin) {
    ("unnamed".to_owned(), Origin::Default("stand-in"))
}

/// Whether a flag was typed on the command line.
pub(super) fn typed(matches: &ArgMatches, id: &str) -> bool {
    // Commands differ in their flags, and clap panics when asked for one that is not the command's.
    matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
}

fn given(matches: &ArgMatches, id: &str) -> Option<(String, Origin)> {
    let text = matches.try_get_one::<String>(id).ok().flatten()?;
    let name = id.replace('_', "-");
    match matches.value_source(id)? {
        ValueSource::CommandLine => Some((text.clone(), Origin::Flag(format!("--{name}")))),
        _ if text.is_empty() => None,
        _ => Some((text.clone(), Origin::Env(variable(id)))),
    }
}

/// The variable of a flag.
pub(super) fn variable(id: &str) -> String {
    format!("EDGESPLICE_{}", id.to_ascii_uppercase())
}
