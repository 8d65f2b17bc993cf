//! Backends that fail and limits that are reached: clients must not notice what can be mended.

#![allow(clippy::print_stdout, reason = "times are shown, and not asserted")]

mod lab;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lab::{Agent, Lab, Netns, Server, errno, eventually, objects, read_all};
use nix::errno::Errno;

const SERVICE: &str = "10.96.0.60:80";

fn manifest(addresses: &[&str]) -> String {
    objects::list(objects::pair("trio", "10.96.0.60", 80, 7000, addresses))
}

fn ask(client: &Netns) -> Result<String, Errno> {
    let mut stream = client.connect(SERVICE)?;
    read_all(&mut stream).map_err(|error| errno(&error))
}

/// Asks so many times, each of which must succeed, and returns how long each took.
fn timed(client: &Netns, agent: &Agent, count: usize) -> Vec<Duration> {
    let one = |number| {
        let started = Instant::now();
        assert_eq!(ask(client).as_deref(), Ok("ok"), "connection {number}; {}", agent.log());
        started.elapsed()
    };
    let times: Vec<_> = (0..count).map(one).collect();
    let mut sorted = times.clone();
    sorted.sort();
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    println!("{name}: median {:?}, slowest {:?}", sorted[count / 2], sorted[count - 1]);
    times
}

#[test]
fn a_backend_that_refuses_costs_no_connection() {
    let lab = Lab::new("refuses");
    let (a, b, c, _d) = (lab.node("a"), lab.node("b"), lab.node("c"), lab.node("d"));
    let servers = [Server::greeting(&b, 7000, "ok"), Server::greeting(&c, 7000, "ok")];
    let addresses = ["192.168.77.2", "192.168.77.3", "192.168.77.4"];
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&addresses)).start();
    timed(&a, &agent, 60);
    assert!(servers.iter().all(|server| server.accepted() >= 10), "both of the living are used");
    let service = agent.service("trio");
    let dead = service["backends"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["address"] == "192.168.77.4:7000");
    assert!(dead.is_some_and(|one| one["failuresTotal"].as_u64() > Some(0)), "{service}");
}

#[test]
fn a_backend_that_is_silent_costs_no_connection() {
    let lab = Lab::new("silent");
    let (a, b, c, d) = (lab.node("a"), lab.node("b"), lab.node("c"), lab.node("d"));
    let _servers = [Server::greeting(&b, 7000, "ok"), Server::greeting(&c, 7000, "ok")];
    d.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7000", "-j", "DROP"]);
    let addresses = ["192.168.77.2", "192.168.77.3", "192.168.77.4"];
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&addresses)).start();
    let times = timed(&a, &agent, 60);
    // The dead one costs a client the time after which the next is dialled beside it; once it is ejected, nothing.
    let (slowest, slow) =
        (times.iter().max(), times.iter().filter(|t| **t > Duration::from_millis(200)).count());
    assert!(slowest < Some(&Duration::from_secs(1)), "{times:?}");
    assert!(slow <= 12, "{slow} of 60 were held up: {times:?}");
}

#[test]
fn a_lost_first_packet_to_the_only_backend_costs_no_connection() {
    let lab = Lab::new("lost");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "ok");
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2"])).start();
    b.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7000", "--syn", "-j", "DROP"]);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| (ask(&a), Instant::now()));
        // The first packet is gone by then, and the kernel sends it again a second after it.
        std::thread::sleep(Duration::from_millis(500));
        b.must(&["iptables-nft", "-F", "INPUT"]);
        let open = Instant::now();
        let (said, at) = asked.join().expect("the client");
        assert_eq!(said.as_deref(), Ok("ok"), "{}", agent.log());
        println!("served {:?} after the way was open", at - open);
    });
    let backend = &agent.service("trio")["backends"][0];
    assert_eq!(backend["failuresTotal"], 1, "it counts that the backend was late: {backend}");
}

#[test]
fn one_dead_service_does_not_hold_up_another() {
    let lab = Lab::new("apart");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _server = Server::greeting(&b, 7000, "ok");
    c.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "DROP"]);
    let dead = objects::list(objects::pair("dead", "10.96.0.61", 80, 7000, &["192.168.77.3"]));
    let agent = Agent::on(&a)
        .manifest("trio.json", &manifest(&["192.168.77.2"]))
        .manifest("dead.json", &dead)
        .start();
    let hanging: Vec<_> =
        (0..50).filter_map(|_| a.connect_within("10.96.0.61:80", Duration::from_millis(50)).ok()).collect();
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(ask(&a).as_deref(), Ok("ok"), "{}", agent.log());
    }
    assert!(started.elapsed() < Duration::from_secs(2), "took {:?}", started.elapsed());
    // Those that found nobody are reset; none ends as if all had been said.
    for mut stream in hanging.into_iter().take(3) {
        let error = stream.read(&mut [0; 1]).expect_err("nobody answered");
        assert_eq!(errno(&error), Errno::ECONNRESET);
    }
}

#[test]
fn when_all_backends_refuse_the_client_is_reset_or_refused() {
    let lab = Lab::new("all-dead");
    let (a, _b) = (lab.node("a"), lab.node("b"));
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2"])).start();
    for _ in 0..5 {
        let error = ask(&a).expect_err("nobody is there");
        assert!([Errno::ECONNREFUSED, Errno::ECONNRESET].contains(&error), "{error}; {}", agent.log());
    }
}

#[test]
fn the_limit_of_open_files_stops_nothing_for_good() {
    let lab = Lab::new("emfile");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::echo(&b, 7000);
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2"]));
    let mut agent = agent.wrapped(&["prlimit", "--nofile=64:64"]).start();
    let mut open: Vec<_> =
        (0..200).filter_map(|_| a.connect_within(SERVICE, Duration::from_millis(300)).ok()).collect();
    let mut answered = 0;
    for stream in &mut open {
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let said = stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0; 1]));
        answered += usize::from(said.is_ok());
    }
    assert!(answered > 0, "no connection works at the limit; {}", agent.log());
    assert!(agent.alive(), "{}", agent.log());
    drop(open);
    eventually("service after the rush", Duration::from_secs(10), || {
        let mut stream = a.connect(SERVICE).ok()?;
        stream.write_all(b"again").ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        stream.read_exact(&mut [0; 5]).ok()
    });
    assert!(agent.alive(), "{}", agent.log());
    assert_eq!(agent.stop(), 0);
}

#[test]
fn a_backend_that_comes_back_is_used_again() {
    let lab = Lab::new("back");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _server = Server::greeting(&b, 7000, "b");
    let _agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2", "192.168.77.3"])).start();
    for _ in 0..20 {
        assert_eq!(ask(&a).as_deref(), Ok("b"));
    }
    let _returned = Server::greeting(&c, 7000, "c");
    eventually("the returned backend", Duration::from_secs(40), || {
        (ask(&a).as_deref() == Ok("c")).then_some(())
    });
}

#[test]
fn when_every_backend_refuses_so_are_clients_until_one_is_back() {
    let lab = Lab::new("hold");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _other = Server::greeting(&c, 7000, "ok");
    let alive = objects::list(objects::pair("alive", "10.96.0.61", 80, 7000, &["192.168.77.3"]));
    let agent = Agent::on(&a)
        .manifest("trio.json", &manifest(&["192.168.77.2"]))
        .manifest("alive.json", &alive)
        .start();
    // The first client cannot be refused any more, it has been accepted; it is what makes the others be.
    assert!(ask(&a).is_err());
    eventually("refusal of the next clients", Duration::from_secs(3), || {
        (a.connect(SERVICE).err() == Some(Errno::ECONNREFUSED)).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(a.connect(SERVICE).err(), Some(Errno::ECONNREFUSED), "{}", agent.log());
        let mut stream = a.connect("10.96.0.61:80").expect("the other service never notices");
        assert_eq!(read_all(&mut stream).ok().as_deref(), Some("ok"));
    }
    let back = Server::greeting(&b, 7000, "back");
    let returned = Instant::now();
    eventually("the backend's return", Duration::from_secs(5), || ask(&a).ok());
    println!("a backend that returns is used after {:?}", returned.elapsed());
    for number in 0..20 {
        assert_eq!(ask(&a).as_deref(), Ok("back"), "connection {number}; {}", agent.log());
    }
    drop(back);
}

#[test]
fn a_backend_that_resets_after_accept_is_never_taken_for_one_that_has_said_all() {
    let lab = Lab::new("resets");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _good = Server::greeting(&b, 7000, "ok");
    let _bad = Server::start(&c, 7000, lab::reset);
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2", "192.168.77.3"])).start();
    let answers: Vec<_> = (0..60).map(|_| ask(&a)).collect();
    assert!(answers.iter().filter(|answer| answer.as_deref() == Ok("ok")).count() > 10, "{}", agent.log());
    for answer in answers {
        assert!([Ok("ok"), Err(&Errno::ECONNRESET)].contains(&answer.as_deref()), "{answer:?}");
    }
}

#[test]
fn a_backend_that_does_not_accept_holds_few_clients_up() {
    let lab = Lab::new("slow");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _good = Server::greeting(&b, 7000, "ok");
    // It takes two connections into its queue and lets the others' first packets fall.
    let _slow = c.enter(|| {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: std::net::SocketAddr = ([0, 0, 0, 0], 7000).into();
        socket.bind(&any.into()).expect("the port is free");
        socket.listen(1).expect("it can listen");
        socket
    });
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2", "192.168.77.3"])).start();
    let mut waiting = Vec::new();
    for number in 0..40 {
        let started = Instant::now();
        let mut stream = a.connect(SERVICE).expect("accepted");
        stream.set_read_timeout(Some(Duration::from_millis(700))).expect("a timeout");
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Ok(_) => assert_eq!(bytes, b"ok", "connection {number}"),
            Err(error) => {
                assert_eq!(errno(&error), Errno::ETIMEDOUT, "connection {number}; {}", agent.log());
                waiting.push(stream);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    assert!(waiting.len() <= 3, "{} clients hang", waiting.len());
}

#[test]
fn a_backend_that_leaves_its_service_keeps_the_connections_it_has() {
    let lab = Lab::new("leaves");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let (old, new) = (Server::echo(&b, 7000), Server::echo(&c, 7000));
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&["192.168.77.2"])).start();
    let say = |stream: &mut TcpStream| {
        stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0])).expect("an echo");
    };
    let mut open = a.connect(SERVICE).expect("accepted");
    say(&mut open);
    agent.write("trio.json", &manifest(&["192.168.77.3"]));
    let limit = Duration::from_secs(20);
    let state_of = |status: &serde_json::Value, address: &str| {
        let backends = status["services"][0]["backends"].as_array().cloned().unwrap_or_default();
        backends.into_iter().find(|one| one["address"] == address).map(|one| one["state"].to_string())
    };
    agent.wait_for("it is draining", limit, |status| {
        state_of(status, "192.168.77.2:7000").as_deref() == Some("\"draining\"")
    });
    // The open one goes on, new ones go to the new backend.
    say(&mut open);
    for _ in 0..10 {
        say(&mut a.connect(SERVICE).expect("accepted"));
    }
    assert_eq!((old.accepted(), new.accepted()), (1, 10), "{}", agent.log());
    say(&mut open);
    drop(open);
    agent.wait_for("it is forgotten", limit, |status| state_of(status, "192.168.77.2:7000").is_none());
    // The service goes as a whole: what is open still goes on, what comes is refused.
    let mut open = a.connect(SERVICE).expect("accepted");
    say(&mut open);
    agent.remove("trio.json");
    agent.wait_for("it is gone", limit, |status| status["services"].as_array().is_some_and(Vec::is_empty));
    eventually("new ones are refused", limit, || {
        (a.connect(SERVICE).err() == Some(Errno::ECONNREFUSED)).then_some(())
    });
    say(&mut open);
}

/// Cuts a node off without a word, as a power failure does.
fn cut_off(node: &Netns) {
    for chain in ["INPUT", "OUTPUT"] {
        node.must(&["iptables-nft", "-I", chain, "-j", "DROP"]);
    }
}

#[test]
fn a_node_that_dies_in_mid_connection_is_noticed_within_the_keep_alive_budget() {
    const BUDGET: Duration = Duration::from_secs(80);
    let lab = Lab::new("dies");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _echo = Server::echo(&b, 7000);
    let _stream = Server::start(&c, 7001, |mut stream| {
        let chunk = vec![7; 64 * 1024];
        while stream.write_all(&chunk).is_ok() {}
    });
    let endless = objects::list(objects::pair("endless", "10.96.0.62", 80, 7001, &["192.168.77.3"]));
    let agent = Agent::on(&a)
        .manifest("trio.json", &manifest(&["192.168.77.2"]))
        .manifest("endless.json", &endless)
        .start();
    let open = || {
        let mut stream = a.connect(SERVICE).expect("accepted");
        stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0])).expect("an echo");
        stream.set_read_timeout(Some(BUDGET)).expect("a timeout");
        stream
    };
    let (mut silent, mut speaking) = (open(), open());
    // A peer that is alive and merely does not read must be let alone.
    let mut stalled = a.connect("10.96.0.62:80").expect("accepted");
    cut_off(&b);
    let died = Instant::now();
    let beating = speaking.try_clone().expect("a second handle");
    let beat = std::thread::spawn(move || {
        // Its own bytes must not make the dead one look alive.
        while (&beating).write_all(b"still there?").is_ok() {
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    let waits = std::thread::spawn(move || (silent.read(&mut [0; 1]), died.elapsed()));
    let (said, after) = (speaking.read(&mut [0; 1]), died.elapsed());
    assert_eq!(said.as_ref().map_err(errno), Err(Errno::ECONNRESET), "after {after:?}; {}", agent.log());
    println!("with bytes under way the client was reset after {after:?}");
    let (said, after) = waits.join().expect("it does not panic");
    assert_eq!(said.as_ref().map_err(errno), Err(Errno::ECONNRESET), "after {after:?}");
    println!("silent, the client was reset after {after:?}");
    beat.join().expect("it does not panic");
    std::thread::sleep(BUDGET.saturating_sub(died.elapsed()));
    let mut bytes = vec![0; 32 << 20];
    stalled.read_exact(&mut bytes).expect("a stalled reader goes on where it stopped");
}
