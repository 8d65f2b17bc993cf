use serde_json::json;

use super::*;

fn json(kind: Kind, value: serde_json::Value) -> Object {
    decode(kind, value).unwrap()
}

fn yaml(kind: Kind, text: &str) -> Object {
    serde_saphyr::with_deserializer_from_str(text, |from| decode(kind, from)).unwrap()
}

fn service(value: serde_json::Value) -> Service {
    match json(Kind::Service, value) {
        Object::Service(service) => *service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kinds_are_told_by_group_version_and_kind() {
    let cases = [
        ("v1", "Service", Some(Kind::Service)),
        ("v1", "Endpoints", Some(Kind::Endpoints)),
        ("v1", "Pod", Some(Kind::Pod)),
        ("v1", "Node", Some(Kind::Node)),
        ("v1", "Namespace", Some(Kind::Namespace)),
        ("discovery.k8s.io/v1", "EndpointSlice", Some(Kind::EndpointSlice)),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", None),
        ("networking.istio.io/v1alpha3", "DestinationRule", Some(Kind::DestinationRule)),
        ("networking.istio.io/v1", "DestinationRule", Some(Kind::DestinationRule)),
        ("networking.k8s.io/v1", "ServiceCIDR", Some(Kind::ServiceCidr)),
        ("serving.knative.dev/v1", "Service", None),
        ("v1", "Secret", None),
        ("", "Service", None),
    ];
    for (version, kind, want) in cases {
        assert_eq!(Kind::of(version, kind), want, "{version} {kind}");
    }
}

#[test]
fn defaults_of_the_api_server_are_applied() {
    let got = service(
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
    );
    assert_eq!((&*got.namespace, &*got.name), ("default", "s"));
    assert_eq!(*got.cluster_ips, ["10.96.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(got.affinity_seconds, None);
    assert!(!got.local_only && !got.headless && !got.external_name && !got.publish_not_ready);
    let port = &got.ports[0];
    assert_eq!((port.protocol, &port.target, &*port.name), (Protocol::Tcp, &PortRef::Number(80), ""));

    let got = service(json!({"metadata": {"name": "s"}, "spec": {"sessionAffinity": "ClientIP"}}));
    assert_eq!(got.affinity_seconds, Some(10_800));
    let timeout = json!({"metadata": {"name": "s"}, "spec": {"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "internalTrafficPolicy": "Local"}});
    let got = service(timeout);
    assert_eq!((got.affinity_seconds, got.local_only), (Some(60), true));
}

#[test]
fn conditions_default_as_the_api_says() {
    // (conditions, ready, serving, terminating)
    let cases = [
        (json!(null), true, true, false),
        (json!({}), true, true, false),
        (json!({"ready": null, "serving": null, "terminating": null}), true, true, false),
        (json!({"ready": false}), false, false, false),
        (json!({"ready": false, "serving": true, "terminating": true}), false, true, true),
        (json!({"ready": true, "serving": false}), true, false, false),
    ];
    for (conditions, ready, serving, terminating) in cases {
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.1.0.1"], "conditions": conditions.clone()}]});
        let Object::EndpointSlice(slice) = json(Kind::EndpointSlice, slice) else { panic!() };
        let got = &slice.endpoints[0];
        assert_eq!((got.ready, got.serving, got.terminating), (ready, serving, terminating), "{conditions}");
    }
}

#[test]
fn nulls_and_unknown_fields_are_tolerated_everywhere() {
    let nothing = json!({"metadata": {"name": "x", "labels": null, "annotations": null, "namespace": null,
        "managedFields": [{"a": 1}]}, "spec": null, "status": null, "ports": null, "endpoints": null,
        "subsets": null, "addressType": "IPv4", "surprise": {"deep": [1, {"x": null}]}});
    for kind in [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Endpoints,
        Kind::Pod,
        Kind::Node,
        Kind::Namespace,
        Kind::DestinationRule,
        Kind::ServiceCidr,
    ] {
        let key = json(kind, nothing.clone()).key();
        assert_eq!((key.kind, &*key.name), (kind, "x"));
    }
    let got = service(
        json!({"metadata": {"name": "x"}, "spec": {"ports": null, "selector": null, "clusterIP": null,
        "clusterIPs": null, "sessionAffinityConfig": null, "type": null}}),
    );
    assert!(got.ports.is_empty() && got.cluster_ips.is_empty());
}

#[test]
fn yaml_and_json_give_the_same_objects() {
    let text = "
metadata: {name: web, namespace: shop, labels: {on: yes, n: 1}}
spec:
  clusterIP: 010.096.0.7
  ports:
  - {name: http-0, port: 80, targetPort: web, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP, targetPort: '5353'}
  selector: {app: web, tier: 1}
";
    let value = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.7", "ports": [
        {"name": "http-0", "port": 80, "targetPort": "web", "appProtocol": "http"},
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}],
        "selector": {"app": "web", "tier": "1"}}});
    assert_eq!(yaml(Kind::Service, text), json(Kind::Service, value));
}

#[test]
fn cluster_ips_are_read_with_their_special_words() {
    // (clusterIP, clusterIPs, want, headless)
    let cases = [
        (json!("None"), json!(["None"]), vec![], true),
        (json!("None"), json!(null), vec![], true),
        (json!(""), json!([]), vec![], false),
        (json!("10.96.0.1"), json!(["10.96.0.1", "fd00::1"]), vec!["10.96.0.1", "fd00::1"], false),
        (json!(null), json!(["fd00::1"]), vec!["fd00::1"], false),
        (json!("010.0.0.1"), json!(["10.0.0.1", "10.0.0.1"]), vec!["10.0.0.1"], false),
        (json!("::ffff:10.0.0.1"), json!(null), vec!["10.0.0.1"], false),
    ];
    for (one, all, want, headless) in cases {
        let got = service(json!({"metadata": {"name": "s"}, "spec": {"clusterIP": one, "clusterIPs": all}}));
        let texts: Vec<String> = got.cluster_ips.iter().map(ToString::to_string).collect();
        assert_eq!((texts, got.headless), (want.into_iter().map(str::to_owned).collect(), headless));
    }
}

#[test]
fn wrong_values_are_refused_with_what_was_expected() {
    let named = |spec: serde_json::Value| json!({"metadata": {"name": "s"}, "spec": spec});
    let cases = [
        (Kind::Service, named(json!({"ports": [{"port": 0}]})), "from 1 to 65535"),
        (Kind::Service, named(json!({"ports": [{"port": 65536}]})), "from 1 to 65535"),
        (Kind::Service, named(json!({"ports": [{"port": -1}]})), "from 1 to 65535"),
        (Kind::Service, named(json!({"ports": [{}]})), "missing field `port`"),
        (Kind::Service, named(json!({"ports": [{"port": 80, "protocol": "tcp"}]})), "TCP"),
        (Kind::Service, named(json!({"ports": [{"port": 80, "targetPort": 70000}]})), "container port"),
        (Kind::Service, named(json!({"ports": [{"port": 80, "targetPort": "70000"}]})), "container port"),
        (Kind::Service, named(json!({"clusterIP": "10.0.0.256"})), "an IP address or `None`"),
        (Kind::Service, named(json!({"clusterIP": "127.0.0.1"})), "cannot be the address of a Service"),
        (Kind::Service, named(json!({"clusterIP": "0.0.0.0"})), "cannot be the address of a Service"),
        (Kind::Service, named(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]})), "differs"),
        (Kind::Service, json!({"spec": {}}), "missing field `metadata`"),
        (Kind::Service, json!({"metadata": {"namespace": "x"}}), "missing field `name`"),
        (Kind::Service, json!({"metadata": {"name": ""}}), "object name"),
        (Kind::Service, json!({"metadata": {"name": "a\nb"}}), "object name"),
        (Kind::Service, json!({"metadata": {"name": "../x"}}), "object name"),
        (Kind::Service, json!({"metadata": {"name": "x".repeat(254)}}), "object name"),
        (Kind::Pod, named(json!({"containers": [{"ports": [{"containerPort": 0}]}]})), "from 1 to 65535"),
        (
            Kind::Pod,
            named(json!({"containers": [{"ports": [{"containerPort": 80, "hostPort": 70000}]}]})),
            "65535",
        ),
        (Kind::EndpointSlice, json!({"metadata": {"name": "s"}}), "missing field `addressType`"),
        (
            Kind::EndpointSlice,
            json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 65536}]}),
            "65535",
        ),
        (Kind::ServiceCidr, named(json!({"cidrs": ["10.0.0.0/33"]})), "is not a CIDR"),
        (Kind::ServiceCidr, named(json!({"cidrs": ["0.0.0.0/0"]})), "too wide"),
        (
            Kind::DestinationRule,
            named(json!({"trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "5"}}}})),
            "a duration",
        ),
    ];
    for (kind, value, want) in cases {
        let error = decode(kind, value.clone()).unwrap_err().to_string();
        assert!(error.to_lowercase().contains(&want.to_lowercase()), "{value}: {error}");
    }
}

#[test]
fn services_opt_out_by_any_of_four_labels() {
    let cases = [
        (json!({"service.kubernetes.io/service-proxy-name": ""}), Some(OptOut::ProxyName("".into()))),
        (
            json!({"service.kubernetes.io/service-proxy-name": "other"}),
            Some(OptOut::ProxyName("other".into())),
        ),
        (
            json!({"service.kubernetes.io/service-proxy-name": "x", "noproxy": "edgemesh"}),
            Some(OptOut::NoProxy),
        ),
        (json!({"service.kubernetes.io/headless": ""}), Some(OptOut::Headless)),
        (json!({"service.edgemesh.kubeedge.io/service-proxy-name": "x"}), Some(OptOut::EdgeMeshProxyName)),
        (json!({"noproxy": "edgemesh"}), Some(OptOut::NoProxy)),
        (json!({"noproxy": "other"}), None),
        (json!({"app": "x"}), None),
    ];
    for (labels, want) in cases {
        let got = service(json!({"metadata": {"name": "s", "labels": labels.clone()}}));
        assert_eq!(got.opt_out, want, "{labels}");
    }
}

#[test]
fn slices_keep_the_first_address_and_tolerate_bad_ones() {
    let slice = json!({"metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": null, "port": 80}, {"name": "p", "port": null}, {"port": 0}],
        "endpoints": [
            {"addresses": ["10.1.0.1", "10.1.0.2"], "nodeName": "edge-b", "zone": "z",
             "targetRef": {"kind": "Pod", "name": "p1", "namespace": "default"},
             "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "edge-b"}]}},
            {"addresses": ["not-an-ip"], "targetRef": {"kind": "Node", "name": "n"}},
            {"addresses": ["10.1.0.3"], "targetRef": {"kind": "Pod", "name": "p", "namespace": "other"}},
            {"addresses": []}, {"addresses": null}]});
    let Object::EndpointSlice(got) = json(Kind::EndpointSlice, slice) else { panic!() };
    assert_eq!(got.service.as_deref(), Some("web"));
    assert_eq!(
        got.ports.iter().map(|p| (&*p.name, p.port)).collect::<Vec<_>>(),
        [("", Some(80)), ("p", None), ("", None)]
    );
    assert_eq!(got.endpoints.len(), 3);
    assert_eq!(got.endpoints[0].address, Address::from("10.1.0.1"));
    assert_eq!(got.endpoints[0].pod.as_deref(), Some("p1"));
    assert_eq!(&*got.endpoints[0].hints.as_ref().unwrap().nodes[0], "edge-b");
    assert_eq!(got.endpoints[1].address, Address::Other("not-an-ip".into()));
    assert_eq!((got.endpoints[1].pod.as_ref(), got.endpoints[2].pod.as_ref()), (None, None));
}

#[test]
fn pods_keep_the_ports_that_matter() {
    let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z", "labels": {"b": "2", "a": "1"}},
        "spec": {"nodeName": "edge-b", "hostNetwork": true,
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1, "hostPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 3, "hostPort": 33}]}],
            "containers": [
                {"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 81, "name": "web"}]},
                {"name": "b", "ports": [{"containerPort": 2, "hostPort": 22, "hostIP": "0.0.0.0", "protocol": "UDP"},
                    {"containerPort": 4, "hostPort": 44, "hostIP": "192.168.1.1"}]}, {"name": "c", "ports": null}]},
        "status": {"phase": "Running", "podIP": "10.1.0.1", "hostIP": "192.168.1.1", "hostIPs": [{"ip": "192.168.1.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}]}});
    let Object::Pod(got) = json(Kind::Pod, pod) else { panic!() };
    let ports: Vec<_> = got.ports.iter().map(|p| (&*p.name, p.container_port, p.host_port)).collect();
    assert_eq!(ports, [("web", 81, None), ("", 2, Some(22)), ("", 4, Some(44)), ("", 3, Some(33))]);
    assert_eq!(got.ports[1].host_ip, None, "the unspecified address is all addresses");
    assert_eq!(got.ports[2].host_ip, Some(Address::from("192.168.1.1")));
    assert_eq!((got.phase, got.ready, got.terminating, got.host_network), (Phase::Running, true, true, true));
    assert_eq!((got.ips.len(), got.host_ips.len()), (1, 2));
    assert_eq!(&*got.labels[0].0, "a");
}

#[test]
fn nodes_have_zone_addresses_and_an_override() {
    let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"},
        "annotations": {"edgesplice.io/host-ip": "203.0.113.7, fd00::7,bad"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"},
            {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "Hostname", "address": "n"}]}});
    let Object::Node(got) = json(Kind::Node, node) else { panic!() };
    assert_eq!(got.zone.as_deref(), Some("z"));
    assert_eq!(got.host_ip_override.len(), 3);
    assert_eq!(got.host_ip_override[2], Address::Other("bad".into()));
    assert_eq!((got.addresses.len(), got.pod_cidrs.len()), (1, 2));
    let old = json!({"metadata": {"name": "n", "labels": {"failure-domain.beta.kubernetes.io/zone": "old"}},
        "status": {"addresses": [{"type": "ExternalIP", "address": "198.51.100.1"}]}});
    let Object::Node(got) = json(Kind::Node, old) else { panic!() };
    assert_eq!((got.zone.as_deref(), got.addresses.len()), (Some("old"), 1));
}

#[test]
fn destination_rules_keep_the_fields_of_the_contract() {
    let rule = json!({"metadata": {"name": "r"}, "spec": {"host": "r", "trafficPolicy": {
        "loadBalancer": {"simple": "RANDOM", "consistentHash": {"httpHeaderName": "X-User", "useSourceIp": true,
            "httpCookie": {"name": "c", "path": "/", "ttl": "0s"}, "httpQueryParameterName": "q"}},
        "outlierDetection": {"consecutive5xxErrors": 7, "consecutiveGatewayErrors": 3, "interval": "1s",
            "baseEjectionTime": "1.5s", "maxEjectionPercent": 250},
        "connectionPool": {"tcp": {"connectTimeout": "250ms", "maxConnections": 1},
            "http": {"x": 1, "http2MaxRequests": 9, "maxRetries": 0, "idleTimeout": "4s", "h2UpgradePolicy": "UPGRADE"}}}}});
    let Object::DestinationRule(got) = json(Kind::DestinationRule, rule) else { panic!() };
    assert_eq!(got.simple.as_deref(), Some("RANDOM"));
    assert_eq!(got.hash_header.as_deref(), Some("X-User"));
    assert!(got.hash_source_ip && got.hash_unsupported);
    let cookie = HashCookie { name: "c".into(), path: "/".into(), ttl: Some(std::time::Duration::ZERO) };
    assert_eq!(got.hash_cookie, Some(cookie));
    assert_eq!((got.consecutive_errors, got.max_ejection_percent), (Some(3), Some(100)));
    assert_eq!(got.base_ejection_time, Some(std::time::Duration::from_millis(1500)));
    assert_eq!(got.connect_timeout, Some(std::time::Duration::from_millis(250)));
    assert_eq!(got.max_connections, Some(1));
    let pool = HttpPool {
        max_requests: Some(9),
        idle_timeout: Some(std::time::Duration::from_secs(4)),
        ..HttpPool::default()
    };
    assert_eq!(got.http_pool.as_deref(), Some(&pool), "a 0 sets nothing");
    let off = json!({"metadata": {"name": "r"}, "spec": {"trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 0}}}});
    let Object::DestinationRule(got) = json(Kind::DestinationRule, off) else { panic!() };
    assert_eq!(got.consecutive_errors, Some(0));
}

#[test]
fn what_is_offered_outside_of_the_cluster_is_read() {
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let whole = |kind: &str, ranges: serde_json::Value| {
        json!({"metadata": {"name": "s", "annotations":
                {"service.beta.kubernetes.io/load-balancer-source-ranges": " 10.1.0.0/16 , ,10.2.0.0/16"}},
            "spec": {"type": kind, "ports": [{"port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 0}],
                "externalIPs": ["203.0.113.010", "junk"], "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 31000, "loadBalancerSourceRanges": ranges},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"},
                {"ip": "203.0.113.3", "ipMode": "VIP"}, {"hostname": "lb.example"}]}}})
    };
    let got = service(whole("LoadBalancer", json!([" 192.0.2.7/24"])));
    assert_eq!((got.ports[0].node_port, got.ports[1].node_port), (Some(30080), None));
    let exposure = got.exposure.unwrap();
    assert_eq!(*exposure.external_ips, [ip("203.0.113.10")]);
    assert_eq!(*exposure.load_balancer_ips, [ip("203.0.113.1"), ip("203.0.113.3")]);
    assert_eq!(*exposure.source_ranges, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!((exposure.local_only, exposure.health_check_port), (true, Some(31000)));
    // The annotation where the field is not; neither means anything for other types.
    let got = service(whole("LoadBalancer", json!(null))).exposure.unwrap();
    assert_eq!(got.source_ranges.len(), 2);
    let got = service(whole("NodePort", json!(["192.0.2.0/24"]))).exposure.unwrap();
    assert_eq!((got.load_balancer_ips.len(), got.source_ranges.len(), got.health_check_port), (0, 0, None));
    let bad = decode(Kind::Service, whole("LoadBalancer", json!(["192.0.2.0/33"]))).unwrap_err();
    assert!(bad.to_string().contains("192.0.2.0/33"), "{bad}");
    assert_eq!(service(json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).exposure, None);
}
