//! Threads of another process that are made to stand still, one at a time.

use std::fs;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::scene::pid;

/// A thread that stands still, as if it spun or waited for ever. It goes on when this is dropped.
pub(crate) struct Wedged {
    go_on: Option<Sender<()>>,
    holding: Option<JoinHandle<()>>,
}

impl Wedged {
    /// Stops the thread of that name in `process`; the main one has the program's own name.
    pub(crate) fn thread(process: u32, name: &str) -> Self {
        let thread = find(process, name);
        let (go_on, told) = channel();
        let (stopped, is_stopped) = channel();
        // Only the thread that stopped it can let it go on.
        let holding = std::thread::spawn(move || {
            ptrace::seize(pid(thread), ptrace::Options::empty()).expect("root may trace");
            ptrace::interrupt(pid(thread)).expect("it can be stopped");
            waitpid(pid(thread), Some(WaitPidFlag::__WALL)).expect("it stops");
            stopped.send(()).expect("somebody waits");
            loop {
                // Its end must be taken note of, or the process would not be gone.
                let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
                match waitpid(pid(thread), Some(flags)) {
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return,
                    Ok(_) => {}
                }
                let pause = std::time::Duration::from_millis(20);
                if !matches!(told.recv_timeout(pause), Err(std::sync::mpsc::RecvTimeoutError::Timeout)) {
                    let _ = ptrace::detach(pid(thread), None);
                    return;
                }
            }
        });
        is_stopped.recv().expect("it stops");
        Self { go_on: Some(go_on), holding: Some(holding) }
    }
}

impl Drop for Wedged {
    fn drop(&mut self) {
        drop(self.go_on.take());
        if let Some(holding) = self.holding.take() {
            let _ = holding.join();
        }
    }
}

fn find(process: u32, name: &str) -> u32 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("a live process").flatten();
    let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    let named = |id: &u32| {
        let comm = fs::read_to_string(format!("/proc/{process}/task/{id}/comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    };
    ids.into_iter().find(named).unwrap_or_else(|| panic!("{process} has no thread {name}"))
}
