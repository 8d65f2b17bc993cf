//! The ways from a client pod to the backend that are compared, each on a node of its own.

use std::fmt::Write as _;
use std::fs;

use crate::cpu;
use crate::lab::{Agent, AgentBuilder, Lab, Node, Pod, Process, objects};
use crate::origin::{BULK_PORT, HTTP_PORT};

/// All of them, in the order of the table's columns.
pub(crate) const KINDS: [&str; 7] = ["direct", "dnat", "haproxy", "nginx", "edgesplice", HELD, OTHER];
/// Edgesplice with `intercept.connect: before-accept`, taken in where `ROWS` names it.
pub(crate) const HELD: &str = "held";
/// Another build of edgesplice, taken in when the variable of that name, in capitals, holds its path.
pub(crate) const OTHER: &str = "other";
/// The service's address, on every node but that of `direct`.
const CLUSTER_IP: &str = "10.96.0.10";
/// Where a proxy that does not install rules itself listens.
const PROXY_PORTS: [(u16, u16); 2] = [(HTTP_PORT, 11080), (BULK_PORT, 11081)];

/// One way from a client to the backend.
pub(crate) struct Contender {
    /// Its key in [`KINDS`].
    pub(crate) kind: &'static str,
    /// Where the load comes from.
    pub(crate) client: Pod,
    /// The address that clients dial.
    pub(crate) address: String,
    /// The processes that carry the bytes; none where the kernel does.
    pub(crate) pids: Vec<u32>,
    _proxy: Option<Process>,
    _agent: Option<Agent>,
}

impl Contender {
    /// Sets up `kind` on a new node of `lab`, leading to `origin`.
    pub(crate) fn new(kind: &'static str, lab: &Lab, origin: &Node) -> Self {
        let node = lab.node(kind);
        let client = node.pod("client");
        let (mine, backend) = node.wire(origin);
        // The answer to a connection that keeps the pod's address must find its way.
        origin.ip(&format!("route add {}/32 via {mine}\n", client.v4));
        for ns in [&*node, &*client] {
            // Thousands of connections a second to one address use up the usual range.
            ns.sysctl("net/ipv4/ip_local_port_range", "12000 65535");
        }
        let (mut proxy, mut agent) = (None, None);
        match kind {
            "direct" => {}
            "dnat" => nat(&node, |port, _| format!("DNAT --to-destination {backend}:{port}")),
            "haproxy" => {
                nat(&node, |_, to| format!("REDIRECT --to-ports {to}"));
                proxy = Some(haproxy(&node, &backend));
            }
            "nginx" => {
                nat(&node, |_, to| format!("REDIRECT --to-ports {to}"));
                proxy = Some(nginx(&node, &backend));
            }
            _ => agent = Some(edgesplice(kind, &node, &backend)),
        }
        let address = if kind == "direct" { backend } else { CLUSTER_IP.to_owned() };
        Self { kind, client, address, pids: cpu::pids(&node), _proxy: proxy, _agent: agent }
    }
}

/// One rule a port, from the service's address to the target that `target(port, proxy_port)` names.
fn nat(node: &Node, target: impl Fn(u16, u16) -> String) {
    for (port, proxy_port) in PROXY_PORTS {
        let target = target(port, proxy_port);
        let rule =
            format!("iptables-nft -t nat -A PREROUTING -d {CLUSTER_IP} -p tcp --dport {port} -j {target}");
        node.must(&rule.split(' ').collect::<Vec<_>>());
    }
}

fn haproxy(node: &Node, backend: &str) -> Process {
    let mut config = haproxy_head();
    for (port, listen) in PROXY_PORTS {
        let _ = writeln!(config, "listen p{port}\n  bind :{listen}\n  server one {backend}:{port}");
    }
    start_haproxy(node, &config, PROXY_PORTS[1].1)
}

/// What every configuration of `HAProxy` begins with: two threads, splicing where it pays.
pub(crate) fn haproxy_head() -> String {
    "global\n  nbthread 2\n  maxconn 2000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 1s\n  \
     timeout client 1h\n  timeout server 1h\n"
        .to_owned()
}

/// Starts `HAProxy` and waits until `port` is open.
pub(crate) fn start_haproxy(node: &Node, config: &str, port: u16) -> Process {
    let file = node.dir().join(format!("haproxy-{}.cfg", node.number));
    fs::write(&file, config).expect("HAProxy's configuration");
    let mut process = node.spawn(&["haproxy", "-db", "-f", &file.display().to_string()]);
    node.wait_for_listener(port, &mut process);
    process
}

fn nginx(node: &Node, backend: &str) -> Process {
    let mut servers = String::new();
    for (port, listen) in PROXY_PORTS {
        let _ = writeln!(servers, "  server {{ listen {listen}; proxy_pass {backend}:{port}; }}");
    }
    start_nginx(node, &servers, PROXY_PORTS[1].1)
}

/// Starts nginx with these entries of its `stream` block, two workers, and waits until `port` is open.
pub(crate) fn start_nginx(node: &Node, stream: &str, port: u16) -> Process {
    let home = node.dir().join(format!("nginx-{}", node.number));
    fs::create_dir_all(&home).expect("a folder for nginx");
    let file = home.join("nginx.conf");
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\nworker_processes 2;\n\
         pid {0}/pid;\nerror_log {0}/error.log;\nevents {{ worker_connections 4096; }}\n\
         stream {{\n{stream}}}\n",
        home.display()
    );
    fs::write(&file, config).expect("nginx's configuration");
    let mut process = node.spawn(&["nginx", "-e", "stderr", "-c", &file.display().to_string()]);
    node.wait_for_listener(port, &mut process);
    process
}

/// The agent of `kind` on `node`, not yet started.
pub(crate) fn agent(kind: &str, node: &Node) -> AgentBuilder {
    let builder = Agent::on(node);
    if kind == HELD {
        let file = node.dir().join("held.yaml");
        let text = "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n\
                    intercept: {connect: before-accept}\n";
        fs::write(&file, text).expect("a configuration file");
        return builder.args(&["--config", &file.display().to_string()]);
    }
    match std::env::var(OTHER.to_uppercase()) {
        Ok(path) if kind == OTHER => builder.program(&path),
        _ => builder,
    }
}

fn edgesplice(kind: &str, node: &Node, backend: &str) -> Agent {
    let ports = [("tcp-http", HTTP_PORT, HTTP_PORT, "TCP"), ("tcp-bulk", BULK_PORT, BULK_PORT, "TCP")];
    let objects = objects::list([
        objects::service("origin", &[CLUSTER_IP], &ports),
        objects::slice("origin", &ports.map(|(name, port, _, protocol)| (name, port, protocol)), &[backend]),
    ]);
    agent(kind, node).manifest("origin.json", &objects).start()
}
