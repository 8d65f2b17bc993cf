//! Hands the commit to the program: `EDGESPLICE_COMMIT` if it is set, else what git says, else `unknown`.
//! Without git, or outside of a repository, the build goes on.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=EDGESPLICE_COMMIT");
    // The log of HEAD grows with every commit, wherever the repository keeps it.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    let given = std::env::var("EDGESPLICE_COMMIT").ok().filter(|c| !c.trim().is_empty());
    let commit =
        given.or_else(|| git(&["rev-parse", "--short=12", "HEAD"])).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=EDGESPLICE_COMMIT={}", commit.trim());
}

/// One line of git's answer, or nothing where git is missing or has no answer.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}
