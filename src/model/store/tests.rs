//! Which Services are served, how objects are joined, and what a change costs. Rows refer to the table of Service
//! semantics in `docs`.

use serde_json::json;

use super::super::testing::*;
use super::super::{Protocol, diff::diff};
use super::*;

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
    assert_eq!((web.mode, web.number), (super::super::Mode::Http, 12345));
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
    let udp =
        &got.ports[&super::super::PortId { service: id("dns"), name: "dns".into(), protocol: Protocol::Udp }];
    assert_eq!(
        (eligible(&udp.v4), udp.mode),
        (vec!["external 192.0.2.1:5353".to_owned()], super::super::Mode::Udp)
    );
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

#[test]
fn derived_backends_follow_their_pods() {
    let make = |ip: &str, app: &str| {
        object(Kind::Pod, pod("p", "edge-a", ip, "192.168.77.1", &json!({"app": app}), &json!([])))
    };
    let mut store = store(vec![service("web", "10.96.0.1", &json!({"selector": {"app": "web"}}))]);
    let backends = |store: &mut Store| eligible(&port(&store.snapshot(), "web", "").v4);
    assert!(backends(&mut store).is_empty());
    store.upsert(make("10.1.0.1", "web"));
    assert_eq!(backends(&mut store), ["pod 10.1.0.1:80"]);
    store.upsert(make("10.1.0.2", "web"));
    assert_eq!(backends(&mut store), ["pod 10.1.0.2:80"]);
    store.upsert(make("10.1.0.2", "other"));
    assert!(backends(&mut store).is_empty());
    store.upsert(make("10.1.0.2", "web"));
    store.delete(&key(Kind::Pod, "p"));
    assert!(backends(&mut store).is_empty());
    // A selector-less Service has no backends of its own accord.
    store.upsert(make("10.1.0.2", "web"));
    store.upsert(service("web", "10.96.0.1", &json!({})));
    assert!(backends(&mut store).is_empty());
}

#[test]
fn a_recreated_service_leaves_nothing_at_its_old_address() {
    // S10
    let mut store = store(pair("web", "10.96.0.1", "192.0.2.1"));
    store.snapshot();
    store.upsert(service("web", "10.96.0.2", &json!({})));
    assert_eq!(frontends(&store.snapshot()), ["10.96.0.2:80/TCP default/web/TCP"]);
    store.delete(&key(Kind::Service, "web"));
    let got = store.snapshot();
    assert!(got.frontends.is_empty() && got.ports.is_empty() && got.services.is_empty());
}

#[test]
fn ports_that_change_leave_the_others_as_they_are() {
    // S9
    let mut store = store(vec![service(
        "web",
        "10.96.0.1",
        &json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}),
    )]);
    let before = store.snapshot();
    store.upsert(service(
        "web",
        "10.96.0.1",
        &json!({"ports": [{"name": "a", "port": 80}, {"name": "c", "port": 82}]}),
    ));
    let after = store.snapshot();
    assert!(Arc::ptr_eq(port(&before, "web", "a"), port(&after, "web", "a")));
    assert_eq!(
        frontends(&after),
        ["10.96.0.1:80/TCP default/web:a/TCP", "10.96.0.1:82/TCP default/web:c/TCP"]
    );
}

#[test]
fn an_address_claimed_twice_belongs_to_the_newest() {
    // S11: (created, resourceVersion) of the Services a and b, and who has the address.
    let cases = [
        (("2026-01-01T00:00:00Z", "5"), ("2026-01-02T00:00:00Z", "4"), "b"),
        (("2026-01-02T00:00:00Z", "4"), ("2026-01-01T00:00:00Z", "5"), "a"),
        (("2026-01-01T00:00:00Z", "5"), ("2026-01-01T00:00:00Z", "10"), "b"),
        (("2026-01-01T00:00:00Z", "5"), ("2026-01-01T00:00:00Z", "5"), "a"),
    ];
    for (a, b, owner) in cases {
        let make = |name: &str, (created, version): (&str, &str), number: u16| {
            object(
                Kind::Service,
                json!({"metadata": {"name": name, "creationTimestamp": created,
                "resourceVersion": version}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": number}]}}),
            )
        };
        for turn in [false, true] {
            let mut objects = vec![make("a", a, 80), make("b", b, 81)];
            if turn {
                objects.reverse();
            }
            let mut store = store(objects);
            let got = store.snapshot();
            let number = if owner == "a" { 80 } else { 81 };
            assert_eq!(frontends(&got), [format!("10.96.0.1:{number}/TCP default/{owner}/TCP")]);
            let warning = got.warnings.join(" ");
            assert!(warning.contains("default/a") && warning.contains("default/b"), "{warning}");
            // The winner goes: the other one comes into its own, and the warning goes too.
            store.delete(&key(Kind::Service, owner));
            let got = store.snapshot();
            assert_eq!((got.frontends.len(), got.warnings.len()), (1, 0));
        }
    }
}

#[test]
fn what_changes_nothing_costs_nothing() {
    let objects = || [pair("web", "10.96.0.1", "192.0.2.1"), pair("api", "10.96.0.2", "192.0.2.2")].concat();
    let mut store = store(objects());
    let before = store.snapshot();
    assert!(Arc::ptr_eq(&before, &store.snapshot()));
    store.replace(objects());
    assert!(Arc::ptr_eq(&before, &store.snapshot()));
    // Equal ports keep their allocation even when they were built anew.
    store.set_local(Local { own_addresses: vec!["192.168.77.1".parse().unwrap()], ..Local::new("edge-a") });
    let after = store.snapshot();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(diff(&before, &after).is_empty());
    assert!(Arc::ptr_eq(port(&before, "web", ""), port(&after, "web", "")));
}

#[test]
fn a_full_state_sweeps_what_is_not_in_it() {
    let cidr = object(
        Kind::ServiceCidr,
        json!({"metadata": {"name": "c"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00::/108"]}}),
    );
    let orphan = object(Kind::EndpointSlice, json!({"metadata": {"name": "orphan"}, "addressType": "IPv4"}));
    let rule = object(Kind::DestinationRule, json!({"metadata": {"name": "web"}}));
    let pod = object(Kind::Pod, pod("p", "edge-a", "10.1.0.1", "192.168.77.1", &json!({}), &json!([])));
    let all = [
        pair("web", "10.96.0.1", "192.0.2.1"),
        pair("api", "10.96.0.2", "192.0.2.2"),
        vec![cidr, orphan, rule, pod, node("edge-b", "192.168.77.2", "z")],
    ]
    .concat();
    let mut store = store(all);
    let got = store.snapshot();
    assert_eq!((got.service_cidrs.len(), got.node_ips.len(), got.warnings.len()), (2, 1, 1));
    store.replace(pair("api", "10.96.0.2", "192.0.2.2"));
    let got = store.snapshot();
    assert_eq!((got.service_cidrs.len(), got.node_ips.len(), got.warnings.len()), (0, 0, 0));
    assert_eq!((got.services.len(), got.ports.len(), got.frontends.len()), (1, 1, 1));
    store.replace(Vec::new());
    let got = store.snapshot();
    assert!(got.services.is_empty() && got.ports.is_empty() && got.frontends.is_empty());
    assert_eq!(
        (store.keys().len(), store.ids.len(), store.claims.len()),
        (0, 0, 0),
        "nothing is left behind"
    );
    assert_eq!(store.free.len(), store.slots.len());
}

#[test]
fn settings_come_from_annotation_rule_and_spec() {
    use super::super::Policy;
    use std::time::Duration;
    let policy = json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": {"consecutive5xxErrors": 3,
        "baseEjectionTime": "10s", "maxEjectionPercent": 50}, "connectionPool": {"tcp": {"connectTimeout": "300ms", "maxConnections": 7}}});
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
