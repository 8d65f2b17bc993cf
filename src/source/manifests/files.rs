//! Finding and reading manifest files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Fault, documents};

/// Enough about each file to tell whether it was written, replaced, or made readable since.
pub(super) type Stamps = Vec<(PathBuf, Option<Stamp>)>;

/// Device, inode, size, and the times of change of content and of metadata with their nanoseconds.
pub(super) type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// What stands at `path`, following links.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    Some((meta.dev(), meta.ino(), meta.size(), times.0, times.1))
}

/// The state of `path` and of the files that [`find`] would find there. Never fails: what cannot be seen is `None`.
pub(super) fn stamps(path: &Path) -> Stamps {
    let mut list: Stamps = vec![(path.to_owned(), stamp(path))];
    if path.is_dir() {
        let files = entries(path).unwrap_or_default();
        list.extend(files.into_iter().map(|file| {
            let stamp = stamp(&file);
            (file, stamp)
        }));
    }
    list
}

/// The files to read for `path`.
pub(super) fn find(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let meta = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if meta.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    if !meta.is_dir() {
        return Err(Fault::Special { path: path.to_owned() });
    }
    let mut files = Vec::new();
    for file in entries(path).map_err(|e| unreadable(path, &e))? {
        // A folder may well be called `something.yaml`.
        if !fs::metadata(&file).map_err(|e| unreadable(&file, &e))?.is_dir() {
            files.push(file);
        }
    }
    Ok(files)
}

/// The entries of a folder that are named like manifests, in order.
fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let extension = Path::new(&name).extension().map(OsStr::as_bytes);
        if !name.as_bytes().starts_with(b".") && matches!(extension, Some(b"yaml" | b"yml" | b"json")) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether a file is read as JSON; anything else is read as YAML.
pub(super) fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
}

/// Reads a regular file of at most `limit` bytes as text.
pub(super) fn read(path: &Path, limit: u64) -> Result<String, Fault> {
    // Opening a pipe would wait for its other end for ever.
    if !fs::metadata(path).map_err(|e| unreadable(path, &e))?.is_file() {
        return Err(Fault::Special { path: path.to_owned() });
    }
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, &e))?;
    if bytes.len() as u64 > limit {
        return Err(Fault::TooLarge { path: path.to_owned(), limit });
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]);
        let (document, line) = (documents::number_after(&good, is_json(path)), good.split('\n').count());
        Fault::NotUtf8 { path: path.to_owned(), document, line }
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Fault {
    if error.kind() == ErrorKind::NotFound {
        // A link to nowhere is there, in a way; the name of the link is what the user can act on.
        return Fault::Missing { path: path.to_owned() };
    }
    Fault::Read { path: path.to_owned(), why: error.to_string() }
}
