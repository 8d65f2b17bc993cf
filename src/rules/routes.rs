//! Routes and policy rules over rtnetlink, in the network namespace of the calling thread.
//!
//! Own entries carry [`ROUTE_PROTOCOL`], so that they can be found again by a later process and removed without
//! touching anyone else's.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::apply::Family;
use super::names::{REFUSE_PRIORITY, REFUSE_TABLE, ROUTE_PROTOCOL};

/// The index of `lo`, fixed by the kernel (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK_INDEX: u32 = 1;

/// One route or policy rule of ours. The order is the order of installation: the table before the rule into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// `RANGE dev lo` in the main table: host processes get as far as `OUTPUT` without a default route, with the
    /// node's own address as their source. For IPv6 the kernel treats it as a reject route for forwarded packets;
    /// redirected and refused ones never get that far.
    ToRange(IpNet),
    /// `local default dev lo` in the refusal table.
    RefuseTable(Family),
    /// `fwmark MARK/MARK lookup` the refusal table.
    RefuseRule(Family, u32),
}

impl Entry {
    /// Whether it leads host processes into a captured range. Where it stands without the rules, a connection begun
    /// then is lost on `lo`, and stays so for as long as conntrack remembers it.
    pub fn is_to_range(&self) -> bool {
        matches!(self, Self::ToRange(_))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ToRange(range) => write!(f, "route {range} dev lo proto {ROUTE_PROTOCOL}"),
            Self::RefuseTable(family) => {
                write!(f, "{} route local default dev lo table {REFUSE_TABLE}", family.as_str())
            }
            Self::RefuseRule(family, mark) => {
                let family = family.as_str();
                write!(
                    f,
                    "{family} rule priority {REFUSE_PRIORITY} fwmark {mark:#x}/{mark:#x} lookup {REFUSE_TABLE}"
                )
            }
        }
    }
}

/// A routing request failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RouteError {
    /// What was asked, with the object.
    pub what: String,
    /// The kernel's answer.
    pub source: std::io::Error,
}

impl RouteError {
    fn new(what: impl fmt::Display, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => std::io::Error::other(other.to_string()),
        };
        Self { what: what.to_string(), source }
    }

    /// The kernel was built without what was asked for, or it is switched off.
    pub fn is_unsupported(&self) -> bool {
        use nix::errno::Errno;
        let unsupported = [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT];
        self.source.raw_os_error().is_some_and(|code| unsupported.contains(&Errno::from_raw(code)))
    }
}

/// A netlink connection that ends when this is dropped.
struct Link {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn link() -> Result<Link, RouteError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| RouteError { what: "opening a netlink socket".to_owned(), source })?;
    Ok(Link { handle, task: tokio::spawn(connection) })
}

/// Routes of the main table that lead somewhere other than by default, and are not ours.
pub async fn non_default_routes() -> Result<Vec<IpNet>, RouteError> {
    let link = link()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        for route in main_routes(&link, family).await? {
            if route.header.kind == RouteType::Unicast && !is_own(&route) {
                found.extend(destination(&route).filter(|net| net.prefix_len() > 0));
            }
        }
    }
    Ok(found)
}

/// The destinations of all routes of the main table that are not ours, of whatever kind.
pub async fn foreign_destinations() -> Result<BTreeSet<IpNet>, RouteError> {
    let link = link()?;
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        let routes = main_routes(&link, family).await?;
        found.extend(routes.iter().filter(|route| !is_own(route)).filter_map(destination));
    }
    Ok(found)
}

/// The addresses of this machine's interfaces.
pub async fn local_addresses() -> Result<Vec<IpAddr>, RouteError> {
    let link = link()?;
    let failed = |error| RouteError::new("listing addresses", error);
    let messages: Vec<_> = link.handle.address().get().execute().try_collect().await.map_err(failed)?;
    let mut found = Vec::new();
    for message in messages {
        // On a point-to-point link `Address` is the peer, and `Local` is ours.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        found.extend(local.or(address));
    }
    Ok(found)
}

/// Own routes and policy rules as they stand, by protocol number and place.
pub async fn own_entries() -> Result<BTreeSet<Entry>, RouteError> {
    let link = link()?;
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        for route in routes(&link, family).await?.iter().filter(|route| is_own(route)) {
            match table(route) {
                REFUSE_TABLE => {
                    found.insert(Entry::RefuseTable(family));
                }
                _ => found.extend(destination(route).map(Entry::ToRange)),
            }
        }
        let listed: Result<Vec<RuleMessage>, _> =
            link.handle.rule().get(version(family)).execute().try_collect().await;
        match listed {
            Ok(rules) => found.extend(rules.iter().filter_map(|rule| own_rule(rule, family))),
            // A kernel without policy routing has no rules to list.
            Err(error) => {
                let error = RouteError::new("listing policy rules", error);
                if !error.is_unsupported() {
                    return Err(error);
                }
            }
        }
    }
    Ok(found)
}

/// Adds an entry. One that stands already is no error.
pub async fn add(entry: Entry) -> Result<(), RouteError> {
    let link = link()?;
    let done = match entry {
        Entry::ToRange(_) | Entry::RefuseTable(_) => {
            link.handle.route().add(route_message(entry)).execute().await
        }
        Entry::RefuseRule(family, mark) => {
            let mut request = link.handle.rule().add();
            *request.message_mut() = rule_message(family, mark);
            request.execute().await
        }
    };
    pass_over(done, nix::errno::Errno::EEXIST)
        .map_err(|error| RouteError::new(format!("adding {entry}"), error))
}

/// Removes an entry. One that is gone already is no error.
pub async fn remove(entry: Entry) -> Result<(), RouteError> {
    use nix::errno::Errno;
    let link = link()?;
    let (done, gone) = match entry {
        Entry::ToRange(_) | Entry::RefuseTable(_) => {
            (link.handle.route().del(route_message(entry)).execute().await, Errno::ESRCH)
        }
        Entry::RefuseRule(family, mark) => {
            (link.handle.rule().del(rule_message(family, mark)).execute().await, Errno::ENOENT)
        }
    };
    pass_over(done, gone).map_err(|error| RouteError::new(format!("removing {entry}"), error))
}

fn pass_over(done: Result<(), rtnetlink::Error>, errno: nix::errno::Errno) -> Result<(), rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(errno as i32) => Ok(()),
        other => other,
    }
}

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

/// All routes of a family, in every table. None where the kernel does not have the family.
async fn routes(link: &Link, family: Family) -> Result<Vec<RouteMessage>, RouteError> {
    let request = match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    let listed = link.handle.route().get(request).execute().try_collect().await;
    match listed.map_err(|error| RouteError::new(format!("listing {} routes", family.as_str()), error)) {
        Err(error) if error.is_unsupported() => Ok(Vec::new()),
        other => other,
    }
}

async fn main_routes(link: &Link, family: Family) -> Result<Vec<RouteMessage>, RouteError> {
    let mut routes = routes(link, family).await?;
    routes.retain(|route| table(route) == u32::from(RouteHeader::RT_TABLE_MAIN));
    Ok(routes)
}

fn table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(route.header.table))
}

fn is_own(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// The destination; the default route's is a prefix of length 0.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    let unspecified = match route.header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new(address.unwrap_or(unspecified), route.header.destination_prefix_length).ok()
}

/// The message that adds or removes a route of ours. For a policy rule there is [`rule_message`].
fn route_message(entry: Entry) -> RouteMessage {
    let own = RouteProtocol::Other(ROUTE_PROTOCOL);
    match entry {
        Entry::ToRange(IpNet::V4(range)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .output_interface(LOOPBACK_INDEX)
            .scope(RouteScope::Link)
            .protocol(own)
            .build(),
        Entry::ToRange(IpNet::V6(range)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .output_interface(LOOPBACK_INDEX)
            .protocol(own)
            .build(),
        Entry::RefuseTable(Family::V4) | Entry::RefuseRule(Family::V4, _) => {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .output_interface(LOOPBACK_INDEX)
                .scope(RouteScope::Host)
                .kind(RouteType::Local)
                .table_id(REFUSE_TABLE)
                .protocol(own)
                .build()
        }
        Entry::RefuseTable(Family::V6) | Entry::RefuseRule(Family::V6, _) => {
            RouteMessageBuilder::<Ipv6Addr>::new()
                .output_interface(LOOPBACK_INDEX)
                .kind(RouteType::Local)
                .table_id(REFUSE_TABLE)
                .protocol(own)
                .build()
        }
    }
}

fn rule_message(family: Family, mark: u32) -> RuleMessage {
    use rtnetlink::packet_route::AddressFamily;
    let mut message = RuleMessage::default();
    message.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(REFUSE_PRIORITY),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(mark),
        RuleAttribute::Table(REFUSE_TABLE),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    message
}

/// The entry that a listed policy rule is, if it is one of ours.
fn own_rule(rule: &RuleMessage, family: Family) -> Option<Entry> {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    let ours = has(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)))
        && has(&RuleAttribute::Priority(REFUSE_PRIORITY))
        && has(&RuleAttribute::Table(REFUSE_TABLE));
    let mark = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    })?;
    ours.then_some(Entry::RefuseRule(family, mark))
}
