//! Everything the program may change on a node, as text, for comparison before and after.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::ns::Netns;

/// The state of one namespace: by title, the lines that describe it.
#[derive(Clone, PartialEq, Eq)]
pub struct State(BTreeMap<String, Vec<String>>);

impl Netns {
    /// Reads the state. Counters, times and tables that hold nothing are left out.
    pub fn state(&self) -> State {
        // The kernel takes note of a new link's other end in its own time; what is down stays so.
        for _ in 0..100 {
            if !self.must(&["ip", "link"]).contains("NO-CARRIER") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mut state = BTreeMap::new();
        for backend in ["nft", "legacy"] {
            for family in ["ip", "ip6"] {
                let program = format!("{family}tables-{backend}-save");
                state.insert(program.clone(), rules(&self.must(&[&program])));
            }
        }
        state.insert("ipset".into(), sets(&self.must(&["ipset", "save"])));
        for line in [
            "ip link",
            "ip addr",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table all",
            "ip -6 route show table all",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let text = self.must(&words);
            state.insert(line.into(), text.lines().map(|line| line.trim().to_owned()).collect());
        }
        state.insert("sysctl".into(), self.enter(sysctls));
        State(state)
    }

    /// How many rules both back ends and families hold together.
    pub fn rule_count(&self) -> usize {
        let state = self.state().0;
        state
            .iter()
            .filter(|(title, _)| title.contains("tables"))
            .flat_map(|(_, lines)| lines)
            .filter(|line| line.starts_with("-A "))
            .count()
    }
}

impl State {
    /// The lines under one title, such as `iptables-nft-save` or `ipset`.
    pub fn lines(&self, title: &str) -> &[String] {
        self.0.get(title).map_or(&[], Vec::as_slice)
    }

    /// What changed from `self` to `after`, one line each, `-` gone and `+` new. Empty if nothing did.
    pub fn diff(&self, after: &Self) -> String {
        let mut text = String::new();
        for (title, before) in &self.0 {
            let after = after.lines(title);
            let gone = before.iter().filter(|line| !after.contains(line)).map(|line| ('-', line));
            let new = after.iter().filter(|line| !before.contains(line)).map(|line| ('+', line));
            let changes: Vec<_> = gone.chain(new).collect();
            if !changes.is_empty() || before != after {
                let _ = writeln!(text, "{title}:");
                for (sign, line) in changes {
                    let _ = writeln!(text, "  {sign} {line}");
                }
            }
        }
        text
    }

    /// Panics with the differences if `after` is not the same.
    pub fn assert_same(&self, after: &Self, when: &str) {
        let diff = self.diff(after);
        assert!(diff.is_empty(), "the node's state differs {when}:\n{diff}");
    }
}

/// `iptables-save` without comment lines, counters and empty tables.
///
/// A table that was only looked at exists from then on, with its built-in chains and nothing in them. It does
/// nothing, so it does not count.
fn rules(text: &str) -> Vec<String> {
    let mut tables: Vec<Vec<String>> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty() && *line != "COMMIT") {
        if line.starts_with('*') {
            tables.push(Vec::new());
        }
        // A chain's line ends in its counters.
        let chain = line.starts_with(':').then(|| line.split_once(" [")).flatten();
        let table = tables.last_mut().expect("iptables-save names the table first");
        table.push(chain.map_or(line, |(chain, _)| chain).to_owned());
    }
    let idle = |line: &String| line.starts_with(':') && line.ends_with(" ACCEPT");
    tables.retain(|table| !table.iter().skip(1).all(idle));
    tables.sort();
    tables.concat()
}

/// `ipset save`, members sorted: their order is that of a hash. The seed of a hash is drawn at creation.
fn sets(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let mut words: Vec<&str> = line.split(' ').collect();
            if let Some(at) = words.iter().position(|word| *word == "initval") {
                words.drain(at..(at + 2).min(words.len()));
            }
            words.join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// The switches of the IP layers and links that a node service may be tempted to turn.
fn sysctls() -> Vec<String> {
    let mut lines = Vec::new();
    for root in ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf", "/proc/sys/net/bridge"] {
        walk(Path::new(root), &mut lines);
    }
    for file in
        ["ipv4/ip_forward", "ipv4/ip_nonlocal_bind", "ipv4/ip_local_port_range", "ipv4/ip_early_demux"]
    {
        read(&Path::new("/proc/sys/net").join(file), &mut lines);
    }
    lines.sort();
    lines
}

fn walk(path: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { walk(&path, lines) } else { read(&path, lines) }
    }
}

fn read(path: &Path, lines: &mut Vec<String>) {
    if let Ok(value) = fs::read_to_string(path) {
        lines.push(format!("{} = {}", path.display(), value.trim()));
    }
}
