//! The program under test, running in a node.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::node::Node;
use super::process::{Process, Run};
use super::serve::http_get;

/// The program, as cargo built it for the tests.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_edgesplice");
/// The ranges that every agent of a lab captures.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The admin address, in the node's own namespace.
const ADMIN: &str = "127.0.0.1:10265";
/// Longest wait for readiness: a debug build on a busy machine takes a second or two.
const READY: Duration = Duration::from_secs(20);

/// How an agent is to be started.
pub struct AgentBuilder {
    node: Node,
    program: String,
    wrapper: Vec<String>,
    /// Where objects come from; its own folder of manifests if empty.
    source: Vec<String>,
    /// Whether it is told the Service ranges.
    ranges_told: bool,
    args: Vec<String>,
    home: PathBuf,
}

/// A running agent, killed when dropped.
pub struct Agent {
    process: Process,
    node: Node,
    home: PathBuf,
}

impl Agent {
    /// An agent for `node`, on an empty folder of manifests of its own.
    pub fn on(node: &Node) -> AgentBuilder {
        let home = node.dir().join(format!("agent-{}", node.name));
        fs::create_dir_all(home.join("manifests")).expect("a folder for manifests");
        AgentBuilder {
            node: node.clone(),
            program: PROGRAM.to_owned(),
            wrapper: Vec::new(),
            source: Vec::new(),
            ranges_told: true,
            args: Vec::new(),
            home,
        }
    }

    /// The id of the process that was started, which is the keeper.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The id of the process that does the work.
    pub fn worker(&self) -> u32 {
        super::eventually("a worker", READY, || worker_of(self.pid()))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Its state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.home.join("state")
    }

    /// Writes a manifest file at once, as an editor that renames does.
    pub fn write(&self, name: &str, text: &str) {
        write_manifest(&self.home, name, text);
    }

    /// Removes a manifest file.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.home.join("manifests").join(name)).expect("the manifest was there");
    }

    /// Asks the admin endpoint.
    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        let mut stream = self.node.connect(ADMIN).map_err(|errno| format!("{ADMIN}: {errno}"))?;
        http_get(&mut stream, path).map_err(|error| format!("{ADMIN}{path}: {error}"))
    }

    /// The status as JSON. Panics with the log if there is none.
    pub fn status(&self) -> Value {
        match self.get("/api/v1/status") {
            Ok((200, body)) => serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")),
            other => panic!("no status: {other:?}; the log:\n{}", self.log()),
        }
    }

    /// The service of that name in a status. Panics if it is not there.
    pub fn service(&self, name: &str) -> Value {
        let status = self.status();
        let services = status["services"].as_array().expect("services is a list");
        services
            .iter()
            .find(|service| service["name"] == name)
            .unwrap_or_else(|| panic!("no {name}: {status}"))
            .clone()
    }

    /// Waits until the status is as wished.
    pub fn wait_for(&self, what: &str, limit: Duration, wished: impl Fn(&Value) -> bool) -> Value {
        super::eventually(what, limit, || Some(self.status()).filter(&wished))
    }

    /// Waits until `/readyz` says 200.
    pub fn wait_ready(&mut self) {
        let end = std::time::Instant::now() + READY;
        loop {
            let answer = self.get("/readyz");
            if matches!(answer, Ok((200, _))) {
                return;
            }
            let over = std::time::Instant::now() > end || !self.alive();
            assert!(!over, "the agent did not become ready: {answer:?}; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn stop(mut self) -> i32 {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(Duration::from_secs(40))
    }

    /// Sends a signal and leaves it at that.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end and returns the exit code as a shell counts it.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        self.process.wait(limit)
    }

    /// Ends it without any chance to clean up.
    pub fn kill(mut self) {
        let worker = self.worker();
        self.process.signal(Signal::SIGKILL);
        self.process.wait(Duration::from_secs(5));
        super::eventually("the worker's end", Duration::from_secs(5), || {
            (!Path::new(&format!("/proc/{worker}")).exists()).then_some(())
        });
    }
}

impl AgentBuilder {
    /// Puts a manifest file into its folder.
    pub fn manifest(self, name: &str, text: &str) -> Self {
        write_manifest(&self.home, name, text);
        self
    }

    /// Follows a server instead of a folder of manifests: `--kubeconfig FILE`, say.
    pub fn source(mut self, args: &[&str]) -> Self {
        self.source = args.iter().map(ToString::to_string).collect();
        self
    }

    /// Leaves it to find out the Service ranges by itself.
    pub fn finding_ranges(mut self) -> Self {
        self.ranges_told = false;
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Uses these `iptables` programs.
    pub fn backend(self, backend: &str) -> Self {
        self.args(&["--iptables-backend", backend])
    }

    /// Takes another build of the program.
    pub fn program(mut self, path: &str) -> Self {
        path.clone_into(&mut self.program);
        self
    }

    /// Starts it through another program, such as `prlimit --nofile=64:64`.
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper.extend(wrapper.iter().map(ToString::to_string));
        self
    }

    /// The whole command line.
    pub fn line(&self) -> Vec<String> {
        let home = self.home.display();
        let mut line = self.wrapper.clone();
        line.extend(
            [&*self.program, "run", "--node-name", &self.node.name, "--admin", ADMIN].map(str::to_owned),
        );
        line.extend([format!("--state-dir={home}/state"), "--drain-timeout=5s".to_owned()]);
        if self.source.is_empty() {
            line.push(format!("--manifests={home}/manifests"));
        }
        line.extend(self.source.iter().cloned());
        if self.ranges_told {
            line.push(format!("--service-cidr={SERVICE_CIDRS}"));
        }
        line.extend(self.args.iter().cloned());
        line
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Agent {
        let mut agent = self.launch();
        agent.wait_ready();
        agent
    }

    /// Starts it and does not wait.
    pub fn launch(self) -> Agent {
        let line = self.line();
        let process = self.node.spawn(&line.iter().map(String::as_str).collect::<Vec<_>>());
        Agent { process, node: self.node, home: self.home }
    }

    /// Runs it to its end, for a start that must fail.
    pub fn run_to_end(self) -> Run {
        let line = self.line();
        self.node.run(&line.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Node {
    /// Runs a command of the program in this node.
    pub fn edgesplice(&self, args: &[&str]) -> Run {
        let mut line = vec![PROGRAM];
        line.extend(args);
        self.deref().run(&line)
    }

    /// Runs a command of the program that must succeed and print JSON.
    pub fn edgesplice_json(&self, args: &[&str]) -> Value {
        let Run { code, stdout, stderr } = self.edgesplice(args);
        assert!(code == 0, "edgesplice {} ended with {code}: {stderr}", args.join(" "));
        serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("edgesplice {}: {error}: {stdout}", args.join(" ")))
    }
}

/// The worker of a keeper, which has no other child but for moments.
fn worker_of(keeper: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn write_manifest(home: &Path, name: &str, text: &str) {
    let folder = home.join("manifests");
    let hidden = home.join(format!(".{name}"));
    fs::write(&hidden, text).and_then(|()| fs::rename(&hidden, folder.join(name))).expect("a manifest file");
}
