//! The routes and policy rules of a plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::routes::Entry;
use super::{Input, is_of};

impl Input<'_> {
    /// Routes and policy rules. What is left alone goes where it would go without us; the main table has no way of
    /// saying so, for a route to the range there wins over a default route.
    pub(super) fn entries(&self) -> BTreeSet<Entry> {
        if !self.capabilities.policy_routing {
            return self.ranges.iter().map(|range| Entry::MainToRange(*range)).collect();
        }
        let family = self.family;
        let mut entries =
            BTreeSet::from([Entry::RefuseRule(family, self.wanted.refuse_mark), Entry::RangeRule(family)]);
        entries.extend(self.ranges.iter().map(|range| Entry::ToRange(*range)));
        entries.extend(self.ranges.iter().map(|range| Entry::Deliver(*range)));
        if self.capabilities.ipset {
            let external = self.wanted.external.keys().map(|at| at.ip);
            let outside = external
                .filter(|ip| is_of(family, *ip) && !self.ranges.iter().any(|range| range.contains(ip)));
            entries.extend(outside.map(|ip| Entry::Deliver(IpNet::from(ip))));
        }
        if self.keeps_source() {
            // What backends answer goes to whoever the client was.
            entries.insert(Entry::DeliverAll(family));
        }
        let inside = |ip: &&IpAddr| self.ranges.iter().any(|range| range.contains(*ip));
        let alone = self.wanted.skip.iter().filter(inside);
        entries.extend(alone.map(|ip| Entry::Throw(IpNet::from(*ip))));
        entries
    }
}
