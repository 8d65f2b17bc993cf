//! What a Service offers to clients outside of the cluster: node ports, load balancer and external addresses, with
//! either iptables back end and in both families. The remote client is a node of the LAN that runs nothing of ours.

mod lab;

use std::io::Write;
use std::time::{Duration, Instant};

use lab::{
    Agent, AgentBuilder, Lab, Netns, Node, Pod, Server, errno, eventually, objects, read_all,
    with_either_backend,
};
use nix::errno::Errno;
use serde_json::{Value, json};

/// A generous bound for a change of a manifest to be in force.
const SOON: Duration = Duration::from_secs(5);
const NODE_PORT: u16 = 30080;
/// A load balancer's addresses, on no interface; and an external one.
const VIP: &str = "192.0.2.10";
const VIP_V6: &str = "fd99::10";
const EXTERNAL: &str = "192.0.2.20";

/// Node `a` with the agent and a pod, node `b` with backends, a client elsewhere on the LAN.
struct Scene {
    a: Node,
    b: Node,
    client: Node,
    pod: Pod,
    bridged: Pod,
    agent: Agent,
    _servers: Vec<Server>,
    _lab: Lab,
}

/// Node `a` and its pods' range, as the cluster knows them.
fn own_node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd44:1::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"},
            {"type": "InternalIP", "address": "fd77::1"}]}})
}

/// A dual-stack Service `web` of type `LoadBalancer`; `more` goes over its spec.
fn web(more: &Value) -> Value {
    let mut service =
        objects::service("web", &["10.96.0.50", "fd00:10:96::50"], &[("tcp-0", 80, 7001, "TCP")]);
    let spec = service["spec"].as_object_mut().expect("a spec");
    spec["type"] = json!("LoadBalancer");
    spec["ports"][0]["nodePort"] = json!(NODE_PORT);
    spec.extend(more.as_object().expect("an object").clone());
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": VIP}, {"ip": VIP_V6},
        {"ip": "192.0.2.11", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}});
    service
}

/// Its endpoints: host processes on the nodes named, each with its conditions `ready`, `serving` and `terminating`.
fn slices(nodes: &[(&str, u8, [bool; 3])]) -> [Value; 2] {
    ["192.168.77.", "fd77::"].map(|prefix| {
        let kind = if prefix.contains(':') { "IPv6" } else { "IPv4" };
        let endpoints: Vec<Value> = nodes
            .iter()
            .map(|(node, number, [ready, serving, terminating])| {
                json!({"addresses": [format!("{prefix}{number}")], "nodeName": node,
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
            })
            .collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {"name": format!("web-{}", kind.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "tcp-0", "port": 7001, "protocol": "TCP"}], "endpoints": endpoints})
    })
}

const READY: [bool; 3] = [true, true, false];
const ENDING: [bool; 3] = [false, true, true];
const HERE: (&str, u8, [bool; 3]) = ("a", 1, READY);
const THERE: (&str, u8, [bool; 3]) = ("b", 2, READY);

fn cluster(service: Value, nodes: &[(&str, u8, [bool; 3])]) -> String {
    let [v4, v6] = slices(nodes);
    objects::list([own_node(), service, v4, v6])
}

impl Scene {
    fn new(label: &str, backend: &str, manifest: &str) -> Self {
        Self::with(label, backend, manifest, |_| {}, |agent| agent)
    }

    fn with(
        label: &str,
        backend: &str,
        manifest: &str,
        prepare: impl FnOnce(&Node),
        adjust: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Self {
        let lab = Lab::new(&format!("{label}-{backend}"));
        let (a, b, client) = (lab.node("a"), lab.node("b"), lab.node("client"));
        let (pod, bridged) = (a.pod("pod"), a.bridged_pod("bridged"));
        // The way to the load balancer's and the external addresses leads over node `a`, as BGP or ARP would have it.
        client.ip("route add 192.0.2.0/24 via 192.168.77.1\nroute add fd99::/64 via fd77::1\n");
        a.ip("route add 192.0.2.0/24 via 192.168.77.2\nroute add fd99::/64 via fd77::2\n");
        let servers = vec![Server::greeting(&a, 7001, "from a"), Server::greeting(&b, 7001, "from b")];
        prepare(&a);
        let agent = adjust(Agent::on(&a).backend(backend).manifest("cluster.json", manifest)).start();
        Self { a, b, client, pod, bridged, agent, _servers: servers, _lab: lab }
    }

    /// Everywhere a client can be.
    fn clients(&self) -> [(&str, &Netns); 4] {
        [
            ("elsewhere", &self.client),
            ("a pod", &self.pod),
            ("a bridged pod", &self.bridged),
            ("the host", &self.a),
        ]
    }

    /// Puts the cluster into another state and waits until `to` answers the client as wished.
    fn change(&self, manifest: &str, to: &str, wished: Result<&str, Errno>) {
        self.agent.write("cluster.json", manifest);
        eventually(&format!("{to} gives {wished:?}"), SOON, || {
            (ask(&self.client, to).as_deref().map_err(|e| *e) == wished).then_some(())
        });
    }
}

/// What is said on a connection to `to`; a connect that is not answered within a second is `ETIMEDOUT`.
fn ask(client: &Netns, to: &str) -> Result<String, Errno> {
    let mut stream = client.connect_within(to, Duration::from_secs(1))?;
    read_all(&mut stream).map_err(|error| errno(&error))
}

fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// Every external frontend of `web`.
fn frontends() -> [String; 4] {
    [at("192.168.77.1", NODE_PORT), at("fd77::1", NODE_PORT), at(VIP, 80), at(VIP_V6, 80)]
}

with_either_backend!(
    a_client_elsewhere_is_served_and_everything_goes_again,
    the_local_policy_serves_from_this_node_only,
    source_ranges_hold_for_the_load_balancer_alone,
    health_checks_are_answered,
    labels_and_listeners_of_others_are_respected_live,
);

fn a_client_elsewhere_is_served_and_everything_goes_again(backend: &str) {
    let extra = json!({"externalIPs": [EXTERNAL]});
    let before = std::cell::RefCell::new(None);
    let scene = Scene::with(
        "remote",
        backend,
        &cluster(web(&extra), &[THERE]),
        |node| {
            // The bridge settles a moment after its first port.
            eventually("the bridge is up", SOON, || {
                node.must(&["ip", "link", "show", "cni0"]).contains("state UP").then_some(())
            });
            *before.borrow_mut() = Some(node.state());
        },
        |agent| agent,
    );
    for to in frontends() {
        for (place, client) in scene.clients() {
            assert_eq!(
                ask(client, &to).as_deref(),
                Ok("from b"),
                "from {place} to {to}\n{}",
                scene.agent.log()
            );
        }
    }
    let told = scene.a.edgesplice_json(&["resolve", &at(VIP, 80), "-o", "json"]);
    assert_eq!((&told["verdict"], &told["frontend"]), (&json!("proxied"), &json!(at(VIP, 80))), "{told}");
    // Not asked for: the external address, another port of the address, a load balancer that wants to see its traffic.
    for to in [at(EXTERNAL, 80), at(VIP, 81), at("192.0.2.11", 80)] {
        assert!(ask(&scene.client, &to).is_err(), "{to}");
    }
    assert_eq!(ask(&scene.client, &at("192.168.77.1", 30081)), Err(Errno::ECONNREFUSED), "nobody's port");
    assert!(ask(&scene.client, &at("10.244.1.1", NODE_PORT)).is_err(), "not the node's own address");
    assert_eq!(scene.client.connect("192.168.77.2:30080").err(), Some(Errno::ECONNREFUSED), "another node");

    // Nobody there: refused, not accepted and reset.
    let rules = scene.a.rule_count();
    scene.agent.write("cluster.json", &cluster(web(&extra), &[]));
    for to in frontends() {
        for (place, client) in scene.clients() {
            eventually(&format!("refused from {place} to {to}"), SOON, || {
                (client.connect(&to).err() == Some(Errno::ECONNREFUSED)).then_some(())
            });
        }
    }
    // The number of rules does not hang on the number of Services.
    let many = (0..50_u16).flat_map(|n| {
        let [mut service, slice] =
            objects::pair(&format!("s{n}"), &format!("10.96.1.{n}"), 80, 7001, &["192.168.77.2"]);
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(30100 + n);
        [service, slice]
    });
    scene.agent.write("many.json", &objects::list(many));
    eventually("the last of many", SOON, || ask(&scene.client, "192.168.77.1:30149").ok());
    assert_eq!(scene.a.rule_count(), rules);

    // Someone empties a set: mended.
    scene.a.must(&["ipset", "flush", "edgesplice-external-v4"]);
    eventually("served again", Duration::from_secs(10), || ask(&scene.client, "192.168.77.1:30149").ok());

    let (a, client) = (scene.a.clone(), scene.client.clone());
    assert_eq!(scene.agent.stop(), 0);
    before.into_inner().expect("a state").assert_same(&a.state(), "after the end");
    assert_eq!(client.connect("192.168.77.1:30080").err(), Some(Errno::ECONNREFUSED));
}

fn the_local_policy_serves_from_this_node_only(backend: &str) {
    let local = json!({"externalTrafficPolicy": "Local"});
    let scene = Scene::new("local", backend, &cluster(web(&local), &[HERE, THERE]));
    for to in frontends() {
        for _ in 0..6 {
            assert_eq!(ask(&scene.client, &to).as_deref(), Ok("from a"), "{to}\n{}", scene.agent.log());
        }
    }
    // The node's own clients have the whole cluster.
    for (place, client) in scene.clients().into_iter().skip(1) {
        eventually(&format!("both backends from {place}"), SOON, || {
            (ask(client, &at("192.168.77.1", NODE_PORT)).as_deref() == Ok("from b")).then_some(())
        });
    }
    // A terminating one serves while there is none better here, though others are ready elsewhere.
    let ending = ("a", 1, ENDING);
    scene.change(&cluster(web(&local), &[ending, THERE]), "192.168.77.1:30080", Ok("from a"));
    scene.change(&cluster(web(&local), &[THERE]), "192.168.77.1:30080", Err(Errno::ECONNREFUSED));
    for to in frontends() {
        let started = Instant::now();
        assert_eq!(scene.client.connect(&to).err(), Some(Errno::ECONNREFUSED), "{to}");
        assert!(started.elapsed() < Duration::from_secs(1), "{to}");
        for (place, client) in scene.clients().into_iter().skip(1) {
            assert_eq!(ask(client, &to).as_deref(), Ok("from b"), "from {place} to {to}");
        }
    }
    let told = scene.a.edgesplice_json(&["resolve", "192.168.77.1:30080", "-o", "json"]);
    assert_eq!(told["verdict"], "refused", "{told}");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("externalTrafficPolicy is Local")), "{told}");
    assert_eq!(told["service"]["name"], "web", "{told}");
    let listed = scene.agent.service("web")["frontends"].clone();
    let listed: Vec<&str> = listed.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let mut wanted = vec!["10.96.0.50:80".to_owned(), "[fd00:10:96::50]:80".to_owned()];
    wanted.extend(frontends());
    assert_eq!(listed, wanted);
}

fn source_ranges_hold_for_the_load_balancer_alone(backend: &str) {
    let ranges = json!({"loadBalancerSourceRanges": ["192.168.77.3/32", "fd77::3/128"]});
    let scene = Scene::new("ranges", backend, &cluster(web(&ranges), &[THERE]));
    for to in frontends() {
        assert_eq!(ask(&scene.client, &to).as_deref(), Ok("from b"), "{to}\n{}", scene.agent.log());
    }
    scene.b.ip("route replace 192.0.2.0/24 via 192.168.77.1\nroute replace fd99::/64 via fd77::1\n");
    for to in [at(VIP, 80), at(VIP_V6, 80)] {
        for (place, client) in [("another node", &*scene.b), ("a pod", &*scene.pod), ("the host", &*scene.a)]
        {
            assert_eq!(ask(client, &to), Err(Errno::ETIMEDOUT), "from {place} to {to}");
        }
    }
    for to in ["192.168.77.1:30080", "[fd77::1]:30080"] {
        assert_eq!(ask(&scene.b, to).as_deref(), Ok("from b"), "{to}");
    }
    assert_eq!(ask(&scene.pod, "10.96.0.50:80").as_deref(), Ok("from b"));
    // Changed live, and taken away.
    let wider = json!({"loadBalancerSourceRanges": ["192.168.77.0/24", "0.0.0.0/0", "fd77::/64"]});
    scene.agent.write("cluster.json", &cluster(web(&wider), &[THERE]));
    eventually("the wider range", SOON, || ask(&scene.b, &at(VIP, 80)).ok());
    eventually("the wider range, IPv6", SOON, || ask(&scene.b, &at(VIP_V6, 80)).ok());
    scene.agent.write("cluster.json", &cluster(web(&json!({})), &[THERE]));
    eventually("no range", SOON, || ask(&scene.pod, &at(VIP_V6, 80)).ok());
    assert_eq!(scene.agent.status()["rules"]["lastError"], "");
}

/// The status code, the headers in lower case and the body of `GET /anything`.
fn health(client: &Netns, to: &str) -> Result<(String, String, Value), Errno> {
    let mut stream = client.connect_within(to, Duration::from_secs(1))?;
    let asked =
        stream.write_all(b"GET /anything HTTP/1.1\r\nHost: x\r\n\r\n").and_then(|()| read_all(&mut stream));
    let text = asked.map_err(|error| errno(&error))?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text}"));
    let code = head.split(' ').nth(1).unwrap_or_default().to_owned();
    Ok((code, head.to_lowercase(), serde_json::from_str(body).expect("JSON")))
}

fn health_checks_are_answered(backend: &str) {
    let asked = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 31500});
    let drop_by_default = |node: &Node| {
        let restore = format!("iptables-{backend}-restore");
        node.feed(
            &[&restore, "--noflush"],
            "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n\
             -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n",
        );
    };
    let manifest = cluster(web(&asked), &[HERE, THERE]);
    let scene = Scene::with("health", backend, &manifest, drop_by_default, |agent| agent);
    for to in ["192.168.77.1:31500", "[fd77::1]:31500"] {
        let (code, head, body) = eventually(to, SOON, || health(&scene.client, to).ok());
        assert_eq!(code, "200", "{to}: {head}");
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 1",
        ] {
            assert!(head.contains(header), "{to}: {header}: {head}");
        }
        let wanted = json!({"service": {"namespace": "default", "name": "web"}, "localEndpoints": 1,
            "serviceProxyHealthy": true});
        assert_eq!(body, wanted, "{to}");
    }
    // Terminating endpoints still serve, but the balancer is to send nobody new.
    let ending = ("a", 1, ENDING);
    scene.agent.write("cluster.json", &cluster(web(&asked), &[ending, THERE]));
    let (code, _, body) = eventually("503", SOON, || {
        health(&scene.client, "192.168.77.1:31500").ok().filter(|(code, ..)| code == "503")
    });
    assert_eq!((code.as_str(), &body["localEndpoints"]), ("503", &json!(0)));
    assert_eq!(ask(&scene.client, "192.168.77.1:30080").as_deref(), Ok("from a"));
    scene.agent.write("cluster.json", &cluster(web(&json!({})), &[HERE]));
    eventually("the port is closed", SOON, || {
        (health(&scene.client, "192.168.77.1:31500").is_err()
            && scene.a.must(&["ss", "-Htln", "sport = :31500"]).is_empty())
        .then_some(())
    });
}

fn labels_and_listeners_of_others_are_respected_live(backend: &str) {
    let scene = Scene::new("labels", backend, &cluster(web(&json!({})), &[THERE]));
    let labelled = |key: &str, value: &str| {
        let mut service = web(&json!({}));
        service["metadata"]["labels"] = json!({key: value});
        cluster(service, &[THERE])
    };
    assert_eq!(ask(&scene.client, "192.168.77.1:30080").as_deref(), Ok("from b"));
    for (key, value) in [
        ("service.kubernetes.io/service-proxy-name", "other"),
        ("service.kubernetes.io/headless", ""),
        ("service.edgemesh.kubeedge.io/service-proxy-name", ""),
        ("noproxy", "edgemesh"),
    ] {
        scene.agent.write("cluster.json", &labelled(key, value));
        // Not intercepted: its packets take their ordinary way, which for a ClusterIP is none.
        eventually(&format!("{key} takes the service away"), SOON, || {
            (scene.a.edgesplice_json(&["resolve", "10.96.0.50:80", "-o", "json"])["verdict"]
                == "not-intercepted")
                .then_some(())
        });
        eventually(&format!("{key}: the rules follow"), SOON, || {
            ask(&scene.pod, "10.96.0.50:80").is_err().then_some(())
        });
        eventually(&format!("{key}: refused as any port is where nobody listens"), SOON, || {
            (ask(&scene.client, "192.168.77.1:30080") == Err(Errno::ECONNREFUSED)).then_some(())
        });
        scene.change(&cluster(web(&json!({})), &[THERE]), "192.168.77.1:30080", Ok("from b"));
        eventually(&format!("{key} gone"), SOON, || ask(&scene.pod, "10.96.0.50:80").ok());
    }
    // A process of the node has the port of a Service that comes later: it keeps it.
    let listener = Server::greeting(&scene.a, 30200, "the process");
    let [mut service, slice] = objects::pair("late", "10.96.0.60", 80, 7001, &["192.168.77.2"]);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(30200);
    scene.agent.write("late.json", &objects::list([service, slice]));
    let status = scene
        .agent
        .wait_for("a warning", SOON, |status| status.to_string().contains("a process of this node"));
    assert!(status["warnings"].to_string().contains("30200"), "{status}");
    assert_eq!(ask(&scene.client, "192.168.77.1:30200").as_deref(), Ok("the process"));
    // The warning comes from the look at the node's sockets, which does not wait for the rules.
    eventually("its ClusterIP is served", SOON, || {
        (ask(&scene.pod, "10.96.0.60:80").as_deref() == Ok("from b")).then_some(())
    });
    let told = scene.a.edgesplice_json(&["resolve", "192.168.77.1:30200", "-o", "json"]);
    assert_eq!(told["verdict"], "not-intercepted", "{told}");
    // It goes: the Service has its port at the next look, which is every ten seconds.
    drop(listener);
    eventually("the port is the Service's", Duration::from_secs(20), || {
        (ask(&scene.client, "192.168.77.1:30200").as_deref() == Ok("from b")).then_some(())
    });
}

/// Settings that only the configuration file has.
fn configured(scene_lab: &str, intercept: &str) -> Scene {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\nintercept: {intercept}\n"
    );
    std::fs::write(file.path(), text).expect("a configuration");
    let path = file.path().display().to_string();
    let extra = json!({"externalIPs": [EXTERNAL]});
    Scene::with(
        scene_lab,
        "nft",
        &cluster(web(&extra), &[THERE]),
        |_| {},
        |agent| agent.args(&["--config", &path]),
    )
}

#[test]
fn external_addresses_are_served_where_asked_for() {
    let scene = configured("external", "{externalIPs: true, nodePorts: false}");
    assert_eq!(ask(&scene.client, &at(EXTERNAL, 80)).as_deref(), Ok("from b"), "{}", scene.agent.log());
    assert_eq!(ask(&scene.client, "192.168.77.1:30080"), Err(Errno::ECONNREFUSED));
}

#[test]
fn node_ports_are_served_on_the_addresses_asked_for() {
    let scene = configured("addresses", "{nodePortAddresses: [10.244.0.0/16, 127.0.0.0/8]}");
    assert_eq!(ask(&scene.pod, "10.244.1.1:30080").as_deref(), Ok("from b"), "{}", scene.agent.log());
    assert_eq!(ask(&scene.a, "127.0.0.1:30080").as_deref(), Ok("from b"));
    assert_eq!(ask(&scene.client, "192.168.77.1:30080"), Err(Errno::ECONNREFUSED));
}
