//! What must be known about the machine to read the figures.

use std::fs;
use std::process::Command;

/// Facts, in the order in which they are shown.
pub(crate) type Facts = Vec<(&'static str, String)>;

/// Reads them.
pub(crate) fn collect() -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let field = |file: &str, key: &str| {
        let text = read(file);
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("date", said("date", &["-u", "+%Y-%m-%dT%H:%MZ"])),
        ("processor", field("/proc/cpuinfo", "model name")),
        ("cores", cores.to_string()),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load before", read("/proc/loadavg")),
        ("iptables", said("iptables", &["--version"])),
        ("haproxy", said("haproxy", &["-v"])),
        ("nginx", said("nginx", &["-v"])),
        (
            "edgesplice",
            format!("{} ({})", env!("CARGO_PKG_VERSION"), said("git", &["rev-parse", "--short", "HEAD"])),
        ),
        ("built with", said("rustc", &["--version"])),
    ]
}

/// The first line that a program prints, on either stream.
fn said(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else { return "not found".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
