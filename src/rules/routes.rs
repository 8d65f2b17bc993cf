//! Routes and policy rules over rtnetlink, in the network namespace of the calling thread.
//!
//! Own entries carry [`ROUTE_PROTOCOL`], so that they can be found again by a later process and removed without
//! touching anyone else's.

mod foreign;
mod message;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::apply::Family;
use super::names::{RANGE_PRIORITY, RANGE_TABLE, REFUSE_PRIORITY, REFUSE_TABLE, ROUTE_PROTOCOL};
use crate::net::netlink::Netlink;

pub use foreign::{Foreign, beside, obstacle, swallowing};
pub(super) use message::is_ours;
use message::{Message, is_own};

/// One route or policy rule of ours. The order is the order of installation: what a table holds before the rule into
/// it; and the other way round at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// `local NET dev lo` in the refusal table: marked packets to there are this machine's own. Nothing else stands in
    /// that table, so that a kernel that follows the mark on the way back to the sender as well (`src_valid_mark`)
    /// does not find itself there.
    Deliver(IpNet),
    /// `local default dev lo` in the refusal table: marked packets to anywhere.
    DeliverAll(Family),
    /// `fwmark MARK/MARK lookup` the refusal table.
    RefuseRule(Family, u32),
    /// `throw NET` in the table of the ranges: packets there go where they would go without us.
    Throw(IpNet),
    /// `RANGE dev lo` in the table of the ranges: host processes get as far as `OUTPUT` without a default route, with
    /// the node's own address as their source. For IPv6 the kernel treats it as a reject route for forwarded packets;
    /// redirected and refused ones never get that far.
    ToRange(IpNet),
    /// `lookup` the table of the ranges.
    RangeRule(Family),
    /// `RANGE dev lo` in the main table, where the kernel has no policy routing.
    MainToRange(IpNet),
}

impl Entry {
    /// Whether it is about the way into a captured range. Where a host process is led there without the rules, a
    /// connection begun then is lost on `lo`, and stays so for as long as conntrack remembers it.
    pub fn is_to_range(&self) -> bool {
        !matches!(self, Self::Deliver(_) | Self::DeliverAll(_) | Self::RefuseRule(..))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deliver(net) => {
                write!(f, "route local {net} dev lo table {REFUSE_TABLE} proto {ROUTE_PROTOCOL}")
            }
            Self::DeliverAll(family) => {
                write!(f, "{} route local default dev lo table {REFUSE_TABLE}", family.as_str())
            }
            Self::RefuseRule(family, mark) => write!(
                f,
                "{} rule priority {REFUSE_PRIORITY} fwmark {mark:#x}/{mark:#x} lookup {REFUSE_TABLE}",
                family.as_str()
            ),
            Self::Throw(net) => {
                write!(f, "route throw {net} table {RANGE_TABLE} proto {ROUTE_PROTOCOL}")
            }
            Self::ToRange(range) => {
                write!(f, "route {range} dev lo table {RANGE_TABLE} proto {ROUTE_PROTOCOL}")
            }
            Self::RangeRule(family) => {
                write!(f, "{} rule priority {RANGE_PRIORITY} lookup {RANGE_TABLE}", family.as_str())
            }
            Self::MainToRange(range) => write!(f, "route {range} dev lo proto {ROUTE_PROTOCOL}"),
        }
    }
}

/// What stands, ours and others'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Own routes and policy rules.
    pub own: BTreeSet<Entry>,
    /// Unicast routes of others, and those that lead nowhere, of every table.
    pub foreign: Vec<Foreign>,
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
        let unsupported = [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT];
        self.source.raw_os_error().is_some_and(|code| unsupported.contains(&Errno::from_raw(code)))
    }
}

fn link() -> Result<Netlink, RouteError> {
    Netlink::open().map_err(|source| RouteError { what: "opening a netlink socket".to_owned(), source })
}

/// Routes of the main table that lead somewhere other than by default, and are not ours.
pub async fn non_default_routes() -> Result<Vec<IpNet>, RouteError> {
    let foreign = standing().await?.foreign;
    let usable = foreign.into_iter().filter(|route| route.is_in_main() && route.discards.is_none());
    Ok(usable.map(|route| route.destination).filter(|net| net.prefix_len() > 0).collect())
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

/// Routes and policy rules as they stand. Ours are known by protocol number and place.
pub async fn standing() -> Result<Standing, RouteError> {
    let link = link()?;
    let mut standing = Standing::default();
    for family in Family::ALL {
        for route in routes(&link, family).await? {
            if is_own(&route) {
                standing.own.extend(message::own_route(&route, family));
            } else {
                standing.foreign.extend(Foreign::of(&route));
            }
        }
        let rules = rules(&link, family).await?.unwrap_or_default();
        standing.own.extend(rules.iter().filter_map(|rule| message::own_rule(rule, family)));
    }
    Ok(standing)
}

/// Whether the kernel chooses between routing tables by rules, for each family that is asked for. Without, it would put
/// what is meant for a table of ours into the main one.
pub async fn has_policy_routing(families: &[Family]) -> Result<bool, RouteError> {
    let link = link()?;
    for family in families {
        if rules(&link, *family).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Adds entries, in this order. One that stands already is no error. An answer for each of them.
pub async fn add(entries: &[Entry]) -> Result<Vec<Result<(), RouteError>>, RouteError> {
    let link = link()?;
    let mut answers = Vec::with_capacity(entries.len());
    for entry in entries {
        let done = match Message::from(*entry) {
            Message::Route(message) => link.handle.route().add(message).execute().await,
            Message::Rule(message) => {
                let mut request = link.handle.rule().add();
                *request.message_mut() = message;
                request.execute().await
            }
        };
        let done = pass_over(done, Errno::EEXIST);
        answers.push(done.map_err(|error| RouteError::new(format!("adding {entry}"), error)));
    }
    Ok(answers)
}

/// Removes entries, in this order. One that is gone already is no error. Goes on after a fault and returns the first.
pub async fn remove(entries: &[Entry]) -> Result<(), RouteError> {
    let link = link()?;
    let mut first = Ok(());
    for entry in entries {
        let done = match Message::from(*entry) {
            Message::Route(message) => {
                pass_over(link.handle.route().del(message).execute().await, Errno::ESRCH)
            }
            Message::Rule(message) => {
                pass_over(link.handle.rule().del(message).execute().await, Errno::ENOENT)
            }
        };
        first = first.and(done.map_err(|error| RouteError::new(format!("removing {entry}"), error)));
    }
    first
}

fn pass_over(done: Result<(), rtnetlink::Error>, errno: Errno) -> Result<(), rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(errno as i32) => Ok(()),
        other => other,
    }
}

/// All routes of a family, in every table. None where the kernel does not have the family.
async fn routes(link: &Netlink, family: Family) -> Result<Vec<RouteMessage>, RouteError> {
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

/// All policy rules of a family. `None` where the kernel was built without policy routing, which lists none.
async fn rules(link: &Netlink, family: Family) -> Result<Option<Vec<RuleMessage>>, RouteError> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let listed = link.handle.rule().get(version).execute().try_collect().await;
    match listed.map_err(|error| RouteError::new("listing policy rules", error)) {
        Ok(rules) => Ok(Some(rules)),
        Err(error) if error.is_unsupported() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the kernel's answers, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(super) fn read_bytes(bytes: &[u8]) {
    use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
    use rtnetlink::packet_route::RouteNetlinkMessage;

    let Ok(read) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else { return };
    let NetlinkPayload::InnerMessage(inner) = read.payload else { return };
    for family in Family::ALL {
        match &inner {
            RouteNetlinkMessage::NewRoute(route) => {
                let _ = (is_own(route), message::destination(route), message::own_route(route, family));
                let _ = Foreign::of(route).map(|foreign| foreign.to_string());
            }
            RouteNetlinkMessage::NewRule(rule) => {
                let _ = (is_ours(rule), message::own_rule(rule, family));
            }
            _ => {}
        }
    }
}
