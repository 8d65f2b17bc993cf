//! Which Services are served, and with which settings.

mod changes;
mod joined;

use serde_json::json;

use super::*;
use crate::model::testing::*;
use crate::model::{Mode, Policy};

fn endpoints(ips: &[&str]) -> serde_json::Value {
    ips.iter().map(|ip| json!({"addresses": [ip]})).collect()
}

/// A Service and a slice with one external endpoint.
fn pair(name: &str, ip: &str, backend: &str) -> Vec<Object> {
    vec![service(name, ip, &json!({})), slice(&format!("{name}-x"), name, &endpoints(&[backend]))]
}

#[test]
fn the_jobs_own_manifests_lead_to_the_host_port() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nginx.yaml");
    let objects = crate::source::manifests::load(path.as_ref()).unwrap().objects;
    let snapshot = snapshot(objects.clone());
    assert_eq!(frontends(&snapshot), ["10.96.191.183:12345/TCP default/nginx-svc:http-0/TCP"]);
    let web = port(&snapshot, "nginx-svc", "http-0");
    assert_eq!(eligible(&web.v4), ["host-port 192.168.77.2:8080"]);
    assert_eq!(web.v4.eligible[0].endpoint, addr("10.244.2.10:80"));
    assert_eq!((web.mode, web.number), (Mode::Http, 12345));
    assert_eq!(snapshot.node_ips.len(), 2);
    assert_eq!(snapshot.warnings, [""; 0]);

    // On the pod's own node it is dialled at its own address.
    let mut store = Store::new(Local::new("edge-b"));
    store.replace(objects);
    assert_eq!(eligible(&port(&store.snapshot(), "nginx-svc", "http-0").v4), ["pod 10.244.2.10:80"]);
}

#[test]
fn services_that_are_not_for_us_are_left_alone() {
    // (row, metadata and spec over the default, frontends, why it is left alone)
    let labelled = |label: &str, value: &str| json!({"labels": {label: value}});
    let cases = [
        ("S1 none yet", json!({}), json!({"clusterIP": ""}), false, None),
        ("S1 headless", json!({}), json!({"clusterIP": "None"}), false, None),
        ("S2", json!({}), json!({"type": "ExternalName", "externalName": "x.example"}), false, None),
        (
            "S3",
            labelled("service.kubernetes.io/service-proxy-name", ""),
            json!({}),
            false,
            Some("service-proxy-name"),
        ),
        ("S4", labelled("service.kubernetes.io/headless", ""), json!({}), false, Some("headless")),
        (
            "EdgeMesh",
            labelled("service.edgemesh.kubeedge.io/service-proxy-name", "x"),
            json!({}),
            false,
            Some("edgemesh"),
        ),
        ("EdgeMesh 1.9", labelled("noproxy", "edgemesh"), json!({}), false, Some("noproxy=edgemesh")),
        ("S7", json!({}), json!({"ports": []}), false, None),
        ("U11", json!({}), json!({"ports": [{"port": 1, "protocol": "SCTP"}]}), false, Some("SCTP")),
        ("plain", json!({}), json!({}), true, None),
    ];
    for (row, metadata, spec, served, why) in cases {
        let mut meta = json!({"name": "web"});
        merge(&mut meta, &metadata);
        let mut whole = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        merge(&mut whole, &spec);
        let web = object(Kind::Service, json!({"metadata": meta, "spec": whole}));
        let got = snapshot(vec![web, slice("web-x", "web", &endpoints(&["192.0.2.1"]))]);
        assert_eq!(!got.frontends.is_empty(), served, "{row}");
        assert!(got.services.contains_key(&id("web")), "{row}: every Service is known by name");
        let entry = got.not_proxied.get(&id("web"));
        assert_eq!(entry.is_some(), why.is_some(), "{row}");
        assert!(
            entry.is_none_or(|e| e.why.contains(why.unwrap()) && e.cluster_ips.len() == 1),
            "{row}: {entry:?}"
        );
    }
}

#[test]
fn the_api_servers_own_service_is_captured_on_request_only() {
    let objects = || pair("kubernetes", "10.96.0.1", "127.0.0.1");
    let got = snapshot(objects());
    assert!(got.frontends.is_empty());
    assert!(got.not_proxied[&id("kubernetes")].why.contains("intercept.kubernetesService"));
    let mut store = Store::new(Local { capture_kubernetes: true, ..Local::new("edge-a") });
    store.replace(objects());
    let got = store.snapshot();
    // KubeEdge points it at MetaServer on the node: the one Service that may have a loopback endpoint (E14).
    assert_eq!(eligible(&port(&got, "kubernetes", "").v4), ["external 127.0.0.1:8080"]);
}

#[test]
fn a_label_that_comes_and_goes_is_followed_at_once() {
    let mut store = store(pair("web", "10.96.0.1", "192.0.2.1"));
    assert_eq!(store.snapshot().frontends.len(), 1);
    let out = json!({"metadata": {"name": "web", "labels": {"service.kubernetes.io/service-proxy-name": ""}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    store.upsert(object(Kind::Service, out));
    let got = store.snapshot();
    assert_eq!((got.frontends.len(), got.ports.len(), got.not_proxied.len()), (0, 0, 1));
    store.upsert(service("web", "10.96.0.1", &json!({})));
    let got = store.snapshot();
    assert_eq!((got.frontends.len(), got.ports.len(), got.not_proxied.len()), (1, 1, 0));
}

#[test]
fn with_a_proxy_name_only_services_that_choose_it_are_served() {
    let mut store = Store::new(Local { service_proxy_name: "ours".into(), ..Local::new("edge-a") });
    let labelled = |name: &str, ip: &str, labels: serde_json::Value| {
        let value = json!({"metadata": {"name": name, "labels": labels}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        object(Kind::Service, value)
    };
    let label = "service.kubernetes.io/service-proxy-name";
    store.replace(vec![
        service("plain", "10.96.0.1", &json!({})),
        labelled("ours", "10.96.0.2", json!({label: "ours"})),
        labelled("theirs", "10.96.0.3", json!({label: "theirs"})),
        labelled("both", "10.96.0.4", json!({label: "ours", "noproxy": "edgemesh"})),
        // The Service's choice is enough; a slice that was given to another proxy is not ours.
        slice("ours-1", "ours", &endpoints(&["192.0.2.1"])),
        object(
            Kind::EndpointSlice,
            json!({"metadata": {"name": "ours-2", "labels": {"kubernetes.io/service-name": "ours", label: "theirs"}},
                "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints(&["192.0.2.2"])}),
        ),
    ]);
    let got = store.snapshot();
    assert_eq!(eligible(&port(&got, "ours", "").v4), ["external 192.0.2.1:8080"]);
    assert_eq!((got.ports.len(), got.not_proxied.len()), (1, 3));
    assert!(got.not_proxied[&id("plain")].why.contains("service-proxy-name: ours"));
}

#[test]
fn settings_come_from_annotation_rule_and_spec() {
    use std::time::Duration;
    let policy = json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": {"consecutive5xxErrors": 3,
        "baseEjectionTime": "10s", "maxEjectionPercent": 50}, "connectionPool": {"tcp": {"connectTimeout": "300ms", "maxConnections": 7},
            "http": {"http2MaxRequests": 9}}});
    let rule = |policy: &serde_json::Value| {
        object(Kind::DestinationRule, json!({"metadata": {"name": "web"}, "spec": {"trafficPolicy": policy}}))
    };
    let web = |annotation: Option<&str>| {
        object(
            Kind::Service,
            json!({"metadata": {"name": "web", "annotations": {"edgesplice.io/load-balancing": annotation}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http-0", "port": 80}, {"name": "tcp-0", "port": 81}],
                "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local"}}),
        )
    };
    let mut store = store(vec![web(None), rule(&policy)]);
    let got = store.snapshot();
    let http = port(&got, "web", "http-0");
    assert_eq!(http.policy, Policy::RoundRobin);
    assert_eq!((http.affinity, http.local_only), (Some(Duration::from_hours(3)), true));
    assert_eq!(http.connect_timeout, Some(Duration::from_millis(300)));
    assert_eq!((http.outlier.consecutive_errors, http.outlier.max_ejection_percent), (Some(3), Some(50)));
    assert_eq!(http.outlier.base_ejection_time, Some(Duration::from_secs(10)));
    assert_eq!(http.http_pool.as_ref().and_then(|pool| pool.max_requests), Some(9));
    assert_eq!(port(&got, "web", "tcp-0").http_pool, None, "there are no requests to bound");

    // How connections are made: the rule, then the annotations; what makes no sense is passed over.
    assert_eq!((http.max_connections, http.proxy_protocol), (Some(7), false));
    let annotated = |timeout: &str, most: &str, proxy_protocol: &str| {
        object(
            Kind::Service,
            json!({"metadata": {"name": "web", "annotations": {"edgesplice.io/connect-timeout": timeout,
                "edgesplice.io/max-connections": most, "edgesplice.io/proxy-protocol": proxy_protocol}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http-0", "port": 80}]}}),
        )
    };
    store.upsert(annotated("750ms", "20", "v2"));
    let got = store.snapshot();
    let http = port(&got, "web", "http-0");
    assert_eq!(http.connect_timeout, Some(Duration::from_millis(750)));
    assert_eq!((http.max_connections, http.proxy_protocol), (Some(20), true));
    assert!(!http.keep_source);
    store.upsert(annotated("soon", "0", "v1"));
    let got = store.snapshot();
    let http = port(&got, "web", "http-0");
    assert_eq!(http.connect_timeout, Some(Duration::from_millis(300)));
    assert_eq!((http.max_connections, http.proxy_protocol), (Some(7), false));
    assert_eq!(got.warnings.len(), 3, "{:?}", got.warnings);

    // The annotation beats the rule; a header can be read on the HTTP port only.
    store.upsert(web(Some("header:X-User")));
    let got = store.snapshot();
    assert_eq!(port(&got, "web", "http-0").policy, Policy::Header("X-User".into()));
    assert_eq!(port(&got, "web", "tcp-0").policy, Policy::LeastRequest);
    assert_eq!(got.warnings, [""; 0]);

    // (rule's load balancer, policy, words of the warning)
    let cases = [
        (json!({"simple": "RANDOM"}), Policy::Random, None),
        (json!({"simple": "LEAST_CONN"}), Policy::LeastRequest, None),
        (json!({"simple": "PASSTHROUGH"}), Policy::LeastRequest, Some("PASSTHROUGH")),
        (json!({"consistentHash": {"useSourceIp": true}}), Policy::SourceIp, None),
        (json!({"consistentHash": {"httpHeaderName": "X-A"}}), Policy::Header("X-A".into()), None),
        (
            json!({"consistentHash": {"httpHeaderName": "a b"}}),
            Policy::LeastRequest,
            Some("not the name of an HTTP header"),
        ),
        (
            json!({"consistentHash": {"httpQueryParameterName": "c"}}),
            Policy::LeastRequest,
            Some("httpHeaderName, httpCookie and useSourceIp"),
        ),
        (
            json!({"consistentHash": {"httpCookie": {"name": "c", "path": "/", "ttl": "5s"}}}),
            Policy::Cookie(std::sync::Arc::new(crate::model::CookieRule {
                name: "c".into(),
                path: "/".into(),
                ttl: Some(Duration::from_secs(5)),
            })),
            None,
        ),
        (
            json!({"consistentHash": {"httpCookie": {"name": "c d"}}}),
            Policy::LeastRequest,
            Some("not the name of a cookie"),
        ),
    ];
    store.upsert(web(None));
    for (balancer, want, warning) in cases {
        store.upsert(rule(&json!({"loadBalancer": balancer.clone()})));
        let got = store.snapshot();
        assert_eq!(port(&got, "web", "http-0").policy, want, "{balancer}");
        assert_eq!(got.warnings.len(), usize::from(warning.is_some()), "{balancer}: {:?}", got.warnings);
        assert!(warning.is_none_or(|w| got.warnings[0].contains(w)), "{:?}", got.warnings);
    }
    store.upsert(web(Some("fastest")));
    let got = store.snapshot();
    assert!(got.warnings.iter().any(|w| w.contains("\"fastest\"")), "{:?}", got.warnings);
    store.delete(&key(Kind::DestinationRule, "web"));
    assert_eq!(port(&store.snapshot(), "web", "http-0").connect_timeout, None);
}
