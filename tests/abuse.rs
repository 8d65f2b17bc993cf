//! Clients that do what no honest client does: bounded memory, nothing relayed that must not be, others unharmed.

#![allow(clippy::print_stdout, reason = "sizes are shown beside the bounds that are asserted")]

mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::{Agent, AgentBuilder, Lab, Netns, Node, Pod, Server, errno, eventually, objects, read_all};
use nix::errno::Errno;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
/// Most that all the abuse of one test may cost in memory. A debug build that leaks a buffer for each of some thousand
/// connections takes several times that.
const MOST_KIB: u64 = 16 * 1024;

struct Scene {
    a: Node,
    abuser: Pod,
    client: Pod,
    _good: Server,
    _stream: Server,
    lab: Lab,
}

impl Scene {
    fn new(label: &str) -> Self {
        edgesplice::net::sock::raise_nofile().expect("descriptors");
        let lab = Lab::new(label);
        let (a, b) = (lab.node("a"), lab.node("b"));
        let (abuser, client) = (a.pod("abuser"), a.pod("client"));
        let good = Server::echo(&b, 7000);
        let stream = Server::start(&b, 7001, |mut stream| {
            let chunk = vec![7; 64 * 1024];
            while stream.write_all(&chunk).is_ok() {}
        });
        Self { a, abuser, client, _good: good, _stream: stream, lab }
    }

    fn agent(&self) -> AgentBuilder {
        let good = objects::pair("good", "10.96.2.1", 80, 7000, &["192.168.77.2"]);
        let endless = objects::pair("endless", "10.96.2.2", 80, 7001, &["192.168.77.2"]);
        Agent::on(&self.a).manifest("objects.json", &objects::list([good, endless].concat()))
    }

    /// Holding first packets as well.
    fn holding(&self) -> AgentBuilder {
        let file = self.lab.dir().join("before-accept.yaml");
        let text = "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n\
                    intercept: {connect: before-accept}\n";
        std::fs::write(&file, text).expect("a configuration file");
        self.agent().args(&["--config", &file.display().to_string()])
    }
}

/// A client that behaves is served.
fn served(client: &Netns, agent: &Agent) {
    for number in 0..20 {
        let mut stream =
            client.connect("10.96.2.1:80").unwrap_or_else(|e| panic!("{number}: {e}; {}", agent.log()));
        stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0])).expect("an echo");
    }
}

fn resident_kib(agent: &Agent) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line about memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn assert_bounded(agent: &Agent, before: u64, what: &str) {
    let after = resident_kib(agent);
    println!("{what}: {before} KiB before, {after} KiB after");
    assert!(after <= before + MOST_KIB, "{what}: {before} KiB before, {after} KiB after");
}

/// Starts so many connections without waiting for any of them.
fn start(client: &Netns, to: &str, count: usize) -> Vec<socket2::Socket> {
    let to: SocketAddr = to.parse().expect("an address");
    client.enter(|| {
        let one = |_| {
            let kind = socket2::Type::STREAM.nonblocking();
            let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).expect("a socket");
            let _ = socket.connect(&to.into());
            socket
        };
        (0..count).map(one).collect()
    })
}

fn counter(agent: &Agent, name: &str) -> u64 {
    agent.status()["proxy"][name].as_u64().expect("a number")
}

/// From here on nothing that would complete a handshake reaches the pod.
fn deaf(pod: &Netns) {
    pod.must(&[
        "iptables-nft",
        "-A",
        "INPUT",
        "-p",
        "tcp",
        "--tcp-flags",
        "SYN,ACK",
        "SYN,ACK",
        "-j",
        "DROP",
    ]);
}

#[test]
fn half_open_connections_cost_nothing_here() {
    let scene = Scene::new("half-open");
    let agent = scene.agent().start();
    served(&scene.client, &agent);
    let (before, accepted) = (resident_kib(&agent), counter(&agent, "acceptedTotal"));
    deaf(&scene.abuser);
    let half = start(&scene.abuser, "10.96.2.1:80", 3_000);
    served(&scene.client, &agent);
    assert_bounded(&agent, before, "3,000 half-open connections");
    assert_eq!(counter(&agent, "acceptedTotal"), accepted + 20, "they never reach the program");
    drop(half);
}

#[test]
fn half_open_connections_that_are_held_are_bounded_and_counted() {
    let scene = Scene::new("half-held");
    let agent = scene.holding().start();
    served(&scene.client, &agent);
    let before = resident_kib(&agent);
    deaf(&scene.abuser);
    let half = start(&scene.abuser, "10.96.2.1:80", 3_000);
    served(&scene.client, &agent);
    assert_bounded(&agent, before, "3,000 half-open connections");
    // Those for whom a backend was connected are given up, and their backends closed.
    let sum = |status: &Value| {
        let hold = &status["proxy"]["hold"];
        (hold["heldTotal"].as_u64(), hold["unpairedTotal"].as_u64())
    };
    agent.wait_for("some were held for nobody", LIMIT, |status| sum(status).1 > Some(0));
    drop(half);
    eventually("every backend connection is closed", LIMIT, || {
        let service = agent.service("good");
        (service["backends"][0]["activeConnections"] == 0).then_some(())
    });
    served(&scene.client, &agent);
}

#[test]
fn clients_that_say_nothing_or_never_read_harm_nobody() {
    let scene = Scene::new("mute");
    let agent = scene.agent().start();
    served(&scene.client, &agent);
    let before = resident_kib(&agent);
    let open = |to: &str, count: usize| -> Vec<TcpStream> {
        (0..count).map(|_| scene.abuser.connect(to).expect("accepted")).collect()
    };
    let mute = open("10.96.2.1:80", 500);
    served(&scene.client, &agent);
    assert_bounded(&agent, before, "500 connections that say nothing");
    // Each backend sends without end; the rest waits in its kernel.
    let stalled = open("10.96.2.2:80", 100);
    std::thread::sleep(Duration::from_secs(2));
    served(&scene.client, &agent);
    assert_bounded(&agent, before, "and 100 clients that never read");
    drop((mute, stalled));
    agent.wait_for("all have ended", LIMIT, |status| status["proxy"]["activeConnections"] == 0);
}

#[test]
fn what_was_sent_here_by_no_rule_of_ours_is_turned_away_and_counted() {
    const COUNT: u64 = 200;
    let scene = Scene::new("astray");
    let agent = scene.agent().start();
    let port = counter(&agent, "port");
    let before = resident_kib(&agent);
    let turned_away = |to: &str| match scene.abuser.connect(to) {
        // The reset may come before `connect` returns.
        Err(error) => assert!([Errno::ECONNREFUSED, Errno::ECONNRESET].contains(&error), "{to}: {error}"),
        Ok(mut stream) => {
            let error = errno(&read_all(&mut stream).expect_err("it is reset"));
            assert_eq!(error, Errno::ECONNRESET);
        }
    };
    // Straight to the listener: the rules turn it away.
    (0..COUNT).for_each(|_| turned_away(&format!("10.244.1.1:{port}")));
    // Somebody else's rule sends what is in none of our ranges.
    let rule =
        format!("iptables-nft -t nat -A PREROUTING -d 203.0.113.0/24 -p tcp -j REDIRECT --to-ports {port}");
    scene.a.must(&rule.split(' ').collect::<Vec<_>>());
    let refused = counter(&agent, "refusedTotal");
    (0..COUNT).for_each(|_| turned_away("203.0.113.5:80"));
    agent.wait_for("each is counted", LIMIT, |status| {
        status["proxy"]["refusedTotal"].as_u64() == Some(refused + COUNT)
    });
    assert_bounded(&agent, before, "400 connections that have no business here");
    served(&scene.client, &agent);
}
