//! One agent per node: the lock that a running agent holds.
//!
//! The lock is a listening socket in the abstract namespace. That namespace belongs to the network namespace, as the
//! rules do; the kernel frees the name when the process ends, however it ends; and the kernel tells who holds it.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// How long a process that was killed may still hold the lock: its keeper, which its caller waits for, ends first.
const DYING: Duration = Duration::from_millis(500);
/// Time between two looks meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// The abstract name, shown as `@edgesplice` by `ss -xl`.
const NAME: &[u8] = b"edgesplice";

/// Held while this process is the node's agent.
#[derive(Debug)]
pub(super) struct InstanceLock {
    _listener: UnixListener,
}

/// Another agent runs in this network namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "another edgesplice{} already runs on this node (it holds the socket @edgesplice); stop it first, or ask it \
     with `edgesplice status`", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
)]
pub(super) struct AlreadyRunning {
    /// Its process id, as far as it can be seen from here.
    pid: Option<i32>,
}

impl InstanceLock {
    /// Takes the lock, or says who holds it.
    pub(super) fn take() -> anyhow::Result<Self> {
        let name = SocketAddr::from_abstract_name(NAME).context("the name of the instance lock")?;
        let end = Instant::now() + DYING;
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(listener) => return Ok(Self { _listener: listener }),
                Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                    return Err(error).context("cannot take the instance lock @edgesplice");
                }
                Err(_) if Instant::now() >= end => return Err(AlreadyRunning { pid: look() }.into()),
                Err(_) => sleep(LOOK),
            }
        }
    }
}

/// The process id of the running agent, if one runs in this network namespace and does not die just now. A process in
/// another pid namespace shows as 0.
pub fn holder() -> Option<i32> {
    let end = Instant::now() + DYING;
    loop {
        let holder = look()?;
        if Instant::now() >= end {
            return Some(holder);
        }
        sleep(LOOK);
    }
}

fn look() -> Option<i32> {
    let name = SocketAddr::from_abstract_name(NAME).ok()?;
    let stream = UnixStream::connect_addr(&name).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|credentials| credentials.pid())
}
/// The numbers of the sockets of the agent that runs in this network namespace; none if there is none, or if that may
/// not be seen.
pub(super) fn sockets() -> BTreeSet<u64> {
    holder().and_then(|pid| u32::try_from(pid).ok()).map(sockets_of).unwrap_or_default()
}

/// The numbers of the sockets that a process has open; none if that may not be seen.
pub(super) fn sockets_of(pid: u32) -> BTreeSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let number =
        |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    entries.filter_map(|entry| number(fs::read_link(entry.path()).ok()?)).collect()
}
