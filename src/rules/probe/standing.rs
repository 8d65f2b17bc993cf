//! What stands in the packet filter already, and who else works there. Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Finding, Problem, Warning};
use crate::config::{InterceptSettings, SERVICE_PROXY_NAME_LABEL};
use crate::rules::apply::Backend;
use crate::rules::dump::Dump;
use crate::rules::firewall;
use crate::rules::legacy::{Facts, Options, Ruleset};
use crate::rules::names::{NAT_CHAIN, is_own_chain};
use crate::rules::neighbours::Neighbours;

/// The tables that this program writes to.
const TABLES: [&str; 3] = ["nat", "mangle", "filter"];

/// Judges what was read. `backend` is the one in use, `ranges` are the captured ones as far as they are known.
pub(super) fn judge(
    settings: &InterceptSettings,
    backend: Backend,
    ranges: &[IpNet],
    (facts, options): (&Facts, &Options),
    found: &mut Vec<Finding>,
) {
    mixed(backend, facts, found);
    for closed in firewall::closed(facts, backend, settings.refuse_mark) {
        let (id, severity) =
            if closed.input { ("input-default-deny", Problem) } else { ("forward-default-deny", Warning) };
        found.push(Finding::new(id, severity, closed.what, closed.mend));
    }
    neighbours(settings, &Neighbours::of(facts, options), found);
    for ruleset in &facts.rulesets {
        own_leftovers(ruleset, facts, found);
        not_tracked(ruleset, ranges, found);
        for table in
            ruleset.unreadable.iter().map(|one| &one.table).filter(|table| TABLES.contains(&table.as_str()))
        {
            let what = format!(
                "table {table} of {} holds something that iptables-{} cannot read; the agent looks after its own chains there one by one, cleanup cannot remove EdgeMesh's",
                place(ruleset),
                ruleset.backend.as_str()
            );
            let family = ruleset.family.nft();
            let mend = format!(
                "nft list table {family} {table}, and move the foreign rules to a table of their own"
            );
            found.push(Finding::new("unreadable-table", Warning, what, mend));
        }
    }
}

fn place(ruleset: &Ruleset) -> String {
    format!("{} {}", ruleset.backend.as_str(), ruleset.family.as_str())
}

fn mixed(backend: Backend, facts: &Facts, found: &mut Vec<Finding>) {
    let foreign = |dump: &Dump| {
        dump.tables.iter().flat_map(|table| &table.rules).filter(|rule| !is_own_chain(&rule.chain)).count()
    };
    let count = |of: fn(&Backend, &Backend) -> bool| -> usize {
        facts
            .rulesets
            .iter()
            .filter(|ruleset| of(&ruleset.backend, &backend))
            .map(|one| foreign(&one.dump))
            .sum()
    };
    let (ours, others) = (count(PartialEq::eq), count(PartialEq::ne));
    // Rules in the other one alone: the agent's jumps are the only ones in its own, and the same packet passes both.
    if others == 0 {
        return;
    }
    let name = if backend == Backend::Nft { "legacy" } else { "nft" };
    let what = format!(
        "{others} rules stand in {name} beside {ours} in {}, which is the back end in use; a packet passes both",
        backend.as_str()
    );
    let mend = format!("look at `iptables-{name}-save`, and remove what nobody keeps up to date");
    found.push(Finding::new("mixed-backends", Warning, what, mend));
}

fn neighbours(settings: &InterceptSettings, neighbours: &Neighbours, found: &mut Vec<Finding>) {
    for line in &neighbours.stale {
        found.push(Finding::new("stale-edgemesh", Problem, line, "edgesplice cleanup"));
    }
    if !neighbours.edgemesh.is_empty() {
        let what = format!(
            "EdgeMesh is alive: {}; the agent does not start beside it",
            neighbours.edgemesh.join("; ")
        );
        let mend = "kubectl -n kubeedge delete daemonset edgemesh-agent; then edgesplice cleanup";
        found.push(Finding::new("edgemesh-alive", Problem, what, mend));
    }
    if neighbours.kube_proxy.is_empty() {
        return;
    }
    let evidence = neighbours.kube_proxy.join("; ");
    if !settings.coexist_with_kube_proxy {
        let what = format!("kube-proxy is at work: {evidence}; the agent does not start beside it");
        let mend = "keep kube-proxy off this node and run `kube-proxy --cleanup`, or set intercept.coexistWithKubeProxy";
        found.push(Finding::new("kube-proxy", Problem, what, mend));
    } else if settings.service_proxy_name.is_empty() {
        let what = format!("kube-proxy is at work: {evidence}; both serve the same Services");
        let mend = format!(
            "set intercept.serviceProxyName, and give the Services the label {SERVICE_PROXY_NAME_LABEL}"
        );
        found.push(Finding::new("kube-proxy", Warning, what, mend));
    }
}

fn own_leftovers(ruleset: &Ruleset, facts: &Facts, found: &mut Vec<Finding>) {
    let Some(nat) = ruleset.dump.table("nat") else { return };
    let port = nat.rules_of(NAT_CHAIN).find_map(|rule| rule.value("--to-ports")?.parse::<u16>().ok());
    let listening = |port: u16| facts.listeners.iter().any(|one| !one.udp && one.address.port() == port);
    if let Some(port) = port.filter(|port| !listening(*port)) {
        let what = format!(
            "rules of an earlier run stand in {} and lead to port {port}, where nobody listens",
            place(ruleset)
        );
        found.push(Finding::new("own-leftovers", Problem, what, "edgesplice cleanup, or start the agent"));
    }
}

/// Packets that connection tracking does not see are not captured.
fn not_tracked(ruleset: &Ruleset, ranges: &[IpNet], found: &mut Vec<Finding>) {
    let Some(raw) = ruleset.dump.table("raw") else { return };
    let untracked = raw.rules.iter().filter(|rule| match rule.target().as_deref() {
        Some("NOTRACK") => true,
        Some("CT") => rule.text.contains("--notrack"),
        _ => false,
    });
    let captured = |net: &IpNet| match net {
        // NodeLocal DNSCache's own address, which no range covers.
        IpNet::V4(v4) if v4.addr().is_link_local() => false,
        _ => ranges.is_empty() || ranges.iter().any(|range| range.contains(net) || net.contains(range)),
    };
    let nets: BTreeSet<IpNet> = untracked
        .filter_map(|rule| {
            let text = rule.value("-d")?;
            text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
        })
        .filter(captured)
        .collect();
    for net in nets {
        let what = format!(
            "packets to {} are not tracked ({} raw, as NodeLocal DNSCache does it), so the agent does not get them",
            if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() },
            place(ruleset)
        );
        let mend = "leave it where NodeLocal DNSCache is to answer; else kubectl -n kube-system delete daemonset node-local-dns";
        found.push(Finding::new("notrack", Warning, what, mend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::apply::Family;
    use crate::rules::legacy::Unreadable;

    fn ruleset(backend: Backend, text: &str) -> Ruleset {
        let dump = Dump::parse(text).unwrap();
        Ruleset { backend, family: Family::V4, text: text.to_owned(), dump, unreadable: Vec::new() }
    }

    fn found(settings: &InterceptSettings, ranges: &[&str], rulesets: Vec<Ruleset>) -> Vec<Finding> {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mut found = Vec::new();
        let facts = Facts { rulesets, ..Facts::default() };
        judge(settings, Backend::Nft, &ranges, (&facts, &Options::default()), &mut found);
        found
    }

    fn ids(found: &[Finding]) -> Vec<&'static str> {
        found.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn rules_that_lead_nowhere_and_rules_in_both_back_ends_are_found() {
        let nft = "*nat\n:PREROUTING ACCEPT [0:0]\n:EDGESPLICE - [0:0]\n:KUBE-SERVICES - [0:0]\n\
             -A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -j RETURN\n\
             -A EDGESPLICE -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
        let legacy = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT\n";
        let both = || vec![ruleset(Backend::Nft, nft), ruleset(Backend::Legacy, legacy)];
        assert_eq!(
            ids(&found(&InterceptSettings::default(), &[], both())),
            ["mixed-backends", "kube-proxy", "own-leftovers"]
        );
        let coexist = InterceptSettings { coexist_with_kube_proxy: true, ..InterceptSettings::default() };
        assert_eq!(found(&coexist, &[], both())[1].severity, Warning);
        let shared = InterceptSettings { service_proxy_name: "edgesplice".to_owned(), ..coexist };
        assert_eq!(ids(&found(&shared, &[], both())), ["mixed-backends", "own-leftovers"]);
    }

    #[test]
    fn untracked_services_are_found_and_nodelocals_own_address_is_not() {
        let raw = "*raw\n:PREROUTING ACCEPT [0:0]\n\
             -A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack\n\
             -A PREROUTING -d 10.96.0.10/32 -p tcp -m tcp --dport 53 -j NOTRACK\n\
             -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack\nCOMMIT\n";
        let rulesets = || vec![ruleset(Backend::Nft, raw)];
        let got = found(&InterceptSettings::default(), &["10.96.0.0/12"], rulesets());
        assert_eq!(ids(&got), ["notrack"]);
        assert!(got[0].what.contains("10.96.0.10 "), "{}", got[0].what);
        assert_eq!(ids(&found(&InterceptSettings::default(), &[], rulesets())), ["notrack"]);
        assert_eq!(ids(&found(&InterceptSettings::default(), &["10.32.0.0/16"], rulesets())), [""; 0]);
    }

    #[test]
    fn what_the_programs_cannot_read_is_named() {
        let mut odd = ruleset(Backend::Nft, "*nat\nCOMMIT\n");
        let unreadable = |table: &str| Unreadable { table: table.to_owned(), chains: Vec::new() };
        odd.unreadable = vec![unreadable("nat"), unreadable("inet-thing")];
        let got = found(&InterceptSettings::default(), &[], vec![odd]);
        assert_eq!(ids(&got), ["unreadable-table"]);
    }
}
