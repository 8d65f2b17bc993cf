//! One network namespace: entering it, asking from inside, running commands in it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::{Process, Run, run};
use super::serve::errno;

/// Longest run of a command, in seconds, before it is ended.
const COMMAND_SECONDS: &str = "60";

/// A network namespace. Clones name the same one; it goes with its lab.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    dir: Arc<Path>,
}

impl Netns {
    /// Makes a namespace with its loopback up. `dir` is where output of its processes is kept.
    pub(super) fn create(name: String, dir: &Path) -> Self {
        let lock = super::netns_lock();
        host(&["ip", "netns", "add", &name]);
        drop(lock);
        let ns = Self { name: name.into(), dir: dir.into() };
        // Addresses must serve at once, so no duplicate address detection, for links that are yet to come as well.
        for key in ["accept_dad", "dad_transmits", "accept_ra"] {
            ns.sysctl(&format!("net/ipv6/conf/all/{key}"), "0");
            ns.sysctl(&format!("net/ipv6/conf/default/{key}"), "0");
        }
        ns.ip("link set lo up\n");
        ns
    }

    /// The name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it opens stay inside, wherever they are used.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(super::NETNS_DIR).join(&*self.name);
        let inside = move || {
            let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            setns(file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Connects over TCP. The error is the kernel's own; `ETIMEDOUT` also when `limit` is over.
    pub fn connect_within(&self, to: &str, limit: Duration) -> Result<TcpStream, Errno> {
        let to: SocketAddr = to.parse().unwrap_or_else(|error| panic!("{to}: {error}"));
        let stream = self.enter(|| TcpStream::connect_timeout(&to, limit)).map_err(|error| errno(&error))?;
        let patience = Some(Duration::from_secs(10));
        stream
            .set_read_timeout(patience)
            .and_then(|()| stream.set_write_timeout(patience))
            .expect("a timeout");
        Ok(stream)
    }

    /// Connects over TCP within 5 seconds. Reads and writes of the stream give up after 10.
    pub fn connect(&self, to: &str) -> Result<TcpStream, Errno> {
        self.connect_within(to, Duration::from_secs(5))
    }

    /// Sends one datagram and waits up to 2 seconds for an answer or an error.
    pub fn ask_udp(&self, to: &str, question: &[u8]) -> Result<Vec<u8>, Errno> {
        let to: SocketAddr = to.parse().unwrap_or_else(|error| panic!("{to}: {error}"));
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let ask = || {
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.connect(to)?;
            socket.send(question)?;
            let mut answer = vec![0; 2048];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        };
        self.enter(ask).map_err(|error: std::io::Error| errno(&error))
    }

    /// A UDP socket connected to `to`, from a port of its own choice or from `port`. It waits up to 2 seconds.
    pub fn udp_from(&self, port: u16, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap_or_else(|error| panic!("{to}: {error}"));
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        self.enter(|| {
            let socket = UdpSocket::bind((any, port)).unwrap_or_else(|error| panic!("port {port}: {error}"));
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            socket.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            socket
        })
    }

    /// A command in the namespace, not yet started.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).env("LC_ALL", "C");
        command
    }

    /// Runs a command to its end, for at most a minute.
    pub fn run(&self, line: &[&str]) -> Run {
        let mut command = self.command("timeout");
        run(command.args(["-k", "1", COMMAND_SECONDS]).args(line), None)
    }

    /// Runs a command to its end and returns its output. Panics if it fails.
    pub fn must(&self, line: &[&str]) -> String {
        let Run { code, stdout, stderr } = self.run(line);
        assert!(code == 0, "{} in {} ended with {code}: {stderr}", line.join(" "), self.name);
        stdout
    }

    /// Runs a command with `input` on its standard input. Panics if it fails.
    pub fn feed(&self, line: &[&str], input: &str) {
        let mut command = self.command("timeout");
        let Run { code, stderr, .. } =
            run(command.args(["-k", "1", COMMAND_SECONDS]).args(line), Some(input));
        assert!(code == 0, "{} in {} ended with {code}: {stderr}", line.join(" "), self.name);
    }

    /// Runs lines of `ip -batch` in the namespace.
    pub fn ip(&self, lines: &str) {
        let mut command = Command::new("ip");
        let Run { code, stderr, .. } = run(command.args(["-netns", &self.name, "-batch", "-"]), Some(lines));
        assert!(code == 0, "ip in {} ended with {code}: {stderr}\n{lines}", self.name);
    }

    /// Sets a sysctl of the namespace, named by its path under `/proc/sys`.
    pub fn sysctl(&self, path: &str, value: &str) {
        let path = Path::new("/proc/sys").join(path);
        let result = self.enter(|| fs::write(&path, value));
        result.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Starts a long-lived process, its output kept in a file.
    pub fn spawn(&self, line: &[&str]) -> Process {
        let [program, args @ ..] = line else { panic!("no program given") };
        Process::start(self.command(program).args(args), program, &self.dir)
    }

    /// Waits until `process` listens on this TCP port of the namespace. Panics with its log if it does not.
    pub fn wait_for_listener(&self, port: u16, process: &mut Process) {
        let filter = format!("sport = :{port}");
        let end = Instant::now() + Duration::from_secs(20);
        while self.must(&["ss", "-Htln", &filter]).is_empty() {
            let over = process.ended().is_some() || Instant::now() > end;
            assert!(!over, "nobody listens on port {port} in {}; the log:\n{}", self.name, process.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends every process in a namespace and removes its name.
pub(super) fn destroy(name: &str) {
    let _lock = super::netns_lock();
    let pids = run(Command::new("ip").args(["netns", "pids", name]), None).stdout;
    let me = std::process::id().to_string();
    for pid in pids.split_whitespace().filter(|pid| *pid != me).filter_map(|pid| pid.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = run(Command::new("ip").args(["netns", "delete", name]), None);
}

/// Runs a command outside the namespaces. Panics if it fails.
fn host(line: &[&str]) {
    let Run { code, stderr, .. } = run(Command::new(line[0]).args(&line[1..]), None);
    assert!(code == 0, "{} ended with {code}: {stderr}", line.join(" "));
}
