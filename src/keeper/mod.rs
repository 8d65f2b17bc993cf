//! The keeper: a small parent process that outlives the agent's work.
//!
//! `edgesplice run` is two processes. The one that was started, the keeper, does nothing but hold the acceptor's
//! sockets, pass signals on and start the other one again when it dies; that one, the worker, is the agent. While no
//! worker lives, the kernel goes on completing handshakes on the sockets that the keeper holds, and the next worker
//! accepts what has queued: a crash refuses nobody. A worker that keeps dying is started ever more slowly, and in the
//! end the rules are taken away, so that the node is no worse off than without this program.
//!
//! Told to (SIGHUP), the keeper starts a second worker of the program as it is on disk then, which takes the node over
//! from the first one (see `handover`) on the same sockets. The keeper itself stays the process that it was.
//!
//! What lives here: starting and watching the worker, the protocol between the two, and the policy of restarts, which
//! is pure. What does not: anything that can fail in interesting ways. The keeper parses no configuration, opens no
//! file and talks to nobody but its worker.

mod policy;
mod store;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use policy::{Ended, Next, Policy};
pub use store::Store;

/// Tells a process that the keeper started what it is to do. Its standard input is the socket to the keeper.
const TASK: &str = "EDGESPLICE_KEEPER_TASK";
const WORK: &str = "work";
const WITHDRAW: &str = "withdraw";
/// Set to `off` by whoever wants the agent to be one process, under a debugger for one.
const SWITCH: &str = "EDGESPLICE_KEEPER";
/// The agent's variable for `proxy.takeOver`.
const TAKE_OVER: &str = "EDGESPLICE_TAKE_OVER";
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
    std::env::var_os(TASK).is_none() && std::env::var_os(SWITCH).is_none_or(|value| value != "off")
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
    let mut keeper = Keeper::new()?;
    loop {
        let ended = match keeper.watch() {
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
                    Ended::Killed(_) => false,
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
                keeper.pause(pause)?;
            }
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
    /// What the worker that has the node has left here.
    held: store::Held,
    policy: Policy,
    /// What became of the last worker, for the next one to tell: the keeper does not know how to log.
    last: String,
    /// Whether workers are started from the file as it is now, and not from this process's own.
    renewed: bool,
    /// Workers that have given the node to another and let their connections end.
    leaving: Vec<Pid>,
    /// Told to have the worker replaced by one of the program as it is on disk now.
    renew: bool,
}

/// A process that works, or is getting ready to.
struct Worker {
    pid: Pid,
    /// `None` once it has closed its side.
    socket: Option<OwnedFd>,
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
        Ok(Self {
            signals,
            held: store::Held::default(),
            policy: Policy::default(),
            last: String::new(),
            renewed: false,
            leaving: Vec::new(),
            renew: false,
        })
    }

    /// Starts a worker and watches it, and whoever takes the node over from it, to the end of the last one.
    fn watch(&mut self) -> io::Result<Ended> {
        let (ours, theirs) = store::pair()?;
        self.held.hand_over(&ours, &self.last, self.policy.is_proven())?;
        let mut worker = Worker { pid: spawn(theirs, self.renewed, false)?, socket: Some(ours) };
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

    /// Starts a worker of the program on disk that takes the node over from the one that works. It gets the same sockets.
    fn succeed(&self) -> io::Result<(Worker, store::Held)> {
        let (ours, theirs) = store::pair()?;
        self.held.hand_over(&ours, "", false)?;
        let pid = spawn(theirs, true, true)?;
        Ok((Worker { pid, socket: Some(ours) }, store::Held::default()))
    }

    fn follow(
        &mut self,
        worker: &mut Worker,
        successor: &mut Option<(Worker, store::Held)>,
    ) -> io::Result<Ended> {
        loop {
            let sockets =
                [worker.socket.as_ref(), successor.as_ref().and_then(|(next, _)| next.socket.as_ref())];
            self.wait(sockets, PollTimeout::NONE)?;
            let mut gives_way = false;
            while let Some(word) = hear(worker)? {
                match word {
                    store::Heard::Keep(name, sockets) => self.held.keep(name, sockets),
                    store::Heard::Ready => self.policy.ready(Instant::now()),
                    store::Heard::Yielded if successor.is_some() => gives_way = true,
                    store::Heard::Yielded => self.policy.yielded(),
                    store::Heard::Nothing | store::Heard::End => {}
                }
            }
            if let Some((next, held)) = successor {
                while let Some(word) = hear(next)? {
                    if let store::Heard::Keep(name, sockets) = word {
                        held.keep(name, sockets);
                    }
                }
            }
            let others = successor.iter().map(|(next, _)| next.pid);
            self.pass_on(&others.chain([worker.pid]).collect::<Vec<_>>())?;
            for (pid, ended) in reap()? {
                self.leaving.retain(|leaving| *leaving != pid);
                if successor.as_ref().is_some_and(|(next, _)| next.pid == pid) {
                    // It has said why.
                    *successor = None;
                } else if pid == worker.pid {
                    self.last = match ended {
                        Ended::Exited(code) => format!("ended with {code}"),
                        Ended::Killed(signal) => format!("was killed by signal {signal}"),
                    };
                    if successor.is_none() || self.policy.is_stopping() {
                        return Ok(ended);
                    }
                    // Whoever is about to take over does so all the sooner.
                    gives_way = true;
                }
            }
            if gives_way && let Some((next, held)) = successor.take() {
                let former = std::mem::replace(worker, next);
                self.leaving.push(former.pid);
                self.held = held;
                self.renewed = true;
                // Its words count from now on; that it is ready it may have said before.
                self.policy.ready(Instant::now());
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

/// The next word of a worker; `None`: no more for now.
fn hear(worker: &mut Worker) -> io::Result<Option<store::Heard>> {
    let Some(socket) = &worker.socket else { return Ok(None) };
    match store::hear(socket)? {
        store::Heard::Nothing => Ok(None),
        store::Heard::End => {
            // Its end as a process is told by a signal.
            worker.socket = None;
            Ok(None)
        }
        word => Ok(Some(word)),
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

/// The same program with the same arguments, for another task. Under its own name, which `ps` and `pgrep` show.
/// `renewed`: from the file that has taken the place of this process's own.
fn program(task: &str, renewed: bool) -> Command {
    let own = std::env::current_exe().ok();
    let file =
        own.and_then(|file| if file.exists() { Some(file) } else { replaced(&file).filter(|_| renewed) });
    let mut arguments = std::env::args_os();
    let mut command = Command::new(file.unwrap_or_else(|| PROGRAM.into()));
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // The service manager's watchdog is meant for whoever works, not for the process id that it knows.
    command.args(arguments).env(TASK, task).env_remove("WATCHDOG_PID");
    command
}

/// The file that stands where the kernel says that `file` was.
fn replaced(file: &Path) -> Option<PathBuf> {
    let name = file.to_str()?.strip_suffix(" (deleted)")?;
    Some(PathBuf::from(name)).filter(|file| file.exists())
}

fn spawn(socket: OwnedFd, renewed: bool, takes_over: bool) -> io::Result<Pid> {
    let mut command = program(WORK, renewed);
    if takes_over {
        command.env(TAKE_OVER, "true");
    }
    // In a group of its own: what a terminal sends to the keeper's group comes from the keeper, and only once.
    let child = command.stdin(Stdio::from(socket)).process_group(0).spawn()?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
}
