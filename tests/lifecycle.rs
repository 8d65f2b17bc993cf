//! Starting, reloading, asking, stopping: what the operator sees, and that a stopped agent leaves nothing behind.

mod lab;

use std::time::Duration;

use lab::{Agent, Lab, Server, eventually, objects, with_either_backend};
use nix::errno::Errno;
use nix::sys::signal::Signal;

const GREETING: &str = "10.96.0.50:80";
const SOON: Duration = Duration::from_secs(5);

/// Service `greet` on [`GREETING`], served by these addresses at port 7000.
fn greet(addresses: &[&str]) -> String {
    objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, addresses))
}

/// What `greet` answers a client in this namespace.
fn ask(client: &lab::Netns) -> Result<String, String> {
    let mut stream = client.connect(GREETING).map_err(|errno| errno.to_string())?;
    lab::read_all(&mut stream).map_err(|error| error.to_string())
}

fn sigterm_leaves_nothing(backend: &str) {
    let lab = Lab::new(&format!("term-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let _server = Server::greeting(&b, 7000, "hello");
    let _slow = Server::echo_after_eof(&b, 7001, Duration::from_millis(1500));
    let before = a.state();
    let slow = objects::list(objects::pair("slow", "10.96.0.51", 80, 7001, &["192.168.77.2"]));
    let agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet(&["192.168.77.2"]));
    let agent = agent.manifest("slow.json", &slow).start();
    assert_eq!(ask(&pod).as_deref(), Ok("hello"));
    assert!(!before.diff(&a.state()).is_empty(), "the agent works without any rule");

    // A connection that is open at the end gets its answer: SIGTERM drains.
    let mut open = pod.connect("10.96.0.51:80").expect("a connection");
    std::io::Write::write_all(&mut open, b"late").expect("a request");
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        open.shutdown(std::net::Shutdown::Write).expect("the connection is open while it drains");
        lab::read_all(&mut open)
    });
    eventually("the open connection is counted", SOON, || {
        (agent.status()["proxy"]["activeConnections"] == 1).then_some(())
    });
    assert_eq!(agent.stop(), 0);
    assert_eq!(reader.join().expect("no panic").ok().as_deref(), Some("late"));
    before.assert_same(&a.state(), "after SIGTERM");
    // As if it had never been there: without a route the host is told so, as before.
    assert_eq!(a.connect(GREETING).err(), Some(Errno::ENETUNREACH));
}

fn cleanup_removes_what_a_killed_agent_left(backend: &str) {
    let lab = Lab::new(&format!("kill-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let before = a.state();
    let agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    assert_eq!(ask(&a).as_deref(), Ok("hello"));
    agent.kill();
    let left = a.state();
    assert!(!before.diff(&left).is_empty(), "a killed agent cannot clean up");
    let backup = lab.dir().join("backup").display().to_string();
    let dry = a.edgesplice(&["cleanup", "--dry-run", "--backup", &backup]);
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    left.assert_same(&a.state(), "after `cleanup --dry-run`");
    let run = a.edgesplice(&["cleanup", "--backup", &backup]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    before.assert_same(&a.state(), "after `cleanup`");
}

fn a_new_start_takes_over_what_a_killed_agent_left(backend: &str) {
    let lab = Lab::new(&format!("again-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let before = a.state();
    let start = || Agent::on(&a).backend(backend).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    start().kill();
    let agent = start();
    assert_eq!(ask(&a).as_deref(), Ok("hello"));
    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after the second agent's SIGTERM");
}

fn tampering_is_repaired(backend: &str) {
    let lab = Lab::new(&format!("tamper-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    let intact = a.state();
    let tables = format!("iptables-{backend}");
    let tables6 = format!("ip6tables-{backend}");
    let acts: [&[&str]; 11] = [
        &[&tables, "-w", "-F"],
        &[&tables, "-w", "-t", "nat", "-F"],
        &[&tables, "-w", "-t", "mangle", "-F"],
        &[&tables6, "-w", "-t", "nat", "-F"],
        &[&tables, "-w", "-t", "nat", "-F", "OUTPUT"],
        &["ipset", "flush"],
        &["ip", "route", "flush", "table", "all", "proto", "237"],
        &["ip", "-6", "route", "flush", "table", "all", "proto", "237"],
        &["ip", "rule", "del", "pref", "238"],
        &["ip", "-6", "rule", "del", "pref", "238"],
        &["ip", "rule", "del", "pref", "237"],
    ];
    for act in acts {
        a.must(act);
        eventually(&format!("repair of `{}`", act.join(" ")), SOON, || {
            intact.diff(&a.state()).is_empty().then_some(())
        });
        assert_eq!(ask(&a).as_deref(), Ok("hello"), "after `{}`", act.join(" "));
    }
    assert!(agent.status()["rules"]["repairsTotal"].as_u64() >= Some(1));
}

/// The agent's own address for DNS stands on `lo`, where the route to the ranges leads, or on a link of its own.
#[test]
fn a_process_of_the_host_comes_from_the_nodes_own_address() {
    let lab = Lab::new("source");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let _agent = Agent::on(&a).backend("nft").manifest("greet.json", &greet(&["192.168.77.2"])).start();
    for to in ["10.96.0.50:80", "169.254.96.16:53"] {
        let source = a.connect(to).expect("it is served").local_addr().expect("an address").ip();
        assert_eq!(source.to_string(), if to.ends_with(":80") { "192.168.77.1" } else { "169.254.96.16" });
    }
}

fn the_rule_count_does_not_grow(backend: &str) {
    let lab = Lab::new(&format!("count-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    let one = a.rule_count();
    let many = (0..1000_u32).flat_map(|n| {
        let ip = format!("10.96.{}.{}", 1 + n / 200, 1 + n % 200);
        objects::pair(&format!("many-{n}"), &ip, 80, 7000, &["192.168.77.2"])
    });
    agent.write("many.json", &objects::list(many));
    agent.wait_for("1,001 services", Duration::from_secs(20), |status| {
        status["services"].as_array().is_some_and(|services| services.len() == 1001)
    });
    eventually("the last service answers", SOON, || a.connect("10.96.5.200:80").ok());
    assert_eq!(a.rule_count(), one);
}

with_either_backend!(
    sigterm_leaves_nothing,
    cleanup_removes_what_a_killed_agent_left,
    a_new_start_takes_over_what_a_killed_agent_left,
    tampering_is_repaired,
    the_rule_count_does_not_grow,
);

#[test]
fn keep_rules_keeps_them() {
    let lab = Lab::new("keep");
    let a = lab.node("a");
    let agent =
        Agent::on(&a).args(&["--keep-rules"]).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    let running = a.rule_count();
    assert_eq!(agent.stop(), 0);
    assert_eq!(a.rule_count(), running);
}

#[test]
fn manifests_are_reloaded_live() {
    let lab = Lab::new("reload");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let _servers = [Server::greeting(&b, 7000, "from b"), Server::greeting(&c, 7000, "from c")];
    let agent = Agent::on(&a).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    assert_eq!(ask(&a).as_deref(), Ok("from b"));

    agent.write("greet.json", &greet(&["192.168.77.3"]));
    eventually("the other backend", SOON, || (ask(&a).as_deref() == Ok("from c")).then_some(()));

    // A broken file changes nothing, and the status names it.
    agent.write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [\n");
    let status = agent.wait_for("the fault in the status", SOON, |status| {
        status["source"]["message"].as_str().is_some_and(|message| message.contains("broken.yaml"))
    });
    assert_eq!(status["source"]["state"], "error", "{status}");
    assert_eq!(ask(&a).as_deref(), Ok("from c"));

    agent.remove("broken.yaml");
    agent.wait_for("the fault is gone", SOON, |status| status["source"]["state"] == "synced");

    // The last backend goes, then the whole service: refused. Then it comes back.
    agent.write("greet.json", &greet(&[]));
    eventually("a refusal", SOON, || (a.connect(GREETING).err() == Some(Errno::ECONNREFUSED)).then_some(()));
    agent.remove("greet.json");
    agent.wait_for("no service", SOON, |status| status["services"].as_array().is_some_and(Vec::is_empty));
    eventually("a refusal", SOON, || (a.connect(GREETING).err() == Some(Errno::ECONNREFUSED)).then_some(()));
    agent.write("greet.json", &greet(&["192.168.77.2"]));
    eventually("the service is back", SOON, || (ask(&a).as_deref() == Ok("from b")).then_some(()));
}

#[test]
fn a_second_agent_is_refused_by_name() {
    let lab = Lab::new("second");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let agent = Agent::on(&a).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    let running = a.state();
    let second = Agent::on(&a).run_to_end();
    assert_eq!(second.code, 1, "{}", second.stderr);
    let said = second.stderr.to_lowercase();
    assert!(said.contains("edgesplice") && said.contains("already"), "{}", second.stderr);
    assert!(said.contains(&agent.worker().to_string()), "it does not say which process: {}", second.stderr);
    running.assert_same(&a.state(), "after the second start");
    assert_eq!(ask(&a).as_deref(), Ok("hello"));
}

#[test]
fn sigint_ends_it_like_sigterm() {
    let lab = Lab::new("int");
    let a = lab.node("a");
    let before = a.state();
    let mut agent = Agent::on(&a).manifest("greet.json", &greet(&["192.168.77.2"])).start();
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.wait(Duration::from_secs(20)), 0, "{}", agent.log());
    before.assert_same(&a.state(), "after SIGINT");
}
