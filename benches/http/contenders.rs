//! The proxies that are compared, each on a node of its own.

use std::fs;

use crate::cpu;
use crate::lab::{Agent, Lab, Node, Pod, Process, objects};
use crate::origin::{HTTP1_PORT, HTTP2_PORT};

/// All of them, in the order of the table's columns.
pub(crate) const KINDS: [&str; 4] = ["haproxy", "nginx", "edgesplice", OTHER];
/// Another build of edgesplice, taken in when the variable of that name, in capitals, holds its path.
pub(crate) const OTHER: &str = "other";
/// The service's address.
const CLUSTER_IP: &str = "10.96.0.10";
/// Where a proxy that does not install rules itself listens.
const PROXY_PORTS: [(u16, u16); 2] = [(HTTP1_PORT, 11080), (HTTP2_PORT, 11082)];

/// One proxy.
pub(crate) struct Contender {
    /// Its key in [`KINDS`].
    pub(crate) kind: &'static str,
    /// Where the load comes from.
    pub(crate) client: Pod,
    /// Its processes.
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
        origin.ip(&format!("route add {}/32 via {mine}\n", client.v4));
        let (mut proxy, mut agent) = (None, None);
        match kind {
            "haproxy" => {
                redirect(&node);
                proxy = Some(haproxy(&node, &backend));
            }
            "nginx" => {
                redirect(&node);
                proxy = Some(nginx(&node, &backend));
            }
            _ => agent = Some(edgesplice(kind, &node, &backend)),
        }
        Self { kind, client, pids: cpu::pids(&node), _proxy: proxy, _agent: agent }
    }

    /// What clients dial.
    pub(crate) fn address(port: u16) -> std::net::SocketAddr {
        format!("{CLUSTER_IP}:{port}").parse().expect("an address")
    }
}

fn redirect(node: &Node) {
    for (port, to) in PROXY_PORTS {
        let rule = format!(
            "iptables-nft -t nat -A PREROUTING -d {CLUSTER_IP} -p tcp --dport {port} -j REDIRECT --to-ports {to}"
        );
        node.must(&rule.split(' ').collect::<Vec<_>>());
    }
}

fn haproxy(node: &Node, backend: &str) -> Process {
    let file = node.dir().join(format!("haproxy-{}.cfg", node.number));
    let config = format!(
        "global\n  nbthread 2\n  maxconn 4000\ndefaults\n  mode http\n  http-reuse always\n  option forwardfor\n  \
         timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n\
         listen h1\n  bind :11080\n  server one {backend}:{HTTP1_PORT}\n\
         listen h2\n  bind :11082 proto h2\n  server one {backend}:{HTTP2_PORT} proto h2\n"
    );
    fs::write(&file, config).expect("HAProxy's configuration");
    let mut process = node.spawn(&["haproxy", "-db", "-f", &file.display().to_string()]);
    node.wait_for_listener(11082, &mut process);
    process
}

fn nginx(node: &Node, backend: &str) -> Process {
    let home = node.dir().join(format!("nginx-{}", node.number));
    fs::create_dir_all(&home).expect("a folder for nginx");
    let file = home.join("nginx.conf");
    let home = home.display();
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 2;\npid {home}/pid;\nerror_log {home}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n  client_body_temp_path {home}/body;\n  \
         proxy_temp_path {home}/proxy;\n  fastcgi_temp_path {home}/f;\n  uwsgi_temp_path {home}/u;\n  \
         scgi_temp_path {home}/s;\n  \
         upstream h1 {{ server {backend}:{HTTP1_PORT}; keepalive 512; keepalive_requests 100000000; }}\n  \
         upstream h2 {{ server {backend}:{HTTP2_PORT}; keepalive 512; keepalive_requests 100000000; }}\n  \
         server {{ listen 11080; location / {{ proxy_pass http://h1; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}\n  \
         server {{ listen 11082 http2; http2_max_requests 100000000; location / {{ grpc_pass grpc://h2; }} }}\n}}\n"
    );
    fs::write(&file, config).expect("nginx's configuration");
    let mut process = node.spawn(&["nginx", "-e", "stderr", "-c", &file.display().to_string()]);
    node.wait_for_listener(11082, &mut process);
    process
}

fn edgesplice(kind: &str, node: &Node, backend: &str) -> Agent {
    let ports = [("http-1", HTTP1_PORT, HTTP1_PORT, "TCP"), ("http2-2", HTTP2_PORT, HTTP2_PORT, "TCP")];
    let objects = objects::list([
        objects::service("origin", &[CLUSTER_IP], &ports),
        objects::slice("origin", &ports.map(|(name, port, _, protocol)| (name, port, protocol)), &[backend]),
    ]);
    let agent = Agent::on(node).manifest("origin.json", &objects);
    match std::env::var(OTHER.to_uppercase()) {
        Ok(path) if kind == OTHER => agent.program(&path).start(),
        _ => agent.start(),
    }
}
