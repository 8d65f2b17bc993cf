//! Kernel pipes for `splice(2)`, reused because making one costs as much as moving a megabyte.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Wanted size. Measured for one stream, as a share of kernel DNAT: 64 KiB 0.55 to 0.64, 256 KiB 0.77, 512 KiB 0.86,
/// 1 MiB 0.79 to 0.96.
const WANTED: i32 = 512 * 1024;
/// A smaller pipe is worse than copying. The kernel gives two pages once a user without `CAP_SYS_RESOURCE` has
/// `fs.pipe-user-pages-soft` pages in pipes.
const LEAST: usize = 64 * 1024;
/// Pipes kept for the next stream. An empty pipe holds no memory worth counting, only two descriptors.
const KEPT: usize = 16;

/// What the pool has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipeStats {
    /// Times a direction took a pipe.
    pub taken: u64,
    /// Pipes that exist now, kept ones included.
    pub live: usize,
    /// Pipes kept for reuse.
    pub kept: usize,
}

/// Pipes shared by all connections. The lock is taken only when a direction shifts gear.
#[derive(Clone, Debug)]
pub struct PipePool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Mutex<Vec<Pipe>>,
    live: AtomicUsize,
    taken: AtomicU64,
    most: usize,
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: usize,
}

impl Pipe {
    fn new() -> Option<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // Refused beyond `fs.pipe-max-size` or the user's share: take what there is.
        let set = [WANTED, WANTED / 2, WANTED / 4]
            .into_iter()
            .find_map(|size| fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size)).ok());
        let capacity = set.or_else(|| fcntl(&writer, FcntlArg::F_GETPIPE_SZ).ok())?;
        let capacity = usize::try_from(capacity).ok().filter(|size| *size >= LEAST)?;
        Some(Self { reader, writer, capacity })
    }
}

impl PipePool {
    /// A pool with at most `most` pipes at once.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner {
            kept: Mutex::default(),
            live: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            most,
        }))
    }

    /// An empty pipe; `None` if there are too many, or the kernel gives none that is worth having.
    pub(super) fn take(&self) -> Option<PooledPipe> {
        let pool = &self.0;
        let kept = pool.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let pipe = match kept {
            Some(pipe) => pipe,
            None if pool.live.fetch_add(1, Relaxed) < pool.most => Pipe::new().or_else(|| {
                pool.live.fetch_sub(1, Relaxed);
                None
            })?,
            None => {
                pool.live.fetch_sub(1, Relaxed);
                return None;
            }
        };
        pool.taken.fetch_add(1, Relaxed);
        Some(PooledPipe { pipe: Some(pipe), in_flight: 0, pool: Arc::clone(pool) })
    }

    /// What the pool has done.
    pub fn stats(&self) -> PipeStats {
        PipeStats {
            taken: self.0.taken.load(Relaxed),
            live: self.0.live.load(Relaxed),
            kept: self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).len(),
        }
    }
}

/// A pipe on loan. Dropped empty, it goes back to the pool; dropped with bytes in it, it is closed.
#[derive(Debug)]
pub(super) struct PooledPipe {
    /// Only `drop` takes it out.
    pipe: Option<Pipe>,
    /// Bytes in the pipe. They can exceed its capacity: a slot may hold a whole super-packet.
    pub(super) in_flight: usize,
    pool: Arc<Inner>,
}

impl PooledPipe {
    /// The ends for reading and writing, and the size in bytes. `None` never happens before `drop`.
    pub(super) fn ends(&self) -> Option<(&OwnedFd, &OwnedFd, usize)> {
        self.pipe.as_ref().map(|pipe| (&pipe.reader, &pipe.writer, pipe.capacity))
    }
}

impl Drop for PooledPipe {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take() else { return };
        if self.in_flight == 0 {
            let mut kept = self.pool.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push(pipe);
                return;
            }
        }
        self.pool.live.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_reused_bounded_and_never_handed_on_with_bytes_in_them() {
        let pool = PipePool::new(2);
        let (mut a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        assert!(a.ends().unwrap().2 >= LEAST);
        drop(b);
        assert_eq!(pool.stats(), PipeStats { taken: 2, live: 2, kept: 1 });
        a.in_flight = 1;
        drop(a);
        assert_eq!(pool.stats(), PipeStats { taken: 2, live: 1, kept: 1 });
        drop(pool.take());
        assert_eq!(pool.stats(), PipeStats { taken: 3, live: 1, kept: 1 });
    }
}
