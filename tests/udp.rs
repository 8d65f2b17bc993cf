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
