//! Landlock: files are written, made and removed in a few places only. Reading and starting programs stay as they are:
//! what iptables, its libraries and a kubeconfig's plugins read is the machine's business.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

/// The newest version whose rights are known here; an older kernel's are used as far as they go.
const NEWEST: ABI = ABI::V5;
/// Written by programs that throw something away.
const ALWAYS: [&str; 1] = ["/dev/null"];

/// Restricts the calling thread and what it starts. Returns the version of Landlock that does it.
pub(super) fn write_only_below(places: &[PathBuf]) -> Result<i32, String> {
    let status = restrict(places).map_err(|error| format!("writing files cannot be restricted: {error}"))?;
    let version = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
        _ => 0,
    };
    if status.ruleset == RulesetStatus::NotEnforced || version == 0 {
        return Err(
            "writing files is not restricted: this kernel has no Landlock (5.13 and later, where it is on)"
                .to_owned(),
        );
    }
    Ok(version)
}

fn restrict(places: &[PathBuf]) -> Result<RestrictionStatus, RulesetError> {
    let every = AccessFs::from_write(NEWEST);
    let mut rules = Ruleset::default().handle_access(every)?.create()?;
    for place in ALWAYS.iter().map(Path::new).chain(places.iter().map(PathBuf::as_path)) {
        // Opened only to be named; what is not there cannot be written either.
        let Ok(named) = PathFd::new(place) else { continue };
        let access = if place.is_dir() { every } else { every & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(named, access))?;
    }
    rules.restrict_self()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn files_are_written_where_they_may_be_and_nowhere_else() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let single = outside.path().join("single");
        fs::write(&single, "old").unwrap();
        let places = [inside.path().to_owned(), single.clone(), outside.path().join("not-there")];
        let confined = std::thread::spawn(move || {
            let kernel = fs::read_to_string("/sys/kernel/security/lsm");
            match write_only_below(&places) {
                Ok(version) => assert!(version >= 1),
                // Where the kernel lists what it has, it must be true.
                Err(why) => {
                    assert!(why.contains("no Landlock"), "{why}");
                    assert!(!kernel.is_ok_and(|list| list.contains("landlock")), "the kernel has it");
                    return;
                }
            }
            let (inside, outside) = (inside.path(), outside.path());
            fs::write(inside.join("new"), "x").unwrap();
            fs::rename(inside.join("new"), inside.join("newer")).unwrap();
            fs::create_dir_all(inside.join("a/b")).unwrap();
            fs::write(&single, "new").unwrap();
            fs::write("/dev/null", "x").unwrap();
            let denied = |outcome: std::io::Result<()>| {
                assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
            };
            denied(fs::write(outside.join("new"), "x"));
            denied(fs::remove_file(&single));
            // A link is followed to where it leads.
            std::os::unix::fs::symlink(outside.join("new"), inside.join("link")).unwrap();
            denied(fs::write(inside.join("link"), "x"));
            let touch = Command::new("touch").arg(outside.join("new")).output().unwrap();
            assert!(!touch.status.success());
            assert_eq!(fs::read_to_string(&single).unwrap(), "new", "reading is free");
        });
        confined.join().unwrap();
    }
}
