//! The state folder: whether it can be written, and whether there is room.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::finding;
use crate::config::UsageError;
use crate::obs::api::{Finding, Severity};

/// A snapshot of ten thousand services takes a few megabytes, and two stand there while one replaces the other; so
/// does a backup of the rules.
const ENOUGH: u64 = 32 << 20;

/// Refuses a folder that can never be made, because something above it is a file.
pub fn refuse_impossible(state_dir: &Path) -> Result<(), UsageError> {
    let shown = state_dir.display();
    match state_dir.ancestors().find(|path| path.exists()) {
        Some(there) if !there.is_dir() => Err(UsageError::new(format!(
            "stateDir is {shown}, which cannot be made: {} is a file; name another folder with --state-dir",
            there.display()
        ))),
        _ => Ok(()),
    }
}

/// Looks at the folder, or at the nearest one above it that exists. Writes nothing.
pub(super) fn check(state_dir: &Path) -> Option<Finding> {
    let there = state_dir.ancestors().find(|path| path.exists())?;
    let shown = state_dir.display();
    let problem = |what: String, mend: String| Some(finding("state-dir", Severity::Problem, what, mend));
    if !there.is_dir() {
        let what = format!("the state folder {shown} cannot be made: {} is a file", there.display());
        return problem(what, "name another folder with --state-dir".to_owned());
    }
    match access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => {}
        Err(Errno::EROFS) => {
            let what = format!("the state folder {shown} lies on a file system that is mounted read-only");
            return problem(
                what,
                format!("mount -o remount,rw \"$(findmnt -no TARGET -T {})\"", there.display()),
            );
        }
        Err(errno) => {
            let what = format!("the state folder {shown} cannot be written: {}", errno.desc());
            return problem(what, "run as root, or name another folder with --state-dir".to_owned());
        }
    }
    if there == state_dir
        && let Some((what, mend)) = open_to_others(state_dir)
    {
        return Some(finding("state-dir-open", Severity::Warning, what, mend));
    }
    let room = statvfs(there).ok()?;
    #[allow(clippy::useless_conversion, reason = "32-bit systems count in 32 bits, and rooms are larger")]
    let free = u64::from(room.blocks_available()).saturating_mul(u64::from(room.fragment_size()));
    let what = if room.files() > 0 && room.files_available() == 0 {
        "has no room for another file".to_owned()
    } else if free < ENOUGH {
        format!("has {} KiB left", free >> 10)
    } else {
        return None;
    };
    let what = format!("the file system of the state folder {shown} {what}");
    Some(finding("disk-full", Severity::Warning, what, format!("df -h {}, and make room", there.display())))
}

/// Who else may put something into the folder, and what to do about it. What is read from there decides where clients
/// are led while the server is away.
fn open_to_others(state_dir: &Path) -> Option<(String, String)> {
    let (shown, meta) = (state_dir.display(), state_dir.metadata().ok()?);
    let own = nix::unistd::geteuid().as_raw();
    // Bits for writing of the group and of everybody.
    if meta.mode() & 0o022 != 0 {
        let what =
            format!("the state folder {shown} may be written by others (mode {:o})", meta.mode() & 0o7777);
        return Some((what, format!("chmod go-w {shown}")));
    }
    (meta.uid() != own && meta.uid() != 0).then(|| {
        let what = format!("the state folder {shown} belongs to another user ({})", meta.uid());
        (what, format!("chown {own} {shown}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_is_named() {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let found = |path: &Path| check(path).map(|finding| (finding.id, finding.what));
        assert_eq!(found(dir.path()), None);
        for mode in [0o777, 0o770, 0o1777] {
            set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let (id, what) = found(dir.path()).unwrap();
            assert!(id == "state-dir-open" && what.contains(&format!("mode {mode:o}")), "{what}");
        }
        set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(dir.path()), None);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(1234), None).unwrap();
            let (id, what) = found(dir.path()).unwrap();
            assert!(id == "state-dir-open" && what.contains("1234"), "{what}");
        }
    }

    #[test]
    fn a_folder_that_is_yet_to_be_made_is_fine_and_one_below_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let id = |path: &Path| check(path).map(|finding| finding.id);
        assert_eq!(id(dir.path()), None);
        assert_eq!(id(&dir.path().join("not/yet/there")), None);
        assert!(!dir.path().join("not").exists());
        assert_eq!(id(&file.join("state")), Some("state-dir".to_owned()));
        assert!(refuse_impossible(&dir.path().join("not/yet/there")).is_ok());
        let error = refuse_impossible(&file.join("state")).unwrap_err().to_string();
        assert!(error.contains("state, which cannot be made: ") && error.contains("--state-dir"), "{error}");
        // No folder can be made there; which of the two it is called depends on what root may do.
        assert!(id(Path::new("/proc/edgesplice")).is_some());
    }
}
