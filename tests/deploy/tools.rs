//! The programs that read what is in `deploy/`, and YAML.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A path in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program that `scripts/tools.sh` fetches.
pub(crate) fn tool(name: &str) -> Command {
    let path = repository("target/tools").join(name);
    assert!(path.exists(), "{} is missing: run `make test`, or scripts/tools.sh", path.display());
    let mut command = Command::new(path);
    // Neither a cluster of the person who runs the tests nor that person's settings have a part in this.
    command.env("HOME", "/nonexistent").env_remove("KUBECONFIG").stdin(Stdio::null());
    command
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("output is text"),
        stderr: String::from_utf8(output.stderr).expect("errors are text"),
    }
}

/// Runs a command that must succeed, and returns its standard output.
pub(crate) fn must(command: &mut Command) -> String {
    let Said { code, stdout, stderr } = said(command);
    assert_eq!(code, Some(0), "{command:?}: {stdout}{stderr}");
    stdout
}

/// The objects in a text of several YAML documents.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// The one object of a kind, or, of several, the one with this name.
pub(crate) fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

/// Holds objects to the strict schemas of the oldest and the newest version of Kubernetes that there are schemas for:
/// an unknown field is a fault.
pub(crate) fn validate(text: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, text).expect("a file");
    let mut command = tool("python/bin/kubernetes-validate");
    command.env("PYTHONPATH", repository("target/tools/python"));
    command.args(["--strict", "-k", "1.25", "-k", "1.37"]).arg(&file);
    let said = must(&mut command);
    let passed = said.lines().filter(|line| line.contains(" passed for resource ")).count();
    assert_eq!(passed, 2 * objects(text).len(), "{said}");
}
