//! Kubernetes objects from plain files.
//!
//! [`load`] reads a file or a folder once; [`ManifestSource`] does that again whenever something has changed.
//! `files` finds and reads files, `documents` takes a file's text apart, `watch` notices changes. Nothing here knows
//! what the objects mean.

mod documents;
mod files;
mod watch;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use super::slim::{Object, ObjectKey};

pub use watch::ManifestSource;

/// Largest file that is read. A list of 10,000 Services with 100,000 endpoints takes about a tenth of it.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Most that all files of a folder may hold together.
const MAX_TOTAL_BYTES: u64 = 512 * 1024 * 1024;

/// What is wrong with a path, a file or a document, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing stands at the path.
    #[error("{}: no such file or folder", .path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The system refused to read it.
    #[error("{}: cannot be read: {why}", .path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A device, a pipe or a socket.
    #[error("{}: is neither a file nor a folder", .path.display())]
    Special {
        /// The path.
        path: PathBuf,
    },
    /// More than this program is willing to hold.
    #[error("{}: more than {limit} bytes; split it, or use another source", .path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// The limit that was passed.
        limit: u64,
    },
    /// The text is not UTF-8.
    #[error("{}: document {document}, line {line}: not UTF-8 text", .path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The document in the file, from 1.
        document: usize,
        /// The first bad line, from 1.
        line: usize,
    },
    /// A document that cannot be used.
    #[error("{}: document {document}, line {line}: {what}", .path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// The document in the file, from 1.
        document: usize,
        /// The line in the file, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// What a path held.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Every object of a kind this program uses, no key twice.
    pub objects: Vec<Object>,
    /// What was passed over and should not have been there, each as one line.
    pub warnings: Vec<String>,
    /// Changes with the files' names and contents.
    fingerprint: u64,
    /// The files as they were just before they were read.
    stamps: files::Stamps,
}

/// Reads the file `path`, or the `*.yaml`, `*.yml` and `*.json` files of the folder `path` in the order of their
/// names (subfolders and names that start with a dot are passed over).
///
/// The first bad document, or a file that cannot be read, is a [`Fault`], and nothing is loaded.
pub fn load(path: &Path) -> Result<Loaded, Fault> {
    // Under one name for good: whoever looks again later would take another one for a change.
    let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let stamps = files::stamps(path);
    let list = files::find(path)?;
    let mut warnings = Vec::new();
    if list.is_empty() {
        warnings.push(format!("{}: the folder holds no *.yaml, *.yml or *.json file", path.display()));
    }
    let mut hasher = DefaultHasher::new();
    let mut objects: Vec<Object> = Vec::new();
    let mut seen: HashMap<ObjectKey, (usize, String)> = HashMap::new();
    let mut total = 0;
    for file in &list {
        let text = files::read(file, MAX_FILE_BYTES)?;
        total += text.len() as u64;
        if total > MAX_TOTAL_BYTES {
            return Err(Fault::TooLarge { path: path.to_owned(), limit: MAX_TOTAL_BYTES });
        }
        (file, &text).hash(&mut hasher);
        let fault = |fault: documents::Fault| Fault::Document {
            path: file.clone(),
            document: fault.document,
            line: fault.line,
            what: fault.what,
        };
        let found = documents::read(&text, files::is_json(file)).map_err(fault)?;
        warnings.extend(found.warnings.into_iter().map(|w| format!("{}: {w}", file.display())));
        for (document, object) in found.objects {
            let place = format!("{} document {document}", file.display());
            let key = object.key();
            if let Some((at, first)) = seen.get_mut(&key) {
                warnings.push(format!("{key} stands in {first} and again in {place}; the last one counts"));
                objects[*at] = object;
                *first = place;
            } else {
                seen.insert(key, (objects.len(), place));
                objects.push(object);
            }
        }
    }
    Ok(Loaded { objects, warnings, fingerprint: hasher.finish(), stamps })
}

/// Reads the text of a file, for tests with hostile ones; `None` if it is refused.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_text(text: &str, json: bool) -> Option<Vec<Object>> {
    let found =
        documents::read(text, json).map_err(|fault| assert!(fault.line > 0 && fault.document > 0)).ok()?;
    Some(found.objects.into_iter().map(|(_, object)| object).collect())
}

#[cfg(test)]
mod tests;
