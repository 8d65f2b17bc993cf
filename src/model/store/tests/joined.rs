//! How Services, slices, Endpoints and Pods are joined.

use serde_json::json;

use super::*;
use crate::model::testing::*;
use crate::model::{Mode, PortId, Protocol};

#[test]
fn slices_are_joined_by_label_alone() {
    // S5, S6, E18: the slice's name means nothing, and it may come before its Service.
    let mut store = store(vec![slice("unrelated", "web", &endpoints(&["192.0.2.1"]))]);
    assert!(store.snapshot().services.is_empty());
    store.upsert(service("web", "10.96.0.1", &json!({})));
    store.upsert(service("other", "10.96.0.2", &json!({})));
    let got = store.snapshot();
    assert_eq!(eligible(&port(&got, "web", "").v4), ["external 192.0.2.1:8080"]);
    // A changed label moves the endpoints.
    store.upsert(slice("unrelated", "other", &endpoints(&["192.0.2.1"])));
    let got = store.snapshot();
    assert!(port(&got, "web", "").v4.eligible.is_empty());
    assert_eq!(eligible(&port(&got, "other", "").v4), ["external 192.0.2.1:8080"]);
    // Without the label it belongs to nobody, which is worth a word.
    let bare = json!({"metadata": {"name": "unrelated"}, "addressType": "IPv4"});
    store.upsert(object(Kind::EndpointSlice, bare));
    let got = store.snapshot();
    assert!(port(&got, "other", "").v4.eligible.is_empty());
    assert!(got.warnings[0].contains("kubernetes.io/service-name"), "{:?}", got.warnings);
    store.delete(&key(Kind::EndpointSlice, "unrelated"));
    assert!(store.snapshot().warnings.is_empty());
}

#[test]
fn slices_that_opted_out_add_nothing() {
    let labels = json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""});
    let out = json!({"metadata": {"name": "x", "labels": labels}, "addressType": "IPv4", "ports": [{"port": 8080}],
        "endpoints": [{"addresses": ["192.0.2.1"]}]});
    let got = snapshot(vec![service("web", "10.96.0.1", &json!({})), object(Kind::EndpointSlice, out)]);
    assert!(port(&got, "web", "").v4.eligible.is_empty());
}

#[test]
fn ports_are_told_apart_by_name_and_protocol() {
    // S8, F7, F8: 53/TCP and 53/UDP have different backends, and the number comes from the slice.
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
        {"name": "sctp", "port": 53, "protocol": "SCTP"}]);
    let of = |name: &str, ip: &str, port: serde_json::Value| {
        let labels = json!({"kubernetes.io/service-name": "dns"});
        let value = json!({"metadata": {"name": name, "labels": labels}, "addressType": "IPv4", "ports": [port],
            "endpoints": [{"addresses": [ip]}]});
        object(Kind::EndpointSlice, value)
    };
    let got = snapshot(vec![
        service("dns", "10.96.0.10", &json!({"ports": ports})),
        of("a", "192.0.2.1", json!({"name": "dns", "port": 5353, "protocol": "UDP"})),
        of("b", "192.0.2.2", json!({"name": "dns-tcp", "port": 5354})),
        of("c", "192.0.2.3", json!({"name": "dns-tcp", "port": 100})),
        of("d", "192.0.2.4", json!({"name": "dns-tcp", "port": 5354, "protocol": "UDP"})),
        of("e", "192.0.2.5", json!({"name": "dns-tcp", "port": null})),
        of("f", "192.0.2.6", json!({"name": "dns-tcp", "port": 0})),
        of("g", "192.0.2.7", json!({"name": "other", "port": 1})),
    ]);
    assert_eq!(
        frontends(&got),
        ["10.96.0.10:53/TCP default/dns:dns-tcp/TCP", "10.96.0.10:53/UDP default/dns:dns/UDP"]
    );
    assert_eq!(
        eligible(&port(&got, "dns", "dns-tcp").v4),
        ["external 192.0.2.2:5354", "external 192.0.2.3:100"]
    );
    let udp = &got.ports[&PortId { service: id("dns"), name: "dns".into(), protocol: Protocol::Udp }];
    assert_eq!((eligible(&udp.v4), udp.mode), (vec!["external 192.0.2.1:5353".to_owned()], Mode::Udp));
    assert!(got.warnings.iter().any(|w| w.contains("SCTP")), "{:?}", got.warnings);
}

#[test]
fn two_ports_with_one_name_or_number_are_one_too_many() {
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}, {"name": "a", "port": 81}]);
    let got = snapshot(vec![service("web", "10.96.0.1", &json!({"ports": ports}))]);
    assert_eq!(frontends(&got), ["10.96.0.1:80/TCP default/web:a/TCP"]);
    assert_eq!((got.ports.len(), got.warnings.len()), (1, 2));
}

#[test]
fn families_are_never_mixed() {
    // F12, F14, E5
    let of = |name: &str, kind: &str, ips: &[&str]| {
        let labels = json!({"kubernetes.io/service-name": "web"});
        let value = json!({"metadata": {"name": name, "labels": labels}, "addressType": kind,
            "ports": [{"port": 8080}], "endpoints": endpoints(ips)});
        object(Kind::EndpointSlice, value)
    };
    let both = json!({"clusterIPs": ["10.96.0.1", "fd00::1"]});
    let got = snapshot(vec![
        service("web", "10.96.0.1", &both),
        of("four", "IPv4", &["192.0.2.1", "2001:db8::9", "nonsense"]),
        of("six", "IPv6", &["2001:db8::1"]),
        of("names", "FQDN", &["backend.example"]),
    ]);
    let web = port(&got, "web", "");
    assert_eq!(eligible(&web.v4), ["external 192.0.2.1:8080"]);
    assert_eq!(eligible(&web.v6), ["external [2001:db8::1]:8080"]);
    assert_eq!(web.v4.excluded.len(), 1, "the one of the wrong family");
    assert!(web.is_served(addr("[fd00::1]:80")) && web.is_served(addr("10.96.0.1:80")));
    assert_eq!(got.frontends.len(), 2);
    assert!(got.warnings.iter().any(|w| w.contains("FQDN")), "{:?}", got.warnings);
    assert!(
        got.warnings.iter().any(|w| w.contains("\"nonsense\" is not an IP address")),
        "{:?}",
        got.warnings
    );

    let got = snapshot(vec![service("web", "10.96.0.1", &json!({})), of("six", "IPv6", &["2001:db8::1"])]);
    let web = port(&got, "web", "");
    assert!(web.v4.eligible.is_empty() && web.v6.eligible.is_empty());
}

#[test]
fn endpoints_objects_are_used_only_without_slices() {
    let old = json!({"metadata": {"name": "web"}, "subsets": [{"ports": [{"port": 8080}],
        "addresses": [{"ip": "192.0.2.7"}], "notReadyAddresses": [{"ip": "192.0.2.8"}]}, {"ports": null}]});
    let old = || object(Kind::Endpoints, old.clone());
    let mut store = store(vec![service("web", "10.96.0.1", &json!({})), old()]);
    let got = store.snapshot();
    assert_eq!(eligible(&port(&got, "web", "").v4), ["external 192.0.2.7:8080"]);
    assert_eq!(excluded(&port(&got, "web", "").v4), ["192.0.2.8:8080: not ready"]);
    store.upsert(slice("web-x", "web", &endpoints(&["192.0.2.1"])));
    assert_eq!(eligible(&port(&store.snapshot(), "web", "").v4), ["external 192.0.2.1:8080"]);
    // A slice without endpoints still speaks for the Service (E17).
    store.upsert(slice("web-x", "web", &json!([])));
    assert!(port(&store.snapshot(), "web", "").v4.eligible.is_empty());
    store.delete(&key(Kind::EndpointSlice, "web-x"));
    assert_eq!(eligible(&port(&store.snapshot(), "web", "").v4), ["external 192.0.2.7:8080"]);
    store.delete(&key(Kind::Endpoints, "web"));
    assert!(port(&store.snapshot(), "web", "").v4.eligible.is_empty());
}

#[test]
fn pods_stand_in_for_missing_slices() {
    let labels = json!({"app": "web", "tier": "x"});
    let named = |port: u16| json!([{"name": "http", "containerPort": port}]);
    let mut ending = pod("ending", "edge-a", "10.1.0.3", "192.168.77.1", &labels, &named(80));
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut sick = pod("sick", "edge-a", "10.1.0.4", "192.168.77.1", &labels, &named(80));
    sick["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    let mut done = pod("done", "edge-a", "10.1.0.5", "192.168.77.1", &labels, &named(80));
    done["status"]["phase"] = json!("Succeeded");
    let mut pending = pod("pending", "edge-a", "10.1.0.6", "192.168.77.1", &labels, &named(80));
    pending["status"]["phase"] = json!("Pending");
    let mut bare = pod("bare", "edge-a", "", "", &labels, &named(80));
    bare["status"]["podIP"] = json!(null);
    let objects = |spec: serde_json::Value| {
        let mut all = vec![service("web", "10.96.0.1", &spec)];
        let pods = [
            pod("one", "edge-a", "10.1.0.1", "192.168.77.1", &labels, &named(100)),
            pod("two", "edge-a", "10.1.0.2", "192.168.77.1", &labels, &named(101)),
            pod("nameless", "edge-a", "10.1.0.7", "192.168.77.1", &labels, &json!([])),
            pod("stranger", "edge-a", "10.1.0.8", "192.168.77.1", &json!({"app": "web"}), &named(80)),
            ending.clone(),
            sick.clone(),
            done.clone(),
            pending.clone(),
            bare.clone(),
        ];
        all.extend(pods.into_iter().map(|p| object(Kind::Pod, p)));
        all
    };
    let ports = json!([{"port": 80, "targetPort": "http"}]);
    let spec = json!({"selector": {"app": "web", "tier": "x"}, "ports": ports});
    let got = snapshot(objects(spec.clone()));
    let web = port(&got, "web", "");
    assert_eq!(eligible(&web.v4), ["pod 10.1.0.1:100", "pod 10.1.0.2:101"]);
    assert_eq!(
        excluded(&web.v4),
        [
            "10.1.0.3:80: terminating, while others are ready",
            "10.1.0.4:80: not ready",
            "10.1.0.6:80: not ready",
            "10.1.0.7:0: invalid: pod default/nameless has no container port named \"http\" for TCP",
        ]
        .map(str::to_owned)
        .into_iter()
        .collect::<Vec<_>>()
        .as_slice()
    );
    assert!(got.warnings.iter().any(|w| w.contains("default/bare is Running, but has no status.podIP")));

    // S12: publishNotReadyAddresses makes all of them ready, by the controller's rule.
    let mut publish = spec;
    publish["publishNotReadyAddresses"] = json!(true);
    let got = snapshot(objects(publish));
    assert_eq!(port(&got, "web", "").v4.eligible.len(), 5);
}
