//! A control group of our own that limits memory, under either version of control groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A control group. It goes when dropped, once it is empty.
pub(crate) struct Cgroup {
    dir: PathBuf,
    limit: &'static str,
    used: &'static str,
    none: &'static str,
}

impl Cgroup {
    pub(crate) fn new(label: &str) -> Self {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit, used, none) = if first.is_dir() {
            (first, "memory.limit_in_bytes", "memory.usage_in_bytes", "-1")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            // Usually on already.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root, "memory.max", "memory.current", "max")
        };
        let dir = root.join(format!("edgesplice-{label}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        assert!(dir.join(limit).exists(), "{}: this machine cannot limit memory", dir.display());
        Self { dir, limit, used, none }
    }

    /// The beginning of a command line that waits for [`Self::admit`].
    pub(crate) fn wrapper(lab: &Path) -> [String; 4] {
        // `ip netns exec` has a `/sys` of its own, without control groups: the process cannot enter by itself.
        let script = format!("until [ -e {}/admitted ]; do sleep 0.02; done; exec \"$@\"", lab.display());
        ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
    }

    /// Takes the process in, and lets it begin.
    pub(crate) fn admit(&self, process: u32, lab: &Path) {
        fs::write(self.dir.join("cgroup.procs"), process.to_string()).expect("it can be moved");
        fs::write(lab.join("admitted"), "").expect("a file");
    }

    /// How much memory is in use, in bytes.
    pub(crate) fn used(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join(self.used)).expect("its use");
        text.trim().parse().expect("a number")
    }

    #[allow(dead_code, reason = "the benchmark squeezes")]
    pub(crate) fn limit_at(&self, bytes: u64) {
        fs::write(self.dir.join(self.limit), bytes.to_string()).expect("a limit");
    }

    /// Takes away all room, as far as that can be done without killing at once.
    #[allow(dead_code, reason = "shared with the benchmark")]
    pub(crate) fn squeeze(&self) {
        let mut room = 0;
        // The first version refuses a limit below what cannot be given back.
        while fs::write(self.dir.join(self.limit), (self.used() + room).to_string()).is_err()
            && room < 64 << 20
        {
            room += 64 << 10;
        }
    }

    pub(crate) fn no_limit(&self) {
        fs::write(self.dir.join(self.limit), self.none).expect("no limit");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
