//! Looks into tables that `iptables-nft-save` refuses to print because someone wrote a native nft rule into them.
//!
//! The programs still print each single chain that has no such rule itself, still find, add and delete single rules,
//! and still restore. So what matters here is asked for one by one: own chains, and the jumps into them from built-in
//! chains. Nothing here changes anything.

use super::apply::{Backend, Family, Firewall, ToolError};
use super::dump::{Chain, Dump, Rule, Table};
use super::names::{
    CREATED_CHAIN, FORWARD_CHAIN, HELD_CHAIN, HOME_CHAIN, INPUT_CHAIN, MANGLE_CHAIN, NAT_CHAIN, OUTPUT_CHAIN,
};
use super::plan::jump;

/// The tables in which own chains stand.
const TABLES: [&str; 3] = ["nat", "mangle", "filter"];
/// Stands for the rules of an own chain that holds a native rule itself. No plan has such a rule.
pub(super) const HIDDEN: &str = "(hidden from iptables)";

/// Own chains of a table, and the built-in chains that may lead into them, each with its target.
type Places = (&'static [&'static str], &'static [(&'static str, &'static str)]);

fn places(table: &str) -> Places {
    match table {
        "filter" => (
            &[INPUT_CHAIN, FORWARD_CHAIN, OUTPUT_CHAIN],
            &[("INPUT", INPUT_CHAIN), ("FORWARD", FORWARD_CHAIN), ("OUTPUT", OUTPUT_CHAIN)],
        ),
        // The other two are led to by the first.
        "mangle" => (
            &[MANGLE_CHAIN, HELD_CHAIN, HOME_CHAIN],
            &[("PREROUTING", MANGLE_CHAIN), ("OUTPUT", MANGLE_CHAIN)],
        ),
        _ => (&[NAT_CHAIN], &[("PREROUTING", NAT_CHAIN), ("OUTPUT", NAT_CHAIN)]),
    }
}

/// Adds to `dump` what can be seen of its unreadable tables.
pub(super) async fn into_unreadable<F: Firewall>(
    firewall: &F,
    backend: Backend,
    family: Family,
    dump: &mut Dump,
) -> Result<(), ToolError> {
    for name in TABLES.into_iter().filter(|name| dump.unreadable.iter().any(|one| one == name)) {
        let mut table = Table { name: name.to_owned(), ..Table::default() };
        let (chains, jumps) = places(name);
        let mut own = Vec::new();
        for chain in chains.iter().copied().chain([CREATED_CHAIN]) {
            match show(firewall, backend, family, name, chain).await? {
                Shown::Absent => {}
                Shown::Rules(rules) => {
                    own.push(chain);
                    table.rules.extend(rules);
                }
                Shown::Hidden => {
                    own.push(chain);
                    table.rules.push(Rule { chain: chain.to_owned(), text: HIDDEN.to_owned() });
                }
            }
        }
        table.chains = own.iter().map(|name| chain(name, "-")).collect();
        for (from, to) in jumps {
            match show(firewall, backend, family, name, from).await? {
                Shown::Absent => continue,
                Shown::Rules(rules) => table.rules.extend(rules),
                // Where among the others it stands cannot be told, only that it does.
                Shown::Hidden if own.contains(to) => {
                    let text = jump(to);
                    let seen = look_for(firewall, backend, family, name, from, &text).await?;
                    if seen == Seen::Unknown {
                        dump.hidden.push((name.to_owned(), (*from).to_owned()));
                    }
                    if seen != Seen::Absent {
                        table.rules.push(Rule { chain: (*from).to_owned(), text });
                    }
                }
                Shown::Hidden => {}
            }
            table.chains.push(chain(from, "ACCEPT"));
        }
        dump.tables.push(table);
    }
    Ok(())
}

fn chain(name: &str, policy: &str) -> Chain {
    Chain { name: name.to_owned(), policy: policy.to_owned() }
}

/// What one chain looks like.
enum Shown {
    Absent,
    Rules(Vec<Rule>),
    /// It stands, and holds a native rule.
    Hidden,
}

async fn show<F: Firewall>(
    firewall: &F,
    backend: Backend,
    family: Family,
    table: &str,
    chain: &str,
) -> Result<Shown, ToolError> {
    match firewall.command(backend, family, &["-t", table, "-S", chain]).await {
        Ok(text) => {
            let rules = text.lines().filter_map(|line| line.strip_prefix("-A ")?.split_once(' '));
            let rules = rules.map(|(chain, text)| Rule { chain: chain.to_owned(), text: text.to_owned() });
            Ok(Shown::Rules(rules.collect()))
        }
        Err(ToolError::Failed { stderr, .. }) if stderr.contains("incompatible") => {
            // It says so of chains that do not stand as well. A rule that leads to such a one is an error of another kind.
            let args = ["-t", table, "-C", "OUTPUT", "-j", chain];
            match firewall.command(backend, family, &args).await {
                Err(ToolError::Failed { stderr, .. }) if is_absent(&stderr) => Ok(Shown::Absent),
                Err(ToolError::Failed { .. }) | Ok(_) => Ok(Shown::Hidden),
                Err(error) => Err(error),
            }
        }
        Err(ToolError::Failed { stderr, .. }) if is_absent(&stderr) => Ok(Shown::Absent),
        Err(error) => Err(error),
    }
}

fn is_absent(stderr: &str) -> bool {
    stderr.contains("does not exist") || stderr.contains("No chain/target/match")
}

/// What a program says about a rule in a chain that holds a native one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It stands.
    Stands,
    /// It does not.
    Absent,
    /// The native rule stands first, and the program gives up there. Not seen is not missing: a second jump could not be
    /// told from the first.
    Unknown,
}

async fn look_for<F: Firewall>(
    firewall: &F,
    backend: Backend,
    family: Family,
    table: &str,
    chain: &str,
    rule: &str,
) -> Result<Seen, ToolError> {
    let args: Vec<&str> = ["-t", table, "-C", chain].into_iter().chain(rule.split(' ')).collect();
    match firewall.command(backend, family, &args).await {
        Err(ToolError::Failed { stderr, .. }) if is_absent(&stderr) || stderr.contains("Bad rule") => {
            Ok(Seen::Absent)
        }
        Ok(_) => Ok(Seen::Stands),
        Err(ToolError::Failed { .. }) => Ok(Seen::Unknown),
        Err(error) => Err(error),
    }
}

/// Which of `chains` stand in a table that cannot be read.
pub(super) async fn standing<F: Firewall>(
    firewall: &F,
    backend: Backend,
    family: Family,
    table: &str,
    chains: impl IntoIterator<Item = &'static str>,
) -> Result<Vec<&'static str>, ToolError> {
    let mut found = Vec::new();
    for chain in chains {
        if !matches!(show(firewall, backend, family, table, chain).await?, Shown::Absent) {
            found.push(chain);
        }
    }
    Ok(found)
}

/// What to tell about an unreadable table, and about the chains in it where our jump is `hidden`.
pub(super) fn warning(family: Family, table: &str, hidden: &[(String, String)]) -> String {
    let nft = family.nft();
    let chains: Vec<&str> =
        hidden.iter().filter(|(of, _)| of == table).map(|(_, chain)| chain.as_str()).collect();
    let what = if chains.is_empty() {
        "own chains are looked after one by one, and whose rules stand before them there may stay unknown"
            .to_owned()
    } else {
        format!(
            "it stands before our jump in {} and hides it: services work, but when the agent ends, the jump cannot be \
             removed and leads to an empty chain until the rule is gone",
            chains.join(" and ")
        )
    };
    format!(
        "{UNREADABLE} {} {table}: someone wrote a native nft rule into it; {what}; see `nft -a list table {nft} {table}`, \
         and move that rule to a table of its own",
        family.as_str()
    )
}

/// How [`warning`] begins.
pub(super) const UNREADABLE: &str = "iptables cannot read the table";

#[cfg(test)]
mod tests {
    use super::super::plan::{Capabilities, Wanted, plan};
    use super::*;

    #[test]
    fn every_chain_that_is_ever_planned_is_looked_for() {
        let wanted = Wanted {
            ranges: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            proxy_port: 15001,
            own_mark: 2,
            refuse_mark: 1,
            queues: 2,
            keep_source: true,
            ..Wanted::default()
        };
        let plan = plan(&wanted, Capabilities::ALL);
        let tables = || plan.families.iter().flat_map(|family| &family.tables);
        for table in tables() {
            let (chains, jumps) = places(table.name);
            for chain in &table.chains {
                assert!(chains.contains(&chain.name), "{} of {}", chain.name, table.name);
            }
            for (from, to) in &table.jumps {
                assert!(jumps.contains(&(*from, *to)), "{from} to {to} of {}", table.name);
            }
        }
        let chains: Vec<_> = tables().flat_map(|table| &table.chains).map(|chain| chain.name).collect();
        assert!(chains.contains(&HELD_CHAIN) && chains.contains(&HOME_CHAIN), "{chains:?}");
    }
}
