//! Capabilities: down to those that are needed, in every set.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::Needs;

/// What the agent, and iptables in its hand, cannot do without; `docs/security.md` says what each is for.
const NEEDED: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::NET_BIND_SERVICE);
/// Room for capabilities in the kernel's sets.
const MOST: u32 = 64;

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(CapabilitySet);

impl Default for Rights {
    fn default() -> Self {
        Self(CapabilitySet::empty())
    }
}

impl Rights {
    /// Those in force for the calling thread.
    pub(super) fn held() -> Self {
        Self(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective))
    }

    /// As a number, as `/proc/PID/status` has it.
    pub fn bits(self) -> u64 {
        self.0.bits()
    }

    /// From that number.
    pub fn from_bits(bits: u64) -> Self {
        Self(CapabilitySet::from_bits_retain(bits))
    }

    /// Their names without `CAP_`; a number for one that has no name here.
    pub fn names(self) -> Vec<String> {
        let each = (0..MOST).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
        let name = |one: CapabilitySet| match one.iter_names().next() {
            Some((name, _)) => name.to_owned(),
            None => one.bits().trailing_zeros().to_string(),
        };
        each.filter(|one| self.0.contains(*one)).map(name).collect()
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

/// The rights that are needed, and why where they are more than usual: root without [`CapabilitySet::DAC_OVERRIDE`] is
/// like anybody else to files of other users.
///
/// Tried, not reckoned: for the time of the trial the calling thread has no more than the usual rights in force.
pub(super) fn needed(needs: &Needs) -> (Rights, Vec<String>) {
    let mut rights = NEEDED;
    let mut reasons = Vec::new();
    let Ok(before) = capabilities(None) else { return (Rights(rights), reasons) };
    let tried = CapabilitySets { effective: before.effective & NEEDED, ..before };
    if set_capabilities(None, tried).is_err() {
        return (Rights(rights), reasons);
    }
    let mut keep = |right: CapabilitySet, path: &Path, what: &str| {
        if before.effective.contains(right) && !rights.contains(right) {
            rights |= right;
            let name = Rights(right);
            reasons.push(format!("{name} is kept, because {} cannot be {what} without it", path.display()));
        }
    };
    for path in &needs.write {
        if is_denied(probe_write(path)) {
            keep(CapabilitySet::DAC_OVERRIDE, path, "written");
        }
    }
    for path in &needs.read {
        if is_denied(probe_read(path)) {
            keep(CapabilitySet::DAC_READ_SEARCH, path, "read");
        }
    }
    // What it had a moment ago; the kernel lets a thread raise what is permitted to it.
    let _ = set_capabilities(None, before);
    (Rights(rights), reasons)
}

fn is_denied(outcome: io::Result<()>) -> bool {
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether a file, or a folder and what is in it, can be read.
fn probe_read(path: &Path) -> io::Result<()> {
    let open = |path: &Path| {
        // Whatever a pipe is doing there, nobody is to wait for it.
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map(drop)
    };
    if !path.metadata()?.is_dir() {
        return open(path);
    }
    for entry in fs::read_dir(path)? {
        open(&entry?.path())?;
    }
    Ok(())
}

/// Whether a file can be written, or files made in a folder, or in the nearest one above it that is there.
fn probe_write(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(meta) if meta.is_dir() => tempfile::tempfile_in(path).map(drop),
        Ok(_) => OpenOptions::new().append(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.parent().map_or(Ok(()), probe_write),
        Err(error) => Err(error),
    }
}

/// Gives up every other right: the ones in force, those that could be raised, and those that a program that is started
/// could be given.
pub(super) fn drop_all_but(rights: Rights) -> Result<(), String> {
    let fault = |what: &str, error: rustix::io::Errno| format!("{what} cannot be given up: {error}");
    // Not on kernels before 4.3, which have no such set.
    let _ = clear_ambient_capability_set();
    let mut outcome = Ok(());
    for bit in 0..MOST {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // An error: the kernel knows no further ones.
        let Ok(is_there) = capability_is_in_bounding_set(one) else { break };
        if is_there
            && !rights.0.contains(one)
            && let Err(error) = remove_capability_from_bounding_set(one)
        {
            outcome = Err(fault("capabilities of programs that are started", error));
            break;
        }
    }
    let before = capabilities(None).map_err(|error| fault("capabilities", error))?;
    let kept = before.permitted & rights.0;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|error| fault("capabilities", error))?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_named_as_the_kernel_does() {
        assert_eq!(Rights(NEEDED).to_string(), "NET_BIND_SERVICE, NET_ADMIN, NET_RAW");
        assert_eq!(Rights(NEEDED).bits(), 0x3400);
        assert_eq!(Rights::from_bits(1 << 63).names(), ["63"]);
        assert_eq!(Rights::from_bits(0x3400), Rights(NEEDED));
    }

    #[test]
    fn what_anybody_may_read_and_write_needs_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(probe_read(dir.path()).is_ok() && probe_write(dir.path()).is_ok());
        assert!(probe_write(&dir.path().join("not/yet/there")).is_ok());
        assert!(!is_denied(probe_read(&dir.path().join("not-there"))));
    }
}
