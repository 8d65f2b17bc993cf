//! What giver and taker say to each other: lines of text, some with descriptors beside. Pure.
//!
//! Versions of the program that know more words may be at either end: a line that is not understood is passed over.
//! Only the number in the greeting stands for a change that an older version could not live with.

use std::fmt;

/// The number in the greeting.
const PROTOCOL: u32 = 1;
/// Most numbers in one line of [`Word::Sockets`], for lines of a bounded length.
pub const MOST_NUMBERS: usize = 64;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Taker: this version is coming.
    TakeOver {
        /// Its version.
        version: String,
    },
    /// Giver: this version runs.
    Running {
        /// Its version.
        version: String,
        /// Its acceptor's port.
        port: u16,
    },
    /// Giver: the numbers of its sockets for datagrams, which are in nobody's way.
    Sockets(Vec<u64>),
    /// Giver: no, because.
    Refused(String),
    /// Taker: the node, please.
    Yield,
    /// Giver: a listener, one descriptor beside.
    Listener(String),
    /// Giver: the lock, one descriptor beside. The last of what it gives.
    Yielded,
    /// Taker: the rules lead here.
    Done,
}

impl Word {
    /// How many descriptors stand beside the line.
    pub fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Listener(_) | Self::Yielded))
    }

    /// Reads a line. `None`: not one that this version understands.
    pub fn parse(line: &str) -> Option<Self> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "take-over" => Some(Self::TakeOver { version: greeting(rest)?.0.to_owned() }),
            "running" => {
                let (version, rest) = greeting(rest)?;
                let port = rest.split(' ').next()?.parse().ok()?;
                Some(Self::Running { version: version.to_owned(), port })
            }
            "sockets" => {
                let numbers = rest.split(' ').map(str::parse);
                numbers.collect::<Result<_, _>>().ok().map(Self::Sockets)
            }
            "refused" => Some(Self::Refused(rest.to_owned())),
            "yield" => Some(Self::Yield),
            "listener" => Some(Self::Listener(rest.to_owned())),
            "yielded" => Some(Self::Yielded),
            "done" => Some(Self::Done),
            _ => None,
        }
    }
}

/// The version and the rest of a greeting; `None` if it is of another protocol.
fn greeting(rest: &str) -> Option<(&str, &str)> {
    let (protocol, rest) = rest.split_once(' ')?;
    (protocol.parse() == Ok(PROTOCOL)).then(|| rest.split_once(' ').unwrap_or((rest, "")))
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakeOver { version } => write!(f, "take-over {PROTOCOL} {version}"),
            Self::Running { version, port } => write!(f, "running {PROTOCOL} {version} {port}"),
            Self::Sockets(numbers) => {
                f.write_str("sockets")?;
                numbers.iter().try_for_each(|number| write!(f, " {number}"))
            }
            Self::Refused(why) => write!(f, "refused {}", why.replace('\n', " ")),
            Self::Yield => f.write_str("yield"),
            Self::Listener(name) => write!(f, "listener {name}"),
            Self::Yielded => f.write_str("yielded"),
            Self::Done => f.write_str("done"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let version = || "0.1.0".to_owned();
        for word in [
            Word::TakeOver { version: version() },
            Word::Running { version: version(), port: 15001 },
            Word::Sockets(vec![1, 22, 333]),
            Word::Refused("another one is coming already".to_owned()),
            Word::Yield,
            Word::Listener("admin 127.0.0.1:10265".to_owned()),
            Word::Yielded,
            Word::Done,
        ] {
            assert_eq!(Word::parse(&word.to_string()).as_ref(), Some(&word), "{word}");
        }
    }

    #[test]
    fn later_versions_may_say_more() {
        assert_eq!(Word::parse("weather fine"), None);
        assert_eq!(
            Word::parse("running 1 0.9.0 80 and more"),
            Some(Word::Running { version: "0.9.0".to_owned(), port: 80 })
        );
        assert_eq!(Word::parse("take-over 2 9.0.0"), None);
        assert_eq!(Word::parse(""), None);
    }
}
