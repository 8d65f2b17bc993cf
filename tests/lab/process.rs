//! Programs: run to their end, or kept running until dropped.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// What a command did.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its exit code; 128 and the signal's number if a signal ended it, as a shell counts.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A process in a namespace, ended with its children when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, and keeps its output in a file under `dir`.
    pub(super) fn start(command: &mut Command, program: &str, dir: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base =
            Path::new(program).file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
        let log = dir.join(format!("{number}-{base}.log"));
        let out = File::create(&log).expect("the lab's folder takes a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle on the log file"))
            .stderr(out)
            // A group of its own, so that its children can be ended with it.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, both streams.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.raw(), signal);
    }

    /// Waits for its end and returns the exit code as a shell counts it. Panics with its log after `limit`.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return shell_code(status);
            }
            assert!(Instant::now() < end, "still running after {limit:?}; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn raw(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process ids fit"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its group outlives it if it left children behind; the child is not yet reaped, so the id is still its own.
        let _ = killpg(self.raw(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Runs a command to its end, with `input` on its standard input.
pub(super) fn run(command: &mut Command, input: Option<&str>) -> Run {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that ends early closes its input; its exit code says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Run {
        code: shell_code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn shell_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
