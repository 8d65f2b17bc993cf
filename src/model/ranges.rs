//! Which address ranges to capture, when nobody has said which the cluster's Service range is.
//!
//! A range costs a fixed number of rules however many services it holds, and refuses what is not served; but one
//! that is too wide cuts the node off from real hosts. So: as narrow as the `ClusterIPs` seen allow, never over
//! anything that the node has a use for, and never shrinking while the agent runs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::types::Snapshot;

/// The longest and the shortest prefix of a range that is found out: /24 holds the next services as well, and no
/// cluster's Service range is wider than /12 (the API server's own limit is 20 bits of host part).
const V4_PREFIX: (u8, u8) = (24, 12);
/// The same for IPv6, for the same sizes (256 addresses to 20 bits).
const V6_PREFIX: (u8, u8) = (120, 108);

/// Every ClusterIP that this node serves, in order.
pub fn vips(snapshot: &Snapshot) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = snapshot.frontends.keys().map(|frontend| frontend.ip).collect();
    all.dedup();
    all
}

/// Every address that this node dials, as ranges that no found-out range may cover.
pub fn dialled(snapshot: &Snapshot) -> BTreeSet<IpNet> {
    let sets = snapshot.ports.values().flat_map(|port| [&port.v4, &port.v6]);
    sets.flat_map(|set| &set.eligible).map(|backend| IpNet::from(backend.addr.0.ip())).collect()
}

/// Finds ranges for `vips`: per family the narrowest that covers all of them, split where it would be too wide or
/// would overlap one of `forbidden`. Addresses that cannot be grouped stand alone; one that is itself forbidden as
/// a single address (an address of a node or of a backend) is left out.
///
/// `previous` are the ranges in force: they stay, unless they overlap something forbidden now.
pub fn infer(vips: &[IpAddr], previous: &[IpNet], forbidden: &[IpNet]) -> Vec<IpNet> {
    let blocked = Blocked::new(forbidden);
    let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    let mut found: Vec<IpNet> = previous
        .iter()
        .map(IpNet::trunc)
        .filter(|net| if single(net) { !blocked.exact.contains(net) } else { !blocked.overlaps(net) })
        .collect();
    for v4 in [true, false] {
        let family: BTreeSet<IpAddr> = vips.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
        let family: Vec<IpAddr> =
            family.into_iter().filter(|ip| !blocked.exact.contains(&IpNet::from(*ip))).collect();
        cover(&family, if v4 { V4_PREFIX } else { V6_PREFIX }, &blocked, &mut found);
    }
    normal(found)
}

/// `configured`, and a range of its own for every one of `vips` outside of them.
pub fn complete(configured: &[IpNet], vips: &[IpAddr]) -> Vec<IpNet> {
    let mut all: Vec<IpNet> = configured.iter().map(IpNet::trunc).collect();
    let outside = vips.iter().filter(|ip| !configured.iter().any(|net| net.contains(*ip)));
    all.extend(outside.map(|ip| IpNet::from(*ip)));
    normal(all)
}

/// In order, without those that lie inside another.
fn normal(mut nets: Vec<IpNet>) -> Vec<IpNet> {
    nets.sort_unstable();
    nets.dedup();
    // A wider range sorts before those that start inside it.
    let mut kept: Vec<IpNet> = Vec::with_capacity(nets.len());
    for net in nets {
        if kept.last().is_none_or(|last| !last.contains(&net)) {
            kept.push(net);
        }
    }
    kept
}

/// Covers sorted `vips` of one family.
fn cover(vips: &[IpAddr], (longest, shortest): (u8, u8), blocked: &Blocked, out: &mut Vec<IpNet>) {
    let (Some(first), Some(last)) = (vips.first(), vips.last()) else { return };
    let common = common_prefix(*first, *last);
    let net = net(*first, common.min(longest));
    if common >= shortest && !blocked.overlaps(&net) {
        out.push(net);
    } else if common >= longest {
        out.extend(vips.iter().map(|ip| IpNet::from(*ip)));
    } else {
        // The first bit in which they differ parts them.
        let at = vips.partition_point(|ip| common_prefix(*first, *ip) > common);
        cover(&vips[..at], (longest, shortest), blocked, out);
        cover(&vips[at..], (longest, shortest), blocked, out);
    }
}

/// How many leading bits two addresses of one family share.
fn common_prefix(a: IpAddr, b: IpAddr) -> u8 {
    let bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    };
    u8::try_from(bits).unwrap_or(128)
}

/// The range of length `prefix` around `ip`, written with masks, so that no length can be out of bounds.
fn net(ip: IpAddr, prefix: u8) -> IpNet {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            let start = Ipv4Addr::from_bits(ip.to_bits() & mask);
            Ipv4Net::new(start, prefix.min(32)).map_or_else(|_| IpNet::from(IpAddr::V4(ip)), IpNet::V4)
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            let start = Ipv6Addr::from_bits(ip.to_bits() & mask);
            Ipv6Net::new(start, prefix.min(128)).map_or_else(|_| IpNet::from(IpAddr::V6(ip)), IpNet::V6)
        }
    }
}

/// What may not be covered, ready for many questions: disjoint intervals in order.
struct Blocked {
    intervals: Vec<(IpAddr, IpAddr)>,
    /// The single addresses among them.
    exact: BTreeSet<IpNet>,
}

impl Blocked {
    /// Default routes are no obstacle: they cover everything and mean nothing.
    fn new(forbidden: &[IpNet]) -> Self {
        let nets: Vec<IpNet> = forbidden.iter().filter(|n| n.prefix_len() > 0).map(IpNet::trunc).collect();
        let exact = nets.iter().filter(|n| n.prefix_len() == n.max_prefix_len()).copied().collect();
        let intervals = normal(nets).iter().map(|n| (n.network(), n.broadcast())).collect();
        Self { intervals, exact }
    }

    fn overlaps(&self, net: &IpNet) -> bool {
        let at = self.intervals.partition_point(|(_, end)| *end < net.network());
        self.intervals.get(at).is_some_and(|(start, _)| *start <= net.broadcast())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_found_as_documented() {
        // (vips, previous, forbidden, want)
        type Texts = &'static [&'static str];
        let cases: &[(Texts, Texts, Texts, Texts)] = &[
            (&[], &[], &[], &[]),
            (&["10.96.191.183"], &[], &[], &["10.96.191.0/24"]),
            (&["10.96.0.1", "10.96.191.183"], &[], &[], &["10.96.0.0/16"]),
            (&["10.96.0.1", "10.111.255.254"], &[], &[], &["10.96.0.0/12"]),
            // Too wide for one range.
            (&["10.96.0.1", "10.112.0.1"], &[], &[], &["10.96.0.0/24", "10.112.0.0/24"]),
            (&["10.96.0.1", "172.16.0.1", "172.16.9.1"], &[], &[], &["10.96.0.0/24", "172.16.0.0/20"]),
            // A node's network in the middle.
            (&["10.96.0.1", "10.96.5.1"], &[], &["10.96.3.0/24"], &["10.96.0.0/24", "10.96.5.0/24"]),
            // A default route is no obstacle.
            (&["10.96.0.1"], &[], &["0.0.0.0/0", "::/0"], &["10.96.0.0/24"]),
            // A route over everything (a VPN): each address alone.
            (&["10.96.0.1", "10.96.5.1"], &[], &["10.0.0.0/8"], &["10.96.0.1/32", "10.96.5.1/32"]),
            // A backend in the same /24.
            (&["10.96.0.1", "10.96.0.9"], &[], &["10.96.0.7/32"], &["10.96.0.1/32", "10.96.0.9/32"]),
            // The node's own address is never captured.
            (&["192.168.77.1", "10.96.0.1"], &[], &["192.168.77.1/32"], &["10.96.0.0/24"]),
            // What was in force stays, absorbed where a wider range holds it.
            (&["10.96.0.1"], &["10.96.128.0/24"], &[], &["10.96.0.0/24", "10.96.128.0/24"]),
            (&["10.96.0.1", "10.96.200.1"], &["10.96.128.0/24"], &[], &["10.96.0.0/16"]),
            (&["10.96.0.1"], &["10.96.128.0/24"], &["10.96.128.7/32"], &["10.96.0.0/24"]),
            // Both families.
            (&["fd00::1", "fd00::2:1", "10.96.0.1"], &[], &[], &["10.96.0.0/24", "fd00::/110"]),
            (&["fd00::1", "fd01::1"], &[], &[], &["fd00::/120", "fd01::/120"]),
        ];
        for (vips, previous, forbidden, want) in cases {
            let got = infer(&ips(vips), &nets(previous), &nets(forbidden));
            assert_eq!(got, nets(want), "{vips:?} {previous:?} {forbidden:?}");
        }
    }

    #[test]
    fn configured_ranges_are_completed_with_single_addresses() {
        let got = complete(&nets(&["10.96.0.0/12"]), &ips(&["10.96.0.1", "10.200.0.9", "fd00::1"]));
        assert_eq!(got, nets(&["10.96.0.0/12", "10.200.0.9/32", "fd00::1/128"]));
        assert_eq!(complete(&nets(&["10.96.0.7/12"]), &[]), nets(&["10.96.0.0/12"]), "host bits are cleared");
    }

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            // Close together, so that groups form.
            (0u32..1 << 21).prop_map(|low| IpAddr::from(Ipv4Addr::from_bits(0x0a60_0000 | low))),
            any::<[u8; 4]>().prop_map(IpAddr::from),
            (0u128..1 << 22).prop_map(|low| IpAddr::from(Ipv6Addr::from_bits(0xfd << 120 | low))),
        ]
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        (any_ip(), 0u8..=32).prop_map(|(ip, narrower)| {
            let max = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new(ip, max - narrower).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn found_ranges_keep_their_promises(
            vips in prop::collection::vec(any_ip(), 0..12),
            later in prop::collection::vec(any_ip(), 0..6),
            forbidden in prop::collection::vec(any_net(), 0..6),
        ) {
            let blocked = Blocked::new(&forbidden);
            let single = |n: &IpNet| n.prefix_len() == n.max_prefix_len();
            let found = infer(&vips, &[], &forbidden);
            for ip in &vips {
                let own = blocked.exact.contains(&IpNet::from(*ip));
                prop_assert_eq!(found.iter().any(|n| n.contains(ip)), !own, "{}", ip);
            }
            for net in &found {
                let (longest, shortest) = if net.addr().is_ipv4() { V4_PREFIX } else { V6_PREFIX };
                prop_assert!(single(net) || (shortest..=longest).contains(&net.prefix_len()), "{}", net);
                let clear = forbidden.iter().all(|f| {
                    f.prefix_len() == 0 || (!f.contains(&net.network()) && !net.contains(&f.network()))
                });
                prop_assert!(single(net) || clear, "{} overlaps", net);
                prop_assert!(vips.iter().any(|ip| net.contains(ip)), "{} covers nothing", net);
            }
            let pairs = found.iter().zip(found.iter().skip(1));
            for (a, b) in pairs {
                prop_assert!(a < b && !a.contains(b) && !b.contains(a));
            }
            // More services: what was captured stays captured.
            let mut more = vips.clone();
            more.extend(later);
            let grown = infer(&more, &found, &forbidden);
            for net in &found {
                prop_assert!(grown.iter().any(|g| g.contains(net)), "{} was dropped", net);
            }
            // Fewer services: the same.
            let shrunk = infer(&[], &grown, &forbidden);
            prop_assert_eq!(&shrunk, &grown);
            // The order of the question does not matter.
            let mut backwards = vips.clone();
            backwards.reverse();
            prop_assert_eq!(infer(&backwards, &[], &forbidden), found);
        }

        #[test]
        fn every_address_is_inside_the_completed_ranges(
            vips in prop::collection::vec(any_ip(), 0..12),
            configured in prop::collection::vec(any_net(), 0..4),
        ) {
            let all = complete(&configured, &vips);
            prop_assert!(vips.iter().all(|ip| all.iter().any(|n| n.contains(ip))));
            prop_assert!(configured.iter().all(|c| all.iter().any(|n| n.contains(c))));
        }
    }
}
