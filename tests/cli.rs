//! The program from outside: exit codes, precedence, strict configuration, output. No agent and no privileges needed.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use edgesplice::obs::admin::{AdminHandlers, AdminServer};

const HEAD: &str = "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n";

/// The program in an environment of our own, so that the caller's variables have no part in it.
fn edgesplice(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgesplice"));
    command.args(args).env_clear().env("NODE_NAME", "Node-A").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    edgesplice(args).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("errors are text")
}

/// A configuration file that lives as long as the folder.
fn config(dir: &tempfile::TempDir, body: &str) -> String {
    let path: PathBuf = dir.path().join("edge.yaml");
    std::fs::write(&path, format!("{HEAD}{body}")).expect("the file can be written");
    path.display().to_string()
}

#[track_caller]
fn assert_usage_error(output: &Output, parts: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(64), "{message}");
    assert!(output.stdout.is_empty(), "nothing on standard output: {}", stdout(output));
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["-h"], &["--version"], &["version"], &["version", "--help"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    for command in ["run", "check", "rules", "status", "resolve", "migrate-config", "version"] {
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let help = stdout(&output);
        for flag in ["--config", "--log-level", "--log-format", "--output"] {
            assert!(help.contains(flag), "{command} --help lacks {flag}");
        }
    }
    let help = stdout(&run(&["run", "--help"]));
    for flag in [
        "--node-name",
        "--source",
        "--manifests",
        "--kubeconfig",
        "--metaserver",
        "--state-dir",
        "--service-cidr",
        "--iptables-backend",
        "--proxy-port",
        "--dns",
        "--dns-listen",
        "--cluster-domain",
        "--dns-upstream",
        "--admin",
        "--drain-timeout",
        "--keep-rules",
        "--take-over",
        "--coexist-with-kube-proxy",
        "--service-proxy-name",
        "--remove-stale",
        "--hardening",
        "EDGESPLICE_PROXY_PORT",
    ] {
        assert!(help.contains(flag), "run --help lacks {flag}");
    }
}

#[test]
fn wrong_flags_end_with_64() {
    assert_usage_error(&run(&[]), &["Usage"]);
    assert_usage_error(&run(&["fly"]), &["fly"]);
    assert_usage_error(&run(&["run", "--prot", "1"]), &["--prot"]);
    assert_usage_error(&run(&["run", "--proxy-port"]), &["--proxy-port"]);
    assert_usage_error(&run(&["resolve"]), &["WHAT"]);
    assert_usage_error(
        &run(&["run", "--proxy-port", "70000"]),
        &["error: flag --proxy-port: proxy.port is \"70000\": give a port"],
    );
    assert_usage_error(
        &run(&["run", "--log-level", "verbose"]),
        &["flag --log-level: log.level is \"verbose\""],
    );
    assert_usage_error(&run(&["version", "-o", "xml"]), &["flag --output: output is \"xml\"", "table, json"]);
    assert_usage_error(
        &run(&["status", "--admin", "localhost"]),
        &["admin.listen is \"localhost\"", "ADDR:PORT"],
    );
    assert_usage_error(&run(&["status", "--admin", "127.0.0.1:0"]), &["port 0"]);
    assert_usage_error(&run(&["run", "--source", "manifests", "--check-config"]), &["--manifests PATH"]);
    assert_usage_error(&run(&["run", "--manifests", "/no/such"]), &["--manifests", "/no/such"]);
    assert_usage_error(&run(&["run", "--config", "/no/such.yaml"]), &["/no/such.yaml"]);
}

#[test]
fn each_message_is_one_line() {
    for args in [&["run", "--proxy-port", "x"][..], &["status"], &["run", "--config", "/no/such.yaml"]] {
        let message = stderr(&run(args));
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(message.starts_with("error: "), "{message}");
    }
}

#[test]
fn a_flag_beats_the_variable_beats_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = config(&dir, "proxy: {port: 1001, drainTimeout: 7s}\nnode: {name: from-file}\n");
    let port = |command: &mut Command| {
        let output = command.output().expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        let line = text.lines().find(|l| l.trim().starts_with("port:")).map(str::trim).map(str::to_owned);
        (line.expect("a port is printed"), text)
    };
    let (line, text) = port(&mut edgesplice(&["run", "--print-config", "--config", &file]));
    assert_eq!(line, "port: 1001");
    assert!(text.contains("drainTimeout: 7s") && text.contains("name: from-file"), "{text}");
    let variable = [("EDGESPLICE_PROXY_PORT", "1002"), ("EDGESPLICE_CONFIG", file.as_str())];
    assert_eq!(port(edgesplice(&["run", "--print-config"]).envs(variable)).0, "port: 1002");
    assert_eq!(
        port(edgesplice(&["run", "--print-config", "--proxy-port", "1003"]).envs(variable)).0,
        "port: 1003"
    );
    let empty = [("EDGESPLICE_PROXY_PORT", ""), ("EDGESPLICE_CONFIG", file.as_str())];
    assert_eq!(port(edgesplice(&["run", "--print-config"]).envs(empty)).0, "port: 1001");
}

#[test]
fn keep_rules_is_given_and_taken_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = config(&dir, "proxy: {keepRules: true}\n");
    let keeps = |args: &[&str], variable: &str| {
        let args = [&["run", "--print-config"][..], args].concat();
        let output =
            edgesplice(&args).env("EDGESPLICE_KEEP_RULES", variable).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output).contains("keepRules: true")
    };
    assert!(!keeps(&[], ""));
    assert!(keeps(&["--keep-rules"], ""));
    assert!(keeps(&["--keep-rules"], "false"));
    assert!(keeps(&[], "true"));
    assert!(keeps(&["--config", &file], ""));
    assert!(!keeps(&["--config", &file], "false"));
    assert!(!keeps(&["--config", &file, "--keep-rules=false"], "true"));
}

#[test]
fn a_wrong_variable_is_named() {
    let output = edgesplice(&["run", "--check-config"]).env("EDGESPLICE_DRAIN_TIMEOUT", "soon").output();
    let output = output.expect("the program starts");
    assert_usage_error(
        &output,
        &["environment variable EDGESPLICE_DRAIN_TIMEOUT: proxy.drainTimeout is \"soon\""],
    );
    let output = edgesplice(&["run", "--check-config"]).env("NODE_NAME", "my_node").output();
    assert_usage_error(&output.expect("the program starts"), &["NODE_NAME", "my_node", "--node-name"]);
}

#[test]
fn a_wrong_file_is_named_with_its_line() {
    let dir = tempfile::tempdir().expect("a folder");
    for (body, parts) in [
        ("proxy:\n  prot: 15001\n", ["edge.yaml, line 4", "prot"]),
        ("proxy:\n  workers: 1\n  port: many\n", ["edge.yaml, line 5", "proxy.port is \"many\""]),
        ("kind: Twice\n", ["edge.yaml, line 3", "kind"]),
        ("intercept:\n  serviceCIDRs:\n  - 10.96.0.0/12\n  - 10.97.0.0\n", ["line 6", "10.97.0.0"]),
    ] {
        let file = config(&dir, body);
        assert_usage_error(&run(&["run", "--config", &file, "--check-config"]), &parts);
        assert_usage_error(&run(&["status", "--config", &file]), &parts);
    }
}

#[test]
fn the_printed_configuration_is_a_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    let given = [
        "run",
        "--print-config",
        "--service-cidr",
        "fd00:10:96::/112,10.96.0.0/12",
        "--dns-upstream",
        "10.0.0.2,[fd00::2]:5353",
        "--admin",
        "[::1]:10265",
        "--drain-timeout",
        "1m30s",
    ];
    let first = run(&given);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let path = dir.path().join("printed.yaml");
    std::fs::write(&path, &first.stdout).expect("the file can be written");
    let second = run(&["run", "--print-config", "--config", &path.display().to_string()]);
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    assert_eq!(stdout(&first), stdout(&second));
    assert!(stdout(&first).contains("name: node-a"), "{}", stdout(&first));
}

#[test]
fn the_printed_configuration_as_json_says_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let given = ["run", "--node-name", "node-a", "--drain-timeout", "1m30s", "--print-config"];
    let yaml = run(&given);
    let json = run(&[&given[..], &["-o", "json"]].concat());
    assert_eq!(json.status.code(), Some(0), "{}", stderr(&json));
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON and nothing else");
    assert_eq!(value["proxy"]["drainTimeout"], "1m30s");
    let path = dir.path().join("printed.json");
    std::fs::write(&path, &json.stdout).expect("a file");
    let again = run(&["run", "--print-config", "--config", &path.display().to_string()]);
    assert_eq!(stdout(&again), stdout(&yaml), "{}", stderr(&again));
}

#[test]
fn a_state_folder_that_can_never_be_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let state = format!("{}/state", file.path().display());
    for command in [&["run", "--manifests", "/"][..], &["cleanup"], &["cleanup", "--dry-run"]] {
        let output = run(&[command, &["--state-dir", &state]].concat());
        assert_usage_error(&output, &["stateDir", &state, "is a file", "--state-dir"]);
    }
}

#[test]
fn json_stands_alone_on_standard_output() {
    let output = run(&["version", "-o", "json", "--log-level", "trace"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["commit"].is_string() && json["features"].is_array(), "{json}");
    let output =
        edgesplice(&["version"]).env("EDGESPLICE_OUTPUT", "json").output().expect("the program starts");
    assert!(stdout(&output).starts_with('{'));
}

#[test]
fn version_answers_even_where_the_configuration_is_wrong() {
    let output =
        edgesplice(&["version"]).env("EDGESPLICE_PROXY_PORT", "x").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn no_agent_is_said_plainly() {
    // A port that was free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let admin = free.to_string();
    for args in [&["status", "--admin", &admin][..], &["resolve", "10.96.0.1:80", "--admin", &admin]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty());
        let message = stderr(&output);
        assert!(message.contains(&format!("no agent runs at {admin}")), "{message}");
    }
}

#[test]
fn a_target_that_is_none_ends_with_64() {
    for bad in [
        "10.96.0.1",
        "10.96.0.1:0",
        "10.96.0.1:99999",
        "web:http",
        "a b",
        "http://web/",
        "10.96.0.300:80",
        "",
    ] {
        assert_usage_error(&run(&["resolve", bad]), &["WHAT is", "IP:PORT"]);
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = edgesplice(&["run", "--print-config"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn flags_of_every_command_may_stand_in_front_of_it() {
    let output = run(&["-o", "json", "version"]);
    assert!(stdout(&output).starts_with('{'), "{}", stderr(&output));
    assert_usage_error(&run(&["--log-format", "xml", "run", "--check-config"]), &["flag --log-format"]);
}

/// An admin endpoint with a small answer, in this process.
struct Agent {
    admin: String,
    stop: tokio_util::sync::CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

const STATUS: &str = r#"{"version":"9.9.9","node":"far","ready":true,
    "source":{"kind":"manifests","state":"synced","ageSeconds":0.5,"message":""},
    "proxy":{"port":15001,"activeConnections":0,"acceptedTotal":0,"refusedTotal":0},
    "serviceCIDRs":[],"services":[]}"#;

impl Agent {
    fn start() -> Self {
        let server = AdminServer::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let admin = server.local_addr().to_string();
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let handlers = AdminHandlers {
                status: Box::new(|| serde_json::from_str(STATUS).expect("the status reads")),
                resolve: Box::new(|target| match target {
                    "web.shop:80" => serde_json::from_value(serde_json::json!({
                        "target": target, "service": null, "frontend": null, "mode": null, "policy": null,
                        "backends": [], "verdict": "refused", "why": "no such service"
                    }))
                    .map_err(|e| e.to_string()),
                    _ => Err(format!("{target} is not understood")),
                }),
                figures: Box::new(Default::default),
                check: Box::new(Vec::new),
                health: Box::new(Vec::new),
                live: Box::new(Vec::new),
            };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(server.serve(handlers, stopped)).expect("it serves until it is stopped");
        });
        Self { admin, stop, thread: Some(thread) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn status_and_resolve_ask_the_running_agent() {
    let agent = Agent::start();
    let output = run(&["status", "--admin", &agent.admin, "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(json["node"], "far");
    let output =
        edgesplice(&["status"]).env("EDGESPLICE_ADMIN", &agent.admin).output().expect("the program starts");
    assert!(stdout(&output).contains("edgesplice 9.9.9  ready"), "{}", stdout(&output));

    let output = run(&["resolve", "web.shop:80", "--admin", &agent.admin]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("REFUSED: no such service"), "{}", stdout(&output));
    let output = run(&["resolve", "web.shop:80", "--admin", &agent.admin, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(json["verdict"], "refused");
    // What only the agent can judge is a wrong flag all the same.
    assert_usage_error(&run(&["resolve", "web.shop:81", "--admin", &agent.admin]), &["is not understood"]);
    // In the agent's own container, this variable says where the agent gets its objects.
    let output = edgesplice(&["resolve", "web.shop:80", "--admin", &agent.admin])
        .env("EDGESPLICE_SOURCE", "metaserver")
        .output()
        .expect("the program starts");
    assert!(stdout(&output).contains("REFUSED"), "{}", stderr(&output));
}

#[test]
fn watch_redraws_until_it_is_interrupted() {
    let agent = Agent::start();
    let mut child = edgesplice(&["status", "--watch", "-o", "json", "--admin", &agent.admin])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = std::io::BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for line in lines.take(2) {
        let line = line.expect("one answer a line");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON and nothing else");
        assert_eq!(json["node"], "far");
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    assert_eq!(child.wait().expect("the program ends").code(), Some(0));
}

#[test]
fn an_agent_that_does_not_answer_is_given_up() {
    // It accepts into its backlog and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let admin = mute.local_addr().expect("an address").to_string();
    let started = std::time::Instant::now();
    let output = run(&["status", "--admin", &admin]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does not answer"), "{}", stderr(&output));
    assert!(started.elapsed() < std::time::Duration::from_secs(15));
}
