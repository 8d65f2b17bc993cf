//! The node that faults happen to: an agent, two nodes with backends, a pod, and clients of every kind.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::{
    Agent, AgentBuilder, Client, Datagrams, Kind, Lab, Netns, Node, Outcome, Pod, Server, Tally, eventually,
    objects,
};

/// A TCP Service with a backend on either node.
pub(crate) const GREET: &str = "10.96.0.50:80";
/// A UDP Service with a backend on either node.
pub(crate) const ECHO: &str = "10.96.0.51:5000";
/// The cluster's own DNS, and the agent's.
pub(crate) const DNS: [&str; 2] = ["10.96.0.10:53", "169.254.96.16:53"];
pub(crate) const NAME: &str = "greet.default.svc.cluster.local";
pub(crate) const GREETING: &str = "hello";
/// Longest wait for what takes a moment.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Longest wait of a client. What is late has not failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Scene {
    pub(crate) servers: [Server; 2],
    _echoes: [Datagrams; 2],
    pub(crate) pod: Pod,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) c: Node,
    pub(crate) lab: Lab,
}

impl Scene {
    pub(crate) fn new(label: &str) -> Self {
        let lab = Lab::new(label);
        let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
        let pod = a.pod("client");
        let servers = [Server::greeting(&b, 7000, GREETING), Server::greeting(&c, 7000, GREETING)];
        let echoes = [Datagrams::echo(&b, 7001), Datagrams::echo(&c, 7001)];
        Self { servers, _echoes: echoes, pod, a, b, c, lab }
    }

    /// What is served.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let backends = [&*self.b.v4, &*self.c.v4];
        let [greet, slice] = objects::pair("greet", "10.96.0.50", 80, 7000, &backends);
        let echo = objects::service("echo", &["10.96.0.51"], &[("udp", 5000, 7001, "UDP")]);
        let echoes = objects::slice("echo", &[("udp", 7001, "UDP")], &backends);
        let mut dns = objects::service("kube-dns", &["10.96.0.10"], &[("dns", 53, 53, "UDP")]);
        dns["metadata"]["namespace"] = json!("kube-system");
        vec![greet, slice, echo, echoes, dns]
    }

    pub(crate) fn agent(&self) -> AgentBuilder {
        Agent::on(&self.a).manifest("objects.json", &objects::list(self.objects()))
    }

    /// Clients of connections: two in the pod, one on the host.
    pub(crate) fn connecting(&self) -> Vec<Client> {
        let ns: [&Netns; 3] = [&self.pod, &self.pod, &self.a];
        ns.map(|ns| client(ns, Kind::Connection, GREET)).into()
    }

    /// Clients of every kind. One whose datagram is lost asks the next question soon.
    pub(crate) fn clients(&self) -> Vec<Client> {
        let mut all = self.connecting();
        let mut others = vec![client(&self.pod, Kind::Datagram, ECHO)];
        others.extend(DNS.map(|to| client(&self.pod, Kind::Name, to)));
        for other in &mut others {
            other.patience = Duration::from_secs(5);
        }
        all.extend(others);
        all
    }
}

/// A client of `to` in `ns`.
pub(crate) fn client(ns: &Netns, kind: Kind, to: &str) -> Client {
    let text = if kind == Kind::Name { NAME } else { GREETING }.to_owned();
    let pause = Duration::from_millis(5);
    Client { ns: ns.clone(), kind, to: to.to_owned(), pause, patience: PATIENCE, text }
}

/// Prints a line of the table in `docs/bench/faults.md`.
pub(crate) fn row(fault: &str, tally: &Tally, why: &str) {
    println!("| {fault} | {tally} | {why} |");
}

/// What kills of the worker may cost, as often as there were any: what it had in hand at that moment, which is no more
/// than one question of each client.
pub(crate) fn assert_only_cut(tally: &Tally, kills: usize, clients: usize, log: &str) {
    let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_) | Outcome::Wrong(_));
    for kind in [Kind::Connection, Kind::Datagram, Kind::Name] {
        assert_eq!(tally.count(kind, refused), 0, "{kind:?}: {tally}; {log}");
    }
    let hung = tally.count(Kind::Connection, |outcome| *outcome == Outcome::Silent);
    assert_eq!(hung, 0, "{tally}; {log}");
    let failed = tally.failed().len();
    assert!(failed <= kills * clients, "{failed} by {kills} kills of {clients} clients: {tally}; {log}");
}

/// A process id as the system calls take it.
pub(crate) fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).expect("process ids fit"))
}

/// Kills the process that works, and returns its id.
pub(crate) fn kill_worker(agent: &Agent) -> u32 {
    let worker = agent.worker();
    kill(pid(worker), Signal::SIGKILL).expect("a live worker");
    worker
}

/// Waits until another process than `last` works and is ready.
pub(crate) fn worker_after(agent: &mut Agent, last: u32) {
    eventually("another worker", Duration::from_mins(1), || (agent.worker() != last).then_some(()));
    agent.wait_ready();
}

/// The value of a metric, by its name and labels as they stand in the scrape.
pub(crate) fn metric(agent: &Agent, series: &str) -> Option<u64> {
    let (_, text) = agent.get("/metrics").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    value.parse().ok()
}

/// Memory in KiB, as the kernel names it, and open descriptors of a process; `None` if it has gone.
pub(crate) fn footprint(process: u32, memory: &str) -> Option<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(memory))?;
    let kib = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some((kib, fs::read_dir(format!("/proc/{process}/fd")).ok()?.count()))
}
