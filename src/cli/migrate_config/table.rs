//! What becomes of each key of EdgeMesh's configuration, v1.7 to v1.17, and of the EdgeMesh inside KubeEdge before.
//!
//! One row a key, or one for all keys below a prefix that ends in a dot. The first row that fits is taken.

use super::Outcome;
use super::read::Keys;
use crate::config::keys as ours;

/// What becomes of a key.
#[derive(Debug)]
pub(super) struct Fate {
    pub(super) outcome: Outcome,
    /// The key that it is written under, and its value there.
    pub(super) to: Option<(&'static str, Vec<String>)>,
    pub(super) note: String,
}

fn to(key: &'static str, value: impl Into<String>) -> Fate {
    Fate { outcome: Outcome::Translated, to: Some((key, vec![value.into()])), note: String::new() }
}

fn needless(note: &str) -> Fate {
    Fate { outcome: Outcome::Needless, to: None, note: note.to_owned() }
}

fn attention(note: &str) -> Fate {
    Fate { outcome: Outcome::Attention, to: None, note: note.to_owned() }
}

/// What to do with a key.
enum Rule {
    /// Nothing is lost without it, for this reason.
    Needless(&'static str),
    /// A switch that has no counterpart: off, nothing is lost; on, this is to be known.
    IfOn(&'static str),
    /// Part of something whose switch is this key: matters only if that is on, and then the switch's own line tells.
    PartOf(&'static str),
    /// By its value, and those of others.
    By(fn(&str, &Keys) -> Fate),
}
use Rule::{By, IfOn, Needless, PartOf};

const TUNNEL: &str = "modules.edgeTunnel.enable";
const OLD_TUNNEL: &str = "modules.tunnel.enable";
const NO_TUNNEL: &str = "there is no tunnel in this version: a backend on another node is dialled at its hostPort, on \
                         the host network, or in a routed pod network, and `edgesplice resolve` names those that cannot be";
const PER_SERVICE: &str =
    "balancing is set for each Service: annotation edgesplice.io/load-balancing, or its DestinationRule";
const ANY_PORT: &str = "the agent takes any free port, and its rules carry it (proxy.port fixes one)";

const ROWS: &[(&str, Rule)] = &[
    ("kubeAPIConfig.master", By(master)),
    ("kubeAPIConfig.kubeConfig", By(kubeconfig)),
    ("kubeAPIConfig.metaServer.server", By(|value, _| to(ours::METASERVER_URL, value))),
    ("kubeAPIConfig.metaServer.security.requireAuthorization", By(authorization)),
    (
        "kubeAPIConfig.metaServer.security.insecureSkipTLSVerify",
        IfOn("certificates are always verified: give tlsCaFile"),
    ),
    (
        "kubeAPIConfig.metaServer.security.tlsCaFile",
        By(|value, all| secured(ours::METASERVER_CA, value, all)),
    ),
    (
        "kubeAPIConfig.metaServer.security.tlsCertFile",
        By(|value, all| secured(ours::METASERVER_CERT, value, all)),
    ),
    (
        "kubeAPIConfig.metaServer.security.tlsPrivateKeyFile",
        By(|value, all| secured(ours::METASERVER_KEY, value, all)),
    ),
    ("kubeAPIConfig.", Needless("the agent lists once and watches; there is nothing to limit")),
    (
        "commonConfig.bridgeDeviceName",
        Needless("an address of its own stands on the link edgesplice0, or on lo"),
    ),
    ("commonConfig.bridgeDeviceIP", By(dns_listen)),
    (
        "commonConfig.dummyDeviceName",
        Needless("an address of its own stands on the link edgesplice0, or on lo"),
    ),
    ("commonConfig.dummyDeviceIP", By(dns_listen)),
    (
        "commonConfig.pprofConfig.enableProfiling",
        IfOn("there is no pprof endpoint; /metrics and `status` tell what the agent does"),
    ),
    ("commonConfig.", Needless("nothing like it is needed")),
    ("modules.edgeDNS.enable", By(dns_mode)),
    ("modules.edgeDNS.listenPort", By(dns_listen)),
    ("modules.edgeDNS.cacheDNS.enable", Needless("foreign answers are always kept for as long as they say")),
    (
        "modules.edgeDNS.cacheDNS.autoDetect",
        Needless(
            "the cluster's own DNS addresses are answered here; for foreign names the node's /etc/resolv.conf counts",
        ),
    ),
    ("modules.edgeDNS.cacheDNS.upstreamServers", By(upstreams)),
    ("modules.edgeDNS.cacheDNS.cacheTTL", Needless("an answer is kept for as long as it says")),
    ("modules.edgeProxy.enable", By(proxy)),
    ("modules.edgeProxy.serviceFilterMode", By(filter_mode)),
    (
        "modules.edgeProxy.socks5Proxy.enable",
        IfOn("there is no SOCKS5 proxy: reach a remote node's SSH by other means"),
    ),
    ("modules.edgeProxy.socks5Proxy.", PartOf("modules.edgeProxy.socks5Proxy.enable")),
    ("modules.edgeProxy.loadBalancer.consistentHash.", Needless(PER_SERVICE)),
    ("modules.edgeProxy.subNet", By(subnet)),
    ("modules.edgeProxy.listenPort", Needless(ANY_PORT)),
    (
        "modules.edgeProxy.listenInterface",
        Needless("packets are redirected to the agent wherever they come in"),
    ),
    (TUNNEL, IfOn(NO_TUNNEL)),
    ("modules.edgeTunnel.metricConfig.enable", By(metrics)),
    ("modules.edgeTunnel.", PartOf(TUNNEL)),
    (OLD_TUNNEL, IfOn(NO_TUNNEL)),
    ("modules.tunnel.", PartOf(OLD_TUNNEL)),
    (
        "modules.edgeCNI.enable",
        IfOn(
            "there is no CNI plugin: keep EdgeMesh's, or another one, for pods that talk to pods by their own address",
        ),
    ),
    ("modules.edgeCNI.", PartOf("modules.edgeCNI.enable")),
    ("goChassisConfig.loadBalancer.defaultLBStrategy", By(strategy)),
    ("goChassisConfig.loadBalancer.", Needless(PER_SERVICE)),
    (
        "goChassisConfig.protocol.",
        Needless(
            "connections are spliced, and dead backends are left out: proxy.connectTimeout, proxy.dialBudget",
        ),
    ),
    ("modules.edgeMesh.enable", By(proxy)),
    ("modules.edgeMesh.lbStrategy", By(strategy)),
    ("modules.edgeMesh.listenPort", Needless(ANY_PORT)),
    (
        "modules.edgeMesh.listenInterface",
        Needless("packets are redirected to the agent wherever they come in"),
    ),
    ("modules.edgeMesh.subNet", By(subnet)),
];

/// What becomes of `key`.
pub(super) fn fate(key: &str, all: &Keys) -> Fate {
    let value = all.text(key);
    let fits = |pattern: &str| if pattern.ends_with('.') { key.starts_with(pattern) } else { key == pattern };
    let Some((_, rule)) = ROWS.iter().find(|(pattern, _)| fits(pattern)) else {
        return Fate { outcome: Outcome::Unknown, to: None, note: String::new() };
    };
    match rule {
        Needless(why) => needless(why),
        IfOn(why) if all.is_on(key) => attention(why),
        IfOn(_) => needless("it is off"),
        PartOf(switch) if all.is_on(switch) => needless(&format!("see {switch}")),
        PartOf(switch) => needless(&format!("{switch} is off")),
        By(rule) => rule(&value, all),
    }
}

fn master(value: &str, _: &Keys) -> Fate {
    if value.is_empty() {
        return needless("not set");
    }
    attention(
        "a server's address alone is not enough: write a kubeconfig, and name it as source.kubernetes.kubeconfig",
    )
}

fn kubeconfig(value: &str, _: &Keys) -> Fate {
    if value.is_empty() { needless("not set") } else { to(ours::KUBECONFIG, value) }
}

fn authorization(value: &str, _: &Keys) -> Fate {
    if value == "true" {
        needless("the certificates are written over, and they are what MetaServer asks for")
    } else {
        needless("it is off")
    }
}

/// The files are named by default, but read only if MetaServer asks for them.
fn secured(key: &'static str, value: &str, all: &Keys) -> Fate {
    if all.is_on("kubeAPIConfig.metaServer.security.requireAuthorization") && !value.is_empty() {
        return to(key, value);
    }
    needless("MetaServer asks for no authorization")
}

/// The address and the port are two keys there and one here.
fn dns_listen(_: &str, all: &Keys) -> Fate {
    let or = |keys: [&str; 2], default: &str| {
        let given = keys.iter().map(|key| all.text(key)).find(|text| !text.is_empty());
        given.unwrap_or_else(|| default.to_owned())
    };
    let address = or(["commonConfig.bridgeDeviceIP", "commonConfig.dummyDeviceIP"], "169.254.96.16");
    let port = or(["modules.edgeDNS.listenPort", ""], "53");
    to(ours::DNS_LISTEN, format!("{address}:{port}"))
}

fn dns_mode(value: &str, _: &Keys) -> Fate {
    to(ours::DNS_MODE, if value == "true" { "auto" } else { "off" })
}

fn upstreams(_: &str, all: &Keys) -> Fate {
    let servers = all.list("modules.edgeDNS.cacheDNS.upstreamServers");
    if servers.is_empty() {
        return needless("none are named: the node's /etc/resolv.conf counts");
    }
    if !all.is_on("modules.edgeDNS.cacheDNS.enable") {
        return needless("cacheDNS is off, so they were not asked");
    }
    Fate { outcome: Outcome::Translated, to: Some((ours::DNS_UPSTREAMS, servers)), note: String::new() }
}

fn proxy(value: &str, _: &Keys) -> Fate {
    if value == "true" {
        return needless("the agent always serves");
    }
    attention(
        "EdgeMesh did not serve here, and the agent always does: do not run it on these nodes, or choose the \
               Services with intercept.serviceProxyName",
    )
}

/// The name of the agent as a proxy, where Services are to ask for it.
const PROXY_NAME: &str = "edgesplice";

fn filter_mode(value: &str, _: &Keys) -> Fate {
    if value != "FilterIfLabelDoesNotExists" {
        return needless(
            "Services with the label service.edgemesh.kubeedge.io/service-proxy-name are left alone here too",
        );
    }
    Fate {
        outcome: Outcome::Attention,
        to: Some((ours::SERVICE_PROXY_NAME, vec![PROXY_NAME.to_owned()])),
        note: "only Services that ask for it were served. Written as intercept.serviceProxyName: on each of them, \
               replace the label service.edgemesh.kubeedge.io/service-proxy-name (here it means: leave alone) with \
               service.kubernetes.io/service-proxy-name=edgesplice"
            .to_owned(),
    }
}

fn subnet(value: &str, _: &Keys) -> Fate {
    // The pool of invented addresses that was built into KubeEdge up to v1.7.
    if value.starts_with("9.251.") {
        return attention(
            "this range of invented addresses is gone: clients reach a Service at its ClusterIP, or by name",
        );
    }
    if value.is_empty() {
        return needless("not set: the range is found out");
    }
    to(ours::SERVICE_CIDRS, value)
}

fn strategy(value: &str, _: &Keys) -> Fate {
    if value.is_empty() {
        return needless("not set");
    }
    let wanted = match value.to_ascii_lowercase().replace(['_', '-'], "").as_str() {
        "roundrobin" => "round-robin",
        "random" => "random",
        "sessionstickiness" => "source-ip",
        _ => return attention(PER_SERVICE),
    };
    attention(&format!(
        "the default here is least-request; {PER_SERVICE}: edgesplice.io/load-balancing: {wanted}"
    ))
}

fn metrics(_: &str, all: &Keys) -> Fate {
    if !all.is_on("modules.edgeTunnel.metricConfig.enable") {
        return needless("it is off");
    }
    attention(
        "metrics are always there, at http://127.0.0.1:10265/metrics; admin.listen chooses another address",
    )
}

#[cfg(test)]
pub(super) fn rows() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|(key, _)| *key)
}
