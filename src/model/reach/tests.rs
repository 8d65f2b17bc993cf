//! How each kind of endpoint is dialled.

use serde_json::{Value, json};

use crate::config::PodNetwork;
use crate::source::slim::{Kind, Object};

use super::super::testing::*;
use super::super::{Local, Store};

/// One endpoint of Service `web` and the objects around it, as seen from `edge-a`.
struct Case {
    name: &'static str,
    endpoint: Value,
    pod: Option<Value>,
    nodes: Vec<Object>,
    local: Local,
    /// `reach address`, or a part of the reason why not.
    want: Result<&'static str, &'static str>,
}

fn remote(ports: &Value) -> Value {
    pod("p", "edge-b", "10.244.2.10", "192.168.77.2", &json!({}), ports)
}

fn endpoint(pod: Option<&str>, node: Option<&str>) -> Value {
    let target = pod.map(|name| json!({"kind": "Pod", "name": name}));
    json!({"addresses": ["10.244.2.10"], "targetRef": target, "nodeName": node})
}

fn published() -> Value {
    json!([{"containerPort": 8080, "hostPort": 18080}])
}

fn base(name: &'static str, want: Result<&'static str, &'static str>) -> Case {
    Case {
        name,
        endpoint: endpoint(Some("p"), Some("edge-b")),
        pod: Some(remote(&published())),
        nodes: vec![node("edge-b", "192.168.77.2", "z")],
        local: Local::new("edge-a"),
        want,
    }
}

fn with(case: Case, change: impl FnOnce(&mut Case)) -> Case {
    let mut case = case;
    change(&mut case);
    case
}

fn override_ip(text: &str) -> Vec<Object> {
    let value = json!({"metadata": {"name": "edge-b", "annotations": {"edgesplice.io/host-ip": text}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.2"}]}});
    vec![object(Kind::Node, value)]
}

fn routed(nets: &[&str]) -> Local {
    Local { routed: nets.iter().map(|n| n.parse().unwrap()).collect(), ..Local::new("edge-a") }
}

#[allow(clippy::too_many_lines)] // one table
fn cases() -> Vec<Case> {
    let ports = |value: Value| move |c: &mut Case| c.pod = Some(remote(&value));
    let no_port = || remote(&json!([{"containerPort": 8080}]));
    vec![
        // Host ports.
        base("host port", Ok("host-port 192.168.77.2:18080")),
        with(
            base("second container port", Ok("host-port 192.168.77.2:28080")),
            ports(json!([
            {"containerPort": 9090, "hostPort": 19090}, {"containerPort": 8080, "hostPort": 28080}])),
        ),
        with(base("sidecar", Ok("host-port 192.168.77.2:38080")), |c| {
            let mut p = remote(&json!([]));
            p["spec"]["initContainers"] =
                json!([{"restartPolicy": "Always", "ports": [{"containerPort": 8080, "hostPort": 38080}]}]);
            c.pod = Some(p);
        }),
        with(
            base("host port of another protocol", Err("publishes no hostPort for TCP 8080")),
            ports(json!([
            {"containerPort": 8080, "hostPort": 18080, "protocol": "UDP"}])),
        ),
        with(
            base("own host IP", Ok("host-port 198.51.100.2:18080")),
            ports(json!([
            {"containerPort": 8080, "hostPort": 18080, "hostIP": "198.51.100.2"}])),
        ),
        with(
            base("unspecified host IP", Ok("host-port 192.168.77.2:18080")),
            ports(json!([
            {"containerPort": 8080, "hostPort": 18080, "hostIP": "0.0.0.0"}])),
        ),
        with(
            base("loopback host IP", Err("is bound to 127.0.0.1 only")),
            ports(json!([
            {"containerPort": 8080, "hostPort": 18080, "hostIP": "127.0.0.1"}])),
        ),
        with(
            base("loopback and another", Ok("host-port 192.168.77.2:28080")),
            ports(json!([
            {"containerPort": 8080, "hostPort": 18080, "hostIP": "127.0.0.1"},
            {"containerPort": 8080, "hostPort": 28080}])),
        ),
        with(
            base("host IP of the other family", Err("of the other family")),
            ports(json!([
            {"containerPort": 8080, "hostPort": 18080, "hostIP": "fd00::2"}])),
        ),
        with(base("annotation", Ok("host-port 203.0.113.9:18080")), |c| c.nodes = override_ip("203.0.113.9")),
        with(base("dual annotation", Ok("host-port 203.0.113.9:18080")), |c| {
            c.nodes = override_ip("fd00::9, 203.0.113.9");
        }),
        with(base("bad annotation", Ok("host-port 192.168.77.2:18080")), |c| c.nodes = override_ip("oops")),
        with(base("no status.hostIP, but a Node", Ok("host-port 192.168.77.2:18080")), |c| {
            c.pod.as_mut().unwrap()["status"]["hostIP"] = json!(null);
        }),
        with(
            base("no host address at all", Err("the address of its node for hostPort 18080 is not known")),
            |c| {
                c.pod.as_mut().unwrap()["status"]["hostIP"] = json!(null);
                c.nodes.clear();
            },
        ),
        with(base("host IPs of both families", Ok("host-port 192.168.77.9:18080")), |c| {
            c.pod.as_mut().unwrap()["status"]["hostIPs"] = json!([{"ip": "fd00::2"}, {"ip": "192.168.77.9"}]);
        }),
        with(base("host port before a route", Ok("host-port 192.168.77.2:18080")), |c| {
            c.local = routed(&["10.244.0.0/16"]);
        }),
        // Pods without a host port.
        with(
            base(
                "nothing",
                Err(
                    "pod default/p on node edge-b publishes no hostPort for TCP 8080 and its pod network is not routed from here",
                ),
            ),
            |c| c.pod = Some(no_port()),
        ),
        with(base("a route", Ok("pod 10.244.2.10:8080")), |c| {
            c.pod = Some(no_port());
            c.local = routed(&["10.244.2.0/24"]);
        }),
        with(base("the default route is no route", Err("not routed")), |c| {
            c.pod = Some(no_port());
            c.local = routed(&["0.0.0.0/0"]);
        }),
        with(base("declared routed", Ok("pod 10.244.2.10:8080")), |c| {
            c.pod = Some(no_port());
            c.local.pod_network = PodNetwork::Routed;
        }),
        with(base("declared not routed", Err("not routed")), |c| {
            c.pod = Some(no_port());
            c.local = Local { pod_network: PodNetwork::None, ..routed(&["10.244.2.0/24"]) };
        }),
        with(base("the range of our own pods", Err("not routed")), |c| {
            c.pod = Some(no_port());
            c.local = routed(&["10.244.2.0/24"]);
            let own = json!({"metadata": {"name": "edge-a"}, "spec": {"podCIDR": "10.244.2.0/24"}});
            c.nodes.push(object(Kind::Node, own));
        }),
        // This node.
        with(base("same node", Ok("pod 10.244.2.10:8080")), |c| c.local = Local::new("edge-b")),
        with(base("same node by the pod alone", Ok("pod 10.244.2.10:8080")), |c| {
            c.endpoint = endpoint(Some("p"), None);
            c.local = Local::new("edge-b");
        }),
        with(base("same node, pod not known", Ok("pod 10.244.2.10:8080")), |c| {
            c.pod = None;
            c.local = Local::new("edge-b");
        }),
        // hostNetwork.
        with(base("host network", Ok("host-network 10.244.2.10:8080")), |c| {
            c.pod.as_mut().unwrap()["spec"]["hostNetwork"] = json!(true);
        }),
        with(base("host network with annotation", Ok("host-network 203.0.113.9:8080")), |c| {
            c.pod.as_mut().unwrap()["spec"]["hostNetwork"] = json!(true);
            c.nodes = override_ip("203.0.113.9");
        }),
        with(base("host network, pod not known", Ok("host-network 10.244.2.10:8080")), |c| {
            c.pod = None;
            c.nodes = vec![node("edge-b", "10.244.2.10", "z")];
        }),
        // Who is behind the address.
        with(base("pod not known", Err("is not known here")), |c| c.pod = None),
        with(base("pod not known, but routed", Ok("pod 10.244.2.10:8080")), |c| {
            c.pod = None;
            c.local = routed(&["10.244.0.0/16"]);
        }),
        with(base("a pod of that name with another address", Err("is not known here")), |c| {
            c.pod.as_mut().unwrap()["status"]["podIP"] = json!("10.244.2.99");
        }),
        with(base("no reference, found by address", Ok("host-port 192.168.77.2:18080")), |c| {
            c.endpoint = endpoint(None, None);
        }),
        with(base("no reference, wrong node", Ok("external 10.244.2.10:8080")), |c| {
            c.endpoint = endpoint(None, Some("edge-c"));
        }),
        with(base("external", Ok("external 10.244.2.10:8080")), |c| {
            c.endpoint = endpoint(None, None);
            c.pod = None;
        }),
        // Addresses that no endpoint may have.
        with(base("loopback", Err("a loopback address")), |c| {
            c.endpoint = json!({"addresses": ["127.0.0.1"]});
        }),
        with(base("link-local", Err("a link-local address")), |c| {
            c.endpoint = json!({"addresses": ["169.254.96.16"]});
        }),
        with(base("multicast", Err("a multicast address")), |c| {
            c.endpoint = json!({"addresses": ["224.0.0.1"]});
        }),
        with(base("unspecified", Err("the unspecified address")), |c| {
            c.endpoint = json!({"addresses": ["0.0.0.0"]});
        }),
        with(base("broadcast", Err("the broadcast address")), |c| {
            c.endpoint = json!({"addresses": ["255.255.255.255"]});
        }),
        with(base("loopback in IPv6 form", Err("127.0.0.1 is a loopback address")), |c| {
            c.endpoint = json!({"addresses": ["::ffff:127.0.0.1"]});
        }),
        with(base("anywhere in 127.0.0.0/8", Err("a loopback address")), |c| {
            c.endpoint = json!({"addresses": ["127.9.9.9"]});
        }),
        // Nor may a Node or a Pod lead there.
        with(base("a node dialled at loopback", Err("127.0.0.1 is a loopback address")), |c| {
            c.nodes = override_ip("127.0.0.1");
        }),
        with(base("a node dialled at loopback in IPv6 form", Err("127.0.0.1 is a loopback address")), |c| {
            c.nodes = override_ip("::ffff:127.0.0.1");
        }),
        with(base("a node dialled at a link-local address", Err("a link-local address")), |c| {
            c.nodes = override_ip("169.254.169.254");
        }),
        with(base("a node dialled at a multicast address", Err("a multicast address")), |c| {
            c.nodes = override_ip("239.1.2.3");
        }),
        with(base("a node dialled at the broadcast address", Err("the broadcast address")), |c| {
            c.nodes = override_ip("255.255.255.255");
        }),
        with(base("a pod whose host is loopback", Err("a loopback address")), |c| {
            c.pod.as_mut().unwrap()["status"]["hostIP"] = json!("127.0.0.1");
        }),
        with(base("a host port at a multicast address", Err("a multicast address")), |c| {
            c.pod =
                Some(remote(&json!([{"containerPort": 8080, "hostPort": 18080, "hostIP": "224.0.0.251"}])));
        }),
        with(base("host network, dialled at loopback", Err("a loopback address")), |c| {
            c.pod.as_mut().unwrap()["spec"]["hostNetwork"] = json!(true);
            c.nodes = override_ip("127.0.0.1");
        }),
        // Loops.
        with(base("its own ClusterIP", Err("would loop: 10.96.0.1 is the ClusterIP")), |c| {
            c.endpoint = json!({"addresses": ["10.96.0.1"]});
        }),
        with(
            base("a captured range", Err("would loop: 10.99.0.1 is inside the captured range 10.96.0.0/12")),
            |c| {
                c.endpoint = json!({"addresses": ["10.99.0.1"]});
                c.local.captured = vec!["10.96.0.0/12".parse().unwrap()];
            },
        ),
        with(
            base("our own listener", Err("would loop: 192.168.77.1:8080 is this agent's own listener")),
            |c| {
                c.endpoint = json!({"addresses": ["192.168.77.1"]});
                c.local.own_addresses = vec!["192.168.77.1".parse().unwrap()];
                c.local.proxy_port = 8080;
            },
        ),
        with(base("another port of this host", Ok("external 192.168.77.1:8080")), |c| {
            c.endpoint = json!({"addresses": ["192.168.77.1"]});
            c.local.own_addresses = vec!["192.168.77.1".parse().unwrap()];
            c.local.proxy_port = 15001;
        }),
        with(base("a host port that is a ClusterIP", Err("would loop")), |c| {
            c.nodes = override_ip("10.96.0.1");
        }),
    ]
}

#[test]
fn every_kind_of_endpoint_is_reached_in_its_way() {
    for case in cases() {
        let mut objects =
            vec![service("web", "10.96.0.1", &json!({})), slice("x", "web", &json!([case.endpoint]))];
        objects.extend(case.pod.map(|p| object(Kind::Pod, p)));
        objects.extend(case.nodes);
        let mut store = Store::new(case.local);
        store.replace(objects);
        let snapshot = store.snapshot();
        let set = &port(&snapshot, "web", "").v4;
        match case.want {
            Ok(want) => assert_eq!(eligible(set), [want], "{}: {:?}", case.name, excluded(set)),
            Err(part) => {
                assert!(set.eligible.is_empty(), "{}: {:?}", case.name, eligible(set));
                let why = excluded(set);
                assert!(why.len() == 1 && why[0].contains(part), "{}: {why:?}", case.name);
            }
        }
    }
}

#[test]
fn a_service_is_not_its_own_backend_by_way_of_its_outer_addresses() {
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.7"],
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}]}});
    let mut value =
        json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec, "status": status});
    value["spec"]["clusterIP"] = json!("10.96.0.1");
    let judged = |ip: &str, number: u16| {
        let slice = json!({"metadata": {"name": "x", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"port": number}], "endpoints": [{"addresses": [ip]}]});
        let snapshot = snapshot(vec![
            object(Kind::Service, value.clone()),
            object(Kind::EndpointSlice, slice),
            node("edge-b", "192.168.77.2", "z"),
        ]);
        let set = port(&snapshot, "web", "").v4.clone();
        excluded(&set).pop().ok_or_else(|| eligible(&set).pop().unwrap_or_default())
    };
    for (ip, number) in [("192.168.77.2", 30080), ("203.0.113.7", 80), ("203.0.113.8", 80)] {
        let why = judged(ip, number).unwrap();
        assert!(why.contains("would loop") && why.contains("this same Service"), "{ip}:{number}: {why}");
    }
    for (ip, number) in [("192.168.77.2", 30081), ("192.168.77.3", 30080), ("203.0.113.7", 81)] {
        assert!(judged(ip, number).is_err(), "{ip}:{number} may be");
    }
}

#[test]
fn each_pod_has_its_own_mapping() {
    let make = |name: &str, ip: &str, host: &str, host_port: u16| {
        let ports = json!([{"containerPort": 8080, "hostPort": host_port}]);
        object(
            Kind::Pod,
            pod(name, &format!("edge-{host}"), ip, &format!("192.168.77.{host}"), &json!({}), &ports),
        )
    };
    let refer = |name: &str, ip: &str, node: &str| json!({"addresses": [ip], "nodeName": node, "targetRef": {"kind": "Pod", "name": name}});
    // Nodes without a common pod network hand out the same addresses: p1 and p2 are two endpoints nonetheless.
    let got = snapshot(vec![
        service("web", "10.96.0.1", &json!({})),
        slice(
            "x",
            "web",
            &json!([
                refer("p1", "172.17.0.2", "edge-2"),
                refer("p2", "172.17.0.2", "edge-3"),
                refer("p3", "172.17.0.3", "edge-3")
            ]),
        ),
        make("p1", "172.17.0.2", "2", 18080),
        make("p2", "172.17.0.2", "3", 28080),
        make("p3", "172.17.0.3", "3", 38080),
    ]);
    let want =
        ["host-port 192.168.77.2:18080", "host-port 192.168.77.3:28080", "host-port 192.168.77.3:38080"];
    assert_eq!(eligible(&port(&got, "web", "").v4), want);
}

#[test]
fn changes_of_pods_and_nodes_are_followed() {
    let mut store = store(vec![
        service("web", "10.96.0.1", &json!({})),
        slice("x", "web", &json!([endpoint(Some("p"), Some("edge-b"))])),
    ]);
    let look = |store: &mut Store| {
        let set = port(&store.snapshot(), "web", "").v4.clone();
        (eligible(&set).first().cloned(), set.eligible.first().and_then(|b| b.zone.clone()))
    };
    assert_eq!(look(&mut store), (None, None));
    store.upsert(object(Kind::Pod, remote(&published())));
    assert_eq!(look(&mut store).0.as_deref(), Some("host-port 192.168.77.2:18080"));
    store.upsert(override_ip("203.0.113.9").remove(0));
    assert_eq!(look(&mut store).0.as_deref(), Some("host-port 203.0.113.9:18080"));
    store.upsert(node("edge-b", "192.168.77.2", "z2"));
    let (way, zone) = look(&mut store);
    assert_eq!((way.as_deref(), zone.as_deref()), (Some("host-port 192.168.77.2:18080"), Some("z2")));
    store.delete(&key(Kind::Node, "edge-b"));
    assert_eq!(look(&mut store).1, None);
    // Another Service takes an address that is dialled here: a loop from now on, and no longer once it has gone.
    store.upsert(service("evil", "192.168.77.2", &json!({})));
    assert_eq!(look(&mut store).0, None);
    store.delete(&key(Kind::Service, "evil"));
    assert_eq!(look(&mut store).0.as_deref(), Some("host-port 192.168.77.2:18080"));
    store.delete(&key(Kind::Pod, "p"));
    assert_eq!(look(&mut store), (None, None));
}
