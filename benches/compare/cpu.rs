//! Processor time: of a contender's own processes, and of the whole machine.

use std::fs;
use std::time::Duration;

use crate::lab::Node;

/// One reading; two make a difference.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    /// User and system time of the processes in the contender's node.
    own: u64,
    /// Everything but idle, waiting and stolen time, of all cores. The kernel's work for packets counts here.
    all: u64,
}

/// Ticks a second in `/proc`, fixed for user space on Linux.
const TICKS: u64 = 100;

impl Cpu {
    /// Reads now.
    pub(crate) fn now(pids: &[u32]) -> Self {
        Self { own: pids.iter().map(|pid| process_ticks(*pid)).sum(), all: machine_ticks() }
    }

    /// The time since `before`: own, all.
    pub(crate) fn since(self, before: Self) -> (Duration, Duration) {
        let ticks = |now: u64, then: u64| Duration::from_millis(now.saturating_sub(then) * 1000 / TICKS);
        (ticks(self.own, before.own), ticks(self.all, before.all))
    }
}

/// The processes that run in a node.
pub(crate) fn pids(node: &Node) -> Vec<u32> {
    let text = std::process::Command::new("ip")
        .args(["netns", "pids", node.name()])
        .output()
        .expect("ip runs")
        .stdout;
    String::from_utf8_lossy(&text).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Resident memory of processes together, in KiB.
pub(crate) fn resident(pids: &[u32]) -> u64 {
    let of = |pid: &u32| -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    pids.iter().filter_map(of).sum()
}

fn process_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of the line; the name in brackets, field 2, may hold blanks.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn machine_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let words: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    [0, 1, 2, 5, 6].iter().filter_map(|index| words.get(*index)).sum()
}
