//! A node with two pods in network namespaces: one pod on a routed link, one on a Linux bridge. No default route on
//! the node, both families.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use socket2::SockRef;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Longest wait of a client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);

/// A network namespace that is removed at the end, with everything in it.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new(role: &str) -> Self {
        let name = format!("esr{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        host(&format!("ip netns add {name}"));
        let this = Self { name };
        this.sh("ip link set lo up");
        this
    }

    /// Runs a shell line inside and returns its standard output; panics if it fails.
    pub(crate) fn sh(&self, line: &str) -> String {
        command(&["ip", "netns", "exec", &self.name, "sh", "-ec", line])
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(File::open(path).expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("enter it");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` on a runtime inside.
    pub(crate) fn block_on<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work)
        })
    }

    /// Connects and reads until the end.
    pub(crate) fn tcp(&self, to: &str) -> Result<String, String> {
        self.run(|| tcp(address(to), None))
    }

    /// The same with a mark on the packets.
    pub(crate) fn tcp_marked(&self, to: &str, mark: u32) -> Result<String, String> {
        self.run(|| tcp(address(to), Some(mark)))
    }

    /// Sends a datagram and waits for an answer or an error.
    pub(crate) fn udp(&self, to: &str) -> Result<String, String> {
        self.run(|| {
            let to = address(to);
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).map_err(|e| e.to_string())?;
            socket.set_read_timeout(Some(CLIENT_TIMEOUT)).expect("a timeout");
            let exchange = || {
                socket.connect(to)?;
                socket.send(b"x")?;
                socket.recv(&mut [0; 16])
            };
            exchange().map(|_| String::new()).map_err(|e| word(&e))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The node, its pods, and a listener that stands in for the acceptor.
pub(crate) struct Lab {
    pub(crate) routed: Namespace,
    pub(crate) bridged: Namespace,
    pub(crate) node: Namespace,
    pub(crate) acceptor: Acceptor,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (node, routed, bridged) = (Namespace::new("n"), Namespace::new("r"), Namespace::new("b"));
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        host(&format!("ip link add r0 netns {} type veth peer name eth0 netns {}", node.name, routed.name));
        host(&format!("ip link add b0 netns {} type veth peer name eth0 netns {}", node.name, bridged.name));
        node.sh(
            "ip link set r0 up; ip link add br0 type bridge; ip link set br0 up; ip link set b0 master br0 up
            ip addr add 10.9.0.1/32 dev r0; ip addr add fd09::1/128 dev r0 nodad
            ip addr add 10.8.0.1/24 dev br0; ip addr add fd08::1/64 dev br0 nodad
            ip route add 10.9.0.2/32 dev r0; ip route add fd09::2/128 dev r0",
        );
        routed.sh(
            "ip link set eth0 up; ip addr add 10.9.0.2/32 dev eth0; ip addr add fd09::2/128 dev eth0 nodad
            ip route add 10.9.0.1/32 dev eth0; ip route add default via 10.9.0.1
            ip route add fd09::1/128 dev eth0; ip route add default via fd09::1",
        );
        bridged.sh(
            "ip link set eth0 up; ip addr add 10.8.0.2/24 dev eth0; ip addr add fd08::2/64 dev eth0 nodad
            ip route add default via 10.8.0.1; ip route add default via fd08::1",
        );
        let acceptor = Acceptor::start(&node);
        Self { routed, bridged, node, acceptor }
    }

    /// The node and both pods.
    pub(crate) fn clients(&self) -> [&Namespace; 3] {
        [&self.node, &self.routed, &self.bridged]
    }

    /// Lets bridged packets pass `iptables`, as on most Kubernetes nodes, or not.
    pub(crate) fn bridge_calls_iptables(&self, on: bool) {
        let on = u8::from(on);
        self.node.sh(&format!(
            "sysctl -qw net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}"
        ));
    }

    /// Everything that rules, sets and routes consist of, without counters and dates.
    pub(crate) fn state(&self) -> String {
        let saves =
            ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
        let saves = saves.map(|save| self.node.sh(&format!("{save} | sed -e /^#/d -e 's/ \\[.*\\]$//'")));
        let others = [
            "ipset save | sed 's/ initval.*//' | sort",
            "ip -4 route show table all | sort",
            "ip -6 route show table all | grep -v fe80 | sort",
            "ip rule",
            "ip -6 rule",
            "ip -br link",
            "nft list tables",
        ];
        saves.into_iter().chain(others.map(|line| format!("{line}:\n{}", self.node.sh(line)))).collect()
    }
}

/// Accepts, tells the client where it wanted to go, and closes.
pub(crate) struct Acceptor {
    pub(crate) port: u16,
    pub(crate) accepted: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Acceptor {
    pub(crate) fn start(node: &Namespace) -> Self {
        let listener = node.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a listener"));
        listener.set_nonblocking(true).expect("non-blocking");
        let port = listener.local_addr().expect("its address").port();
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        answer(&stream, peer);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { port, accepted, stop, thread: Mutex::new(Some(thread)) }
    }

    pub(crate) fn count(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().ok().and_then(|mut thread| thread.take()) {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: &TcpStream, peer: SocketAddr) {
    use std::io::Write;
    let socket = SockRef::from(stream);
    let v4 = matches!(peer.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let original = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = original.ok().and_then(|address| address.as_socket());
    let _ = write!(
        stream,
        "{} from {}",
        original.map(|a| a.to_string()).unwrap_or_default(),
        peer.ip().to_canonical()
    );
}

fn tcp(to: SocketAddr, mark: Option<u32>) -> Result<String, String> {
    let exchange = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        socket.connect_timeout(&to.into(), CLIENT_TIMEOUT)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    exchange().map_err(|e: std::io::Error| word(&e))
}

/// An error as the name of its number, so that an assertion shows it.
fn word(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => format!("{:?}", nix::errno::Errno::from_raw(code)),
        None => error.to_string(),
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Runs a command line outside of any namespace of ours.
fn host(line: &str) -> String {
    command(&line.split(' ').collect::<Vec<_>>())
}

fn command(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("a command that can be run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{}` failed: {error}", words.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
