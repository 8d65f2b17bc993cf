//! Matching of one rule against one shape, option by option.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::shapes::{FAKE_RANGE, MESH_ADDRESS};
use crate::rules::dump::Rule;

/// Options whose value is free text, which may itself begin with a dash.
const TEXT_OPTIONS: [&str; 6] =
    ["--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--bytecode"];

/// One option of a rule with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clause {
    negated: bool,
    flag: String,
    values: Vec<String>,
}

/// A rule's options, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clauses(Vec<Clause>);

impl Clauses {
    /// Takes a rule apart. The `-m tcp` that goes with `-p tcp` says nothing and is left out.
    pub(super) fn of(rule: &Rule) -> Self {
        let mut clauses: Vec<Clause> = Vec::new();
        let mut words = rule.words().into_iter();
        let mut negated = false;
        while let Some(word) = words.next() {
            if word == "!" {
                negated = true;
            } else if word.len() > 1 && word.starts_with('-') {
                let values = if TEXT_OPTIONS.contains(&word.as_str()) {
                    words.next().into_iter().collect()
                } else {
                    Vec::new()
                };
                clauses.push(Clause { negated: std::mem::take(&mut negated), flag: word, values });
            } else if let Some(last) = clauses.last_mut() {
                last.values.push(word);
            }
        }
        let protocol = clauses.iter().find(|clause| clause.flag == "-p").map(|clause| clause.values.clone());
        clauses.retain(|clause| clause.flag != "-m" || Some(&clause.values) != protocol.as_ref());
        Self(clauses)
    }

    /// The first value of an option that is not negated.
    pub(super) fn value(&self, flag: &str) -> Option<&str> {
        let clause = self.0.iter().find(|clause| clause.flag == flag && !clause.negated)?;
        clause.values.first().map(String::as_str)
    }

    /// The chain or target that the rule hands packets to.
    pub(super) fn target(&self) -> Option<&str> {
        self.value("-j").or_else(|| self.value("-g"))
    }

    /// Whether it hands on every packet, and that is all it says.
    pub(super) fn is_bare_jump(&self) -> bool {
        self.0.len() == 1 && self.target().is_some()
    }

    /// The address and, if there is one, the port of a DNAT.
    pub(super) fn dnat(&self) -> Option<(IpAddr, Option<u16>)> {
        let text = self.value("--to-destination")?;
        let address = text.parse::<SocketAddr>().map(|to| (to.ip(), Some(to.port())));
        address.or_else(|_| text.parse().map(|ip| (ip, None))).ok()
    }
}

/// A shape, ready to be compared.
#[derive(Debug)]
pub(super) struct Pattern(Clauses);

impl Pattern {
    /// Reads a shape as [`super::shapes`] writes it.
    pub(super) fn new(text: &str) -> Self {
        Self(Clauses::of(&Rule { chain: String::new(), text: text.to_owned() }))
    }

    /// Whether `rule` has exactly the options of this shape.
    pub(super) fn matches(&self, rule: &Clauses) -> bool {
        let mut left: Vec<&Clause> = rule.0.iter().collect();
        left.len() == self.0.0.len()
            && self.0.0.iter().all(|want| match left.iter().position(|clause| clause_matches(want, clause)) {
                Some(at) => {
                    left.swap_remove(at);
                    true
                }
                None => false,
            })
    }
}

fn clause_matches(want: &Clause, clause: &Clause) -> bool {
    want.negated == clause.negated
        && want.flag == clause.flag
        && want.values.len() == clause.values.len()
        && want.values.iter().zip(&clause.values).all(|(want, value)| value_matches(want, value))
}

fn value_matches(want: &str, value: &str) -> bool {
    let socket = || value.parse::<SocketAddr>().ok();
    match want {
        "<net>" => value.parse::<IpNet>().is_ok() || value.parse::<IpAddr>().is_ok(),
        "<range>" => value.parse::<IpNet>().is_ok() && value != FAKE_RANGE,
        "<host>" => {
            value.parse::<IpAddr>().is_ok()
                || value.parse::<IpNet>().is_ok_and(|net| net.prefix_len() == net.max_prefix_len())
        }
        "<dev>" => !value.is_empty(),
        "<proto>" => value == "tcp" || value == "udp",
        "<port>" => value.parse::<u16>().is_ok(),
        "<addr>" => value.parse::<IpAddr>().is_ok(),
        "<addr:port>" => socket().is_some(),
        "<mesh:port>" => socket().is_some_and(|to| to.ip() == IpAddr::V4(MESH_ADDRESS)),
        "<node:port>" => socket().is_some_and(|to| to.ip() != IpAddr::V4(MESH_ADDRESS)),
        "<service>" => value.split_once('/').is_some_and(|(namespace, name)| {
            !namespace.is_empty() && !name.is_empty() && !value.contains(char::is_whitespace)
        }),
        "<ignore.>" => ignored(value).is_some_and(|name| name.contains('.') && !name.contains('/')),
        "<ignore/>" => ignored(value).is_some_and(|name| name.contains('/')),
        literal => literal == value,
    }
}

/// The service in EdgeMesh's `ignore NAME service`.
fn ignored(comment: &str) -> Option<&str> {
    let name = comment.strip_prefix("ignore ")?.strip_suffix(" service")?;
    (!name.is_empty() && !name.contains(' ')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clauses(text: &str) -> Clauses {
        Clauses::of(&Rule { chain: "X".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn order_and_implied_matches_do_not_count() {
        let shape =
            Pattern::new("-d <host> -p <proto> -m comment --comment <service> --dport <port> -j RETURN");
        assert!(shape.matches(&clauses(
            "-d 10.0.0.1/32 -p udp -m comment --comment \"a/b:c\" -m udp --dport 53 -j RETURN"
        )));
        assert!(
            shape.matches(&clauses(
                "-d 10.0.0.1/32 -p udp -m udp --dport 53 -m comment --comment a/b -j RETURN"
            ))
        );
        assert!(!shape.matches(&clauses(
            "-d 10.0.0.0/24 -p udp -m comment --comment \"a/b:c\" -m udp --dport 53 -j RETURN"
        )));
        assert!(!shape.matches(&clauses(
            "-d 10.0.0.1/32 -p udp -m comment --comment \"a b/c\" -m udp --dport 53 -j RETURN"
        )));
        assert!(!shape.matches(&clauses(
            "-d 10.0.0.1/32 -i eth0 -p udp -m comment --comment \"a/b:c\" -m udp --dport 53 -j RETURN"
        )));
        assert!(!shape.matches(&clauses(
            "! -d 10.0.0.1/32 -p udp -m comment --comment a/b -m udp --dport 53 -j RETURN"
        )));
    }

    #[test]
    fn a_comment_that_looks_like_an_option_is_a_comment() {
        let rule = clauses("-m comment --comment \"-j\" -m comment --comment -jump -j EDGE-MESH");
        assert_eq!(rule.target(), Some("EDGE-MESH"));
        assert!(!Pattern::new("-m comment --comment \"edgemesh root chain\" -j EDGE-MESH").matches(&rule));
    }

    #[test]
    fn a_goto_is_not_a_jump() {
        let rule = clauses("-m comment --comment \"edgemesh root chain\" -g EDGE-MESH");
        assert_eq!(rule.target(), Some("EDGE-MESH"));
        assert!(!Pattern::new("-m comment --comment \"edgemesh root chain\" -j EDGE-MESH").matches(&rule));
    }

    #[test]
    fn reads_dnat_targets() {
        assert_eq!(
            clauses("-p tcp -j DNAT --to-destination 1.2.3.4:5").dnat(),
            Some(([1, 2, 3, 4].into(), Some(5)))
        );
        assert_eq!(clauses("-j DNAT --to-destination 1.2.3.4").dnat(), Some(([1, 2, 3, 4].into(), None)));
        assert_eq!(clauses("-j DNAT --to-destination 1.2.3.4-1.2.3.9").dnat(), None);
    }
}
