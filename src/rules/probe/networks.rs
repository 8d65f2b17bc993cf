//! Addresses and routes of this machine that clash with the captured ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{AS_ROOT, Finding, Problem, Warning};
use crate::rules::apply::Family;
use crate::rules::routes::{self, Foreign};

/// `alone` are the addresses that would be left alone, as far as they are known.
pub(super) async fn check(ranges: &[IpNet], alone: Option<&BTreeSet<IpAddr>>, found: &mut Vec<Finding>) {
    let (Ok(addresses), Ok(standing)) = (routes::local_addresses().await, routes::standing().await) else {
        let what = "the routes of this machine cannot be listed";
        found.push(Finding::new("unprobed", Warning, what, AS_ROOT));
        return;
    };
    overlaps(ranges, &addresses, &standing.foreign, found);
    let policy_routing = routes::has_policy_routing(&[Family::V4]).await.unwrap_or(true);
    swallowed(ranges, alone, policy_routing, &standing.foreign, found);
}

fn overlaps(ranges: &[IpNet], addresses: &[IpAddr], foreign: &[Foreign], found: &mut Vec<Finding>) {
    let mend = "set intercept.serviceCIDRs to the ranges that hold ClusterIPs only";
    for range in ranges {
        for address in addresses.iter().filter(|address| range.contains(*address)) {
            let what = format!("the range {range} covers {address}, an address of this machine");
            found.push(Finding::new("range-overlap", Problem, what, mend));
        }
        let usable = foreign.iter().filter(|route| route.is_in_main() && route.discards.is_none());
        for route in usable.map(|route| route.destination).filter(|route| range.contains(route)) {
            let what = format!("the range {range} covers {route}, a network this machine has a route to");
            found.push(Finding::new("range-overlap", Warning, what, mend));
        }
    }
}

/// Routes that lead nowhere. The agent's own routing table keeps what is captured from them; what is left alone, and
/// everything where the kernel has one table only, they swallow.
fn swallowed(
    ranges: &[IpNet],
    alone: Option<&BTreeSet<IpAddr>>,
    policy_routing: bool,
    foreign: &[Foreign],
    found: &mut Vec<Finding>,
) {
    let swallowing = foreign.iter().filter(|route| route.is_in_main() && route.discards.is_some());
    for route in swallowing {
        let net = &route.destination;
        let kind = route.discards.unwrap_or_default();
        let shown = format!("the route `{kind} {net}`");
        for range in ranges {
            let (severity, what) = if !policy_routing && range.contains(net) {
                let what = format!(
                    "{shown} swallows what processes of this node send to the range {range}: the kernel has no policy \
                     routing, so nothing can be put before it"
                );
                (Problem, what)
            } else if let Some(alone) = alone {
                let mut hit = alone.iter().filter(|ip| range.contains(*ip) && net.contains(*ip));
                let Some(ip) = hit.next() else { continue };
                (Warning, format!("{shown} swallows packets to {ip}, which the agent leaves alone"))
            } else if range.contains(net) || net.contains(range) {
                let what = format!(
                    "{shown} swallows what the agent leaves alone in the range {range}, such as default/kubernetes; what \
                     it captures gets through"
                );
                (Warning, what)
            } else {
                continue;
            };
            found.push(Finding::new("range-swallowed", severity, what, route.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, discards: Option<&'static str>) -> Foreign {
        Foreign { destination: destination.parse().unwrap(), table: 254, discards }
    }

    fn range() -> [IpNet; 1] {
        ["10.96.0.0/12".parse().unwrap()]
    }

    #[test]
    fn a_range_over_this_machine_is_a_problem() {
        let mut found = Vec::new();
        let addresses = ["10.97.0.1", "10.0.0.1"].map(|ip| ip.parse().unwrap());
        let routes = [route("10.97.0.0/24", None), route("10.98.0.0/24", Some("blackhole"))];
        overlaps(&range(), &addresses, &routes, &mut found);
        assert_eq!(found.iter().map(|f| f.severity).collect::<Vec<_>>(), [Problem, Warning]);
    }

    #[test]
    fn a_route_that_leads_nowhere_is_found_where_it_does_harm() {
        let look = |route: Foreign, alone: Option<&str>, policy_routing| {
            let alone: Option<BTreeSet<IpAddr>> =
                alone.map(|list| list.split_terminator(' ').map(|ip| ip.parse().unwrap()).collect());
            let mut found = Vec::new();
            swallowed(&range(), alone.as_ref(), policy_routing, &[route], &mut found);
            found.pop().map(|finding| (finding.severity, finding.mend))
        };
        let (equal, wider) =
            (route("10.96.0.0/12", Some("blackhole")), route("10.0.0.0/8", Some("unreachable")));
        let mends = ["ip route del blackhole 10.96.0.0/12", "ip route del unreachable 10.0.0.0/8"];
        for (route, mend) in [(&equal, mends[0]), (&wider, mends[1])] {
            assert_eq!(look(route.clone(), Some("10.96.0.1"), true), Some((Warning, mend.to_owned())));
            assert_eq!(look(route.clone(), None, true), Some((Warning, mend.to_owned())));
            assert_eq!(look(route.clone(), Some(""), true), None, "nothing is left alone");
        }
        assert_eq!(look(equal, Some(""), false), Some((Problem, mends[0].to_owned())));
        assert_eq!(look(wider, Some(""), false), None, "the range's own route is more specific");
        assert_eq!(look(route("10.0.0.0/8", None), None, false), None);
        assert_eq!(look(route("192.0.2.0/24", Some("blackhole")), None, true), None);
    }
}
