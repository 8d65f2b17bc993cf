//! Links, routes and policy rules of this network namespace, over rtnetlink.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::facts::{Link, PolicyRule, Route};
use crate::net::netlink;
use crate::rules::apply::Family;
use crate::rules::{names, routes};

/// What cleaning reads and removes over netlink.
pub(super) struct Netlink(netlink::Netlink);

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    pub(super) fn open() -> anyhow::Result<Self> {
        netlink::Netlink::open().map(Self).context("cannot open a netlink socket")
    }

    /// All links with their addresses.
    pub(super) async fn links(&self) -> anyhow::Result<Vec<Link>> {
        let mut links = Vec::new();
        let messages: Vec<_> =
            self.0.handle.link().get().execute().try_collect().await.context("cannot list links")?;
        for message in messages {
            let mut link = Link { index: message.header.index, ..Link::default() };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Controller(index) => link.controller = Some(index),
                    LinkAttribute::LinkInfo(infos) => {
                        link.kind = infos
                            .iter()
                            .find_map(|info| {
                                if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None }
                            })
                            .unwrap_or_default();
                    }
                    _ => {}
                }
            }
            links.push(link);
        }
        let messages: Vec<_> =
            self.0.handle.address().get().execute().try_collect().await.context("cannot list addresses")?;
        for message in messages {
            // `Local` is the own address where a link has a peer; else both are the same or only `Address` is there.
            let find = |local: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) if local => Some(*address),
                    AddressAttribute::Address(address) if !local => Some(*address),
                    _ => None,
                })
            };
            let Some(address) = find(true).or_else(|| find(false)) else { continue };
            if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
                continue;
            }
            if let Some(link) = links.iter_mut().find(|link| link.index == message.header.index) {
                link.addresses.push(address);
            }
        }
        Ok(links)
    }

    /// All unicast routes.
    pub(super) async fn routes(&self, links: &[Link]) -> anyhow::Result<Vec<Route>> {
        let names: HashMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let messages = self.route_messages().await?;
        Ok(messages.iter().filter_map(|message| read_route(message, &names)).collect())
    }

    /// Deletes a route; it is good if it is gone already.
    pub(super) async fn delete_route(&self, route: &Route, links: &[Link]) -> anyhow::Result<()> {
        let names: HashMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
        for message in self.route_messages().await? {
            if read_route(&message, &names).as_ref() == Some(route) {
                let done = self.0.handle.route().del(message).execute().await;
                unless_gone(done).with_context(|| format!("cannot delete the route {route}"))?;
            }
        }
        Ok(())
    }

    /// Deletes a link; it is good if it is gone already.
    pub(super) async fn delete_link(&self, link: &Link) -> anyhow::Result<()> {
        let done = self.0.handle.link().del(link.index).execute().await;
        unless_gone(done).with_context(|| format!("cannot delete the link {}", link.name))
    }

    /// This program's policy rules.
    pub(super) async fn policy_rules(&self) -> anyhow::Result<Vec<PolicyRule>> {
        Ok(self.own_rules().await?.into_iter().map(|(rule, _)| rule).collect())
    }

    /// Deletes this program's policy rules.
    pub(super) async fn delete_policy_rules(&self) -> anyhow::Result<()> {
        for (rule, message) in self.own_rules().await? {
            let done = self.0.handle.rule().del(message).execute().await;
            unless_gone(done).with_context(|| format!("cannot delete the {rule}"))?;
        }
        Ok(())
    }

    async fn route_messages(&self) -> anyhow::Result<Vec<RouteMessage>> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut all: Vec<RouteMessage> =
            self.0.handle.route().get(v4).execute().try_collect().await.context("cannot list IPv4 routes")?;
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        // A kernel without IPv6 refuses the question.
        let v6: Result<Vec<RouteMessage>, _> = self.0.handle.route().get(v6).execute().try_collect().await;
        all.extend(v6.unwrap_or_default());
        Ok(all)
    }

    async fn own_rules(&self) -> anyhow::Result<Vec<(PolicyRule, RuleMessage)>> {
        let mut found = Vec::new();
        for (family, version) in [(Family::V4, IpVersion::V4), (Family::V6, IpVersion::V6)] {
            let messages: Result<Vec<RuleMessage>, _> =
                self.0.handle.rule().get(version).execute().try_collect().await;
            let messages = match (messages, family) {
                (Ok(messages), _) => messages,
                (Err(_), Family::V6) => continue,
                (Err(error), Family::V4) => return Err(error).context("cannot list policy rules"),
            };
            for message in messages {
                let mut rule = PolicyRule { family, priority: 0, table: u32::from(message.header.table) };
                for attribute in &message.attributes {
                    match attribute {
                        RuleAttribute::Priority(priority) => rule.priority = *priority,
                        RuleAttribute::Table(table) => rule.table = *table,
                        _ => {}
                    }
                }
                if routes::is_ours(&message) {
                    found.push((rule, message));
                }
            }
        }
        Ok(found)
    }
}

fn read_route(message: &RouteMessage, names: &HashMap<u32, &str>) -> Option<Route> {
    // This program also adds `local` routes; everybody else's are the kernel's.
    let protocol = u8::from(message.header.protocol);
    if message.header.kind != RouteType::Unicast && protocol != names::ROUTE_PROTOCOL {
        return None;
    }
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut address, mut gateway, mut device, mut table) = (any, None, "", u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => address = ip(to)?,
            RouteAttribute::Gateway(to) => gateway = ip(to),
            RouteAttribute::Oif(index) => device = names.get(index).copied().unwrap_or_default(),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let destination = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    Some(Route { table, destination, gateway, device: device.to_owned(), protocol })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// Passes over the errors that say that the thing does not exist: ENOENT, ESRCH, ENODEV.
fn unless_gone(done: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(error))
            if matches!(
                nix::errno::Errno::from_raw(-error.raw_code()),
                nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH | nix::errno::Errno::ENODEV
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}
