//! A network namespace of its own, and the programs run in it.

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// A network namespace that goes away with this value, and with it every process started in it.
pub(crate) struct Space {
    pub(crate) name: String,
    children: Vec<Child>,
    pub(crate) folder: tempfile::TempDir,
}

impl Space {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("escl-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let done = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        assert!(done.status.success(), "network tests need root and `ip netns`: {}", text(&done.stderr));
        let space = Self { name, children: Vec::new(), folder: tempfile::tempdir().unwrap() };
        space.sh("ip link set lo up");
        space
    }

    pub(crate) fn path(&self) -> String {
        format!("/var/run/netns/{}", self.name)
    }

    /// A command in the namespace. The lock of the legacy programs is one for the whole machine unless named: tests
    /// that run side by side must not wait for one another.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command.env("XTABLES_LOCKFILE", self.folder.path().join("xtables.lock"));
        command
    }

    /// Runs a shell line, which must succeed, and returns what it printed.
    pub(crate) fn sh(&self, line: &str) -> String {
        let output = self.command("sh", &["-ec", line]).output().unwrap();
        assert!(output.status.success(), "`{line}` failed: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Starts a shell line that goes on until the end.
    pub(crate) fn start(&mut self, line: &str) {
        let line = format!("exec {line}");
        self.children.push(self.command("sh", &["-c", &line]).stdin(Stdio::null()).spawn().unwrap());
    }

    pub(crate) fn load(&self, backend: &str, rules: &str) {
        self.feed(&format!("iptables-{backend}-restore"), &["-c"], rules);
    }

    pub(crate) fn add(&self, backend: &str, rules: &str) {
        self.feed(&format!("iptables-{backend}-restore"), &["--noflush"], rules);
    }

    fn feed(&self, program: &str, args: &[&str], input: &str) {
        let mut child =
            self.command(program, args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program} refused the rules: {}", text(&output.stderr));
    }

    /// All rules of one back end with their counters, without the comments, which carry the time, and without the
    /// counters of policies: any packet moves those, and the legacy programs set them to zero whenever they write.
    pub(crate) fn save(&self, backend: &str) -> String {
        let rules = self.sh(&format!("iptables-{backend}-save -c"));
        without_comments(&rules)
    }

    /// The counters of policies.
    pub(crate) fn policies(&self, backend: &str) -> Vec<String> {
        let rules = self.sh(&format!("iptables-{backend}-save -c"));
        rules
            .lines()
            .filter(|line| line.starts_with(':') && !line.contains(" - "))
            .map(str::to_owned)
            .collect()
    }

    /// Runs `edgesplice cleanup` with its state in this namespace's own folder.
    pub(crate) fn cleanup(&self, args: &[&str]) -> Outcome {
        let state = self.folder.path().join("state");
        let mut all = vec!["cleanup", "-o", "json", "--state-dir", state.to_str().unwrap()];
        all.extend(args);
        Outcome::of(&self.command(env!("CARGO_BIN_EXE_edgesplice"), &all).output().unwrap())
    }

    /// Waits until a TCP or UDP socket listens on the port.
    pub(crate) fn wait_for(&self, address: &str) {
        for _ in 0..200 {
            if self.sh("ss -Hlntu; ss -Hlx").contains(address) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("nothing listens on {address}");
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// What a cleanup said.
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn of(output: &Output) -> Self {
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Self { code: output.status.code().unwrap_or(-1), json, stderr: text(&output.stderr) }
    }

    /// Checks the exit code, and shows everything if it is another one.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{:#}", self.stderr, self.json);
        self
    }

    /// Every `removedRules`, `removedChains` or `kept` rule, of all rule sets.
    pub(crate) fn all(&self, field: &str) -> Vec<String> {
        let rulesets = self.json["rulesets"].as_array().into_iter().flatten();
        let tables = rulesets.flat_map(|ruleset| ruleset["tables"].as_array().unwrap());
        let entries = tables.flat_map(|table| table[field].as_array().unwrap());
        entries.map(|entry| entry.as_str().or_else(|| entry["rule"].as_str()).unwrap().to_owned()).collect()
    }

    /// `name: action` of each entry of a list.
    pub(crate) fn items(&self, field: &str) -> Vec<String> {
        let items = self.json[field].as_array().into_iter().flatten();
        items
            .map(|item| format!("{}: {}", item["name"].as_str().unwrap(), item["action"].as_str().unwrap()))
            .collect()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn without_comments(rules: &str) -> String {
    let lines = rules.lines().filter(|line| !line.starts_with('#'));
    // `:INPUT ACCEPT [1:60]` without the counter.
    joined(
        lines.map(|line| if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line }),
    )
}

pub(crate) fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A fixture with a counter of its own on each rule and policy, so that a rule that was made anew would show.
pub(crate) fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/edgemesh/{name}.rules", env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(path).unwrap();
    let mut count = 100;
    let counted = rules.lines().map(|line| {
        count += 1;
        if line.starts_with("-A ") {
            format!("[{count}:{}] {line}\n", count * 60)
        } else if line.starts_with(':') && !line.contains(" - ") {
            line.replace("[0:0]", &format!("[{count}:{}]\n", count * 70))
        } else {
            format!("{line}\n")
        }
    });
    counted.collect()
}

/// The lines that name none of the chains as a whole word.
pub(crate) fn without(rules: &str, chains: &[&str]) -> String {
    let names = |line: &&str| {
        line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
            .any(|word| chains.contains(&word))
    };
    joined(rules.lines().filter(|line| !names(line)))
}
