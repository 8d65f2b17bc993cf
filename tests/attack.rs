//! The rules under attack: what others do to the packet filter while the agent runs is mended within five seconds or
//! reported, without touching what is theirs, and without a fight that costs anything.

mod lab;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::{Agent, Lab, Node, Process, Server, State, eventually, objects, read_all, with_either_backend};
use nix::sys::signal::Signal;

/// What the agent promises.
const PROMISE: Duration = Duration::from_secs(5);
const GREETING: &str = "10.96.0.50:80";

/// The promise, and what looking itself takes: a look starts a dozen programs, which on a machine that runs other
/// tests beside is seconds.
fn soon(node: &Node) -> Duration {
    let started = Instant::now();
    let _ = node.state();
    PROMISE + 3 * started.elapsed()
}

/// A node with an agent that serves one Service, rules of others, and a lock file of its own.
struct Scene {
    agent: Agent,
    node: Node,
    lock: String,
    intact: State,
    soon: Duration,
    _server: Server,
    _lab: Lab,
}

/// Rules of others with counters that nothing moves: whoever writes them anew, or loses one, shows.
const FOREIGN: &str = "*nat\n:DOCKER - [0:0]\n[7:420] -A PREROUTING -d 192.0.2.1/32 -m comment --comment \"a \\\"b\\\"\" -j DOCKER\n\
    [11:660] -A DOCKER -d 192.0.2.1/32 -j RETURN\nCOMMIT\n\
    *mangle\n[13:780] -A OUTPUT -d 192.0.2.2/32 -j RETURN\nCOMMIT\n\
    *filter\n:SITE - [0:0]\n[17:1020] -A INPUT -s 192.0.2.3/32 -j SITE\n[19:1140] -A SITE -j RETURN\nCOMMIT\n";

impl Scene {
    fn new(name: &str, backend: &str, more: &[&str], path: Option<&str>) -> Self {
        let lab = Lab::new(&format!("{name}-{backend}"));
        let (node, b) = (lab.node("a"), lab.node("b"));
        let server = Server::greeting(&b, 7000, "hello");
        let lock = format!("XTABLES_LOCKFILE={}", lab.dir().join("xtables.lock").display());
        let tools = |line: &[&str], input: &str| {
            let mut all = vec!["env", lock.as_str()];
            all.extend(line);
            node.feed(&all, input);
        };
        tools(&[&format!("iptables-{backend}-restore"), "-c", "--noflush"], FOREIGN);
        let manifest = objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
        let mut wrapper = vec!["env", lock.as_str()];
        wrapper.extend(path);
        let builder = Agent::on(&node).wrapped(&wrapper).backend(backend).args(more);
        let agent = builder.manifest("greet.json", &manifest).start();
        let intact = node.state();
        let soon = soon(&node);
        Self { agent, node, lock, intact, soon, _server: server, _lab: lab }
    }

    /// Runs a shell line in the node, with the scene's lock.
    fn sh(&self, line: &str) -> String {
        self.node.must(&["env", &self.lock, "sh", "-ec", line])
    }

    /// Keeps a shell line running in the node.
    fn keep(&self, line: &str) -> Process {
        self.node.spawn(&["env", &self.lock, "sh", "-c", line])
    }

    fn ask(&self) -> Result<String, String> {
        let mut stream = self.node.connect(GREETING).map_err(|errno| errno.to_string())?;
        read_all(&mut stream).map_err(|error| error.to_string())
    }

    fn wait_repaired(&self, after: &str) {
        let mut last = String::new();
        let end = Instant::now() + self.soon;
        while Instant::now() < end {
            last = self.intact.diff(&self.node.state());
            if last.is_empty() {
                assert_eq!(self.ask().as_deref(), Ok("hello"), "after {after}");
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not repaired after {after}:\n{last}\nthe log:\n{}", self.agent.log());
    }

    /// Foreign rules of the IPv4 tables, with their counters.
    fn foreign(&self, backend: &str) -> Vec<String> {
        let text = self.sh(&format!("iptables-{backend}-save -c"));
        text.lines()
            .filter(|line| line.contains("-A ") && !line.to_lowercase().contains("edgesplice"))
            .map(str::to_owned)
            .collect()
    }

    /// What the kernel says that the agent and its programs have used so far.
    fn cpu(&self) -> Duration {
        // Not of the keeper: that one does nothing.
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.agent.worker())).expect("a running agent");
        let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
        let ticks: u64 =
            rest.split(' ').skip(11).take(4).map(|word| word.parse::<u64>().expect("a number")).sum();
        // Linux counts in hundredths of a second towards user space, on every platform (USER_HZ).
        Duration::from_millis(ticks * 10)
    }
}

fn flushes_are_mended(backend: &str) {
    let scene = Scene::new("flush", backend, &[], None);
    let tables = ["iptables", "ip6tables"].map(|family| format!("{family}-{backend}"));
    for program in &tables {
        let all = |act: &str| {
            ["nat", "mangle", "filter"].map(|table| format!("{program} -w -t {table} {act}")).join("; ")
        };
        for act in ["-F EDGESPLICE", "-F"] {
            let line = match act {
                // Only what is ours: the rest must come through with its counters.
                "-F EDGESPLICE" => format!("{program} -w -t nat {act}; {program} -w -t mangle {act}"),
                _ => format!("{}; {}", all("-F"), all("-X")),
            };
            let saved = scene.sh(&format!("iptables-{backend}-save -c | grep -v -i edgesplice"));
            scene.sh(&line);
            if act == "-F" && program.starts_with("iptables") {
                // The owners of the other rules put them back as they were.
                scene.node.feed(
                    &["env", &scene.lock, &format!("iptables-{backend}-restore"), "-c", "--noflush"],
                    FOREIGN,
                );
            }
            scene.wait_repaired(&line);
            let now = scene.sh(&format!("iptables-{backend}-save -c | grep -v -i edgesplice"));
            let rules = |text: &str| {
                text.lines().filter(|line| line.starts_with('[')).map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(rules(&now), rules(&saved), "counters of others after {line}");
        }
    }
    assert_eq!(scene.agent.status()["rules"]["lastError"], "");
    assert_eq!(scene.agent.stop(), 0);
}

/// Docker and firewalld empty `nat` and write their own rules anew, at the head.
fn a_restart_of_docker_or_firewalld_is_mended(backend: &str) {
    let scene = Scene::new("restart", backend, &[], None);
    let before = scene.foreign(backend);
    for _ in 0..2 {
        scene.sh(&format!("iptables-{backend} -w -t nat -F; iptables-{backend} -w -t nat -X"));
        scene.node.feed(
            &["env", &scene.lock, &format!("iptables-{backend}-restore"), "-c", "--noflush"],
            FOREIGN.split_inclusive("COMMIT\n").next().expect("the nat table"),
        );
        scene.wait_repaired("a restart that empties nat");
        assert_eq!(scene.foreign(backend), before);
    }
    let repairs = scene.agent.status()["rules"]["repairsTotal"].as_u64();
    assert!(repairs >= Some(2), "{repairs:?}");
}

/// Someone who wants the first place too: it is taken back a few times at once, then seldom, and said.
fn a_program_that_insists_on_the_first_place_is_not_fought_at_full_speed(backend: &str) {
    let scene = Scene::new("insists", backend, &[], None);
    let first = "-A PREROUTING -d 192.0.2.9/32 -j RETURN";
    let tables = format!("iptables-{backend} -w -t nat");
    scene.sh(&format!("{tables} -I PREROUTING -d 192.0.2.9/32 -j RETURN"));
    eventually("the first place back", scene.soon, || {
        let rules = scene.sh(&format!("{tables} -S PREROUTING"));
        let rules: Vec<&str> = rules.lines().skip(1).collect();
        (rules[0].contains("EDGESPLICE") && rules[1] == first).then_some(())
    });
    // Without the fighter's own rule, which is away for a moment each time that it is put first.
    let others = || -> Vec<String> {
        let all = scene.foreign(backend).into_iter();
        all.filter(|line| !line.contains("192.0.2.9/32")).map(|line| uncounted(&line)).collect()
    };
    let foreign = others();
    let mut fighter = scene.keep(&format!(
        "while sleep 0.2; do [ \"$({tables} -S PREROUTING 1)\" = '{first}' ] || {{ \
         {tables} -D PREROUTING -d 192.0.2.9/32 -j RETURN; {tables} -I PREROUTING -d 192.0.2.9/32 -j RETURN; }}; done"
    ));
    scene.agent.wait_for("the warning", Duration::from_secs(20), |status| {
        let warnings = status["warnings"].as_array().into_iter().flatten();
        warnings
            .filter_map(|line| line.as_str())
            .any(|line| line.contains("192.0.2.9/32") && line.contains("first place"))
    });
    let repairs = || scene.agent.status()["rules"]["repairsTotal"].as_u64().expect("a number");
    let (before, used) = (repairs(), scene.cpu());
    std::thread::sleep(Duration::from_secs(8));
    let (after, spent) = (repairs(), scene.cpu().checked_sub(used).expect("time goes on"));
    assert!(after - before <= 2, "{} repairs in 8 seconds", after - before);
    assert!(spent < Duration::from_secs(2), "{spent:?} of CPU in 8 seconds");
    assert_eq!(scene.ask().as_deref(), Ok("hello"), "second place serves as well");
    // What is broken beyond that is mended at once, place and all.
    scene.sh(&format!("{tables} -F EDGESPLICE"));
    eventually("the chain back", scene.soon, || {
        scene.sh(&format!("{tables} -S EDGESPLICE")).contains("REDIRECT").then_some(())
    });
    assert_eq!(scene.ask().as_deref(), Ok("hello"));
    assert!(fighter.ended().is_none());
    drop(fighter);
    assert_eq!(others(), foreign);
}

/// A rule as `iptables-save -c` prints it, without its counters.
fn uncounted(line: &str) -> String {
    line.split_once("] ").map_or(line, |(_, rule)| rule).to_owned()
}

/// kube-proxy puts its jump at the head again when it finds it missing, and its rules keep their counters.
fn kube_proxy_may_put_its_jump_back(backend: &str) {
    let lab = Lab::new(&format!("proxy-{backend}"));
    let node = lab.node("a");
    let jump = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
    node.feed(
        &[&format!("iptables-{backend}-restore"), "-c", "--noflush", "--wait", "20"],
        &format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n[3:180] -A PREROUTING {jump}\n[3:180] -A OUTPUT {jump}\n\
             [5:300] -A KUBE-SERVICES -d 192.0.2.7/32 -j RETURN\nCOMMIT\n"
        ),
    );
    let refused = Agent::on(&node).backend(backend).run_to_end();
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains(&format!("chain KUBE-SERVICES in {backend} ipv4 nat has 1 rule")),
        "{}",
        refused.stderr
    );
    let label = |mut items: [serde_json::Value; 2]| {
        items[0]["metadata"]["labels"] =
            serde_json::json!({"service.kubernetes.io/service-proxy-name": "edgesplice"});
        items
    };
    let items = label(objects::pair("ours", "10.96.0.50", 80, 7000, &["192.168.77.1"]));
    let items = items.into_iter().chain(objects::pair("theirs", "10.96.0.51", 80, 7000, &["192.168.77.1"]));
    let _server = Server::greeting(&node, 7000, "hello");
    let args = ["--coexist-with-kube-proxy", "--service-proxy-name", "edgesplice"];
    let agent =
        Agent::on(&node).backend(backend).args(&args).manifest("both.json", &objects::list(items)).start();
    let status = agent.status();
    assert_eq!(status["warnings"], serde_json::json!([]), "{status}");
    let names: Vec<&str> = status["services"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["ours"]);
    let counted = || {
        let text = node.must(&[&format!("iptables-{backend}-save"), "-c", "-t", "nat"]);
        text.lines().filter(|line| line.contains("KUBE-SERVICES -d")).map(str::to_owned).collect::<Vec<_>>()
    };
    let tables = format!("iptables-{backend}");
    for _ in 0..2 {
        let words = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
        for act in ["-D", "-I"] {
            let mut line = vec![tables.as_str(), "-w", "-t", "nat", act, "PREROUTING"];
            line.extend(words);
            node.must(&line);
        }
        eventually("the first place back", soon(&node), || {
            let rules = node.must(&[&tables, "-w", "-t", "nat", "-S", "PREROUTING"]);
            let rules: Vec<&str> = rules.lines().skip(1).collect();
            (rules.len() == 2 && rules[0].contains("EDGESPLICE")).then_some(())
        });
    }
    assert_eq!(counted(), ["[5:300] -A KUBE-SERVICES -d 192.0.2.7/32 -j RETURN"]);
    assert_eq!(read_all(&mut node.connect(GREETING).expect("ours is served")).expect("an answer"), "hello");
    assert!(
        node.connect_within("10.96.0.51:80", Duration::from_millis(300)).is_err(),
        "theirs is left alone"
    );
    let resolved = node.edgesplice_json(&["resolve", "10.96.0.51:80", "-o", "json"]);
    assert_eq!(resolved["verdict"], "not-intercepted");
}

/// A second agent is turned away even while the first one's rules are broken, and makes nothing worse.
fn a_second_instance_is_refused_under_attack(backend: &str) {
    let scene = Scene::new("second", backend, &[], None);
    scene.sh(&format!("iptables-{backend} -w -t nat -F; ipset flush"));
    let second = Agent::on(&scene.node).backend(backend).run_to_end();
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("already runs"), "{}", second.stderr);
    scene.sh(&format!(
        "iptables-{backend} -w -t nat -A PREROUTING -d 192.0.2.1/32 -m comment --comment 'a \"b\"' -j DOCKER"
    ));
    scene.sh(&format!("iptables-{backend} -w -t nat -A DOCKER -d 192.0.2.1/32 -j RETURN"));
    scene.wait_repaired("a flush and a second start");
}

/// The programs go while the agent runs, as during an upgrade of the package.
fn missing_programs_are_reported_until_they_are_back(backend: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let programs: Vec<PathBuf> = ["iptables", "ip6tables"]
        .iter()
        .flat_map(|family| ["nft", "legacy"].map(|kind| format!("{family}-{kind}")))
        .flat_map(|name| ["", "-save", "-restore"].map(|suffix| format!("{name}{suffix}")))
        .chain(["ipset".to_owned()])
        .map(|name| {
            ["/usr/sbin", "/sbin"]
                .map(|dir| PathBuf::from(dir).join(&name))
                .into_iter()
                .find(|path| path.exists())
                .expect("the program")
        })
        .collect();
    let link = || {
        for path in &programs {
            symlink(path, folder.path().join(path.file_name().expect("a name"))).expect("a link");
        }
    };
    let unlink = || {
        for path in &programs {
            fs::remove_file(folder.path().join(path.file_name().expect("a name"))).expect("the link");
        }
    };
    link();
    let path = format!("PATH={}", folder.path().display());
    let scene = Scene::new("missing", backend, &[], Some(&path));
    unlink();
    scene.sh(&format!("iptables-{backend} -w -t nat -F EDGESPLICE"));
    let used = scene.cpu();
    let status = scene.agent.wait_for("the report", scene.soon, |status| {
        status["rules"]["lastError"].as_str().is_some_and(|error| error.contains("install the package"))
    });
    assert_eq!(status["ready"], true, "the data plane goes on: {status}");
    std::thread::sleep(Duration::from_secs(4));
    let spent = scene.cpu().checked_sub(used).expect("time goes on");
    assert!(spent < Duration::from_secs(1), "{spent:?} of CPU in some four seconds");
    link();
    scene.wait_repaired("the programs' return");
    assert_eq!(scene.agent.status()["rules"]["lastError"], "");
    assert_eq!(scene.agent.stop(), 0);
}

with_either_backend!(
    flushes_are_mended,
    a_restart_of_docker_or_firewalld_is_mended,
    a_program_that_insists_on_the_first_place_is_not_fought_at_full_speed,
    kube_proxy_may_put_its_jump_back,
    a_second_instance_is_refused_under_attack,
    missing_programs_are_reported_until_they_are_back,
);

#[test]
fn a_lock_held_for_a_minute_is_reported_and_the_rules_mended_after_it() {
    let scene = Scene::new("lock", "legacy", &[], None);
    let lock = scene.lock.split_once('=').expect("a path").1.to_owned();
    // Tampering needs the lock itself, so that it comes first, in one go with holding it.
    let mut holder =
        scene.keep(&format!("iptables-legacy -w -t nat -F EDGESPLICE; exec flock {lock} sleep 60"));
    let used = scene.cpu();
    scene.agent.wait_for("the report", Duration::from_secs(20), |status| {
        status["rules"]["lastError"].as_str().is_some_and(|error| error.contains("lock"))
    });
    // It stays reported, and the rest of the agent works on.
    while holder.ended().is_none() {
        assert_eq!(scene.agent.get("/healthz").expect("an answer").0, 200);
        std::thread::sleep(Duration::from_secs(1));
    }
    let spent = scene.cpu().checked_sub(used).expect("time goes on");
    assert!(spent < Duration::from_secs(6), "{spent:?} of CPU while the lock was held");
    scene.wait_repaired("the end of the lock");
    scene.agent.wait_for("the all-clear", scene.soon, |status| status["rules"]["lastError"] == "");
}

/// Runs a shell line where `/etc` holds a resolver configuration and nothing else, and returns what came of it.
fn with_resolver(node: &Node, resolv_conf: &str, line: &str) -> lab::Run {
    let line = format!("mount -t tmpfs none /etc && printf '{resolv_conf}' >/etc/resolv.conf && {line}");
    node.run(&["unshare", "-m", "sh", "-ec", &line])
}

#[test]
fn a_name_server_line_meant_for_this_agent_is_no_leftover() {
    let lab = Lab::new("resolver");
    let node = lab.node("a");
    let lines = "nameserver 169.254.96.16\nnameserver 192.0.2.1\n";
    let given = lines.replace('\n', "\\n");
    let agent = |dns: &str| {
        let words = Agent::on(&node).backend("nft").args(&["--remove-stale", "--dns", dns]).line();
        // Its look comes before it listens; once it is ready, it is ended.
        let ready = "until curl -sf http://127.0.0.1:10265/readyz >/dev/null; do sleep 0.1; done";
        format!("{} 2>&1 & {ready}; kill $!; wait $!; cat /etc/resolv.conf", words.join(" "))
    };
    let run = with_resolver(&node, &given, &agent("auto"));
    assert!(run.stdout.contains("stopped") && run.stdout.ends_with(lines), "{}{}", run.stdout, run.stderr);
    assert!(!run.stdout.contains("169.254.96.16`"), "{}", run.stdout);
    // Without DNS of our own the line is what EdgeMesh left.
    let run = with_resolver(&node, &given, &agent("off"));
    assert!(run.stdout.ends_with("\nnameserver 192.0.2.1\n"), "{}{}", run.stdout, run.stderr);
    // So it is to `cleanup`, unless an agent runs.
    let cleanup = format!("{} cleanup -o json --dry-run", lab::PROGRAM);
    let run = with_resolver(&node, &given, &cleanup);
    assert!(run.stdout.contains("`nameserver 169.254.96.16`: nothing answers DNS there"), "{}", run.stdout);
    let _agent = Agent::on(&node).backend("nft").start();
    let run = with_resolver(&node, &given, &cleanup);
    assert!(run.stdout.contains("`nameserver 169.254.96.16` stays: this program answers"), "{}", run.stdout);
}

fn stale(node: &Node, backend: &str, name: &str) {
    let path = format!("{}/tests/fixtures/edgemesh/{name}.rules", env!("CARGO_MANIFEST_DIR"));
    let rules = fs::read_to_string(path).expect("a fixture");
    node.feed(&[&format!("iptables-{backend}-restore"), "--noflush", "--wait", "20"], &rules);
}

#[test]
fn stale_footprints_are_named_at_the_start_and_removed_on_request() {
    let lab = Lab::new("stale");
    let node = lab.node("a");
    stale(&node, "legacy", "f4");
    stale(&node, "nft", "f7");
    let before = node.state();
    let agent = Agent::on(&node).backend("nft").start();
    let warnings = agent.status()["warnings"].to_string();
    for word in ["EdgeMesh v1.8.0", "EdgeMesh v1.12.0 to v1.17.0", "`edgesplice cleanup` removes it"] {
        assert!(warnings.contains(word) && agent.log().contains(word), "{word}: {warnings}\n{}", agent.log());
    }
    assert_eq!(agent.stop(), 0);
    before.assert_same(&node.state(), "without being told to remove anything");

    let agent = Agent::on(&node).backend("nft").args(&["--remove-stale"]).start();
    assert_eq!(agent.status()["warnings"], serde_json::json!([]), "{}", agent.log());
    let saved = node.must(&["iptables-legacy-save"]) + &node.must(&["iptables-nft-save"]);
    assert!(!saved.contains("EDGE-MESH") && !saved.contains("KUBE-PORTALS"), "{saved}");
    assert!(saved.contains("DOCKER"), "the rest stays: {saved}");
    assert!(agent.log().contains("EdgeMesh v1.8.0"), "{}", agent.log());
    assert_eq!(agent.stop(), 0);
    // The backup stands where the log says, and brings back what was there.
    let state = node.dir().join("agent-a/state");
    let folder = fs::read_dir(&state).expect("a state folder").flatten().map(|entry| entry.path()).next();
    let folder = folder.expect("a backup");
    for file in ["legacy-ipv4.rules", "nft-ipv4.rules"] {
        assert!(folder.join(file).exists(), "{file}");
    }
}

#[test]
fn a_live_edgemesh_is_not_joined() {
    let lab = Lab::new("live");
    let node = lab.node("a");
    let program = node.dir().join("edgemesh-agent");
    fs::copy("/bin/sleep", &program).expect("a copy of sleep");
    let mesh = node.spawn(&[&program.display().to_string(), "60"]);
    let comm = format!("/proc/{}/comm", mesh.pid());
    eventually("the process", PROMISE, || {
        fs::read_to_string(&comm).ok().filter(|name| name.trim() == "edgemesh-agent")
    });
    stale(&node, "nft", "f5");
    let before = node.state();
    for args in [&[][..], &["--remove-stale"], &["--coexist-with-kube-proxy"]] {
        let run = Agent::on(&node).args(args).run_to_end();
        assert_eq!(run.code, 1, "{}", run.stderr);
        let evidence = format!("edgemesh-agent runs as process {}", mesh.pid());
        assert!(run.stderr.contains(&evidence), "{}", run.stderr);
        before.assert_same(&node.state(), "after a refused start");
    }
    mesh.signal(Signal::SIGKILL);
    drop(mesh);
    let agent = Agent::on(&node).start();
    assert_eq!(agent.stop(), 0);
}
