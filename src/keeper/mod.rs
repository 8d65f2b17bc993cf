//! The keeper: a small parent process that outlives the agent's work.
//!
//! `edgesplice run` is two processes. The one that was started, the keeper, does nothing but hold the acceptor's
//! sockets, pass signals on and start the other one again when it dies; that one, the worker, is the agent. While no
//! worker lives, the kernel goes on completing handshakes on the sockets that the keeper holds, and the next worker
//! accepts what has queued: a crash refuses nobody. A worker that keeps dying is started ever more slowly, and in the
//! end the rules are taken away, so that the node is no worse off than without this program. A worker that shows no
//! sign of moving is ended as if it had died.
//!
//! Told to (SIGHUP), the keeper starts a second worker of the program as it is on disk then, which takes the node over
//! from the first one (see `handover`) on the same sockets. Once that one has the node, the keeper becomes the program on
//! disk too, in the same process (`resume`).
//!
//! What lives here: starting and watching the worker (`worker`), the protocol between the two (`store`), going on as
//! another version (`resume`), and the policies of watching and of restarts, which are pure. What does not: anything that
//! can fail in interesting ways. The keeper parses no configuration, opens no file and talks to nobody but its worker;
//! what that one has given up (`confine`), it gives up too when told.

mod policy;
mod resume;
mod store;
mod watch;
mod worker;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::confine::{Rights, confine_like};
use crate::net::sock;

use policy::{Ended, Next, Policy};
use store::Before;
pub use store::{Restarts, Store};
pub use watch::BEAT;
use worker::{Worker, program};

/// Tells a process that the keeper started what it is to do. Its standard input is the socket to the keeper.
const TASK: &str = "EDGESPLICE_KEEPER_TASK";
const WORK: &str = "work";
const WITHDRAW: &str = "withdraw";
/// To go on as the keeper that this process was in another program.
const RESUME: &str = "resume";
/// Set to `off` by whoever wants the agent to be one process, under a debugger for one.
const SWITCH: &str = "EDGESPLICE_KEEPER";
/// The agent's variable for `proxy.takeOver`.
const TAKE_OVER: &str = "EDGESPLICE_TAKE_OVER";
/// The name under which the acceptor's sockets outlive a worker.
pub const ACCEPTOR: &str = "acceptor";
/// This program where its file has gone, because a newer version has taken its place.
const PROGRAM: &str = "/proc/self/exe";

/// What this process is to do.
#[derive(Debug)]
pub enum Role {
    /// The agent's work, with a keeper that holds its sockets.
    Worker(Store),
    /// To take away the rules of workers that keep dying.
    Withdraw,
    /// The agent's work, on its own.
    Alone,
}

/// Whether this process, started as `edgesplice run`, is to be a keeper. Any other is what [`role`] says.
pub fn is_keeper() -> bool {
    match std::env::var_os(TASK) {
        Some(task) => task == RESUME,
        None => std::env::var_os(SWITCH).is_none_or(|value| value != "off"),
    }
}

/// What this process is to do, which is no keeper.
///
/// Fails if it was started as a worker, but by no keeper that lives.
pub fn role() -> anyhow::Result<Role> {
    let Some(task) = std::env::var_os(TASK) else { return Ok(Role::Alone) };
    // The keeper holds signals back, and whoever it starts inherits that.
    SigSet::all().thread_unblock().context("cannot let signals through")?;
    if task != WORK {
        return Ok(Role::Withdraw);
    }
    // Without its keeper a worker would be an agent that nobody can stop by the process id that they know.
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot bind this process to its keeper")?;
    let socket = io::stdin().as_fd().try_clone_to_owned().context("the socket to the keeper")?;
    let store = Store::open(socket)
        .with_context(|| format!("standard input is no socket to a keeper; unset {TASK}"))?;
    Ok(Role::Worker(store))
}

/// Keeps a worker running until it ends for good, and gives the exit code that it ended with.
///
/// Fails if the first worker cannot be started.
pub fn keep() -> anyhow::Result<ExitCode> {
    let (mut keeper, mut inherited) = if std::env::var_os(TASK).is_some_and(|task| task == RESUME) {
        let socket = io::stdin().as_fd().try_clone_to_owned().context("what the keeper before has left")?;
        let (keeper, worker) = Keeper::resume(&socket).with_context(|| {
            format!("cannot go on as the keeper; if it was not one that set {TASK}, unset it")
        })?;
        (keeper, Some(worker))
    } else {
        (Keeper::new()?, None)
    };
    loop {
        let watched = match inherited.take() {
            Some(worker) => keeper.attend(worker),
            None => keeper.watch(),
        };
        let ended = match watched {
            Ok(ended) => ended,
            Err(error) if keeper.policy.is_proven() => {
                keeper.last = format!("could not be started: {error}");
                Ended::Exited(1)
            }
            Err(error) => return Err(error).context("cannot start the agent's process"),
        };
        match keeper.policy.ended(ended, Instant::now()) {
            Next::Exit(code) => {
                let had_time = match ended {
                    // 64: nothing was touched.
                    Ended::Exited(code) => code == 0 || code == 64,
                    Ended::Killed(_) | Ended::Stuck => false,
                };
                if !had_time && !keeper.policy.has_yielded() {
                    withdraw();
                }
                keeper.settle().context("cannot wait for a process that is ending")?;
                return Ok(code.into());
            }
            Next::Start(pause) => keeper.pause(pause)?,
            Next::Withdraw(pause) => {
                withdraw();
                // Nothing leads there any more; who has queued, or asks for a name, is better refused.
                keeper.held.clear();
                keeper.pause(pause)?;
            }
        }
        match ended {
            Ended::Stuck => keeper.restarts.stuck += 1,
            Ended::Exited(_) | Ended::Killed(_) => keeper.restarts.died += 1,
        }
        if keeper.policy.is_stopping() {
            withdraw();
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Has another process of this program take the rules away. What it says of itself in the log is all that can be said.
fn withdraw() {
    let _ = program(WITHDRAW, false).stdin(Stdio::null()).status();
}

struct Keeper {
    signals: SignalFd,
    /// How many descriptors this process may have.
    descriptors: u64,
    /// What the worker that has the node has left here.
    held: store::Held,
    policy: Policy,
    restarts: Restarts,
    /// What became of the last worker, for the next one to tell: the keeper does not know how to log.
    last: String,
    /// Whether workers are started from the file as it is now, and not from this process's own.
    renewed: bool,
    /// Workers that have given the node to another and let their connections end.
    leaving: Vec<Pid>,
    /// Told to have the worker replaced by one of the program as it is on disk now.
    renew: bool,
    /// It has given up what the worker has given up.
    is_confined: bool,
}

impl Keeper {
    fn new() -> anyhow::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
            mask.add(signal);
        }
        mask.thread_block().context("cannot hold signals back")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot read signals")?;
        // Room for the sockets of many UDP services; where there is less, fewer are kept.
        let raised = sock::raise_nofile().map(|(_, now)| now);
        let descriptors =
            raised.or_else(|_| sock::nofile()).context("cannot read the limit of descriptors")?;
        Ok(Self {
            signals,
            descriptors,
            held: store::Held::new(descriptors),
            policy: Policy::default(),
            restarts: Restarts::default(),
            last: String::new(),
            renewed: false,
            leaving: Vec::new(),
            renew: false,
            is_confined: false,
        })
    }

    /// Starts a worker, and attends it.
    fn watch(&mut self) -> io::Result<Ended> {
        let (ours, theirs) = store::pair()?;
        let before = Before {
            restarts: self.restarts,
            last: &self.last,
            worked: self.policy.is_proven(),
            confined: self.is_confined,
        };
        self.held.hand_over(&ours, &before)?;
        let worker = Worker::start(ours, theirs, self.renewed, false)?;
        self.attend(worker)
    }

    /// Watches a worker, and whoever takes the node over from it, to the end of the last one.
    fn attend(&mut self, mut worker: Worker) -> io::Result<Ended> {
        let mut successor = None;
        let ended = self.follow(&mut worker, &mut successor);
        if ended.is_err() {
            // Not to be forgotten beside the next one.
            for worker in [Some(worker), successor.map(|(worker, _)| worker)].into_iter().flatten() {
                let _ = kill(worker.pid, Signal::SIGKILL);
                let _ = waitpid(worker.pid, None);
            }
        }
        ended
    }

    /// Starts a worker of the program on disk that takes the node over from the one that works. It gets the acceptor's
    /// sockets; what else it needs it has from the other one, or opens itself.
    fn succeed(&self) -> io::Result<(Worker, store::Held)> {
        let (ours, theirs) = store::pair()?;
        self.held.lend(&ours, ACCEPTOR, self.is_confined)?;
        Ok((Worker::start(ours, theirs, true, true)?, store::Held::new(self.descriptors)))
    }

    fn follow(
        &mut self,
        worker: &mut Worker,
        successor: &mut Option<(Worker, store::Held)>,
    ) -> io::Result<Ended> {
        loop {
            let next = successor.as_ref().map(|(next, _)| next);
            let is_watched = worker.is_watched() || next.is_some_and(Worker::is_watched);
            let look = is_watched.then(|| PollTimeout::try_from(watch::LOOK).ok()).flatten();
            self.wait([worker.socket(), next.and_then(Worker::socket)], look.unwrap_or(PollTimeout::NONE))?;
            let (mut gives_way, mut died) = (false, false);
            while let Some(word) = worker.hear()? {
                match word {
                    store::Heard::Keep(name, sockets) if !self.policy.has_yielded() => {
                        self.held.keep(name, sockets);
                    }
                    store::Heard::Confine(rights) if !self.is_confined => {
                        confine_like(Rights::from_bits(rights));
                        self.is_confined = true;
                    }
                    store::Heard::Ready => self.policy.ready(Instant::now()),
                    store::Heard::Yielded if successor.is_some() => gives_way = true,
                    store::Heard::Yielded => {
                        self.policy.yielded();
                        // The other agent has its own.
                        self.held.clear();
                        worker.rest();
                    }
                    _ => {}
                }
            }
            worker.look(Instant::now());
            if let Some((next, held)) = successor {
                while let Some(word) = next.hear()? {
                    if let store::Heard::Keep(name, sockets) = word {
                        held.keep(name, sockets);
                    }
                }
                next.look(Instant::now());
            }
            let others = successor.iter().map(|(next, _)| next.pid);
            self.pass_on(&others.chain([worker.pid]).collect::<Vec<_>>())?;
            for (pid, ended) in reap()? {
                self.leaving.retain(|leaving| *leaving != pid);
                if successor.as_ref().is_some_and(|(next, _)| next.pid == pid) {
                    // It has said why.
                    *successor = None;
                } else if pid == worker.pid {
                    let (ended, last) = worker.ended(ended);
                    self.last = last;
                    if successor.is_none() || self.policy.is_stopping() {
                        return Ok(ended);
                    }
                    // Whoever is about to take over does so all the sooner.
                    (gives_way, died) = (true, true);
                }
            }
            if gives_way && let Some((next, held)) = successor.take() {
                let former = std::mem::replace(worker, next);
                if !died {
                    self.leaving.push(former.pid);
                }
                self.held = held;
                self.renewed = true;
                // Its words count from now on; that it is ready it may have said before.
                self.policy.ready(Instant::now());
            }
            let idle = successor.is_none() && !self.policy.is_stopping() && !self.policy.has_yielded();
            if idle && worker.take_form() == Some(resume::FORM) {
                // Where that cannot be, this program goes on.
                let _ = self.become_program_of(worker);
            }
            if std::mem::take(&mut self.renew) && successor.is_none() && !self.policy.is_stopping() {
                // Where it cannot be started, the one that works goes on.
                *successor = self.succeed().ok();
            }
        }
    }

    /// Waits for those that let their connections end: they would end with this process.
    fn settle(&mut self) -> io::Result<()> {
        loop {
            for (pid, _) in reap()? {
                self.leaving.retain(|leaving| *leaving != pid);
            }
            if self.leaving.is_empty() {
                break;
            }
            self.wait([None, None], PollTimeout::NONE)?;
            let leaving = self.leaving.clone();
            self.pass_on(&leaving)?;
        }
        // As the first process of a container: if it ended, the container would be started again, and take the node back.
        while self.policy.has_yielded() && std::process::id() == 1 && !self.policy.is_stopping() {
            self.wait([None, None], PollTimeout::NONE)?;
            self.pass_on(&[])?;
            reap()?;
        }
        Ok(())
    }

    /// Waits out a pause between two workers; a signal to stop ends it.
    fn pause(&mut self, pause: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + pause;
        while !self.policy.is_stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Rounded up, so that the last millisecond is waited for and not spun away.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            self.wait([None, None], left).context("cannot wait")?;
            self.pass_on(&[]).context("cannot read signals")?;
        }
        Ok(())
    }

    /// Waits for a signal, or for a word of a worker.
    fn wait(&self, workers: [Option<&OwnedFd>; 2], timeout: PollTimeout) -> io::Result<()> {
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let sockets = workers.into_iter().flatten();
        sources.extend(sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads the signals that have come, and passes on what is meant for the agent.
    fn pass_on(&mut self, workers: &[Pid]) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                None | Some(Signal::SIGCHLD) => {}
                Some(Signal::SIGHUP) => self.renew = true,
                Some(signal) => {
                    self.policy.stop();
                    for worker in workers {
                        // It may have died meanwhile, of which we hear next.
                        let _ = kill(*worker, signal);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The children that have ended, and how. Among them may be strangers: as the first process of a container, the keeper
/// inherits those that a killed worker had.
fn reap() -> io::Result<Vec<(Pid, Ended)>> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => ended.push((pid, Ended::Exited(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => ended.push((pid, Ended::Killed(signal as i32))),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
