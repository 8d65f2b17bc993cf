//! Every fault at once, in an order that a seed gives, with traffic running and counted, and memory and descriptors
//! followed every second.
//!
//! Half of the time workers die, too; in the other half one worker lives through everything else, so that what it
//! gathers would show. In the end it is calm for a while, and nothing may fail any more.

mod faults;
mod report;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::built;
use crate::cgroup::Cgroup;
use crate::cloud::Cloud;
use crate::lab::{Agent, Client, Kind, Node, Server, Tally, Traffic, objects};
use crate::scene::{GREETING, Scene, footprint, metric};

/// Without any fault, at the end.
const CALM: Duration = Duration::from_secs(20);
/// Between two looks at memory and descriptors.
const LOOK: Duration = Duration::from_secs(1);

/// Everything that the faults happen to.
pub(crate) struct Ground {
    pub(crate) scene: Scene,
    pub(crate) cloud: Cloud,
    pub(crate) cloud_node: Node,
    pub(crate) group: Cgroup,
    pub(crate) agent: Mutex<Agent>,
    pub(crate) keeper: u32,
    pub(crate) begun: Instant,
    pub(crate) over: AtomicBool,
    /// No more deaths from then on.
    pub(crate) living: AtomicBool,
    pub(crate) faults: Mutex<Vec<Fault>>,
}

/// One fault: what, from when to when.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) what: &'static str,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

/// One look at the two processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) at: Duration,
    pub(crate) worker: u32,
    /// Resident KiB (of the keeper: its own ones) and descriptors.
    pub(crate) of_worker: (u64, usize),
    pub(crate) of_keeper: (u64, usize),
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) calm_from: Duration,
    pub(crate) living_from: Duration,
    /// Services on other nodes, and those on this one.
    pub(crate) far: Tally,
    pub(crate) near: Tally,
    pub(crate) faults: Vec<Fault>,
    pub(crate) looks: Vec<Look>,
    pub(crate) restarts: [u64; 2],
}

impl Ground {
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Runs `fault` and notes it.
    pub(crate) fn during(&self, what: &'static str, fault: impl FnOnce()) {
        let from = self.now();
        fault();
        self.faults.lock().expect("no panic").push(Fault { what, from, to: self.now() });
    }

    /// Sleeps, unless all is over.
    pub(crate) fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.over.load(SeqCst) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
    }
}

pub(crate) fn run() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    let (seconds, seed) = (number("SOAK_SECONDS", 600), number("SOAK_SEED", 1));
    edgesplice::net::sock::raise_nofile().unwrap();
    println!("soak: {seconds} s of faults, seed {seed}, then {} s of calm", CALM.as_secs());
    let (ground, here, _local) = build();
    let far = Traffic::start(clients(&ground.scene));
    let near = Traffic::start(vec![client(&ground.scene, "10.96.0.54:80")]);
    far.flows();
    let (looks, living_from, calm_from) = (Mutex::new(Vec::new()), ground.now(), ground.now());
    let mut times = (living_from, calm_from);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| follow(&ground, &looks));
        let threads = faults::ALL.map(|(place, fault)| {
            let random = fastrand::Rng::with_seed(seed * 100 + place);
            let ground = &ground;
            scope.spawn(move || fault(ground, random))
        });
        std::thread::sleep(Duration::from_secs(seconds / 2));
        ground.living.store(true, SeqCst);
        times.0 = ground.now();
        std::thread::sleep(Duration::from_secs(seconds - seconds / 2));
        ground.over.store(true, SeqCst);
        for thread in threads {
            thread.join().unwrap();
        }
        far.flows();
        near.flows();
        times.1 = ground.now();
        std::thread::sleep(CALM);
        looking.thread().unpark();
        ground.living.store(false, SeqCst);
        looking.join().unwrap();
    });
    let (far, near) = (far.end(), near.end());
    drop(here);
    let agent = ground.agent.lock().unwrap();
    let restarts = ["died", "stuck"]
        .map(|why| metric(&agent, &format!("edgesplice_restarts_total{{reason=\"{why}\"}}")).unwrap_or(0));
    let log = agent.log();
    drop(agent);
    let outcome = Outcome {
        seed,
        seconds: ground.now().as_secs_f64(),
        living_from: times.0,
        calm_from: times.1,
        far,
        near,
        faults: std::mem::take(&mut *ground.faults.lock().unwrap()),
        looks: looks.into_inner().unwrap(),
        restarts,
    };
    let Ground { agent, group, .. } = ground;
    let ended = agent.into_inner().unwrap().stop();
    drop(group);
    let faults = report::write(&outcome);
    println!("the agent ended with {ended}");
    if !faults.is_empty() || ended != 0 {
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        eprintln!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        eprintln!("soak: {}", faults.join("; "));
        std::process::exit(1);
    }
}

fn build() -> (Ground, crate::lab::Pod, Server) {
    let scene = Scene::new("soak");
    let cloud_node = scene.lab.node("cloud");
    let cloud = Cloud::new(&scene, &cloud_node);
    cloud.fill(1_000, &[&scene.b.v4, &scene.c.v4]);
    let here = scene.a.pod("here");
    let local = Server::greeting(&here, 7000, GREETING);
    let [service, slice] = objects::pair("local", "10.96.0.54", 80, 7000, &[&here.v4]);
    cloud.api.set("endpointslices", slice);
    cloud.api.set("services", service);
    let group = Cgroup::new("soak");
    let agent = faults::prepared(built(scene.agent()), &scene);
    let mut agent = agent.source(&["--kubeconfig", &cloud.kubeconfig.display().to_string()]).launch();
    group.admit(agent.pid(), scene.lab.dir());
    agent.wait_ready();
    let (keeper, begun) = (agent.pid(), Instant::now());
    let (over, living, faults) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::default());
    let agent = Mutex::new(agent);
    (Ground { scene, cloud, cloud_node, group, agent, keeper, begun, over, living, faults }, here, local)
}

fn client(scene: &Scene, to: &str) -> Client {
    let client = crate::scene::client(&scene.pod, Kind::Connection, to);
    Client { pause: Duration::from_millis(20), ..client }
}

fn clients(scene: &Scene) -> Vec<Client> {
    let mut all = scene.clients();
    for client in &mut all {
        // Each datagram is a flow of its own, which is remembered for half a minute.
        client.pause = Duration::from_millis(if client.kind == Kind::Datagram { 200 } else { 20 });
    }
    all
}

/// Looks at memory and descriptors until it is told that all is over, by `living` going back.
fn follow(ground: &Ground, looks: &Mutex<Vec<Look>>) {
    let mut was_living = false;
    loop {
        let worker = worker_of(ground.keeper);
        if let Some(worker) = worker
            && let (Some(of_worker), Some(of_keeper)) =
                (footprint(worker, "VmRSS:"), footprint(ground.keeper, "RssAnon:"))
        {
            looks.lock().unwrap().push(Look { at: ground.now(), worker, of_worker, of_keeper });
        }
        let living = ground.living.load(SeqCst);
        if was_living && !living {
            return;
        }
        was_living = living;
        std::thread::park_timeout(LOOK);
    }
}

/// The first child of the keeper; for moments it may be a process that takes rules away.
pub(crate) fn worker_of(keeper: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
