//! What this process gives up before it begins its work: rights, system calls, files.
//!
//! Everything here holds for the calling thread and whatever it starts from then on, threads and programs, and cannot
//! be taken back; so it must happen before the first thread is started. Each part that a kernel does not have is left
//! out and named in the [`Report`]; none of it ever stops a start.
//!
//! `rights` are capabilities, `calls` the seccomp filter, `files` Landlock. What does not belong here: which files and
//! rights the agent needs (`app` knows), and what the service manager or the container runtime does beside.

mod calls;
mod files;
mod rights;

use std::path::PathBuf;

pub use rights::Rights;

/// What is needed from now on.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files and folders that are read.
    pub read: Vec<PathBuf>,
    /// Files that are written, and folders in which files are made and removed. What is not there is passed over.
    pub write: Vec<PathBuf>,
}

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The capabilities that are left.
    pub rights: Rights,
    /// Why more are left than the usual ones; each a line.
    pub reasons: Vec<String>,
    /// Whether no program that is started can gain rights (`no_new_privs`).
    pub no_new_privileges: bool,
    /// How many system calls are forbidden; none: there is no filter.
    pub calls: usize,
    /// Landlock's version, by which files can be written in few places only; 0: there is none.
    pub files: i32,
    /// What could not be done, each a line.
    pub faults: Vec<String>,
}

/// Confines the calling thread, and with it what it starts. With `inherited` the filter of system calls is in force
/// already, as it is in a worker whose keeper has one.
pub fn confine(needs: &Needs, inherited: bool) -> Report {
    let mut report = Report::default();
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => {}
        Ok(threads) => report.faults.push(format!("{threads} threads run already, and one is confined")),
        Err(error) => report.faults.push(format!("the threads of this process cannot be counted: {error}")),
    }
    let (rights, reasons) = rights::needed(needs);
    report.reasons = reasons;
    limit(rights, inherited, &mut report);
    match files::write_only_below(&needs.write) {
        Ok(version) => report.files = version,
        Err(why) => report.faults.push(why),
    }
    report
}

/// Confines the calling thread to `rights` and to the system calls that a worker has, for a process that opens no
/// files. Whatever fails is left as it is: the worker has told of the same.
pub fn confine_like(rights: Rights) {
    limit(rights, false, &mut Report::default());
}

fn limit(rights: Rights, inherited: bool, report: &mut Report) {
    // Before the filter, which needs it, and so that it holds even where there is none.
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => report.no_new_privileges = true,
        Err(error) => report.faults.push(format!("new privileges cannot be ruled out: {error}")),
    }
    if let Err(why) = rights::drop_all_but(rights) {
        report.faults.push(why);
    }
    report.rights = Rights::held();
    let filter = if inherited { Ok(calls::count()) } else { calls::forbid() };
    match filter {
        Ok(count) => report.calls = count,
        Err(why) => report.faults.push(why),
    }
}
