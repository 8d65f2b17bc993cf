//! What the agent gives up when it is started as root from a shell: rights, system calls, places to write; that it works
//! without them, and that it works where they cannot be given up.

mod lab;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::Duration;

use lab::{Agent, Lab, Node, Server, eventually, objects, read_all, with_either_backend};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const GREETING: &str = "10.96.0.50:80";
const SOON: Duration = Duration::from_secs(20);
/// `NET_ADMIN`, `NET_RAW` and `NET_BIND_SERVICE` as `/proc/PID/status` has them.
const THREE: &str = "0000000000003400";
const NONE: &str = "0000000000000000";

fn greet() -> String {
    objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]))
}

fn ask(node: &Node) -> String {
    let mut stream = node.connect_within(GREETING, SOON).expect("a connection");
    read_all(&mut stream).expect("an answer")
}

/// The fields of a status file, those of this kind: `Name:\tvalue`.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(":\t")).collect()
}

fn assert_confined(text: &str, whose: &str) {
    let fields = fields(text);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(fields[set], THREE, "{set} of {whose}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(fields[set], NONE, "{set} of {whose}");
    }
    assert_eq!((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"), "{whose}");
}

/// Every thread of the two processes.
fn assert_both_confined(agent: &Agent) {
    for (pid, whose) in [(agent.pid(), "the keeper"), (agent.worker(), "the worker")] {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        let mut seen = 0;
        for thread in threads.flatten() {
            // One may have ended meanwhile.
            let Ok(text) = fs::read_to_string(thread.path().join("status")) else { continue };
            assert_confined(&text, &format!("{whose}, {}", fields(&text)["Name"]));
            seen += 1;
        }
        assert!(seen >= 1, "{whose}");
    }
}

/// Landlock's version as this kernel tells, 0 for none.
fn landlock(agent: &Agent) -> i64 {
    agent.status()["hardening"]["landlock"].as_i64().expect("a number")
}

fn root_from_a_shell_keeps_three_rights(backend: &str) {
    let lab = Lab::new(&format!("rights-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let before = a.state();
    let mut agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet()).start();
    assert_eq!(ask(&a), "hello");
    assert_both_confined(&agent);
    let hardening = agent.status()["hardening"].clone();
    let names = serde_json::json!(["NET_BIND_SERVICE", "NET_ADMIN", "NET_RAW"]);
    assert_eq!(hardening["capabilities"], names, "{hardening}");
    assert_eq!(hardening["noNewPrivileges"], true);
    assert!(hardening["systemCallsForbidden"].as_u64() > Some(50), "{hardening}");
    // Where the kernel has no Landlock, that is said, and nothing else.
    let notes = hardening["notes"].as_array().expect("a list");
    if landlock(&agent) > 0 {
        assert!(notes.is_empty(), "{hardening}");
    } else {
        assert!(
            notes.len() == 1 && notes[0].as_str().is_some_and(|note| note.contains("no Landlock")),
            "{hardening}"
        );
        assert!(agent.status()["warnings"].to_string().contains("no Landlock"));
    }

    // The next worker starts with what the keeper has left, and is no worse for it.
    let last = agent.worker();
    kill(Pid::from_raw(last.cast_signed()), Signal::SIGKILL).expect("a live worker");
    eventually("another worker", SOON, || (agent.worker() != last).then_some(()));
    agent.wait_ready();
    assert_eq!(ask(&a), "hello");
    assert_both_confined(&agent);
    let filters = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        fields(&text)["Seccomp_filters"].to_owned()
    };
    assert_eq!(filters(agent.worker()), filters(agent.pid()), "the filter is not laid twice");
    assert_eq!(agent.status()["hardening"], hardening);

    assert_eq!(agent.stop(), 0);
    assert_eq!(before.diff(&a.state()), "", "and it can take away what it has brought");
}

/// Programs that the agent starts have no more than itself.
fn iptables_is_held_to_the_same(backend: &str) {
    let lab = Lab::new(&format!("children-{backend}"));
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let (bin, outside) = (lab.dir().join("bin"), lab.dir().join("outside"));
    fs::create_dir_all(&bin).expect("a folder");
    fs::create_dir_all(&outside).expect("a folder");
    let agent = Agent::on(&a).backend(backend).manifest("greet.json", &greet());
    let state = lab.dir().join("agent-a/state");
    let name = format!("iptables-{backend}-restore");
    let script = bin.join(&name);
    let text = format!(
        "#!/bin/sh\n{{ cat /proc/self/status > {0}/status; echo x > {1}/file; mount -t tmpfs none {1}; unshare -n true; \
         }} 2> {0}/said\nPATH=${{PATH#*:}} exec {name} \"$@\"\n",
        state.display(),
        outside.display()
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("a script");
    let path = format!("PATH={}:{}", bin.display(), std::env::var("PATH").expect("a path"));
    let agent = agent.wrapped(&["env", &path]).start();
    assert_eq!(ask(&a), "hello");
    assert_eq!(agent.state_dir(), state);
    let seen = fs::read_to_string(state.join("status")).expect("the program was started");
    assert_confined(&seen, &name);
    let said = fs::read_to_string(state.join("said")).expect("the program was started");
    assert_eq!(outside.join("file").exists(), landlock(&agent) == 0, "{said}");
    assert!(said.contains("mount") && said.contains("unshare"), "{said}");
    assert_eq!(agent.stop(), 0);
}

with_either_backend!(root_from_a_shell_keeps_three_rights, iptables_is_held_to_the_same);

#[test]
fn whoever_wants_it_keeps_every_right() {
    let lab = Lab::new("unhardened");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let agent = Agent::on(&a).args(&["--hardening", "off"]).manifest("greet.json", &greet()).start();
    assert_eq!(ask(&a), "hello");
    assert!(agent.status()["hardening"].is_null());
    let own = fs::read_to_string("/proc/self/status").expect("this process");
    for pid in [agent.pid(), agent.worker()] {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        for field in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
            assert_eq!(fields(&text)[field], fields(&own)[field], "{field}");
        }
    }
    assert_eq!(agent.stop(), 0);
}

/// A program that forbids itself, and whom it becomes, seccomp and Landlock: a kernel without them.
const OLD_KERNEL: &str = r#"
import ctypes, os, struct, sys
numbers = [317 if os.uname().machine == "x86_64" else 277, 444, 445, 446]
code = [(0x20, 0, 0, 0)]
for number in numbers:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | 38)]
code += [(0x06, 0, 0, 0x7fff0000)]
text = b"".join(struct.pack("HBBI", *one) for one in code)
kept = ctypes.create_string_buffer(text)
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(kept))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// It starts, drops what it can, and says once what it cannot.
#[test]
fn a_kernel_without_filters_is_named_and_served() {
    let lab = Lab::new("old-kernel");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let agent = Agent::on(&a).manifest("greet.json", &greet());
    let agent = agent.wrapped(&["python3", "-c", OLD_KERNEL]).start();
    assert_eq!(ask(&a), "hello");
    let status = agent.status();
    let hardening = &status["hardening"];
    assert_eq!(
        (&hardening["systemCallsForbidden"], &hardening["landlock"]),
        (&0.into(), &0.into()),
        "{hardening}"
    );
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("system calls cannot be restricted"), "{warnings}");
    assert!(warnings.contains("no Landlock"), "{warnings}");
    assert_eq!(agent.log().matches("hardening is not complete").count(), 1, "{}", agent.log());
    for pid in [agent.pid(), agent.worker()] {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        assert_eq!((fields(&text)["CapEff"], fields(&text)["CapBnd"]), (THREE, THREE));
    }
    assert_eq!(agent.stop(), 0);
}

/// Root without `DAC_OVERRIDE` is like anybody else to another user's files: where the configuration names some, that
/// right is kept and the reason told.
#[test]
fn files_of_other_users_are_still_read_and_written() {
    let lab = Lab::new("others-files");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let private = |path: &Path| {
        chown(path, Some(1234), Some(1234)).expect("root may");
        fs::set_permissions(path, Permissions::from_mode(0o700)).expect("root may");
    };
    let agent = Agent::on(&a).manifest("greet.json", &greet());
    private(&lab.dir().join("agent-a/manifests"));
    let mut agent = agent.start();
    assert_eq!(ask(&a), "hello");
    let capabilities = agent.status()["hardening"]["capabilities"].to_string();
    assert!(
        capabilities.contains("DAC_READ_SEARCH") && !capabilities.contains("DAC_OVERRIDE"),
        "{capabilities}"
    );
    assert!(agent.log().contains("DAC_READ_SEARCH is kept, because"), "{}", agent.log());
    // What changes later is read as well.
    agent
        .write("more.json", &objects::list(objects::pair("more", "10.96.0.51", 80, 7000, &["192.168.77.2"])));
    agent.wait_for("the new service", SOON, |status| status["services"].to_string().contains("\"more\""));
    assert!(agent.alive());
    assert_eq!(agent.stop(), 0);

    let home = lab.dir().join("agent-a");
    private(&home.join("state"));
    let agent = Agent::on(&a).start();
    let capabilities = agent.status()["hardening"]["capabilities"].to_string();
    assert!(capabilities.contains("DAC_OVERRIDE"), "{capabilities}");
    assert_eq!(agent.stop(), 0);
}

/// The access log is made before writing is restricted, and stays where it is.
#[test]
fn the_access_log_is_written_and_is_for_root_and_its_group() {
    let lab = Lab::new("access-log");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let log = lab.dir().join("access.log");
    let config = lab.dir().join("config.yaml");
    fs::write(
        &config,
        format!(
            "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\nproxy: {{http: {{accessLog: {}}}}}\n",
            log.display()
        ),
    )
    .expect("a file");
    let agent = Agent::on(&a).args(&["--config", config.to_str().expect("a path")]).start();
    assert_eq!(log.metadata().expect("the log").permissions().mode() & 0o777, 0o640);
    let state = agent.state_dir().metadata().expect("the state folder").permissions().mode();
    assert_eq!(state & 0o777, 0o700);
    assert_eq!(agent.stop(), 0);
}
