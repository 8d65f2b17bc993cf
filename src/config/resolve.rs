//! From what was given to [`Settings`]: defaults, and the checks that need more than one value.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layers::{Layers, Origin, Override};
use super::raw::RawConfig;
use super::{
    AdminSettings, BackendSettings, ConnectMode, Credentials, DnsMode, DnsSettings, HardeningSettings,
    HttpSettings, InterceptSettings, IptablesBackend, LogFormat, LogSettings, NodePortAddresses, PodNetwork,
    ProxySettings, Settings, SourceKind, SourceSettings, UpstreamFrom, UsageError, keys, parse,
};

pub(super) const SOURCE_KINDS: &[(&str, SourceKind)] = &[
    ("auto", SourceKind::Auto),
    ("kubernetes", SourceKind::Kubernetes),
    ("metaserver", SourceKind::MetaServer),
    ("manifests", SourceKind::Manifests),
];
pub(super) const IPTABLES_BACKENDS: &[(&str, IptablesBackend)] =
    &[("auto", IptablesBackend::Auto), ("nft", IptablesBackend::Nft), ("legacy", IptablesBackend::Legacy)];
pub(super) const CONNECT_MODES: &[(&str, ConnectMode)] =
    &[("after-accept", ConnectMode::AfterAccept), ("before-accept", ConnectMode::BeforeAccept)];
pub(super) const POD_NETWORKS: &[(&str, PodNetwork)] =
    &[("auto", PodNetwork::Auto), ("routed", PodNetwork::Routed), ("none", PodNetwork::None)];
pub(super) const DNS_MODES: &[(&str, DnsMode)] = &[("auto", DnsMode::Auto), ("off", DnsMode::Off)];
pub(super) const UPSTREAMS_FROM: &[(&str, UpstreamFrom)] =
    &[("node", UpstreamFrom::Node), ("kube-dns", UpstreamFrom::KubeDns)];
pub(super) const HARDENING_MODES: &[(&str, bool)] = &[("auto", true), ("off", false)];
pub(super) const HTTP_MODES: &[(&str, bool)] = &[("auto", true), ("off", false)];
pub(super) const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// More threads than this help nobody on a node.
const MOST_WORKERS: usize = 256;
/// The kernel's upper bound for descriptors of a process (`fs.nr_open` of 64-bit kernels).
const MOST_CONNECTIONS: usize = 1 << 30;

/// All that settings are made from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Values from the environment and the command line, at most one a key.
    pub overrides: Vec<Override>,
    /// The node's name where no layer gives it, and where that was found (`NODE_NAME` or the host name).
    pub node_name: Option<(String, Origin)>,
}

impl Inputs {
    /// Reads the file, if there is one, and makes the settings.
    pub fn load(&self) -> Result<Settings, UsageError> {
        let Some(path) = &self.file else { return self.resolve(None) };
        let text = std::fs::read_to_string(path).map_err(|e| {
            UsageError::new(format!("{}: {e}: give a configuration file that can be read", path.display()))
        })?;
        self.resolve(Some((path, &text)))
    }

    /// Makes the settings from the text of a file.
    pub fn resolve(&self, file: Option<(&Path, &str)>) -> Result<Settings, UsageError> {
        let file = match file {
            Some((path, text)) => RawConfig::parse(text, path)?.flatten(path),
            None => std::collections::BTreeMap::new(),
        };
        let layers = Layers::new(file, &self.overrides);
        let settings = Settings {
            node_name: self.node_name(&layers)?,
            state_dir: layers
                .one(keys::STATE_DIR, parse::path)?
                .unwrap_or_else(|| "/var/lib/edgesplice".into()),
            source: source(&layers)?,
            intercept: intercept(&layers)?,
            proxy: proxy(&layers)?,
            backends: BackendSettings {
                pod_network: layers
                    .one(keys::POD_NETWORK, parse::word(POD_NETWORKS))?
                    .unwrap_or(PodNetwork::Auto),
            },
            dns: dns(&layers)?,
            admin: AdminSettings {
                listen: layers
                    .one(keys::ADMIN_LISTEN, parse::listen)?
                    .unwrap_or(([127, 0, 0, 1], 10265).into()),
            },
            hardening: HardeningSettings {
                on: layers.one(keys::HARDENING_MODE, parse::word(HARDENING_MODES))?.unwrap_or(true),
            },
            log: LogSettings {
                level: layers.one(keys::LOG_LEVEL, parse::log_level)?.unwrap_or_else(|| "info".to_owned()),
                format: layers.one(keys::LOG_FORMAT, parse::word(LOG_FORMATS))?.unwrap_or(LogFormat::Text),
            },
        };
        check_together(&settings, &layers)?;
        Ok(settings)
    }

    fn node_name(&self, layers: &Layers) -> Result<String, UsageError> {
        if let Some(name) = layers.one(keys::NODE_NAME, parse::node_name)? {
            return Ok(name);
        }
        let Some((name, origin)) = &self.node_name else {
            return Err(UsageError::new(format!(
                "{} is not given, and this machine has no host name: give --node-name",
                keys::NODE_NAME
            )));
        };
        parse::node_name(name)
            .map_err(|why| UsageError::new(format!("{origin}: {} is {name:?}: {why}", keys::NODE_NAME)))
    }
}

fn source(layers: &Layers) -> Result<SourceSettings, UsageError> {
    Ok(SourceSettings {
        kind: layers.one(keys::SOURCE_KIND, parse::word(SOURCE_KINDS))?.unwrap_or(SourceKind::Auto),
        manifests: layers.one(keys::MANIFESTS_PATH, parse::existing_path)?,
        kubeconfig: layers.one(keys::KUBECONFIG, parse::existing_path)?,
        metaserver: layers
            .one(keys::METASERVER_URL, parse::url)?
            .unwrap_or_else(|| "http://127.0.0.1:10550".to_owned()),
        metaserver_credentials: Credentials {
            ca_file: layers.one(keys::METASERVER_CA, parse::existing_path)?,
            cert_file: layers.one(keys::METASERVER_CERT, parse::existing_path)?,
            key_file: layers.one(keys::METASERVER_KEY, parse::existing_path)?,
            token_file: layers.one(keys::METASERVER_TOKEN, parse::existing_path)?,
        },
    })
}

fn intercept(layers: &Layers) -> Result<InterceptSettings, UsageError> {
    let mut service_cidrs = layers.many(keys::SERVICE_CIDRS, parse::service_cidr)?.unwrap_or_default();
    for (i, net) in service_cidrs.iter().enumerate() {
        if let Some(other) = service_cidrs[..i].iter().find(|other| parse::overlap(other, net)) {
            let way_out = format!("it overlaps {other}, which is given too: leave one of them out");
            return Err(layers.fault(
                (keys::SERVICE_CIDRS, i),
                &net.to_string(),
                keys::SERVICE_CIDRS,
                &way_out,
            ));
        }
    }
    service_cidrs.sort();
    let default = InterceptSettings::default();
    Ok(InterceptSettings {
        service_cidrs,
        iptables_backend: layers
            .one(keys::IPTABLES_BACKEND, parse::word(IPTABLES_BACKENDS))?
            .unwrap_or(default.iptables_backend),
        remove_stale: layers.one(keys::REMOVE_STALE, parse::boolean)?.unwrap_or(default.remove_stale),
        kubernetes_service: layers
            .one(keys::KUBERNETES_SERVICE, parse::boolean)?
            .unwrap_or(default.kubernetes_service),
        coexist_with_kube_proxy: layers
            .one(keys::COEXIST, parse::boolean)?
            .unwrap_or(default.coexist_with_kube_proxy),
        service_proxy_name: layers
            .one(keys::SERVICE_PROXY_NAME, parse::label_value)?
            .unwrap_or(default.service_proxy_name),
        node_ports: node_ports(layers)?,
        external_ips: layers.one(keys::EXTERNAL_IPS, parse::boolean)?.unwrap_or(default.external_ips),
        connect: layers.one(keys::CONNECT, parse::word(CONNECT_MODES))?.unwrap_or(default.connect),
        sync_period: layers.one(keys::SYNC_PERIOD, parse::duration)?.unwrap_or(default.sync_period),
        own_mark: layers.one(keys::OWN_MARK, parse::mark)?.unwrap_or(default.own_mark),
        refuse_mark: layers.one(keys::REFUSE_MARK, parse::mark)?.unwrap_or(default.refuse_mark),
    })
}

fn node_ports(layers: &Layers) -> Result<Option<NodePortAddresses>, UsageError> {
    let ranges = layers.many(keys::NODE_PORT_ADDRESSES, parse::node_port_addresses)?.unwrap_or_default();
    if ranges.len() > 1
        && let Some(index) = ranges.iter().position(Option::is_none)
    {
        let way_out = "`primary` stands alone: leave it out, or leave the ranges out";
        return Err(layers.fault(
            (keys::NODE_PORT_ADDRESSES, index),
            "primary",
            keys::NODE_PORT_ADDRESSES,
            way_out,
        ));
    }
    let wanted = layers.one(keys::NODE_PORTS, parse::boolean)?.unwrap_or(true);
    let ranges: Vec<_> = ranges.into_iter().flatten().collect();
    let addresses =
        if ranges.is_empty() { NodePortAddresses::Primary } else { NodePortAddresses::Ranges(ranges) };
    Ok(wanted.then_some(addresses))
}

fn proxy(layers: &Layers) -> Result<ProxySettings, UsageError> {
    let time = |key, default| Ok::<_, UsageError>(layers.one(key, parse::duration)?.unwrap_or(default));
    Ok(ProxySettings {
        port: layers.one(keys::PROXY_PORT, parse::port)?.unwrap_or(0),
        workers: layers.one(keys::WORKERS, parse::count(MOST_WORKERS))?.unwrap_or(0),
        drain_timeout: time(keys::DRAIN_TIMEOUT, Duration::from_secs(30))?,
        connect_timeout: time(keys::CONNECT_TIMEOUT, Duration::from_secs(1))?,
        dial_budget: time(keys::DIAL_BUDGET, Duration::from_secs(5))?,
        dial_stagger: time(keys::DIAL_STAGGER, Duration::from_millis(250))?,
        max_connections: layers.one(keys::MAX_CONNECTIONS, parse::count(MOST_CONNECTIONS))?.unwrap_or(0),
        max_per_source: layers.one(keys::MAX_PER_SOURCE, parse::count(MOST_CONNECTIONS))?.unwrap_or(0),
        keep_rules: layers.one(keys::KEEP_RULES, parse::boolean)?.unwrap_or(false),
        take_over: layers.one(keys::TAKE_OVER, parse::boolean)?.unwrap_or(false),
        http: http(layers)?,
    })
}

fn http(layers: &Layers) -> Result<HttpSettings, UsageError> {
    let default = HttpSettings::default();
    Ok(HttpSettings {
        on: layers.one(keys::HTTP_MODE, parse::word(HTTP_MODES))?.unwrap_or(default.on),
        head_timeout: layers.one(keys::HTTP_HEAD_TIMEOUT, parse::duration)?.unwrap_or(default.head_timeout),
        idle_timeout: layers.one(keys::HTTP_IDLE_TIMEOUT, parse::duration)?.unwrap_or(default.idle_timeout),
        request_timeout: layers
            .one(keys::HTTP_REQUEST_TIMEOUT, parse::duration_or_none)?
            .unwrap_or(default.request_timeout),
        access_log: layers.one(keys::ACCESS_LOG, parse::path)?,
        access_log_share: layers
            .one(keys::ACCESS_LOG_SHARE, parse::share)?
            .unwrap_or(default.access_log_share),
    })
}

fn dns(layers: &Layers) -> Result<DnsSettings, UsageError> {
    Ok(DnsSettings {
        mode: layers.one(keys::DNS_MODE, parse::word(DNS_MODES))?.unwrap_or(DnsMode::Auto),
        listen: layers
            .many(keys::DNS_LISTEN, parse::listen)?
            .unwrap_or_else(|| vec![([169, 254, 96, 16], 53).into()]),
        domain: layers.one(keys::DNS_DOMAIN, parse::domain)?.unwrap_or_else(|| "cluster.local".to_owned()),
        upstreams: layers.many(keys::DNS_UPSTREAMS, parse::upstream)?.unwrap_or_default(),
        upstream_from: layers
            .one(keys::DNS_UPSTREAM_FROM, parse::word(UPSTREAMS_FROM))?
            .unwrap_or(UpstreamFrom::Node),
    })
}

/// What each value allows, but not both together.
fn check_together(settings: &Settings, layers: &Layers) -> Result<(), UsageError> {
    let Settings { source, intercept, proxy, dns, admin, .. } = settings;
    if source.kind == SourceKind::Manifests && source.manifests.is_none() {
        let way_out = format!("it needs a file or folder: give {} (--manifests PATH)", keys::MANIFESTS_PATH);
        return Err(layers.fault((keys::SOURCE_KIND, 0), "manifests", keys::MANIFESTS_PATH, &way_out));
    }
    if intercept.own_mark == intercept.refuse_mark {
        let mark = format!("{:#x}", intercept.refuse_mark);
        let way_out = format!("{} is the same: give two marks of different bits", keys::OWN_MARK);
        return Err(layers.fault((keys::REFUSE_MARK, 0), &mark, keys::OWN_MARK, &way_out));
    }
    if proxy.connect_timeout > proxy.dial_budget {
        let way_out = format!(
            "it is longer than {} ({}), the time for all dials together: lower it or raise the budget",
            keys::DIAL_BUDGET,
            super::print::duration(proxy.dial_budget)
        );
        let value = super::print::duration(proxy.connect_timeout);
        return Err(layers.fault((keys::CONNECT_TIMEOUT, 0), &value, keys::DIAL_BUDGET, &way_out));
    }
    for (i, upstream) in dns.upstreams.iter().enumerate() {
        if dns.listen.contains(upstream) {
            let way_out =
                format!("the agent itself answers there ({}): name another DNS server", keys::DNS_LISTEN);
            return Err(layers.fault(
                (keys::DNS_UPSTREAMS, i),
                &upstream.to_string(),
                keys::DNS_LISTEN,
                &way_out,
            ));
        }
    }
    for (i, listen) in dns.listen.iter().enumerate() {
        if dns.listen[..i].contains(listen) {
            let way_out = "it is given twice: leave one out";
            return Err(layers.fault((keys::DNS_LISTEN, i), &listen.to_string(), keys::DNS_LISTEN, way_out));
        }
    }
    let listeners = [
        (keys::DNS_LISTEN, dns.listen.as_slice()),
        (keys::ADMIN_LISTEN, std::slice::from_ref(&admin.listen)),
    ];
    for (key, addrs) in listeners {
        for (i, addr) in addrs.iter().enumerate() {
            if let Some(net) = intercept.service_cidrs.iter().find(|net| net.contains(&addr.ip())) {
                let way_out = format!("it lies in the service range {net}: give an address outside of it");
                return Err(layers.fault((key, i), &addr.to_string(), keys::SERVICE_CIDRS, &way_out));
            }
        }
    }
    if proxy.port != 0 && proxy.port == admin.listen.port() {
        let way_out =
            format!("{} has this port too: give another one, or 0 for any free one", keys::ADMIN_LISTEN);
        return Err(layers.fault(
            (keys::PROXY_PORT, 0),
            &proxy.port.to_string(),
            keys::ADMIN_LISTEN,
            &way_out,
        ));
    }
    Ok(())
}
