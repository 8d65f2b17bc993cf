//! Plans as text: for `iptables-restore --noflush`, and as `iptables-save` would print them. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::apply::Family;
use super::dump::{Dump, Rule, Table};
use super::names::{CREATED_CHAIN, is_own_chain};
use super::plan::{FamilyPlan, Plan, jump};

/// The script that makes own chains and jumps of `plan` stand as planned, whatever `dump` shows of them now. Foreign
/// rules and chains do not occur in it. `created` names the tables that did not exist before this program.
pub fn install(plan: &FamilyPlan, dump: &Dump, created: &BTreeSet<&'static str>) -> String {
    let mut text = String::new();
    for table in &plan.tables {
        let now = dump.table(table.name);
        let _ = writeln!(text, "*{}", table.name);
        for chain in &table.chains {
            // Creates the chain or empties it.
            let _ = writeln!(text, ":{} - [0:0]", chain.name);
        }
        if created.contains(table.name) {
            let _ = writeln!(text, ":{CREATED_CHAIN} - [0:0]");
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                let _ = writeln!(text, "-A {} {rule}", chain.name);
            }
        }
        let good: Vec<&str> = table
            .jumps
            .iter()
            .filter(|(from, to)| stands_first(now, from, to))
            .map(|(from, _)| *from)
            .collect();
        for rule in now.into_iter().flat_map(jumps_into_own) {
            if !good.contains(&rule.chain.as_str()) {
                let _ = writeln!(text, "-D {} {}", rule.chain, rule.text);
            }
        }
        for (from, to) in table.jumps.iter().filter(|(from, _)| !good.contains(from)) {
            let _ = writeln!(text, "-I {from} 1 {}", jump(to));
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The script that takes away every own chain and every jump into one, or `None` if `dump` shows none. In the tables
/// `marked`, the mark that they are ours stays, or comes to stand again.
pub fn removal(dump: &Dump, marked: &BTreeSet<String>) -> Option<String> {
    let mut text = String::new();
    // What captures goes first: from then on nothing new reaches the acceptor.
    let mut tables: Vec<&Table> = dump.tables.iter().collect();
    tables.sort_by_key(|table| table.name != "nat");
    for table in tables {
        let mut chains: Vec<&str> =
            table.chains.iter().map(|chain| chain.name.as_str()).filter(|name| is_own_chain(name)).collect();
        let keep = marked.contains(&table.name);
        if chains.is_empty() || keep && chains == [CREATED_CHAIN] && table.rules.is_empty() {
            continue;
        }
        let _ = writeln!(text, "*{}", table.name);
        if keep {
            chains.retain(|name| *name != CREATED_CHAIN);
            let _ = writeln!(text, ":{CREATED_CHAIN} - [0:0]");
        }
        for rule in jumps_into_own(table) {
            let _ = writeln!(text, "-D {} {}", rule.chain, rule.text);
        }
        for chain in &chains {
            let _ = writeln!(text, "-F {chain}");
        }
        for chain in &chains {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
    }
    (!text.is_empty()).then_some(text)
}

/// The script that empties every own chain that `dump` shows, so that jumps into them do nothing.
pub(super) fn emptying(dump: &Dump) -> String {
    let mut text = String::new();
    for table in &dump.tables {
        let _ = writeln!(text, "*{}", table.name);
        for chain in table.chains.iter().filter(|chain| is_own_chain(&chain.name)) {
            let _ = writeln!(text, "-F {}", chain.name);
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The plan as `iptables-save` prints it: one text for each family. `created` names the tables that bear our mark.
pub fn save_form(plan: &Plan, created: &BTreeSet<(Family, &'static str)>) -> Vec<(Family, String)> {
    plan.families.iter().map(|family| (family.family, family_save_form(family, created))).collect()
}

fn family_save_form(plan: &FamilyPlan, created: &BTreeSet<(Family, &'static str)>) -> String {
    let mut text = String::new();
    for table in &plan.tables {
        let _ = writeln!(text, "*{}", table.name);
        for chain in &table.chains {
            let _ = writeln!(text, ":{} - [0:0]", chain.name);
        }
        if created.contains(&(plan.family, table.name)) {
            let _ = writeln!(text, ":{CREATED_CHAIN} - [0:0]");
        }
        for (from, to) in &table.jumps {
            let _ = writeln!(text, "-A {from} {}", jump(to));
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                let _ = writeln!(text, "-A {} {rule}", chain.name);
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// Rules outside own chains that lead into one.
pub(super) fn jumps_into_own(table: &Table) -> impl Iterator<Item = &Rule> {
    table.rules.iter().filter(|rule| {
        // The text is searched first: a node may have thousands of foreign rules, and words are costly.
        rule.text.contains("EDGESPLICE")
            && !is_own_chain(&rule.chain)
            && rule.target().is_some_and(|target| is_own_chain(&target))
    })
}

/// Whether `from` begins with exactly our jump to `to`, and has no other into an own chain.
pub(super) fn stands_first(table: Option<&Table>, from: &str, to: &str) -> bool {
    let Some(table) = table else { return false };
    let ours: Vec<&Rule> = jumps_into_own(table).filter(|rule| rule.chain == from).collect();
    let first = table.rules_of(from).next();
    matches!(ours[..], [only] if first == Some(only) && only.text == jump(to))
}

/// The foreign rule at the head of `from`, where our jump to `to` stands exactly once behind it.
pub(super) fn stands_behind<'a>(table: &'a Table, from: &'a str, to: &str) -> Option<&'a Rule> {
    let ours: Vec<&Rule> = jumps_into_own(table).filter(|rule| rule.chain == from).collect();
    let first = table.rules_of(from).next()?;
    matches!(ours[..], [only] if only != first && only.text == jump(to)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Capabilities, Wanted, plan};
    use super::*;

    const ALL: Capabilities = Capabilities::ALL;

    fn wanted(ranges: &[&str]) -> Wanted {
        Wanted {
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            skip: ["10.96.0.1", "fd00:96::1"].map(|ip| ip.parse().unwrap()).into(),
            proxy_port: 15001,
            own_mark: 0x0200_0000,
            refuse_mark: 0x0100_0000,
            ..Wanted::default()
        }
    }

    fn golden(ranges: &[&str], capabilities: Capabilities, family: Family) -> String {
        let plan = plan(&wanted(ranges), capabilities);
        install(plan.family(family).unwrap(), &Dump::default(), &BTreeSet::new())
    }

    #[test]
    fn v4() {
        insta::assert_snapshot!(golden(&["10.96.0.0/12"], ALL, Family::V4));
    }

    #[test]
    fn v6() {
        insta::assert_snapshot!(golden(&["10.96.0.0/12", "fd00:96::/112"], ALL, Family::V6));
    }

    #[test]
    fn v4_with_source_ranges_and_pods() {
        use crate::model::{Audience, Door, Frontend, Protocol};
        let at = Frontend { ip: "203.0.113.1".parse().unwrap(), port: 80, protocol: Protocol::Tcp };
        let door = Door { audience: Audience::All, sources: vec!["192.0.2.0/24".parse().unwrap()] };
        let wanted = Wanted {
            external: [(at, door)].into_iter().collect(),
            pods: vec!["fd44::/64".parse().unwrap(), "10.244.1.0/24".parse().unwrap()],
            ..wanted(&["10.96.0.0/12"])
        };
        let plan = plan(&wanted, ALL);
        let mangle = &plan.families[0].tables[1].chains[0];
        insta::assert_snapshot!(mangle.rules[4..].join("\n"));
    }

    #[test]
    fn v4_holding_in_two_queues() {
        let wanted = Wanted { queues: 2, ..wanted(&["10.96.0.0/12"]) };
        let held = plan(&wanted, ALL);
        let chains = held.families[0].tables[1].chains.iter();
        let lines =
            chains.flat_map(|chain| chain.rules.iter().map(move |rule| format!("{} {rule}", chain.name)));
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
        // Where that cannot be, everything is as without.
        let none = plan(&Wanted { queues: 0, ..wanted.clone() }, ALL);
        assert_eq!(plan(&wanted, Capabilities { queues: false, ..ALL }), none);
        let no_sets = Capabilities { ipset: false, ..ALL };
        assert_eq!(plan(&wanted, no_sets), plan(&Wanted { queues: 0, ..wanted }, no_sets));
    }

    #[test]
    fn v6_with_sources_kept() {
        let wanted = Wanted { keep_source: true, ..wanted(&["fd00:96::/112"]) };
        let (kept, without) =
            (plan(&wanted, ALL), plan(&Wanted { keep_source: false, ..wanted.clone() }, ALL));
        let lines = |plan: &Plan| -> BTreeSet<String> {
            let chains =
                plan.families.iter().flat_map(|family| &family.tables).flat_map(|table| &table.chains);
            chains.flat_map(|chain| chain.rules.iter().map(|rule| format!("{} {rule}", chain.name))).collect()
        };
        let more: Vec<_> = lines(&kept).difference(&lines(&without)).cloned().collect();
        insta::assert_snapshot!(more.join("\n"));
        assert_eq!(plan(&wanted, Capabilities { connection_marks: false, ..ALL }), without);
    }

    #[test]
    fn v4_with_datagrams_from_outside() {
        use crate::model::{Audience, Door, Frontend, Protocol};
        let at = Frontend { ip: "192.168.77.1".parse().unwrap(), port: 30053, protocol: Protocol::Udp };
        let door = Door { audience: Audience::All, sources: Vec::new() };
        let wanted = Wanted { external: [(at, door)].into_iter().collect(), ..wanted(&["10.96.0.0/12"]) };
        let rules = |capabilities| {
            let plan = plan(&wanted, capabilities);
            let tables = plan.families[0].tables[1..].iter();
            tables.flat_map(|table| table.chains[0].rules.clone()).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(rules(ALL));
        let without = rules(Capabilities { policy_routing: false, ..ALL });
        assert!(!without.contains("-p udp -m set --match-set edgesplice-external-v4"), "{without}");
    }

    #[test]
    fn v4_without_ipset() {
        insta::assert_snapshot!(golden(&["10.96.0.0/12"], Capabilities { ipset: false, ..ALL }, Family::V4));
    }

    #[test]
    fn v6_without_ipset() {
        insta::assert_snapshot!(golden(&["fd00:96::/112"], Capabilities { ipset: false, ..ALL }, Family::V6));
    }

    #[test]
    fn v4_without_policy_routing() {
        let capabilities = Capabilities { policy_routing: false, ..ALL };
        insta::assert_snapshot!(golden(&["10.96.0.0/12"], capabilities, Family::V4));
    }

    #[test]
    fn several_ranges() {
        // The second lies inside the first, the third has host bits set, the last is a single address.
        let ranges = ["10.96.0.0/12", "10.97.0.0/16", "172.30.1.1/16", "192.0.2.7/32"];
        insta::assert_snapshot!(golden(&ranges, ALL, Family::V4));
    }

    #[test]
    fn as_iptables_save_prints_it() {
        let text = save_form(&plan(&wanted(&["10.96.0.0/12"]), ALL), &BTreeSet::new()).remove(0).1;
        insta::assert_snapshot!(text);
        assert!(Dump::parse(&text).is_ok());
    }

    #[test]
    fn one_family_only_without_ipv6() {
        let plan = plan(&wanted(&["10.96.0.0/12", "fd00:96::/112"]), Capabilities { v6: false, ..ALL });
        assert_eq!(plan.families.iter().map(|family| family.family).collect::<Vec<_>>(), [Family::V4]);
    }

    #[test]
    fn keeps_a_good_jump_and_puts_a_bad_one_right() {
        let dump = Dump::parse(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:EDGESPLICE - [0:0]\n\
             -A PREROUTING -j EDGESPLICE\n-A PREROUTING -j OTHER\n\
             -A OUTPUT -j OTHER\n-A OUTPUT -m comment --comment edgesplice -j EDGESPLICE\nCOMMIT\n",
        )
        .unwrap();
        let plan = plan(&wanted(&["10.96.0.0/12"]), ALL);
        let text = install(&plan.families[0], &dump, &BTreeSet::from(["nat"]));
        let nat = text.split("*nat").nth(1).unwrap();
        assert!(!nat.contains(" PREROUTING"), "{nat}");
        // One as an earlier version wrote it goes, too.
        let moved = "-D OUTPUT -m comment --comment edgesplice -j EDGESPLICE\n\
                     -I OUTPUT 1 -j EDGESPLICE\n";
        assert!(nat.contains(moved) && nat.contains(":EDGESPLICE-CREATED - [0:0]\n"), "{nat}");
    }

    #[test]
    fn removal_starts_with_what_captures_and_names_nothing_foreign() {
        let dump = Dump::parse(
            "*filter\n:INPUT ACCEPT [0:0]\n:EDGESPLICE-INPUT - [0:0]\n:EDGESPLICE-INPUT-OLD - [0:0]\n\
             -A INPUT -j EDGESPLICE-INPUT-OLD\n-A INPUT -m comment --comment edgesplice -j EDGESPLICE-INPUT\nCOMMIT\n\
             *nat\n:OUTPUT ACCEPT [0:0]\n:EDGESPLICE - [0:0]\n-A OUTPUT -g EDGESPLICE\n-A EDGESPLICE -j RETURN\nCOMMIT\n",
        )
        .unwrap();
        let none = BTreeSet::new();
        insta::assert_snapshot!(removal(&dump, &none).unwrap());
        assert_eq!(removal(&Dump::parse("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n").unwrap(), &none), None);
    }

    #[test]
    fn removal_leaves_the_mark_where_the_table_is_to_go_as_well() {
        let text = "*nat\n:OUTPUT ACCEPT [0:0]\n:EDGESPLICE - [0:0]\n:EDGESPLICE-CREATED - [0:0]\n\
             -A OUTPUT -j EDGESPLICE\nCOMMIT\n";
        let (dump, nat) = (Dump::parse(text).unwrap(), BTreeSet::from(["nat".to_owned()]));
        let kept = removal(&dump, &nat).unwrap();
        assert!(kept.contains(":EDGESPLICE-CREATED - [0:0]\n-D OUTPUT -j EDGESPLICE\n"), "{kept}");
        assert!(!kept.contains("X EDGESPLICE-CREATED") && kept.contains("-X EDGESPLICE\n"), "{kept}");
        assert!(removal(&dump, &BTreeSet::new()).unwrap().contains("-X EDGESPLICE-CREATED\n"));
        // Nothing but the mark: nothing to do, or only that is.
        let bare = Dump::parse("*nat\n:OUTPUT ACCEPT [0:0]\n:EDGESPLICE-CREATED - [0:0]\nCOMMIT\n").unwrap();
        assert_eq!(removal(&bare, &nat), None);
        let script = "*nat\n-F EDGESPLICE-CREATED\n-X EDGESPLICE-CREATED\nCOMMIT\n";
        assert_eq!(removal(&bare, &BTreeSet::new()).as_deref(), Some(script));
    }
}
