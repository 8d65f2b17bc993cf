//! Which endpoints would come back by way of other Services, and which lead on to an end.

use serde_json::{Value, json};

use crate::source::slim::{Kind, Object};

use super::super::testing::*;
use super::super::{Local, PortId, Protocol, Snapshot, Store};

/// Service `name` at ClusterIP `10.96.0.number` and at node port `30000 + number`, with endpoints for one protocol.
fn offered(name: &str, number: u8, protocol: &str, endpoints: &[&str]) -> Vec<Object> {
    let ports = json!([{"port": 80, "protocol": protocol, "nodePort": 30_000 + u16::from(number)}]);
    let mut all =
        vec![service(name, &format!("10.96.0.{number}"), &json!({"type": "NodePort", "ports": ports}))];
    // A slice for each endpoint, for each may have another port.
    all.extend(endpoints.iter().enumerate().map(|(at, endpoint)| {
        let (ip, port) = endpoint.rsplit_once(':').unwrap();
        let port: u16 = port.parse().unwrap();
        object(
            Kind::EndpointSlice,
            json!({"metadata": {"name": format!("{name}-{at}"), "labels": {"kubernetes.io/service-name": name}},
                "addressType": if ip.contains('[') { "IPv6" } else { "IPv4" },
                "ports": [{"port": port, "protocol": protocol}],
                "endpoints": [{"addresses": [ip.trim_matches(['[', ']'])]}]}),
        )
    }));
    all
}

fn tcp(name: &str, number: u8, endpoints: &[&str]) -> Vec<Object> {
    offered(name, number, "TCP", endpoints)
}

/// Nodes `edge-a` to `edge-d`.
fn nodes() -> Vec<Object> {
    let node = |(name, ip): (&str, u8)| node(&format!("edge-{name}"), &format!("192.168.77.{ip}"), "z");
    [("a", 1), ("b", 2), ("c", 3), ("d", 4)].map(node).into()
}

/// The objects with the nodes, as `edge-a` sees them.
fn world(parts: &[Vec<Object>]) -> Vec<Object> {
    [nodes(), parts.concat()].concat()
}

fn set(snapshot: &Snapshot, name: &str, protocol: Protocol) -> (Vec<String>, Vec<String>) {
    let id = PortId { service: id(name), name: "".into(), protocol };
    let port = snapshot.ports.get(&id).unwrap();
    ([eligible(&port.v4), eligible(&port.v6)].concat(), [excluded(&port.v4), excluded(&port.v6)].concat())
}

/// How many endpoints of TCP Service `name` may be picked and how many go in a circle.
fn count(snapshot: &Snapshot, name: &str) -> (usize, usize) {
    let (eligible, excluded) = set(snapshot, name, Protocol::Tcp);
    assert!(excluded.iter().all(|why| why.contains("would loop")), "{excluded:?}");
    (eligible.len(), excluded.len())
}

const OPEN: (usize, usize) = (1, 0);
const BARRED: (usize, usize) = (0, 1);

#[test]
fn a_circle_is_barred_at_every_one_of_its_services() {
    let two = world(&[tcp("a", 1, &["192.168.77.2:30002"]), tcp("b", 2, &["192.168.77.1:30001"])]);
    let got = snapshot(two);
    assert_eq!(
        set(&got, "a", Protocol::Tcp).1,
        [
            "192.168.77.2:30002: would loop: 192.168.77.2:30002 is a node port of Service default/b, whose endpoints lead \
          back to this Service; take one endpoint out of the circle"
        ]
    );
    assert_eq!(count(&got, "b"), BARRED);
    let three = [
        tcp("a", 1, &["192.168.77.2:30002"]),
        tcp("b", 2, &["192.168.77.3:30003"]),
        tcp("c", 3, &["192.168.77.4:30001"]),
    ];
    let got = snapshot(world(&three));
    assert_eq!(["a", "b", "c"].map(|name| count(&got, name)), [BARRED; 3]);
    // Who stands beside the circle and leads into it goes on to where it ends.
    let got = snapshot(world(&[three.concat(), tcp("d", 4, &["192.168.77.2:30001"])]));
    assert_eq!(["a", "d"].map(|name| count(&got, name)), [BARRED, OPEN]);
}

#[test]
fn ways_that_end_are_open() {
    let pods = ["10.1.0.1:8080"];
    let chain = [
        tcp("a", 1, &["192.168.77.2:30002"]),
        tcp("b", 2, &["192.168.77.3:30003"]),
        tcp("c", 3, &pods),
        tcp("d", 4, &["192.168.77.3:30002", "192.168.77.2:30002"]),
    ];
    let got = snapshot(world(&chain));
    assert_eq!(["a", "b", "c", "d"].map(|name| count(&got, name)), [OPEN, OPEN, OPEN, (2, 0)]);
    // Pods beside an endpoint that comes back stay.
    let got = snapshot(world(&[
        tcp("a", 1, &["192.168.77.2:30002", pods[0]]),
        tcp("b", 2, &["192.168.77.1:30001", pods[0]]),
    ]));
    assert_eq!(["a", "b"].map(|name| count(&got, name)), [(1, 1); 2]);
    // Nobody knows a node with that address.
    let got = snapshot(world(&[tcp("a", 1, &["192.168.77.9:30002"]), tcp("b", 2, &["192.168.77.1:30001"])]));
    assert_eq!(["a", "b"].map(|name| count(&got, name)), [OPEN; 2]);
    // Who is not offered outside of the cluster is not come back to.
    let inside = vec![service("a", "10.96.0.1", &json!({})), tcp("a", 1, &["192.168.77.2:30002"]).remove(1)];
    let got = snapshot(world(&[inside, tcp("b", 2, &["192.168.77.1:30001"])]));
    assert_eq!(["a", "b"].map(|name| count(&got, name)), [OPEN; 2]);
    assert!(set(&got, "a", Protocol::Tcp).0[0].contains("192.168.77.2:30002"));
}

#[test]
fn more_services_in_a_row_than_anyone_needs_are_not_followed() {
    let row = |length: u8| -> Vec<Object> {
        let one = |n: u8| {
            let next = if n == length {
                "10.1.0.1:8080".to_owned()
            } else {
                format!("192.168.77.2:{}", 30_001 + u16::from(n))
            };
            tcp(&format!("s{n}"), n, &[&next])
        };
        world(&(1..=length).map(one).collect::<Vec<_>>())
    };
    assert_eq!(count(&snapshot(row(17)), "s1"), OPEN);
    let got = snapshot(row(18));
    assert!(set(&got, "s1", Protocol::Tcp).1[0].contains("lead on to more Services"));
    assert_eq!(count(&got, "s2"), OPEN);
}

#[test]
fn an_address_that_more_services_claim_than_are_followed_leads_nowhere() {
    let claimed = |count: u8| {
        let claim = |n: u8| {
            let spec = json!({"ports": [{"port": 80, "nodePort": 30_099}]});
            service(&format!("s{n}"), &format!("10.96.1.{n}"), &spec)
        };
        world(&[tcp("a", 1, &["192.168.77.2:30099"]), (0..count).map(claim).collect()])
    };
    assert_eq!(count(&snapshot(claimed(16)), "a"), OPEN);
    let got = snapshot(claimed(17));
    assert!(set(&got, "a", Protocol::Tcp).1[0].contains("more others than are followed"));
}

#[test]
fn protocols_and_families_have_circles_of_their_own() {
    let udp = |name, number, endpoints: &[&str]| offered(name, number, "UDP", endpoints);
    let got = snapshot(world(&[udp("a", 1, &["192.168.77.2:30002"]), udp("b", 2, &["192.168.77.1:30001"])]));
    for name in ["a", "b"] {
        let (eligible, excluded) = set(&got, name, Protocol::Udp);
        assert!(eligible.is_empty() && excluded[0].contains("lead back"), "{eligible:?} {excluded:?}");
    }
    let got = snapshot(world(&[tcp("a", 1, &["192.168.77.2:30002"]), udp("b", 2, &["192.168.77.1:30001"])]));
    assert_eq!(count(&got, "a"), OPEN);
    assert_eq!(set(&got, "b", Protocol::Udp).1, [""; 0]);

    let six = |name: &str, number: u8, endpoints: &[&str]| {
        let mut all = tcp(name, number, endpoints);
        all[0] = service(
            name,
            &format!("fd00:10:96::{number}"),
            &json!({"ports": [{"port": 80, "nodePort": 30_000 + u16::from(number)}]}),
        );
        all
    };
    let both = object(
        Kind::Node,
        json!({"metadata": {"name": "edge-b"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.168.77.2"}, {"type": "InternalIP", "address": "fd00:77::2"}]}}),
    );
    let got = snapshot(world(&[
        six("a", 1, &["[fd00:77::2]:30002"]),
        six("b", 2, &["[fd00:77::2]:30001"]),
        vec![both.clone()],
    ]));
    assert_eq!(["a", "b"].map(|name| count(&got, name)), [BARRED; 2]);
    // A Service has node ports of its own families only.
    let got = snapshot(world(&[
        six("a", 1, &["[fd00:77::2]:30002"]),
        tcp("b", 2, &["192.168.77.2:30001"]),
        vec![both],
    ]));
    assert_eq!(["a", "b"].map(|name| count(&got, name)), [OPEN; 2]);
}

#[test]
fn ports_of_one_service_are_told_apart() {
    let mut b = tcp("b", 2, &["10.1.0.1:8080"]);
    let ports = json!([{"name": "web", "port": 80, "nodePort": 30_002}, {"name": "back", "port": 81, "nodePort": 30_003}]);
    b[0] = service("b", "10.96.0.2", &json!({"ports": ports}));
    let slice = |of: &str, ip: &str, port: u16| {
        object(
            Kind::EndpointSlice,
            json!({"metadata": {"name": format!("{of}-{port}"), "labels": {"kubernetes.io/service-name": "b"}},
                "addressType": "IPv4", "ports": [{"name": of, "port": port}], "endpoints": [{"addresses": [ip]}]}),
        )
    };
    b.truncate(1);
    b.extend([slice("web", "10.1.0.1", 8080), slice("back", "192.168.77.1", 30_001)]);
    for (number, want) in [(30_002, OPEN), (30_003, BARRED)] {
        let got = snapshot(world(&[tcp("a", 1, &[&format!("192.168.77.2:{number}")]), b.clone()]));
        assert_eq!(count(&got, "a"), want, "{number}");
    }
    // From one to another of its own ports no Service leads on.
    b.push(slice("web", "192.168.77.2", 30_003));
    let got = snapshot(world(&[tcp("a", 1, &["192.168.77.2:30002"]), b]));
    assert_eq!(count(&got, "a"), OPEN);
    let web = excluded(&port(&got, "b", "web").v4);
    assert!(web.len() == 1 && web[0].contains("this same Service"), "{web:?}");
}

#[test]
fn a_port_hides_nothing_behind_another_one_of_its_number() {
    let mut b = tcp("b", 2, &["192.168.77.1:30001"]);
    let ports = json!([{"port": 80, "nodePort": 30_002}, {"name": "twin", "port": 80, "nodePort": 30_022}]);
    b[0] = service("b", "10.96.0.2", &json!({"ports": ports}));
    b.push(object(
        Kind::EndpointSlice,
        json!({"metadata": {"name": "twin", "labels": {"kubernetes.io/service-name": "b"}}, "addressType": "IPv4",
            "ports": [{"name": "twin", "port": 30_003}], "endpoints": [{"addresses": ["192.168.77.1"]}]}),
    ));
    let c = tcp("c", 3, &["10.1.0.1:8080"]);
    let got = snapshot(world(&[tcp("a", 1, &["192.168.77.2:30002"]), b, c]));
    assert_eq!(count(&got, "a"), BARRED);
}

#[test]
fn outer_addresses_lead_on_as_node_ports_do() {
    let outer = |spec: &Value, status: &Value| {
        let mut whole = json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]});
        merge(&mut whole, spec);
        let value = json!({"metadata": {"name": "b"}, "spec": whole, "status": status});
        let mut all = tcp("b", 2, &["192.168.77.1:30001"]);
        all[0] = object(Kind::Service, value);
        world(&[tcp("a", 1, &["203.0.113.7:80"]), all])
    };
    let none = json!({});
    let balancer = outer(
        &json!({"type": "LoadBalancer"}),
        &json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}),
    );
    let got = snapshot(balancer);
    assert_eq!(["a", "b"].map(|name| count(&got, name)), [BARRED; 2]);
    let why = set(&got, "a", Protocol::Tcp).1;
    assert!(why[0].contains("203.0.113.7:80 is an outer address of Service default/b, whose"), "{why:?}");
    // Addresses that anyone may write count where they are served; elsewhere they would only shut others out.
    for (served, want) in [(true, BARRED), (false, OPEN)] {
        let mut store = Store::new(Local { external_ips: served, ..Local::new("edge-a") });
        store.replace(outer(&json!({"externalIPs": ["203.0.113.7"]}), &none));
        assert_eq!(["a", "b"].map(|name| count(&store.snapshot(), name)), [want; 2]);
    }
    let mut store = Store::new(Local { external_ips: true, ..Local::new("edge-a") });
    // The unspecified address is nobody's, and not every node's.
    store.replace(world(&[
        outer(&json!({"externalIPs": ["0.0.0.0"], "ports": [{"port": 30_009}]}), &none),
        tcp("a", 1, &["192.168.77.2:30009"]),
    ]));
    assert_eq!(count(&store.snapshot(), "b"), OPEN);
}

/// A pod on `node` with host port 30002, and as the only endpoint of Service `a`.
fn published(node: &str, change: impl FnOnce(&mut Value)) -> Vec<Object> {
    let ports = json!([{"containerPort": 8080, "hostPort": 30_002}]);
    let mut value = pod("p", node, "10.1.0.1", "192.168.77.2", &json!({}), &ports);
    change(&mut value);
    let mut all = tcp("a", 1, &[]);
    let target = json!({"kind": "Pod", "name": "p"});
    let endpoint = json!([{"addresses": [value["status"]["podIP"]], "targetRef": target}]);
    all.extend([object(Kind::Pod, value), slice("a-0", "a", &endpoint)]);
    all
}

#[test]
fn a_pod_keeps_a_port_of_its_node_that_is_a_node_port_too() {
    let b = tcp("b", 2, &["192.168.77.1:30001"]);
    let judged = |a: Vec<Object>| count(&snapshot(world(&[a, b.clone()])), "a");
    assert_eq!(judged(published("edge-b", |_| {})), OPEN, "that node leaves the port to the pod");
    assert_eq!(judged(published("edge-b", |p| p["status"]["phase"] = json!("Failed"))), BARRED);
    assert_eq!(
        judged(published("edge-c", |_| {})),
        BARRED,
        "it says that its node has another one's address"
    );
    let other = |p: &mut Value| p["spec"]["containers"][0]["ports"][0]["hostIP"] = json!("192.168.77.3");
    assert_eq!(judged(published("edge-b", other)), BARRED);
    let thief = vec![node("edge-x", "192.168.77.2", "z")];
    assert_eq!(judged([published("edge-b", |_| {}), thief].concat()), BARRED, "two nodes say it is theirs");
    // In the host's network, with and without telling its ports.
    let host = |tell: bool| {
        move |p: &mut Value| {
            let port = if tell { json!([{"containerPort": 8080, "hostPort": 8080}]) } else { json!([]) };
            p["spec"]["hostNetwork"] = json!(true);
            p["status"]["podIP"] = json!("192.168.77.2");
            p["spec"]["containers"][0]["ports"] = port;
        }
    };
    let mut b = b.clone();
    b[0] = service("b", "10.96.0.2", &json!({"ports": [{"port": 80, "nodePort": 8080}]}));
    for (tell, want) in [(true, OPEN), (false, BARRED)] {
        let got = snapshot(world(&[published("edge-b", host(tell)), b.clone()]));
        assert_eq!(count(&got, "a"), want);
    }
}

#[test]
fn every_node_comes_to_the_same_verdict() {
    // The pod's own node dials it at its own address, and knows nevertheless where the others are led.
    let elsewhere = |p: &mut Value| p["spec"]["containers"][0]["ports"][0]["hostIP"] = json!("192.168.77.2");
    let objects = world(&[published("edge-c", elsewhere), tcp("b", 2, &["192.168.77.3:30001"])]);
    for (name, a) in [("edge-a", BARRED), ("edge-b", BARRED), ("edge-c", OPEN)] {
        let mut store = Store::new(Local::new(name));
        store.replace(objects.clone());
        let got = store.snapshot();
        assert_eq!(count(&got, "b"), BARRED, "{name}");
        assert_eq!(count(&got, "a"), a, "{name}");
    }
    // A pod of this node has no address of another one.
    let lie = |p: &mut Value| p["status"]["podIP"] = json!("192.168.77.2");
    let mut b = tcp("b", 2, &["10.1.0.9:80"]);
    b[0] = service("b", "10.96.0.2", &json!({"ports": [{"port": 80, "nodePort": 8080}]}));
    let got = snapshot(world(&[published("edge-a", lie), b]));
    let why = set(&got, "a", Protocol::Tcp).1;
    assert!(why[0].contains("node port of Service default/b, and no pod of this node"), "{why:?}");
}

#[test]
fn a_circle_through_another_proxys_service_is_one() {
    let labels = json!({"noproxy": "edgemesh", "kubernetes.io/service-name": "b"});
    let spec = json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80, "nodePort": 30_002}]});
    let b = vec![
        object(Kind::Service, json!({"metadata": {"name": "b", "labels": labels}, "spec": spec})),
        object(
            Kind::EndpointSlice,
            // Slices bear the labels of their Service.
            json!({"metadata": {"name": "b", "labels": labels}, "addressType": "IPv4", "ports": [{"port": 30_001}],
                "endpoints": [{"addresses": ["192.168.77.1"]}]}),
        ),
    ];
    let got = snapshot(world(&[tcp("a", 1, &["192.168.77.2:30002"]), b]));
    assert_eq!(count(&got, "a"), BARRED);
    assert!(got.not_proxied.contains_key(&id("b")));
}

#[test]
fn circles_come_and_go() {
    let mut store =
        store(world(&[tcp("a", 1, &["192.168.77.2:30002"]), tcp("b", 2, &["192.168.77.1:30001"])]));
    let mut step = |object: Object, want: (usize, usize)| {
        let name = object.key().to_string();
        store.upsert(object);
        assert_eq!(count(&store.snapshot(), "a"), want, "{name}");
    };
    let b = |endpoint: &str| tcp("b", 2, &[endpoint]).remove(1);
    step(b("10.1.0.1:8080"), OPEN);
    step(b("192.168.77.3:30003"), OPEN);
    // Far from here: `c` appears, and closes the circle.
    let c = tcp("c", 3, &["192.168.77.4:30001"]);
    step(c[1].clone(), OPEN);
    step(c[0].clone(), BARRED);
    step(service("c", "10.96.0.3", &json!({"ports": [{"port": 80, "nodePort": 30_033}]})), OPEN);
    step(c[0].clone(), BARRED);
    step(node("edge-d", "192.168.77.44", "z"), OPEN);
    step(node("edge-e", "192.168.77.4", "z"), BARRED);
    store.delete(&key(Kind::Service, "c"));
    assert_eq!(count(&store.snapshot(), "a"), OPEN);
}

#[test]
fn where_others_dial_a_pod_of_this_node_is_followed() {
    let there = |p: &mut Value| p["spec"]["containers"][0]["ports"][0]["hostIP"] = json!("192.168.77.44");
    let mut store = store(world(&[published("edge-a", there), tcp("b", 2, &["192.168.77.1:30001"])]));
    assert_eq!(count(&store.snapshot(), "b"), OPEN);
    store.upsert(node("edge-d", "192.168.77.44", "z"));
    assert_eq!(count(&store.snapshot(), "b"), BARRED);
    store.upsert(node("edge-d", "192.168.77.4", "z"));
    assert_eq!(count(&store.snapshot(), "b"), OPEN);
}
