//! Settings as a configuration file with every default: what `run --print-config` shows.

use std::path::Path;
use std::time::Duration;

use super::raw::{self, RawConfig, Scalar};
use super::resolve::{
    CONNECT_MODES, DNS_MODES, HARDENING_MODES, HTTP_MODES, IPTABLES_BACKENDS, LOG_FORMATS, POD_NETWORKS,
    SOURCE_KINDS, UPSTREAMS_FROM,
};
use super::{HttpSettings, NodePortAddresses, Settings, UsageError};

impl Settings {
    /// The effective configuration file; reading it gives these same settings.
    pub fn to_yaml(&self) -> Result<String, UsageError> {
        serde_saphyr::to_string(&RawConfig::from(self))
            .map_err(|e| UsageError::new(format!("the configuration cannot be printed: {e}")))
    }
}

impl From<&Settings> for RawConfig {
    fn from(s: &Settings) -> Self {
        Self {
            api_version: one(raw::API_VERSION),
            kind: one(raw::KIND),
            node: Some(raw::Node { name: one(&s.node_name) }),
            state_dir: path(&s.state_dir),
            source: Some(raw::Source {
                kind: word(SOURCE_KINDS, s.source.kind),
                manifests: Some(raw::Manifests { path: s.source.manifests.as_deref().and_then(path) }),
                kubernetes: Some(raw::Kubernetes {
                    kubeconfig: s.source.kubeconfig.as_deref().and_then(path),
                }),
                metaserver: Some(raw::MetaServer {
                    url: one(&s.source.metaserver),
                    tls_ca_file: s.source.metaserver_credentials.ca_file.as_deref().and_then(path),
                    tls_cert_file: s.source.metaserver_credentials.cert_file.as_deref().and_then(path),
                    tls_key_file: s.source.metaserver_credentials.key_file.as_deref().and_then(path),
                    token_file: s.source.metaserver_credentials.token_file.as_deref().and_then(path),
                }),
            }),
            intercept: Some(raw::Intercept {
                service_cidrs: list(&s.intercept.service_cidrs),
                iptables_backend: word(IPTABLES_BACKENDS, s.intercept.iptables_backend),
                remove_stale: one(s.intercept.remove_stale),
                kubernetes_service: one(s.intercept.kubernetes_service),
                coexist_with_kube_proxy: one(s.intercept.coexist_with_kube_proxy),
                service_proxy_name: one(&s.intercept.service_proxy_name),
                node_ports: one(s.intercept.node_ports.is_some()),
                node_port_addresses: match &s.intercept.node_ports {
                    Some(NodePortAddresses::Ranges(ranges)) => list(ranges),
                    Some(NodePortAddresses::Primary) | None => list(&["primary"]),
                },
                external_ips: one(s.intercept.external_ips),
                connect: word(CONNECT_MODES, s.intercept.connect),
                sync_period: one(duration(s.intercept.sync_period)),
                own_mark: one(format!("{:#x}", s.intercept.own_mark)),
                refuse_mark: one(format!("{:#x}", s.intercept.refuse_mark)),
            }),
            proxy: Some(raw::Proxy {
                port: one(s.proxy.port),
                workers: one(s.proxy.workers),
                drain_timeout: one(duration(s.proxy.drain_timeout)),
                connect_timeout: one(duration(s.proxy.connect_timeout)),
                dial_budget: one(duration(s.proxy.dial_budget)),
                dial_stagger: one(duration(s.proxy.dial_stagger)),
                max_connections: one(s.proxy.max_connections),
                max_connections_per_source: one(s.proxy.max_per_source),
                keep_rules: one(s.proxy.keep_rules),
                take_over: one(s.proxy.take_over),
                http: Some(http(&s.proxy.http)),
            }),
            backends: Some(raw::Backends { pod_network: word(POD_NETWORKS, s.backends.pod_network) }),
            dns: Some(raw::Dns {
                mode: word(DNS_MODES, s.dns.mode),
                listen: list(&s.dns.listen),
                domain: one(&s.dns.domain),
                upstreams: list(&s.dns.upstreams),
                upstream_from: word(UPSTREAMS_FROM, s.dns.upstream_from),
            }),
            admin: Some(raw::Admin { listen: one(s.admin.listen) }),
            hardening: Some(raw::Hardening { mode: word(HARDENING_MODES, s.hardening.on) }),
            log: Some(raw::Log { level: one(&s.log.level), format: word(LOG_FORMATS, s.log.format) }),
        }
    }
}

fn http(http: &HttpSettings) -> raw::Http {
    raw::Http {
        mode: word(HTTP_MODES, http.on),
        head_timeout: one(duration(http.head_timeout)),
        idle_timeout: one(duration(http.idle_timeout)),
        request_timeout: one(duration(http.request_timeout)),
        access_log: http.access_log.as_deref().and_then(path),
        access_log_share: one(http.access_log_share),
    }
}

/// A duration as the file writes it: `1m30s`.
pub(super) fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

#[expect(clippy::unnecessary_wraps, reason = "the raw fields are optional, and these fill them")]
#[expect(clippy::needless_pass_by_value, reason = "most values are small and made on the spot")]
fn one(value: impl ToString) -> Option<Scalar> {
    Some(Scalar::new(value.to_string()))
}

#[expect(clippy::unnecessary_wraps, reason = "the raw fields are optional, and these fill them")]
fn list<T: ToString>(values: &[T]) -> Option<Vec<Scalar>> {
    Some(values.iter().map(|v| Scalar::new(v.to_string())).collect())
}

fn path(path: &Path) -> Option<Scalar> {
    one(path.display())
}

fn word<T: Copy + PartialEq>(choices: &[(&str, T)], value: T) -> Option<Scalar> {
    choices.iter().find(|(_, v)| *v == value).map(|(word, _)| Scalar::new(*word))
}
