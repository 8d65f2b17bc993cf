//! One worker: its process, what it says, and whether it still moves.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::policy::Ended;
use super::store::{self, Heard};
use super::watch::{self, Watch};
use super::{PROGRAM, TAKE_OVER, TASK, WORK};

/// A process that works, or is getting ready to.
pub(super) struct Worker {
    pub(super) pid: Pid,
    /// `None` once it has closed its side.
    socket: Option<OwnedFd>,
    watch: Watch,
    /// What it has said of a part that is stuck.
    complaint: Option<String>,
    /// Why it was ended.
    stuck: Option<String>,
    /// In what form a keeper of its program takes up what another one has left.
    form: Option<u32>,
}

impl Worker {
    /// Starts one that is spoken to through `ours`, and has `theirs` as its standard input.
    pub(super) fn start(ours: OwnedFd, theirs: OwnedFd, renewed: bool, takes_over: bool) -> io::Result<Self> {
        Ok(Self::inherited(spawn(theirs, renewed, takes_over)?, ours, false))
    }

    /// One that was started before, and is spoken to through `ours`. `watched`: it has begun to show that it moves.
    pub(super) fn inherited(pid: Pid, ours: OwnedFd, watched: bool) -> Self {
        let mut watch = Watch::default();
        if watched {
            watch.heard(Instant::now());
        }
        Self { pid, socket: Some(ours), watch, complaint: None, stuck: None, form: None }
    }

    /// In what form a keeper of its program takes up what another one has left. Said once: the next call gives nothing.
    pub(super) fn take_form(&mut self) -> Option<u32> {
        self.form.take()
    }

    /// What it is heard through, as long as it may speak.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Whether it is to be looked at even if it says nothing.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_on()
    }

    /// It need not show any more that it moves.
    pub(super) fn rest(&mut self) {
        self.watch.rest();
    }

    /// The next word that concerns others; `None`: no more for now.
    pub(super) fn hear(&mut self) -> io::Result<Option<Heard>> {
        loop {
            let Some(socket) = &self.socket else { return Ok(None) };
            match store::hear(socket)? {
                Heard::Moves => self.watch.heard(Instant::now()),
                Heard::Stuck(part) => self.complaint = Some(part),
                Heard::Ending => self.watch.rest(),
                Heard::Form(form) => self.form = Some(form),
                Heard::Nothing => return Ok(None),
                Heard::End => {
                    // Its end as a process is told by a signal.
                    self.socket = None;
                    return Ok(None);
                }
                word => return Ok(Some(word)),
            }
        }
    }

    /// Ends it if it does not move any more. To be called once everything that it said has been heard.
    pub(super) fn look(&mut self, now: Instant) {
        let silent = self.watch.look(now);
        let silence = || format!("no sign of life for {} s", watch::SILENCE.as_secs());
        let why = self.complaint.take().or_else(|| silent.then(silence));
        if let Some(why) = why.filter(|_| self.watch.is_on()) {
            let _ = kill(self.pid, Signal::SIGKILL);
            self.watch.rest();
            self.stuck = Some(why);
        }
    }

    /// What became of it, for the policy and in words.
    pub(super) fn ended(&mut self, how: Ended) -> (Ended, String) {
        match (how, self.stuck.take()) {
            (Ended::Killed(_), Some(why)) => (Ended::Stuck, format!("was stuck ({why}) and was ended")),
            (Ended::Exited(code), _) => (how, format!("ended with {code}")),
            (Ended::Killed(signal), _) => (how, format!("was killed by signal {signal}")),
            (Ended::Stuck, _) => (how, String::new()),
        }
    }
}

/// The same program with the same arguments, for another task. Under its own name, which `ps` and `pgrep` show.
/// `renewed`: from the file that has taken the place of this process's own.
pub(super) fn program(task: &str, renewed: bool) -> Command {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(file(renewed));
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // The service manager's watchdog is meant for whoever works, not for the process id that it knows.
    command.args(arguments).env(TASK, task).env_remove("WATCHDOG_PID");
    command
}

/// The file that [`program`] is started from.
pub(super) fn file(renewed: bool) -> PathBuf {
    let own = std::env::current_exe().ok();
    let file =
        own.and_then(|file| if file.exists() { Some(file) } else { replaced(&file).filter(|_| renewed) });
    file.unwrap_or_else(|| PROGRAM.into())
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
