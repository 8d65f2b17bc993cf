//! What tests with hostile input do with the readers of this module.

use super::apply::{Backend, Family};
use super::dump::Dump;
use super::legacy::{self, Facts, Options, Ruleset};
use super::{ipset, nft, routes};

/// The text of `iptables-save`: read, judged by what older versions leave, and no more removed than there is.
pub(crate) fn read_dump(text: &str) {
    let Ok(dump) = Dump::parse(text) else { return };
    for rule in dump.tables.iter().flat_map(|table| &table.rules) {
        let words = rule.words();
        assert!(words.iter().map(String::len).sum::<usize>() <= rule.text.len());
        let _ = (rule.target(), rule.value("--comment"), rule.line());
    }
    let rules: usize = dump.tables.iter().map(|table| table.rules.len()).sum();
    for backend in [Backend::Nft, Backend::Legacy] {
        let ruleset = Ruleset {
            backend,
            family: Family::V4,
            text: text.to_owned(),
            dump: dump.clone(),
            unreadable: Vec::new(),
        };
        let facts = Facts { rulesets: vec![ruleset], ..Facts::default() };
        for force in [false, true] {
            let options = Options { force, host_manual_rules: force, ..Options::default() };
            let plan = legacy::plan(&facts, &options);
            let removed =
                plan.rulesets.iter().flat_map(|set| &set.tables).map(|t| t.jumps.len() + t.contents.len());
            assert!(removed.sum::<usize>() <= rules);
        }
    }
}

/// What `ipset` prints.
pub(crate) fn read_sets(text: &str) {
    assert!(ipset::heads(text).len() <= text.lines().count());
    let _ = ipset::saved_members(text, "edgesplice-served-v4");
}

/// What the kernel answers about routes, policy rules, nft and connections.
pub(crate) fn read_answers(bytes: &[u8]) {
    routes::read_bytes(bytes);
    nft::read_bytes(bytes);
    legacy::conntrack::read_bytes(bytes);
}
