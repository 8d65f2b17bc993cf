//! UDP services: pods and host, both families, both back ends, with and without iptables on bridges.

mod lab;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use lab::{Agent, Datagrams, Lab, Netns, Node, Pod, errno, eventually, objects};
use nix::errno::Errno;
use serde_json::{Value, json};

const ECHO: &str = "10.96.0.50:5000";
const ECHO_V6: &str = "[fd00:10:96::50]:5000";

struct Scene {
    a: Node,
    b: Node,
    routed: Pod,
    bridged: Pod,
    agent: Agent,
    _lab: Lab,
}

/// A UDP Service on port 5000 and its slices.
fn service(name: &str, ips: &[&str], target: u16, v4: &[&str], v6: &[&str]) -> Vec<Value> {
    let mut list = vec![objects::service(name, ips, &[("udp", 5000, target, "UDP")])];
    for addresses in [v4, v6].into_iter().filter(|list| !list.is_empty()) {
        list.push(objects::slice(name, &[("udp", target, "UDP")], addresses));
    }
    list
}

impl Scene {
    fn new(label: &str, backend: &str, bridge_calls_iptables: bool, manifest: &str) -> Self {
        let lab = Lab::new(&format!("{label}-{backend}"));
        let (a, b) = (lab.node("a"), lab.node("b"));
        let (routed, bridged) = (a.pod("routed"), a.bridged_pod("bridged"));
        let value = if bridge_calls_iptables { "1" } else { "0" };
        a.sysctl("net/bridge/bridge-nf-call-iptables", value);
        a.sysctl("net/bridge/bridge-nf-call-ip6tables", value);
        let agent = Agent::on(&a).backend(backend).manifest("cluster.json", manifest).start();
        Self { a, b, routed, bridged, agent, _lab: lab }
    }

    fn clients(&self) -> [(&str, &Netns); 3] {
        [("a routed pod", &self.routed), ("a bridged pod", &self.bridged), ("the host", &self.a)]
    }
}

fn ask(socket: &UdpSocket, question: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut answer = vec![0; 65_536];
    socket.send(question).map_err(|error| errno(&error))?;
    let length = socket.recv(&mut answer).map_err(|error| errno(&error))?;
    answer.truncate(length);
    Ok(answer)
}

fn said(answer: Result<Vec<u8>, Errno>) -> Result<String, Errno> {
    answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Answers come from the address that was asked (the sockets are connected), large datagrams come whole, and what
/// nobody serves is refused.
fn answers(backend: &str, bridge_calls_iptables: bool) {
    let manifest = objects::list(
        [
            service("echo", &["10.96.0.50", "fd00:10:96::50"], 7000, &["192.168.77.2"], &["fd77::2"]),
            service("nobody", &["10.96.0.51", "fd00:10:96::51"], 7000, &[], &[]),
        ]
        .concat(),
    );
    let scene = Scene::new("answers", backend, bridge_calls_iptables, &manifest);
    let _echo = Datagrams::echo(&scene.b, 7000);
    for (place, client) in scene.clients() {
        for to in [ECHO, ECHO_V6] {
            let socket = client.udp_from(0, to);
            for size in [1, 0, 512, 1_472, 1_473, 2_000, 9_000, 65_507] {
                let question: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
                let answer = ask(&socket, &question);
                assert!(
                    answer.as_ref() == Ok(&question),
                    "{size} bytes from {place} to {to}: {:?}\n{}",
                    answer.map(|bytes| bytes.len()),
                    scene.agent.log()
                );
            }
        }
        for to in ["10.96.0.51:5000", "[fd00:10:96::51]:5000", "10.96.0.50:5001", "[fd00:10:96::50]:53"] {
            let started = Instant::now();
            assert_eq!(client.ask_udp(to, b"?"), Err(Errno::ECONNREFUSED), "from {place} to {to}");
            assert!(started.elapsed() < Duration::from_secs(1), "from {place} to {to}");
        }
    }
    let echo = scene.agent.service("echo");
    assert_eq!((&echo["mode"], &echo["connectionsTotal"]), (&json!("udp"), &json!(6)), "{echo}");
    assert!(echo["bytesOutTotal"] == 6 * 79_965, "{echo}");
}

#[test]
fn answers_nft() {
    answers("nft", false);
}

#[test]
fn answers_nft_with_iptables_on_bridges() {
    answers("nft", true);
}

#[test]
fn answers_legacy_with_iptables_on_bridges() {
    answers("legacy", true);
}

#[test]
fn a_default_deny_host_is_served_all_the_same() {
    let lab = Lab::new("udp-deny");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("pod");
    a.feed(
        &["iptables-nft-restore", "--noflush"],
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n\
         -A INPUT -i lo -p tcp -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n",
    );
    let manifest = objects::list(service("echo", &["10.96.0.50"], 7000, &["192.168.77.2"], &[]));
    let _agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest).start();
    let _echo = Datagrams::echo(&b, 7000);
    for client in [&*pod, &*a] {
        assert_eq!(client.ask_udp(ECHO, b"hello"), Ok(b"hello".to_vec()), "from {}", client.name());
    }
}

/// One socket, so one five-tuple all along: it follows its service wherever that goes.
#[test]
fn a_flow_follows_its_service_at_once() {
    let set = |v4: &[&str]| objects::list(service("who", &["10.96.0.52"], 7001, v4, &[]));
    let scene = Scene::new("follow", "nft", true, &set(&["192.168.77.2"]));
    let own = Datagrams::named(&scene.a, 7001, "a");
    let _other = Datagrams::named(&scene.b, 7001, "b");
    for (place, client) in scene.clients() {
        let socket = client.udp_from(12_345, "10.96.0.52:5000");
        let becomes = |what: &str, manifest: &str, wanted: &Result<String, Errno>| {
            scene.agent.write("cluster.json", manifest);
            eventually(&format!("from {place}: {what}"), Duration::from_secs(5), || {
                let answer = said(ask(&socket, b"who?"));
                (answer == *wanted).then_some(()).or_else(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    None
                })
            });
            // And it stays so: nothing old is left anywhere. Refusals to one peer are limited by the kernel, after
            // six, to one a second (`icmp_ratelimit`).
            for _ in 0..if wanted.is_ok() { 3 } else { 1 } {
                std::thread::sleep(Duration::from_millis(if wanted.is_ok() { 1 } else { 1_100 }));
                assert_eq!(said(ask(&socket, b"who?")), *wanted, "from {place}: {what}, later");
            }
        };
        becomes("it begins at b", &set(&["192.168.77.2"]), &Ok("b".to_owned()));
        becomes("its backend is replaced", &set(&["192.168.77.1"]), &Ok("a".to_owned()));
        becomes("its last backend goes", &set(&[]), &Err(Errno::ECONNREFUSED));
        becomes("a backend comes", &set(&["192.168.77.2"]), &Ok("b".to_owned()));
        becomes("the service is deleted", &objects::list([]), &Err(Errno::ECONNREFUSED));
        becomes("and made again", &set(&["192.168.77.2"]), &Ok("b".to_owned()));
    }
    assert!(own.taken() > 0);
}

#[test]
fn an_unreachable_backend_is_left_for_another() {
    let manifest =
        objects::list(service("half", &["10.96.0.53"], 7002, &["192.168.77.1", "192.168.77.2"], &[]));
    let scene = Scene::new("unreachable", "nft", false, &manifest);
    let _live = Datagrams::named(&scene.b, 7002, "b");
    // Node a itself has nobody on that port: its kernel says so to whoever asks.
    let mut lost = 0;
    for _ in 0..40 {
        let socket = scene.routed.udp_from(0, "10.96.0.53:5000");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        if ask(&socket, b"1").is_err() {
            lost += 1;
            // The same flow, the next datagram.
            assert_eq!(said(ask(&socket, b"2")), Ok("b".to_owned()), "{}", scene.agent.log());
        }
    }
    assert!((1..=4).contains(&lost), "{lost} of 40 flows lost their first datagram");
    let service = scene.agent.service("half");
    let dead =
        service["backends"].as_array().expect("a list").iter().find(|b| b["address"] == "192.168.77.1:7002");
    let dead = dead.expect("the backend on a");
    assert!(dead["failuresTotal"].as_u64() >= Some(1), "{service}");
    assert!(scene.agent.status()["proxy"]["udpUnreachableTotal"].as_u64() >= Some(1));
}

/// A host that is gone sends nothing back at all; the node's own kernel finds out, and the flow goes elsewhere.
#[test]
fn a_backend_whose_host_is_gone_is_left_for_another() {
    let v4 = ["192.168.77.99", "192.168.77.2"];
    let v6 = ["fd77::99", "fd77::2"];
    let manifest = objects::list(service("half", &["10.96.0.53", "fd00:10:96::53"], 7002, &v4, &v6));
    let scene = Scene::new("gone", "nft", true, &manifest);
    let _live = Datagrams::named(&scene.b, 7002, "b");
    let to = ["10.96.0.53:5000", "[fd00:10:96::53]:5000"];
    let mut waiting: Vec<UdpSocket> = (0..12).map(|n| scene.routed.udp_from(0, to[n % 2])).collect();
    for socket in &waiting {
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    }
    eventually("every flow is answered", Duration::from_mins(1), || {
        waiting.retain(|socket| ask(socket, b"?").is_err());
        waiting.is_empty().then_some(())
    });
    let service = scene.agent.service("half");
    let failures = |address: &str| {
        let backends = service["backends"].as_array().expect("a list");
        let one = backends.iter().find(|b| b["address"] == address);
        one.and_then(|b| b["failuresTotal"].as_u64()).unwrap_or(0)
    };
    assert!(failures("192.168.77.99:7002") + failures("[fd77::99]:7002") > 0, "{service}");
}

/// The way to the backend takes smaller packets than the node's own link, and says so: the flow goes on.
#[test]
fn a_narrow_way_does_not_end_a_flow() {
    let lab = Lab::new("udp-narrow");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let pod = a.pod("pod");
    // a → b → c, the second link narrower.
    let (_, far) = b.wire(&c);
    b.ip("link set wire2to3 mtu 1300\n");
    c.ip("link set wire2to3 mtu 1300\nroute add 10.244.1.0/24 via 192.168.78.9\n");
    let back = format!("route replace 192.168.77.1/32 via {}\n", far.replace(".10", ".9"));
    c.ip(&back);
    a.ip(&format!("route add {far}/32 via 192.168.77.2\n"));
    let manifest = objects::list(service("echo", &["10.96.0.50"], 7000, &[&far], &[]));
    let agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest).start();
    let _echo = Datagrams::echo(&c, 7000);
    let socket = pod.udp_from(0, ECHO);
    assert_eq!(ask(&socket, b"small"), Ok(b"small".to_vec()), "{}", agent.log());
    let large = vec![9; 1_400];
    // The first is lost to the discovery.
    eventually("a large one", Duration::from_secs(20), || {
        (ask(&socket, &large).as_ref() == Ok(&large)).then_some(())
    });
    let service = agent.service("echo");
    assert_eq!(
        (&service["connectionsTotal"], &service["backends"][0]["failuresTotal"]),
        (&json!(1), &json!(0))
    );
}

#[test]
fn affinity_holds_a_client_to_its_backend() {
    let mut list = service("pinned", &["10.96.0.54"], 7003, &["192.168.77.1", "192.168.77.2"], &[]);
    list[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    let scene = Scene::new("affinity", "nft", false, &objects::list(list));
    let _servers = [Datagrams::named(&scene.a, 7003, "a"), Datagrams::named(&scene.b, 7003, "b")];
    for (place, client) in scene.clients() {
        let first = said(client.ask_udp("10.96.0.54:5000", b"?")).expect(place);
        for _ in 0..12 {
            assert_eq!(said(client.ask_udp("10.96.0.54:5000", b"?")).as_ref(), Ok(&first), "from {place}");
        }
    }
}

#[test]
fn many_clients_at_once_get_each_their_own_answer() {
    let manifest = objects::list(service("echo", &["10.96.0.50"], 7000, &["192.168.77.2"], &[]));
    let scene = Scene::new("crowd", "nft", false, &manifest);
    let _echo = Datagrams::echo(&scene.b, 7000);
    let sockets: Vec<UdpSocket> = (0..2_000).map(|_| scene.routed.udp_from(0, ECHO)).collect();
    for round in 0..3_u32 {
        for part in sockets.chunks(100) {
            for (n, socket) in part.iter().enumerate() {
                socket.send(format!("{round}-{n}").as_bytes()).expect("a datagram leaves");
            }
            for (n, socket) in part.iter().enumerate() {
                let mut answer = [0; 64];
                let length = socket.recv(&mut answer).expect("an answer");
                assert_eq!(&answer[..length], format!("{round}-{n}").as_bytes());
            }
        }
    }
    let status = scene.agent.status();
    assert_eq!(status["proxy"]["udpFlows"], 2_000, "{status}");
}

/// With all places taken, a new flow takes that of one that has been silent, and loses nothing.
#[test]
fn a_new_flow_finds_a_place_when_all_are_taken() {
    let manifest = objects::list(service("echo", &["10.96.0.50"], 7000, &["192.168.77.2"], &[]));
    let lab = Lab::new("udp-places");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let agent = Agent::on(&a)
        .backend("nft")
        .wrapped(&["prlimit", "--nofile=1600:1600"])
        .manifest("cluster.json", &manifest)
        .start();
    let _echo = Datagrams::echo(&b, 7000);
    // An eighth of the descriptors are flows at most.
    let pod = a.pod("pod");
    let sockets: Vec<UdpSocket> = (0..500).map(|_| pod.udp_from(0, ECHO)).collect();
    for (n, socket) in sockets.iter().enumerate() {
        assert_eq!(ask(socket, b"?"), Ok(b"?".to_vec()), "flow {n}\n{}", agent.log());
    }
    let status = agent.status();
    assert_eq!(status["proxy"]["udpFlows"], 200, "{status}");
    assert_eq!(status["proxy"]["udpDroppedTotal"], 0, "{status}");
}

/// A flood takes places from the service that is flooded, and there from the client that has most of them.
#[test]
fn a_flood_takes_no_place_of_others() {
    let manifest = objects::list(
        [
            service("echo", &["10.96.0.50"], 7000, &["192.168.77.2"], &[]),
            service("beside", &["10.96.0.51"], 7000, &["192.168.77.2"], &[]),
        ]
        .concat(),
    );
    let lab = Lab::new("udp-flood");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let agent = Agent::on(&a)
        .backend("nft")
        // An eighth of them: 200 flows.
        .wrapped(&["prlimit", "--nofile=1600:1600"])
        .manifest("cluster.json", &manifest)
        .start();
    let _echo = Datagrams::echo(&b, 7000);
    let (quiet, loud) = (a.pod("quiet"), a.pod("loud"));
    let open = |pod: &Pod, to: &str| (0..20).map(|_| pod.udp_from(0, to)).collect::<Vec<_>>();
    let others: Vec<UdpSocket> = ["10.96.0.51:5000", ECHO].iter().flat_map(|to| open(&quiet, to)).collect();
    let others_ask = |when: &str| {
        for (n, socket) in others.iter().enumerate() {
            assert_eq!(ask(socket, b"?"), Ok(b"?".to_vec()), "flow {n} {when}\n{}", agent.log());
        }
    };
    others_ask("before");
    // Kept, so that no port is used twice.
    let flood: Vec<UdpSocket> = (0..600).map(|_| loud.udp_from(0, ECHO)).collect();
    for (n, socket) in flood.iter().enumerate() {
        assert_eq!(ask(socket, b"!"), Ok(b"!".to_vec()), "flow {n} of the flood\n{}", agent.log());
    }
    others_ask("after");
    let status = agent.status();
    assert_eq!(status["proxy"]["udpFlows"], 200, "{status}");
    // None of theirs was begun a second time.
    assert_eq!(agent.service("beside")["connectionsTotal"], 20, "{status}");
    assert_eq!(agent.service("echo")["connectionsTotal"], 620, "{status}");
}

/// Many datagrams handed to the kernel at once, as QUIC does: they arrive one by one, unchanged, and so do the answers,
/// also where they cannot travel together because the way to the backend takes smaller packets.
#[test]
fn bunches_keep_their_boundaries() {
    use nix::sys::socket::{setsockopt, sockopt};
    let ips = ["10.96.0.50", "fd00:10:96::50"];
    let manifest = objects::list(service("echo", &ips, 7000, &["192.168.77.2"], &["fd77::2"]));
    let scene = Scene::new("bunch", "nft", true, &manifest);
    let _echo = Datagrams::echo(&scene.b, 7000);
    for mtu in ["1500", "1300"] {
        scene.a.ip(&format!("link set eth0 mtu {mtu}\n"));
        for (place, client) in scene.clients() {
            for to in [ECHO, ECHO_V6] {
                let socket = client.udp_from(0, to);
                setsockopt(&socket, sockopt::UdpGsoSegment, &1_200).expect("the kernel has bunches");
                for (count, size) in [(16, 1_200), (3, 1_200), (1, 700)] {
                    // The last of each is shorter.
                    let total = count * size - 100;
                    let bytes: Vec<u8> = (0..total).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
                    socket.send(&bytes).unwrap_or_else(|e| panic!("from {place} to {to}: {e}"));
                    for expected in bytes.chunks(1_200) {
                        let mut answer = vec![0; 2_048];
                        let length = socket.recv(&mut answer).unwrap_or_else(|e| {
                            panic!(
                                "from {place} to {to}, {total} bytes, mtu {mtu}: {e}\n{}",
                                scene.agent.log()
                            )
                        });
                        assert!(answer[..length] == *expected, "from {place} to {to}: {length} bytes");
                    }
                }
            }
        }
    }
}

#[test]
fn the_end_leaves_nothing_and_no_flow() {
    let lab = Lab::new("udp-end");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("pod");
    let before = a.state();
    let manifest = objects::list(service("echo", &["10.96.0.50"], 7000, &["192.168.77.2"], &[]));
    let agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest).start();
    let _echo = Datagrams::echo(&b, 7000);
    for client in [&*pod, &*a] {
        assert_eq!(client.ask_udp(ECHO, b"hello"), Ok(b"hello".to_vec()));
    }
    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after the end");
    let flows = a.run(&["conntrack", "-L", "-p", "udp", "--orig-dst", "10.96.0.50"]).stdout;
    assert_eq!(flows.trim(), "", "flows are still remembered");
}

/// A load balancer's addresses, on no interface.
const VIP: &str = "192.0.2.10:5000";
const VIP_V6: &str = "[fd99::10]:5000";
const NODE_PORT: &str = "192.168.77.1:30053";
const NODE_PORT_V6: &str = "[fd77::1]:30053";

/// A dual-stack UDP Service for clients outside, with what `more` says, and backends on the nodes named.
fn outside(more: &Value, nodes: &[(&str, u8)]) -> String {
    let mut echo = objects::service("echo", &["10.96.0.50", "fd00:10:96::50"], &[("udp", 5000, 7000, "UDP")]);
    let spec = echo["spec"].as_object_mut().expect("a spec");
    spec["type"] = json!("LoadBalancer");
    spec["ports"][0]["nodePort"] = json!(30_053);
    spec.extend(more.as_object().expect("an object").clone());
    echo["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}, {"ip": "fd99::10"}]}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd44:1::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"},
            {"type": "InternalIP", "address": "fd77::1"}]}});
    let slices = ["192.168.77.", "fd77::"].map(|prefix| {
        let addresses: Vec<String> = nodes.iter().map(|(_, number)| format!("{prefix}{number}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let mut slice = objects::slice("echo", &[("udp", 7000, "UDP")], &addresses);
        let kind = if prefix.contains(':') { "IPv6" } else { "IPv4" };
        slice["addressType"] = json!(kind);
        slice["metadata"]["name"] = json!(format!("echo-{}", kind.to_lowercase()));
        for (at, (node, _)) in nodes.iter().enumerate() {
            slice["endpoints"][at]["nodeName"] = json!(node);
        }
        slice
    });
    objects::list([node, echo].into_iter().chain(slices))
}

struct Outside {
    scene: Scene,
    client: Node,
    _servers: [Datagrams; 2],
}

impl Outside {
    fn new(label: &str, backend: &str, bridge_calls_iptables: bool, manifest: &str) -> Self {
        let lab = Lab::new(&format!("{label}-{backend}"));
        let (a, b, client) = (lab.node("a"), lab.node("b"), lab.node("client"));
        let (routed, bridged) = (a.pod("routed"), a.bridged_pod("bridged"));
        let value = if bridge_calls_iptables { "1" } else { "0" };
        a.sysctl("net/bridge/bridge-nf-call-iptables", value);
        a.sysctl("net/bridge/bridge-nf-call-ip6tables", value);
        client.ip("route add 192.0.2.0/24 via 192.168.77.1\nroute add fd99::/64 via fd77::1\n");
        a.ip("route add 192.0.2.0/24 via 192.168.77.2\nroute add fd99::/64 via fd77::2\n");
        let servers = [Datagrams::named(&a, 7000, "from a"), Datagrams::named(&b, 7000, "from b")];
        let agent = Agent::on(&a).backend(backend).manifest("cluster.json", manifest).start();
        let scene = Scene { a, b, routed, bridged, agent, _lab: lab };
        Self { scene, client, _servers: servers }
    }

    fn clients(&self) -> [(&str, &Netns); 4] {
        let [routed, bridged, host] = self.scene.clients();
        [("elsewhere", &*self.client), routed, bridged, host]
    }

    /// Waits until each client gets `wanted` from each of the frontends. A refusal may be held back by the kernel's
    /// limit for them (`icmp_ratelimit`), so it is asked for again.
    fn all_get(&self, frontends: &[&str], wanted: &Result<&str, Errno>) {
        for to in frontends {
            for (place, client) in self.clients() {
                eventually(&format!("from {place} to {to}: {wanted:?}"), Duration::from_secs(10), || {
                    let answer = said(client.ask_udp(to, b"?"));
                    (answer.as_deref().map_err(|e| *e) == *wanted).then_some(())
                });
            }
        }
    }
}

/// Clients anywhere, at node ports and at a load balancer's addresses, while backends and policies change.
fn from_outside(backend: &str, bridge_calls_iptables: bool) {
    let all = [NODE_PORT, NODE_PORT_V6, VIP, VIP_V6];
    let outside_of =
        Outside::new("udp-out", backend, bridge_calls_iptables, &outside(&json!({}), &[("b", 2)]));
    let agent = &outside_of.scene.agent;
    outside_of.all_get(&all, &Ok("from b"));
    assert_eq!(outside_of.scene.agent.status()["warnings"], json!([]));
    let told = outside_of.scene.a.edgesplice_json(&["resolve", "192.168.77.1:30053/udp", "-o", "json"]);
    assert_eq!(told["verdict"], "proxied", "{told}");
    // Without the agent as well: its own open sockets are not in its way.
    let manifests = agent.state_dir().with_file_name("manifests").display().to_string();
    let args = ["rules", "--node-name", "a", "--manifests", &manifests, "--service-cidr", lab::SERVICE_CIDRS];
    let rules = outside_of.scene.a.edgesplice(&args);
    assert!(rules.stdout.contains("2 external frontends"), "{}{}", rules.stdout, rules.stderr);

    // One five-tuple, from outside: it follows its service, and is refused while that has nobody.
    let socket = outside_of.client.udp_from(12_345, NODE_PORT);
    assert_eq!(said(ask(&socket, b"?")), Ok("from b".to_owned()));
    let becomes = |manifest: &str, wanted: &Result<&str, Errno>| {
        agent.write("cluster.json", manifest);
        eventually(&format!("{wanted:?}"), Duration::from_secs(10), || {
            (said(ask(&socket, b"?")).as_deref().map_err(|e| *e) == *wanted).then_some(())
        });
    };
    becomes(&outside(&json!({}), &[("a", 1)]), &Ok("from a"));
    becomes(&outside(&json!({}), &[]), &Err(Errno::ECONNREFUSED));
    outside_of.all_get(&all, &Err(Errno::ECONNREFUSED));
    becomes(&outside(&json!({}), &[("b", 2)]), &Ok("from b"));

    // Only the node's own clients reach backends elsewhere when the policy says so.
    let local = json!({"externalTrafficPolicy": "Local"});
    becomes(&outside(&local, &[("b", 2)]), &Err(Errno::ECONNREFUSED));
    for (place, client) in outside_of.clients().into_iter().skip(1) {
        assert_eq!(said(client.ask_udp(VIP, b"?")).as_deref(), Ok("from b"), "from {place}");
    }
    becomes(&outside(&local, &[("a", 1), ("b", 2)]), &Ok("from a"));
    for _ in 0..6 {
        assert_eq!(said(outside_of.client.ask_udp(VIP_V6, b"?")).as_deref(), Ok("from a"));
    }

    // Source ranges drop.
    let ranges = json!({"loadBalancerSourceRanges": ["192.168.77.2/32", "fd77::3/128"]});
    agent.write("cluster.json", &outside(&ranges, &[("b", 2)]));
    eventually("the range has not the client", Duration::from_secs(10), || {
        (said(outside_of.client.ask_udp(VIP, b"?")) == Err(Errno::ETIMEDOUT)).then_some(())
    });
    for to in [VIP_V6, NODE_PORT] {
        assert_eq!(said(outside_of.client.ask_udp(to, b"?")).as_deref(), Ok("from b"), "{to}");
    }
}

#[test]
fn clients_outside_are_served_nft() {
    from_outside("nft", true);
}

#[test]
fn clients_outside_are_served_legacy() {
    from_outside("legacy", false);
}

/// A kernel that looks for the way back to a sender by the packet's mark, as `wg-quick` wants it, finds the sender.
#[test]
fn a_kernel_that_follows_marks_back_is_no_obstacle() {
    for strict in ["0", "1"] {
        let outside_of =
            Outside::new(&format!("udp-marks{strict}"), "nft", true, &outside(&json!({}), &[("b", 2)]));
        let scene = &outside_of.scene;
        scene.a.sysctl("net/ipv4/conf/all/src_valid_mark", "1");
        scene.a.sysctl("net/ipv4/conf/all/rp_filter", strict);
        let all = [NODE_PORT, NODE_PORT_V6, VIP, VIP_V6];
        outside_of.all_get(&all, &Ok("from b"));
        for (place, client) in scene.clients() {
            for to in [ECHO, ECHO_V6] {
                assert_eq!(said(client.ask_udp(to, b"?")).as_deref(), Ok("from b"), "from {place} to {to}");
            }
            for to in ["10.96.0.50:5001", "[fd00:10:96::50]:5001", "10.96.7.7:80", "[fd00:10:96::7]:80"] {
                assert_eq!(client.connect(to).map(drop), Err(Errno::ECONNREFUSED), "from {place} to {to}");
            }
        }
        scene.agent.write("cluster.json", &outside(&json!({}), &[]));
        outside_of.all_get(&all, &Err(Errno::ECONNREFUSED));
        assert_eq!(scene.agent.status()["warnings"], json!([]));
    }
}

/// What a process of the node has stays its own, and a backend that is a node port of this very node is no way.
#[test]
fn a_port_of_others_and_a_way_back_here_are_left_alone() {
    let lab = Lab::new("udp-taken");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let process = Datagrams::named(&a, 30_053, "the process");
    let manifest = outside(&json!({}), &[("b", 2)]);
    let agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest).start();
    let _server = Datagrams::named(&b, 7000, "from b");
    assert_eq!(said(b.ask_udp(NODE_PORT, b"?")).as_deref(), Ok("the process"));
    let status = agent.status();
    assert!(status["warnings"].to_string().contains("a process of this node listens there"), "{status}");
    drop(process);
    eventually("the port is the Service's", Duration::from_secs(30), || {
        (said(b.ask_udp(NODE_PORT, b"?")).as_deref() == Ok("from b")).then_some(())
    });
    let mut circle = service("circle", &["10.96.0.77"], 30_053, &["192.168.77.1"], &[]);
    circle[0]["spec"]["ports"][0]["targetPort"] = json!(30_053);
    agent.write("circle.json", &objects::list(circle));
    eventually("the circle is known", Duration::from_secs(10), || {
        agent.status()["services"].to_string().contains("circle").then_some(())
    });
    let before = agent.status()["proxy"]["udpFlows"].as_u64();
    for _ in 0..3 {
        assert!(a.ask_udp("10.96.0.77:5000", b"round").is_err());
    }
    assert_eq!(agent.status()["proxy"]["udpFlows"].as_u64(), before, "nothing goes round");
}
