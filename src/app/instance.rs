//! One agent per node: the lock that a running agent holds.
//!
//! The lock is a listening socket in the abstract namespace. That namespace belongs to the network namespace, as the
//! rules do; the kernel frees the name when the process ends, however it ends; and the kernel tells who holds it. Whoever
//! connects may ask the agent for the node (see `handover`), and is handed the listening socket itself in the end, so
//! that there is no moment without an owner.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::sync::{Semaphore, mpsc};
use tracing::warn;

use crate::handover::words::Word;
use crate::obs::VERSION;

use super::channel::Channel;

/// How long a process that was killed may still hold the lock: its keeper, which its caller waits for, ends first.
const DYING: Duration = Duration::from_millis(500);
/// Time between two looks meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How long the other side may take for its first word, or for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often in a row the holder may hang up without a word.
const SILENT: u32 = 5;
/// Connections that may wait to be accepted: what the standard library asks for.
const BACKLOG: i32 = 128;
/// Connections at once whose first word is waited for.
const VISITORS: usize = 16;
/// The abstract name, shown as `@edgesplice` by `ss -xl`.
const NAME: &[u8] = b"edgesplice";

/// Held while this process is the node's agent.
#[derive(Debug)]
pub(super) struct InstanceLock {
    listener: UnixListener,
    answering: tokio::task::JoinHandle<()>,
    arriving: mpsc::Receiver<Arrival>,
}

/// Another agent that comes to take the node over.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) channel: Channel,
    /// Its version.
    pub(super) version: String,
}

/// Another agent runs in this network namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "another edgesplice{} already runs on this node (it holds the socket @edgesplice); stop it first, ask it \
     with `edgesplice status`, or take the node over from it with --take-over",
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
)]
pub(super) struct AlreadyRunning {
    /// Its process id, as far as it can be seen from here.
    pid: Option<i32>,
}

/// What came of looking for the lock.
#[derive(Debug)]
pub(super) enum Approached {
    /// Nobody had it.
    Free(InstanceLock),
    /// Somebody has it, and has answered.
    Met(Met),
    /// Somebody has it and keeps it; why.
    Refused(String),
}

/// The agent that runs.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) channel: Channel,
    pub(super) version: String,
    /// Its acceptor's port.
    pub(super) port: u16,
    /// The numbers of its sockets for datagrams.
    pub(super) sockets: BTreeSet<u64>,
}

impl InstanceLock {
    /// Takes the lock, or says who holds it. Needs a runtime.
    pub(super) fn take() -> anyhow::Result<Self> {
        let end = Instant::now() + DYING;
        loop {
            if let Some(lock) = Self::try_take()? {
                return Ok(lock);
            }
            let pid = holder();
            if pid.is_some() || Instant::now() >= end {
                return Err(AlreadyRunning { pid }.into());
            }
            // It has gone meanwhile.
            sleep(LOOK);
        }
    }

    /// Takes the lock if nobody has it.
    fn try_take() -> anyhow::Result<Option<Self>> {
        match UnixListener::bind_addr(&name()?) {
            Ok(listener) => {
                Self::hold(listener).context("cannot hold the instance lock @edgesplice").map(Some)
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).context("cannot take the instance lock @edgesplice"),
        }
    }

    /// Takes the lock that its holder has handed over.
    pub(super) fn adopt(lock: OwnedFd) -> std::io::Result<Self> {
        Self::hold(UnixListener::from(lock))
    }

    /// Tries to take the lock, and greets whoever has it.
    pub(super) async fn approach() -> anyhow::Result<Approached> {
        let mut silent = 0;
        loop {
            if let Some(lock) = Self::try_take()? {
                return Ok(Approached::Free(lock));
            }
            if let Ok(stream) = UnixStream::connect_addr(&name()?) {
                stream.set_nonblocking(true).context("cannot talk to the agent that runs")?;
                let stream = tokio::net::UnixStream::from_std(stream)?;
                match tokio::time::timeout(PATIENCE, greet(Channel::new(stream))).await {
                    Ok(Some(approached)) => return Ok(approached),
                    Ok(None) | Err(_) => silent += 1,
                }
            }
            // It has died meanwhile; or it is of a version that lets go of whoever asks.
            if silent == SILENT {
                return Ok(Approached::Refused(
                    "it hangs up: its version cannot hand over, or it runs as another user; stop it first"
                        .to_owned(),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The next agent that comes to take the node over.
    pub(super) async fn arrival(&mut self) -> Arrival {
        match self.arriving.recv().await {
            Some(arrival) => arrival,
            // Nobody is answered any more.
            None => std::future::pending().await,
        }
    }

    /// Leaves whoever comes to the one that the lock is handed to, and keeps a handle.
    pub(super) fn pause(&self) {
        self.answering.abort();
    }

    /// Takes the lock back after [`Self::pause`].
    pub(super) fn resume(&mut self) -> std::io::Result<()> {
        *self = Self::hold(self.listener.try_clone()?)?;
        Ok(())
    }

    fn hold(listener: UnixListener) -> std::io::Result<Self> {
        // Once more, whoever bound it: the kernel tells the process that did this last to whoever asks.
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        let accepting = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
        let (sender, arriving) = mpsc::channel(1);
        let room = Arc::new(Semaphore::new(VISITORS));
        let answering = tokio::spawn(async move {
            loop {
                // Whoever is not accepted fills the queue, and then whoever asks hangs.
                let Ok((stream, _)) = accepting.accept().await else {
                    tokio::time::sleep(LOOK).await;
                    continue;
                };
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Ok(Some(arrival)) = tokio::time::timeout(PATIENCE, arrival(stream)).await {
                        let _ = sender.send(arrival).await;
                    }
                    drop(place);
                });
            }
        });
        Ok(Self { listener, answering, arriving })
    }
}

impl AsFd for InstanceLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

fn name() -> anyhow::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME).context("the name of the instance lock")
}

/// What a connection to the lock is about: most only want to know who has it.
async fn arrival(stream: tokio::net::UnixStream) -> Option<Arrival> {
    let peer = stream.peer_cred().ok()?;
    let mut channel = Channel::new(stream);
    let (Word::TakeOver { version }, _) = channel.hear().await? else { return None };
    // In the abstract namespace there are no file modes that would keep others out.
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        warn!(uid = peer.uid(), "a process of another user wants to take the node over; it is turned away");
        return None;
    }
    Some(Arrival { channel, version })
}

/// Greets the agent that runs. `None`: it has nothing to say.
async fn greet(mut channel: Channel) -> Option<Approached> {
    channel.say(&Word::TakeOver { version: VERSION.to_owned() }, &[]).await.ok()?;
    let mut sockets = BTreeSet::new();
    loop {
        match channel.hear().await?.0 {
            Word::Sockets(more) => sockets.extend(more),
            Word::Running { version, port } => {
                return Some(Approached::Met(Met { channel, version, port, sockets }));
            }
            Word::Refused(why) => return Some(Approached::Refused(why)),
            _ => {}
        }
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
    let stream = UnixStream::connect_addr(&name().ok()?).ok()?;
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
