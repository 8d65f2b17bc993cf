//! A laboratory of nodes and pods, built from network namespaces, for the integration tests and the benchmark.
//!
//! A [`Lab`] has nodes on one LAN (a bridge in a namespace of its own); nodes have pods; processes run in either.
//! The root namespace gets no link, address, rule or route. A lab takes itself down when it is dropped, also by a
//! panic; what a killed run left behind is removed by the next one. Needs root, `ip` and `iptables`: a test that
//! cannot have them fails.
//!
//! | file | holds |
//! | --- | --- |
//! | `ns.rs` | one namespace: entering it, asking from inside, running commands in it |
//! | `process.rs` | programs: run to their end, or kept running until dropped |
//! | `node.rs` | nodes and pods: links, addresses, published host ports, what they run |
//! | `agent.rs` | the program under test in a node |
//! | `state.rs` | everything the program may change on a node, for comparison |
//! | `serve.rs` | small scripted servers and clients |
//! | `traffic.rs` | clients that ask over and over, and what became of it |
//! | `objects.rs` | Kubernetes objects as JSON |
//!
//! Addresses, by order of creation: node `n` is `192.168.77.n` and `fd77::n`; its pod `p` is `10.244.n.p+1` and
//! `fd44:n::p+1`. Nothing about the program's inner workings may come in here.

// Every test program includes the whole lab and uses a part of it.
#![allow(dead_code, unused_imports, unused_macros, unreachable_pub)]

mod agent;
mod node;
mod ns;
pub mod objects;
mod process;
mod serve;
mod state;
mod traffic;

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use agent::{Agent, AgentBuilder, PROGRAM, SERVICE_CIDRS};
pub use node::{Node, Pod};
pub use ns::Netns;
pub use process::{Process, Run};
pub use serve::{Datagrams, Server, errno, http_get, read_all, read_until, reset};
pub use state::State;
pub use traffic::{Asked, Client, Kind, Outcome, Tally, Traffic, question};

/// Makes each test run once with each back end's programs.
macro_rules! with_either_backend {
    ($($test:ident),+ $(,)?) => {
        mod nft {
            $(#[test] fn $test() { super::$test("nft"); })+
        }
        mod legacy {
            $(#[test] fn $test() { super::$test("legacy"); })+
        }
    };
}
pub(crate) use with_either_backend;

/// Distinguishes the labs of one process.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);
/// Namespaces of all labs start so: `edgesplice-lab.PID.STARTTIME.SEQUENCE.…`.
const PREFIX: &str = "edgesplice-lab.";
/// Where `ip netns` keeps its namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Nodes on one LAN.
pub struct Lab {
    prefix: String,
    lan: Netns,
    nodes: AtomicU32,
    dir: tempfile::TempDir,
}

impl Lab {
    /// An empty lab. `label` stands in the names of its namespaces.
    pub fn new(label: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the network tests need root: run `make test`");
        remove_stale();
        let pid = std::process::id();
        let started = start_time(pid).expect("a running process has a start time");
        let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{pid}.{started}.{number}.{label}");
        let dir = tempfile::Builder::new().prefix("edgesplice-lab-").tempdir().expect("a temporary folder");
        let lan = Netns::create(format!("{prefix}.lan"), dir.path());
        // The LAN is a switch: nothing of the host's packet filter may touch what it carries.
        lan.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        lan.sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
        lan.ip("link add lan type bridge forward_delay 0 mcast_snooping 0\nlink set lan up\n");
        Self { prefix, lan, nodes: AtomicU32::new(0), dir }
    }

    /// Adds a node to the LAN: forwarding on, no default route.
    pub fn node(&self, name: &str) -> Node {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let ns = Netns::create(format!("{}.{name}", self.prefix), self.dir.path());
        Node::join(ns, name, number, &self.lan)
    }

    /// A folder of this lab, removed with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_namespaces(|name| name.starts_with(&format!("{}.", self.prefix)));
    }
}

/// Asks again and again, every 20 ms, until `ask` has an answer. Panics with `what` after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes labs whose process is gone, as after a `kill -9`.
pub fn remove_stale() {
    remove_namespaces(|name| {
        let Some(rest) = name.strip_prefix(PREFIX) else { return false };
        let mut words = rest.split('.');
        let (Some(pid), Some(started)) = (words.next(), words.next()) else { return true };
        // The start time tells the process from a later one with the same number.
        pid.parse().ok().and_then(start_time).is_none_or(|now| now != started)
    });
}

/// Ends what runs in the namespaces that `wanted` names, and removes them.
fn remove_namespaces(wanted: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| wanted(name)) {
        ns::destroy(&name);
    }
}

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold blanks.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

/// Serialises what `ip netns` itself does not, across test programs that run at the same time.
fn netns_lock() -> File {
    let file = File::create("/run/edgesplice-lab.lock").expect("root can write to /run");
    file.lock().expect("a lock on /run/edgesplice-lab.lock");
    file
}
