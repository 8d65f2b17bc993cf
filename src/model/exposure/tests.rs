//! External frontends (sections 2, 4 and 8 of the table of Service semantics).

use serde_json::{Value, json};

use super::super::external::{Audience, Via};
use super::super::testing::*;
use super::super::types::{Protocol, Snapshot};
use super::super::{Local, Store, diff};
use super::*;
use crate::source::slim::{Kind, Object};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn local() -> Local {
    let mut local = Local::new("edge-a");
    local.own_addresses =
        ["127.0.0.1", "192.168.77.1", "10.244.1.1", "169.254.96.16", "fe80::1"].map(ip).into();
    local
}

fn own_node() -> Object {
    let value = json!({"metadata": {"name": "edge-a"}, "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"}]}});
    object(Kind::Node, value)
}

/// Endpoints that are ready, terminating, or not even serving, here or elsewhere: `(node, state)`.
fn endpoints(rows: &[(&str, &str)]) -> Value {
    let row = |(at, (node, state)): (usize, &(&str, &str))| {
        let (ready, serving) = (*state == "ready", *state != "dead");
        json!({"addresses": [format!("192.0.2.{}", at + 1)], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": *state == "ending"}})
    };
    rows.iter().enumerate().map(row).collect()
}

fn exposed(spec: &Value) -> Object {
    let mut whole = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    merge(&mut whole, spec);
    service("web", "10.96.0.1", &whole)
}

fn world(local: Local, objects: Vec<Object>) -> (Store, Arc<Snapshot>) {
    let mut store = Store::new(local);
    store.replace(objects);
    let snapshot = store.snapshot();
    (store, snapshot)
}

/// The last numbers of the backends for each way in: ClusterIP, external from here, external from elsewhere.
fn ways(port: &ServicePort) -> String {
    let last = |via| -> String {
        let set = port.backends_via(via, ip("0.0.0.0"));
        set.eligible
            .iter()
            .map(|b| b.addr.0.ip().to_string().rsplit('.').next().unwrap().to_owned())
            .collect()
    };
    format!("{} {} {}", last(Via::ClusterIp), last(Via::Here), last(Via::Outside))
}

#[test]
fn both_traffic_policies_are_independent() {
    use Audience::{All, Here as ThisNode, Nobody};
    let (a, b) = ("edge-a", "edge-b");
    let both = vec![(a, "ready"), (b, "ready")];
    let away = vec![(b, "ready")];
    let fading = vec![(a, "ending"), (b, "ready")];
    let ending = vec![(a, "ending"), (b, "ending")];
    let dead = vec![(a, "dead"), (b, "dead")];
    // (endpoints, internal policy, external policy, ways, whom it serves)
    let cases = [
        (&both, "Cluster", "Cluster", "12 12 12", All),
        (&both, "Cluster", "Local", "12 12 1", All),
        (&both, "Local", "Cluster", "1 12 12", All),
        (&both, "Local", "Local", "1 12 1", All),
        (&away, "Cluster", "Cluster", "1 1 1", All),
        (&away, "Cluster", "Local", "1 1 ", ThisNode),
        (&away, "Local", "Cluster", " 1 1", All),
        (&away, "Local", "Local", " 1 ", ThisNode),
        // The local list falls back to terminating ones by itself.
        (&fading, "Cluster", "Local", "2 2 1", All),
        (&fading, "Local", "Local", "1 2 1", All),
        (&ending, "Cluster", "Cluster", "12 12 12", All),
        (&ending, "Local", "Local", "1 12 1", All),
        (&dead, "Cluster", "Local", "  ", Nobody),
        (&dead, "Cluster", "Cluster", "  ", Nobody),
    ];
    for (rows, internal, external, want, audience) in cases {
        let spec = json!({"internalTrafficPolicy": internal, "externalTrafficPolicy": external});
        let objects = vec![own_node(), exposed(&spec), slice("x", "web", &endpoints(rows))];
        let (_, snapshot) = world(local(), objects);
        let name = format!("{rows:?} {internal} {external}");
        assert_eq!(ways(port(&snapshot, "web", "")), want, "{name}");
        let doors = diff::doors(&Snapshot::default(), &snapshot);
        assert_eq!(doors.len(), 1, "{name}");
        assert_eq!(doors[0].0.to_string(), "192.168.77.1:30080/TCP");
        assert_eq!(doors[0].1.as_ref().unwrap().audience, audience, "{name}");
    }
}

fn external(snapshot: &Snapshot) -> Vec<String> {
    snapshot.external.iter().map(|(at, port)| format!("{at} {}", port.id.service.name)).collect()
}

#[test]
fn node_ports_are_served_at_the_addresses_asked_for() {
    let objects = || vec![own_node(), exposed(&json!({}))];
    let at = |addresses: Option<NodePortAddresses>, objects: Vec<Object>| {
        let (_, snapshot) = world(Local { node_ports: addresses, ..local() }, objects);
        external(&snapshot)
    };
    let ranges = |list: &[&str]| {
        Some(NodePortAddresses::Ranges(list.iter().map(|net| net.parse().unwrap()).collect()))
    };
    let primary = Some(NodePortAddresses::Primary);
    assert_eq!(at(None, objects()), [""; 0]);
    assert_eq!(at(primary.clone(), objects()), ["192.168.77.1:30080/TCP web"]);
    assert_eq!(
        at(primary.clone(), vec![exposed(&json!({}))]),
        ["192.168.77.1:30080/TCP web"],
        "no Node object"
    );
    let other = vec![node("edge-a", "198.51.100.9", "z"), exposed(&json!({}))];
    assert_eq!(at(primary, other), [""; 0], "the Node's address is on no interface");
    assert_eq!(at(ranges(&["10.0.0.0/8"]), objects()), ["10.244.1.1:30080/TCP web"]);
    let all = ["10.244.1.1:30080/TCP web", "192.168.77.1:30080/TCP web"];
    assert_eq!(at(ranges(&["0.0.0.0/0"]), objects()), all);
    assert_eq!(at(ranges(&["127.0.0.0/8"]), objects()), ["127.0.0.1:30080/TCP web"]);
    assert_eq!(at(ranges(&["169.254.0.0/16"]), objects()), [""; 0], "the agent's own address for DNS");
}

#[test]
fn addresses_of_load_balancers_and_external_ones() {
    let status = json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1",
            "ports": [{"port": 80}], "externalIPs": ["203.0.113.9"],
            "loadBalancerSourceRanges": ["198.51.100.0/24", "fd77::/64"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "fd99::1"}, {"ip": "10.96.0.1"},
            {"ip": "127.0.0.1"}, {"ip": "0.0.0.0"}]}}});
    let objects = || vec![own_node(), object(Kind::Service, status.clone())];
    let (_, snapshot) = world(local(), objects());
    assert_eq!(external(&snapshot), ["203.0.113.1:80/TCP web"], "one family, no foreign addresses");
    assert!(snapshot.warnings.iter().any(|w| w.contains("intercept.externalIPs")), "{:?}", snapshot.warnings);
    assert!(
        snapshot.warnings.iter().any(|w| w.contains("ClusterIP of a Service")),
        "{:?}",
        snapshot.warnings
    );
    let web = port(&snapshot, "web", "");
    assert_eq!(web.door(addr("203.0.113.1:80")).sources, ["198.51.100.0/24".parse().unwrap()]);
    assert!(web.allows(addr("203.0.113.1:80"), ip("198.51.100.7")));
    assert!(!web.allows(addr("203.0.113.1:80"), ip("192.168.77.1")));

    let (_, snapshot) = world(Local { external_ips: true, ..local() }, objects());
    assert_eq!(external(&snapshot), ["203.0.113.1:80/TCP web", "203.0.113.9:80/TCP web"]);
    let web = port(&snapshot, "web", "");
    assert!(
        web.allows(addr("203.0.113.9:80"), ip("192.168.77.1")),
        "source ranges are the load balancer's alone"
    );
}

#[test]
fn what_others_have_on_this_node_stays_theirs() {
    let host_port = |name: &str, node: &str| {
        let ports = json!([{"containerPort": 80, "hostPort": 30080}]);
        object(Kind::Pod, pod(name, node, "10.244.1.9", "192.168.77.1", &json!({}), &ports))
    };
    let (mut store, snapshot) =
        world(local(), vec![own_node(), exposed(&json!({})), host_port("far", "edge-b")]);
    assert_eq!(external(&snapshot), ["192.168.77.1:30080/TCP web"]);
    assert_eq!(store.exposed_ports(), BTreeSet::from([(Protocol::Tcp, 30080)]));
    store.upsert(host_port("near", "edge-a"));
    let snapshot = store.snapshot();
    assert_eq!(external(&snapshot), [""; 0]);
    assert!(snapshot.warnings.iter().any(|w| w.contains("pod default/near")), "{:?}", snapshot.warnings);
    assert_eq!(store.exposed_ports(), BTreeSet::from([(Protocol::Tcp, 30080)]), "still watched");
    store.delete(&key(Kind::Pod, "near"));
    assert_eq!(external(&store.snapshot()), ["192.168.77.1:30080/TCP web"]);

    for (listener, taken) in [("192.168.77.1:30080", true), ("[::]:30080", true), ("127.0.0.1:30080", false)]
    {
        let at = addr(listener);
        let listener = Frontend { ip: at.ip(), port: at.port(), protocol: Protocol::Tcp };
        store.set_local(Local { listening: [listener].into(), ..local() });
        assert_eq!(store.snapshot().external.is_empty(), taken, "{listener}");
    }
}

#[test]
fn datagrams_and_streams_have_their_own_ports() {
    let both = json!({"type": "NodePort", "ports": [
        {"name": "t", "port": 53, "nodePort": 30053}, {"name": "u", "port": 53, "nodePort": 30053, "protocol": "UDP"}]});
    let objects = vec![own_node(), service("names", "10.96.0.3", &both)];
    let (mut store, snapshot) = world(local(), objects);
    assert_eq!(external(&snapshot), ["192.168.77.1:30053/TCP names", "192.168.77.1:30053/UDP names"]);
    assert_eq!(store.exposed_ports(), BTreeSet::from([(Protocol::Tcp, 30053), (Protocol::Udp, 30053)]));
    let any = Frontend { ip: ip("0.0.0.0"), port: 30053, protocol: Protocol::Udp };
    store.set_local(Local { listening: [any].into(), ..local() });
    assert_eq!(external(&store.snapshot()), ["192.168.77.1:30053/TCP names"]);
}

#[test]
fn of_two_services_with_one_frontend_the_newest_has_it() {
    let named = |name: &str, ip: &str, version: &str| {
        object(
            Kind::Service,
            json!({"metadata": {"name": name, "resourceVersion": version},
            "spec": {"clusterIP": ip, "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}}),
        )
    };
    let (mut store, snapshot) =
        world(local(), vec![own_node(), named("old", "10.96.0.1", "1"), named("new", "10.96.0.2", "2")]);
    assert_eq!(external(&snapshot), ["192.168.77.1:30080/TCP new"]);
    assert!(
        snapshot.warnings.iter().any(|w| w.contains("the newest, default/new")),
        "{:?}",
        snapshot.warnings
    );
    store.delete(&key(Kind::Service, "new"));
    let snapshot = store.snapshot();
    assert_eq!(
        (external(&snapshot), snapshot.warnings.len()),
        (vec!["192.168.77.1:30080/TCP old".to_owned()], 0)
    );
}

#[test]
fn a_label_takes_external_frontends_away_and_its_removal_gives_them_back() {
    let labelled = |labels: Value| {
        object(
            Kind::Service,
            json!({"metadata": {"name": "web", "labels": labels}, "spec": {"type": "NodePort",
            "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]}}),
        )
    };
    let (mut store, snapshot) = world(local(), vec![own_node(), labelled(json!({}))]);
    assert_eq!(snapshot.external.len(), 1);
    for label in
        ["service.kubernetes.io/service-proxy-name", "service.edgemesh.kubeedge.io/service-proxy-name"]
    {
        store.upsert(labelled(json!({label: ""})));
        assert!(store.snapshot().external.is_empty(), "{label}");
        store.upsert(labelled(json!({})));
        assert_eq!(store.snapshot().external.len(), 1, "{label}");
    }
}

#[test]
fn health_checks_count_ready_local_addresses() {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        "ports": [{"port": 80}, {"name": "x", "port": 81}]});
    let rows = [("edge-a", "ready"), ("edge-a", "ending"), ("edge-b", "ready")];
    let (mut store, snapshot) =
        world(local(), vec![own_node(), exposed(&spec), slice("x", "web", &endpoints(&rows))]);
    let check = &snapshot.health_checks[&31000];
    assert_eq!((check.service.to_string().as_str(), check.local_endpoints), ("default/web", 1));
    store.upsert(slice("x", "web", &endpoints(&rows[1..])));
    assert_eq!(store.snapshot().health_checks[&31000].local_endpoints, 0, "terminating ones do not count");
    store.upsert(exposed(&json!({})));
    assert!(store.snapshot().health_checks.is_empty());
}
