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
    /// Has the listener.
    answering: tokio::task::JoinHandle<()>,
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
    /// Takes the lock, or says who holds it. Needs a runtime.
    pub(super) fn take() -> anyhow::Result<Self> {
        let name = SocketAddr::from_abstract_name(NAME).context("the name of the instance lock")?;
        let end = Instant::now() + DYING;
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(listener) => {
                    return Self::hold(listener).context("cannot hold the instance lock @edgesplice");
                }
                Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                    return Err(error).context("cannot take the instance lock @edgesplice");
                }
                Err(_) => {
                    let pid = holder();
                    if pid.is_some() || Instant::now() >= end {
                        return Err(AlreadyRunning { pid }.into());
                    }
                    // It has gone meanwhile.
                    sleep(LOOK);
                }
            }
        }
    }

    /// Lets go of whoever asks: what is not accepted fills the queue, and then whoever asks hangs.
    fn hold(listener: UnixListener) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let answering = tokio::spawn(async move {
            loop {
                if listener.accept().await.is_err() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        Ok(Self { answering })
    }
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

/// The process id of the running agent, if one runs in this network namespace. A process in another pid namespace shows
/// as 0. One that has been killed and is not gone yet is waited for.
pub fn holder() -> Option<i32> {
    let end = Instant::now() + DYING;
    loop {
        let pid = look()?;
        if !is_dying(pid) || Instant::now() >= end {
            return Some(pid);
        }
        sleep(LOOK);
    }
}

/// Whether SIGKILL is on its way to that process.
fn is_dying(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = |name| field(name).and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    // The first bit of the sets is signal 1.
    let kill = 1 << (nix::sys::signal::Signal::SIGKILL as u32 - 1);
    (pending("SigPnd:") | pending("ShdPnd:")) & kill != 0
        || field("State:").is_some_and(|state| state.starts_with(['Z', 'X']))
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
