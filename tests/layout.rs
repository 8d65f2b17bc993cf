//! Holds the source tree to the picture in ARCHITECTURE.md: which module may use which, and how long a file may be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Module, and what it may import of ours besides the leaves `net`, `obs` and `life`.
/// Data flows from left to right: `config → source → model → rules | dns | proxy(→ balance)`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("net", &[]),
    ("obs", &[]),
    ("life", &[]),
    ("confine", &[]),
    ("handover", &[]),
    ("keeper", &["confine"]),
    ("config", &[]),
    ("source", &["config"]),
    ("model", &["config", "source"]),
    ("rules", &["config", "model"]),
    ("dns", &["config", "model"]),
    ("balance", &["config", "model"]),
    ("proxy", &["config", "model", "balance"]),
    (
        "app",
        &["config", "source", "model", "rules", "dns", "balance", "proxy", "confine", "keeper", "handover"],
    ),
    ("cli", &["config", "source", "model", "rules", "dns", "app", "keeper"]),
    // Readers of every module under hostile input; built for tests and fuzzing alone.
    ("fuzzing", &["config", "source", "model", "rules", "dns", "proxy", "cli"]),
    // The two roots name every module.
    ("lib", &[]),
    ("main", &["cli"]),
];
const LEAVES: &[&str] = &["net", "obs", "life"];
const MAX_LINES: usize = 500;
const MAX_MAIN_LINES: usize = 60;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(found.len() > 20, "the source tree was not found under {}", root.display());
    found
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap().to_path_buf();
            let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let module = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, relative, text)
        })
        .collect()
}

/// Whether a file holds unit tests and nothing else.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_stem().is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_tests"))
}

/// The lines before the unit tests.
fn code(text: &str) -> Vec<&str> {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).collect()
}

/// Every module of ours that `line` names through `crate::`.
fn imported(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let group = rest.strip_prefix('{').map(|inner| inner.split('}').next().unwrap_or(inner));
        for part in group.map_or_else(|| vec![rest], |inner| inner.split(',').collect()) {
            let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.push(name);
        }
    }
    names
}

#[test]
fn imports_run_one_way() {
    let mut faults = Vec::new();
    for (module, path, text) in all() {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else {
            faults.push(format!("{}: module `{module}` is not in the table of this test", path.display()));
            continue;
        };
        for line in code(&text).iter().filter(|line| !line.trim_start().starts_with("//")) {
            for name in imported(line) {
                let known = ALLOWED.iter().any(|(known, _)| *known == name);
                if known
                    && name != module
                    && !allowed.contains(&name.as_str())
                    && !LEAVES.contains(&name.as_str())
                {
                    faults.push(format!(
                        "{}: `{module}` may not use `{name}`: {}",
                        path.display(),
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn leaves_use_nothing_of_ours() {
    for (module, path, text) in all().iter().filter(|(module, ..)| LEAVES.contains(&module.as_str())) {
        for line in code(text) {
            for name in imported(line) {
                let known = ALLOWED.iter().any(|(known, _)| *known == name);
                assert!(!known || name == *module, "{}: leaf `{module}` uses `{name}`", path.display());
            }
        }
    }
}

#[test]
fn files_stay_short() {
    let mut faults = Vec::new();
    let mut lengths = Vec::new();
    for (module, path, text) in all().into_iter().filter(|(_, path, _)| !is_test(path)) {
        let lines = code(&text).len();
        lengths.push(lines);
        let most = if module == "main" { MAX_MAIN_LINES } else { MAX_LINES };
        if lines > most {
            faults.push(format!("{}: {lines} lines before its tests, at most {most}", path.display()));
        }
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= 180, "the median file has {median} lines before its tests, at most 180");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_folder_says_what_lives_there() {
    for (_, path, text) in all() {
        let name = path.file_name().unwrap().to_string_lossy();
        if name == "mod.rs" || name == "lib.rs" {
            assert!(text.starts_with("//!"), "{} starts without a `//!` header", path.display());
        }
    }
}
