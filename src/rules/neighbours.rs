//! Who else works on service traffic on this node: an EdgeMesh agent, kube-proxy. Judged from what was read, purely.

use super::dump::Dump;
use super::legacy::{self, Facts, Options, Process, Ruleset};

/// The chain through which every mode of kube-proxy that writes iptables rules sends the packets of Services.
const KUBE_SERVICES: &str = "KUBE-SERVICES";

/// What was found; all empty on a node that is ours alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// What older EdgeMesh versions left, a line each.
    pub stale: Vec<String>,
    /// What shows that EdgeMesh is alive.
    pub edgemesh: Vec<String>,
    /// What shows that kube-proxy is at work.
    pub kube_proxy: Vec<String>,
}

impl Neighbours {
    /// Judges what was read.
    pub fn of(facts: &Facts, options: &Options) -> Self {
        let mut kube_proxy: Vec<String> = facts.rulesets.iter().filter_map(services_chain).collect();
        kube_proxy.extend(facts.processes.iter().filter_map(proxy_process));
        Self { stale: legacy::stale(facts, options), edgemesh: legacy::live(facts), kube_proxy }
    }
}

fn services_chain(ruleset: &Ruleset) -> Option<String> {
    let rules = rules_of_services(&ruleset.dump);
    let place = format!("{} {}", ruleset.backend.as_str(), ruleset.family.as_str());
    let s = if rules == 1 { "" } else { "s" };
    (rules > 0).then(|| format!("chain {KUBE_SERVICES} in {place} nat has {rules} rule{s}"))
}

/// An empty chain does nothing: a kube-proxy that was cleaned up may leave one.
fn rules_of_services(dump: &Dump) -> usize {
    dump.table("nat").map_or(0, |nat| nat.rules_of(KUBE_SERVICES).count())
}

fn proxy_process(process: &Process) -> Option<String> {
    let Process { pid, name, command_line } = process;
    if *name == legacy::KUBE_PROXY {
        return Some(format!("{name} runs as process {pid}"));
    }
    if !legacy::K3S.contains(name) {
        return None;
    }
    // k3s is also kubectl and more, and has switches for leaving out kube-proxy, or everything that a node needs.
    let words: Vec<&str> = command_line.split(' ').collect();
    let node = words.contains(&"server") || words.contains(&"agent");
    let without = ["--disable-kube-proxy", "--disable-agent"];
    let on = |word: &&str| without.iter().any(|flag| word == flag || **word == format!("{flag}=true"));
    (node && !words.iter().any(on))
        .then(|| format!("{name}, which has kube-proxy inside, runs as process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::apply::{Backend, Family};

    fn process(name: &'static str, command_line: &str) -> Facts {
        let process = Process { pid: 7, name, command_line: command_line.to_owned() };
        Facts { processes: vec![process], ..Facts::default() }
    }

    fn nat(rules: &str) -> Facts {
        let text = format!("*nat\n:KUBE-SERVICES - [0:0]\n{rules}COMMIT\n");
        let dump = Dump::parse(&text).unwrap();
        let ruleset =
            Ruleset { backend: Backend::Nft, family: Family::V4, text, dump, unreadable: Vec::new() };
        Facts { rulesets: vec![ruleset], ..Facts::default() }
    }

    #[test]
    fn kube_proxy_is_told_by_its_process_or_its_rules() {
        for (facts, evidence) in [
            (process("kube-proxy", "kube-proxy --v=2"), Some("kube-proxy runs as process 7")),
            (
                process("k3s", "/usr/local/bin/k3s agent"),
                Some("k3s, which has kube-proxy inside, runs as process 7"),
            ),
            (process("k3s-server", "k3s server --disable-kube-proxy"), None),
            (process("k3s", "k3s kubectl get pods"), None),
            (process("edgecore", "edgecore"), None),
            (nat("-A KUBE-SERVICES -j X\n"), Some("chain KUBE-SERVICES in nft ipv4 nat has 1 rule")),
            (nat(""), None),
        ] {
            let found = Neighbours::of(&facts, &Options::default());
            assert_eq!(found.kube_proxy.first().map(String::as_str), evidence);
            assert!(found.edgemesh.is_empty() && found.stale.is_empty());
        }
    }

    #[test]
    fn a_live_edgemesh_needs_no_rules_to_be_seen() {
        let found = Neighbours::of(&process("edgemesh-agent", "edgemesh-agent"), &Options::default());
        assert_eq!(found.edgemesh, ["edgemesh-agent runs as process 7"]);
    }
}
