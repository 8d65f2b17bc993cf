//! Many connections: memory and descriptors stay flat, nothing fails, and nothing is left behind.
//!
//! `LOAD=full` takes the numbers that the design promises (a quarter of an hour), else they are a tenth and less.
//! `PROGRAM=path` takes another build of the agent. Where descriptors are short, `LOAD=half` run twice at the same time
//! makes the whole. Figures: `docs/bench/load.md`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "times are shown to whoever asks for them")]

mod lab;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use lab::{Agent, AgentBuilder, Lab, Netns, Node, Pod, eventually, objects};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 70], 80);

/// How much is loaded.
struct Size {
    idle: usize,
    active: usize,
    time: Duration,
    connections: usize,
}

fn size() -> Size {
    let full = |idle, active, connections| Size { idle, active, time: Duration::from_mins(10), connections };
    match std::env::var("LOAD").as_deref() {
        Ok("full") => full(10_000, 2_000, 200_000),
        Ok("half") => full(5_000, 1_000, 100_000),
        _ => Size { idle: 1_000, active: 100, time: Duration::from_secs(4), connections: 5_000 },
    }
}

fn service() -> SocketAddr {
    SERVICE.into()
}

/// Echoes in `ns` until the test ends.
fn echo(ns: &Netns) {
    let listener = ns.enter(|| TcpListener::bind(("0.0.0.0", 7000))).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 512];
                    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                        if stream.write_all(&buffer[..length]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    });
}

fn agent(node: &Node, backends: &[&str]) -> AgentBuilder {
    let objects = objects::list(objects::pair("load", "10.96.0.70", 80, 7000, backends));
    let agent = Agent::on(node).manifest("load.json", &objects);
    match std::env::var("PROGRAM") {
        Ok(path) => agent.program(&path),
        Err(_) => agent,
    }
}

/// A node with a client pod, and another one that echoes.
fn place(lab: &Lab) -> (Node, Pod) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (a, b) = (lab.node("a"), lab.node("b"));
    echo(&b);
    let client = a.pod("client");
    for ns in [&*a, &*client] {
        ns.sysctl("net/ipv4/ip_local_port_range", "12000 65535");
    }
    (a, client)
}

fn run<T: Send>(ns: &Netns, work: impl Future<Output = T> + Send) -> T {
    ns.enter(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work))
}

async fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"are you there").await?;
    stream.read_exact(&mut [0; 13]).await.map(drop)
}

fn resident_kib(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.worker())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.worker())).unwrap().count()
}

#[test]
fn idle_and_active_connections_keep_memory_and_descriptors_flat() {
    let (lab, size) = (Lab::new("flat"), size());
    let (a, client) = place(&lab);
    // Two a connection, here and in the agent, which keeps an eighth for datagrams, and some for pipes.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = u64::try_from(2 * (size.idle + size.active)).unwrap();
    assert!(most * 7 / 8 > wanted + 2_400, "{most} descriptors are too few for {wanted}: LOAD=half, twice");
    let agent = agent(&a, &["192.168.77.2"]).start();
    let (empty, few) = (resident_kib(&agent), descriptors(&agent));
    run(&client, async {
        let mut idle = Vec::with_capacity(size.idle);
        for _ in 0..size.idle {
            let mut stream = TcpStream::connect(service()).await.unwrap();
            exchange(&mut stream).await.unwrap();
            idle.push(stream);
        }
        let with_idle = resident_kib(&agent);
        let each = (with_idle.saturating_sub(empty) * 1024) as f64 / size.idle as f64;
        println!(
            "{} idle connections: {empty} KiB before, {with_idle} KiB with, {each:.0} bytes each",
            size.idle
        );
        assert!(each < 4096.0, "an idle connection takes {each} bytes");

        let end = Instant::now() + size.time;
        let tasks: Vec<_> = (0..size.active)
            .map(|_| {
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(service()).await?;
                    let mut count = 0_u64;
                    while Instant::now() < end {
                        exchange(&mut stream).await?;
                        count += 1;
                    }
                    std::io::Result::Ok(count)
                })
            })
            .collect();
        tokio::time::sleep(size.time / 4).await;
        let (memory, open) = (resident_kib(&agent), descriptors(&agent));
        tokio::time::sleep(size.time / 2).await;
        let (memory_later, open_later) = (resident_kib(&agent), descriptors(&agent));
        let mut exchanges = 0;
        for task in tasks {
            exchanges += task.await.unwrap().unwrap();
        }
        println!("{} active: {exchanges} exchanges in {:?}", size.active, size.time);
        println!(
            "{memory} KiB and {open} descriptors, later {memory_later} KiB and {open_later} descriptors"
        );
        assert!(memory_later <= memory + memory / 20 + 256);
        assert_eq!(open_later, open);
        for stream in &mut idle {
            exchange(stream).await.unwrap();
        }
    });
    eventually("every descriptor is closed", Duration::from_secs(20), || {
        (descriptors(&agent) <= few + 32).then_some(())
    });
}

#[test]
fn connections_opened_and_closed_leave_nothing_behind() {
    const AT_ONCE: usize = 16;
    let (lab, size) = (Lab::new("churn"), size());
    let (a, client) = place(&lab);
    let agent = agent(&a, &["192.168.77.2"]).start();
    let few = descriptors(&agent);
    let started = Instant::now();
    let worst = run(&client, async {
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                tokio::spawn(async move {
                    let mut worst = Duration::ZERO;
                    for _ in 0..size.connections / AT_ONCE {
                        let began = Instant::now();
                        let mut stream = TcpStream::connect(service()).await?;
                        worst = worst.max(began.elapsed());
                        exchange(&mut stream).await?;
                    }
                    std::io::Result::Ok(worst)
                })
            })
            .collect();
        let mut worst = Duration::ZERO;
        for task in tasks {
            worst = worst.max(task.await.unwrap().expect("no connection fails"));
        }
        worst
    });
    let rate = size.connections as f64 / started.elapsed().as_secs_f64();
    println!("{} connections, {rate:.0} a second, the slowest connect took {worst:?}", size.connections);
    println!("{} KiB", resident_kib(&agent));
    assert!(worst < Duration::from_millis(900), "a lost SYN takes a second");
    eventually("every descriptor is closed", Duration::from_secs(20), || {
        (descriptors(&agent) <= few + 32).then_some(())
    });
    let status = agent.wait_for("the end of the last connection", Duration::from_secs(20), |status| {
        status["proxy"]["activeConnections"] == 0
    });
    assert_eq!(status["proxy"]["refusedTotal"], 0);
}

#[test]
fn when_the_ports_towards_one_backend_are_used_up_others_are_used() {
    let lab = Lab::new("ports");
    let (a, client) = place(&lab);
    echo(&lab.node("c"));
    let agent = agent(&a, &["192.168.77.2", "192.168.77.3"]).start();
    // Towards each address there are now so many.
    a.sysctl("net/ipv4/ip_local_port_range", "40000 40099");
    run(&client, async {
        let mut open = Vec::new();
        for number in 0..190 {
            let mut stream = TcpStream::connect(service()).await.unwrap();
            exchange(&mut stream)
                .await
                .unwrap_or_else(|e| panic!("connection {number}: {e}; {}", agent.log()));
            open.push(stream);
        }
        let mut failed = 0;
        for _ in 0..30 {
            // The reset may come before `connect` returns.
            let Ok(mut stream) = TcpStream::connect(service()).await else {
                failed += 1;
                continue;
            };
            match exchange(&mut stream).await {
                Ok(()) => open.push(stream),
                Err(_) => failed += 1,
            }
        }
        assert!((10..=30).contains(&failed), "{failed} failed");
        // Nobody is ejected for what is this node's fault, and free ports are used again.
        open.clear();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let service = agent.service("load");
        assert!(service["backends"].as_array().unwrap().iter().all(|b| b["state"] == "ready"), "{service}");
    });
    assert!(agent.log().contains("no free port"), "{}", agent.log());
}
