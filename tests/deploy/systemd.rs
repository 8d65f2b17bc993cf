//! The systemd unit, held to systemd's own checker, and what the agent tells the service manager.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use super::lab::{Agent, Lab, Server, objects};
use super::packaging::install;
use super::tools::{must, repository};
use nix::sys::signal::Signal;

/// A slow machine under load takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tenths of the exposure that `systemd-analyze security` counts. What is left of it is what the agent is for: root with
/// three capabilities, the host's network, netlink.
const EXPOSURE: &str = "29";

#[test]
fn the_unit_is_good_and_hardened() {
    let root = tempfile::tempdir().expect("a folder");
    install(root.path());
    let unit = root.path().join("usr/local/lib/systemd/system/edgesplice.service");
    // The program must be where the unit says.
    let text = std::fs::read_to_string(&unit).expect("the unit");
    let text = text.replace("/usr/local/bin/", &format!("{}/usr/local/bin/", root.path().display()));
    let unit = root.path().join("edgesplice.service");
    std::fs::write(&unit, text).expect("the unit");
    let said = must(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
    assert_eq!(said, "");
    let threshold = format!("--threshold={EXPOSURE}");
    must(
        Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager", &threshold])
            .arg(&unit),
    );
}

#[test]
fn the_unit_and_the_daemonset_give_the_same_capabilities() {
    let unit = std::fs::read_to_string(repository("deploy/systemd/edgesplice.service")).expect("the unit");
    let line =
        unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("capabilities");
    let unit: Vec<&str> = line.split(' ').map(|name| name.strip_prefix("CAP_").expect("a name")).collect();
    assert_eq!(unit, super::container::capabilities());
}

/// Takes messages until one of them has `line`; returns all of their lines.
fn until(manager: &UnixDatagram, line: &str) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while Instant::now() < end {
        let Ok(length) = manager.recv(&mut buffer) else { continue };
        told.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        if told.iter().any(|told| told == line) {
            return told;
        }
    }
    panic!("{line} was not told within {PATIENCE:?}, but {told:?}");
}

#[test]
fn systemd_hears_of_ready_watchdog_and_end() {
    let lab = Lab::new("notify");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _server = Server::greeting(&b, 7000, "hello");
    let path = lab.dir().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let socket = format!("NOTIFY_SOCKET={}", path.display());
    let greet = objects::list(objects::pair("greet", "10.96.0.50", 80, 7000, &["192.168.77.2"]));
    let agent = Agent::on(&a).manifest("greet.json", &greet);
    // `env` becomes the agent, so the process is the one that the watchdog is for.
    let mut agent = agent.wrapped(&["env", &socket, "WATCHDOG_USEC=900000"]).launch();
    // The status comes right behind.
    let mut told = until(&manager, "READY=1");
    told.extend(until(&manager, "STATUS=serving"));
    assert!(!told.contains(&"STOPPING=1".to_owned()), "{told:?}");
    assert!(told.iter().any(|line| line.starts_with("STATUS=")), "{told:?}");
    agent.wait_ready();
    for _ in 0..3 {
        until(&manager, "WATCHDOG=1");
    }
    agent.signal(Signal::SIGTERM);
    until(&manager, "STOPPING=1");
    assert_eq!(agent.wait(PATIENCE), 0);
}
