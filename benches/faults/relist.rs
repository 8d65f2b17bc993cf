//! A control plane that works without a pause: the API server tells the agent over and over that it must list 10,000
//! services anew. What clients notice of it, beside the same lists fetched by somebody else on the same machine.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::cloud::Cloud;
use crate::lab::{Kind, Tally, Traffic};
use crate::scene::Scene;
use crate::{built, quantile};

const SERVICES: usize = 10_000;
const EACH: Duration = Duration::from_secs(20);

pub(crate) fn run() {
    let scene = Scene::new("relist");
    let node = scene.lab.node("cloud");
    let cloud = Cloud::new(&scene, &node);
    cloud.fill(SERVICES, &[&scene.b.v4]);
    let config = cloud.kubeconfig.display().to_string();
    let agent = built(scene.agent()).source(&["--kubeconfig", &config]).start();
    // The first pass over everything is over.
    std::thread::sleep(Duration::from_secs(5));
    println!("new connections, {SERVICES} services, {} s each:", EACH.as_secs());
    let idle = measure(&scene);
    show("nothing else happens", &idle);
    let over = AtomicBool::new(false);
    let (other, fetched) = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let mut fetched = 0;
            while !over.load(SeqCst) {
                for path in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
                    let url = format!("{}{path}?limit=500", cloud.api.url());
                    scene.a.run(&["curl", "-s", "-o", "/dev/null", &url]);
                }
                fetched += 1;
            }
            fetched
        });
        let tally = measure(&scene);
        over.store(true, SeqCst);
        (tally, fetching.join().unwrap())
    });
    show(&format!("curl asks for pages of the lists, {fetched} times"), &other);
    let lists = || cloud.api.count("services", false) + cloud.api.count("endpointslices", false);
    let before = lists();
    over.store(false, SeqCst);
    let relisting = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                cloud.api.compact(true);
                cloud.api.cut();
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let tally = measure(&scene);
        over.store(true, SeqCst);
        tally
    });
    let asked = lists() - before;
    show(&format!("the agent lists everything over and over: {asked} lists of one kind"), &relisting);
    agent.stop();
}

fn measure(scene: &Scene) -> Tally {
    let traffic = Traffic::start(scene.connecting());
    std::thread::sleep(EACH);
    traffic.end()
}

fn show(what: &str, tally: &Tally) {
    let times = tally.times(Kind::Connection);
    println!(
        "| {what} | {} | {} | {:.2} | {:.2} | {:.2} |",
        tally.of(Kind::Connection).count(),
        tally.failed().len(),
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&times, 1.0)
    );
}
