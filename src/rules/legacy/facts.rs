//! What was read from the machine, as plain data. Reading it is the business of `read`; judging it of `scan`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::net::listening::Listening;
use crate::rules::apply::{Backend, Family};
use crate::rules::dump::Dump;

/// One network namespace and the files of the machine, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// One entry for each back end and family whose programs are installed.
    pub rulesets: Vec<Ruleset>,
    /// All links.
    pub links: Vec<Link>,
    /// All unicast routes, of every table and both families.
    pub routes: Vec<Route>,
    /// Policy rules (`ip rule`) with this program's routing protocol number.
    pub policy_rules: Vec<PolicyRule>,
    /// Names of all ip sets.
    pub sets: Vec<String>,
    /// Those files of the table that exist.
    pub files: Vec<FoundFile>,
    /// The resolver's file, if it exists.
    pub resolver: Option<Resolver>,
    /// Sockets of this network namespace that take connections or datagrams.
    pub listeners: Vec<Listening>,
    /// Processes of this network namespace that matter to the judgement.
    pub processes: Vec<Process>,
    /// Whether an agent of this program runs in this network namespace.
    pub own_agent: bool,
}

/// The rules of one back end and family.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// The back end.
    pub backend: Backend,
    /// The family.
    pub family: Family,
    /// What `iptables-save -c` printed.
    pub text: String,
    /// The same, read.
    pub dump: Dump,
    /// Tables that the program says it cannot read.
    pub unreadable: Vec<Unreadable>,
}

/// A table that the program says it cannot read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// The table.
    pub table: String,
    /// Chains in it that have the names of EdgeMesh's.
    pub chains: Vec<&'static str>,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `dummy`, `tun`, …; empty for hardware.
    pub kind: String,
    /// Its addresses, without IPv6 link-local ones, which the kernel adds by itself.
    pub addresses: Vec<IpAddr>,
    /// Index of the bridge or bond that it is a member of.
    pub controller: Option<u32>,
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Routing table number; 254 is `main`.
    pub table: u32,
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The output interface's name.
    pub device: String,
    /// The routing protocol number.
    pub protocol: u8,
}

/// A policy rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// The family.
    pub family: Family,
    /// Its priority.
    pub priority: u32,
    /// The routing table it leads to.
    pub table: u32,
}

/// A file of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// The path as the table has it.
    pub path: &'static str,
    /// What it is, in words.
    pub what: &'static str,
    /// Whether it is of the kind that the table says (a file or a folder, never a link).
    pub as_expected: bool,
}

/// The resolver's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Where a symbolic link leads, if the file is one.
    pub link_to: Option<PathBuf>,
    /// The addresses on `nameserver` lines.
    pub servers: Vec<IpAddr>,
    /// Those of them that were asked and answered.
    pub answering: BTreeSet<IpAddr>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its exact name.
    pub name: &'static str,
    /// Its arguments, joined by spaces.
    pub command_line: String,
}

impl Facts {
    /// The link of that name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether an address is on one of this machine's links.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.links.iter().any(|link| link.addresses.contains(&address))
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if !self.device.is_empty() {
            write!(f, " dev {}", self.device)?;
        }
        // 254 is the main table, which `ip route` leaves out as well.
        if self.table != 254 {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rule {} lookup {}", self.family.as_str(), self.priority, self.table)
    }
}
