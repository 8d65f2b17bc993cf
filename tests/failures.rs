//! Backends that fail and limits that are reached: clients must not notice what can be mended.

mod lab;

use std::io::{Read, Write};
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

#[test]
fn a_backend_that_refuses_costs_no_connection() {
    let lab = Lab::new("refuses");
    let (a, b, c, _d) = (lab.node("a"), lab.node("b"), lab.node("c"), lab.node("d"));
    let servers = [Server::greeting(&b, 7000, "ok"), Server::greeting(&c, 7000, "ok")];
    let addresses = ["192.168.77.2", "192.168.77.3", "192.168.77.4"];
    let agent = Agent::on(&a).manifest("trio.json", &manifest(&addresses)).start();
    for number in 0..60 {
        assert_eq!(ask(&a).as_deref(), Ok("ok"), "connection {number}; {}", agent.log());
    }
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
    let mut slowest = Duration::ZERO;
    for number in 0..60 {
        let started = Instant::now();
        assert_eq!(ask(&a).as_deref(), Ok("ok"), "connection {number}; {}", agent.log());
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "the slowest connection took {slowest:?}");
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
