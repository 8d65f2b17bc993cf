//! Servers for the names of one cluster of 1,000 Services, each on a node of its own with a pod that asks.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::Contender;
use crate::cpu;
use crate::lab::{Agent, Lab, Netns, Node, Pod, Process, objects};
use crate::load::{Clients, Load};

/// All of them, in the order of the table's columns.
pub(crate) const KINDS: [&str; 3] = ["dnsmasq", "unbound", "edgesplice"];
/// The cluster's size.
const SERVICES: usize = 1_000;
/// The cluster's DNS address, which edgesplice answers at.
const CLUSTER_DNS: &str = "10.96.255.10";
/// So many pods ask: edgesplice limits what one client may.
const PODS: usize = 32;

/// Every load, in the order of the table.
pub(crate) const LOADS: [Load<Server>; 3] = [
    Load { title: "names that exist, 32 clients", clients: |s| s.clients(PODS, "") },
    Load { title: "names that exist, 1 client", clients: |s| s.clients(1, "") },
    Load {
        title: "search paths (no such name), 32 clients",
        clients: |s| s.clients(PODS, "default.svc.cluster.local."),
    },
];

/// One server.
pub(crate) struct Server {
    kind: &'static str,
    client: Pod,
    to: SocketAddr,
    from: Vec<IpAddr>,
    pids: Vec<u32>,
    _process: Option<Process>,
    _agent: Option<Agent>,
}

fn ip(number: usize) -> String {
    format!("10.96.{}.{}", number / 200, number % 200 + 1)
}

impl Server {
    /// Sets up `kind` on a new node of `lab`.
    pub(crate) fn new(kind: &'static str, lab: &Lab) -> Self {
        let node = lab.node(kind);
        let client = node.pod("client");
        let mut from = Vec::new();
        let mut lines = String::new();
        for number in 0..PODS {
            let address = format!("10.244.{}.{}", node.number, 100 + number);
            let _ = writeln!(lines, "addr add {address}/32 dev eth0");
            from.push(address.parse().expect("an address"));
        }
        client.ip(&lines);
        let port = "veth2";
        node.ip(&from.iter().fold(String::new(), |mut text, ip: &IpAddr| {
            let _ = writeln!(text, "route add {ip}/32 dev {port}");
            text
        }));
        let (mut process, mut agent) = (None, None);
        match kind {
            "dnsmasq" => process = Some(dnsmasq(&node)),
            "unbound" => process = Some(unbound(&node)),
            _ => {
                let mut dns = objects::service("kube-dns", &[CLUSTER_DNS], &[("dns", 53, 53, "UDP")]);
                dns["metadata"]["namespace"] = serde_json::json!("kube-system");
                let services = (0..SERVICES)
                    .map(|n| objects::service(&format!("svc-{n}"), &[&ip(n)], &[("http", 80, 8080, "TCP")]));
                let all = objects::list(std::iter::once(dns).chain(services));
                agent = Some(Agent::on(&node).manifest("cluster.json", &all).start());
            }
        }
        let address = if agent.is_some() { CLUSTER_DNS } else { &*node.v4 };
        let to = SocketAddr::new(address.parse().expect("an address"), 53);
        Self { kind, client, to, from, pids: cpu::pids(&node), _process: process, _agent: agent }
    }

    /// So many clients that ask for all Services in turn, each with `suffix` behind its full name.
    fn clients(&self, clients: usize, suffix: &str) -> Clients {
        let question = |n: usize| query(&format!("svc-{n}.default.svc.cluster.local.{suffix}"));
        Clients {
            from: self.from.iter().copied().take(clients).collect(),
            to: self.to,
            questions: (0..SERVICES).map(question).collect(),
            window: 1,
            good: if suffix.is_empty() {
                |_, answer| answer.len() > 12 && answer[3] % 16 == 0 && answer[7] == 1
            } else {
                |_, answer| answer.len() > 12 && answer[3] % 16 == 3
            },
        }
    }
}

/// A query for the address of `name`.
fn query(name: &str) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        packet.push(u8::try_from(label.len()).expect("a short label"));
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

impl Contender for Server {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn client(&self) -> &Netns {
        &self.client
    }

    fn pids(&self) -> &[u32] {
        &self.pids
    }
}

fn dnsmasq(node: &Node) -> Process {
    let file = node.dir().join("dnsmasq.hosts");
    let hosts = (0..SERVICES).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "{} svc-{n}.default.svc.cluster.local", ip(n));
        text
    });
    fs::write(&file, hosts).expect("dnsmasq's names");
    let mut process = node.spawn(&[
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--local=/cluster.local/",
        "--cache-size=10000",
        "--local-ttl=5",
        "--bind-interfaces",
        &format!("--listen-address={}", node.v4),
        &format!("--addn-hosts={}", file.display()),
    ]);
    node.wait_for_listener(53, &mut process);
    process
}

fn unbound(node: &Node) -> Process {
    let file = node.dir().join("unbound.conf");
    let mut config = format!(
        "server:\n  interface: {}\n  access-control: 0.0.0.0/0 allow\n  num-threads: 2\n  so-reuseport: yes\n  \
         do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  \
         module-config: \"iterator\"\n  local-zone: \"cluster.local.\" static\n",
        node.v4
    );
    for n in 0..SERVICES {
        let _ = writeln!(config, "  local-data: \"svc-{n}.default.svc.cluster.local. 5 A {}\"", ip(n));
    }
    config.push_str("remote-control:\n  control-enable: no\n");
    fs::write(&file, config).expect("unbound's configuration");
    let mut process = node.spawn(&["unbound", "-d", "-c", &file.display().to_string()]);
    node.wait_for_listener(53, &mut process);
    process
}
