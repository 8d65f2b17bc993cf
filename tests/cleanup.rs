//! `edgesplice cleanup` on real rules, in network namespaces. Needs root; fails without.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cleanup/space.rs"]
mod space;

use std::fs;
use std::path::Path;
use std::process::Command;

use edgesplice::rules::apply::HostTools;
use edgesplice::rules::legacy;
use serde_json::json;
use space::{Outcome, Space, fixture, joined, text, without, without_comments};

const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// Every chain that any version made, with its exact name.
const CHAINS: &[&str] = &[
    "EDGEMESH_OUTBOUND",
    "EDGEMESH_OUTBOUND_DNS",
    "EDGEMESH_OUTBOUND_REDIRECT",
    "EDGE-MESH",
    "EDGE-MESH-TCP",
    "EDGEMESH-PORTALS-CONTAINER",
    "EDGEMESH-PORTALS-HOST",
    "EDGEMESH-NODEPORT-CONTAINER",
    "EDGEMESH-NODEPORT-HOST",
    "EDGEMESH-NODEPORT-NON-LOCAL",
    "KUBE-PORTALS-CONTAINER",
    "KUBE-PORTALS-HOST",
    "KUBE-NODEPORT-CONTAINER",
    "KUBE-NODEPORT-HOST",
    "KUBE-NODEPORT-NON-LOCAL",
];

/// Rules of a fixture without counters and without table `filter`'s head, to be put on top of others.
fn on_top(name: &str) -> String {
    let path = format!("{}/tests/fixtures/edgemesh/{name}.rules", env!("CARGO_MANIFEST_DIR"));
    let rules = fs::read_to_string(path).unwrap();
    let keep = |line: &&str| line.contains("MESH") || line.starts_with('*') || *line == "COMMIT";
    joined(rules.lines().filter(keep))
}

#[test]
fn every_version_goes_and_everything_else_stays_byte_for_byte() {
    for (name, version) in [
        ("f1_pod", "EdgeMesh of KubeEdge v1.0.0 to v1.2.1"),
        ("f2", "EdgeMesh of KubeEdge v1.3.0 to v1.7.x"),
        ("f3", "EdgeMesh v1.7.0"),
        ("f4", "EdgeMesh v1.8.0"),
        ("f5", "EdgeMesh v1.9.0"),
        ("f6", "EdgeMesh v1.10.0 to v1.11.0"),
        ("f7", "EdgeMesh v1.12.0 to v1.17.0"),
        ("f7_hybrid", "EdgeMesh v1.12.0 to v1.17.0"),
    ] {
        for backend in BACKENDS {
            let space = Space::new();
            space.load(backend, &fixture(name));
            let (before, policies) = (space.save(backend), space.policies(backend));
            // The hybrid has a chain that looks like EdgeMesh's, which stays and is named.
            let code = if name == "f7_hybrid" { 2 } else { 0 };
            let done = space.cleanup(&[]).exits(code);
            assert_eq!(space.save(backend), without(&before, CHAINS), "{name} {backend}");
            assert!(backend == "legacy" || space.policies(backend) == policies, "{name}");
            assert_eq!(done.json["versions"], json!([version]), "{name} {backend}");

            let backup = done.json["backup"].as_str().unwrap().to_owned();
            let again = space.cleanup(&[]).exits(code);
            assert_eq!(again.json["backup"], json!(null), "{name} {backend}");
            assert!(again.all("removedRules").is_empty() && again.all("removedChains").is_empty());

            let files: Vec<_> =
                fs::read_dir(&backup).unwrap().map(|file| file.unwrap().file_name()).collect();
            assert_eq!(files, [format!("{backend}-ipv4.rules").as_str()]);
            space.sh(done.json["restore"].as_str().unwrap());
            assert_eq!(space.save(backend), before, "{name} {backend} after the restore");
            assert_eq!(space.policies(backend), policies, "{name} {backend} after the restore");
        }
    }
}

#[test]
fn what_is_not_edgemeshs_is_left_alone() {
    for name in ["f8", "f1_host"] {
        for backend in BACKENDS {
            for args in [&[][..], &["--force"]] {
                let space = Space::new();
                space.load(backend, &fixture(name));
                let before = space.save(backend);
                let done = space.cleanup(args).exits(2);
                assert_eq!(space.save(backend), before, "{name} {backend}");
                assert_eq!(done.json["backup"], json!(null));
                assert!(!done.all("kept").is_empty());
            }
        }
    }
    let space = Space::new();
    space.load("nft", &fixture("f1_host"));
    let before = space.save("nft");
    space.cleanup(&["--host-manual-rules"]).exits(0);
    assert_eq!(space.save("nft"), without(&before, &["PORT-MAP"]));
}

#[test]
fn generations_piled_up_in_both_back_ends_go_at_once() {
    let space = Space::new();
    let mut before = Vec::new();
    for backend in BACKENDS {
        space.load(backend, &fixture("f7_hybrid"));
        let clean = without(&space.save(backend), CHAINS);
        for name in ["f6", "f5", "f4", "f3", "f2", "f3", "f5"] {
            // Version upon version flushes the chain but piles up jumps, with rules twice.
            space.add(backend, &on_top(name));
        }
        space.add(
            backend,
            "*nat\n-I PREROUTING -d 9.251.0.0/16 -i cni0 -p tcp -j EDGE-MESH\n-I OUTPUT -d 10.10.0.0/16 -p tcp -j EDGE-MESH\n\
             -A EDGE-MESH -p tcp -j DNAT --to-destination 10.22.0.1:40003\n\
             -A EDGE-MESH -p tcp -j DNAT --to-destination 10.22.0.1:40003\nCOMMIT\n",
        );
        before.push(clean);
    }
    let done = space.cleanup(&[]).exits(2);
    for (backend, before) in BACKENDS.iter().zip(before) {
        assert_eq!(space.save(backend), before, "{backend}");
    }
    let kept: Vec<String> = done.all("kept");
    assert_eq!(kept, ["-N EDGE-MESH-CUSTOM", "-N EDGE-MESH-CUSTOM"]);
    let backup = Path::new(done.json["backup"].as_str().unwrap());
    assert!(backup.join("nft-ipv4.rules").exists() && backup.join("legacy-ipv4.rules").exists());
    assert!(!backup.join("nft-ipv6.rules").exists());
}

#[test]
fn a_cut_between_any_two_steps_is_mended_by_the_next_run() {
    for backend in BACKENDS {
        for done in 0.. {
            let space = Space::new();
            space.load(backend, &fixture("f7_hybrid"));
            space.add(backend, &on_top("f6"));
            space.sh("ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0");
            let clean = without(&space.save(backend), CHAINS);
            let total = first_steps(&space, done);
            space.cleanup(&[]).exits(2);
            assert_eq!(space.save(backend), clean, "{backend} after {done} steps");
            assert!(!space.sh("ip link").contains("edgemesh0"));
            if done == total {
                break;
            }
        }
    }
}

/// Carries out the first steps of a cleanup, and returns how many there are.
fn first_steps(space: &Space, count: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = space.path();
    runtime
        .block_on(legacy::within(path.as_ref(), move || async move {
            let (roots, options) = (legacy::Roots::default(), legacy::Options::default());
            let facts = legacy::facts(&HostTools, &roots, &options).await.unwrap();
            let plan = legacy::plan(&facts, &options);
            let steps = legacy::steps(&plan);
            let context = legacy::Context { firewall: &HostTools, roots: &roots, facts: &facts, plan: &plan };
            for step in steps.iter().take(count) {
                context.execute(step).await.unwrap();
            }
            steps.len()
        }))
        .unwrap()
}

#[test]
fn a_strangers_rule_in_a_chain_of_edgemesh_keeps_it() {
    for backend in BACKENDS {
        let space = Space::new();
        space.load(backend, &fixture("f5"));
        space.add(backend, "*nat\n-A EDGE-MESH -s 10.9.9.9/32 -m comment --comment \"site \\\"rule\\\"\" -j ACCEPT\nCOMMIT\n");
        let before = space.save(backend);
        for args in [&[][..], &["--force"]] {
            let done = space.cleanup(args).exits(2);
            assert_eq!(space.save(backend), before);
            assert!(done.all("kept").iter().any(|rule| rule.contains("10.9.9.9")), "{:#}", done.json);
        }
    }
}

#[test]
fn all_that_stays_with_a_strangers_rule_is_named() {
    for backend in BACKENDS {
        let space = Space::new();
        space.load(backend, &fixture("f6"));
        space.add(backend, "*nat\n-A EDGEMESH-PORTALS-HOST -s 10.9.9.9/32 -j RETURN\nCOMMIT\n");
        let done = space.cleanup(&[]).exits(2);
        let left = space.sh(&format!("iptables-{backend}-save"));
        // The chain, its jump, EdgeMesh's six rules and the stranger's.
        let mut stays: Vec<_> = left.lines().filter(|line| line.contains("EDGEMESH")).collect();
        assert_eq!(stays.len(), 9, "{left}");
        stays.retain(|line| !line.starts_with(':'));
        stays.push("-N EDGEMESH-PORTALS-HOST");
        assert_eq!(done.all("kept"), stays, "{backend}");
        assert_eq!(space.cleanup(&[]).exits(2).all("kept"), stays, "{backend}");
    }
}

#[test]
fn a_strangers_jump_goes_only_with_force() {
    for backend in BACKENDS {
        let space = Space::new();
        space.load(backend, &fixture("f4"));
        let clean = space.save(backend);
        let jump = "-A DOCKER -s 10.9.9.9/32 -j EDGE-MESH";
        space.add(backend, &format!("*nat\n{jump}\nCOMMIT\n"));
        let before = space.save(backend);
        let done = space.cleanup(&[]).exits(2);
        let mut left: Vec<_> = space.save(backend).lines().map(str::to_owned).collect();
        left.retain(|line| line != ":EDGE-MESH -" && !line.ends_with(jump));
        assert_eq!(joined(left.iter().map(String::as_str)), without(&clean, CHAINS));
        assert_eq!(done.all("kept"), [jump, "-N EDGE-MESH"]);
        space.sh(done.json["restore"].as_str().unwrap());
        assert_eq!(space.save(backend), before);
        space.cleanup(&["--force"]).exits(0);
        assert_eq!(space.save(backend), without(&before, CHAINS));
    }
}

#[test]
fn edgemeshs_rules_lose_their_effect_although_a_strangers_jump_stays() {
    for backend in BACKENDS {
        let mut space = Space::new();
        space.load(backend, &fixture("f5"));
        // Every connection passes the stranger's jump as well.
        let own = "*nat\n:MYCHAIN - [0:0]\n-A OUTPUT -j MYCHAIN\n-A MYCHAIN -s 10.96.5.5/32 -p tcp -j EDGE-MESH\nCOMMIT\n";
        space.add(backend, own);
        space.sh("ip addr add 10.96.5.5/32 dev lo; ip link add docker0 type bridge; ip link set docker0 up
             ip addr add 172.17.0.1/16 dev docker0; ip route add 10.96.0.0/12 via 172.17.0.1");
        space.start("socat TCP-LISTEN:80,bind=10.96.5.5,fork,reuseaddr SYSTEM:'echo here'");
        space.wait_for("10.96.5.5:80");
        let ask = "socat -T 2 -u TCP:10.96.5.5:80,connect-timeout=2 - 2>/dev/null || echo dead";
        assert_eq!(space.sh(ask), "dead\n", "{backend}");
        let (dry, before) = (space.cleanup(&["--dry-run"]).exits(2), space.save(backend));
        let done = space.cleanup(&[]).exits(2);
        assert_eq!(dry.json["rulesets"], done.json["rulesets"], "{backend}");
        assert_eq!(space.sh(ask), "here\n", "{backend}");
        let rules = space.sh(&format!("iptables-{backend}-save -t nat"));
        let edgemesh: Vec<_> = rules.lines().filter(|line| line.contains("EDGE-MESH")).collect();
        let jump = "-A MYCHAIN -s 10.96.5.5/32 -p tcp -j EDGE-MESH";
        assert_eq!(edgemesh, [":EDGE-MESH - [0:0]", jump], "{backend}");
        assert_eq!(done.all("removedChains"), ["EDGE-MESH-TCP"], "{backend}");
        let mut kept = done.all("kept");
        kept.sort();
        assert_eq!(kept, [jump, "-N EDGE-MESH"], "{backend}");
        let said = format!("{:#}", done.json);
        assert!(said.contains("rules in MYCHAIN lead to it") && said.contains("--force"), "{said}");
        assert_eq!(done.items("routes"), ["10.96.0.0/12 via 172.17.0.1 dev docker0: removed"]);
        // A second look finds the same, and nothing to do.
        let again = space.cleanup(&[]).exits(2);
        assert_eq!(again.all("kept"), done.all("kept"));
        assert!(again.json["backup"].is_null() && again.all("removedRules").is_empty(), "{:#}", again.json);
        space.sh(done.json["restore"].as_str().unwrap());
        // What was sent meanwhile has moved the counters.
        let uncounted = |rules: &str| {
            let lines = rules.lines().map(|line| line.split_once("] ").map_or(line, |(_, rule)| rule));
            joined(lines)
        };
        assert_eq!(uncounted(&space.save(backend)), uncounted(&before), "{backend}");
        // The way out that was named.
        space.sh(&format!("iptables-{backend} -t nat -F MYCHAIN"));
        space.cleanup(&[]).exits(0);
        assert!(!space.save(backend).contains("EDGE-MESH"), "{backend}");
    }
}

#[test]
fn a_strangers_jump_is_told_apart_in_ipv6_as_well() {
    let rules = "*nat\n:EDGE-MESH - [0:0]\n:EDGE-MESH-TCP - [0:0]\n:MYCHAIN - [0:0]\n\
        -A OUTPUT -m comment --comment \"edgemesh root chain\" -j EDGE-MESH\n\
        -A EDGE-MESH -d fd96::/108 -p tcp -m comment --comment \"tcp service proxy\" -j EDGE-MESH-TCP\n\
        -A EDGE-MESH-TCP -p tcp -j DNAT --to-destination [fd17::1]:40001\n\
        -A MYCHAIN -s fd01::1/128 -p tcp -j EDGE-MESH\nCOMMIT\n";
    for backend in BACKENDS {
        let space = Space::new();
        let path = space.folder.path().join("rules");
        fs::write(&path, rules).unwrap();
        space.sh(&format!("ip6tables-{backend}-restore < {}", path.display()));
        let mesh = || {
            let saved = space.sh(&format!("ip6tables-{backend}-save -t nat"));
            joined(saved.lines().filter(|line| line.contains("EDGE-MESH")))
        };
        let done = space.cleanup(&[]).exits(2);
        let jump = "-A MYCHAIN -s fd01::1/128 -p tcp -j EDGE-MESH";
        assert_eq!(mesh(), format!(":EDGE-MESH - [0:0]\n{jump}\n"), "{backend}");
        assert_eq!(done.all("kept"), [jump, "-N EDGE-MESH"], "{backend}");
        space.cleanup(&["--force"]).exits(0);
        assert_eq!(mesh(), "", "{backend}");
    }
}

#[test]
fn rules_that_are_hard_to_read_survive() {
    let hard = "*nat\n\
        -A PREROUTING -p tcp -m comment --comment \"-j EDGE-MESH\" -j ACCEPT\n\
        -A PREROUTING -p tcp -m comment --comment \"it's \\\"quoted\\\" \\\\ and #marked\" -j RETURN\n\
        -A OUTPUT -p tcp -m string --string \"-A OUTPUT -j EDGE-MESH\" --algo bm -j RETURN\n\
        -A OUTPUT -p udp -m u32 --u32 \"0x0=0x0\" -j RETURN\n\
        -A OUTPUT -p tcp -m comment --comment -j -m multiport --dports 80,443 -j LOG --log-prefix \"-j EDGE-MESH \"\n\
        COMMIT\n";
    for backend in BACKENDS {
        let space = Space::new();
        space.load(backend, &fixture("f5"));
        space.add(backend, hard);
        let before = space.save(backend);
        // The one whole word that the comparison would trip over stands in these comments.
        let expected = joined(before.lines().filter(|line| {
            let hard = line.contains("\"-j EDGE-MESH") || line.contains("--string");
            hard || without(line, CHAINS) == format!("{line}\n")
        }));
        space.cleanup(&[]).exits(0);
        assert_eq!(space.save(backend), expected, "{backend}");
    }
}

#[test]
fn what_is_alive_is_refused_without_force() {
    for (name, target) in [("f5", "169.254.96.16:40001"), ("f7", "169.254.96.16:33127")] {
        let mut space = Space::new();
        space.load("nft", &fixture(name));
        space.sh("ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0; ip link set edgemesh0 up");
        let (address, port) = target.split_once(':').unwrap();
        space.start(&format!("socat TCP-LISTEN:{port},bind={address},fork SYSTEM:true"));
        space.wait_for(target);
        let before = space.save("nft");
        for args in [&[][..], &["--dry-run"]] {
            let done = space.cleanup(args).exits(2);
            assert_eq!(space.save("nft"), before);
            assert!(done.json["refused"][0].as_str().unwrap().contains(target), "{:#}", done.json);
            assert_eq!(done.items("links"), ["edgemesh0: kept"]);
        }
        space.cleanup(&["--force"]).exits(0);
        assert_eq!(space.save("nft"), without(&before, CHAINS));
        assert!(!space.sh("ip link").contains("edgemesh0"));
    }
}

#[test]
fn an_agent_of_edgemesh_in_this_namespace_is_alive() {
    let mut space = Space::new();
    space.load("nft", &fixture("f4"));
    let program = space.folder.path().join("edgemesh-agent");
    fs::copy(text(&Command::new("which").arg("sleep").output().unwrap().stdout).trim(), &program).unwrap();
    // Elsewhere it is none of our business.
    let mut other = Space::new();
    other.start(&format!("{} 60", program.display()));
    std::thread::sleep(std::time::Duration::from_millis(200));
    space.cleanup(&["--dry-run"]).exits(0);
    space.start(&format!("{} 60", program.display()));
    std::thread::sleep(std::time::Duration::from_millis(200));
    let done = space.cleanup(&[]).exits(2);
    assert!(done.json["refused"][0].as_str().unwrap().contains("edgemesh-agent"));
}

#[test]
fn a_dry_run_changes_nothing() {
    let space = Space::new();
    for backend in BACKENDS {
        space.load(backend, &fixture("f6"));
    }
    space.sh("ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0");
    let before = [space.save("nft"), space.save("legacy"), space.sh("ip -o addr; ip route")];
    let backup = space.folder.path().join("backup");
    let done = space.cleanup(&["--dry-run", "--backup", backup.to_str().unwrap()]).exits(0);
    assert_eq!(before, [space.save("nft"), space.save("legacy"), space.sh("ip -o addr; ip route")]);
    assert!(!backup.exists() && !space.folder.path().join("state").exists());
    assert_eq!(done.json["dryRun"], json!(true));
    assert_eq!(done.json["backup"], json!(null));
    assert_eq!(done.all("removedChains").len(), 10);
    assert_eq!(done.items("links"), ["edgemesh0: removed"]);
}

#[test]
fn an_earlier_backup_is_never_written_over() {
    let space = Space::new();
    let wanted = space.folder.path().join("backup");
    let mut folders = Vec::new();
    for name in ["f2", "f4"] {
        space.load("nft", &fixture(name));
        let done = space.cleanup(&["--backup", wanted.to_str().unwrap()]).exits(0);
        folders.push(done.json["backup"].as_str().unwrap().to_owned());
    }
    assert_eq!(folders, [wanted.display().to_string(), wanted.join("2").display().to_string()]);
    assert!(fs::read_to_string(wanted.join("nft-ipv4.rules")).unwrap().contains("9.251.0.0/16"));
}

#[test]
fn looking_makes_no_tables() {
    let space = Space::new();
    let done = space.cleanup(&[]).exits(0);
    assert_eq!(done.json["rulesets"], json!([]));
    assert_eq!(
        space.sh("cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names"),
        ""
    );
    assert_eq!(space.sh("nft list ruleset"), "");
}

#[test]
fn a_table_that_iptables_cannot_read_is_reported_and_kept() {
    let space = Space::new();
    space.load("legacy", &fixture("f2"));
    space.sh("nft 'add table ip nat; add chain ip nat mine { type nat hook prerouting priority -90; }; add rule ip nat mine tcp dport 5 counter redirect to :6'");
    let (before, legacy) = (space.sh("nft list ruleset"), space.save("legacy"));
    let done = space.cleanup(&[]).exits(0);
    assert_eq!(space.sh("nft list ruleset"), before);
    assert_eq!(space.save("legacy"), without(&legacy, CHAINS));
    assert_eq!(done.all("kept"), ["*nat"], "{:#}", done.json);
}

#[test]
fn edgemesh_in_a_table_that_iptables_cannot_read_is_an_open_end() {
    let space = Space::new();
    space.load("nft", &fixture("f6"));
    space.sh("nft add rule ip nat PREROUTING tcp option maxseg size 5 counter");
    for _ in 0..2 {
        let done = space.cleanup(&[]).exits(2);
        assert_eq!(done.all("kept"), ["*nat"], "{:#}", done.json);
        assert!(space.sh("nft list table ip nat").contains("EDGEMESH"));
    }
    let handle = space.sh("nft -a list chain ip nat PREROUTING | sed -n 's/.*maxseg.*handle //p'");
    space.sh(&format!("nft delete rule ip nat PREROUTING handle {handle}"));
    space.cleanup(&[]).exits(0);
    assert!(!space.sh("nft list ruleset").contains("EDGEMESH"));
}

#[test]
fn a_missing_back_end_is_passed_over() {
    let space = Space::new();
    space.load("legacy", &fixture("f3"));
    let before = space.save("legacy");
    let tools = space.folder.path().join("bin");
    fs::create_dir(&tools).unwrap();
    for program in ["iptables-legacy-save", "iptables-legacy-restore"] {
        let found = text(&Command::new("which").arg(program).output().unwrap().stdout);
        std::os::unix::fs::symlink(found.trim(), tools.join(program)).unwrap();
    }
    let line = format!(
        "PATH={} exec {} cleanup -o json --state-dir {}",
        tools.display(),
        env!("CARGO_BIN_EXE_edgesplice"),
        tools.display()
    );
    Outcome::of(&space.command("sh", &["-c", &line]).output().unwrap()).exits(0);
    assert_eq!(space.save("legacy"), without(&before, CHAINS));
}

#[test]
fn a_held_lock_is_waited_for_and_then_named() {
    let mut space = Space::new();
    space.load("legacy", &fixture("f3"));
    let before = space.save("legacy");
    let lock = space.folder.path().join("xtables.lock");
    space.start(&format!("flock {} sleep 60", lock.display()));
    std::thread::sleep(std::time::Duration::from_millis(300));
    let start = std::time::Instant::now();
    let done = space.cleanup(&[]).exits(1);
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    assert!(done.stderr.contains("lock") && done.stderr.contains("run cleanup again"), "{}", done.stderr);
    assert_eq!(space.save("legacy"), before);
}

#[test]
fn links_and_routes_of_edgemesh_go_and_others_stay() {
    let space = Space::new();
    space.sh(
        "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up
         ip route add 9.251.0.0/16 via 172.17.0.1 dev docker0
         ip route add 10.96.0.0/12 via 172.17.0.1 dev docker0
         ip route add 10.77.0.0/16 via 172.17.0.9 dev docker0
         ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0; ip link set edgemesh0 up
         ip link add edge0 type bridge; ip addr add 9.251.0.1/32 dev edge0
         ip tuntap add edge_tun0 mode tun; ip addr add 10.50.0.1/24 dev edge_tun0; ip link set edge_tun0 up
         ip link add edge-dummy0 type bridge; ip addr add 169.254.30.10/32 dev edge-dummy0",
    );
    space.load("nft", &fixture("f3"));
    let done = space.cleanup(&[]).exits(2);
    let links = space.sh("ip -o link");
    assert!(!links.contains("edgemesh0") && !links.contains("edge_tun0"), "{links}");
    assert!(links.contains("edge-dummy0") && links.contains("edge0") && links.contains("docker0"), "{links}");
    let routes = space.sh("ip route");
    assert!(
        !routes.contains("9.251")
            && !routes.contains("10.96")
            && routes.contains("10.77.0.0/16 via 172.17.0.9")
    );
    assert_eq!(
        done.items("routes"),
        [
            "9.251.0.0/16 via 172.17.0.1 dev docker0: removed",
            "10.96.0.0/12 via 172.17.0.1 dev docker0: removed"
        ]
    );
    let again = space.cleanup(&[]).exits(2);
    assert_eq!(again.items("links"), ["edge0: kept"]);
}

#[test]
fn a_bridge_with_members_stays() {
    let space = Space::new();
    space.sh("ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0
         ip link add v0 type veth peer name v1; ip link set v0 master edgemesh0");
    let done = space.cleanup(&["--force"]).exits(2);
    assert_eq!(done.items("links"), ["edgemesh0: kept"]);
    assert!(space.sh("ip link").contains("edgemesh0"));
}

#[test]
fn connections_to_a_dead_proxy_are_forgotten() {
    let mut space = Space::new();
    space.sh(
        "ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0; ip link set edgemesh0 up
         ip link add v7 type veth peer name v8; ip link set v7 up; ip link set v8 up
         ip addr add 192.168.7.1/24 dev v7; ip route add default via 192.168.7.2",
    );
    space.load("nft", &fixture("f7"));
    space.add("nft", "*nat\n-A OUTPUT -d 10.5.5.5/32 -p udp -m udp --dport 99 -j DNAT --to-destination 192.168.7.1:98\nCOMMIT\n");
    space.start("socat -u UDP-RECV:98,bind=192.168.7.1 /dev/null");
    space.wait_for("192.168.7.1:98");
    space.sh("echo x | socat - UDP-SENDTO:10.96.0.10:53,bind=169.254.96.16; echo x | socat - UDP-SENDTO:10.5.5.5:99,bind=192.168.7.1");
    let entries = space.sh("conntrack -L 2>/dev/null");
    assert!(entries.contains("dst=10.96.0.10") && entries.contains("dst=10.5.5.5"), "{entries}");
    let done = space.cleanup(&[]).exits(0);
    assert_eq!(done.json["conntrackDeleted"], json!(1), "{:#}", done.json);
    let entries = space.sh("conntrack -L 2>/dev/null");
    assert!(!entries.contains("dst=10.96.0.10") && entries.contains("dst=10.5.5.5"), "{entries}");
}

#[test]
fn files_and_dead_name_servers_go() {
    let space = Space::new();
    space
        .sh("ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up");
    // Folders of its own in front of the machine's, seen by this command and its children alone.
    let state = space.folder.path().join("state");
    let line = format!(
        "mount --make-rprivate /; for d in /etc /run /opt; do mount -t tmpfs none $d; done
         mkdir -p /etc/kubeedge/edgemesh/agent /etc/kubeedge/config /opt/cni/bin /etc/cni/net.d /etc/edgemesh/config
         echo rule > /run/edgemesh-iptables; echo key > /etc/kubeedge/edgemesh/agent/server.key
         touch /etc/kubeedge/config/edgecore.yaml /opt/cni/bin/egdemesh-cni /opt/cni/bin/bridge
         touch /etc/cni/net.d/10-edgemesh-cni.conflist /etc/cni/net.d/10-mynet.conf /etc/edgemesh/config/10-edgemesh-cni.conflist
         printf 'nameserver 172.17.0.1\\nnameserver 192.168.5.1\\nsearch lan\\n\\n' > /etc/resolv.conf
         {} cleanup -o json --state-dir {} >&2
         find /etc /run /opt -type f; cat /etc/resolv.conf",
        env!("CARGO_BIN_EXE_edgesplice"),
        state.display()
    );
    let output = space.command("unshare", &["-m", "sh", "-ec", &line]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let left = text(&output.stdout);
    assert!(left.ends_with("nameserver 192.168.5.1\nsearch lan\n\n"), "{left}");
    for stays in ["/etc/kubeedge/config/edgecore.yaml", "/opt/cni/bin/bridge", "/etc/cni/net.d/10-mynet.conf"]
    {
        assert!(left.contains(stays), "{stays}: {left}");
    }
    assert!(!left.contains("edgemesh") && !left.contains("egdemesh"), "{left}");
    let json: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), 6);
    let backup = Path::new(json["backup"].as_str().unwrap());
    assert_eq!(
        fs::read_to_string(backup.join("files/etc/kubeedge/edgemesh/agent/server.key")).unwrap(),
        "key\n"
    );
    assert!(fs::read_to_string(backup.join("files/etc/resolv.conf")).unwrap().contains("172.17.0.1"));
}

#[test]
fn a_name_server_that_answers_or_stands_behind_a_link_stays() {
    let mut space = Space::new();
    space
        .sh("ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up");
    let run = |space: &Space, setup: &str| {
        let line = format!(
            "mount --make-rprivate /; mount -t tmpfs none /etc; {setup}
             {} cleanup -o json --state-dir {} || echo $? >&2; cat /etc/resolv.conf >&2",
            env!("CARGO_BIN_EXE_edgesplice"),
            space.folder.path().display()
        );
        let output = space.command("unshare", &["-m", "sh", "-c", &line]).output().unwrap();
        (serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), text(&output.stderr))
    };
    let linked = "echo nameserver 172.17.0.1 > /etc/stub; ln -s stub /etc/resolv.conf";
    let (json, said) = run(&space, linked);
    assert_eq!(said, "2\nnameserver 172.17.0.1\n");
    assert!(json["files"][0]["reason"].as_str().unwrap().contains("stub"));
    space.start("socat UDP-RECVFROM:53,bind=172.17.0.1,fork SYSTEM:cat");
    space.wait_for("172.17.0.1:53");
    let (json, said) = run(&space, "echo nameserver 172.17.0.1 > /etc/resolv.conf");
    assert_eq!(said, "nameserver 172.17.0.1\n");
    assert_eq!(json["files"][0]["action"], json!("kept"));
}

#[test]
fn rules_in_pods_go_on_demand() {
    let (node, mut pod) = (Space::new(), Space::new());
    pod.load("legacy", &fixture("f1_pod"));
    let before = pod.save("legacy");
    pod.start("sleep 60");
    node.cleanup(&["--dry-run"]).exits(0);
    assert_eq!(pod.save("legacy"), before);
    // Only this pod is to be seen: not those of other tests, not the machine's.
    let folder = node.folder.path();
    fs::create_dir_all(folder.join("var/run/netns")).unwrap();
    std::os::unix::fs::symlink(pod.path(), folder.join("var/run/netns/pod1")).unwrap();
    let roots = legacy::Roots { files: folder.into(), processes: folder.join("proc") };
    let request =
        legacy::Request { backup: folder.join("backup"), pod_netns: true, ..legacy::Request::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = node.path();
    let report = runtime
        .block_on(legacy::within(path.as_ref(), move || async move {
            legacy::clean(&HostTools, &roots, &request).await.unwrap()
        }))
        .unwrap();
    assert_eq!(pod.save("legacy"), without(&before, CHAINS));
    let [ruleset] = &report.rulesets[..] else { panic!("{report:#?}") };
    assert_eq!(ruleset.netns.as_deref(), Some("netns-pod1"));
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let saved = fs::read_to_string(folder.join("backup/netns-pod1/legacy-ipv4.rules")).unwrap();
    assert_eq!(without_comments(&saved), before);
    node.sh(report.restore.as_deref().unwrap());
    assert_eq!(pod.save("legacy"), before);
}

#[test]
fn own_leftovers_go_unless_an_agent_is_at_work() {
    let mut space = Space::new();
    let own = "*nat\n:EDGESPLICE - [0:0]\n-A OUTPUT -m comment --comment edgesplice -j EDGESPLICE\n\
        -A EDGESPLICE -p tcp -m set --match-set edgesplice-t dst,dst -m comment --comment edgesplice -j RETURN\nCOMMIT\n";
    space.sh("ipset create edgesplice-t hash:ip,port; ipset create other hash:ip; ip link add br9 type bridge; ip addr add 10.1.1.1/24 dev br9; ip link set br9 up");
    space.sh(
        "ip route add 10.96.0.0/12 dev lo proto 237; ip rule add fwmark 7 table 77 priority 500 protocol 237",
    );
    space.load("nft", &fixture("f2"));
    let clean = without(&space.save("nft"), CHAINS);
    space.add("nft", own);
    space.start("socat ABSTRACT-LISTEN:edgesplice SYSTEM:true");
    space.wait_for("@edgesplice");
    // EdgeMesh's go even while our own agent is at work.
    let done = space.cleanup(&[]).exits(2);
    assert!(space.save("nft").contains("-j EDGESPLICE") && !space.save("nft").contains("EDGE-MESH"));
    assert_eq!(done.items("sets"), ["edgesplice-t: kept"]);
    let done = space.cleanup(&["--force"]).exits(0);
    assert_eq!(space.save("nft"), clean);
    assert_eq!(done.items("sets"), ["edgesplice-t: removed"]);
    assert_eq!(space.sh("ipset list -n"), "other\n");
    assert!(!space.sh("ip route; ip rule").contains("237") && !space.sh("ip rule").contains("fwmark"));
}

#[test]
fn wrong_flags_and_missing_rights_are_said() {
    let space = Space::new();
    space.cleanup(&["--no-such-flag"]).exits(64);
    space.cleanup(&["--mesh-address", "nonsense"]).exits(64);
    // The build folder need not be open to others.
    let program = space.folder.path().join("edgesplice");
    fs::copy(env!("CARGO_BIN_EXE_edgesplice"), &program).unwrap();
    let line = format!(
        "chmod 755 {}; exec setpriv --reuid 65534 --clear-groups {} cleanup",
        space.folder.path().display(),
        program.display()
    );
    let done = Outcome::of(&space.command("sh", &["-c", &line]).output().unwrap()).exits(1);
    assert!(done.stderr.contains("root"), "{}", done.stderr);
}

#[test]
fn the_agent_can_ask_what_is_stale() {
    let space = Space::new();
    space.load("legacy", &fixture("f5"));
    space.load("nft", &fixture("f8"));
    space.sh("ip link add edgemesh0 type bridge; ip addr add 169.254.96.16/32 dev edgemesh0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = space.path();
    let lines = runtime
        .block_on(legacy::within(path.as_ref(), || async {
            let (roots, options) = (legacy::Roots::default(), legacy::Options::default());
            legacy::stale(&legacy::facts(&HostTools, &roots, &options).await.unwrap(), &options)
        }))
        .unwrap();
    let rules = "rules of EdgeMesh v1.9.0 are still installed (legacy ipv4: EDGE-MESH, EDGE-MESH-TCP)";
    let link = "link edgemesh0 is still there: link of EdgeMesh v1.9.0 and later";
    assert_eq!(lines, [rules, link]);
}
