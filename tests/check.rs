//! `edgesplice check`: nothing on a healthy node, with an agent and without, and the right word for each fault.

mod lab;

use std::path::Path;

use lab::{Agent, Lab, Netns, Node, Process, SERVICE_CIDRS, Server, objects};
use serde_json::Value;

const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// The arguments of a check that looks at what the lab's agents would use.
fn arguments(node: &Node, more: &[&str]) -> Vec<String> {
    let state = node.dir().join(format!("agent-{}", node.name)).join("state");
    let mut line = vec!["check".to_owned(), "-o".to_owned(), "json".to_owned()];
    line.push(format!("--service-cidr={SERVICE_CIDRS}"));
    line.push(format!("--state-dir={}", state.display()));
    line.extend(more.iter().map(ToString::to_string));
    line
}

struct Checked {
    code: i32,
    findings: Vec<Value>,
}

impl Checked {
    fn of(run: &lab::Run) -> Self {
        let findings = serde_json::from_str(&run.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", run.stdout, run.stderr));
        Self { code: run.code, findings }
    }

    /// `id:severity` of each finding, in order.
    fn ids(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        self.findings.iter().map(|one| format!("{}:{}", text(&one["id"]), text(&one["severity"]))).collect()
    }

    /// The finding with this id, which must say what mends it.
    fn finding(&self, id: &str) -> &Value {
        let found = self.findings.iter().find(|one| one["id"] == id);
        let found = found.unwrap_or_else(|| panic!("no {id} among {:?}", self.findings));
        assert!(found["mend"].as_str().is_some_and(|mend| !mend.is_empty()), "{found}");
        found
    }

    fn says(&self, id: &str, word: &str) {
        let found = self.finding(id);
        assert!(found["what"].as_str().is_some_and(|what| what.contains(word)), "{word}: {found}");
    }
}

/// A node whose programs have a lock file of their own, so that tests that run side by side do not wait for one
/// another.
fn lock_file(node: &Node) -> String {
    format!("XTABLES_LOCKFILE={}", node.dir().join(format!("{}.lock", node.name)).display())
}

fn check(node: &Node, more: &[&str]) -> Checked {
    let lock = lock_file(node);
    let arguments = arguments(node, more);
    let mut line = vec!["env", &lock, lab::PROGRAM];
    line.extend(arguments.iter().map(String::as_str));
    let before = node.state();
    let checked = Checked::of(&node.run(&line));
    before.assert_same(&node.state(), "after a check");
    let bad = checked.findings.iter().any(|one| one["severity"] == "problem");
    assert_eq!(checked.code, if bad { 2 } else { 0 }, "{:?}", checked.findings);
    checked
}

/// Waits until the agent has its first place in the firewall back.
fn settled(node: &Node) {
    lab::eventually("the first place back", std::time::Duration::from_secs(5), || {
        let rules = node.must(&["iptables-nft", "-S", "INPUT"]);
        rules.lines().nth(1).is_some_and(|first| first.contains("EDGESPLICE")).then_some(())
    });
}

/// A long-lived process of that name in the node.
fn process(node: &Netns, name: &str) -> Process {
    let path = node.dir().join(name);
    std::fs::copy("/bin/sleep", &path).expect("a copy of sleep");
    let process = node.spawn(&[&path.display().to_string(), "300"]);
    // `ip netns exec` becomes the program; until then the name is another.
    let comm = format!("/proc/{}/comm", process.pid());
    lab::eventually(name, std::time::Duration::from_secs(5), || {
        std::fs::read_to_string(&comm).ok().filter(|text| text.trim() == name)
    });
    process
}

fn restore(node: &Node, backend: &str, rules: &str) {
    node.feed(&["env", &lock_file(node), &format!("iptables-{backend}-restore"), "--noflush"], rules);
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/edgemesh").join(name);
    std::fs::read_to_string(path).expect("a fixture")
}

#[test]
fn a_healthy_node_has_nothing_to_be_found() {
    for backend in BACKENDS {
        let lab = Lab::new(&format!("healthy-{backend}"));
        let (a, b) = (lab.node("a"), lab.node("b"));
        let _server = Server::greeting(&b, 7000, "hello");
        let args = ["--iptables-backend", backend];
        assert_eq!(check(&a, &args).ids(), [""; 0], "before the agent");
        let manifest = objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
        let agent = Agent::on(&a).backend(backend).manifest("greet.json", &manifest).start();
        assert_eq!(check(&a, &args).ids(), [""; 0], "beside the agent");
        assert_eq!(agent.stop(), 0);
        assert_eq!(check(&a, &args).ids(), [""; 0], "after the agent");
        for dns in ["auto", "off"] {
            let text = a.edgesplice(&["check", "--iptables-backend", backend, "--dns", dns]);
            assert_eq!(text.code, 0, "{}{}", text.stdout, text.stderr);
            let told = |line: &&str| !line.starts_with("names  ");
            let lines: Vec<&str> = text.stdout.lines().filter(told).collect();
            let filter = format!("packet filter  iptables-{backend}: set by intercept.iptablesBackend");
            assert_eq!(lines, [filter.as_str(), "nothing found"]);
            // What host processes would need is the test machine's own affair, and no finding.
            assert!(dns == "auto" || text.stdout.lines().count() == 2, "{}", text.stdout);
        }
    }
}

#[test]
fn a_node_with_everything_wrong_hears_of_everything() {
    let lab = Lab::new("broken");
    let a = lab.node("a");
    a.sysctl("net/ipv4/ip_forward", "0");
    a.sysctl("net/ipv4/conf/all/rp_filter", "1");
    restore(&a, "legacy", &fixture("f5.rules"));
    restore(
        &a,
        "nft",
        "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
         -A KUBE-SERVICES -d 10.96.0.1/32 -j RETURN\nCOMMIT\n\
         *raw\n-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack\n\
         -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack\nCOMMIT\n\
         *filter\n:INPUT DROP [0:0]\nCOMMIT\n",
    );
    a.ip("addr add 10.96.7.7/32 dev lo\nlink add edgemesh0 type bridge\naddr add 169.254.96.16/32 dev edgemesh0\n\
          link set edgemesh0 up\nroute add 10.96.9.0/24 dev eth0\n");
    let _mesh = process(&a, "edgemesh-agent");
    let _proxy = process(&a, "kube-proxy");
    let _admin = Server::greeting(&a, 10265, "");
    let _dns = Server::greeting(&a, 53, "");
    let found = check(&a, &[]);
    for id in [
        "ip-forward:warning",
        "rp-filter:info",
        "mixed-backends:warning",
        "stale-edgemesh:problem",
        "edgemesh-alive:problem",
        "kube-proxy:problem",
        "notrack:warning",
        "input-default-deny:problem",
        "range-overlap:problem",
        "range-overlap:warning",
        "port-in-use:problem",
        "port-in-use:warning",
    ] {
        assert!(found.ids().contains(&id.to_owned()), "no {id} among {:?}", found.ids());
    }
    found.says("stale-edgemesh", "EdgeMesh v1.9.0");
    found.says("edgemesh-alive", "edgemesh-agent runs as process ");
    found.says("kube-proxy", "chain KUBE-SERVICES in nft ipv4 nat has 1 rule; kube-proxy runs as process ");
    found.says("notrack", "10.96.0.10 ");
    found.says("port-in-use", "10265");
    let text = a.edgesplice(&["check"]);
    assert_eq!(text.code, 2);
    assert!(
        text.stdout.lines().skip(1).all(|line| line.contains(": ")),
        "one line a finding: {}",
        text.stdout
    );
}

#[test]
fn a_killed_agent_and_a_firewall_without_a_way_for_answers_are_found() {
    let lab = Lab::new("killed");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let manifest = objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
    let agent = Agent::on(&a).backend("nft").manifest("greet.json", &manifest).start();
    a.must(&["iptables-nft", "-P", "INPUT", "DROP"]);
    // Not even the agent's answers about names get through to this host's processes.
    assert_eq!(check(&a, &[]).ids(), ["input-default-deny:problem", "dns-silent:warning"]);
    let dropped = a.connect_within("10.96.0.50:80", std::time::Duration::from_secs(1));
    assert!(dropped.is_err(), "the finding is true: not even a local client gets through");
    let found = check(&a, &[]);
    let mend = found.finding("input-default-deny")["mend"].as_str().expect("a command");
    a.must(&mend.split(' ').collect::<Vec<_>>());
    settled(&a);
    assert_eq!(check(&a, &[]).ids(), [""; 0], "a firewall that lets answers in is in nobody's way");
    assert!(a.connect("10.96.0.50:80").is_ok(), "the command mends it");
    a.must(&["iptables-nft", "-F", "INPUT"]);
    a.must(&["iptables-nft", "-P", "INPUT", "ACCEPT"]);
    settled(&a);
    agent.kill();
    assert!(check(&a, &[]).ids().contains(&"own-leftovers:problem".to_owned()));
}

/// Runs the commands of a finding as an operator would.
fn carry_out(node: &Node, mend: &str) {
    node.must(&["env", &lock_file(node), "sh", "-ec", mend]);
}

#[test]
fn a_firewall_in_the_other_back_end_is_found_and_mended() {
    for (backend, other) in [("nft", "legacy"), ("legacy", "nft")] {
        let lab = Lab::new(&format!("other-{backend}"));
        let (a, b) = (lab.node("a"), lab.node("b"));
        let pod = a.pod("client");
        let _server = Server::greeting(&b, 7000, "hello");
        let rules = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate \
             RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n";
        restore(&a, other, rules);
        let manifest = objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
        let agent = Agent::on(&a).backend(backend).manifest("greet.json", &manifest).start();
        let args = ["--iptables-backend", backend];
        assert!(pod.connect_within("10.96.0.50:80", std::time::Duration::from_secs(1)).is_err());
        let found = check(&a, &args);
        found.says("input-default-deny", &format!("{other} ipv4, chain INPUT"));
        let warned = agent.status()["warnings"].to_string();
        assert!(warned.contains(&format!("{other} ipv4, chain INPUT")), "{warned}");
        carry_out(&a, found.finding("input-default-deny")["mend"].as_str().expect("a command"));
        assert!(pod.connect("10.96.0.50:80").is_ok(), "the command mends it");
        assert_eq!(
            pod.connect_within("10.96.7.7:80", std::time::Duration::from_secs(2)).err(),
            Some(nix::errno::Errno::ECONNREFUSED)
        );
        assert!(!check(&a, &args).ids().iter().any(|id| id.starts_with("input-default-deny")));
    }
}

#[test]
fn a_forward_chain_without_a_way_through_and_a_route_to_nowhere_are_found() {
    let lab = Lab::new("nowhere");
    let a = lab.node("a");
    restore(&a, "nft", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    a.ip("route add blackhole 10.96.0.0/16\nroute add unreachable fd00:10:96::/64\n");
    let mut found = check(&a, &[]);
    assert_eq!(
        found.ids(),
        ["forward-default-deny:warning", "range-swallowed:warning", "range-swallowed:warning"]
    );
    while let Some(one) = found.findings.first() {
        let left = found.findings.len();
        carry_out(&a, one["mend"].as_str().expect("a command"));
        found = check(&a, &[]);
        assert!(found.findings.len() < left, "{:?}", found.findings);
    }
}

#[test]
fn a_held_lock_is_found_with_its_holder() {
    let lab = Lab::new("lock");
    let a = lab.node("a");
    let file = lock_file(&a);
    let path = file.split_once('=').expect("a path").1;
    let mut holder = a.spawn(&["flock", path, "sleep", "60"]);
    lab::eventually("the lock", std::time::Duration::from_secs(5), || {
        (a.run(&["flock", "-n", path, "true"]).code != 0).then_some(())
    });
    let found = check(&a, &["--iptables-backend", "legacy"]);
    assert_eq!(found.ids(), ["xtables-lock:problem"]);
    found.says("xtables-lock", "(flock)");
    assert_eq!(check(&a, &["--iptables-backend", "nft"]).ids(), ["xtables-lock:info"]);
    assert!(holder.ended().is_none());
}

#[test]
fn the_disk_the_source_and_the_back_end_are_looked_at() {
    let lab = Lab::new("rest");
    let a = lab.node("a");
    let mounted = |options: &str| {
        let dir = lab.dir().join("mnt");
        std::fs::create_dir_all(&dir).expect("a folder");
        let dir = dir.display();
        // The first mount is for the folder itself, so that the check's own arguments name it.
        let line = format!(
            "mount -t tmpfs -o size=64k,mode=700 none {dir} && mount -o remount,{options} {dir} && \
             exec {} check -o json --state-dir {dir}",
            lab::PROGRAM
        );
        Checked::of(&a.run(&["unshare", "-m", "sh", "-c", &line])).ids()
    };
    assert_eq!(mounted("ro"), ["state-dir:problem"]);
    assert_eq!(mounted("rw"), ["disk-full:warning"]);

    let source = ["--source", "metaserver", "--metaserver", "http://127.0.0.1:10550"];
    let found = check(&a, &source);
    assert_eq!(found.ids(), ["source-unreachable:problem"]);
    found.says("source-unreachable", "10550");
    let _meta = Server::greeting(&a, 10550, "");
    assert_eq!(check(&a, &source).ids(), [""; 0]);

    restore(&a, "legacy", "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n");
    assert_eq!(check(&a, &[]).ids(), [""; 0]);
    assert_eq!(check(&a, &["--iptables-backend", "nft"]).ids(), ["backend-mismatch:warning"]);
}
