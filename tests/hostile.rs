//! Objects that mean no good: whatever a Service's endpoints, Pods and Nodes say, nothing that listens on the node for
//! the node itself is reached through the agent, by TCP, HTTP or UDP, and nothing goes in circles.

mod lab;

use std::time::Duration;

use lab::{Agent, Datagrams, Lab, Server, objects, read_all};
use nix::errno::Errno;
use serde_json::{Value, json};

/// Where the node's own services listen, on every address of the node.
const PRIVATE: u16 = 7777;
/// The acceptor's port, for endpoints that lead there.
const ACCEPTOR: u16 = 15_001;
/// A connection that goes in circles takes for ever; one that is refused, no time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Endpoints by address and port, none of which may be dialled from node `a`.
const ENDPOINTS: [(&str, u16); 14] = [
    ("127.0.0.1", PRIVATE),
    ("127.9.9.9", PRIVATE),
    ("0.0.0.0", PRIVATE),
    ("255.255.255.255", PRIVATE),
    // The agent's own DNS server, and where clouds keep what is for machines alone.
    ("169.254.96.16", 53),
    ("169.254.169.254", 80),
    ("224.0.0.251", PRIVATE),
    // IPv4 in other clothes.
    ("::ffff:127.0.0.1", PRIVATE),
    ("::1", PRIVATE),
    ("::", PRIVATE),
    ("fe80::1", PRIVATE),
    // The agent itself, straight, and by way of Services: this one, and one that nobody has.
    ("192.168.77.1", ACCEPTOR),
    ("10.96.7.1", 80),
    ("10.96.99.99", 80),
];

/// Three Services for each endpoint: TCP, HTTP and UDP. Returns the objects and the frontends.
fn services() -> (Vec<Value>, Vec<(String, &'static str)>) {
    let mut all = Vec::new();
    let mut frontends = Vec::new();
    for (number, (endpoint, port)) in ENDPOINTS.into_iter().enumerate() {
        for (kind, name, protocol) in [(1, "tcp-0", "TCP"), (2, "http-0", "TCP"), (3, "udp-0", "UDP")] {
            let v6 = endpoint.contains(':') && !endpoint.starts_with("::ffff");
            let ip = if v6 {
                format!("fd00:10:96::{kind}:{:x}", number + 1)
            } else {
                format!("10.96.{}.{kind}", number + 7)
            };
            let service = format!("s{number}-{kind}");
            all.push(objects::service(&service, &[&ip], &[(name, 80, port, protocol)]));
            let mut slice = objects::slice(&service, &[(name, port, protocol)], &[endpoint]);
            slice["addressType"] = json!(if v6 { "IPv6" } else { "IPv4" });
            all.push(slice);
            frontends.push((if v6 { format!("[{ip}]:80") } else { format!("{ip}:80") }, protocol));
        }
    }
    (all, frontends)
}

/// A pod elsewhere with a host port, on a Node that says it is to be dialled at `host`.
fn misled(name: &str, ip: &str, host: &str) -> Vec<Value> {
    let node = format!("node-{name}");
    let mut slice = objects::slice(name, &[("tcp-0", 80, "TCP")], &["10.200.0.7"]);
    slice["endpoints"][0]["nodeName"] = json!(node);
    slice["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": name});
    vec![
        objects::service(name, &[ip], &[("tcp-0", 80, 80, "TCP")]),
        slice,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node,
            "annotations": {"edgesplice.io/host-ip": host}}, "status": {"addresses": []}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "containers": [{"ports": [{"containerPort": 80, "hostPort": PRIVATE}]}]},
            "status": {"phase": "Running", "podIP": "10.200.0.7", "hostIP": host}}),
    ]
}

#[test]
fn no_object_leads_to_what_the_node_has_for_itself() {
    let lab = Lab::new("hostile");
    let a = lab.node("a");
    let pod = a.pod("client");
    let (tcp, udp) = (Server::greeting(&a, PRIVATE, "secret"), Datagrams::named(&a, PRIVATE, "secret"));
    let (mut all, mut frontends) = services();
    for (number, host) in
        ["127.0.0.1", "::ffff:127.0.0.1", "169.254.96.16", "224.0.0.1"].into_iter().enumerate()
    {
        let ip = format!("10.96.80.{}", number + 1);
        all.extend(misled(&format!("misled-{number}"), &ip, host));
        frontends.push((format!("{ip}:80"), "TCP"));
    }
    let port = ACCEPTOR.to_string();
    let agent =
        Agent::on(&a).args(&["--proxy-port", &port]).manifest("all.json", &objects::list(all)).start();
    for (frontend, protocol) in &frontends {
        for client in [&*a, &*pod] {
            if *protocol == "UDP" {
                let answer = client.ask_udp(frontend, b"?");
                assert!(answer.is_err(), "{frontend}: {answer:?}");
            } else {
                let connected = client.connect_within(frontend, PATIENCE).map(drop);
                assert_eq!(connected, Err(Errno::ECONNREFUSED), "{frontend}/{protocol}");
            }
        }
    }
    assert_eq!((tcp.accepted(), udp.taken()), (0, 0), "the node's own services were reached");
    for service in agent.status()["services"].as_array().expect("a list") {
        let backends = service["backends"].as_array().expect("a list");
        let told = backends.iter().all(|one| one["state"] == "unreachable" && one["reason"] != "");
        assert!(!backends.is_empty() && told, "{service}");
    }
    assert_eq!(agent.stop(), 0);
}

/// Two nodes whose agents have each other's node port as the backend of the same Service.
#[test]
fn two_agents_do_not_pass_a_client_to_and_fro() {
    let lab = Lab::new("circle");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let address = |name: &str| if name == "a" { "192.168.77.1" } else { "192.168.77.2" };
    let objects = |other: &str| {
        let mut service = objects::service("web", &["10.96.0.50"], &[("tcp-0", 80, 8080, "TCP")]);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(30_080);
        let node = |name: &str| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": address(name)}]}})
        };
        let slice = objects::slice("web", &[("tcp-0", 30_080, "TCP")], &[address(other)]);
        objects::list([service, slice, node("a"), node("b")])
    };
    let first = Agent::on(&a).manifest("web.json", &objects("b")).start();
    let second = Agent::on(&b).manifest("web.json", &objects("a")).start();
    for (client, to) in [(&a, "10.96.0.50:80"), (&b, "10.96.0.50:80"), (&a, "192.168.77.2:30080")] {
        assert_eq!(client.connect_within(to, PATIENCE).map(drop), Err(Errno::ECONNREFUSED), "{to}");
    }
    for agent in [first, second] {
        let service = agent.service("web");
        assert!(
            service["backends"][0]["reason"].as_str().is_some_and(|why| why.contains("this same Service")),
            "{service}"
        );
        assert_eq!(service["connectionsTotal"], 0, "{service}");
        assert_eq!(agent.stop(), 0);
    }
}

/// Two Services over the node ports of two nodes, each with the other one's as its backend; beside them one that leads
/// over a node port to where it ends.
#[test]
fn two_services_do_not_pass_a_client_to_and_fro() {
    let lab = Lab::new("circles");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let (here, there) = ("192.168.77.1", "192.168.77.2");
    let offered = |name: &str, number: u8, (port, protocol): (&str, &str), endpoint: &str, target: u16| {
        let ip = format!("10.96.0.{number}");
        let mut service = objects::service(name, &[&ip], &[(port, 80, target, protocol)]);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(30_000 + u32::from(number));
        [service, objects::slice(name, &[(port, target, protocol)], &[endpoint])]
    };
    let node = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
    };
    let (tcp, http, udp) = (("tcp-0", "TCP"), ("http-0", "TCP"), ("udp-0", "UDP"));
    let mut all = vec![node("a", here), node("b", there)];
    for (number, port) in [(50, tcp), (60, http), (70, udp)] {
        let name = |which: &str| format!("{which}-{}", port.0);
        all.extend(offered(&name("first"), number, port, there, 30_001 + u16::from(number)));
        all.extend(offered(&name("second"), number + 1, port, here, 30_000 + u16::from(number)));
    }
    all.extend(offered("through", 80, tcp, there, 30_081));
    all.extend(offered("end", 81, tcp, there, 7000));
    let objects = objects::list(all);
    let _server = Server::greeting(&b, 7000, "the end");
    let agents = [&a, &b].map(|node| Agent::on(node).manifest("all.json", &objects).start());
    let counted = |name: &str| agents.each_ref().map(|agent| agent.status()["proxy"][name].clone());
    let before = ["acceptedTotal", "udpFlows"].map(counted);
    // The other node has no way back to the pod.
    for (client, node) in [(&*a, there), (&*b, here), (&*pod, here)] {
        for number in [50, 51, 60, 61] {
            for to in [&format!("10.96.0.{number}:80"), &format!("{node}:300{number}")] {
                let connected = client.connect_within(to, PATIENCE).map(drop);
                assert_eq!(connected, Err(Errno::ECONNREFUSED), "{to}");
            }
        }
        for number in [70, 71] {
            for to in [&format!("10.96.0.{number}:80"), &format!("{node}:300{number}")] {
                assert!(client.ask_udp(to, b"round").is_err(), "{to}");
            }
        }
    }
    assert_eq!(["acceptedTotal", "udpFlows"].map(counted), before, "nothing goes round");
    for agent in &agents {
        for (port, first) in [("tcp-0", 50), ("http-0", 60), ("udp-0", 70)] {
            for (which, ip, other, target) in
                [("first", there, "second", first + 1), ("second", here, "first", first)]
            {
                let service = agent.service(&format!("{which}-{port}"));
                let why = format!("{ip}:300{target} is a node port of Service default/{other}-{port}");
                let reason = service["backends"][0]["reason"].as_str();
                assert!(reason.is_some_and(|reason| reason.contains(&why)), "{service}");
                assert_eq!(service["connectionsTotal"], 0, "{service}");
            }
        }
    }
    let mut stream = pod.connect("10.96.0.80:80").expect("this way ends");
    assert_eq!(read_all(&mut stream).expect("a greeting"), "the end");
    for agent in agents {
        assert_eq!(agent.stop(), 0);
    }
}
