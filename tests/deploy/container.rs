//! The agent in the container's own file system, run by a container runtime as the `DaemonSet` says: its capabilities
//! and no others, a read-only root, the runtime's default seccomp profile, no new privileges, the mounts of its volumes.
//!
//! What a kubelet would add (cgroups, image, service account) has no part in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use nix::errno::Errno;
use serde_json::{Value, json};

use super::lab::{
    Datagrams, Lab, Node, PROGRAM, Process, Run, SERVICE_CIDRS, Server, State, eventually, http_get,
};
use super::lab::{objects as made, read_all};
use super::manifests::{container, rendered};
use super::tools::{must, object, objects, repository, tool};

const PATIENCE: Duration = Duration::from_secs(30);
/// Numbers of the capabilities in question, `linux/capability.h`.
const NUMBERS: [(&str, u32); 3] = [("NET_BIND_SERVICE", 10), ("NET_ADMIN", 12), ("NET_RAW", 13)];

/// The agent's `DaemonSet`, as rendered for edge nodes.
fn daemonset() -> Value {
    object(&objects(&rendered("kubeedge")), "DaemonSet").clone()
}

/// The capabilities that the `DaemonSet` gives.
pub(crate) fn capabilities() -> Vec<String> {
    let set = daemonset();
    let names = container(&set)["securityContext"]["capabilities"]["add"].as_array().expect("capabilities");
    names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// The mask of these capabilities, as `/proc/PID/status` prints it.
fn mask(names: &[String]) -> String {
    let bit = |name: &String| {
        let number = NUMBERS.iter().find(|(known, _)| known == name);
        1_u64 << number.unwrap_or_else(|| panic!("what is {name}?")).1
    };
    format!("{:016x}", names.iter().map(bit).fold(0, |all, one| all | one))
}

/// The seccomp profile that container engines use by default, for these capabilities, in the runtime's own form.
fn seccomp(capabilities: &[String]) -> Value {
    let path = tool("seccomp.json").get_program().to_owned();
    let profile: Value = serde_json::from_str(&fs::read_to_string(path).expect("the profile")).expect("JSON");
    let holds = |rule: &Value, key: &str, own: &dyn Fn(&str) -> bool, any: bool| {
        let Some(names) = rule[key].as_array() else { return any };
        let mut names = names.iter().filter_map(Value::as_str);
        if any { names.all(own) } else { names.any(own) }
    };
    let arch =
        |name: &str| name == if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH };
    let has = |name: &str| capabilities.iter().any(|own| name == format!("CAP_{own}"));
    let rules: Vec<Value> = profile["syscalls"]
        .as_array()
        .expect("rules")
        .iter()
        .filter(|rule| {
            let (with, without) = (&rule["includes"], &rule["excludes"]);
            let wrong_arch = with["arches"].is_array() && !holds(with, "arches", &arch, false);
            !wrong_arch
                && holds(with, "caps", &has, true)
                && !holds(without, "caps", &has, false)
                && !holds(without, "arches", &arch, false)
        })
        .map(|rule| {
            let mut own = json!({"names": rule["names"], "action": rule["action"]});
            for key in ["args", "errnoRet"] {
                if rule[key].as_array().map_or(rule[key].is_u64(), |args| !args.is_empty()) {
                    own[key] = rule[key].clone();
                }
            }
            own
        })
        .collect();
    assert!(rules.len() > 5, "{}", profile["syscalls"]);
    json!({"defaultAction": profile["defaultAction"], "defaultErrnoRet": 1, "syscalls": rules})
}

/// The agent in a container on a node of a lab.
struct Container {
    node: Node,
    /// State of the runtime, bundle and volumes.
    home: PathBuf,
    process: Process,
}

impl Container {
    /// Starts the agent with these capabilities and this configuration.
    fn start(node: &Node, root: &Path, capabilities: &[String], config: &str) -> Self {
        Self::start_as("", node, root, capabilities, config)
    }

    /// The same for one of several pods on a node.
    fn start_as(pod: &str, node: &Node, root: &Path, capabilities: &[String], config: &str) -> Self {
        let home = home(node, pod);
        let set = daemonset();
        let agent = container(&set);
        let folder = |name: &str| {
            let path = home.join(name);
            fs::create_dir_all(&path).expect("a folder");
            path
        };
        let (bundle, volumes, runtime) = (folder("bundle"), folder("volumes"), folder("runtime"));
        fs::create_dir_all(volumes.join("config")).expect("a folder");
        fs::create_dir_all(volumes.join("state")).expect("a folder");
        fs::write(volumes.join("xtables-lock"), "").expect("a file");
        fs::write(volumes.join("config/config.yaml"), config).expect("a file");
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]}),
            json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}),
            // The kubelet hands the node's resolver configuration in.
            json!({"destination": "/etc/resolv.conf", "type": "none", "source": "/etc/resolv.conf", "options": ["bind", "ro"]}),
        ];
        for mount in agent["volumeMounts"].as_array().expect("mounts") {
            let name = mount["name"].as_str().expect("a name");
            let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
            mounts.push(json!({
                "destination": mount["mountPath"], "type": "none", "source": volumes.join(name), "options": ["bind", mode],
            }));
        }
        let names: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
        let args = agent["args"].as_array().expect("arguments").iter();
        let args: Vec<&str> =
            ["/usr/bin/edgesplice"].into_iter().chain(args.filter_map(Value::as_str)).collect();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": agent["securityContext"]["runAsUser"], "gid": agent["securityContext"]["runAsGroup"]},
                "args": args, "cwd": "/",
                "env": ["PATH=/usr/sbin:/usr/bin", format!("NODE_NAME={}", node.name)],
                // As containerd gives them to root without ambient ones.
                "capabilities": {"bounding": names, "effective": names, "permitted": names},
                "noNewPrivileges": agent["securityContext"]["allowPrivilegeEscalation"] == false,
            },
            "root": {"path": root, "readonly": agent["securityContext"]["readOnlyRootFilesystem"]},
            "mounts": mounts,
            "linux": {
                // The network is the node's own.
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                "seccomp": seccomp(capabilities),
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).expect("the bundle");
        let process = node.spawn(&Self::crun(&runtime, &format!("run -b {} agent", bundle.display())));
        Self { node: node.clone(), home, process }
    }

    /// A command line of the runtime. It knows pure cgroup hierarchies only, so in a mount namespace of its own it sees
    /// one, and it is told to leave them alone.
    fn crun<'a>(runtime: &Path, command: &str) -> [&'a str; 5] {
        let line = format!(
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec crun --root {} --cgroup-manager=disabled {command}",
            runtime.display()
        );
        ["unshare", "--mount", "sh", "-c", Box::leak(line.into_boxed_str())]
    }

    /// A command in the container, as `kubectl exec` runs it.
    fn exec(&self, command: &str) -> Run {
        self.node.run(&Self::crun(&self.home.join("runtime"), &format!("exec agent {command}")))
    }

    /// The readiness probe, as the kubelet runs it.
    fn is_ready(&self) -> bool {
        let set = daemonset();
        let command =
            container(&set)["readinessProbe"]["exec"]["command"].as_array().expect("a command").clone();
        let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
        self.exec(&words.join(" ")).code == 0
    }

    /// How many processes its first one has started that still live.
    fn children(&self) -> usize {
        let state = fs::read_to_string(self.home.join("runtime/agent/status")).expect("the runtime's state");
        let state: Value = serde_json::from_str(&state).expect("JSON");
        let keeper = &state["pid"];
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("it runs");
        children.split_whitespace().count()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = self.node.connect("127.0.0.1:10265").ok()?;
        http_get(&mut stream, path).ok()
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/api/v1/status")?.1).ok()
    }

    fn wait_ready(&mut self) {
        eventually("the container is ready", PATIENCE, || {
            let ended = self.process.ended();
            assert!(ended.is_none(), "{ended:?}: {}", self.process.log());
            (self.get("/readyz")?.0 == 200).then_some(())
        });
    }

    /// `/proc/PID/status` of the keeper and of the worker that it started, seen from outside.
    fn proc_status(&self) -> Vec<String> {
        let state = fs::read_to_string(self.home.join("runtime/agent/status")).expect("the runtime's state");
        let state: Value = serde_json::from_str(&state).expect("JSON");
        let keeper = state["pid"].to_string();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("it runs");
        let processes = [keeper.as_str()].into_iter().chain(children.split_whitespace());
        // Programs that the worker starts are its own children.
        let statuses: Vec<String> =
            processes.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok()).collect();
        assert!(statuses.len() >= 2, "{statuses:?}");
        statuses
    }

    /// Sends SIGTERM as the kubelet does, and returns the exit code.
    fn stop(mut self) -> i32 {
        let killed = self.node.run(&Self::crun(&self.home.join("runtime"), "kill agent TERM"));
        assert_eq!(killed.code, 0, "{}", killed.stderr);
        self.process.wait(PATIENCE)
    }
}

/// The file system that the image has, with the program as built for the tests.
fn file_system(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    must(Command::new(repository("scripts/rootfs.sh")).arg(PROGRAM).arg(&root));
    root
}

fn config(backend: &str) -> String {
    format!(
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n\
         source: {{kind: manifests, manifests: {{path: /etc/edgesplice/services.json}}}}\n\
         intercept: {{serviceCIDRs: [{}], iptablesBackend: {backend}}}\n\
         proxy: {{drainTimeout: 5s}}\n",
        SERVICE_CIDRS.replace(',', ", ")
    )
}

fn home(node: &Node, pod: &str) -> PathBuf {
    node.dir().join(format!("container-{}{pod}", node.name))
}

/// Puts the Services where the container's configuration has them.
fn services(node: &Node) {
    services_of("", node);
}

fn services_of(pod: &str, node: &Node) {
    let folder = home(node, pod).join("volumes/config");
    fs::create_dir_all(&folder).expect("a folder");
    let mut items = made::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]).to_vec();
    items.push(made::service("datagrams", &["10.96.0.51"], &[("udp-0", 90, 7001, "UDP")]));
    items.push(made::slice("datagrams", &[("udp-0", 7001, "UDP")], &["192.168.77.2"]));
    fs::write(folder.join("services.json"), made::list(items)).expect("a file");
}

#[expect(clippy::print_stdout, reason = "the figures that docs/security.md shows")]
fn the_daemonset_s_rights_suffice(backend: &str) {
    let lab = Lab::new(&format!("container-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let _server = Server::greeting(&b, 7000, "hello");
    let _datagrams = Datagrams::named(&b, 7001, "udp");
    let root = file_system(lab.dir());
    services(&a);
    let before: State = a.state();
    let names = capabilities();
    let mut agent = Container::start(&a, &root, &names, &config(backend));
    agent.wait_ready();

    // Exactly these rights, and no way to more.
    for status in agent.proc_status() {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(field(set), mask(&names), "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()));
        println!("{backend}: pid {} has CapEff {}", field("Pid"), field("CapEff"));
    }

    // They suffice: nothing is degraded, and clients of every kind are served or refused.
    let told = eventually("nothing to complain about", PATIENCE, || {
        agent
            .status()
            .filter(|told| told["rules"]["refuseBeforeAccept"] == true && told["warnings"] == json!([]))
    });
    assert_eq!(told["rules"]["backend"], backend);
    for client in [&*pod, &*a] {
        let mut stream = client.connect("10.96.0.50:80").expect("a connection");
        assert_eq!(read_all(&mut stream).ok().as_deref(), Some("hello"));
        assert_eq!(client.connect("10.96.0.50:81").err(), Some(Errno::ECONNREFUSED));
        let answer =
            eventually("an answer over UDP", PATIENCE, || client.ask_udp("10.96.0.51:90", b"who").ok());
        assert!(!answer.is_empty());
        eventually("an answer to a name", PATIENCE, || {
            let asked = client.run(&["dig", "+short", "@169.254.96.16", "greet.default.svc.cluster.local"]);
            (asked.stdout.trim() == "10.96.0.50").then_some(())
        });
    }

    // What `kubectl exec` is for.
    let asked = agent.exec("edgesplice status -o json");
    assert_eq!(asked.code, 0, "{}", asked.stderr);
    let checked = agent.exec("edgesplice check -o json --config /etc/edgesplice/config.yaml");
    let findings: Value =
        serde_json::from_str(&checked.stdout).unwrap_or_else(|error| panic!("{error}: {checked:?}"));
    let problems: Vec<&Value> =
        findings.as_array().expect("a list").iter().filter(|one| one["severity"] == "problem").collect();
    assert!(problems.is_empty(), "{problems:?}");

    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after the container's end");
}

#[test]
fn the_daemonset_s_rights_suffice_with_nft() {
    the_daemonset_s_rights_suffice("nft");
}

#[test]
fn the_daemonset_s_rights_suffice_with_legacy() {
    the_daemonset_s_rights_suffice("legacy");
}

/// Ends the load, also by a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What `maxSurge` does: the next pod starts beside the one that runs, which is told to end once the next one is ready.
#[test]
fn the_next_pod_takes_the_node_over() {
    let lab = Lab::new("surge");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let pod = a.pod("client");
    let _server = Server::greeting(&b, 7000, "hello");
    let root = file_system(lab.dir());
    services(&a);
    services_of("-next", &a);
    let before: State = a.state();
    let (names, config) = (capabilities(), config("nft"));
    let first = Container::start(&a, &root, &names, &config);
    eventually("the first pod is ready", PATIENCE, || first.is_ready().then_some(()));
    let (over, tried) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut second = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                tried.fetch_add(1, SeqCst);
                let mut stream = pod.connect("10.96.0.50:80").expect("nobody is refused");
                assert_eq!(read_all(&mut stream).ok().as_deref(), Some("hello"), "nobody is cut");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let _end = End(&over);
        let next = Container::start_as("-next", &a, &root, &names, &config);
        eventually("the next pod is ready", PATIENCE, || next.is_ready().then_some(()));
        assert!(!first.is_ready(), "one of two is");
        // It would be started again, and take the node back.
        eventually("the first pod's agent has ended, and its first process waits", PATIENCE, || {
            (first.children() == 0).then_some(())
        });
        assert_eq!(first.stop(), 0);
        std::thread::sleep(Duration::from_millis(200));
        second = Some(next);
    });
    let tried = tried.into_inner();
    assert!(tried > 100, "{tried} connections are no load");
    assert_eq!(second.expect("the next pod").stop(), 0);
    before.assert_same(&a.state(), "after the last pod's end");
}

/// Each capability is needed: without it the agent does not start, or says what it cannot do.
#[test]
fn none_of_the_daemonset_s_rights_is_too_many() {
    let lab = Lab::new("rights");
    let root = file_system(lab.dir());
    for missing in capabilities() {
        let node = lab.node(&missing.to_lowercase().replace('_', "-"));
        services(&node);
        let names: Vec<String> = capabilities().into_iter().filter(|name| *name != missing).collect();
        let mut agent = Container::start(&node, &root, &names, &config("nft"));
        let word = match missing.as_str() {
            "NET_ADMIN" => "CAP_NET_ADMIN",
            "NET_RAW" => "ip sets",
            _ => "DNS",
        };
        let failed =
            eventually(&format!("it ends without {missing}, or says what is missing"), PATIENCE, || {
                if agent.process.ended().is_some() {
                    return Some(agent.process.log());
                }
                let warnings = agent.status()?["warnings"].to_string();
                warnings.contains(word).then_some(warnings)
            });
        assert!(failed.contains(word), "without {missing}: {failed}");
    }
}
