//! Reads the text of `iptables-save`, with or without counters.
//!
//! Rules are kept as the text after `-A CHAIN `, byte for byte, so that what is not ours can be compared and
//! reported exactly as it stands.

use std::fmt::Write as _;

/// One `iptables-save` output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The tables in the order of the text.
    pub tables: Vec<Table>,
    /// Tables that stand, and that the program says it cannot print: a native nft rule is in them.
    pub unreadable: Vec<String>,
    /// Tables that are printed without some native base chains.
    pub partial: Vec<String>,
    /// Table and chain where a native rule hides our jump: it works, and cannot be seen or removed.
    pub hidden: Vec<(String, String)>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// `nat`, `filter`, …
    pub name: String,
    /// Chains in the order of the text.
    pub chains: Vec<Chain>,
    /// Rules of all chains in the order of the text.
    pub rules: Vec<Rule>,
}

/// One chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's name.
    pub name: String,
    /// `ACCEPT` or `DROP` for built-in chains, `-` for user-defined ones.
    pub policy: String,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain it stands in.
    pub chain: String,
    /// Everything after `-A CHAIN `, unchanged.
    pub text: String,
}

/// A line that is not `iptables-save` text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the iptables-save output cannot be read: `{text}`")]
pub struct DumpError {
    /// Line number from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

impl Dump {
    /// Reads `text`. Comment lines and empty lines are passed over.
    pub fn parse(text: &str) -> Result<Self, DumpError> {
        let mut dump = Self::default();
        for (index, raw) in text.lines().enumerate() {
            let bad = || DumpError { line: index + 1, text: raw.to_owned() };
            let line = raw.trim_end_matches('\r');
            dump.unreadable.extend(incompatible(line).map(str::to_owned));
            if line.is_empty() || line.starts_with('#') || line == "COMMIT" {
                continue;
            }
            if let Some(name) = line.strip_prefix('*') {
                dump.tables.push(Table { name: name.to_owned(), ..Table::default() });
                continue;
            }
            let table = dump.tables.last_mut().ok_or_else(bad)?;
            if let Some(rest) = line.strip_prefix(':') {
                let mut words = rest.split(' ');
                let (Some(name), Some(policy)) = (words.next(), words.next()) else { return Err(bad()) };
                table.chains.push(Chain { name: name.to_owned(), policy: policy.to_owned() });
                continue;
            }
            // `iptables-save -c` puts `[packets:bytes] ` in front.
            let rule = match line.strip_prefix('[') {
                Some(rest) => rest.split_once("] ").map(|(_, rule)| rule).ok_or_else(bad)?,
                None => line,
            };
            let rest = rule.strip_prefix("-A ").ok_or_else(bad)?;
            let (chain, text) = rest.split_once(' ').unwrap_or((rest, ""));
            table.rules.push(Rule { chain: chain.to_owned(), text: text.to_owned() });
        }
        // Base chains of other hooks are passed over, and the rest of the table is printed.
        let flagged = std::mem::take(&mut dump.unreadable);
        (dump.partial, dump.unreadable) = flagged.into_iter().partition(|name| dump.table(name).is_some());
        Ok(dump)
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }
}

/// The table that a line of `iptables-nft-save` is about, if it says one of
/// ``# Table `nat' is incompatible, use 'nft' tool.`` and
/// ``# Table `nat' contains incompatible base-chains, use 'nft' tool to list them.``
fn incompatible(line: &str) -> Option<&str> {
    let (name, what) = line.strip_prefix("# Table `")?.split_once('\'')?;
    what.contains("incompatible").then_some(name)
}

impl Table {
    /// Whether the chain exists.
    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain.name == name)
    }

    /// The rules of one chain, in order.
    pub fn rules_of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }
}

impl Rule {
    /// The rule as `iptables-save` prints it: `-A CHAIN …`.
    pub fn line(&self) -> String {
        let mut line = format!("-A {}", self.chain);
        if !self.text.is_empty() {
            let _ = write!(line, " {}", self.text);
        }
        line
    }

    /// The rule's words, with quoted words unquoted as `iptables-restore` would read them.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut word = String::new();
        let (mut started, mut quoted, mut escaped) = (false, false, false);
        for c in self.text.chars() {
            match c {
                _ if escaped => {
                    word.push(c);
                    escaped = false;
                }
                '\\' if quoted => escaped = true,
                '"' => {
                    quoted = !quoted;
                    started = true;
                }
                ' ' if !quoted => {
                    if started || !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    started = false;
                }
                _ => word.push(c),
            }
        }
        if started || !word.is_empty() {
            words.push(word);
        }
        words
    }

    /// The value of an option that is not negated.
    pub fn value(&self, option: &str) -> Option<String> {
        let words = self.words();
        let at = words.iter().position(|word| word == option)?;
        let negated = at.checked_sub(1).is_some_and(|before| words[before] == "!");
        if negated { None } else { words.get(at + 1).cloned() }
    }

    /// The target of `-j` or `-g`.
    pub fn target(&self) -> Option<String> {
        let words = self.words();
        let at = words.iter().position(|word| word == "-j" || word == "-g")?;
        words.get(at + 1).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Generated by iptables-save\n*nat\n:PREROUTING ACCEPT [1:60]\n:EDGE-MESH - [0:0]\n\
        [3:180] -A PREROUTING -d 10.0.0.0/8 -m comment --comment \"a \\\"b\\\" c\" -j EDGE-MESH\n-A EDGE-MESH -j RETURN\nCOMMIT\n";

    #[test]
    fn reads_tables_chains_and_rules() {
        let dump = Dump::parse(TEXT).unwrap();
        let nat = dump.table("nat").unwrap();
        assert!(nat.has_chain("EDGE-MESH") && !nat.has_chain("EDGE-MES"));
        assert_eq!(nat.rules_of("EDGE-MESH").count(), 1);
        let jump = nat.rules_of("PREROUTING").next().unwrap();
        assert_eq!(jump.target().as_deref(), Some("EDGE-MESH"));
        assert!(jump.words().contains(&"a \"b\" c".to_owned()));
    }

    #[test]
    fn a_table_that_is_not_printed_is_unreadable() {
        let text = "# Table `nat' is incompatible, use 'nft' tool.\n\
            # Table `mangle' contains incompatible base-chains, use 'nft' tool to list them.\n*mangle\nCOMMIT\n";
        let dump = Dump::parse(text).unwrap();
        assert_eq!((dump.unreadable, dump.tables.len()), (vec!["nat".to_owned()], 1));
    }

    #[test]
    fn names_the_line_it_cannot_read() {
        let error = Dump::parse("*nat\nhello\n").unwrap_err();
        assert_eq!(error, DumpError { line: 2, text: "hello".to_owned() });
    }
}
