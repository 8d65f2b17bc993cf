//! The configuration file as users write it: every value still text, every value with its place in the file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::Spanned;

use super::layers::{Given, Origin};
use super::{UsageError, keys};

/// The only `apiVersion` there is so far.
pub(super) const API_VERSION: &str = "edgesplice.io/v1alpha1";
/// The only `kind` there is.
pub(super) const KIND: &str = "EdgespliceConfiguration";

/// One value as written, and where.
#[derive(Clone, Debug, Default)]
pub(super) struct Scalar {
    pub(super) text: String,
    line: u64,
    column: u64,
}

impl Scalar {
    /// A value that comes from no file, to be printed.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), line: 0, column: 0 }
    }

    fn given(self, file: &Path) -> Given {
        let origin = Origin::File { path: file.to_path_buf(), line: self.line, column: self.column };
        Given { text: self.text, origin }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        let (line, column) = (spanned.referenced.line(), spanned.referenced.column());
        Ok(Self { text: spanned.value, line, column })
    }
}

impl Serialize for Scalar {
    /// Numbers and booleans are written bare, everything else as a string.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.text.parse::<u64>(), self.text.parse::<bool>()) {
            // Not for `007`: it must read back as it was.
            (Ok(number), _) if number.to_string() == self.text => serializer.serialize_u64(number),
            (_, Ok(flag)) => serializer.serialize_bool(flag),
            _ => serializer.serialize_str(&self.text),
        }
    }
}

type One = Option<Scalar>;
type Many = Option<Vec<Scalar>>;

/// The whole file. A section that is left empty means the same as one that is not there.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) api_version: One,
    pub(super) kind: One,
    pub(super) node: Option<Node>,
    pub(super) state_dir: One,
    pub(super) source: Option<Source>,
    pub(super) intercept: Option<Intercept>,
    pub(super) proxy: Option<Proxy>,
    pub(super) backends: Option<Backends>,
    pub(super) dns: Option<Dns>,
    pub(super) admin: Option<Admin>,
    pub(super) hardening: Option<Hardening>,
    pub(super) log: Option<Log>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Source {
    pub(super) kind: One,
    pub(super) manifests: Option<Manifests>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) metaserver: Option<MetaServer>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Manifests {
    pub(super) path: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kubernetes {
    pub(super) kubeconfig: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct MetaServer {
    pub(super) url: One,
    pub(super) tls_ca_file: One,
    pub(super) tls_cert_file: One,
    pub(super) tls_key_file: One,
    pub(super) token_file: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Intercept {
    #[serde(rename = "serviceCIDRs")]
    pub(super) service_cidrs: Many,
    pub(super) iptables_backend: One,
    pub(super) remove_stale: One,
    pub(super) kubernetes_service: One,
    pub(super) coexist_with_kube_proxy: One,
    pub(super) service_proxy_name: One,
    pub(super) node_ports: One,
    pub(super) node_port_addresses: Many,
    #[serde(rename = "externalIPs")]
    pub(super) external_ips: One,
    pub(super) connect: One,
    pub(super) sync_period: One,
    pub(super) own_mark: One,
    pub(super) refuse_mark: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Proxy {
    pub(super) port: One,
    pub(super) workers: One,
    pub(super) drain_timeout: One,
    pub(super) connect_timeout: One,
    pub(super) dial_budget: One,
    pub(super) dial_stagger: One,
    pub(super) max_connections: One,
    pub(super) max_connections_per_source: One,
    pub(super) keep_rules: One,
    pub(super) take_over: One,
    pub(super) http: Option<Http>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Http {
    pub(super) mode: One,
    pub(super) head_timeout: One,
    pub(super) idle_timeout: One,
    pub(super) request_timeout: One,
    pub(super) access_log: One,
    pub(super) access_log_share: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Backends {
    pub(super) pod_network: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Dns {
    pub(super) mode: One,
    pub(super) listen: Many,
    pub(super) domain: One,
    pub(super) upstreams: Many,
    pub(super) upstream_from: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) listen: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hardening {
    pub(super) mode: One,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: One,
    pub(super) format: One,
}

impl RawConfig {
    /// Reads `text`, the content of `file`. Errors name file, line and column.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, UsageError> {
        let raw: Self = serde_saphyr::from_str(text).map_err(|e| syntax_error(&e, text, file))?;
        expect(raw.api_version.as_ref(), "apiVersion", API_VERSION, file)?;
        expect(raw.kind.as_ref(), "kind", KIND, file)?;
        Ok(raw)
    }

    /// The values by key; what is not in the file is not in the map.
    pub(super) fn flatten(self, file: &Path) -> BTreeMap<&'static str, Vec<Given>> {
        let mut map = BTreeMap::new();
        let mut many = |key, values: Many| {
            if let Some(values) = values {
                map.insert(key, values.into_iter().map(|v| v.given(file)).collect());
            }
        };
        let source = self.source.unwrap_or_default();
        let intercept = self.intercept.unwrap_or_default();
        let proxy = self.proxy.unwrap_or_default();
        let dns = self.dns.unwrap_or_default();
        let log = self.log.unwrap_or_default();
        many(keys::SERVICE_CIDRS, intercept.service_cidrs);
        many(keys::NODE_PORT_ADDRESSES, intercept.node_port_addresses);
        many(keys::DNS_LISTEN, dns.listen);
        many(keys::DNS_UPSTREAMS, dns.upstreams);
        let mut one = |key, value: One| many(key, value.map(|v| vec![v]));
        one(keys::NODE_NAME, self.node.unwrap_or_default().name);
        one(keys::STATE_DIR, self.state_dir);
        one(keys::SOURCE_KIND, source.kind);
        one(keys::MANIFESTS_PATH, source.manifests.unwrap_or_default().path);
        one(keys::KUBECONFIG, source.kubernetes.unwrap_or_default().kubeconfig);
        let metaserver = source.metaserver.unwrap_or_default();
        one(keys::METASERVER_URL, metaserver.url);
        one(keys::METASERVER_CA, metaserver.tls_ca_file);
        one(keys::METASERVER_CERT, metaserver.tls_cert_file);
        one(keys::METASERVER_KEY, metaserver.tls_key_file);
        one(keys::METASERVER_TOKEN, metaserver.token_file);
        one(keys::IPTABLES_BACKEND, intercept.iptables_backend);
        one(keys::REMOVE_STALE, intercept.remove_stale);
        one(keys::KUBERNETES_SERVICE, intercept.kubernetes_service);
        one(keys::COEXIST, intercept.coexist_with_kube_proxy);
        one(keys::SERVICE_PROXY_NAME, intercept.service_proxy_name);
        one(keys::NODE_PORTS, intercept.node_ports);
        one(keys::EXTERNAL_IPS, intercept.external_ips);
        one(keys::CONNECT, intercept.connect);
        one(keys::SYNC_PERIOD, intercept.sync_period);
        one(keys::OWN_MARK, intercept.own_mark);
        one(keys::REFUSE_MARK, intercept.refuse_mark);
        one(keys::PROXY_PORT, proxy.port);
        one(keys::WORKERS, proxy.workers);
        one(keys::DRAIN_TIMEOUT, proxy.drain_timeout);
        one(keys::CONNECT_TIMEOUT, proxy.connect_timeout);
        one(keys::DIAL_BUDGET, proxy.dial_budget);
        one(keys::DIAL_STAGGER, proxy.dial_stagger);
        one(keys::MAX_CONNECTIONS, proxy.max_connections);
        one(keys::MAX_PER_SOURCE, proxy.max_connections_per_source);
        one(keys::KEEP_RULES, proxy.keep_rules);
        one(keys::TAKE_OVER, proxy.take_over);
        let http = proxy.http.unwrap_or_default();
        one(keys::HTTP_MODE, http.mode);
        one(keys::HTTP_HEAD_TIMEOUT, http.head_timeout);
        one(keys::HTTP_IDLE_TIMEOUT, http.idle_timeout);
        one(keys::HTTP_REQUEST_TIMEOUT, http.request_timeout);
        one(keys::ACCESS_LOG, http.access_log);
        one(keys::ACCESS_LOG_SHARE, http.access_log_share);
        one(keys::POD_NETWORK, self.backends.unwrap_or_default().pod_network);
        one(keys::DNS_MODE, dns.mode);
        one(keys::DNS_DOMAIN, dns.domain);
        one(keys::DNS_UPSTREAM_FROM, dns.upstream_from);
        one(keys::ADMIN_LISTEN, self.admin.unwrap_or_default().listen);
        one(keys::HARDENING_MODE, self.hardening.unwrap_or_default().mode);
        one(keys::LOG_LEVEL, log.level);
        one(keys::LOG_FORMAT, log.format);
        map
    }
}

fn expect(value: Option<&Scalar>, key: &str, wanted: &str, file: &Path) -> Result<(), UsageError> {
    let file = file.display();
    match value {
        Some(v) if v.text == wanted => Ok(()),
        Some(v) => Err(UsageError::new(format!(
            "{file}, line {}, column {}: {key} is {:?}: this version knows `{key}: {wanted}` only",
            v.line, v.column, v.text
        ))),
        None => {
            Err(UsageError::new(format!("{file}, line 1: {key} is missing: add the line `{key}: {wanted}`")))
        }
    }
}

/// YAML errors and unknown keys, with the line they stand on so that key and value can be seen.
fn syntax_error(error: &serde_saphyr::Error, text: &str, file: &Path) -> UsageError {
    let file = file.display();
    let error = error.without_snippet();
    let Some(place) = error.location() else {
        return UsageError::new(format!("{file}: {error}"));
    };
    let (line, column) = (place.line(), place.column());
    let source = usize::try_from(line)
        .ok()
        .and_then(|n| text.lines().nth(n.saturating_sub(1)))
        .map(|l| format!(" in `{}`", l.trim()))
        .unwrap_or_default();
    let message = match error {
        serde_saphyr::Error::Unexpected { expected: "mapping start", .. } => {
            "keys are wanted below this one".to_owned()
        }
        serde_saphyr::Error::Unexpected { expected: "sequence start", .. } => {
            "a list is wanted, such as [a, b]".to_owned()
        }
        serde_saphyr::Error::Unexpected { expected: "string scalar", .. } => {
            "a single value is wanted".to_owned()
        }
        serde_saphyr::Error::MultipleDocuments { .. } => "a second document begins: give one only".to_owned(),
        other => other.render_with_formatter(&serde_saphyr::UserMessageFormatter),
    };
    // The parser ends its message with the place, which stands in front here.
    let message = message.split(" at line ").next().unwrap_or(&message).replace('\n', " ");
    UsageError::new(format!("{file}, line {line}, column {column}: {message}{source}"))
}
