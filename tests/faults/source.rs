//! Faults of where objects come from and of the disk that keeps them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::apiserver::Mood;
use crate::cloud::Cloud;
use crate::lab::{Agent, Traffic, eventually, read_all};
use crate::scene::{PATIENCE, SOON, Scene, assert_only_cut, kill_worker, row, worker_after};

fn until_served(scene: &Scene, agent: &Agent, to: &str) {
    let limit = Duration::from_secs(90);
    let end = Instant::now() + limit;
    let ask = || read_all(&mut scene.pod.connect(to).ok()?).ok().filter(|said| said == "hello");
    while ask().is_none() {
        assert!(Instant::now() < end, "{to} is not served: {}\n{}", agent.status(), agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The API server fails in every way, ten times a second.
#[test]
fn an_api_server_that_flaps() {
    let scene = Scene::new("flap");
    let node = scene.lab.node("cloud");
    let cloud = Cloud::new(&scene, &node);
    let config = cloud.kubeconfig.display().to_string();
    let agent = scene.agent().source(&["--kubeconfig", &config]).start();
    let traffic = Traffic::start(scene.clients());
    let mut random = fastrand::Rng::with_seed(4);
    for number in 0..60 {
        match random.u8(0..7) {
            0 => cloud.api.cut(),
            1 => cloud.api.mood("*", Mood::Status(500, None)),
            2 => cloud.api.mood("*", Mood::Silent),
            3 => cloud.api.mood("*", Mood::CutsWatches),
            4 => cloud.api.compact(random.bool()),
            5 => cloud.api.mood("*", Mood::Html),
            _ => cloud.api.mood("*", Mood::Well),
        }
        if number % 10 == 0 {
            cloud.add("changing", "10.96.0.56", if number % 20 == 0 { &scene.b.v4 } else { &scene.c.v4 });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    cloud.api.mood("*", Mood::Well);
    cloud.add("after", "10.96.0.57", &scene.b.v4);
    until_served(&scene, &agent, "10.96.0.57:80");
    until_served(&scene, &agent, "10.96.0.56:80");
    traffic.flows();
    let tally = traffic.end();
    row("the API server flaps 60 times in 6 s", &tally, "");
    tally.assert_all_served(|| agent.log());
    assert_eq!(agent.stop(), 0);
}

/// The state folder's disk is full: changes are served all the same, what was written stands, and a worker that dies then
/// starts from it.
#[test]
fn a_full_disk() {
    let scene = Scene::new("disk");
    let node = scene.lab.node("cloud");
    let cloud = Cloud::new(&scene, &node);
    let config = cloud.kubeconfig.display().to_string();
    let builder = scene.agent().source(&["--kubeconfig", &config]);
    let dir = scene.lab.dir().join("agent-a/state");
    fs::create_dir_all(&dir).unwrap();
    // A file system of the agent's own: `ip netns exec` gives each process its own mounts.
    let script = format!("mount -t tmpfs -o size=256k tmpfs {} && exec \"$@\"", dir.display());
    let mut agent = builder.wrapped(&["sh", "-c", &script, "sh"]).start();
    let inside = |agent: &Agent, name: &str| {
        PathBuf::from(format!("/proc/{}/root{}", agent.worker(), dir.join(name).display()))
    };
    let cache = "last-good.json";
    let before = eventually("the cache", SOON, || {
        fs::read(inside(&agent, cache)).ok().filter(|text| !text.is_empty())
    });
    let clients = scene.clients();
    let count = clients.len();
    let traffic = Traffic::start(clients);
    traffic.flows();
    let filler = inside(&agent, "filler");
    while fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&filler)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &[0; 4096]))
        .is_ok()
    {}
    cloud.add("late", "10.96.0.58", &scene.b.v4);
    until_served(&scene, &agent, "10.96.0.58:80");
    agent.wait_for("it is told", PATIENCE, |status| {
        status["source"]["message"].as_str().is_some_and(|message| message.contains("last-good"))
    });
    assert_eq!(fs::read(inside(&agent, cache)).ok().as_ref(), Some(&before), "what was written stands");
    // Now the API goes away too, and the worker dies.
    cloud.away();
    let last = kill_worker(&agent);
    worker_after(&mut agent, last);
    traffic.flows();
    fs::remove_file(inside(&agent, "filler")).unwrap();
    cloud.api.mood("*", Mood::Well);
    // Whoever waits for a word asks again.
    cloud.api.cut();
    until_served(&scene, &agent, "10.96.0.58:80");
    eventually("the cache is written again", Duration::from_secs(90), || {
        fs::read(inside(&agent, cache)).ok().filter(|now| *now != before)
    });
    let names: Vec<_> =
        fs::read_dir(inside(&agent, "")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, [cache], "nothing half-written is left");
    let tally = traffic.end();
    row(
        "the state folder's disk is full, then the API server goes and the worker is killed",
        &tally,
        "1 kill cuts what is under way",
    );
    assert_only_cut(&tally, 1, count, &agent.log());
    assert_eq!(agent.stop(), 0);
}
