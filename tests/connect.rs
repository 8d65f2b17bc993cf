//! `intercept.connect: before-accept`: a client's first packet is held until a backend is connected. Every row of what a
//! client sees, and what happens when somebody dies, is slow, or comes twice.

mod lab;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use edgesplice::net::queue::Queue;
use lab::{
    Agent, AgentBuilder, Lab, Netns, Node, Pod, Server, errno, eventually, objects, read_all, read_until,
    with_either_backend,
};
use nix::errno::Errno;
use serde_json::{Value, json};

/// Generous: a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// The first queue of the agent (`rules::names::FIRST_QUEUE`).
const QUEUE: u16 = 23_700;

/// Node `a` with clients of every kind, node `b` with servers.
struct Scene {
    a: Node,
    b: Node,
    routed: Pod,
    bridged: Pod,
    lab: Lab,
}

impl Scene {
    fn new(label: &str) -> Self {
        let lab = Lab::new(label);
        let (a, b) = (lab.node("a"), lab.node("b"));
        let (routed, bridged) = (a.pod("routed"), a.bridged_pod("bridged"));
        Self { a, b, routed, bridged, lab }
    }

    fn clients(&self) -> [(&'static str, &Netns); 3] {
        [("a routed pod", &self.routed), ("a bridged pod", &self.bridged), ("the host", &self.a)]
    }

    /// An agent that holds first packets.
    fn agent(&self, objects: &str) -> AgentBuilder {
        self.agent_with("{}", objects)
    }

    /// The same with these settings of the data plane.
    fn agent_with(&self, proxy: &str, objects: &str) -> AgentBuilder {
        holding(&self.lab, &self.a, proxy, objects)
    }
}

/// An agent on `node` that holds first packets.
fn holding(lab: &Lab, node: &Node, proxy: &str, objects: &str) -> AgentBuilder {
    let file = lab.dir().join("before-accept.yaml");
    let text = format!(
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n\
             intercept: {{connect: before-accept}}\nproxy: {proxy}\n"
    );
    std::fs::write(&file, text).expect("a configuration file");
    Agent::on(node).args(&["--config", &file.display().to_string()]).manifest("objects.json", objects)
}

with_either_backend!(
    clients_of_every_kind_are_served_and_ends_are_passed_on,
    whoever_finds_nobody_is_refused_and_not_reset,
    what_is_not_served_is_refused_at_once,
    nothing_is_left_behind,
);

/// A service over both families: name, the last part of its addresses, its target port.
fn dual(name: &str, number: u8, target: u16) -> Vec<Value> {
    let (v4, v6) = (format!("10.96.1.{number}"), format!("fd00:10:96::1{number:02x}"));
    let service = objects::service(name, &[&v4, &v6], &[("tcp-0", 80, target, "TCP")]);
    let slice = |address| objects::slice(name, &[("tcp-0", target, "TCP")], &[address]);
    vec![service, slice("192.168.77.2"), slice("fd77::2")]
}

fn addresses(number: u8) -> [String; 2] {
    [format!("10.96.1.{number}:80"), format!("[fd00:10:96::1{number:02x}]:80")]
}

fn held(agent: &Agent, what: &str) -> u64 {
    agent.status()["proxy"]["hold"][what].as_u64().expect("packets are held")
}

fn clients_of_every_kind_are_served_and_ends_are_passed_on(backend: &str) {
    let scene = Scene::new(&format!("held-{backend}"));
    let objects = [dual("eof", 1, 7001), dual("reset", 2, 7002), dual("greet", 3, 7003)].concat();
    let agent = scene.agent(&objects::list(objects)).backend(backend).start();
    let _servers = [
        Server::echo_after_eof(&scene.b, 7001, Duration::from_millis(300)),
        Server::reset_after(&scene.b, 7002, b"part"),
        Server::greeting(&scene.b, 7003, "hello before any question"),
    ];
    for (place, client) in scene.clients() {
        for to in addresses(1) {
            let mut stream =
                client.connect(&to).unwrap_or_else(|e| panic!("{place} to {to}: {e}\n{}", agent.log()));
            let sent = "x".repeat(1_000_000);
            stream.write_all(sent.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write)).expect(place);
            assert!(read_all(&mut stream).expect(place) == sent, "{place} to {to}: not what was sent");
        }
        for to in addresses(2) {
            let mut stream = client.connect(&to).expect(place);
            stream.write_all(b"go").expect(place);
            let mut first = [0; 4];
            stream.read_exact(&mut first).expect(place);
            assert_eq!(&first, b"part", "{place} to {to}");
            assert_eq!(
                errno(&stream.read_exact(&mut first[..1]).expect_err("a reset")),
                Errno::ECONNRESET,
                "{place}"
            );
        }
        for to in addresses(3) {
            let mut stream = client.connect(&to).expect(place);
            assert_eq!(read_all(&mut stream).expect(place), "hello before any question", "{place} to {to}");
        }
    }
    // Each was held, and each found the backend that was dialled for it.
    assert_eq!((held(&agent, "heldTotal"), held(&agent, "passedTotal")), (18, 0), "{}", agent.log());
    let connections = |name: &str| agent.service(name)["backends"][0]["connectionsTotal"].as_u64();
    assert_eq!([connections("eof"), connections("reset"), connections("greet")], [Some(3); 3]);
    // Longer than an unpaired backend would be kept.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(held(&agent, "unpairedTotal"), 0);
}

fn whoever_finds_nobody_is_refused_and_not_reset(backend: &str) {
    let scene = Scene::new(&format!("nobody-{backend}"));
    // One for each client and family: the second client of one finds it refused already.
    let mut services: Vec<Value> = (10..16).flat_map(|n| dual(&format!("closed-{n}"), n, 7900)).collect();
    services.extend(dual("silent", 20, 7901));
    services.extend(objects::pair("half", "10.96.1.21", 80, 7003, &["192.168.77.2", "192.168.77.9"]));
    for family in ["iptables", "ip6tables"] {
        let program = format!("{family}-nft");
        scene.b.must(&[&program, "-A", "INPUT", "-p", "tcp", "--dport", "7901", "-j", "DROP"]);
    }
    let agent = scene.agent(&objects::list(services)).backend(backend).start();
    let _greeting = Server::greeting(&scene.b, 7003, "ok");
    for (number, (place, client)) in (10_u8..).step_by(2).zip(scene.clients()) {
        for (number, to) in (number..).zip([&addresses(number)[0], &addresses(number + 1)[1]]) {
            let error = client.connect(to).err();
            assert_eq!(error, Some(Errno::ECONNREFUSED), "{place} to {to} ({number})\n{}", agent.log());
        }
    }
    // Silence is not said before its time, and is a refusal as well.
    let silent = addresses(20);
    for (place, client) in scene.clients() {
        std::thread::scope(|scope| {
            let both: Vec<_> = silent
                .iter()
                .map(|to| scope.spawn(move || (client.connect_within(to, LIMIT).err(), to)))
                .collect();
            // Others do not notice.
            let mut stream = client.connect("10.96.1.21:80").expect(place);
            assert_eq!(read_all(&mut stream).expect(place), "ok");
            for one in both {
                let (error, to) = one.join().expect("it does not panic");
                assert_eq!(error, Some(Errno::ECONNREFUSED), "{place} to {to}\n{}", agent.log());
            }
        });
    }
    // Twelve clients; one whose first packet is sent again just as it is refused may be refused twice.
    let refused = held(&agent, "refusedTotal");
    assert!((12..=14).contains(&refused), "{refused} were refused\n{}", agent.log());
    // One of two is nobody's address: the other one is tried before the client hears anything.
    for number in 0..20 {
        let mut stream = scene.routed.connect("10.96.1.21:80").unwrap_or_else(|e| panic!("{number}: {e}"));
        assert_eq!(read_all(&mut stream).expect("an answer"), "ok", "{number}");
    }
}

fn what_is_not_served_is_refused_at_once(backend: &str) {
    let scene = Scene::new(&format!("unserved-{backend}"));
    let mut services = dual("web", 1, 7003);
    services.push(objects::service("empty", &["10.96.1.2", "fd00:10:96::102"], &[("tcp-0", 80, 80, "TCP")]));
    let mut local = objects::pair("local", "10.96.1.3", 80, 7003, &["192.168.77.2"]);
    local[0]["spec"]["internalTrafficPolicy"] = json!("Local");
    services.extend(local);
    let agent = scene.agent(&objects::list(services)).backend(backend).start();
    let _greeting = Server::greeting(&scene.b, 7003, "ok");
    let port = agent.status()["proxy"]["port"].as_u64().expect("the acceptor's port");
    let [empty, empty6] = addresses(2);
    for (place, client) in scene.clients() {
        for to in
            [&*empty, &*empty6, "10.96.1.1:81", "[fd00:10:96::101]:81", "10.96.77.77:80", "10.96.1.3:80"]
        {
            assert_eq!(
                client.connect(to).err(),
                Some(Errno::ECONNREFUSED),
                "{place} to {to}\n{}",
                agent.log()
            );
        }
        let own = format!("192.168.77.1:{port}");
        match client.connect(&own) {
            Err(error) => assert_eq!(error, Errno::ECONNREFUSED, "{place}"),
            Ok(mut stream) => assert!(read_all(&mut stream).is_err(), "{place}: a direct dial was answered"),
        }
        for to in addresses(1) {
            let mut stream = client.connect(&to).expect(place);
            assert_eq!(read_all(&mut stream).expect(place), "ok", "{place} to {to}");
        }
    }
    assert_eq!(held(&agent, "heldTotal"), 6, "what is not served is not held");
}

fn nothing_is_left_behind(backend: &str) {
    let lab = Lab::new(&format!("gone-{backend}"));
    // No bridge: it would settle meanwhile.
    let node = lab.node("a");
    let objects = objects::list(dual("greet", 3, 7003));
    let before = node.state();
    let agent = holding(&lab, &node, "{}", &objects).backend(backend).start();
    assert!(!before.diff(&node.state()).is_empty());
    assert_eq!(agent.stop(), 0);
    before.assert_same(&node.state(), "after the end");
    // A killed one leaves its rules, which `cleanup` knows.
    holding(&lab, &node, "{}", &objects).backend(backend).start().kill();
    assert!(!before.diff(&node.state()).is_empty());
    let run = node.edgesplice(&["cleanup", "--backup", &lab.dir().join("backup").display().to_string()]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    before.assert_same(&node.state(), "after cleanup");
}

/// A service whose only backend drops first packets until `open` is called.
fn shut(scene: &Scene) -> String {
    scene.b.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7001", "-j", "DROP"]);
    let mut pair = objects::pair("slow", "10.96.1.1", 80, 7001, &["192.168.77.2"]);
    pair[0]["metadata"]["annotations"] = json!({"edgesplice.io/connect-timeout": "60s"});
    objects::list(pair)
}

fn open(scene: &Scene) {
    scene.b.must(&["iptables-nft", "-F", "INPUT"]);
}

/// An agent that waits long for a dial.
fn patient(scene: &Scene) -> Agent {
    let objects = shut(scene);
    scene.agent_with("{dialBudget: 60s}", &objects).start()
}

#[test]
fn a_retransmitted_first_packet_is_no_second_connection() {
    let scene = Scene::new("again");
    let server = Server::echo(&scene.b, 7001);
    let agent = patient(&scene);
    for (round, (place, client)) in (1..).zip(scene.clients()) {
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| client.connect_within("10.96.1.1:80", Duration::from_mins(1)));
            // The client's second packet comes after one second, the backend's handshake is answered at its third.
            std::thread::sleep(Duration::from_millis(2_200));
            assert!(!connecting.is_finished(), "{place}: nothing is accepted before a backend is");
            open(&scene);
            let mut stream = connecting.join().expect("it does not panic").expect(place);
            stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0])).expect(place);
        });
        assert_eq!((server.accepted(), held(&agent, "heldTotal")), (round, round as u64), "{}", agent.log());
        scene.b.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7001", "-j", "DROP"]);
    }
}

#[test]
fn a_backend_connected_for_a_client_that_left_is_closed() {
    let scene = Scene::new("left");
    let ends = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&ends);
    let _server = Server::start(&scene.b, 7001, move |mut stream| {
        let _ = stream.read_exact(&mut [0; 1]);
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    let agent = patient(&scene);
    assert_eq!(
        scene.routed.connect_within("10.96.1.1:80", Duration::from_millis(300)).err(),
        Some(Errno::ETIMEDOUT)
    );
    open(&scene);
    eventually("the backend's end", LIMIT, || {
        (ends.load(std::sync::atomic::Ordering::Relaxed) == 1).then_some(())
    });
    agent.wait_for("it is counted", LIMIT, |status| status["proxy"]["hold"]["unpairedTotal"] == 1);
    assert_eq!(agent.service("slow")["backends"][0]["activeConnections"], 0);
}

#[test]
fn when_the_agent_is_killed_nobody_hangs() {
    let scene = Scene::new("killed");
    let _server = Server::echo(&scene.b, 7001);
    let mut agent = Some(patient(&scene));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = scene
            .clients()
            .map(|(place, client)| {
                (place, scope.spawn(move || client.connect_within("10.96.1.1:80", LIMIT).err()))
            })
            .into();
        agent
            .as_ref()
            .expect("it runs")
            .wait_for("all are held", LIMIT, |s| s["proxy"]["hold"]["heldTotal"] == 3);
        agent.take().expect("it runs").kill();
        for (place, one) in waiting {
            // The next packet of each passes the queue that nobody reads, and finds nobody listening.
            assert_eq!(one.join().expect("it does not panic"), Some(Errno::ECONNREFUSED), "{place}");
        }
    });
    for (place, client) in scene.clients() {
        assert_eq!(client.connect("10.96.1.1:80").err(), Some(Errno::ECONNREFUSED), "{place}");
    }
    // The next one takes over.
    open(&scene);
    let agent =
        scene.agent(&objects::list(objects::pair("slow", "10.96.1.1", 80, 7001, &["192.168.77.2"]))).start();
    for (place, client) in scene.clients() {
        let mut stream = client.connect("10.96.1.1:80").expect(place);
        stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0])).expect(place);
    }
    assert_eq!(held(&agent, "heldTotal"), 3);
}

#[test]
fn more_than_can_be_held_are_accepted_first() {
    const CLIENTS: u64 = 1_100;
    edgesplice::net::sock::raise_nofile().expect("descriptors");
    let scene = Scene::new("full");
    let _good = Server::greeting(&scene.b, 7003, "ok");
    scene.b.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7001", "-j", "DROP"]);
    let mut objects = objects::pair("silent", "10.96.1.1", 80, 7001, &["192.168.77.2"]).to_vec();
    objects.extend(objects::pair("good", "10.96.1.2", 80, 7003, &["192.168.77.2"]));
    let agent = scene.agent(&objects::list(objects)).start();
    let to: std::net::SocketAddr = "10.96.1.1:80".parse().expect("an address");
    let mut clients: Vec<_> = scene.routed.enter(|| {
        let one = |_| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None);
            let socket = socket.expect("a socket");
            let _ = socket.connect(&to.into());
            socket
        };
        (0..CLIENTS).map(one).collect()
    });
    // Some of the held are refused while the last ones come; who comes beyond the bound is accepted at once.
    let counted = |status: &Value| {
        let hold = &status["proxy"]["hold"];
        hold["heldTotal"].as_u64().zip(hold["passedTotal"].as_u64()).is_some_and(|(h, p)| h + p >= CLIENTS)
    };
    agent.wait_for("all have come", LIMIT, counted);
    let mut stream = scene.routed.connect("10.96.1.2:80").expect("others are served");
    assert_eq!(read_all(&mut stream).expect("an answer"), "ok");
    // In the end each is told, one way or the other.
    let end = Instant::now() + Duration::from_mins(1);
    for client in &mut clients {
        client.set_nonblocking(false).expect("a blocking socket");
        let mut ready = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(client),
            nix::poll::PollFlags::POLLIN | nix::poll::PollFlags::POLLHUP,
        )];
        let left =
            u16::try_from(end.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u16::MAX);
        assert_eq!(nix::poll::poll(&mut ready, left), Ok(1), "{} hangs", client.as_raw_fd());
        let error = client.take_error().expect("asked").map_or(Errno::UnknownErrno, |error| errno(&error));
        assert!([Errno::ECONNREFUSED, Errno::ECONNRESET].contains(&error), "{error}");
    }
}

#[test]
fn without_the_queues_backends_are_dialled_after_accept() {
    let scene = Scene::new("taken");
    let _server = Server::greeting(&scene.b, 7003, "ok");
    let taken = scene.a.enter(|| Queue::bind(QUEUE, 16)).expect("the queue is free");
    let agent = scene.agent(&objects::list(dual("greet", 3, 7003))).start();
    let status = agent.status();
    assert!(
        status["warnings"].to_string().contains("netfilter queues from 23700 on cannot be had"),
        "{status}"
    );
    assert!(status["proxy"]["hold"].is_null(), "{status}");
    for (place, client) in scene.clients() {
        for to in addresses(3) {
            let mut stream = client.connect(&to).expect(place);
            assert_eq!(read_all(&mut stream).expect(place), "ok", "{place} to {to}");
        }
    }
    drop(taken);
}

/// A server that writes its answer in two pieces, head and body, and leaves Nagle's algorithm on, as many small ones do,
/// keeps the second piece until the first is acknowledged. An acknowledgement that is held back costs the client 40 ms.
#[test]
fn an_answer_in_two_pieces_waits_for_no_acknowledgement() {
    const ASKED: u64 = 20;
    let lab = Lab::new("pieces");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let _server = Server::start(&b, 7000, |mut stream| {
        let mut request = [0; 1024];
        while matches!(stream.read(&mut request), Ok(1..)) {
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").is_err() {
                break;
            }
            let _ = stream.write_all(b"whole");
        }
    });
    let mut objects = Vec::from(objects::pair("stream", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
    objects.push(objects::service("web", &["10.96.0.51"], &[("http-0", 80, 7000, "TCP")]));
    objects.push(objects::slice("web", &[("http-0", 7000, "TCP")], &["192.168.77.2"]));
    let agent = Agent::on(&a).manifest("pieces.json", &objects::list(objects)).start();
    for to in ["10.96.0.50:80", "10.96.0.51:80"] {
        let before = delayed_acknowledgements(&a);
        for _ in 0..ASKED {
            let mut stream = pod.connect(to).expect("the service");
            // At once, so that it is there before a backend is dialled.
            stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").expect("a request");
            read_until(&mut stream, b"whole");
        }
        let delayed = delayed_acknowledgements(&a) - before;
        assert!(delayed < ASKED / 2, "{delayed} acknowledgements were late for {ASKED} answers of {to}");
    }
    assert_eq!(agent.stop(), 0);
}

/// How often the node's kernel has sent an acknowledgement only because it had held it back for long enough.
fn delayed_acknowledgements(node: &Netns) -> u64 {
    let text = node.must(&["cat", "/proc/net/netstat"]);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let place = names.split(' ').position(|name| name == "DelayedACKs").expect("a count of them");
    numbers.split(' ').nth(place).expect("as many numbers").parse().expect("a number")
}
