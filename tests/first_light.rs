//! The main job: a client on a node without a pod network and without a default route reaches a service that runs
//! on another node, by its ClusterIP, and what is not served is refused at once. With either iptables back end.

mod lab;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use lab::{
    Agent, Lab, Netns, Node, Pod, Process, Server, errno, eventually, objects, read_all, with_either_backend,
};
use nix::errno::Errno;

const CLUSTER: &str = include_str!("fixtures/first-light.yaml");
const NGINX: &str = "10.96.191.183:12345";
const NGINX_V6: &str = "[fd00:10:96::b7]:12345";

/// The laboratory of every test here: nginx in a pod of `b`, published on port 8080; clients on `a`.
struct Scene {
    a: Node,
    b: Node,
    /// A pod of `a` behind a routed link.
    routed: Pod,
    /// A pod of `a` on the node's bridge.
    bridged: Pod,
    agent: Agent,
    _nginx: Process,
    _lab: Lab,
}

impl Scene {
    fn new(label: &str, backend: &str) -> Self {
        Self::with(label, backend, "", |_| {})
    }

    /// `prepare` does something to node `a` before the agent starts; `extra` is one more manifest.
    fn with(label: &str, backend: &str, extra: &str, prepare: impl FnOnce(&Node)) -> Self {
        let lab = Lab::new(&format!("{label}-{backend}"));
        let (a, b) = (lab.node("a"), lab.node("b"));
        let (routed, bridged, web) = (a.pod("routed"), a.bridged_pod("bridged"), b.pod("web"));
        let nginx = web.nginx(80, "web");
        b.publish(backend, 8080, &web, 80);
        prepare(&a);
        let mut agent = Agent::on(&a).backend(backend).manifest("cluster.yaml", CLUSTER);
        if !extra.is_empty() {
            agent = agent.manifest("extra.json", extra);
        }
        let agent = agent.start();
        Self { a, b, routed, bridged, agent, _nginx: nginx, _lab: lab }
    }

    /// Everywhere a client of `a` can be: in a pod of either kind, and on the host.
    fn clients(&self) -> [(&str, &Netns); 3] {
        [("a routed pod", &self.routed), ("a bridged pod", &self.bridged), ("the host", &self.a)]
    }
}

with_either_backend!(
    the_page_is_served_in_both_families,
    what_is_not_served_is_refused_at_once,
    the_listener_itself_is_no_relay,
    bytes_pass_both_ways_unchanged_and_ends_are_passed_on,
    a_host_that_drops_by_default_is_served_all_the_same,
);

fn the_page_is_served_in_both_families(backend: &str) {
    let scene = Scene::new("page", backend);
    for (place, client) in scene.clients() {
        for service in [NGINX, NGINX_V6] {
            let page = client.curl(&format!("http://{service}/"));
            let page = page
                .unwrap_or_else(|error| panic!("from {place} to {service}: {error}\n{}", scene.agent.log()));
            assert!(page.contains("Welcome to nginx!"), "from {place} to {service}: {page}");
        }
    }
    // The last connection may still be closing.
    let counted = |service: &serde_json::Value| {
        service["connectionsTotal"] == 6
            && service["bytesOutTotal"].as_u64().is_some_and(|bytes| bytes > 6 * 600)
    };
    let service = eventually("6 connections and their bytes in the status", Duration::from_secs(5), || {
        Some(scene.agent.service("nginx-svc")).filter(counted)
    });
    let mut backends: Vec<_> = service["backends"].as_array().expect("a list").iter().collect();
    backends.sort_by_key(|backend| backend["address"].to_string());
    let addresses: Vec<_> =
        backends.iter().map(|backend| backend["address"].as_str().expect("text")).collect();
    assert_eq!(addresses, ["192.168.77.2:8080", "[fd77::2]:8080"], "{service}");
    assert!(backends.iter().all(|backend| backend["reach"] == "host-port"), "{service}");
}

fn what_is_not_served_is_refused_at_once(backend: &str) {
    let scene = Scene::new("refused", backend);
    let cases = [
        ("a service that nobody runs", "10.96.0.20:80"),
        ("a service that nobody runs, IPv6", "[fd00:10:96::20]:80"),
        ("a port that the service does not have", "10.96.191.183:9999"),
        ("a port that the service does not have, IPv6", "[fd00:10:96::b7]:9999"),
        ("an address that is no service", "10.96.200.200:80"),
        ("an address that is no service, IPv6", "[fd00:10:96::ffff]:80"),
        ("a service that may only be asked where it runs", "10.96.0.30:80"),
    ];
    let datagrams = [
        ("a UDP service that nobody runs", "10.96.0.20:53"),
        ("a UDP service that nobody runs, IPv6", "[fd00:10:96::20]:53"),
        ("UDP to a service that is TCP", NGINX),
        ("UDP to an address that is no service", "10.96.200.200:53"),
        ("UDP to an address that is no service, IPv6", "[fd00:10:96::ffff]:53"),
    ];
    let mut wrong = Vec::new();
    let mut judge = |what: String, started: Instant, error: Option<Errno>| {
        let took = started.elapsed();
        if error != Some(Errno::ECONNREFUSED) || took > Duration::from_secs(1) {
            wrong.push(format!("{what}: {error:?} after {took:?}"));
        }
    };
    for (place, client) in scene.clients() {
        for (case, to) in cases {
            let started = Instant::now();
            let error = client.connect(to).err();
            judge(format!("from {place}: {case} ({to})"), started, error);
        }
        for (case, to) in datagrams {
            let started = Instant::now();
            let error = client.ask_udp(to, b"anyone?").err();
            judge(format!("from {place}: {case} ({to})"), started, error);
        }
    }
    assert!(wrong.is_empty(), "not refused within a second:\n{}\n{}", wrong.join("\n"), scene.agent.log());
}

fn the_listener_itself_is_no_relay(backend: &str) {
    let scene = Scene::new("direct", backend);
    let port = scene.agent.status()["proxy"]["port"].as_u64().expect("the acceptor's port");
    let attempts: [(&str, &Netns, String); 6] = [
        ("the other node", &scene.b, format!("192.168.77.1:{port}")),
        ("the other node, IPv6", &scene.b, format!("[fd77::1]:{port}")),
        ("a pod", &scene.routed, format!("10.244.1.1:{port}")),
        ("a bridged pod", &scene.bridged, format!("[fd44:1::1]:{port}")),
        ("the host, loopback", &scene.a, format!("127.0.0.1:{port}")),
        ("the host, its own address", &scene.a, format!("192.168.77.1:{port}")),
    ];
    for (place, client, to) in attempts {
        match client.connect(&to) {
            Err(error) => assert_eq!(error, Errno::ECONNREFUSED, "from {place} to {to}"),
            Ok(mut stream) => {
                // The reset shows in whichever call comes first.
                let said = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| read_all(&mut stream));
                let error = errno(&said.expect_err("a direct dial is reset, not answered"));
                assert!([Errno::ECONNRESET, Errno::EPIPE].contains(&error), "from {place} to {to}: {error}");
            }
        }
    }
}

fn bytes_pass_both_ways_unchanged_and_ends_are_passed_on(backend: &str) {
    let extra = objects::list(
        [
            objects::pair("eof", "10.96.0.41", 80, 7001, &["192.168.77.2"]),
            objects::pair("echo", "10.96.0.42", 80, 7002, &["192.168.77.2"]),
            objects::pair("reset", "10.96.0.43", 80, 7003, &["192.168.77.2"]),
            objects::pair("greet", "10.96.0.44", 80, 7004, &["192.168.77.2"]),
        ]
        .concat(),
    );
    let scene = Scene::with("stream", backend, &extra, |_| {});
    let _servers = [
        Server::echo_after_eof(&scene.b, 7001, Duration::from_secs(1)),
        Server::echo(&scene.b, 7002),
        Server::reset_after(&scene.b, 7003, b"part"),
        Server::greeting(&scene.b, 7004, "hello before any question"),
    ];
    for (place, client) in [("a pod", &*scene.routed), ("the host", &*scene.a)] {
        // The server speaks first.
        let mut stream = client.connect("10.96.0.44:80").expect(place);
        assert_eq!(read_all(&mut stream).expect(place), "hello before any question");

        // The client's end of file passes, and the answer to it comes back long after.
        let mut stream = client.connect("10.96.0.41:80").expect(place);
        let sent = "x".repeat(3_000_000);
        stream.write_all(sent.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write)).expect(place);
        assert!(read_all(&mut stream).expect(place) == sent, "from {place}: not what was sent");

        // Many bytes both ways at once, small and large.
        let mut stream = client.connect("10.96.0.42:80").expect(place);
        let sent: Vec<u8> = (0..8_000_000_u32).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
        let mut back = stream.try_clone().expect("a second handle");
        let mut received = vec![0; sent.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| sent.chunks(70_001).for_each(|part| stream.write_all(part).expect(place)));
            back.read_exact(&mut received).expect(place);
        });
        assert!(received == sent, "from {place}: not what was sent");
        drop((stream, back));

        // A reset is a reset, after the bytes before it.
        let mut stream = client.connect("10.96.0.43:80").expect(place);
        stream.write_all(b"go").expect(place);
        let mut first = [0; 4];
        stream.read_exact(&mut first).expect(place);
        assert_eq!(&first, b"part", "from {place}");
        assert_eq!(errno(&stream.read(&mut first).expect_err("a reset")), Errno::ECONNRESET, "from {place}");
    }
}

fn a_host_that_drops_by_default_is_served_all_the_same(backend: &str) {
    let scene = Scene::with("drop", backend, "", |node| {
        for family in ["iptables", "ip6tables"] {
            let restore = format!("{family}-{backend}-restore");
            // Neighbour discovery is a matter of ICMPv6 and must pass on any host.
            let icmp = if family == "ip6tables" { "-A INPUT -p ipv6-icmp -j ACCEPT\n" } else { "" };
            node.feed(
                &[&restore, "--noflush"],
                &format!(
                    "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n{icmp}\
                     -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
                ),
            );
        }
    });
    for (place, client) in scene.clients() {
        for service in [NGINX, NGINX_V6] {
            let page = client.curl(&format!("http://{service}/"));
            assert!(page.is_ok_and(|page| page.contains("Welcome to nginx!")), "from {place} to {service}");
        }
        assert_eq!(client.connect("10.96.0.20:80").err(), Some(Errno::ECONNREFUSED), "from {place}");
    }
}
