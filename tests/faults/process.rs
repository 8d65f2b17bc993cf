//! Faults of the agent's own processes: killed, out of memory, stuck, paused.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::cgroup::Cgroup;
use crate::lab::{Kind, Outcome, Traffic, eventually, question};
use crate::scene::{
    DNS, ECHO, GREET, NAME, PATIENCE, SOON, Scene, assert_only_cut, kill_worker, metric, pid, row,
    worker_after,
};
use crate::wedge::Wedged;

/// Kills in a row at most: the sixth makes the keeper take the rules away, as it should.
const IN_A_ROW: usize = 4;
/// A worker that has been ready for so long begins anew, as the keeper sees it.
const RECOVERED: Duration = Duration::from_secs(11);

/// Kills at random moments, also while a worker starts. `cargo bench --bench faults -- kills` has a hundred of them.
#[test]
fn killed_at_random_moments() {
    let scene = Scene::new("kills");
    let mut agent = scene.agent().start();
    let (mut random, mut kills) = (fastrand::Rng::with_seed(9), 0);
    let clients = scene.clients();
    let count = clients.len();
    let traffic = Traffic::start(clients);
    for round in 0..2 {
        if round > 0 {
            std::thread::sleep(RECOVERED);
        }
        for _ in 0..IN_A_ROW {
            std::thread::sleep(Duration::from_millis(random.u64(0..900)));
            let last = kill_worker(&agent);
            kills += 1;
            eventually("another worker", SOON, || (agent.worker() != last).then_some(()));
        }
        agent.wait_ready();
        traffic.flows();
    }
    let tally = traffic.end();
    row("kill -9 at random moments", &tally, &format!("{kills} kills, each cuts what is under way"));
    assert_only_cut(&tally, kills, count, &agent.log());
    assert_eq!(metric(&agent, "edgesplice_restarts_total{reason=\"died\"}"), Some(kills as u64));
    assert_eq!(agent.stop(), 0);
}

/// A datagram and a question that come while no worker lives wait for the next one.
#[test]
fn what_is_asked_while_no_worker_lives_is_answered_late() {
    let scene = Scene::new("gap");
    let mut agent = scene.agent().start();
    for round in 0..2 {
        // The gap lasts as long as we want it to.
        agent.signal(Signal::SIGSTOP);
        let last = kill_worker(&agent);
        eventually("its end", SOON, || {
            let stat = std::fs::read_to_string(format!("/proc/{last}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
        let asked: Vec<_> = [(ECHO, b"late".to_vec()), (DNS[0], question(NAME)), (DNS[1], question(NAME))]
            .into_iter()
            .map(|(to, text)| {
                let socket = scene.pod.udp_from(0, to);
                socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                socket.send(&text).expect("it is not refused");
                (to, socket)
            })
            .collect();
        let stream = scene.pod.connect(GREET).expect("accepted while nobody lives");
        agent.signal(Signal::SIGCONT);
        for (to, socket) in asked {
            let mut answer = [0; 512];
            let length =
                socket.recv(&mut answer).unwrap_or_else(|e| panic!("{round}: {to}: {e}; {}", agent.log()));
            if to == ECHO {
                assert_eq!(&answer[..length], b"late");
            } else {
                assert_eq!((answer[3] & 15, answer[7]), (0, 1), "{round}: {to}");
            }
        }
        let mut stream = stream;
        assert_eq!(crate::lab::read_all(&mut stream).ok().as_deref(), Some("hello"));
        worker_after(&mut agent, last);
    }
    // A frontend that has gone is refused, whoever held its socket.
    let rest = scene.objects().into_iter().filter(|object| object["metadata"]["name"] != "echo");
    agent.write("objects.json", &crate::lab::objects::list(rest));
    eventually("it is refused", SOON, || {
        (scene.pod.ask_udp(ECHO, b"?") == Err(nix::errno::Errno::ECONNREFUSED)).then_some(())
    });
    let keeper = || scene.a.must(&["ss", "-Huan", "src", "10.96.0.51"]);
    eventually("nobody holds its socket", SOON, || keeper().trim().is_empty().then_some(()));
    // One that goes while no worker lives is let go of by the next.
    agent.signal(Signal::SIGSTOP);
    let last = kill_worker(&agent);
    agent.write("objects.json", &crate::lab::objects::list([]));
    agent.signal(Signal::SIGCONT);
    worker_after(&mut agent, last);
    let keeper = || scene.a.must(&["ss", "-Huan", "src", "10.96.0.10"]);
    eventually("nobody holds its socket", SOON, || keeper().trim().is_empty().then_some(()));
    assert_eq!(agent.stop(), 0);
}

/// The whole agent in a control group with too little memory for what somebody does to it.
#[test]
fn out_of_memory() {
    edgesplice::net::sock::raise_nofile().expect("descriptors");
    let scene = Scene::new("memory");
    let group = Cgroup::new("memory");
    let wrapper = Cgroup::wrapper(scene.lab.dir());
    let mut agent = scene.agent().wrapped(&wrapper.each_ref().map(String::as_str)).launch();
    group.admit(agent.pid(), scene.lab.dir());
    agent.wait_ready();
    let clients = scene.clients();
    let count = clients.len();
    let traffic = Traffic::start(clients);
    traffic.flows();
    group.limit_at(group.used() + (6 << 20));
    let last = agent.worker();
    let abuser = scene.a.pod("abuser");
    let silent = crate::lab::Server::start(&scene.b, 7002, |stream| {
        std::thread::sleep(Duration::from_mins(2));
        drop(stream);
    });
    let hold = crate::lab::objects::pair("hold", "10.96.0.53", 80, 7002, &[&scene.b.v4]);
    agent.write("hold.json", &crate::lab::objects::list(hold));
    let mut open = Vec::new();
    eventually("it is killed", Duration::from_mins(1), || {
        let more =
            (0..50).filter_map(|_| abuser.connect_within("10.96.0.53:80", Duration::from_secs(2)).ok());
        open.extend(more);
        (agent.worker() != last).then_some(())
    });
    let many = open.len();
    drop((open, silent));
    agent.remove("hold.json");
    worker_after(&mut agent, last);
    traffic.flows();
    let tally = traffic.end();
    let deaths = metric(&agent, "edgesplice_restarts_total{reason=\"died\"}").expect("a count");
    row(
        "out of memory at the limit of a control group",
        &tally,
        &format!("{many} open connections were too many; died {deaths} times"),
    );
    assert_only_cut(&tally, usize::try_from(deaths).expect("few"), count, &agent.log());
    assert!(agent.log().contains("was killed by signal 9"), "{}", agent.log());
    group.no_limit();
    assert_eq!(agent.stop(), 0);
}

/// A worker that is stopped, and one of whose data threads stands still: either is ended, and what queued meanwhile is
/// served.
#[test]
fn a_stuck_worker_is_replaced() {
    let scene = Scene::new("stuck");
    let mut agent = scene.agent().start();
    let clients = scene.clients();
    let count = clients.len();
    let traffic = Traffic::start(clients);
    traffic.flows();

    let last = agent.worker();
    kill(pid(last), Signal::SIGSTOP).expect("a live worker");
    worker_after(&mut agent, last);
    traffic.flows();
    assert!(agent.log().contains("was stuck (no sign of life for 15 s)"), "{}", agent.log());

    let last = agent.worker();
    let wedged = Wedged::thread(last, "data-0");
    worker_after(&mut agent, last);
    drop(wedged);
    traffic.flows();
    let log = agent.log();
    assert!(log.contains("was stuck (data-plane: last moved"), "{log}");
    assert_eq!(metric(&agent, "edgesplice_restarts_total{reason=\"stuck\"}"), Some(2), "{log}");
    let tally = traffic.end();
    row(
        "stopped (SIGSTOP), then one thread of the data plane stands still",
        &tally,
        "2 workers ended, each cuts what is under way",
    );
    // Names and datagrams give up after a few seconds; nothing is refused.
    let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_) | Outcome::Wrong(_));
    for kind in [Kind::Connection, Kind::Datagram, Kind::Name] {
        assert_eq!(tally.count(kind, refused), 0, "{kind:?}: {tally}; {log}");
    }
    let failed = tally.count(Kind::Connection, |outcome| *outcome != Outcome::Served);
    assert!(failed <= 2 * count, "{failed}: {tally}; {log}");
    assert_eq!(agent.stop(), 0);
}

/// A machine that is suspended, a container that is paused: both processes stand still, and neither is to blame.
#[test]
fn a_paused_agent_goes_on_where_it_stood() {
    let scene = Scene::new("paused");
    let agent = scene.agent().start();
    let traffic = Traffic::start(scene.connecting());
    traffic.flows();
    let worker = agent.worker();
    agent.signal(Signal::SIGSTOP);
    kill(pid(worker), Signal::SIGSTOP).expect("a live worker");
    std::thread::sleep(Duration::from_secs(14));
    // The keeper first: it must not judge by what it has not heard.
    agent.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(100));
    kill(pid(worker), Signal::SIGCONT).expect("a live worker");
    traffic.flows();
    assert_eq!(agent.worker(), worker, "{}", agent.log());
    let tally = traffic.end();
    row("both processes paused for 14 s", &tally, "nothing is cut: what came meanwhile waited");
    tally.assert_all_served(|| agent.log());
    assert_eq!(agent.stop(), 0);
}

/// The control thread stands still, as in a relist that takes for ever: the data plane does not notice.
#[test]
fn a_control_plane_that_stalls_costs_nobody_a_connection() {
    let scene = Scene::new("stalled");
    let agent = scene.agent().start();
    let traffic = Traffic::start(scene.clients());
    traffic.flows();
    let worker = agent.worker();
    let before = traffic.served();
    let wedged = Wedged::thread(worker, "edgesplice");
    std::thread::sleep(Duration::from_secs(5));
    assert!(traffic.served() > before + 100, "{}", agent.log());
    drop(wedged);
    traffic.flows();
    assert_eq!(agent.worker(), worker, "{}", agent.log());
    let tally = traffic.end();
    row("the control thread stands still for 5 s", &tally, "");
    tally.assert_all_served(|| agent.log());
    assert_eq!(agent.stop(), 0);
}

/// As many connections as may be: whoever comes waits, and the agent is not taken for stuck.
#[test]
fn an_agent_without_room_is_not_stuck() {
    let scene = Scene::new("room");
    let file = scene.lab.dir().join("few.yaml");
    let text =
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\nproxy: {maxConnections: 4}\n";
    std::fs::write(&file, text).expect("a configuration file");
    let _silent = crate::lab::Server::echo(&scene.b, 7002);
    let hold = crate::lab::objects::pair("hold", "10.96.0.53", 80, 7002, &[&scene.b.v4]);
    let agent = scene.agent().manifest("hold.json", &crate::lab::objects::list(hold));
    let agent = agent.args(&["--config", &file.display().to_string()]).start();
    let worker = agent.worker();
    let open: Vec<_> = (0..4).map(|_| scene.pod.connect("10.96.0.53:80").expect("accepted")).collect();
    // Probes that wait in vain, as many as would be taken for a stuck acceptor.
    let probes = "edgesplice_selfprobes_total{result=\"silent\"}";
    eventually("it has probed itself", Duration::from_mins(2), || metric(&agent, probes).filter(|n| *n >= 3));
    assert_eq!(agent.get("/healthz").map(|(code, _)| code), Ok(200), "{}", agent.log());
    assert_eq!(agent.worker(), worker, "{}", agent.log());
    drop(open);
    eventually("there is room", SOON, || scene.pod.connect(GREET).ok());
    assert_eq!(agent.stop(), 0);
}
