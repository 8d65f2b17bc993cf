//! The lock of the legacy programs: whether somebody holds it for long, and who.

use std::fs::{self, File, TryLockError};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A change of the rules takes milliseconds; who holds the lock through all of these looks is stuck, or at work on
/// very many rules.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// The lock's file, as the programs choose it (`xtables.c`).
pub(in crate::rules) fn path() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| "/run/xtables.lock".into()).into()
}

/// Who holds the lock for longer than a second; `None` if it is to be had. Makes no file where there is none.
pub(super) async fn holder(path: &Path) -> Option<String> {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let file = File::open(path).ok()?;
        match file.try_lock() {
            // Given back when the file is closed, at once.
            Ok(()) | Err(TryLockError::Error(_)) => return None,
            Err(TryLockError::WouldBlock) => {}
        }
    }
    let inode = fs::metadata(path).ok()?.st_ino();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    Some(match pid_in(&locks, inode) {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim_end())
        }
        None => "a process that cannot be seen from here".to_owned(),
    })
}

/// The holder of a lock on the file with this number, in the text of `/proc/locks`. Waiting ones have an arrow.
fn pid_in(locks: &str, inode: u64) -> Option<u32> {
    let line = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| {
        words.get(1) == Some(&"FLOCK")
            && words.get(5).and_then(|file| file.rsplit(':').next()?.parse().ok()) == Some(inode)
    })?;
    line.get(4)?.parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_who_holds_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 fe:00:42 0 EOF\n2: FLOCK  ADVISORY  WRITE 15881 fe:00:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 fe:00:42 0 EOF\n3: FLOCK  ADVISORY  WRITE 0 00:10:43 0 EOF\n";
        assert_eq!(pid_in(locks, 42), Some(15881));
        assert_eq!(pid_in(locks, 43), None);
        assert_eq!(pid_in(locks, 44), None);
    }

    #[tokio::test]
    async fn names_this_process_while_it_holds_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(holder(&path).await, None);
        assert!(!path.exists());
        let file = File::create(&path).unwrap();
        assert_eq!(holder(&path).await, None);
        file.lock().unwrap();
        let said = holder(&path).await.unwrap();
        assert!(said.starts_with(&format!("process {} (", std::process::id())), "{said}");
    }
}
