//! Faults of the machine and of the network around it.

use std::fs::{self, File};
use std::time::Duration;

use crate::lab::{Kind, Netns, Outcome, Server, Traffic, eventually, objects};
use crate::scene::{GREET, GREETING, PATIENCE, SOON, Scene, client, kill_worker, row, worker_after};

/// The node loses its link for a while. What is on the node itself goes on.
#[test]
fn a_link_that_goes_down_and_up() {
    let scene = Scene::new("link");
    let here = scene.a.pod("here");
    let _local = Server::greeting(&here, 7000, GREETING);
    let local = objects::pair("local", "10.96.0.54", 80, 7000, &[&here.v4]);
    let agent = scene.agent().manifest("local.json", &objects::list(local)).start();
    let near = Traffic::start(vec![client(&scene.pod, Kind::Connection, "10.96.0.54:80")]);
    let far = Traffic::start(scene.connecting());
    far.flows();
    let down = far.now();
    scene.a.ip("link set eth0 down\n");
    std::thread::sleep(Duration::from_secs(3));
    scene.a.ip("link set eth0 up\n");
    let up = far.now();
    far.flows();
    let settled = far.now();
    far.flows();
    let (near, far) = (near.end(), far.end());
    row("link down for 3 s: Services on other nodes", &far, "no way there while it is down");
    row("link down for 3 s: Services on this node", &near, "");
    near.assert_all_served(|| agent.log());
    // What began before may have been under way; what began once the first clients were served again must be served.
    let untouched = |at: Duration| at + Duration::from_secs(2) < down || at > settled;
    let lost: Vec<_> = far.failed().into_iter().filter(|asked| untouched(asked.at)).collect();
    assert!(lost.is_empty(), "down {down:?}, up {up:?}: {lost:#?}; {}", agent.log());
    assert_eq!(agent.stop(), 0);
}

/// Cuts a node off without a word, or takes it back.
fn cut_off(node: &Netns, off: bool) {
    for chain in ["INPUT", "OUTPUT"] {
        node.must(&["iptables-nft", if off { "-I" } else { "-D" }, chain, "-j", "DROP"]);
    }
}

#[test]
fn a_backend_node_that_dies_and_returns() {
    let scene = Scene::new("node");
    let agent = scene.agent().start();
    let traffic = Traffic::start(scene.connecting());
    traffic.flows();
    cut_off(&scene.b, true);
    std::thread::sleep(Duration::from_secs(5));
    traffic.flows();
    cut_off(&scene.b, false);
    let before = scene.servers[0].accepted();
    eventually("it is used again", Duration::from_mins(1), || {
        (scene.servers[0].accepted() > before + 20).then_some(())
    });
    let tally = traffic.end();
    row("one of two backend nodes dies for 5 s and returns", &tally, "connections that were open to it");
    // A connection that was made and has not been answered cannot go elsewhere; each client has one at most.
    let failed = tally.failed();
    assert!(failed.len() <= 3, "{tally}: {failed:#?}; {}", agent.log());
    let not_made = tally.count(Kind::Connection, |outcome| matches!(outcome, Outcome::Refused(_)));
    assert_eq!(not_made, 0, "{tally}; {}", agent.log());
    assert_eq!(agent.stop(), 0);
}

/// The library that gives a process another clock, as Debian packs it.
fn fake_clock() -> String {
    let folders = fs::read_dir("/usr/lib").expect("/usr/lib").flatten().map(|entry| entry.path());
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|file| file.exists());
    found.expect("libfaketime is installed by `scripts/setup.sh test`").display().to_string()
}

/// The wall clock jumps by a day and by years, forth and back: a board without a battery that finds its time server. The
/// clock that only runs forward does what it does.
#[test]
fn a_clock_that_jumps() {
    let scene = Scene::new("clock");
    let file = scene.lab.dir().join("clock");
    let set = |offset: &str| fs::write(&file, offset).expect("a file");
    set("+0");
    let library = format!("LD_PRELOAD={}", fake_clock());
    let clock = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    // The library keeps a semaphore in /dev/shm, where a confined agent and its programs write nothing. In the agent's view
    // that is another name of a folder in which they do, with `--remove-stale`.
    let view = "mount -t tmpfs tmpfs /run && mount --bind /run /dev/shm && exec \"$@\"";
    let wrapper = [
        "sh",
        "-c",
        view,
        "sh",
        "env",
        &library,
        &clock,
        "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ];
    let mut agent = scene.agent().wrapped(&wrapper).args(&["--remove-stale"]).start();
    assert!(agent.status()["hardening"]["landlock"].as_u64() > Some(0), "{}", agent.status()["hardening"]);
    let clients = scene.clients();
    let traffic = Traffic::start(clients);
    for offset in ["+1d", "-1d", "-20y", "+20y", "+0"] {
        set(offset);
        std::thread::sleep(Duration::from_millis(500));
        traffic.flows();
    }
    let worker = agent.worker();
    // A crash with the clock far back: what is on the disk is from the future then.
    set("-2y");
    traffic.flows();
    assert_eq!(agent.worker(), worker, "{}", agent.log());
    let tally = traffic.end();
    row("the wall clock jumps by days and years, forth and back, 6 times", &tally, "");
    tally.assert_all_served(|| agent.log());
    let year = agent.log().lines().filter_map(|line| line.get(..4)?.parse::<u32>().ok()).max();
    kill_worker(&agent);
    worker_after(&mut agent, worker);
    assert!(crate::lab::eventually("it serves", SOON, || scene.pod.connect(GREET).ok()).peer_addr().is_ok());
    let last = agent.log().lines().filter_map(|line| line.get(..4)?.parse::<u32>().ok()).next_back();
    assert!(last < year, "the clock did jump: {last:?} after {year:?}");
    assert_eq!(agent.stop(), 0);
}

/// Another program holds the lock of legacy iptables while Services change and the worker dies.
#[test]
fn the_lock_of_iptables_is_held() {
    let scene = Scene::new("lock");
    let path = scene.lab.dir().join("xtables.lock");
    let variable = format!("XTABLES_LOCKFILE={}", path.display());
    let mut agent = scene.agent().backend("legacy").wrapped(&["env", &variable]).start();
    let traffic = Traffic::start(scene.connecting());
    traffic.flows();
    let file = File::create(&path).expect("the lock file");
    file.lock().expect("the lock");
    let more = objects::pair("more", "10.96.0.55", 80, 7000, &[&scene.b.v4]);
    agent.write("more.json", &objects::list(more));
    std::thread::sleep(Duration::from_secs(2));
    traffic.flows();
    let last = kill_worker(&agent);
    std::thread::sleep(Duration::from_secs(3));
    file.unlock().expect("the lock");
    worker_after(&mut agent, last);
    eventually("the new Service", Duration::from_mins(1), || {
        crate::lab::read_all(&mut scene.a.connect("10.96.0.55:80").ok()?).ok()
    });
    traffic.flows();
    let tally = traffic.end();
    row(
        "the lock of iptables is held for 5 s and more, the worker dies meanwhile",
        &tally,
        "1 kill cuts what is under way",
    );
    crate::scene::assert_only_cut(&tally, 1, 3, &agent.log());
    assert_eq!(agent.stop(), 0);
}

/// The node's table of connection tracking is full of flows that may not be dropped early. The limit is the machine's, the
/// count the namespace's, so that nobody else notices.
#[test]
fn a_full_table_of_connection_tracking() {
    const FILLER: &str = "198.19.0.1";
    let scene = Scene::new("conntrack");
    let agent = scene.agent().start();
    let read = |name: &str| -> u64 {
        let file = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        scene.a.enter(|| fs::read_to_string(&file)).expect("a number").trim().parse().expect("a number")
    };
    let most = read("max");
    assert!(most <= 1 << 20, "filling a table of {most} entries takes too long here");
    let flows = scene.lab.dir().join("flows");
    let line = |number: u64| {
        let (client, port) = (format!("198.18.{}.1", number / 60_000), number % 60_000 + 1);
        format!(
            "-A -t 60 -u SEEN_REPLY,ASSURED -s {client} -d {FILLER} -r {FILLER} -q {client} -p udp --sport {port} \
             --dport 9 --reply-port-src 9 --reply-port-dst {port}\n"
        )
    };
    fs::write(&flows, (0..most).map(line).collect::<String>()).expect("a file");
    let traffic = Traffic::start(scene.connecting());
    traffic.flows();
    let full = traffic.now();
    // Ends with an error: there is no room for the last ones.
    let _ = scene.a.run(&["conntrack", "-R", &flows.display().to_string()]);
    // Connections of clients end meanwhile and leave their places; that it was full, the kernel's count of drops shows.
    let count = read("count");
    assert!(count + most / 100 >= most, "{count} of {most} entries are in use");
    std::thread::sleep(Duration::from_secs(3));
    scene.a.must(&["conntrack", "-F"]);
    let room = traffic.now();
    traffic.flows();
    let settled = traffic.now();
    traffic.flows();
    let tally = traffic.end();
    let statistics = scene.a.must(&["conntrack", "-S"]);
    row(
        &format!("the table of connection tracking is full for {} s", room.saturating_sub(full).as_secs()),
        &tally,
        "first packets that the kernel drops: clients send theirs again after 1, 3, 7 s; a backend is given up after 5 s",
    );
    let lost: Vec<_> =
        tally.failed().into_iter().filter(|asked| asked.at + PATIENCE < full || asked.at > settled).collect();
    assert!(lost.is_empty(), "{lost:#?}; {}", agent.log());
    let drops =
        statistics.split_whitespace().filter_map(|word| word.strip_prefix("drop=")?.parse::<u64>().ok());
    assert!(drops.sum::<u64>() > 0, "the table was never full: {statistics}");
    assert_eq!(agent.stop(), 0);
}
