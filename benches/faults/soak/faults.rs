//! The faults, each kind in a thread of its own.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};

use crate::apiserver::Mood;
use crate::cgroup::Cgroup;
use crate::lab::{AgentBuilder, Netns};
use crate::scene::{Scene, pid};

use super::{Ground, worker_of};

/// A thread of faults, and the number that tells its random sequence from the others'.
type Source = (u64, fn(&Ground, Rng));

pub(crate) const ALL: [Source; 5] = [(1, deaths), (2, network), (3, api), (4, machine), (5, limits)];

/// Longest wait for the next worker.
const NEXT: Duration = Duration::from_mins(1);
/// A worker that has been ready for so long begins anew, as the keeper sees it.
const RECOVERED: Duration = Duration::from_secs(12);

/// Gives the agent a clock that can be set, a small disk and a lock of its own, and has it wait for its control group.
pub(crate) fn prepared(agent: AgentBuilder, scene: &Scene) -> AgentBuilder {
    let dir = scene.lab.dir();
    fs::write(dir.join("clock"), "+0").unwrap();
    let state = dir.join("agent-a/state");
    fs::create_dir_all(&state).unwrap();
    // The library for the clock keeps a semaphore in /dev/shm, where a confined agent and its programs write nothing. In the
    // agent's view that is another name of a folder in which they do, with `--remove-stale`.
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs {} && mount -t tmpfs tmpfs /run && mount --bind /run /dev/shm && exec \"$@\"",
        state.display()
    );
    let libraries = fs::read_dir("/usr/lib").unwrap().flatten();
    let library =
        libraries.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.exists());
    let library = library.expect("libfaketime is installed by `scripts/setup.sh soak`");
    let variables = [
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", dir.join("clock").display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        format!("XTABLES_LOCKFILE={}", dir.join("xtables.lock").display()),
    ];
    let wrapper = Cgroup::wrapper(dir);
    let mut line: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    line.extend(["sh", "-c", &script, "sh", "env"]);
    line.extend(variables.iter().map(String::as_str));
    agent.backend("legacy").wrapped(&line).args(&["--remove-stale"])
}

fn millis(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn await_next(ground: &Ground, last: u32) {
    let end = Instant::now() + NEXT;
    while worker_of(ground.keeper).is_none_or(|now| now == last) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills, a stop, too little memory: at most five deaths until a worker has had time to recover.
fn deaths(ground: &Ground, mut random: Rng) {
    while !ground.over.load(SeqCst) && !ground.living.load(SeqCst) {
        let Some(worker) = worker_of(ground.keeper) else {
            ground.sleep(Duration::from_millis(20));
            continue;
        };
        match random.u8(0..8) {
            0 => ground.during("worker stopped (SIGSTOP)", || {
                let _ = kill(pid(worker), Signal::SIGSTOP);
                await_next(ground, worker);
            }),
            1 | 2 => ground.during("out of memory", || out_of_memory(ground, worker)),
            _ => {
                for _ in 0..4 {
                    let Some(worker) = worker_of(ground.keeper) else { continue };
                    ground.during("worker killed (SIGKILL)", || {
                        let _ = kill(pid(worker), Signal::SIGKILL);
                        await_next(ground, worker);
                    });
                    ground.sleep(millis(&mut random, 0..700));
                }
            }
        }
        // Other faults may hold its start up.
        let end = Instant::now() + NEXT;
        let ready = || ground.agent.lock().expect("no panic").get("/readyz");
        while !matches!(ready(), Ok((200, _))) && Instant::now() < end {
            ground.sleep(Duration::from_millis(100));
        }
        ground.sleep(RECOVERED + millis(&mut random, 0..500));
    }
}

/// Lowers the limit to what is in use, so that the next allocation is one too many.
fn out_of_memory(ground: &Ground, worker: u32) {
    // A limit below what is in use is refused by the first version of control groups; whatever is free goes first.
    ground.group.squeeze();
    let end = Instant::now() + Duration::from_secs(5);
    let mut open = Vec::new();
    while worker_of(ground.keeper) == Some(worker) && Instant::now() < end {
        open.extend(
            (0..20).filter_map(|_| {
                ground.scene.a.connect_within("10.96.0.54:80", Duration::from_millis(500)).ok()
            }),
        );
    }
    ground.group.no_limit();
    await_next(ground, worker);
}

fn cut_off(node: &Netns, off: bool) {
    for chain in ["INPUT", "OUTPUT"] {
        node.must(&["iptables-nft", if off { "-I" } else { "-D" }, chain, "-j", "DROP"]);
    }
}

/// Links and nodes.
fn network(ground: &Ground, mut random: Rng) {
    let scene = &ground.scene;
    while !ground.over.load(SeqCst) {
        ground.sleep(millis(&mut random, 4_000..14_000));
        match random.u8(0..3) {
            0 => ground.during("link down", || {
                scene.a.ip("link set eth0 down\n");
                ground.sleep(millis(&mut random, 500..3_000));
                scene.a.ip("link set eth0 up\n");
            }),
            1 => ground.during("backend node gone", || {
                cut_off(&scene.b, true);
                ground.sleep(millis(&mut random, 1_000..6_000));
                cut_off(&scene.b, false);
            }),
            _ => ground.during("API server's node gone", || {
                cut_off(&ground.cloud_node, true);
                ground.sleep(millis(&mut random, 1_000..10_000));
                cut_off(&ground.cloud_node, false);
            }),
        }
    }
}

/// The API server flaps, and Services change.
fn api(ground: &Ground, mut random: Rng) {
    let (api, scene) = (&ground.cloud.api, &ground.scene);
    while !ground.over.load(SeqCst) {
        ground.sleep(millis(&mut random, 500..4_000));
        ground.during("API server flaps", || {
            for _ in 0..random.u8(1..20) {
                match random.u8(0..7) {
                    0 => api.cut(),
                    1 => api.mood("*", Mood::Status(503, None)),
                    2 => api.mood("*", Mood::Silent),
                    3 => api.mood("*", Mood::CutsWatches),
                    4 => api.compact(random.bool()),
                    5 => api.end_watches(),
                    _ => api.mood("*", Mood::Well),
                }
                ground.sleep(millis(&mut random, 10..200));
            }
            api.mood("*", Mood::Well);
        });
        for _ in 0..random.u8(0..30) {
            let number = random.u32(0..200);
            let (name, ip) = (format!("changing-{number}"), format!("10.96.200.{}", number + 1));
            if random.bool() {
                ground.cloud.add(&name, &ip, &scene.b.v4);
            } else {
                api.delete("services", "default", &name);
                api.delete("endpointslices", "default", &format!("{name}-ipv4"));
            }
        }
    }
    api.mood("*", Mood::Well);
}

/// The clock, the disk, the lock of iptables.
fn machine(ground: &Ground, mut random: Rng) {
    let dir = ground.scene.lab.dir();
    while !ground.over.load(SeqCst) {
        ground.sleep(millis(&mut random, 1_000..6_000));
        match random.u8(0..3) {
            0 => {
                let jump = ["+1d", "-1d", "+10y", "-10y", "+3600", "-0.5", "+0"][random.usize(0..7)];
                ground.during("clock jumps", || fs::write(dir.join("clock"), jump).unwrap());
            }
            1 => ground.during("disk full", || {
                let Some(worker) = worker_of(ground.keeper) else { return };
                let state = format!("/proc/{worker}/root{}", dir.join("agent-a/state/filler").display());
                let filler = PathBuf::from(state);
                if let Ok(mut file) = File::create(&filler) {
                    while file.write_all(&[0; 4_096]).is_ok() {}
                }
                ground.sleep(millis(&mut random, 1_000..15_000));
                // By whichever worker's way is there now: the mount is the keeper's as well.
                let keeper =
                    format!("/proc/{}/root{}", ground.keeper, dir.join("agent-a/state/filler").display());
                let _ = fs::remove_file(keeper);
            }),
            _ => ground.during("iptables lock held", || {
                let file = File::create(dir.join("xtables.lock")).unwrap();
                file.lock().unwrap();
                ground.sleep(millis(&mut random, 500..4_000));
            }),
        }
    }
    fs::write(dir.join("clock"), "+0").unwrap();
}

/// Descriptors, local ports, connection tracking.
fn limits(ground: &Ground, mut random: Rng) {
    let (scene, mut round) = (&ground.scene, 0);
    while !ground.over.load(SeqCst) {
        ground.sleep(millis(&mut random, 8_000..20_000));
        if ground.over.load(SeqCst) {
            return;
        }
        round += 1;
        match round % 3 {
            0 => ground.during("connection tracking full", || fill(ground)),
            1 => ground.during("few descriptors", || {
                let Some(worker) = worker_of(ground.keeper) else { return };
                let open = fs::read_dir(format!("/proc/{worker}/fd")).map_or(64, Iterator::count);
                let limit = |soft: &str| {
                    let (process, limit) = (worker.to_string(), format!("--nofile={soft}:"));
                    scene.a.run(&["prlimit", "--pid", &process, &limit]).code
                };
                // The hard limit stays as it is; the agent has raised the other one to it.
                let hard = hard_limit(worker);
                limit(&open.to_string());
                ground.sleep(millis(&mut random, 500..3_000));
                let is_back = limit(&hard) == 0;
                assert!(is_back || worker_of(ground.keeper) != Some(worker), "the limit is not back");
            }),
            _ => ground.during("few local ports", || {
                scene.a.sysctl("net/ipv4/ip_local_port_range", "40000 40009");
                ground.sleep(millis(&mut random, 500..3_000));
                scene.a.sysctl("net/ipv4/ip_local_port_range", "32768 60999");
            }),
        }
    }
}

/// The hard limit of a process's descriptors, as the kernel writes it.
fn hard_limit(process: u32) -> String {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or("1024").to_owned()
}

/// Fills the node's table of connection tracking with flows that may not be dropped early, and empties it.
fn fill(ground: &Ground) {
    let scene = &ground.scene;
    let max = "/proc/sys/net/netfilter/nf_conntrack_max";
    let most: u64 = scene.a.enter(|| fs::read_to_string(max)).unwrap().trim().parse().unwrap();
    if most > 1 << 20 {
        return;
    }
    let flows = scene.lab.dir().join("flows");
    if !flows.exists() {
        let mut text = String::new();
        for number in 0..most {
            use std::fmt::Write as _;
            let (client, port) = (format!("198.18.{}.1", number / 60_000), number % 60_000 + 1);
            let _ = writeln!(
                text,
                "-A -t 60 -u SEEN_REPLY,ASSURED -s {client} -d 198.19.0.1 -r 198.19.0.1 -q {client} -p udp \
                 --sport {port} --dport 9 --reply-port-src 9 --reply-port-dst {port}"
            );
        }
        fs::write(&flows, text).unwrap();
    }
    let _ = scene.a.run(&["conntrack", "-R", &flows.display().to_string()]);
    ground.sleep(Duration::from_secs(1));
    scene.a.run(&["conntrack", "-F"]);
}
