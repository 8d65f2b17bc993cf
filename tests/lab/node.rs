//! Nodes and pods: links, addresses, published host ports, and what they run.

use std::fs;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ns::Netns;
use super::process::Process;

/// A node on the lab's LAN. Clones are the same node.
#[derive(Clone, Debug)]
pub struct Node {
    ns: Netns,
    /// Its name.
    pub name: Arc<str>,
    /// Its place on the LAN, from 1.
    pub number: u32,
    /// Its address on the LAN.
    pub v4: Arc<str>,
    /// Its IPv6 address on the LAN.
    pub v6: Arc<str>,
    pods: Arc<AtomicU32>,
}

/// A pod of a node. Clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    ns: Netns,
    /// Its IPv4 address.
    pub v4: Arc<str>,
    /// Its IPv6 address.
    pub v6: Arc<str>,
}

impl Deref for Node {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.ns
    }
}

impl Deref for Pod {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.ns
    }
}

impl Node {
    pub(super) fn join(ns: Netns, name: &str, number: u32, lan: &Netns) -> Self {
        let (v4, v6) = (format!("192.168.77.{number}"), format!("fd77::{number}"));
        ns.sysctl("net/ipv4/ip_forward", "1");
        ns.sysctl("net/ipv6/conf/all/forwarding", "1");
        ns.ip(&format!("link add eth0 type veth peer name port{number} netns {}\n", lan.name()));
        lan.ip(&format!("link set port{number} master lan up\n"));
        ns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"));
        let pods = Arc::new(AtomicU32::new(0));
        Self { ns, name: name.into(), number, v4: v4.into(), v6: v6.into(), pods }
    }

    /// A pod behind a routed veth, as the `ptp` and Calico plugins make it.
    pub fn pod(&self, name: &str) -> Pod {
        let (pod, port) = self.new_pod(name);
        let (gate4, gate6) = self.gateways();
        self.ip(&format!("link add {port} type veth peer name eth0 netns {}\n", pod.ns.name()));
        self.ip(&format!(
            "addr add {gate4}/32 dev {port}\naddr add {gate6}/128 dev {port} nodad\nlink set {port} up\n\
             route add {}/32 dev {port} src {gate4}\nroute add {}/128 dev {port}\n",
            pod.v4, pod.v6
        ));
        pod.ip(&format!(
            "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add {gate4} dev eth0\nroute add default via {gate4} dev eth0\n\
             route add {gate6} dev eth0\nroute add default via {gate6} dev eth0\n",
            pod.v4, pod.v6
        ));
        pod
    }

    /// A pod on the node's Linux bridge `cni0`, as the `bridge` plugin makes it.
    pub fn bridged_pod(&self, name: &str) -> Pod {
        let (pod, port) = self.new_pod(name);
        let (gate4, gate6) = self.gateways();
        if self.run(&["ip", "link", "show", "cni0"]).code != 0 {
            self.ip(&format!(
                "link add cni0 type bridge forward_delay 0\naddr add {gate4}/24 dev cni0\n\
                 addr add {gate6}/64 dev cni0 nodad\nlink set cni0 up\n"
            ));
        }
        self.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master cni0 up\n",
            pod.ns.name()
        ));
        pod.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via {gate4}\nroute add default via {gate6}\n",
            pod.v4, pod.v6
        ));
        pod
    }

    /// Publishes a pod's TCP port on this node, with the rules of the `portmap` plugin in either family.
    pub fn publish(&self, backend: &str, host_port: u16, pod: &Pod, port: u16) {
        for (family, to) in [("ip", format!("{}:{port}", pod.v4)), ("ip6", format!("[{}]:{port}", pod.v6))] {
            let chain = format!("CNI-DN-{host_port}");
            let jump = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT";
            self.feed(
                &[&format!("{family}tables-{backend}-restore"), "--noflush", "--wait", "20"],
                &format!(
                    "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:{chain} - [0:0]\n\
                     -A PREROUTING {jump}\n-A OUTPUT {jump}\n\
                     -A CNI-HOSTPORT-DNAT -p tcp --dport {host_port} -j {chain}\n\
                     -A {chain} -p tcp --dport {host_port} -j DNAT --to-destination {to}\nCOMMIT\n"
                ),
            );
        }
    }

    /// Gives this node a private wire to another one, and returns the two IPv4 addresses, its own first.
    pub fn wire(&self, other: &Node) -> (String, String) {
        let name = format!("wire{}to{}", self.number, other.number);
        let (mine, theirs) =
            (format!("192.168.78.{}", self.number * 4 + 1), format!("192.168.78.{}", self.number * 4 + 2));
        self.ip(&format!(
            "link add {name} type veth peer name {name} netns {}\naddr add {mine}/30 dev {name}\nlink set {name} up\n",
            other.ns.name()
        ));
        other.ip(&format!("addr add {theirs}/30 dev {name}\nlink set {name} up\n"));
        (mine, theirs)
    }

    fn gateways(&self) -> (String, String) {
        (format!("10.244.{}.1", self.number), format!("fd44:{}::1", self.number))
    }

    /// A namespace with the next address, and the name of its link on the node.
    fn new_pod(&self, name: &str) -> (Pod, String) {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 2;
        let ns = Netns::create(format!("{}.{name}", self.ns.name()), self.ns.dir());
        let (v4, v6) =
            (format!("10.244.{}.{number}", self.number), format!("fd44:{}::{number}", self.number));
        (Pod { ns, v4: v4.into(), v6: v6.into() }, format!("veth{number}"))
    }
}

impl Netns {
    /// Starts Debian's nginx on `port`, both families, serving the distribution's own page. Each answer carries
    /// `name` in the header `X-Served-By`.
    pub fn nginx(&self, port: u16, name: &str) -> Process {
        let dir = self.dir().join(format!("{}-{name}", self.name()));
        fs::create_dir_all(dir.join("tmp")).expect("a folder for nginx");
        let (home, tmp) = (dir.display(), dir.join("tmp"));
        let tmp = tmp.display();
        let config = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {home}/pid;\nerror_log {home}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {tmp};\n  proxy_temp_path {tmp};\n  \
             fastcgi_temp_path {tmp};\n  uwsgi_temp_path {tmp};\n  scgi_temp_path {tmp};\n  \
             server {{\n    listen {port};\n    listen [::]:{port};\n    add_header X-Served-By {name};\n    \
             root /usr/share/nginx/html;\n  }}\n}}\n"
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config).expect("nginx's configuration");
        let file = file.display().to_string();
        let mut process = self.spawn(&["nginx", "-e", "stderr", "-c", &file]);
        self.wait_for_listener(port, &mut process);
        process
    }

    /// Fetches a page with `curl` in the namespace. Returns the body, or curl's exit code and message.
    pub fn curl(&self, url: &str) -> Result<String, String> {
        let run = self.run(&["curl", "-sS", "-g", "--noproxy", "*", "--max-time", "10", url]);
        if run.code == 0 {
            Ok(run.stdout)
        } else {
            Err(format!("curl: exit {}: {}", run.code, run.stderr.trim()))
        }
    }
}
