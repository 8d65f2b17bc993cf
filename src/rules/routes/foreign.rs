//! Other people's routes: what of ours makes way for them, and which of them swallow packets.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteHeader, RouteMessage, RouteType};

use super::message::{destination, table};
use super::{Entry, RouteError, link};

/// A route that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// Where it leads.
    pub destination: IpNet,
    /// The routing table; 254 is `main`.
    pub table: u32,
    /// `blackhole`, `unreachable` or `prohibit` if it leads nowhere, `None` if it is a unicast route.
    pub discards: Option<&'static str>,
}

impl Foreign {
    /// The route that a message shows; `None` for those that the kernel keeps for own addresses and broadcasts, and for
    /// those that send the search on to another table.
    pub(super) fn of(message: &RouteMessage) -> Option<Self> {
        let discards = match message.header.kind {
            RouteType::Unicast => None,
            RouteType::BlackHole => Some("blackhole"),
            RouteType::Unreachable => Some("unreachable"),
            RouteType::Prohibit => Some("prohibit"),
            _ => return None,
        };
        Some(Self { destination: destination(message)?, table: table(message), discards })
    }

    /// Whether it stands in the main table, where everybody looks.
    pub fn is_in_main(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }
}

/// The command that removes it, where it leads nowhere.
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v6 = if self.destination.addr().is_ipv6() { " -6" } else { "" };
        let kind = self.discards.unwrap_or("unicast");
        write!(f, "ip{v6} route del {kind} {}", self.destination)?;
        if self.is_in_main() { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

/// The entries that are to stand, given those planned and the routes of others. Where a range has a route of its own,
/// or a part of it has one, that one serves as well; what it does for packets that are not captured goes on.
pub fn beside(planned: &BTreeSet<Entry>, foreign: &[Foreign]) -> BTreeSet<Entry> {
    let usable: Vec<&IpNet> = foreign
        .iter()
        .filter(|route| route.is_in_main() && route.discards.is_none())
        .map(|route| &route.destination)
        .collect();
    let mut entries = BTreeSet::new();
    for entry in planned {
        match entry {
            Entry::ToRange(range) => {
                if !usable.contains(&range) {
                    entries.insert(*entry);
                }
                let inside = usable.iter().filter(|net| range.contains(**net) && **net != range);
                entries.extend(inside.map(|net| Entry::Throw(**net)));
            }
            // Without a table of our own there is no way to leave a part of the range alone.
            Entry::MainToRange(range) if usable.iter().any(|net| net.contains(range)) => {}
            _ => _ = entries.insert(*entry),
        }
    }
    entries
}

/// Those of `foreign` that swallow packets to `ip`, the most specific first.
pub fn swallowing(foreign: &[Foreign], ip: IpAddr) -> Vec<&Foreign> {
    let mut found: Vec<&Foreign> =
        foreign.iter().filter(|route| route.discards.is_some() && route.destination.contains(&ip)).collect();
    found.sort_by_key(|route| std::cmp::Reverse(route.destination.prefix_len()));
    found
}

/// Why a process of this machine cannot send to `ip`, as the kernel says it; `None` if it can.
pub async fn obstacle(ip: IpAddr) -> Result<Option<Errno>, RouteError> {
    let link = link()?;
    let question = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    let answer: Result<Vec<RouteMessage>, _> =
        link.handle.route().get(question).execute().try_collect().await;
    match answer.map_err(|error| RouteError::new(format!("asking for the route to {ip}"), error)) {
        // IPv6 answers with the route itself, whatever its kind.
        Ok(routes) => Ok(routes.iter().find_map(|route| match route.header.kind {
            RouteType::BlackHole => Some(Errno::EINVAL),
            RouteType::Unreachable => Some(Errno::EHOSTUNREACH),
            RouteType::Prohibit => Some(Errno::EACCES),
            _ => None,
        })),
        Err(error) => match error.source.raw_os_error().map(Errno::from_raw) {
            Some(errno @ (Errno::EINVAL | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES)) => {
                Ok(Some(errno))
            }
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::apply::Family;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(destination: &str, discards: Option<&'static str>) -> Foreign {
        Foreign { destination: net(destination), table: 254, discards }
    }

    #[test]
    fn what_of_ours_makes_way_for_the_routes_of_others() {
        let range = Entry::ToRange(net("10.96.0.0/12"));
        let planned = BTreeSet::from([range, Entry::RangeRule(Family::V4)]);
        let with = |foreign: &[Foreign]| beside(&planned, foreign);
        let wider = [route("0.0.0.0/0", None), route("10.0.0.0/8", None), route("192.0.2.0/24", None)];
        assert_eq!(with(&wider), planned);
        assert_eq!(with(&[route("10.96.0.0/12", Some("blackhole"))]), planned);
        assert_eq!(with(&[route("10.96.0.0/12", None)]), BTreeSet::from([Entry::RangeRule(Family::V4)]));
        let inside = with(&[route("10.97.0.0/24", None), route("10.98.0.0/24", Some("prohibit"))]);
        let mut wanted = planned.clone();
        wanted.insert(Entry::Throw(net("10.97.0.0/24")));
        assert_eq!(inside, wanted);
        let elsewhere = Foreign { table: 100, ..route("10.97.0.0/24", None) };
        assert_eq!(with(&[elsewhere]), planned);
    }

    #[test]
    fn without_a_table_of_our_own_any_route_to_the_range_will_do() {
        let planned = BTreeSet::from([Entry::MainToRange(net("10.96.0.0/12"))]);
        for (destination, stays) in
            [("0.0.0.0/0", false), ("10.96.0.0/12", false), ("10.97.0.0/16", true), ("::/0", true)]
        {
            assert_eq!(beside(&planned, &[route(destination, None)]).len(), usize::from(stays));
        }
        assert_eq!(beside(&planned, &[route("0.0.0.0/0", Some("unreachable"))]), planned);
    }

    #[test]
    fn names_the_command_that_removes_what_swallows() {
        let elsewhere = Foreign { table: 100, ..route("fd00:96::/112", Some("prohibit")) };
        let all =
            [route("10.0.0.0/8", Some("unreachable")), route("10.96.0.0/12", Some("blackhole")), elsewhere];
        let lines = |ip: &str| -> Vec<String> {
            swallowing(&all, ip.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            lines("10.96.0.1"),
            ["ip route del blackhole 10.96.0.0/12", "ip route del unreachable 10.0.0.0/8"]
        );
        assert_eq!(lines("fd00:96::1"), ["ip -6 route del prohibit fd00:96::/112 table 100"]);
    }
}
