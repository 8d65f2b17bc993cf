//! The ways of a datagram from a client pod to an echo server, each on a node of its own.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::Contender;
use crate::cpu;
use crate::lab::{Agent, Lab, Netns, Node, Pod, Process, objects};
use crate::load::{Clients, Load};

/// All of them, in the order of the table's columns.
pub(crate) const KINDS: [&str; 4] = ["direct", "kernel DNAT", "nginx stream", OURS];
/// The one that this is about.
pub(crate) const OURS: &str = "edgesplice";
/// The service's address, on every node but that of `direct`.
const CLUSTER_IP: &str = "10.96.0.10";
const PORT: u16 = 7000;
/// Where nginx listens.
const NGINX_PORT: u16 = 11_082;
/// Clients of the largest load, and of the memory measurement.
const CROWD: usize = 2_000;

/// Every load, in the order of the table.
pub(crate) const LOADS: [Load<Way>; 4] = [
    Load { title: "echo of 128 bytes, 1 client", clients: |way| way.clients(1, 1, 128) },
    Load { title: "echo of 128 bytes, 32 clients", clients: |way| way.clients(32, 1, 128) },
    Load {
        title: "echo of 1,200 bytes, 4 clients with 16 each on the way",
        clients: |way| way.clients(4, 16, 1_200),
    },
    Load { title: "echo of 128 bytes, 2,000 clients", clients: |way| way.clients(CROWD, 1, 128) },
];

/// One way.
pub(crate) struct Way {
    pub(crate) kind: &'static str,
    node: Node,
    client: Pod,
    to: SocketAddr,
    pids: Vec<u32>,
    _nginx: Option<Process>,
    _agent: Option<Agent>,
}

/// Sends back what comes to `node`, until the program ends.
pub(crate) fn echo(node: &Node) {
    let socket = node.enter(|| UdpSocket::bind(("0.0.0.0", PORT))).expect("the server's port is free");
    // Room for all of the crowd at once.
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
}

impl Way {
    /// Sets up `kind` on a new node of `lab`, leading to `origin`.
    pub(crate) fn new(kind: &'static str, lab: &Lab, origin: &Node) -> Self {
        let name = if kind == "kernel DNAT" { "dnat" } else { kind.split(' ').next().unwrap_or(kind) };
        Self::on(lab.node(name), kind, origin)
    }

    fn on(node: Node, kind: &'static str, origin: &Node) -> Self {
        let client = node.pod("client");
        let (mine, backend) = node.wire(origin);
        // The answer to a datagram that keeps the pod's address must find its way.
        origin.ip(&format!("route add {}/32 via {mine}\n", client.v4));
        let (mut nginx, mut agent) = (None, None);
        let nat = |target: &str| {
            let rule = format!(
                "iptables-nft -t nat -A PREROUTING -d {CLUSTER_IP} -p udp --dport {PORT} -j {target}"
            );
            node.must(&rule.split(' ').collect::<Vec<_>>());
        };
        match kind {
            "direct" => {}
            "kernel DNAT" => nat(&format!("DNAT --to-destination {backend}:{PORT}")),
            "nginx stream" => {
                nat(&format!("REDIRECT --to-ports {NGINX_PORT}"));
                nginx = Some(start_nginx(&node, &backend));
            }
            _ => {
                let objects = objects::list([
                    objects::service("origin", &[CLUSTER_IP], &[("udp", PORT, PORT, "UDP")]),
                    objects::slice("origin", &[("udp", PORT, "UDP")], &[&backend]),
                ]);
                agent = Some(Agent::on(&node).manifest("origin.json", &objects).start());
            }
        }
        let address = if kind == "direct" { &backend } else { CLUSTER_IP };
        let to = SocketAddr::new(address.parse().expect("an address"), PORT);
        Self { kind, client, to, pids: cpu::pids(&node), node, _nginx: nginx, _agent: agent }
    }

    /// Datagrams that the node's sockets had no room for, since it was set up.
    pub(crate) fn overflowed(&self) -> u64 {
        let text = self.node.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
        let text = text.expect("the node's counters");
        let mut udp = text.lines().filter(|line| line.starts_with("Udp: "));
        let (names, values) = (udp.next().unwrap_or_default(), udp.next().unwrap_or_default());
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }

    fn clients(&self, clients: usize, window: usize, size: usize) -> Clients {
        Clients {
            from: vec![IpAddr::from([0, 0, 0, 0]); clients],
            to: self.to,
            questions: vec![vec![0x5a; size]],
            window,
            good: |question, answer| question == answer,
        }
    }
}

impl Contender for Way {
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

/// The agent's resident memory for each flow, in bytes: an agent that has had none is asked once by so many clients.
pub(crate) fn memory_per_session(lab: &Lab, origin: &Node) -> f64 {
    let way = Way::on(lab.node("flows"), OURS, origin);
    let ask = |_| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket.send_to(b"?", way.to).expect("a datagram leaves");
        socket.recv(&mut [0; 16]).expect("an answer");
        socket
    };
    let first = way.client.enter(|| ask(0));
    let before = cpu::resident(&way.pids);
    let sockets: Vec<UdpSocket> = way.client.enter(|| (0..CROWD).map(ask).collect());
    let after = cpu::resident(&way.pids);
    drop(first);
    (after.saturating_sub(before) * 1024) as f64 / sockets.len() as f64
}

fn start_nginx(node: &Node, backend: &str) -> Process {
    let home = node.dir().join(format!("nginx-{}", node.number));
    std::fs::create_dir_all(&home).expect("a folder for nginx");
    let file = home.join("nginx.conf");
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\nworker_processes 2;\n\
         worker_rlimit_nofile 65536;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{ worker_connections 16384; }}\n\
         stream {{ server {{ listen {NGINX_PORT} udp reuseport; listen {NGINX_PORT}; proxy_timeout 120s; \
         proxy_pass {backend}:{PORT}; }} }}\n",
        home.display()
    );
    std::fs::write(&file, config).expect("nginx's configuration");
    let mut process = node.spawn(&["nginx", "-e", "stderr", "-c", &file.display().to_string()]);
    node.wait_for_listener(NGINX_PORT, &mut process);
    process
}
