//! Text for `ipset restore`, and reading of what `ipset` prints. Pure.
//!
//! Served frontends and addresses left alone live in sets, so that the number of rules does not grow with the
//! number of Services. A full load fills a second set and swaps the two: there is no moment with a half-filled set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;

use super::apply::Family;
use super::names::{SET_PREFIX, external_sets, served_set, skip_set};
use super::plan::{Wanted, is_of};
use crate::model::{Audience, Door, Frontend, Protocol};

/// Room in a set unless more is needed: 100,000 frontends fit, with space to grow. An empty set costs 200 bytes.
const ROOM: usize = 262_144;

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Frontends inside the ranges that are answered.
    Served,
    /// Addresses inside the ranges that are left alone.
    Skip,
    /// Source ranges, each with the external frontend that it may use.
    Sources,
    /// External frontends with source ranges.
    Guarded,
    /// External frontends without any usable backend.
    Nobody,
    /// External frontends that serve clients of this node only.
    Here,
    /// All external frontends.
    External,
    /// Where health checks are answered.
    Health,
}

/// One of the sets, with its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name, at most 31 characters.
    pub name: &'static str,
    /// `hash:ip,port`, `hash:ip` or `hash:ip,port,net`.
    kind: &'static str,
    /// Its family.
    family: Family,
    content: Content,
}

/// What `ipset list -terse` says of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The set's type, such as `hash:ip`.
    pub kind: String,
    /// How many members it has.
    pub entries: usize,
}

/// The sets of a family. Those that narrow down what is captured stand before the one that captures.
pub fn sets(family: Family) -> [Set; 8] {
    let names = external_sets(family);
    let set = |name, content| Set { name, kind: "hash:ip,port", family, content };
    [
        set(served_set(family), Content::Served),
        Set { kind: "hash:ip", ..set(skip_set(family), Content::Skip) },
        Set { kind: "hash:ip,port,net", ..set(names.sources, Content::Sources) },
        set(names.guarded, Content::Guarded),
        set(names.nobody, Content::Nobody),
        set(names.here, Content::Here),
        set(names.all, Content::External),
        set(names.health, Content::Health),
    ]
}

impl Set {
    /// Whether it is about source ranges.
    pub fn is_for_sources(self) -> bool {
        matches!(self.content, Content::Sources | Content::Guarded)
    }

    /// The members that it should have.
    pub fn members(self, wanted: &Wanted) -> Vec<String> {
        let of = |frontend: &&Frontend| is_of(self.family, frontend.ip);
        match self.content {
            Content::Skip => {
                wanted.skip.iter().filter(|ip| is_of(self.family, **ip)).map(IpAddr::to_string).collect()
            }
            Content::Served => wanted.served.iter().filter(of).filter_map(member).collect(),
            Content::Health => wanted.health.iter().filter(of).filter_map(member).collect(),
            _ => {
                let ours = wanted.external.iter().filter(|(at, _)| is_of(self.family, at.ip));
                ours.flat_map(|(at, door)| self.of_door(at, door)).collect()
            }
        }
    }

    /// How many members it should have.
    pub fn count(self, wanted: &Wanted) -> usize {
        match self.content {
            Content::Skip => wanted.skip.iter().filter(|ip| is_of(self.family, **ip)).count(),
            Content::Served => {
                let ours = |f: &&Frontend| is_of(self.family, f.ip) && protocol(f).is_some();
                wanted.served.iter().filter(ours).count()
            }
            Content::Health => wanted.health.iter().filter(|at| is_of(self.family, at.ip)).count(),
            _ => {
                let ours = wanted.external.iter().filter(|(at, _)| is_of(self.family, at.ip));
                let each = ours.filter(|(_, door)| self.holds(door));
                each.map(|(_, door)| if self.content == Content::Sources { door.sources.len() } else { 1 })
                    .sum()
            }
        }
    }

    /// Whether an external frontend has a place in it.
    fn holds(self, door: &Door) -> bool {
        match self.content {
            Content::External => true,
            Content::Nobody => door.audience == Audience::Nobody,
            Content::Here => door.audience == Audience::Here,
            Content::Guarded | Content::Sources => !door.sources.is_empty(),
            Content::Served | Content::Skip | Content::Health => false,
        }
    }

    /// The members that one external frontend makes.
    fn of_door(self, at: &Frontend, door: &Door) -> Vec<String> {
        let Some(member) = member(at).filter(|_| self.holds(door)) else { return Vec::new() };
        if self.content == Content::Sources {
            door.sources.iter().map(|range| format!("{member},{}", plain(*range))).collect()
        } else {
            vec![member]
        }
    }

    /// The commands that give the set exactly `members`, whatever stands now (`heads`, by name).
    pub fn full_load(self, members: &[String], heads: &BTreeMap<String, Head>, out: &mut String) {
        let scratch = format!("{}-new", self.name);
        if heads.contains_key(&scratch) {
            let _ = writeln!(out, "destroy {scratch}");
        }
        let room = ROOM.max((members.len() * 2).next_power_of_two());
        let family = match self.family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        let shape = format!("{} family {family} maxelem {room}", self.kind);
        let exists = heads.contains_key(self.name);
        let target = if exists { &scratch } else { self.name };
        let _ = writeln!(out, "create {target} {shape}");
        for member in members {
            let _ = writeln!(out, "add {target} {member}");
        }
        if exists {
            let _ = writeln!(out, "swap {scratch} {}\ndestroy {scratch}", self.name);
        }
    }
}

/// A range as `ipset save` prints it: a single address without its length.
fn plain(range: IpNet) -> String {
    if range.prefix_len() == range.max_prefix_len() { range.addr().to_string() } else { range.to_string() }
}

/// The commands that turn the sets of `family` from `old` into `new`, in effort by the size of the change. `guarded`
/// says whether there are sets for source ranges.
pub fn changes(family: Family, old: &Wanted, new: &Wanted, guarded: bool, out: &mut String) {
    let [served, skip, external @ .., health] = sets(family);
    for change in old.served.diff(&new.served) {
        let (word, frontend) = match change {
            imbl::ordset::DiffItem::Add(frontend) => ("add", frontend),
            imbl::ordset::DiffItem::Remove(frontend) => ("del", frontend),
        };
        if let Some(member) = member(frontend).filter(|_| is_of(family, frontend.ip)) {
            let _ = writeln!(out, "{word} {} {member} -exist", served.name);
        }
    }
    for (word, from, to) in [("add", &new.skip, &old.skip), ("del", &old.skip, &new.skip)] {
        for ip in from.difference(to).filter(|ip| is_of(family, **ip)) {
            let _ = writeln!(out, "{word} {} {ip} -exist", skip.name);
        }
    }
    for (word, from, to) in [("add", &new.health, &old.health), ("del", &old.health, &new.health)] {
        for member in from.iter().filter(|at| is_of(family, at.ip) && !to.contains(*at)).filter_map(member) {
            let _ = writeln!(out, "{word} {} {member} -exist", health.name);
        }
    }
    let (mut add, mut del) = (Vec::new(), Vec::new());
    for change in old.external.diff(&new.external) {
        let (at, before, now) = match change {
            DiffItem::Add(at, now) => (at, None, Some(now)),
            DiffItem::Remove(at, before) => (at, Some(before), None),
            DiffItem::Update { old: (at, before), new: (_, now) } => (at, Some(before), Some(now)),
        };
        if !is_of(family, at.ip) {
            continue;
        }
        for (order, set) in external.iter().enumerate().filter(|(_, set)| guarded || !set.is_for_sources()) {
            let members = |door: Option<&Door>| door.map(|door| set.of_door(at, door)).unwrap_or_default();
            let (before, now) = (members(before), members(now));
            let line = |word: &str, member: &str| (order, format!("{word} {} {member} -exist", set.name));
            add.extend(
                now.iter().filter(|member| !before.contains(member)).map(|member| line("add", member)),
            );
            del.extend(
                before.iter().filter(|member| !now.contains(member)).map(|member| line("del", member)),
            );
        }
    }
    // Captured last, and released first: nobody gets in meanwhile who may not.
    add.sort();
    del.sort_by(|a, b| b.cmp(a));
    for (_, line) in add.into_iter().chain(del) {
        let _ = writeln!(out, "{line}");
    }
}

/// A frontend as a member of a `hash:ip,port` set.
fn member(frontend: &Frontend) -> Option<String> {
    protocol(frontend).map(|protocol| format!("{},{protocol}:{}", frontend.ip, frontend.port))
}

/// The protocol as ipset spells it; none for what is not served.
fn protocol(frontend: &Frontend) -> Option<&'static str> {
    match frontend.protocol {
        Protocol::Tcp => Some("tcp"),
        Protocol::Udp => Some("udp"),
        Protocol::Sctp => None,
    }
}

/// Reads `ipset list -terse`: own sets by name.
pub fn heads(text: &str) -> BTreeMap<String, Head> {
    let mut heads = BTreeMap::new();
    let mut name = None;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else { continue };
        match key {
            "Name" => name = value.starts_with(SET_PREFIX).then(|| value.to_owned()),
            "Type" => {
                if let Some(name) = &name {
                    heads.insert(name.clone(), Head { kind: value.to_owned(), entries: 0 });
                }
            }
            "Number of entries" => {
                if let Some(head) = name.as_ref().and_then(|name| heads.get_mut(name)) {
                    head.entries = value.trim().parse().unwrap_or(0);
                }
            }
            _ => {}
        }
    }
    heads
}

/// Reads the members of one set from `ipset save`.
pub fn saved_members<'a>(text: &'a str, set: &str) -> BTreeSet<&'a str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("add "));
    lines.filter_map(|line| line.split_once(' ').filter(|(name, _)| *name == set).map(|(_, m)| m)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(served: &[(&str, u16, Protocol)], skip: &[&str]) -> Wanted {
        let frontend = |(ip, port, protocol): &(&str, u16, Protocol)| Frontend {
            ip: ip.parse().unwrap(),
            port: *port,
            protocol: *protocol,
        };
        Wanted {
            served: served.iter().map(frontend).collect(),
            skip: skip.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_full_load_swaps_where_a_set_stands_and_clears_what_was_left_half_done() {
        use Protocol::{Sctp, Tcp, Udp};
        let wanted = wanted(
            &[
                ("10.96.0.10", 80, Tcp),
                ("10.96.0.10", 53, Udp),
                ("10.96.0.10", 9, Sctp),
                ("fd00::a", 80, Tcp),
            ],
            &["10.96.0.1", "fd00::1"],
        );
        let standing = "Name: edgesplice-served-v4\nType: hash:ip,port\nNumber of entries: 3\n\n\
            Name: edgesplice-served-v4-new\nType: hash:ip,port\nNumber of entries: 1\n\n\
            Name: other\nType: hash:ip\nNumber of entries: 7\n";
        let heads = heads(standing);
        assert_eq!(heads.len(), 2);
        assert_eq!(heads["edgesplice-served-v4"].entries, 3);
        let mut script = String::new();
        for set in Family::ALL.into_iter().flat_map(sets) {
            assert_eq!(set.members(&wanted).len(), set.count(&wanted));
            set.full_load(&set.members(&wanted), &heads, &mut script);
        }
        insta::assert_snapshot!(script);
    }

    #[test]
    fn a_change_costs_what_changed() {
        use Protocol::Tcp;
        let old =
            wanted(&[("10.96.0.10", 80, Tcp), ("10.96.0.11", 80, Tcp), ("fd00::a", 80, Tcp)], &["10.96.0.1"]);
        let new =
            wanted(&[("10.96.0.10", 80, Tcp), ("10.96.0.12", 80, Tcp), ("fd00::b", 80, Tcp)], &["10.96.0.2"]);
        let mut script = String::new();
        changes(Family::V4, &old, &new, false, &mut script);
        insta::assert_snapshot!(script);
        let mut none = String::new();
        changes(Family::V6, &new, &new, false, &mut none);
        assert_eq!(none, "");
    }

    #[test]
    fn names_fit_the_kernel() {
        // IPSET_MAXNAMELEN is 32 with the closing zero.
        assert!(Family::ALL.into_iter().flat_map(sets).all(|set| format!("{}-new", set.name).len() < 32));
    }
}
