//! Other network namespaces: finding them, and working in one.

use std::collections::HashSet;
use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns};

use super::read::Roots;

/// A network namespace other than the caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// `netns-NAME` or `pid-NUMBER`: good as a folder's name.
    pub label: String,
    /// The file that stands for it.
    pub path: PathBuf,
}

/// Device and inode of a namespace file; two files with the same stand for the same namespace.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Whether a process, by its folder below `/proc`, is in the caller's network namespace; `None`: that cannot be told.
///
/// To follow the link in `ns` takes the right to trace the process, which a confined agent lacks. The files in `net` may
/// be looked at by everybody, and each namespace has its own.
pub(super) fn is_here(process: &Path) -> Option<bool> {
    let own = Path::new("/proc/thread-self");
    ["ns/net", "net/dev"]
        .into_iter()
        .find_map(|file| Some(identity(&process.join(file))? == identity(&own.join(file))?))
}

/// The calling thread's own network namespace.
pub(super) fn own() -> Option<(u64, u64)> {
    identity(Path::new("/proc/thread-self/ns/net"))
}

/// Every other network namespace that has a name or a process, each once.
pub(super) fn others(roots: &Roots) -> Vec<Netns> {
    let Some(own) = own() else { return Vec::new() };
    let mut seen = HashSet::from([own]);
    let mut found = Vec::new();
    let mut add = |label: String, path: PathBuf| {
        // Anything else in the folder is not a namespace: all of those live on one device.
        if let Some(id) = identity(&path).filter(|id| id.0 == own.0)
            && seen.insert(id)
        {
            found.push(Netns { label, path });
        }
    };
    for (name, path) in entries(&roots.files.join("var/run/netns")) {
        add(format!("netns-{name}"), path);
    }
    for (name, path) in entries(&roots.processes) {
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            add(format!("pid-{name}"), path.join("ns/net"));
        }
    }
    found
}

/// Names and paths in a folder, sorted; none if it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<_> =
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    all.sort();
    all
}

/// Runs `work` in the network namespace at `path`, on a thread of its own: a thread that changed its namespace must
/// not go back to a pool. Sockets that `work` opens and programs that it starts live there too.
pub async fn within<T, F, W>(path: &Path, work: W) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
    W: FnOnce() -> F + Send + 'static,
{
    let (answer, result) = tokio::sync::oneshot::channel();
    let shown = path.display().to_string();
    let path = path.to_owned();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let enter = || -> anyhow::Result<T> {
                let file = fs::File::open(&path)?;
                setns(file, CloneFlags::CLONE_NEWNET)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok(runtime.block_on(work()))
            };
            // Whoever asked may have gone away: then nobody needs the answer.
            let _ = answer.send(enter());
        })
        .context("cannot start a thread")?;
    let result = result.await.map_err(|_| anyhow!("the work in the network namespace {shown} broke off"))?;
    result.with_context(|| format!("cannot enter the network namespace {shown}"))
}
