//! The agent's work dies, and nobody is refused: the keeper holds the sockets and starts it again.

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use lab::{Agent, Lab, Netns, Server, eventually, objects};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const GREETING: &str = "10.96.0.50:80";
const HEALTH_CHECK: &str = "192.168.77.1:31500";
const SOON: Duration = Duration::from_secs(10);
/// Clients at a time, each with a pause of [`PAUSE`] after each connection: some 500 connections a second.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(6);

fn greet() -> String {
    objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]))
}

fn ask(client: &Netns) -> Result<String, Errno> {
    let mut stream = client.connect_within(GREETING, SOON)?;
    lab::read_all(&mut stream).map_err(|error| lab::errno(&error))
}

/// Kills the process that works, and returns its id.
fn kill_worker(agent: &Agent) -> u32 {
    let worker = agent.worker();
    kill(Pid::from_raw(i32::try_from(worker).expect("process ids fit")), Signal::SIGKILL)
        .expect("a live worker");
    worker
}

/// Waits until another process than `last` works and is ready.
fn worker_after(agent: &mut Agent, last: u32) {
    eventually("another worker", SOON, || (agent.worker() != last).then_some(()));
    agent.wait_ready();
}

#[derive(Default)]
struct Tally {
    tried: AtomicUsize,
    not_connected: AtomicUsize,
    cut: AtomicUsize,
    longest_ms: AtomicUsize,
    /// Answers that are not the right one, nor the beginning of it.
    wrong: Mutex<BTreeSet<String>>,
}

/// What clients ask over and over: where, how, and what the answer must be.
struct Question<'a> {
    client: &'a Netns,
    to: &'a str,
    ask: fn(&mut TcpStream) -> std::io::Result<String>,
    right: &'a str,
}

impl Question<'_> {
    fn hammer(&self, over: &AtomicBool, tally: &Tally) {
        while !over.load(SeqCst) {
            let begun = Instant::now();
            tally.tried.fetch_add(1, SeqCst);
            match self.client.connect_within(self.to, SOON).map(|mut stream| (self.ask)(&mut stream)) {
                Err(_) => drop(tally.not_connected.fetch_add(1, SeqCst)),
                Ok(Ok(answer)) if answer == self.right => {}
                Ok(Ok(answer)) if !self.right.starts_with(&answer) => {
                    tally.wrong.lock().expect("no panic").insert(answer);
                }
                Ok(_) => drop(tally.cut.fetch_add(1, SeqCst)),
            }
            let took = usize::try_from(begun.elapsed().as_millis()).expect("a short time");
            tally.longest_ms.fetch_max(took, SeqCst);
            std::thread::sleep(PAUSE);
        }
    }

    /// Kills the worker a few times while the clients ask: nobody is refused, and nobody is told anything else.
    fn survives_kills(&self, agent: &mut Agent) {
        const KILLS: usize = 3;
        let (over, tally) = (AtomicBool::new(false), Tally::default());
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| self.hammer(&over, &tally));
            }
            for _ in 0..KILLS {
                std::thread::sleep(Duration::from_millis(500));
                let last = kill_worker(agent);
                worker_after(agent, last);
            }
            std::thread::sleep(Duration::from_millis(500));
            over.store(true, SeqCst);
        });
        let Tally { tried, not_connected, cut, longest_ms, wrong } = tally;
        let (tried, longest) = (tried.into_inner(), longest_ms.into_inner());
        assert!(tried > 100, "{tried} connections are no load");
        assert_eq!(not_connected.into_inner(), 0, "of {tried}; the longest took {longest} ms");
        assert_eq!(wrong.into_inner().expect("no panic"), BTreeSet::new(), "of {tried}");
        // The open ones go with the process that relayed them: at most one a client at each kill.
        let cut = cut.into_inner();
        assert!(cut <= KILLS * CLIENTS, "{cut} of {tried} were cut; the longest took {longest} ms");
    }
}

fn a_killed_worker_costs_nobody_a_connection(backend: &str) {
    let lab = Lab::new(&format!("keeper-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let _server = Server::greeting(&b, 7000, "hello");
    let before = a.state();
    let mut agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet()).start();
    let question =
        Question { client: &pod, to: GREETING, ask: |stream| lab::read_all(stream), right: "hello" };
    question.survives_kills(&mut agent);
    assert!(agent.log().contains("the agent's last process was killed by signal 9"), "{}", agent.log());
    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after SIGTERM");
}

/// A Service with an endpoint on node a, whose load balancer asks at [`HEALTH_CHECK`].
fn checked() -> String {
    let [mut service, mut slice] = objects::pair("checked", "10.96.0.53", 80, 7000, &["192.168.77.1"]);
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    service["spec"]["healthCheckNodePort"] = 31500.into();
    slice["endpoints"][0]["nodeName"] = "a".into();
    objects::list([service, slice])
}

fn a_killed_worker_costs_no_health_check(backend: &str) {
    let lab = Lab::new(&format!("health-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let before = a.state();
    let mut agent = Agent::on(&a).backend(backend).manifest("checked.json", &checked()).start();
    let ask = |stream: &mut TcpStream| {
        lab::http_get(stream, "/healthz").map(|(code, body)| format!("{code} {body}"))
    };
    let right = "200 {\"service\":{\"namespace\":\"default\",\"name\":\"checked\"},\"localEndpoints\":1,\
        \"serviceProxyHealthy\":true}";
    let question = Question { client: &b, to: HEALTH_CHECK, ask, right };
    question.survives_kills(&mut agent);
    let mut stream = b.connect_within(HEALTH_CHECK, SOON).expect("the port is open");
    assert_eq!(ask(&mut stream).ok().as_deref(), Some(right), "afterwards");
    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after SIGTERM");
    assert_eq!(b.connect_within(HEALTH_CHECK, SOON).err(), Some(Errno::ECONNREFUSED));
}

fn a_worker_that_keeps_dying_is_taken_out_of_the_way(backend: &str) {
    let lab = Lab::new(&format!("dying-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let before = a.state();
    let agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet()).start();
    assert_eq!(ask(&a).as_deref(), Ok("hello"));
    for _ in 0..6 {
        let last = kill_worker(&agent);
        // The last one is followed by a process that takes the rules away, and then by a pause.
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && a.run(&["cat", &format!("/proc/{last}/stat")]).code == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    eventually("the node is as if the agent were not there", SOON, || {
        before.diff(&a.state()).is_empty().then_some(())
    });
    // As soon as it lives again, so does the service.
    eventually("the service is back", Duration::from_secs(40), || ask(&a).ok());
    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after SIGTERM");
}

#[test]
fn costs_nothing_legacy() {
    a_killed_worker_costs_nobody_a_connection("legacy");
}

#[test]
fn costs_nothing_nft() {
    a_killed_worker_costs_nobody_a_connection("nft");
}

#[test]
fn costs_no_health_check_legacy() {
    a_killed_worker_costs_no_health_check("legacy");
}

#[test]
fn costs_no_health_check_nft() {
    a_killed_worker_costs_no_health_check("nft");
}

#[test]
fn out_of_the_way_nft() {
    a_worker_that_keeps_dying_is_taken_out_of_the_way("nft");
}

/// A client must not take the end of a process for the end of an answer, nor a backend for the end of a request.
#[test]
fn what_a_killed_worker_had_in_hand_is_reset() {
    let lab = Lab::new("keeper-reset");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let (ends, ended) = std::sync::mpsc::channel();
    let _server = Server::start(&b, 7000, move |mut stream| {
        stream.write_all(b"half").expect("a backend's answer");
        let end = stream.read(&mut [0; 16]).map_err(|error| lab::errno(&error));
        ends.send(end).expect("a test that listens");
    });
    // To a client of HTTP/1.0 the end of the connection is the end of the answer, whatever the backend says of its length.
    let _http = Server::start(&b, 7001, |mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            .expect("a backend's answer");
        let _ = stream.read(&mut [0; 16]);
    });
    let mut objects = Vec::from(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
    // Nobody has that address: whoever asks is still waiting for a backend.
    objects.extend(objects::pair("nobody", "10.96.0.52", 80, 7000, &["192.168.77.99"]));
    objects.push(objects::service("web", &["10.96.0.51"], &[("http-0", 80, 7001, "TCP")]));
    objects.push(objects::slice("web", &[("http-0", 7001, "TCP")], &["192.168.77.2"]));
    let mut agent = Agent::on(&a).manifest("greet.json", &objects::list(objects)).start();

    for client in [&*a, &pod] {
        let mut stream = client.connect_within(GREETING, SOON).expect("the service");
        let mut half = [0; 4];
        stream.read_exact(&mut half).expect("half of the answer");
        let mut request = client.connect_within("10.96.0.51:80", SOON).expect("the service");
        request.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
        let answer = lab::read_until(&mut request, b"\r\n\r\nhalf");
        let mut waiting = client.connect_within("10.96.0.52:80", SOON).expect("the service");
        std::thread::sleep(Duration::from_millis(100));
        let last = kill_worker(&agent);
        for stream in [&mut stream, &mut request, &mut waiting] {
            let end = stream.read(&mut half).map_err(|error| lab::errno(&error));
            assert_eq!(end, Err(Errno::ECONNRESET), "{answer:?}");
        }
        assert_eq!(ended.recv_timeout(SOON), Ok(Err(Errno::ECONNRESET)), "the backend");
        worker_after(&mut agent, last);
    }
    assert_eq!(agent.stop(), 0);
}

#[test]
fn who_stops_either_process_stops_the_agent() {
    let lab = Lab::new("keeper-stop");
    let a = lab.node("a");
    let before = a.state();
    let mut agent = Agent::on(&a).manifest("greet.json", &greet()).start();
    let worker = Pid::from_raw(i32::try_from(agent.worker()).expect("process ids fit"));
    kill(worker, Signal::SIGTERM).expect("a live worker");
    assert_eq!(agent.wait(SOON), 0);
    before.assert_same(&a.state(), "after SIGTERM to the worker");

    // Killed, and stopped before the next one is there to do so.
    let mut agent = Agent::on(&a).manifest("greet.json", &greet()).start();
    kill_worker(&agent);
    agent.signal(Signal::SIGTERM);
    agent.wait(SOON);
    before.assert_same(&a.state(), "after SIGKILL and SIGTERM");
}

#[test]
fn the_keeper_is_small_and_ends_with_what_its_worker_said() {
    let lab = Lab::new("keeper-small");
    let a = lab.node("a");
    let agent = Agent::on(&a).start();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("a running keeper");
    let private = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    let kib: u64 = private.trim().trim_end_matches(" kB").parse().expect("a number");
    // The goal is 2 MB for an optimised build; this one has more to relocate. What the program's own file takes is shared
    // with the worker.
    assert!(kib < 4096, "{kib} KiB");
    agent.stop();

    let wrong = Agent::on(&a).args(&["--iptables-backend=soon"]).run_to_end();
    assert_eq!(wrong.code, 64, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("soon"), "{}", wrong.stderr);
}
