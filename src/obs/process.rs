//! What the kernel knows about this process, from `/proc/self`.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// This process's use of the machine; `None` where a number could not be read.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) start_seconds: Option<f64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        // Reading the folder opens one descriptor more.
        let open =
            fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1));
        Self {
            open_fds: open,
            max_fds: max_fds(&limits),
            start_seconds: started(&stat, &fs::read_to_string("/proc/stat").unwrap_or_default()),
            ..from_stat(&stat, system(SysconfVar::CLK_TCK), system(SysconfVar::PAGE_SIZE))
        }
    }
}

fn system(variable: SysconfVar) -> Option<u64> {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok())
}

/// proc(5): fields 14 and 15 are ticks of user and kernel time, 20 is threads, 24 is resident pages. The program's name,
/// field 2, may hold anything, so that counting starts behind its closing bracket, at field 3.
fn from_stat(stat: &str, ticks_per_second: Option<u64>, page: Option<u64>) -> Process {
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok());
    let ticks = field(14).zip(field(15)).map(|(user, kernel)| user + kernel);
    Process {
        cpu_seconds: ticks.zip(ticks_per_second).map(|(ticks, per)| ticks as f64 / per as f64),
        resident_bytes: field(24).zip(page).map(|(pages, size)| pages * size),
        threads: field(20),
        ..Process::default()
    }
}

/// Field 22 is when the process started, in ticks since boot, and `btime` when that was.
fn started(stat: &str, machine: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let boot: u64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot as f64 + ticks as f64 / system(SysconfVar::CLK_TCK)? as f64)
}

/// `Max open files            1024                 524288               files`; nothing for `unlimited`.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_program_name_does_not_shift_the_fields() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 999 12345 25 184467 1 1 0";
        let process = from_stat(stat, Some(100), Some(4096));
        assert_eq!(process.cpu_seconds, Some(2.0));
        assert_eq!((process.threads, process.resident_bytes), (Some(3), Some(25 * 4096)));
        assert_eq!(from_stat("", Some(100), Some(4096)).threads, None);
    }

    #[test]
    fn the_limit_of_descriptors_is_the_soft_one() {
        assert_eq!(
            max_fds("Max processes 1 2 p\nMax open files            1024                 524288   files\n"),
            Some(1024)
        );
        assert_eq!(max_fds("Max open files            unlimited            unlimited   files\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|b| b > 100_000), "{process:?}");
        assert!(
            process.open_fds.is_some_and(|n| n >= 3)
                && process.cpu_seconds.is_some()
                && process.start_seconds.is_some_and(|at| at > 1e9),
            "{process:?}"
        );
    }
}
