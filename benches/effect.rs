//! What live data costs the whole agent on a node: from a change at the server to its effect on a client, start from
//! the disk cache, and load time, memory and rules by size.
//!
//! `cargo bench --bench effect [-- change|start|size|cut]`, as root: nodes are network namespaces. The scripted API
//! server, the backends and the clients run in this process, the agent in its own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement ends where its set-up does, and prints"
)]

#[allow(dead_code, reason = "the scripted server can do more than is measured here")]
#[path = "../tests/apiserver/mod.rs"]
mod apiserver;
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "shared/pod.rs"]
mod pod;

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Runtime;

use apiserver::{ApiServer, Personality};
use lab::{Agent, AgentBuilder, Lab, Node, Server, eventually, objects};
use pod::pod;

const SERVER: &str = "192.168.77.2";
/// The service whose backends change, and the one that only carries load.
const CHANGING: &str = "10.96.0.60:80";
const STEADY: &str = "10.96.0.61:80";
const CHANGES: usize = 1_000;
const MINUTE: Duration = Duration::from_mins(1);

fn main() {
    // Cargo itself passes `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 4] = [("change", change), ("start", start), ("size", size), ("cut", cut)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            part();
        }
    }
}

/// An edge node, a node with the API server, and two with backends.
struct Scene {
    api: Option<ApiServer>,
    runtime: Runtime,
    _servers: [Server; 2],
    edge: Node,
    cloud: Node,
    lab: Lab,
}

impl Scene {
    fn new(services: usize, endpoints: usize, pods: usize) -> Self {
        let lab = Lab::new("effect");
        let (edge, cloud, b, c) = (lab.node("edge"), lab.node("cloud"), lab.node("b"), lab.node("c"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = cloud.enter(|| std::net::TcpListener::bind((SERVER, 6443))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let api = runtime.block_on(async {
            ApiServer::start_on(
                Personality::Kubernetes,
                tokio::net::TcpListener::from_std(listener).unwrap(),
                None,
            )
        });
        let servers = [Server::greeting(&b, 7000, "b"), Server::greeting(&c, 7000, "c")];
        api.set("nodes", json!({"metadata": {"name": "edge"}}));
        api.set(
            "servicecidrs",
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
        );
        backends(&api, "changing", "10.96.0.60", "192.168.77.3");
        backends(&api, "steady", "10.96.0.61", "192.168.77.4");
        for number in 0..services {
            let name = format!("service-{number}");
            let ip = format!("10.{}.{}.{}", 97 + number / 62_500, number / 250 % 250, number % 250 + 1);
            let each = endpoints / services;
            let addresses: Vec<String> = (number * each..(number + 1) * each)
                .map(|n| format!("10.{}.{}.{}", 128 + n / 62_500, n / 250 % 250, n % 250 + 1))
                .collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let [service, slice] = objects::pair(&name, &ip, 80, 7000, &addresses);
            api.set("services", service);
            api.set("endpointslices", slice);
        }
        for number in 0..pods {
            api.set("pods", pod(number));
        }
        Self { api: Some(api), runtime, _servers: servers, edge, cloud, lab }
    }

    fn api(&self) -> &ApiServer {
        self.api.as_ref().unwrap()
    }

    fn agent(&self) -> AgentBuilder {
        let file = self.lab.dir().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": format!("http://{SERVER}:6443")}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(&file, text.to_string()).unwrap();
        Agent::on(&self.edge).source(&["--kubeconfig", &file.display().to_string()]).finding_ranges()
    }
}

/// Puts a service with one backend at the server.
fn backends(api: &ApiServer, name: &str, ip: &str, backend: &str) {
    let [service, slice] = objects::pair(name, ip, 80, 7000, &[backend]);
    api.set("services", service);
    api.set("endpointslices", slice);
}

/// One connection, in the namespace of the calling thread: the answer, or what went wrong.
fn ask(to: SocketAddr) -> Result<String, String> {
    let mut answer = String::new();
    TcpStream::connect_timeout(&to, Duration::from_secs(5))
        .and_then(|mut stream| stream.read_to_string(&mut answer))
        .map_err(|error| error.to_string())?;
    if answer.is_empty() { Err("closed without an answer".to_owned()) } else { Ok(answer) }
}

/// A client in the node that asks again and again, a connection each.
struct Hammer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Hammer {
    fn start(node: &Node, to: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (node, until, to) = (node.clone(), Arc::clone(&stop), to.parse().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut done, mut failed) = (0, Vec::new());
            node.enter(|| {
                while !until.load(Ordering::Relaxed) {
                    match ask(to) {
                        Ok(_) => done += 1,
                        Err(why) => failed.push(why),
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            (done, failed)
        });
        Self { stop, thread }
    }

    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    format!("p50 {:.1?}, p99 {:.1?}, max {:.1?}", at(50), at(99), at(100))
}

/// From the server's word to the first client that meets the new state, with clients under way all the while.
fn change() {
    for (services, endpoints) in [(1_000, 10_000), (10_000, 100_000)] {
        let scene = Scene::new(services, endpoints, 0);
        let agent = scene.agent().start();
        agent.wait_for("sync", MINUTE, |s| s["source"]["state"] == "synced");
        let hammers = [CHANGING, STEADY].map(|to| Hammer::start(&scene.edge, to));
        let to: SocketAddr = CHANGING.parse().unwrap();
        let backends_changed: Vec<Duration> = scene.edge.enter(|| {
            let changes = (0..CHANGES).map(|number| {
                let (name, address) =
                    if number % 2 == 0 { ("c", "192.168.77.4") } else { ("b", "192.168.77.3") };
                let slice = objects::slice("changing", &[("tcp-0", 7000, "TCP")], &[address]);
                let begun = Instant::now();
                scene.api().set("endpointslices", slice);
                loop {
                    // A connection that begins now is served by the new state, if it has taken effect.
                    let effect = begun.elapsed();
                    if ask(to).unwrap() == name {
                        break effect;
                    }
                    assert!(effect < MINUTE, "no effect; {}", agent.log());
                }
            });
            changes.collect()
        });
        let fresh: SocketAddr = "10.96.0.62:80".parse().unwrap();
        let [service, slice] = objects::pair("fresh", "10.96.0.62", 80, 7000, &["192.168.77.3"]);
        scene.api().set("endpointslices", slice);
        let (mut came, mut went) = (Vec::new(), Vec::new());
        scene.edge.enter(|| {
            for _ in 0..CHANGES / 10 {
                for (there, times) in [(true, &mut came), (false, &mut went)] {
                    let begun = Instant::now();
                    if there {
                        scene.api().set("services", service.clone());
                    } else {
                        scene.api().delete("services", "default", "fresh");
                    }
                    loop {
                        let effect = begun.elapsed();
                        if ask(fresh).is_ok() == there {
                            times.push(effect);
                            break;
                        }
                        assert!(effect < MINUTE, "no effect; {}", agent.log());
                    }
                }
            }
        });
        println!(
            "\n{services} services, {endpoints} endpoints; from the server's word to the client's connection"
        );
        println!("  backends of a service change, {CHANGES} times   {}", summary(backends_changed));
        println!("  a service comes, {} times                  {}", CHANGES / 10, summary(came));
        println!("  a service goes, {} times                   {}", CHANGES / 10, summary(went));
        for hammer in hammers {
            let (done, failed) = hammer.end();
            println!(
                "  meanwhile                                  {done} connections, {} failed {failed:?}",
                failed.len()
            );
        }
    }
}

/// From exec to the first served connection, with the API server away.
fn start() {
    for after_kill in [false, true] {
        let mut scene = Scene::new(1_000, 10_000, 0);
        let agent = scene.agent().start();
        let cache = agent.state_dir().join("last-good.json");
        eventually("the cache", MINUTE, || cache.exists().then_some(()));
        scene.api = None;
        let to: SocketAddr = CHANGING.parse().unwrap();
        let (mut served, mut ready, mut next) = (Vec::new(), Vec::new(), Some(agent));
        for _ in 0..11 {
            if let Some(agent) = next.take() {
                if after_kill { agent.kill() } else { assert_eq!(agent.stop(), 0) }
            }
            let builder = scene.agent();
            let begun = Instant::now();
            let mut agent = builder.launch();
            scene.edge.enter(|| {
                while ask(to).is_err() {
                    assert!(begun.elapsed() < MINUTE, "{}", agent.log());
                }
            });
            served.push(begun.elapsed());
            agent.wait_ready();
            ready.push(begun.elapsed());
            next = Some(agent);
        }
        let how = if after_kill { "after kill -9, whose rules stand" } else { "after SIGTERM, from nothing" };
        println!("\n1,000 services from the cache, the API server away, {how}");
        println!("  exec to first served connection            {}", summary(served));
        println!("  exec to /readyz (asked every 10 ms)        {}", summary(ready));
        drop(scene.runtime);
    }
}

fn memory(agent: &Agent) -> (usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.worker())).unwrap();
    let of = |key: &str| -> usize {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Time from exec until the whole state is in force, memory, and rules.
fn size() {
    println!("\n{:<50} {:>12} {:>10} {:>10} {:>6}", "", "exec to sync", "RSS MiB", "peak MiB", "rules");
    for (services, endpoints, pods) in
        [(1, 1, 0), (1, 1, 10_000), (1_000, 10_000, 0), (1_000, 10_000, 10_000), (10_000, 100_000, 0)]
    {
        let scene = Scene::new(services, endpoints, pods);
        let begun = Instant::now();
        let agent = scene.agent().launch();
        let end = begun + MINUTE;
        // Without the weight of a status in JSON.
        while !matches!(agent.get("/readyz"), Ok((200, _))) {
            assert!(Instant::now() < end, "{}", agent.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        let loaded = begun.elapsed();
        // The cache has been written by then, and what was freed has been given back or not.
        std::thread::sleep(Duration::from_secs(15));
        let (rss, peak) = memory(&agent);
        let rules = scene.edge.must(&["iptables-save"]).lines().filter(|l| l.starts_with("-A")).count();
        let name = format!("{services} services, {endpoints} endpoints, {pods} pods");
        let mib = |kib: usize| kib as f64 / 1024.0;
        println!("{name:<50} {loaded:>12.1?} {:>10.1} {:>10.1} {rules:>6}", mib(rss), mib(peak));
    }
}

/// The way to the server is cut for a minute, and everything changes meanwhile.
fn cut() {
    let scene = Scene::new(1_000, 10_000, 0);
    let agent = scene.agent().start();
    agent.wait_for("sync", MINUTE, |s| s["source"]["state"] == "synced");
    let hammers = [CHANGING, STEADY].map(|to| Hammer::start(&scene.edge, to));
    let say = |what: &str| {
        let status = agent.status();
        let source = &status["source"];
        println!(
            "  {what:<28} state {}, {:.0} s old: {}",
            source["state"],
            source["ageSeconds"].as_f64().unwrap(),
            source["message"]
        );
    };
    println!("\nthe way to the server is cut for a minute");
    say("before");
    scene.cloud.ip("link set eth0 down\n");
    backends(scene.api(), "changing", "10.96.0.60", "192.168.77.4");
    std::thread::sleep(MINUTE);
    say("after 60 s without it");
    scene.cloud.ip("link set eth0 up\n");
    let begun = Instant::now();
    let to: SocketAddr = CHANGING.parse().unwrap();
    scene.edge.enter(|| {
        while ask(to).unwrap() != "c" {
            assert!(begun.elapsed() < 3 * MINUTE, "{}", agent.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    say("once the change is in force");
    println!("  the change made meanwhile took effect {:.1?} after the way was free again", begun.elapsed());
    for hammer in hammers {
        let (done, failed) = hammer.end();
        println!("  {done} connections, {} failed {failed:?}", failed.len());
    }
}
