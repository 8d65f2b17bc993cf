//! Host firewalls that drop what no rule accepts, as far as they are in this program's way. Pure.
//!
//! A packet passes the tables of both back ends. In the one in use the agent's own rule stands first and lets in what
//! it captured; the answers that it gets from backends are the firewall's to accept. In the other one everything is.

use std::collections::BTreeSet;

use super::apply::{Backend, Family};
use super::dump::{Rule, Table};
use super::legacy::{Facts, Ruleset};
use super::names::is_own_chain;

/// A firewall that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Whether it is in the way of this node's services, and not only of what pods send elsewhere.
    pub input: bool,
    /// What it does, with its place.
    pub what: String,
    /// The command that mends it.
    pub mend: String,
}

/// What is in the way. `backend` is the back end in use, `refuse_mark` the mark on served datagrams and refused packets.
pub fn closed(facts: &Facts, backend: Backend, refuse_mark: u32) -> Vec<Closed> {
    let mut found = Vec::new();
    for ruleset in &facts.rulesets {
        let Some(filter) = ruleset.dump.table("filter") else { continue };
        found.extend(input(ruleset, filter, backend, refuse_mark));
        found.extend(forward(ruleset, filter));
    }
    found
}

fn place(ruleset: &Ruleset, chain: &str) -> String {
    format!("{} {}, chain {chain}", ruleset.backend.as_str(), ruleset.family.as_str())
}

fn program(ruleset: &Ruleset) -> String {
    let program = if ruleset.family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{program}-{}", ruleset.backend.as_str())
}

fn input(ruleset: &Ruleset, filter: &Table, backend: Backend, refuse_mark: u32) -> Option<Closed> {
    how(filter, "INPUT")?;
    let (place, program) = (place(ruleset, "INPUT"), program(ruleset));
    if ruleset.backend == backend {
        if any_accepts(filter, "INPUT", is_for_answers) {
            return None;
        }
        let what = format!(
            "the host firewall ({place}) drops what no rule accepts, and no rule accepts answers: neither backends nor \
             local clients can talk to the agent"
        );
        let mend = format!("{program} -I INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        return Some(Closed { input: true, what, mend });
    }
    if any_accepts(filter, "INPUT", is_for_captured) {
        return None;
    }
    let what = format!(
        "a host firewall stands in the back end that the agent does not use ({place}) and drops what no rule accepts: \
         what the agent's rules in {} let in is dropped there, connections to services among it",
        backend.as_str()
    );
    let mend = format!(
        "{program} -I INPUT -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT && \
         {program} -I INPUT -m mark --mark {refuse_mark:#x}/{refuse_mark:#x} -j ACCEPT"
    );
    Some(Closed { input: true, what, mend })
}

/// A chain that nothing gets through at all; with any rule that accepts, somebody has thought about it.
fn forward(ruleset: &Ruleset, filter: &Table) -> Option<Closed> {
    let closing = how(filter, "FORWARD")?;
    if any_accepts(filter, "FORWARD", |_| true) {
        return None;
    }
    let what = format!(
        "the host firewall ({}) lets nothing through: services work, but pods reach nothing else beyond this node",
        place(ruleset, "FORWARD")
    );
    let mend = match closing {
        Closing::Policy => format!("{} -P FORWARD ACCEPT", program(ruleset)),
        Closing::Rule(rule) => format!("{} -D FORWARD {}", program(ruleset), rule.text),
    };
    Some(Closed { input: false, what, mend })
}

/// What makes a chain drop everything that no rule accepts.
enum Closing<'a> {
    Policy,
    Rule(&'a Rule),
}

fn how<'a>(filter: &'a Table, chain: &'a str) -> Option<Closing<'a>> {
    let closes = |rule: &&Rule| ["-j DROP", "-j REJECT"].iter().any(|target| rule.text.starts_with(target));
    if let Some(rule) = filter.rules_of(chain).last().filter(closes) {
        return Some(Closing::Rule(rule));
    }
    let dropped = filter.chains.iter().any(|one| one.name == chain && one.policy == "DROP");
    dropped.then_some(Closing::Policy)
}

/// Whether a rule that can be reached from `chain` accepts what `fits` looks for. Our own chains do not count.
fn any_accepts(filter: &Table, chain: &str, fits: impl Fn(&Rule) -> bool) -> bool {
    let mut seen = BTreeSet::from([chain.to_owned()]);
    let mut open = vec![chain.to_owned()];
    while let Some(chain) = open.pop() {
        for rule in filter.rules_of(&chain) {
            let Some(target) = rule.target() else { continue };
            if target == "ACCEPT" && fits(rule) {
                return true;
            }
            if filter.has_chain(&target) && !is_own_chain(&target) && seen.insert(target.clone()) {
                open.push(target);
            }
        }
    }
    false
}

fn has_state(rule: &Rule, wanted: &[&str]) -> bool {
    let states = rule.value("--ctstate").or_else(|| rule.value("--state"));
    states.is_some_and(|states| states.split(',').any(|state| wanted.contains(&state)))
}

/// Whether it accepts packets of established connections, or everything.
fn is_for_answers(rule: &Rule) -> bool {
    rule.text == "-j ACCEPT" || has_state(rule, &["ESTABLISHED"])
}

/// Whether it accepts new connections, whatever their port: those that were captured among them. Rules about a link other
/// than `lo` are taken to be about that of the pods.
fn is_for_captured(rule: &Rule) -> bool {
    let words = rule.words();
    let link = rule.value("-i").is_some_and(|link| link != "lo") && words.len() == 4;
    rule.text == "-j ACCEPT" || link || has_state(rule, &["NEW", "DNAT"]) && rule.value("--dport").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::dump::Dump;

    fn look(backend: Backend, chain: &str, policy: &str, rules: &str) -> Option<Closed> {
        let text = format!("*filter\n:{chain} {policy} [0:0]\n:ufw-before - [0:0]\n{rules}COMMIT\n");
        let dump = Dump::parse(&text).unwrap();
        let ruleset = Ruleset { backend, family: Family::V4, text, dump, unreadable: Vec::new() };
        let facts = Facts { rulesets: vec![ruleset], ..Facts::default() };
        let mut found = closed(&facts, Backend::Nft, 0x10);
        assert!(found.len() < 2, "{found:?}");
        found.pop()
    }

    const UFW: &str =
        "-A INPUT -j ufw-before\n-A ufw-before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";

    #[test]
    fn in_the_back_end_in_use_answers_must_get_through() {
        let is_closed = |policy, rules| look(Backend::Nft, "INPUT", policy, rules).is_some();
        assert!(!is_closed("ACCEPT", "-A INPUT -s 192.0.2.1/32 -j DROP\n"));
        assert!(is_closed("DROP", ""));
        assert!(is_closed("DROP", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n"));
        assert!(is_closed("ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited\n"));
        assert!(!is_closed("DROP", UFW));
    }

    #[test]
    fn in_the_other_one_everything_that_was_captured_must() {
        let at = |rules: &str| look(Backend::Legacy, "INPUT", "DROP", rules);
        let found = at(UFW).unwrap();
        assert!(found.input && found.what.contains("legacy ipv4, chain INPUT"), "{found:?}");
        let mended: String =
            found.mend.split(" && ").map(|line| line.replace("iptables-legacy -I", "-A") + "\n").collect();
        assert_eq!(at(&mended), None, "{mended}");
        for (rule, open) in [
            ("-i lo -j ACCEPT", false),
            ("-p tcp -m conntrack --ctstate NEW -m tcp --dport 22 -j ACCEPT", false),
            ("-i cni0 -j ACCEPT", true),
            ("-m conntrack --ctstate NEW -j ACCEPT", true),
            ("-j ACCEPT", true),
        ] {
            assert_eq!(at(&format!("-A INPUT {rule}\n")).is_none(), open, "{rule}");
        }
        assert_eq!(look(Backend::Legacy, "INPUT", "ACCEPT", ""), None);
    }

    #[test]
    fn a_forward_chain_that_lets_nothing_through_is_in_the_way_of_pods() {
        let at = |policy, rules| look(Backend::Legacy, "FORWARD", policy, rules);
        let mend = |policy, rules| at(policy, rules).map(|found| found.mend);
        assert_eq!(mend("DROP", "").as_deref(), Some("iptables-legacy -P FORWARD ACCEPT"));
        let reject = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        assert_eq!(
            mend("ACCEPT", reject).as_deref(),
            Some("iptables-legacy -D FORWARD -j REJECT --reject-with icmp-host-prohibited")
        );
        assert_eq!(at("DROP", "-A FORWARD -i docker0 -j ACCEPT\n"), None);
        assert_eq!(at("ACCEPT", ""), None);
    }
}
