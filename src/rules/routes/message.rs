//! Own entries as netlink messages, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::Entry;
use crate::rules::apply::Family;
use crate::rules::names::{RANGE_PRIORITY, RANGE_TABLE, REFUSE_PRIORITY, REFUSE_TABLE, ROUTE_PROTOCOL};

/// The index of `lo`, fixed by the kernel (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK_INDEX: u32 = 1;

/// The message that adds or removes an entry.
pub(super) enum Message {
    Route(RouteMessage),
    Rule(RuleMessage),
}

impl From<Entry> for Message {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Deliver(net) => Self::Route(local(net)),
            Entry::DeliverAll(family) => Self::Route(local(everything(family))),
            Entry::RefuseRule(family, mark) => {
                let mark = [RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mark)];
                Self::Rule(rule(family, REFUSE_PRIORITY, REFUSE_TABLE, &mark))
            }
            Entry::Throw(net) => Self::Route(throw(net)),
            Entry::ToRange(range) => Self::Route(to_loopback(range, RANGE_TABLE)),
            Entry::RangeRule(family) => Self::Rule(rule(family, RANGE_PRIORITY, RANGE_TABLE, &[])),
            Entry::MainToRange(range) => {
                Self::Route(to_loopback(range, u32::from(RouteHeader::RT_TABLE_MAIN)))
            }
        }
    }
}

fn own() -> RouteProtocol {
    RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn v4(range: Option<(Ipv4Addr, u8)>, table: u32) -> RouteMessageBuilder<Ipv4Addr> {
    let message = RouteMessageBuilder::<Ipv4Addr>::new().table_id(table).protocol(own());
    match range {
        Some((address, length)) => message.destination_prefix(address, length),
        None => message,
    }
}

fn v6(range: Option<(Ipv6Addr, u8)>, table: u32) -> RouteMessageBuilder<Ipv6Addr> {
    let message = RouteMessageBuilder::<Ipv6Addr>::new().table_id(table).protocol(own());
    match range {
        Some((address, length)) => message.destination_prefix(address, length),
        None => message,
    }
}

fn to_loopback(range: IpNet, table: u32) -> RouteMessage {
    match range {
        IpNet::V4(net) => v4(Some((net.network(), net.prefix_len())), table)
            .output_interface(LOOPBACK_INDEX)
            .scope(RouteScope::Link)
            .build(),
        IpNet::V6(net) => {
            v6(Some((net.network(), net.prefix_len())), table).output_interface(LOOPBACK_INDEX).build()
        }
    }
}

fn local(net: IpNet) -> RouteMessage {
    match net {
        IpNet::V4(net) => v4(Some((net.network(), net.prefix_len())), REFUSE_TABLE)
            .output_interface(LOOPBACK_INDEX)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .build(),
        IpNet::V6(net) => v6(Some((net.network(), net.prefix_len())), REFUSE_TABLE)
            .output_interface(LOOPBACK_INDEX)
            .kind(RouteType::Local)
            .build(),
    }
}

/// The prefix of length 0.
fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

fn throw(net: IpNet) -> RouteMessage {
    match net {
        IpNet::V4(net) => {
            v4(Some((net.network(), net.prefix_len())), RANGE_TABLE).kind(RouteType::Throw).build()
        }
        IpNet::V6(net) => {
            v6(Some((net.network(), net.prefix_len())), RANGE_TABLE).kind(RouteType::Throw).build()
        }
    }
}

fn rule(family: Family, priority: u32, table: u32, selectors: &[RuleAttribute]) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.attributes =
        vec![RuleAttribute::Priority(priority), RuleAttribute::Table(table), RuleAttribute::Protocol(own())];
    message.attributes.extend_from_slice(selectors);
    message
}

/// The routing table that a listed route stands in.
pub(super) fn table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(route.header.table))
}

pub(super) fn is_own(route: &RouteMessage) -> bool {
    route.header.protocol == own()
}

/// The destination; the default route's is a prefix of length 0.
pub(super) fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    let unspecified = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new(address.unwrap_or(unspecified), route.header.destination_prefix_length).ok()
}

/// The entry that a route of ours is.
pub(super) fn own_route(route: &RouteMessage, family: Family) -> Option<Entry> {
    match (table(route), route.header.kind) {
        (REFUSE_TABLE, _) if route.header.destination_prefix_length == 0 => Some(Entry::DeliverAll(family)),
        (REFUSE_TABLE, _) => destination(route).map(Entry::Deliver),
        (RANGE_TABLE, RouteType::Throw) => destination(route).map(Entry::Throw),
        (RANGE_TABLE, _) => destination(route).map(Entry::ToRange),
        _ => destination(route).map(Entry::MainToRange),
    }
}

/// The entry that a listed policy rule is, if it is one of ours.
pub(super) fn own_rule(rule: &RuleMessage, family: Family) -> Option<Entry> {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    let is = |priority, table| has(&RuleAttribute::Priority(priority)) && leads_to(rule, table);
    if !is_ours(rule) {
        return None;
    }
    if is(RANGE_PRIORITY, RANGE_TABLE) {
        return Some(Entry::RangeRule(family));
    }
    let mark = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    })?;
    is(REFUSE_PRIORITY, REFUSE_TABLE).then_some(Entry::RefuseRule(family, mark))
}

/// Whether a policy rule carries our routing protocol number. Kernels before 4.17 keep none; there the two places and
/// tables, which nobody else has, must do.
pub(in crate::rules) fn is_ours(rule: &RuleMessage) -> bool {
    let mut protocols = rule.attributes.iter().filter_map(|attribute| match attribute {
        RuleAttribute::Protocol(protocol) => Some(*protocol),
        _ => None,
    });
    match protocols.next() {
        Some(protocol) => protocol == own(),
        None => [(REFUSE_PRIORITY, REFUSE_TABLE), (RANGE_PRIORITY, RANGE_TABLE)].into_iter().any(
            |(priority, table)| {
                rule.attributes.contains(&RuleAttribute::Priority(priority)) && leads_to(rule, table)
            },
        ),
    }
}

fn leads_to(rule: &RuleMessage, table: u32) -> bool {
    rule.attributes.contains(&RuleAttribute::Table(table)) || u32::from(rule.header.table) == table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_an_old_kernel_is_known_by_its_place_and_one_of_others_is_not() {
        let without = |mut message: RuleMessage| {
            message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
            message
        };
        for entry in [Entry::RefuseRule(Family::V4, 8), Entry::RangeRule(Family::V6)] {
            let family = if entry == Entry::RangeRule(Family::V6) { Family::V6 } else { Family::V4 };
            let Message::Rule(message) = Message::from(entry) else { panic!("{entry} is a rule") };
            assert_eq!(own_rule(&message, family), Some(entry));
            assert_eq!(own_rule(&without(message.clone()), family), Some(entry));
            let mut foreign = without(message);
            foreign.attributes.push(RuleAttribute::Protocol(RouteProtocol::Static));
            assert_eq!(own_rule(&foreign, family), None);
        }
        assert!(!is_ours(&without(rule(Family::V4, 100, RANGE_TABLE, &[]))));
    }
}
