//! The judgement of links, routes, files and name servers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::facts::{Facts, Link, Resolver, Route};
use super::plan::{Item, Options, Plan};
use super::scan::Evidence;
use super::shapes::{FAKE_LINK, FAKE_RANGE, LISTEN_LINKS, MESH_LINK, TUN_LINK};
use crate::rules::names;

/// Path of the resolver's file.
pub(super) const RESOLVER: &str = "/etc/resolv.conf";

/// Adds EdgeMesh's links, routes, files and name servers to the plan.
pub(super) fn of_edgemesh(facts: &Facts, options: &Options, evidence: &Evidence, plan: &mut Plan) {
    plan.links = facts.links.iter().filter_map(|link| judge_link(link, facts, options, evidence)).collect();
    plan.routes = facts.routes.iter().filter_map(|route| judge_route(route, facts, evidence)).collect();
    plan.files = facts
        .files
        .iter()
        .map(|file| {
            if file.as_expected {
                Item::removed(file.path, file.what)
            } else {
                Item::blocked(file.path, "is a link or of another kind than EdgeMesh's; look at it yourself")
            }
        })
        .collect();
    plan.name_servers =
        facts.resolver.iter().flat_map(|file| judge_servers(file, facts, evidence, options)).collect();
}

/// Adds what this program left besides rules; with `busy` it stays. Says whether there was any.
pub(super) fn of_ours(facts: &Facts, busy: Option<&str>, plan: &mut Plan) -> bool {
    let item = |name: String, what: &str| match busy {
        Some(reason) => Item::blocked(name, reason),
        None => Item::removed(name, what),
    };
    let own_routes = facts.routes.iter().filter(|route| route.protocol == names::ROUTE_PROTOCOL);
    let routes: Vec<Item> = own_routes.map(|route| item(route.to_string(), "route of edgesplice")).collect();
    plan.policy_rules =
        facts.policy_rules.iter().map(|rule| item(rule.to_string(), "policy rule of edgesplice")).collect();
    let own_sets = facts.sets.iter().filter(|name| name.starts_with(names::SET_PREFIX));
    plan.sets = own_sets.map(|name| item(name.clone(), "set of edgesplice")).collect();
    let found = !routes.is_empty() || !plan.policy_rules.is_empty() || !plan.sets.is_empty();
    plan.routes.extend(routes);
    found
}

fn judge_link(link: &Link, facts: &Facts, options: &Options, evidence: &Evidence) -> Option<Item> {
    let members = facts.links.iter().filter(|other| other.controller == Some(link.index)).count();
    let used = facts.listeners.iter().find(|listener| link.addresses.contains(&listener.address.ip()));
    let name = link.name.as_str();
    let item = match name {
        MESH_LINK if link.kind != "bridge" && link.kind != "dummy" => Item::blocked(
            name,
            format!("EdgeMesh's link is a bridge or a dummy, this one is a {}", kind(link)),
        ),
        MESH_LINK if members > 0 => {
            Item::blocked(name, format!("EdgeMesh's bridge has no members, this one has {members}"))
        }
        MESH_LINK if !is_mesh(&link.addresses, evidence) => Item::blocked(
            name,
            format!(
                "its addresses ({}) are not EdgeMesh's; if they were configured, give --mesh-address",
                list(&link.addresses)
            ),
        ),
        MESH_LINK => Item::removed(name, "link of EdgeMesh v1.9.0 and later"),
        FAKE_LINK if link.kind == "dummy" && is_fake(&link.addresses) => {
            Item::removed(name, "link of EdgeMesh in KubeEdge v1.1 and v1.2")
        }
        FAKE_LINK => {
            return Some(Item::blocked(
                name,
                format!("not EdgeMesh's: that one is a dummy with addresses of {FAKE_RANGE} alone"),
            ));
        }
        TUN_LINK if link.kind == "tun" => Item::removed(name, "tunnel device of EdgeMesh v1.15.0 and later"),
        TUN_LINK => {
            return Some(Item::blocked(
                name,
                format!("not EdgeMesh's: that one is a TUN device, this is a {}", kind(link)),
            ));
        }
        _ => return None,
    };
    match used {
        Some(listener) if item.remove && !options.force => Some(Item::blocked(
            name,
            format!("something listens on {}; stop it, or use --force", listener.address),
        )),
        _ => Some(item),
    }
}

fn kind(link: &Link) -> &str {
    if link.kind.is_empty() { "device of another kind" } else { &link.kind }
}

fn list(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One address, EdgeMesh's or another link-local one: people configure `bridgeDeviceIP` within 169.254/16.
fn is_mesh(addresses: &[IpAddr], evidence: &Evidence) -> bool {
    let [address] = addresses else { return false };
    evidence.proxies.contains(address) || matches!(address, IpAddr::V4(v4) if v4.is_link_local())
}

fn is_fake(addresses: &[IpAddr]) -> bool {
    let range = fake_range();
    !addresses.is_empty()
        && addresses.iter().all(|address| range.is_some_and(|range| range.contains(address)))
}

fn fake_range() -> Option<IpNet> {
    FAKE_RANGE.parse().ok()
}

/// EdgeMesh routed the range that it captured to an address of the node itself, which nobody else does.
fn judge_route(route: &Route, facts: &Facts, evidence: &Evidence) -> Option<Item> {
    let gateway = route.gateway?;
    if route.protocol == names::ROUTE_PROTOCOL || !facts.is_local(gateway) {
        return None;
    }
    let name = route.to_string();
    if Some(route.destination) == fake_range() {
        return Some(Item::removed(name, "route of EdgeMesh in KubeEdge v1.3 to v1.7"));
    }
    let captured = evidence.captured.iter().any(|net| {
        let single = net.prefix_len() == net.max_prefix_len();
        *net == route.destination
            || single && route.destination.prefix_len() > 0 && route.destination.contains(net)
    });
    if captured {
        return Some(Item::removed(name, "route of the service range of EdgeMesh v1.7.0"));
    }
    let bridge = facts
        .links
        .iter()
        .any(|link| LISTEN_LINKS.contains(&link.name.as_str()) && link.addresses.contains(&gateway));
    let hint = "leads to this machine itself, as EdgeMesh v1.7.0's did, but no rule of EdgeMesh names its range; \
                delete it with `ip route del` if nobody needs it";
    bridge.then(|| Item::blocked(name, hint))
}

fn judge_servers(
    file: &Resolver,
    facts: &Facts,
    evidence: &Evidence,
    options: &Options,
) -> Vec<(IpAddr, Item)> {
    let ours = facts.own_agent || options.starting;
    let bridges = facts.links.iter().filter(|link| LISTEN_LINKS.contains(&link.name.as_str()));
    let bridges: Vec<IpAddr> = bridges.flat_map(|link| link.addresses.iter().copied()).collect();
    let mut seen = BTreeSet::new();
    let servers = file.servers.iter().copied().filter(|server| seen.insert(*server));
    servers
        .filter(|server| bridges.contains(server) || evidence.proxies.contains(server))
        .map(|server| {
            let line = format!("nameserver {server}");
            let item = if ours && options.own_servers.contains(&server) {
                Item::left(RESOLVER, format!("`{line}` stays: this program answers DNS there"))
            } else if file.answering.contains(&server) {
                Item::left(RESOLVER, format!("`{line}` stays: something answers DNS there"))
            } else if let Some(target) = &file.link_to {
                let target = target.display();
                Item::blocked(
                    RESOLVER,
                    format!("`{line}` is dead, but the file is a link to {target}; mend it at its owner"),
                )
            } else {
                Item::removed(RESOLVER, format!("`{line}`: nothing answers DNS there"))
            };
            (server, item)
        })
        .collect()
}
