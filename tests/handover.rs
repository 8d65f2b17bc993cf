//! One agent takes the node over from another, and back: nobody is refused, cut or left without an answer.

#![allow(clippy::print_stdout, reason = "counts and times are what docs/bench/handover.md shows")]

mod lab;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use lab::{
    Agent, AgentBuilder, Datagrams, Lab, Netns, Node, Server, eventually, objects, with_either_backend,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const GREETING: &str = "10.96.0.50:80";
const ECHO: &str = "10.96.0.51:80";
const DATAGRAMS: &str = "10.96.0.52:90";
const NODE_PORT: &str = "192.168.77.1:30090";
const HEALTH_CHECK: &str = "192.168.77.1:31500";
const ADMIN: &str = "127.0.0.1:10265";
const DNS: [&str; 2] = ["169.254.96.16:53", "10.96.0.10:53"];
const SOON: Duration = Duration::from_secs(20);
/// Clients at a time that connect anew, each with a pause after each connection.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(5);
/// How long a client waits for an answer before it counts as failed. Nobody asks twice.
const PATIENCE: Duration = Duration::from_secs(5);

fn services() -> String {
    let mut items: Vec<Value> = objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]).into();
    items.extend(objects::pair("echo", "10.96.0.51", 80, 7001, &["192.168.77.2"]));
    let mut udp = objects::service("udp", &["10.96.0.52"], &[("udp", 90, 7002, "UDP")]);
    udp["spec"]["type"] = "NodePort".into();
    udp["spec"]["ports"][0]["nodePort"] = 30090.into();
    items.push(udp);
    let mut checked = objects::service("checked", &["10.96.0.53"], &[("tcp", 80, 7000, "TCP")]);
    checked["spec"]["type"] = "LoadBalancer".into();
    checked["spec"]["externalTrafficPolicy"] = "Local".into();
    checked["spec"]["healthCheckNodePort"] = 31500.into();
    items.push(checked);
    items.push(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"}]}}));
    items.push(objects::slice("udp", &[("udp", 7002, "UDP")], &["192.168.77.2"]));
    let mut dns =
        objects::service("kube-dns", &["10.96.0.10"], &[("dns", 53, 53, "UDP"), ("dns-tcp", 53, 53, "TCP")]);
    dns["metadata"]["namespace"] = "kube-system".into();
    dns["metadata"]["labels"] = serde_json::json!({"k8s-app": "kube-dns"});
    items.push(dns);
    objects::list(items)
}

/// What became of the clients of one kind.
#[derive(Default)]
struct Tally {
    tried: AtomicUsize,
    failed: AtomicUsize,
    longest_ms: AtomicUsize,
    /// What the first failures were.
    why: Mutex<Vec<String>>,
}

impl Tally {
    fn note(&self, begun: Instant, result: Result<(), String>) {
        self.tried.fetch_add(1, SeqCst);
        let took = usize::try_from(begun.elapsed().as_millis()).expect("a short time");
        self.longest_ms.fetch_max(took, SeqCst);
        if let Err(why) = result {
            self.failed.fetch_add(1, SeqCst);
            self.why.lock().expect("no panic").push(why);
        }
    }
}

/// All clients, by their kind.
#[derive(Default)]
struct Load {
    connections: Tally,
    /// Messages and their echoes on connections that live as long as the load does.
    streams: Tally,
    new_flows: Tally,
    flows: Tally,
    node_port: Tally,
    names: Tally,
    /// Connections to the listeners at fixed addresses.
    listeners: Tally,
    over: AtomicBool,
}

impl Load {
    fn kinds(&self) -> BTreeMap<&'static str, &Tally> {
        [
            ("new connections", &self.connections),
            ("messages on open connections", &self.streams),
            ("datagrams of new flows", &self.new_flows),
            ("datagrams of open flows", &self.flows),
            ("datagrams to a node port", &self.node_port),
            ("questions for names", &self.names),
            ("health checks and admin requests", &self.listeners),
        ]
        .into()
    }

    fn until_over(&self, mut once: impl FnMut()) {
        while !self.over.load(SeqCst) {
            once();
            std::thread::sleep(PAUSE);
        }
    }

    /// Puts the load on the node while `work` runs.
    fn during(&self, scene: &Scene, work: impl FnOnce()) {
        let client: &Netns = &scene.client;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.until_over(|| {
                    let begun = Instant::now();
                    self.node_port.note(begun, ask(&datagrams(client, NODE_PORT), b"node"));
                    for (from, to) in [(client, HEALTH_CHECK), (&*scene.node, ADMIN)] {
                        let begun = Instant::now();
                        self.listeners.note(begun, is_answered(from, to));
                    }
                });
            });
            for _ in 0..CLIENTS {
                scope.spawn(|| self.until_over(|| self.connections.note(Instant::now(), greet(client))));
            }
            for _ in 0..3 {
                scope.spawn(|| self.stream(client));
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    self.until_over(|| {
                        let begun = Instant::now();
                        self.new_flows.note(begun, ask(&datagrams(client, DATAGRAMS), b"new"));
                    });
                });
                scope.spawn(|| {
                    let socket = datagrams(client, DATAGRAMS);
                    self.until_over(|| self.flows.note(Instant::now(), ask(&socket, b"open")));
                });
            }
            for server in DNS {
                scope.spawn(move || {
                    self.until_over(|| {
                        let begun = Instant::now();
                        self.names.note(begun, ask(&datagrams(client, server), &question()));
                    });
                });
            }
            std::thread::sleep(Duration::from_millis(300));
            // Whoever panics must not leave the others running.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            std::thread::sleep(Duration::from_millis(300));
            self.over.store(true, SeqCst);
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn stream(&self, client: &Netns) {
        let mut stream = client.connect_within(ECHO, PATIENCE).expect("a connection that is to live long");
        let mut number = 0_u64;
        self.until_over(|| {
            let begun = Instant::now();
            number += 1;
            let bytes = number.to_be_bytes();
            let mut back = [0; 8];
            let result = stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut back));
            let result = result.map_err(|error| error.to_string());
            self.streams.note(begun, result.and_then(|()| same(&back, &bytes)));
        });
    }

    /// Says what came of it, and panics if anybody failed.
    fn conclude(&self, what: &str) {
        let mut faults = Vec::new();
        for (kind, tally) in self.kinds() {
            let (tried, failed) = (tally.tried.load(SeqCst), tally.failed.load(SeqCst));
            let longest = tally.longest_ms.load(SeqCst);
            println!("{what}: {kind}: tried {tried}, failed {failed}, longest {longest} ms");
            assert!(tried > 10, "{tried} {kind} are no load");
            let why = tally.why.lock().expect("no panic");
            if failed > 0 {
                faults.push(format!(
                    "{kind}: {failed} of {tried}: {:?}",
                    why.iter().take(5).collect::<Vec<_>>()
                ));
            }
        }
        assert!(faults.is_empty(), "{what}: {}", faults.join("\n"));
    }
}

fn same(got: &[u8], wanted: &[u8]) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{got:?} instead of {wanted:?}")) }
}

fn greet(client: &Netns) -> Result<(), String> {
    let mut stream =
        client.connect_within(GREETING, PATIENCE).map_err(|errno| format!("connect: {errno}"))?;
    let text = lab::read_all(&mut stream).map_err(|error| format!("read: {error}"))?;
    same(text.as_bytes(), b"hello")
}

/// Whether a request is answered, however.
fn is_answered(client: &Netns, to: &str) -> Result<(), String> {
    let mut stream =
        client.connect_within(to, PATIENCE).map_err(|errno| format!("{to}: connect: {errno}"))?;
    lab::http_get(&mut stream, "/healthz").map(drop).map_err(|error| format!("{to}: {error}"))
}

fn datagrams(client: &Netns, to: &str) -> UdpSocket {
    let socket = client.udp_from(0, to);
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn ask(socket: &UdpSocket, bytes: &[u8]) -> Result<(), String> {
    let mut answer = [0; 512];
    socket.send(bytes).map_err(|error| format!("send: {error}"))?;
    let length = socket.recv(&mut answer).map_err(|error| format!("receive: {error}"))?;
    if bytes.len() < 12 {
        return same(&answer[..length], bytes);
    }
    // A name server's: the same id, no error, one answer.
    let good = length > bytes.len() && answer[..2] == bytes[..2] && answer[3] % 16 == 0 && answer[7] == 1;
    if good { Ok(()) } else { Err(format!("no answer: {:?}", &answer[..length])) }
}

/// A question for the address of `greet`.
fn question() -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["greet", "default", "svc", "cluster", "local"] {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Another copy of the program, as an upgrade leaves one.
fn copy(lab: &Lab) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let path = lab.dir().join(format!("edgesplice-{}", NUMBER.fetch_add(1, SeqCst)));
    std::fs::copy(lab::PROGRAM, &path).expect("a copy of the program");
    path
}

struct Scene {
    lab: Lab,
    node: Node,
    client: lab::Pod,
    _servers: (Server, Server, Datagrams),
}

impl Scene {
    fn new(label: &str) -> Self {
        let lab = Lab::new(label);
        let (node, b) = (lab.node("a"), lab.node("b"));
        let client = node.pod("client");
        let servers =
            (Server::greeting(&b, 7000, "hello"), Server::echo(&b, 7001), Datagrams::echo(&b, 7002));
        Self { lab, node, client, _servers: servers }
    }

    fn agent(&self, backend: &str) -> AgentBuilder {
        Agent::on(&self.node).backend(backend).manifest("services.json", &services())
    }

    fn next(&self, backend: &str) -> AgentBuilder {
        let program = copy(&self.lab);
        self.agent(backend).program(&program.display().to_string()).args(&["--take-over"])
    }
}

/// Waits until `agent` has the node.
fn has_taken_over(agent: &Agent) {
    is_said(agent, "the node is this agent's");
}

fn port(agent: &Agent) -> u64 {
    agent.status()["proxy"]["port"].as_u64().expect("a port")
}

/// How long the log says that something took.
fn timings(agent: &Agent) -> String {
    let log = agent.log();
    let lines = log.lines().filter(|line| line.contains("took="));
    lines.map(|line| line.split_once("INFO").map_or(line, |(_, rest)| rest)).collect::<Vec<_>>().join("; ")
}

fn is_said(agent: &Agent, what: &str) {
    let waited = || agent.log().contains(what).then_some(());
    eventually(what, SOON, waited);
}

/// What the one that runs says once another one is coming, and once it has given the lock away.
const COMING: &str = "another agent is coming";
const GIVEN: &str = "it gets the lock";

fn an_upgrade_and_a_roll_back_cost_nobody_anything(backend: &str) {
    let scene = Scene::new(&format!("handover-{backend}"));
    let before = scene.node.state();
    let mut first = scene.agent(backend).start();
    let first_port = port(&first);
    let load = Load::default();
    let mut second = None;
    let mut third = None;
    load.during(&scene, || {
        let next = scene.next(backend).launch();
        has_taken_over(&next);
        assert_ne!(port(&next), first_port, "the rules are the switch");
        std::thread::sleep(Duration::from_millis(500));
        // And back, the same way, while the first one still drains.
        let back = scene.agent(backend).args(&["--take-over"]).launch();
        has_taken_over(&back);
        std::thread::sleep(Duration::from_secs(2));
        second = Some(next);
        third = Some(back);
    });
    let (mut second, third) = (second.expect("an agent"), third.expect("an agent"));
    load.conclude(&format!("upgrade and roll-back, {backend}"));
    for agent in [&mut first, &mut second] {
        assert_eq!(agent.wait(SOON), 0, "{}", agent.log());
        println!("{backend}: {}", timings(agent));
    }
    println!("{backend}: {}", timings(&third));
    eventually("the end of the former ones is seen", SOON, || {
        third.log().contains("the agent that was here before has ended").then_some(())
    });
    assert_eq!(greet(&scene.client), Ok(()));
    assert_eq!(third.stop(), 0);
    before.assert_same(&scene.node.state(), "after SIGTERM");
}

/// Nobody is left without an answer, and everything is gone after the end.
fn works_and_leaves_nothing(scene: &Scene, owner: Agent, before: &lab::State, what: &str) {
    let load = Load::default();
    load.during(scene, || std::thread::sleep(Duration::from_secs(1)));
    load.conclude(what);
    assert_eq!(owner.stop(), 0);
    before.assert_same(&scene.node.state(), what);
}

/// Killed with its keeper, at moments from its first word to the last.
fn a_taker_that_is_killed_leaves_the_node_to_the_one_that_had_it(backend: &str) {
    let scene = Scene::new(&format!("taker-dies-{backend}"));
    let before = scene.node.state();
    let mut owner = scene.agent(backend).start();
    for (at, pause) in [(COMING, 0), (COMING, 20), (GIVEN, 0), (GIVEN, 10), (GIVEN, 40), (GIVEN, 80)] {
        let said = owner.log().matches(at).count();
        let next = scene.next(backend).launch();
        eventually(at, SOON, || (owner.log().matches(at).count() > said).then_some(()));
        std::thread::sleep(Duration::from_millis(pause));
        let log = next.log();
        if log.contains("the node is this agent's") {
            // Too late to be killed on the way: the node is its own, and the next one takes it over from there.
            assert_eq!(owner.wait(SOON), 0, "{}", owner.log());
            owner = next;
        } else {
            next.kill();
        }
        eventually("the service works", SOON, || greet(&scene.client).ok());
        owner.wait_ready();
    }
    works_and_leaves_nothing(&scene, owner, &before, &format!("after a killed taker, {backend}"));
}

/// Killed with its keeper, at moments from the new one's first word to the last.
fn a_giver_that_is_killed_leaves_the_node_to_the_one_that_comes(backend: &str) {
    let scene = Scene::new(&format!("giver-dies-{backend}"));
    let before = scene.node.state();
    let mut owner = scene.agent(backend).start();
    for (at, pause) in [(COMING, 0), (COMING, 20), (GIVEN, 0), (GIVEN, 20)] {
        let mut next = scene.next(backend).launch();
        is_said(&owner, at);
        std::thread::sleep(Duration::from_millis(pause));
        owner.kill();
        has_taken_over(&next);
        next.wait_ready();
        assert_eq!(greet(&scene.client), Ok(()), "{at}");
        owner = next;
    }
    works_and_leaves_nothing(&scene, owner, &before, &format!("after a killed giver, {backend}"));
}

/// The process that works dies on either side, and its keeper starts another one.
#[test]
fn killed_workers_are_started_again_and_one_owner_is_left() {
    let scene = Scene::new("workers-die");
    let before = scene.node.state();
    let first = scene.agent("nft").start();
    let mut next = scene.next("nft").launch();
    is_said(&first, COMING);
    kill_worker(&next);
    has_taken_over(&next);
    let mut first = first;
    assert_eq!(first.wait(SOON), 0, "{}", first.log());
    let mut third = scene.agent("nft").args(&["--take-over"]).launch();
    is_said(&next, GIVEN);
    kill_worker(&next);
    has_taken_over(&third);
    // What is started in its place finds the node taken, and leaves it at that.
    assert_eq!(next.wait(SOON), 0, "{}", next.log());
    third.wait_ready();
    works_and_leaves_nothing(&scene, third, &before, "after killed workers");
}

fn kill_worker(agent: &Agent) {
    let worker = Pid::from_raw(i32::try_from(agent.worker()).expect("process ids fit"));
    kill(worker, Signal::SIGKILL).expect("a live worker");
}

#[test]
fn told_to_stop_while_another_one_comes_it_gives_the_node_away_instead() {
    let scene = Scene::new("giver-stops");
    let before = scene.node.state();
    let mut first = scene.agent("nft").start();
    let (load, mut second) = (Load::default(), None);
    load.during(&scene, || {
        let next = scene.next("nft").launch();
        is_said(&first, COMING);
        first.signal(Signal::SIGTERM);
        has_taken_over(&next);
        second = Some(next);
    });
    load.conclude("SIGTERM to the one that runs, while another one comes");
    assert_eq!(first.wait(SOON), 0, "{}", first.log());
    works_and_leaves_nothing(&scene, second.expect("an agent"), &before, "after SIGTERM");
}

#[test]
fn told_to_stop_before_it_has_the_node_it_leaves_everything_as_it_was() {
    let scene = Scene::new("taker-stops");
    let before = scene.node.state();
    let first = scene.agent("nft").start();
    let load = Load::default();
    load.during(&scene, || {
        let mut next = scene.next("nft").launch();
        is_said(&next, "another agent runs here");
        next.signal(Signal::SIGTERM);
        assert_eq!(next.wait(SOON), 1, "{}", next.log());
        assert!(!first.log().contains("the node is the other agent's"), "{}", first.log());
    });
    load.conclude("SIGTERM to the one that comes");
    works_and_leaves_nothing(&scene, first, &before, "after SIGTERM to the one that comes");
}

/// What `systemctl reload` does: the program on disk has been replaced, and the first process is told.
#[test]
fn a_reload_takes_the_program_that_is_on_disk_by_then() {
    let scene = Scene::new("reload");
    let before = scene.node.state();
    let program = copy(&scene.lab);
    let line = program.display().to_string();
    let agent = scene.agent("nft").program(&line).args(&["--proxy-port", "15001"]).start();
    let (keeper, first) = (agent.pid(), agent.worker());
    let load = Load::default();
    load.during(&scene, || {
        replace(&scene.lab, &program);
        agent.signal(Signal::SIGHUP);
        is_said(&agent, "the node is this agent's");
        std::thread::sleep(Duration::from_millis(500));
    });
    load.conclude("reload");
    println!("reload: {}", timings(&agent));
    eventually("the first worker's end", SOON, || (agent.worker() != first).then_some(()));
    // Both are what is on disk now, and not the one that has been removed.
    assert_eq!(running(agent.worker()), program);
    eventually("the keeper is the new program", SOON, || (running(keeper) == program).then_some(()));
    assert_eq!((agent.pid(), port(&agent)), (keeper, 15001));
    // It keeps what the first one did.
    let second = agent.worker();
    let mut agent = agent;
    kill(Pid::from_raw(i32::try_from(second).expect("process ids fit")), Signal::SIGKILL)
        .expect("a live worker");
    eventually("another worker", SOON, || (agent.worker() != second).then_some(()));
    agent.wait_ready();
    assert!(agent.log().contains("last process was killed by signal 9"), "{}", agent.log());
    // And can itself be replaced, while a client is there all the time.
    let (third, load) = (agent.worker(), Load::default());
    load.during(&scene, || {
        replace(&scene.lab, &program);
        agent.signal(Signal::SIGHUP);
        eventually("the keeper is the next program", SOON, || (running(keeper) == program).then_some(()));
    });
    load.conclude("another reload");
    eventually("the third worker's end", SOON, || (agent.worker() != third).then_some(()));
    assert_eq!(port(&agent), 15001);
    works_and_leaves_nothing(&scene, agent, &before, "after two reloads");
}

/// One that dies before it has given the node away is not waited for at the end.
#[test]
fn a_worker_that_dies_during_a_reload_holds_up_no_end() {
    let scene = Scene::new("reload-dies");
    let before = scene.node.state();
    let program = copy(&scene.lab);
    let mut agent = scene.agent("nft").program(&program.display().to_string()).start();
    let first = Pid::from_raw(i32::try_from(agent.worker()).expect("process ids fit"));
    // So that it cannot answer the one that comes.
    kill(first, Signal::SIGSTOP).expect("a live worker");
    agent.signal(Signal::SIGHUP);
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    let count = || std::fs::read_to_string(&children).expect("a keeper").split_whitespace().count();
    eventually("a second worker", SOON, || (count() == 2).then_some(()));
    kill(first, Signal::SIGKILL).expect("a stopped worker");
    eventually("the first one's end", SOON, || (count() == 1).then_some(()));
    agent.wait_ready();
    works_and_leaves_nothing(&scene, agent, &before, "after a death during a reload");
}

/// As a package manager does: the old file is gone, another has its name.
fn replace(lab: &Lab, program: &Path) {
    let newer = lab.dir().join("edgesplice-newer");
    std::fs::copy(lab::PROGRAM, &newer).expect("a copy of the program");
    std::fs::rename(&newer, program).expect("a new program under the old name");
}

/// The file that a process runs, with ` (deleted)` behind it where that is gone.
fn running(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).expect("a process")
}

/// A program that cannot start costs nothing either.
#[test]
fn a_reload_that_fails_leaves_the_one_that_works() {
    let scene = Scene::new("reload-fails");
    let before = scene.node.state();
    let program = copy(&scene.lab);
    let agent = scene.agent("nft").program(&program.display().to_string()).start();
    let first = agent.worker();
    std::fs::remove_file(&program).expect("the program");
    std::fs::copy("/bin/false", &program).expect("another program");
    agent.signal(Signal::SIGHUP);
    let load = Load::default();
    load.during(&scene, || std::thread::sleep(Duration::from_secs(1)));
    load.conclude("a reload that fails");
    assert_eq!(agent.worker(), first);
    works_and_leaves_nothing(&scene, agent, &before, "after a reload that fails");
}

/// It has the lock and cannot write its rules, for somebody holds the lock of its `iptables`. Told to stop, it gives the
/// node back; meanwhile and after that the one that had it serves.
#[test]
fn what_cannot_write_its_rules_gives_the_node_back() {
    let scene = Scene::new("put-back");
    let before = scene.node.state();
    let first = scene.agent("legacy").start();
    let first_port = port(&first);
    let file = scene.lab.dir().join("xtables.lock").display().to_string();
    let variable = format!("XTABLES_LOCKFILE={file}");
    let _holder = scene.node.spawn(&["flock", &file, "sleep", "300"]);
    eventually("the lock is held", SOON, || {
        (scene.node.run(&["flock", "-n", &file, "true"]).code != 0).then_some(())
    });
    let mut next = scene.next("legacy").wrapped(&["env", &variable]).launch();
    is_said(&first, GIVEN);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(greet(&scene.client), Ok(()), "while neither writes rules");
    next.signal(Signal::SIGTERM);
    assert_eq!(next.wait(Duration::from_mins(1)), 1, "{}", next.log());
    assert!(next.log().contains("the node is given back"), "{}", next.log());
    is_said(&first, "this one goes on");
    eventually("the admin endpoint is the first one's again", SOON, || {
        (port(&first) == first_port).then_some(())
    });
    works_and_leaves_nothing(&scene, first, &before, "after the node was given back");
}

#[test]
fn with_nobody_to_take_over_from_it_is_an_ordinary_start() {
    let scene = Scene::new("take-over-alone");
    let before = scene.node.state();
    let agent = scene.next("nft").start();
    let second = scene.agent("nft").run_to_end();
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(second.stderr.contains("--take-over"), "{}", second.stderr);
    works_and_leaves_nothing(&scene, agent, &before, "after an ordinary start");
}

with_either_backend!(
    an_upgrade_and_a_roll_back_cost_nobody_anything,
    a_taker_that_is_killed_leaves_the_node_to_the_one_that_had_it,
    a_giver_that_is_killed_leaves_the_node_to_the_one_that_comes,
);
