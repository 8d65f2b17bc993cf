//! The keeper: a small parent process that outlives the agent's work.
//!
//! `edgesplice run` is two processes. The one that was started, the keeper, does nothing but hold the acceptor's
//! sockets, pass signals on and start the other one again when it dies; that one, the worker, is the agent. While no
//! worker lives, the kernel goes on completing handshakes on the sockets that the keeper holds, and the next worker
//! accepts what has queued: a crash refuses nobody. A worker that keeps dying is started ever more slowly, and in the
//! end the rules are taken away, so that the node is no worse off than without this program.
//!
//! What lives here: starting and watching the worker, the protocol between the two, and the policy of restarts, which
//! is pure. What does not: anything that can fail in interesting ways. The keeper parses no configuration, opens no
//! file and talks to nobody but its worker.

mod policy;
mod store;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use tracing::{error, warn};

use policy::{Next, Policy};
pub use store::Store;

/// Set for the worker, whose standard input is then the socket to its keeper.
const WORKER: &str = "EDGESPLICE_KEEPER_ON_STDIN";
/// Set to `off` by whoever wants the agent to be one process: the two would only be in the way of a debugger.
const SWITCH: &str = "EDGESPLICE_KEEPER";
/// This program, whatever its file is called by now.
const PROGRAM: &str = "/proc/self/exe";

/// What this process is to be.
#[derive(Debug)]
pub enum Role {
    /// The agent, with a keeper that holds its sockets.
    Worker(Store),
    /// The agent, on its own.
    Alone,
    /// The keeper.
    Keeper,
}

/// Finds out which of the two processes this is.
///
/// Fails if this was started as a worker, but not by a keeper.
pub fn role() -> anyhow::Result<Role> {
    if std::env::var_os(WORKER).is_some() {
        let socket = io::stdin().as_fd().try_clone_to_owned().context("the socket to the keeper")?;
        // Without its keeper a worker is no agent that anybody could stop.
        prctl::set_pdeathsig(Signal::SIGKILL).context("cannot bind this process to its keeper")?;
        anyhow::ensure!(getppid() != Pid::from_raw(1) || std::process::id() == 1, "the keeper has gone");
        return Ok(Role::Worker(Store::open(socket).context("the keeper's socket")?));
    }
    if std::env::var_os(SWITCH).is_some_and(|value| value == "off") {
        return Ok(Role::Alone);
    }
    Ok(Role::Keeper)
}

/// Keeps a worker running until it ends for good, and gives the exit code that it ended with.
///
/// `withdraw` are the arguments with which this program takes its rules away.
pub fn keep(withdraw: &[&str]) -> anyhow::Result<ExitCode> {
    let mut keeper = Keeper::new()?;
    loop {
        let next = match keeper.watch() {
            Ok(ended) => keeper.policy.ended(ended, Instant::now()),
            Err(error) => {
                warn!(%error, "no worker can be started");
                keeper.policy.not_started(Instant::now())
            }
        };
        match next {
            Next::Exit(code) => return Ok(code.into()),
            Next::Start(pause) => keeper.pause(pause)?,
            Next::Withdraw(pause) => {
                error!("the agent keeps dying: its rules are taken away until it lives again");
                if let Err(error) = run_to_end(withdraw) {
                    error!(%error, "the rules could not be taken away; `edgesplice cleanup` removes them");
                }
                keeper.pause(pause)?;
            }
        }
    }
}

struct Keeper {
    signals: SignalFd,
    held: store::Held,
    policy: Policy,
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
        Ok(Self { signals, held: store::Held::default(), policy: Policy::default() })
    }

    /// Starts a worker and watches it to its end.
    fn watch(&mut self) -> io::Result<ExitStatus> {
        let (ours, theirs) = store::pair()?;
        self.held.hand_over(&ours)?;
        let mut worker = spawn(theirs)?;
        loop {
            self.wait(Some(&ours), PollTimeout::NONE)?;
            while let Some(word) = store::hear(&ours)? {
                match word {
                    store::Word::Keep(name, sockets) => self.held.keep(name, sockets),
                    store::Word::Ready => self.policy.ready(Instant::now()),
                }
            }
            self.pass_on(Some(&worker))?;
            if let Some(status) = worker.try_wait()? {
                return Ok(status);
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
            self.wait(None, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).context("waiting")?;
            self.pass_on(None).context("reading signals")?;
        }
        Ok(())
    }

    /// Waits for a signal, or for a word of the worker.
    fn wait(&self, worker: Option<&OwnedFd>, timeout: PollTimeout) -> io::Result<()> {
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        sources.extend(worker.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match poll(&mut sources, timeout) {
            // The worker has closed its side: its end is told by a signal.
            Ok(_) if sources.len() > 1 && is_hung_up(&sources[1]) && !has_any(&sources[0]) => {
                poll(&mut sources[..1], timeout)?;
                Ok(())
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads the signals that have come, and passes on what is meant for the agent.
    fn pass_on(&mut self, worker: Option<&Child>) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) else { continue };
            if signal != Signal::SIGHUP {
                self.policy.stop();
            }
            if let Some(pid) = worker.and_then(|worker| i32::try_from(worker.id()).ok()) {
                // It may have died meanwhile, of which we hear next.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        Ok(())
    }
}

fn has_any(source: &PollFd<'_>) -> bool {
    source.revents().is_some_and(|events| !events.is_empty())
}

fn is_hung_up(source: &PollFd<'_>) -> bool {
    source.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP) && !events.contains(PollFlags::POLLIN))
}

/// The same program with the same arguments. Its signal mask is the usual one: `std` sees to that.
fn spawn(socket: OwnedFd) -> io::Result<Child> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    Command::new(PROGRAM).args(arguments).env(WORKER, "1").stdin(Stdio::from(socket)).spawn()
}

fn run_to_end(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).status()?;
    anyhow::ensure!(status.success(), "it ended with {status}");
    Ok(())
}
