//! The keeper: a small parent process that outlives the agent's work.
//!
//! `edgesplice run` is two processes. The one that was started, the keeper, does nothing but hold the acceptor's
//! sockets, pass signals on and start the other one again when it dies; that one, the worker, is the agent. While no
//! worker lives, the kernel goes on completing handshakes on the sockets that the keeper holds, and the next worker
//! accepts what has queued: a crash refuses nobody. A worker that keeps dying is started ever more slowly, and in the
//! end the rules are taken away, so that the node is no worse off than without this program. A worker that shows no
//! sign of moving is ended as if it had died.
//!
//! What lives here: starting and watching the worker, the protocol between the two, and the policies of watching and
//! of restarts, which are pure. What does not: anything that can fail in interesting ways. The keeper parses no
//! configuration, opens no file and talks to nobody but its worker.

mod policy;
mod store;
mod watch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
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

use crate::net::sock;

use policy::{Ended, Next, Policy};
pub use store::{Restarts, Store};
pub use watch::BEAT;
use watch::Watch;

/// Tells a process that the keeper started what it is to do. Its standard input is the socket to the keeper.
const TASK: &str = "EDGESPLICE_KEEPER_TASK";
const WORK: &str = "work";
const WITHDRAW: &str = "withdraw";
/// Set to `off` by whoever wants the agent to be one process, under a debugger for one.
const SWITCH: &str = "EDGESPLICE_KEEPER";
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
                    Ended::Killed(_) | Ended::Stuck => false,
                };
                if !had_time {
                    withdraw();
                }
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
    let _ = program(WITHDRAW).stdin(Stdio::null()).status();
}

struct Keeper {
    signals: SignalFd,
    held: store::Held,
    policy: Policy,
    restarts: Restarts,
    /// What became of the last worker, for the next one to tell: the keeper does not know how to log.
    last: String,
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
        let (held, policy) = (store::Held::new(descriptors), Policy::default());
        Ok(Self { signals, held, policy, restarts: Restarts::default(), last: String::new() })
    }

    /// Starts a worker and watches it to its end.
    fn watch(&mut self) -> io::Result<Ended> {
        let (ours, theirs) = store::pair()?;
        self.held.hand_over(&ours, self.restarts, &self.last)?;
        let worker = spawn(theirs)?;
        let ended = self.follow(worker, &ours);
        if ended.is_err() {
            // Not to be forgotten beside the next one.
            let _ = kill(worker, Signal::SIGKILL);
            let _ = waitpid(worker, None);
        }
        ended
    }

    fn follow(&mut self, worker: Pid, ours: &OwnedFd) -> io::Result<Ended> {
        let mut socket = Some(ours);
        let mut watch = Watch::default();
        let mut stuck: Option<String> = None;
        loop {
            let look = if watch.is_on() { PollTimeout::try_from(watch::LOOK).ok() } else { None };
            self.wait(socket, look.unwrap_or(PollTimeout::NONE))?;
            let mut why = None;
            loop {
                match store::hear(ours)? {
                    store::Heard::Keep(name, sockets) => self.held.keep(name, sockets),
                    store::Heard::Ready => self.policy.ready(Instant::now()),
                    store::Heard::Moves => watch.heard(Instant::now()),
                    store::Heard::Stuck(part) => why = Some(part),
                    store::Heard::Ending => watch.rest(),
                    store::Heard::Nothing => break,
                    store::Heard::End => {
                        // Its end as a process is told by a signal.
                        socket = None;
                        break;
                    }
                }
            }
            if watch.look(Instant::now()) {
                why = why.or_else(|| Some(format!("no sign of life for {} s", watch::SILENCE.as_secs())));
            }
            if let Some(why) = why.filter(|_| watch.is_on()) {
                let _ = kill(worker, Signal::SIGKILL);
                watch.rest();
                stuck = Some(why);
            }
            self.pass_on(Some(worker))?;
            if let Some(ended) = reap(worker)? {
                let (ended, last) = match (ended, stuck) {
                    (Ended::Killed(_), Some(why)) => {
                        (Ended::Stuck, format!("was stuck ({why}) and was ended"))
                    }
                    (Ended::Exited(code), _) => (ended, format!("ended with {code}")),
                    (Ended::Killed(signal), _) => (ended, format!("was killed by signal {signal}")),
                    (Ended::Stuck, _) => (ended, String::new()),
                };
                self.last = last;
                return Ok(ended);
            }
        }
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
            self.wait(None, left).context("cannot wait")?;
            self.pass_on(None).context("cannot read signals")?;
        }
        Ok(())
    }

    /// Waits for a signal, or for a word of the worker.
    fn wait(&self, worker: Option<&OwnedFd>, timeout: PollTimeout) -> io::Result<()> {
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        sources.extend(worker.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads the signals that have come, and passes on what is meant for the agent.
    fn pass_on(&mut self, worker: Option<Pid>) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) else { continue };
            if signal != Signal::SIGHUP {
                self.policy.stop();
            }
            if let Some(worker) = worker {
                // It may have died meanwhile, of which we hear next.
                let _ = kill(worker, signal);
            }
        }
        Ok(())
    }
}

/// How the worker ended, if it has. Collects other children too: as the first process of a container, the keeper
/// inherits those that a killed worker had.
fn reap(worker: Pid) -> io::Result<Option<Ended>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == worker => return Ok(Some(Ended::Exited(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => {
                return Ok(Some(Ended::Killed(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The same program with the same arguments, for another task. Under its own name, which `ps` and `pgrep` show.
fn program(task: &str) -> Command {
    let file = std::env::current_exe().ok().filter(|file| file.exists());
    let mut arguments = std::env::args_os();
    let mut command = Command::new(file.unwrap_or_else(|| PROGRAM.into()));
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // The service manager's watchdog is meant for whoever works, not for the process id that it knows.
    command.args(arguments).env(TASK, task).env_remove("WATCHDOG_PID");
    command
}

fn spawn(socket: OwnedFd) -> io::Result<Pid> {
    // In a group of its own: what a terminal sends to the keeper's group comes from the keeper, and only once.
    let child = program(WORK).stdin(Stdio::from(socket)).process_group(0).spawn()?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
}
