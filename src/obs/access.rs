//! The access log: one JSON object a line for each HTTP request, or for a sample of them.
//!
//! Lines are written by a thread of their own: the data plane never waits for a disk. What it cannot take is counted
//! and left out.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;

use serde::Serialize;

/// Lines that may wait for the disk.
const QUEUE: usize = 4096;

/// One request.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When its answer had ended, RFC 3339.
    pub time: String,
    /// The client's address and port.
    pub client: String,
    /// Where the client wanted to go.
    pub destination: String,
    /// The service port.
    pub service: String,
    /// Who answered; null if nobody did.
    pub backend: Option<String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The method.
    pub method: String,
    /// The `Host`, as the client wrote it.
    pub host: String,
    /// The path, without its query.
    pub path: String,
    /// The status; null if the client went away before there was one.
    pub status: Option<u16>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Time to the answer's head.
    pub seconds: f64,
    /// Time to the answer's end.
    pub total_seconds: f64,
    /// The trace that the request belongs to, as the client wrote it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traceparent: String,
}

/// The log.
#[derive(Debug)]
pub struct AccessLog {
    lines: SyncSender<Entry>,
    /// Share of the requests that are written, 0 to 1.
    share: f64,
    lost: AtomicU64,
}

impl AccessLog {
    /// Opens `path` for appending (`-`: standard output) and starts the thread that writes there.
    pub fn open(path: &Path, share: f64) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(QUEUE);
        let path = path.to_path_buf();
        let out: Box<dyn Write + Send> =
            if path.as_os_str() == "-" { Box::new(io::stdout()) } else { Box::new(file(&path)?) };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(&waiting, BufWriter::new(out), &path))?;
        Ok(Self { lines, share, lost: AtomicU64::new(0) })
    }

    /// Whether the next request is to be written.
    pub fn wants(&self) -> bool {
        self.share >= 1.0 || fastrand::f64() < self.share
    }

    /// Writes `entry` some time soon.
    pub fn write(&self, mut entry: Entry) {
        entry.time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        if self.lines.try_send(entry).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Lines that were left out because the disk was too slow.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// Opens the log's file for appending, or makes it: who asked for what is for root, and for the group that collects
/// logs where an administrator gives it to one.
pub fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Writes what comes, and flushes when nothing more waits, until the log is dropped.
fn write(waiting: &Receiver<Entry>, mut out: BufWriter<Box<dyn Write + Send>>, path: &Path) {
    let mut failed = false;
    while let Ok(first) = waiting.recv() {
        let mut batch = std::iter::once(first).chain(waiting.try_iter());
        let done = batch
            .try_for_each(|entry| {
                serde_json::to_writer(&mut out, &entry)?;
                out.write_all(b"\n")
            })
            .and_then(|()| out.flush());
        match done {
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(path = %path.display(), %error, "the access log cannot be written");
            }
            Err(_) => {}
            Ok(()) => failed = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_a_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&path, 1.0).unwrap();
        assert!(log.wants());
        log.write(Entry { path: "/a\"\n".to_owned(), status: Some(200), ..Entry::default() });
        log.write(Entry { path: "/b".to_owned(), ..Entry::default() });
        let mut lines = Vec::new();
        for _ in 0..1_000 {
            lines = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
            if lines.len() == 2 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let line = |n: usize| serde_json::from_str::<serde_json::Value>(&lines[n]).unwrap();
        assert_eq!((&line(0)["path"], &line(0)["status"]), (&"/a\"\n".into(), &200.into()));
        assert_eq!(line(1)["status"], serde_json::Value::Null);
        assert!(line(1)["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn a_share_of_nothing_wants_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::open(&dir.path().join("a"), 0.0).unwrap();
        assert!((0..100).all(|_| !log.wants()));
    }
}
