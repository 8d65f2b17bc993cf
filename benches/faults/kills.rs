//! A hundred times SIGKILL at random moments, in rows of five, also while a worker starts.

use std::time::Duration;

use crate::built;
use crate::cloud::Cloud;
use crate::lab::{Kind, Outcome, Traffic, eventually};
use crate::scene::{SOON, Scene, kill_worker, metric};

const KILLS: usize = 100;
/// The sixth death in a row makes the keeper take the rules away, as it should.
const IN_A_ROW: usize = 5;
/// The keeper takes a worker that was ready for 10 s for recovered.
const RECOVERED: Duration = Duration::from_millis(10_500);
const SERVICES: usize = 1_000;

pub(crate) fn run() {
    let scene = Scene::new("hundred");
    let node = scene.lab.node("cloud");
    let cloud = Cloud::new(&scene, &node);
    cloud.fill(SERVICES, &[&scene.b.v4, &scene.c.v4]);
    let config = cloud.kubeconfig.display().to_string();
    let mut agent = built(scene.agent()).source(&["--kubeconfig", &config]).start();
    let mut clients = scene.clients();
    for client in &mut clients {
        client.pause = Duration::from_micros(3_500);
    }
    let (count, seed) = (clients.len(), 9);
    let (traffic, mut random) = (Traffic::start(clients), fastrand::Rng::with_seed(seed));
    for _ in 0..KILLS / IN_A_ROW {
        for _ in 0..IN_A_ROW {
            std::thread::sleep(Duration::from_millis(random.u64(0..900)));
            let last = kill_worker(&agent);
            eventually("another worker", SOON, || (agent.worker() != last).then_some(()));
        }
        agent.wait_ready();
        std::thread::sleep(RECOVERED);
    }
    let seconds = traffic.now().as_secs_f64();
    let tally = traffic.end();
    let rate = tally.of(Kind::Connection).count() as f64 / seconds;
    println!(
        "{SERVICES} services, {KILLS} kills in {seconds:.0} s (seed {seed}), {count} clients, {rate:.0} connections a second"
    );
    println!("{tally}");
    for kind in [Kind::Connection, Kind::Datagram, Kind::Name] {
        let refused = tally.count(kind, |outcome| matches!(outcome, Outcome::Refused(_) | Outcome::Wrong(_)));
        println!("{kind:?}: refused or answered wrongly: {refused}");
    }
    let died = metric(&agent, "edgesplice_restarts_total{reason=\"died\"}");
    println!("the keeper counted {died:?} deaths; the agent ended with {}", agent.stop());
}
