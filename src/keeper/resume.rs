//! The keeper becomes the program on disk, in the same process: what it holds and knows goes along.
//!
//! A socket that is this process's standard input afterwards carries it across: what is sent there stays in the socket, and
//! a descriptor is received from it without being made from a number. Nothing is lost where it fails: the keeper then
//! stays the program that it was.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};

use super::worker::{Worker, file, program};
use super::{Keeper, RESUME, Restarts, policy, store};
use crate::net::parcel::{MOST, receive, send};

/// The form of [`State`]. A worker says which form a keeper of its program reads; one that says another, or none, is of
/// a version that the keeper does not become.
pub(super) const FORM: u32 = 1;

/// What a keeper knows, beside the descriptors.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    died: u64,
    stuck: u64,
    last: String,
    policy: policy::Record,
    confined: bool,
    /// A signal to do this all again has come meanwhile.
    renew: bool,
    leaving: Vec<i32>,
    worker: i32,
    /// The worker has begun to show that it moves.
    watched: bool,
    /// Names of what is held, and how many sockets each has, in the order in which they come.
    held: Vec<(String, usize)>,
}

impl Keeper {
    /// Becomes the program that `worker` runs, if that is another file than this process's. Comes back only if it does not.
    pub(super) fn become_program_of(&self, worker: &Worker) -> io::Result<()> {
        let identity = |path: &str| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let of_worker = identity(&format!("/proc/{}/exe", worker.pid))?;
        // The name on disk may have got another file since the worker was started.
        let on_disk = file(true).metadata().map(|file| (file.dev(), file.ino()))?;
        if of_worker == identity(super::PROGRAM)? || of_worker != on_disk {
            return Ok(());
        }
        let theirs = self.pack(worker)?;
        Err(program(RESUME, true).stdin(Stdio::from(theirs)).exec())
    }

    /// Puts everything into a socket, and gives the end at which it is read.
    fn pack(&self, worker: &Worker) -> io::Result<OwnedFd> {
        let Some(to_worker) = worker.socket() else {
            return Err(io::Error::other("the worker has closed its socket"));
        };
        let state = State {
            died: self.restarts.died,
            stuck: self.restarts.stuck,
            last: self.last.clone(),
            policy: self.policy.record(Instant::now()),
            confined: self.is_confined,
            renew: self.renew,
            leaving: self.leaving.iter().map(|pid| pid.as_raw()).collect(),
            worker: worker.pid.as_raw(),
            watched: worker.is_watched(),
            held: self.held.iter().map(|(name, sockets)| (name.to_owned(), sockets.len())).collect(),
        };
        let mut text = File::from(scratch()?);
        text.write_all(&serde_json::to_vec(&state)?)?;
        let (ours, theirs) = store::pair()?;
        // Nobody reads yet: better not to change than to wait for room.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        send(&ours, "state", &[text.as_fd(), to_worker.as_fd()])?;
        let sockets: Vec<&OwnedFd> = self.held.iter().flat_map(|(_, sockets)| sockets).collect();
        for some in sockets.chunks(MOST) {
            send(&ours, "held", some)?;
        }
        Ok(theirs)
    }

    /// Takes up what the program before has left in `socket`.
    pub(super) fn resume(socket: &OwnedFd) -> anyhow::Result<(Self, Worker)> {
        let (state, to_worker, sockets) = unpack(socket)?;
        let mut keeper = Self::new()?;
        keeper.restarts = Restarts { died: state.died, stuck: state.stuck };
        keeper.last = state.last;
        keeper.policy = policy::Policy::of(state.policy, Instant::now());
        keeper.is_confined = state.confined;
        keeper.renew = state.renew;
        keeper.leaving = state.leaving.into_iter().map(Pid::from_raw).collect();
        let mut sockets = sockets.into_iter();
        for (name, count) in state.held {
            keeper.held.keep(name, sockets.by_ref().take(count).collect());
        }
        Ok((keeper, Worker::inherited(Pid::from_raw(state.worker), to_worker, state.watched)))
    }
}

/// A file in memory, without a name in any folder.
fn scratch() -> rustix::io::Result<OwnedFd> {
    let named = |flags| memfd_create("edgesplice-keeper", flags);
    // Some nodes demand that nobody can execute it; kernels before 6.3 do not know the word.
    match named(MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => named(MemfdFlags::CLOEXEC),
        made => made,
    }
}

fn unpack(socket: &OwnedFd) -> io::Result<(State, OwnedFd, Vec<OwnedFd>)> {
    let nothing = || io::Error::other("standard input is no socket with what a keeper has left");
    let (_, beside) = receive(socket, RecvFlags::DONTWAIT)?.ok_or_else(nothing)?;
    let [text, to_worker] = <[OwnedFd; 2]>::try_from(beside).map_err(|_| nothing())?;
    let mut text = File::from(text);
    let mut bytes = Vec::new();
    text.rewind()?;
    text.read_to_end(&mut bytes)?;
    let state: State = serde_json::from_slice(&bytes)?;
    let wanted: usize = state.held.iter().map(|(_, count)| count).sum();
    let mut sockets = Vec::with_capacity(wanted);
    while sockets.len() < wanted {
        let (_, some) = receive(socket, RecvFlags::DONTWAIT)?.ok_or_else(nothing)?;
        sockets.extend(some);
    }
    Ok((state, to_worker, sockets))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn everything_goes_along() {
        let mut keeper = Keeper::new().unwrap();
        keeper.restarts = Restarts { died: 3, stuck: 1 };
        keeper.last = "was killed by signal 9".to_owned();
        keeper.is_confined = true;
        keeper.leaving = vec![Pid::from_raw(77)];
        keeper.policy.ready(Instant::now());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for number in 0..300 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            keeper.held.keep(format!("health 127.0.0.1:{number}"), vec![listener.into()]);
        }
        keeper.held.keep(super::super::ACCEPTOR.to_owned(), vec![listener.into()]);
        let (ours, theirs) = store::pair().unwrap();
        let worker = Worker::inherited(Pid::from_raw(78), ours, true);
        let left = keeper.pack(&worker).unwrap();
        let names: Vec<String> = keeper.held.iter().map(|(name, _)| name.to_owned()).collect();
        drop((keeper, worker));

        let (keeper, mut worker) = Keeper::resume(&left).unwrap();
        assert_eq!(keeper.restarts, Restarts { died: 3, stuck: 1 });
        assert_eq!(keeper.last, "was killed by signal 9");
        assert!(keeper.is_confined && keeper.policy.is_proven() && !keeper.policy.is_stopping());
        assert_eq!(keeper.leaving, [Pid::from_raw(77)]);
        assert_eq!(keeper.held.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
        assert_eq!((worker.pid, worker.is_watched()), (Pid::from_raw(78), true));
        send::<OwnedFd>(&theirs, "ready", &[]).unwrap();
        assert!(matches!(worker.hear().unwrap(), Some(store::Heard::Ready)));
        TcpStream::connect(address).expect("the listener lives on");
    }

    #[test]
    fn what_nobody_has_left_is_not_taken_up() {
        let (ours, theirs) = store::pair().unwrap();
        assert!(unpack(&theirs).is_err());
        send::<OwnedFd>(&ours, "state", &[]).unwrap();
        assert!(unpack(&theirs).is_err());
    }
}
