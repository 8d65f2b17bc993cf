//! SIGKILL under load, with a table of 1,000 services on the disk and no API server to ask: how long nobody is served,
//! what clients see of it, and how much memory the keeper takes.

use std::fs;
use std::time::Duration;

use crate::cloud::Cloud;
use crate::lab::{Kind, Outcome, Traffic, eventually};
use crate::scene::{SOON, Scene, kill_worker, worker_after};
use crate::{built, quantile};

const KILLS: usize = 12;
const SERVICES: usize = 1_000;
/// Between two kills: the keeper takes a worker for recovered then.
const APART: Duration = Duration::from_secs(12);

pub(crate) fn run() {
    let scene = Scene::new("crash");
    let node = scene.lab.node("cloud");
    let cloud = Cloud::new(&scene, &node);
    cloud.fill(SERVICES, &[&scene.b.v4, &scene.c.v4]);
    let config = cloud.kubeconfig.display().to_string();
    let mut agent = built(scene.agent()).source(&["--kubeconfig", &config]).start();
    let cache = agent.state_dir().join("last-good.json");
    eventually("the cache", SOON, || fs::metadata(&cache).ok().filter(|file| file.len() > 100_000));
    cloud.away();
    let mut clients = scene.clients();
    for client in &mut clients {
        client.pause = Duration::from_micros(3_500);
    }
    let traffic = Traffic::start(clients);
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        std::thread::sleep(APART);
        let at = traffic.now();
        let last = kill_worker(&agent);
        kills.push(at);
        worker_after(&mut agent, last);
    }
    std::thread::sleep(Duration::from_secs(1));
    let seconds = traffic.now().as_secs_f64();
    let tally = traffic.end();
    println!("{SERVICES} services from the disk, the API server away; {KILLS} kills in {seconds:.0} s");
    println!("{tally}");
    let rate = tally.of(Kind::Connection).count() as f64 / seconds;
    println!("{rate:.0} new connections a second");
    for kind in [Kind::Connection, Kind::Datagram, Kind::Name] {
        let served = |at: &Duration| {
            let after = tally.of(kind).filter(|asked| asked.at > *at && asked.outcome == Outcome::Served);
            after.map(|asked| asked.at + asked.took).min().map(|end| end.saturating_sub(*at))
        };
        let mut gaps: Vec<Duration> = kills.iter().filter_map(served).collect();
        gaps.sort();
        println!(
            "{kind:?}: from SIGKILL to the first answer: median {:.0} ms, longest {:.0} ms",
            quantile(&gaps, 0.5),
            quantile(&gaps, 1.0)
        );
    }
    let (keeper, worker) = (agent.pid(), agent.worker());
    for (name, process) in [("keeper", keeper), ("worker", worker)] {
        let figures = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
        let figure = |key: &str| {
            let line = figures.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0 kB");
            line.split_whitespace().next().unwrap_or("0").to_owned()
        };
        println!(
            "{name}: resident {} KiB, of which shared with others {} KiB, its own {} KiB; proportional {} KiB",
            figure("Rss:"),
            figure("Shared_Clean:"),
            figure("Private_Dirty:"),
            figure("Pss:")
        );
    }
    agent.stop();
}
