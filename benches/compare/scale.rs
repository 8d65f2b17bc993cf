//! 1,000 services with 10,000 endpoints: how much memory, and how long from start to ready.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::contenders::{HELD, OTHER, agent, haproxy_head, start_haproxy, start_nginx};
use crate::cpu;
use crate::lab::{Agent, Lab, Node, objects};

/// Services.
const SERVICES: u16 = 1000;
/// Endpoints of each.
const ENDPOINTS: u16 = 10;
/// The first proxy that must have a port for each service listens here.
const FIRST_PORT: u16 = 20_000;

/// What the size costs.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Size {
    /// Resident memory of the processes together, in KiB; none where there is no process.
    pub(crate) resident_kib: Option<u64>,
    /// The same with each page that several map counted in parts (`Pss`).
    pub(crate) proportional_kib: Option<u64>,
    /// What no other process maps and no file backs (`Private_Dirty`).
    pub(crate) private_kib: Option<u64>,
    /// Milliseconds from start to ready.
    pub(crate) ready_ms: f64,
    /// The same for a second start, where something was kept from the first.
    pub(crate) again_ms: Option<f64>,
    /// Rules in the packet filter, both families.
    pub(crate) rules: usize,
}

/// Sets up `kind` on a new node at full size. None for plain forwarding, which has no services.
pub(crate) fn measure(kind: &str, lab: &Lab) -> Option<Size> {
    let node = lab.node(&format!("{kind}-size"));
    let started = Instant::now();
    let (again, process, agent) = match kind {
        "dnat" => {
            node.feed(&["iptables-nft-restore", "--noflush"], &dnat_rules());
            (None, None, None)
        }
        "haproxy" => (None, Some(start_haproxy(&node, &haproxy_config(), FIRST_PORT + SERVICES - 1)), None),
        "nginx" => (None, Some(start_nginx(&node, &nginx_config(), FIRST_PORT + SERVICES - 1)), None),
        "edgesplice" | HELD | OTHER => return Some(measure_agent(kind, &node)),
        _ => return None,
    };
    let ready = started.elapsed();
    // What is still being set up counts.
    std::thread::sleep(Duration::from_secs(1));
    let pids = process.is_some().then(|| cpu::pids(&node));
    let size = size(pids.as_deref(), ready, again, &node);
    drop::<(_, Option<Agent>)>((process, agent));
    Some(size)
}

fn measure_agent(kind: &str, node: &Node) -> Size {
    let all = (0..SERVICES).flat_map(|service| {
        let addresses: Vec<String> = (0..ENDPOINTS).map(|endpoint| backend(service, endpoint)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        objects::pair(&format!("service-{service}"), &cluster_ip(service), 80, 8080, &addresses)
    });
    let text = objects::list(all);
    let start = || {
        let builder = agent(kind, node).manifest("all.json", &text);
        let started = Instant::now();
        (builder.start(), started.elapsed())
    };
    let (running, first) = start();
    running.stop();
    let (running, again) = start();
    std::thread::sleep(Duration::from_secs(1));
    size(Some(&[running.pid(), running.worker()]), first, Some(again), node)
}

fn size(pids: Option<&[u32]>, ready: Duration, again: Option<Duration>, node: &Node) -> Size {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    Size {
        resident_kib: pids.map(cpu::resident),
        proportional_kib: pids.map(|pids| mapped(pids, "Pss:")),
        private_kib: pids.map(|pids| mapped(pids, "Private_Dirty:")),
        ready_ms: milliseconds(ready),
        again_ms: again.map(milliseconds),
        rules: node.rule_count(),
    }
}

/// One line of the processes' `smaps_rollup` together, in KiB.
fn mapped(pids: &[u32], field: &str) -> u64 {
    let of = |pid: &u32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    pids.iter().filter_map(of).sum()
}

fn cluster_ip(service: u16) -> String {
    format!("10.96.{}.{}", 1 + service / 200, 1 + service % 200)
}

fn backend(service: u16, endpoint: u16) -> String {
    format!("172.{}.{}.{}", 16 + endpoint, service / 200, 1 + service % 200)
}

/// Rules in the shape of kube-proxy's: a chain a service and a chain an endpoint.
fn dnat_rules() -> String {
    let mut chains = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    let mut rules = String::from("-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n");
    for service in 0..SERVICES {
        let _ = writeln!(chains, ":KUBE-SVC-{service} - [0:0]");
        let ip = cluster_ip(service);
        let _ = writeln!(rules, "-A KUBE-SERVICES -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{service}");
        for endpoint in 0..ENDPOINTS {
            let chain = format!("KUBE-SEP-{service}-{endpoint}");
            let share = 1.0 / f64::from(ENDPOINTS - endpoint);
            let _ = writeln!(chains, ":{chain} - [0:0]");
            let chance = if endpoint + 1 == ENDPOINTS {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {share:.10} ")
            };
            let _ = writeln!(rules, "-A KUBE-SVC-{service} {chance}-j {chain}");
            let to = backend(service, endpoint);
            let _ = writeln!(rules, "-A {chain} -p tcp -m tcp -j DNAT --to-destination {to}:8080");
        }
    }
    chains + &rules + "COMMIT\n"
}

fn haproxy_config() -> String {
    let mut text = haproxy_head();
    for service in 0..SERVICES {
        let _ = writeln!(text, "listen s{service}\n  bind :{}", FIRST_PORT + service);
        for endpoint in 0..ENDPOINTS {
            let _ = writeln!(text, "  server e{endpoint} {}:8080", backend(service, endpoint));
        }
    }
    text
}

fn nginx_config() -> String {
    let mut text = String::new();
    for service in 0..SERVICES {
        let _ = write!(text, "  upstream s{service} {{");
        for endpoint in 0..ENDPOINTS {
            let _ = write!(text, " server {}:8080;", backend(service, endpoint));
        }
        let _ = writeln!(text, " }}\n  server {{ listen {}; proxy_pass s{service}; }}", FIRST_PORT + service);
    }
    text
}
