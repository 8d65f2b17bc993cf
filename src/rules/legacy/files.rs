//! Files: removing those of the table, taking dead name servers out of the resolver's file, keeping copies.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use super::read::exists;

/// The address on a `nameserver` line of `resolv.conf`.
pub(super) fn name_server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next())??.parse().ok()
}

/// Removes a file or folder; it is good if it is gone already. Never follows a link.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    let done = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Takes the lines of `dead` name servers out of the file; every other byte stays.
pub(super) fn drop_name_servers(path: &Path, dead: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    let shown = path.display();
    let text = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let is_dead = |line: &&[u8]| {
        let server = std::str::from_utf8(line).ok().and_then(name_server);
        server.is_some_and(|server| dead.contains(&server))
    };
    let kept: Vec<u8> = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !is_dead(line))
        .flatten()
        .copied()
        .collect();
    if kept == text {
        return Ok(());
    }
    replace(path, &kept).with_context(|| format!("cannot write {shown}"))
}

/// Puts new contents in place at once. A file that is mounted over, as in a container, cannot be replaced and is
/// rewritten where it stands.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(contents)?;
    new.as_file().set_permissions(meta.permissions())?;
    let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&meta), std::os::unix::fs::MetadataExt::gid(&meta));
    std::os::unix::fs::fchown(new.as_file(), Some(uid), Some(gid))?;
    new.as_file().sync_all()?;
    match new.persist(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::ResourceBusy => fs::write(path, contents),
        Err(error) => Err(error.error),
    }
}

/// Copies a file or folder into the backup, with its permissions. Links and special files are left out.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let meta = fs::symlink_metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if meta.is_file() {
        fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    } else if meta.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Makes a folder that only root may read: rules and keys are nobody else's business.
pub(super) fn private_folder(path: &Path) -> anyhow::Result<()> {
    let new = !exists(path);
    fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
    if new {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_out_dead_lines_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let text = "# made by hand\nnameserver 172.17.0.1\nnameserver 192.168.5.1\n\nsearch lan\n#nameserver 172.17.0.1\n";
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        drop_name_servers(&path, &BTreeSet::from(["172.17.0.1".parse().unwrap()])).unwrap();
        let left = fs::read_to_string(&path).unwrap();
        assert_eq!(left, text.replacen("nameserver 172.17.0.1\n", "", 1));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn removes_a_folder_but_not_what_a_link_in_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("edgemesh"), folder.path().join("other"));
        fs::create_dir(&inside).unwrap();
        fs::write(&outside, "x").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        remove(&inside).unwrap();
        remove(&inside).unwrap();
        assert!(!exists(&inside) && exists(&outside));
    }
}
