//! Who serves a client, followed live: this node's zone, client affinity, terminating endpoints, and pods that move.

mod lab;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use lab::{Agent, Lab, Netns, Node, Pod, Server, errno, eventually, objects, read_all};
use nix::errno::Errno;
use serde_json::{Value, json};

/// A generous bound for a change of a manifest to be in force.
const SOON: Duration = Duration::from_secs(5);
const SERVICE: &str = "10.96.0.70:80";

/// A client on node `a`, backends on port 7001 of `b` and `c`.
struct Scene {
    b: Node,
    client: Pod,
    agent: Agent,
    servers: Vec<Server>,
    _lab: Lab,
}

impl Scene {
    fn new(label: &str, manifest: &str) -> Self {
        let lab = Lab::new(label);
        let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
        let client = a.pod("client");
        let servers = vec![Server::greeting(&b, 7001, "b"), Server::greeting(&c, 7001, "c")];
        let agent = Agent::on(&a).manifest("cluster.json", manifest).start();
        Self { b, client, agent, servers, _lab: lab }
    }

    fn ask(&self) -> Result<String, Errno> {
        ask(&self.client)
    }

    /// Who answers `count` connections, each once; `!` where nobody does.
    fn answers(&self, count: usize) -> String {
        let mut all: Vec<String> = (0..count).map(|_| self.ask().unwrap_or("!".to_owned())).collect();
        all.sort();
        all.dedup();
        all.concat()
    }

    fn change(&self, manifest: &str, answers: &str) {
        self.agent.write("cluster.json", manifest);
        eventually(&format!("{answers} answers"), SOON, || (self.answers(8) == answers).then_some(()));
    }
}

fn ask(client: &Netns) -> Result<String, Errno> {
    let mut stream = client.connect(SERVICE)?;
    read_all(&mut stream).map_err(|error| errno(&error))
}

/// The Service with `spec` over it, and its endpoints: each an address and what else there is to say.
fn service(spec: &Value, endpoints: &[(&str, Value)]) -> [Value; 2] {
    let mut service = objects::service("web", &["10.96.0.70"], &[("tcp-0", 80, 7001, "TCP")]);
    let whole = service["spec"].as_object_mut().expect("a spec");
    whole.extend(spec.as_object().expect("an object").clone());
    let addresses: Vec<&str> = endpoints.iter().map(|(address, _)| *address).collect();
    let mut slice = objects::slice("web", &[("tcp-0", 7001, "TCP")], &addresses);
    for (endpoint, (_, more)) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().zip(endpoints)
    {
        endpoint.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    }
    [service, slice]
}

const B: &str = "192.168.77.2";
const C: &str = "192.168.77.3";

#[test]
fn this_nodes_zone_is_followed_live() {
    let manifest = |zone: Option<&str>| {
        let hints = |zone: &str| json!({"zone": zone, "hints": {"forZones": [{"name": zone}]}});
        let labels = zone.map_or(json!({}), |zone| json!({"topology.kubernetes.io/zone": zone}));
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": labels}});
        let [service, slice] = service(&json!({}), &[(B, hints("z1")), (C, hints("z2"))]);
        objects::list([node, service, slice])
    };
    let scene = Scene::new("zone", &manifest(Some("z1")));
    assert_eq!(scene.answers(10), "b");
    scene.change(&manifest(Some("z2")), "c");
    scene.change(&manifest(None), "bc");
    scene.change(&manifest(Some("z1")), "b");
    // The near one is gone: the others are better than nothing.
    let Scene { client, mut servers, .. } = scene;
    servers.remove(0);
    eventually("the other zone steps in", SOON, || (ask(&client).as_deref() == Ok("c")).then_some(()));
}

#[test]
fn terminating_endpoints_serve_when_there_is_nothing_better() {
    let state = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let (ready, ending, dead) =
        (state(true, true, false), state(false, true, true), state(false, false, true));
    let manifest =
        |b: &Value, c: &Value| objects::list(service(&json!({}), &[(B, b.clone()), (C, c.clone())]));
    let scene = Scene::new("ending", &manifest(&ready, &ending));
    assert_eq!(scene.answers(10), "b", "the ready one alone");
    scene.change(&manifest(&ending, &ending), "bc");
    scene.change(&manifest(&dead, &ending), "c");
    scene.agent.write("cluster.json", &manifest(&dead, &dead));
    eventually("refused", SOON, || (scene.ask() == Err(Errno::ECONNREFUSED)).then_some(()));
    scene.change(&manifest(&ending, &ready), "c");
}

#[test]
fn a_client_stays_with_its_backend_until_it_is_away_for_long_or_the_backend_fails() {
    let timeout = Duration::from_secs(3);
    let affinity = json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout.as_secs()}}});
    let [mut web, slice] = service(&affinity, &[(B, json!({})), (C, json!({}))]);
    web["metadata"]["annotations"] = json!({"edgesplice.io/load-balancing": "round-robin"});
    let mut scene = Scene::new("affinity", &objects::list([web, slice]));
    let first = scene.ask().expect("an answer");
    assert_eq!(scene.answers(20), first);
    // Each use starts the time anew.
    let started = Instant::now();
    while started.elapsed() < timeout + Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(scene.ask().as_deref(), Ok(first.as_str()), "after {:?}", started.elapsed());
    }
    // Away for longer: the next in turn. With two backends in turn, two absences must show another one.
    let away: Vec<String> = (0..2)
        .map(|_| {
            std::thread::sleep(timeout + Duration::from_millis(500));
            scene.ask().expect("an answer")
        })
        .collect();
    assert!(away.iter().any(|answer| *answer != first), "{first} again and again: {away:?}");
    // Its backend dies: the client moves without a failure, and stays there when the old one is back.
    let now = scene.ask().expect("an answer");
    let other = if now == "b" { "c" } else { "b" };
    let gone = usize::from(now == "c");
    drop(scene.servers.remove(gone));
    eventually("the listener is gone", SOON, || {
        (scene.b.run(&["ss", "-Htln", "sport = :7001"]).stdout.is_empty() || gone == 1).then_some(())
    });
    for _ in 0..5 {
        assert_eq!(scene.ask().as_deref(), Ok(other));
    }
}

/// A Running and Ready pod of node `b` whose container port 80 is published on `host_port`.
fn pod(name: &str, ip: &str, host_port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"nodeName": "b", "containers": [{"name": "c",
            "ports": [{"containerPort": 80, "hostPort": host_port, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": B}})
}

#[test]
fn a_pod_that_changes_moves_its_own_backends_only() {
    let mut web = objects::service("web", &["10.96.0.70"], &[("tcp-0", 80, 80, "TCP")]);
    web["spec"]["selector"] = json!({"app": "web"});
    web["metadata"]["annotations"] = json!({"edgesplice.io/load-balancing": "round-robin"});
    let manifest = |second: u16| {
        objects::list([web.clone(), pod("one", "10.244.9.2", 8001), pod("two", "10.244.9.3", second)])
    };
    let scene = Scene::new("pods", &manifest(8002));
    let _echo = [8001, 8002, 8003].map(|port| Server::echo(&scene.b, port));
    let mut open: Vec<_> = (0..4).map(|_| scene.client.connect(SERVICE).expect("a connection")).collect();
    let say = |open: &mut Vec<std::net::TcpStream>| {
        for stream in open {
            let mut back = [0; 5];
            stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut back)).expect("an echo");
        }
    };
    say(&mut open);
    let backend = |address: &str| {
        let service = scene.agent.service("web");
        let all = service["backends"].as_array().expect("a list").clone();
        all.into_iter().find(|backend| backend["address"] == address)
    };
    let total = |address: &str| backend(address).map(|b| b["connectionsTotal"].as_u64().unwrap_or(0));
    assert_eq!((total("192.168.77.2:8001"), total("192.168.77.2:8002")), (Some(2), Some(2)));
    scene.agent.write("cluster.json", &manifest(8003));
    eventually("the pod has moved", SOON, || backend("192.168.77.2:8003").filter(|b| b["state"] == "ready"));
    // The other pod's backend is the same one still; the old one of this pod drains; nobody has noticed.
    assert_eq!(total("192.168.77.2:8001"), Some(2));
    assert_eq!(backend("192.168.77.2:8002").map(|b| b["state"].clone()), Some(json!("draining")));
    say(&mut open);
    let mut more: Vec<_> = (0..4).map(|_| scene.client.connect(SERVICE).expect("a connection")).collect();
    say(&mut more);
    assert_eq!((total("192.168.77.2:8001"), total("192.168.77.2:8003")), (Some(4), Some(2)));
    drop((open, more));
    eventually("the drained one is gone", SOON, || backend("192.168.77.2:8002").is_none().then_some(()));
}
