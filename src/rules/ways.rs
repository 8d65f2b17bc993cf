//! The way of this node's own processes to the captured ranges: routes and policy rules brought about and kept, and
//! what stands in the way told.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::debug;

use super::machine::Machine;
use super::plan::{Plan, Wanted};
use super::reconcile::{Reconciler, RulesError};
use super::routes::{self, Entry, Foreign};

/// Begins the warning about routes that could not be added; it goes once they stand.
const ROUTE_MISSING: &str = "a route is missing";
/// Begins the warning about routes of others that swallow packets; it goes with them.
const NO_WAY: &str = "processes of this node cannot reach";

impl<M: Machine> Reconciler<M> {
    /// Adds those missing routes and policy rules that `wanted` accepts. Returns those that stood after the last time:
    /// somebody has removed them.
    pub(super) async fn add_entries(
        &mut self,
        target: &Plan,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Entry>, RulesError> {
        let standing = self.machine.standing().await?;
        let all = routes::beside(&target.entries(), &standing.foreign);
        let missing: Vec<Entry> =
            all.difference(&standing.own).copied().filter(|entry| wanted(entry)).collect();
        let lost = missing.iter().filter(|entry| self.routes.contains(entry)).copied().collect();
        self.add(&missing).await?;
        Ok(lost)
    }

    /// Adds what is missing, and then takes away what is not needed any more. Returns what somebody has removed, and the
    /// routes of others.
    pub(super) async fn follow_routes(
        &mut self,
        target: &Plan,
    ) -> Result<(Vec<Entry>, Vec<Foreign>), RulesError> {
        let standing = self.machine.standing().await?;
        let all = routes::beside(&target.entries(), &standing.foreign);
        let missing: Vec<Entry> = all.difference(&standing.own).copied().collect();
        let lost = missing.iter().filter(|entry| self.routes.contains(entry)).copied().collect();
        self.add(&missing).await?;
        let surplus: Vec<Entry> =
            standing.own.iter().rev().filter(|entry| !all.contains(entry)).copied().collect();
        if !surplus.is_empty() {
            debug!(?surplus, "removing routes that are not needed any more");
            self.machine.remove_entries(&surplus).await?;
        }
        self.routes = all;
        Ok((lost, standing.foreign))
    }

    /// A missing route does not stop the rest: pods are served without it.
    async fn add(&mut self, missing: &[Entry]) -> Result<(), RulesError> {
        let answers = if missing.is_empty() { Vec::new() } else { self.machine.add_entries(missing).await? };
        let failed = answers.into_iter().filter_map(Result::err).map(|error| {
            format!(
                "{ROUTE_MISSING}; processes of this node that have no default route cannot connect ({error})"
            )
        });
        self.replace_warnings(ROUTE_MISSING, failed.collect());
        Ok(())
    }

    /// Puts `lines` in the place of the warnings that begin so. Those that stood before are not logged again.
    fn replace_warnings(&mut self, start: &str, lines: Vec<String>) {
        self.report.warnings.retain(|line| !line.starts_with(start) || lines.contains(line));
        for line in lines {
            self.warn(line);
        }
    }

    /// Asks the kernel whether this node's processes get to an address of each range, and to what is left alone where
    /// somebody's route may swallow it.
    pub(super) async fn tell_obstacles(
        &mut self,
        wanted: &Wanted,
        target: &Plan,
        foreign: &[Foreign],
    ) -> Result<(), RulesError> {
        let ranges: BTreeSet<_> = target.entries().into_iter().filter_map(range).collect();
        let served = ranges.iter().filter_map(|range| {
            wanted.served.iter().map(|frontend| frontend.ip).find(|ip| range.contains(ip))
        });
        let discarding = foreign.iter().filter(|route| route.discards.is_some());
        let alone = discarding.filter_map(|route| {
            let captured = |ip: &&IpAddr| ranges.iter().any(|range| range.contains(*ip));
            wanted.skip.iter().filter(captured).find(|ip| route.destination.contains(*ip)).copied()
        });
        let asked: BTreeSet<IpAddr> = served.chain(alone).collect();
        let mut lines = Vec::new();
        for ip in asked {
            if let Some(errno) = self.machine.obstacle(ip).await? {
                let what = if wanted.skip.contains(&ip) { ", which is left alone" } else { "" };
                lines.push(format!("{NO_WAY} {ip}{what} ({}): {}", errno.desc(), way_out(foreign, ip)));
            }
        }
        self.replace_warnings(NO_WAY, lines);
        Ok(())
    }
}

/// The range that an entry leads into.
fn range(entry: Entry) -> Option<ipnet::IpNet> {
    match entry {
        Entry::ToRange(range) | Entry::MainToRange(range) => Some(range),
        _ => None,
    }
}

/// What to do about packets to `ip` that go nowhere.
fn way_out(foreign: &[Foreign], ip: IpAddr) -> String {
    match routes::swallowing(foreign, ip).first() {
        Some(route) => format!("`{route}` removes the route that swallows them"),
        None => format!("look at `ip rule` and `ip route get {ip}`"),
    }
}
