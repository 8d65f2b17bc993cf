//! External frontends and health checks in the snapshot, and what they depend on besides their Service.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::source::slim::{Phase, Pod};

use super::super::external::HealthCheck;
use super::super::gather::protocol_name;
use super::super::index::Dep;
use super::super::types::{Frontend, Protocol, ServicePort, Snapshot};
use super::Store;

impl Store {
    /// The ports of the external frontends at this host's own addresses, those that are left alone as well: where
    /// others might listen.
    pub fn exposed_ports(&self) -> BTreeSet<(Protocol, u16)> {
        let served = self.external_claims.iter().filter(|(frontend, _)| frontend.protocol != Protocol::Sctp);
        let own = served.filter(|(frontend, _)| self.local.own_addresses.contains(&frontend.ip));
        own.map(|(frontend, _)| (frontend.protocol, frontend.port)).collect()
    }

    /// Notes the host ports of a pod of this node, or strikes them out, and marks the Services that they concern.
    pub(super) fn note_host_ports(&mut self, pod: &Pod, stands: bool) {
        if pod.node.as_ref() != Some(&self.local.node_name) || pod.phase == Phase::Ended {
            return;
        }
        for port in &pod.ports {
            let Some(number) = port.host_port else { continue };
            let key = (protocol_name(port.protocol), number);
            let name = (pod.namespace.clone(), pod.name.clone());
            let pods = self.host_ports.entry(key).or_default();
            let changed = if stands { pods.insert(name) } else { pods.remove(&name) };
            if pods.is_empty() {
                self.host_ports.remove(&key);
            }
            if changed {
                self.dirty.extend(self.watchers.of(Dep::HostPort(key.0, key.1)));
            }
        }
    }

    /// Brings the claims of a Service on external frontends up to date with its ports. Adds to `touched` what may
    /// have to be given anew.
    pub(super) fn claim_external(&mut self, number: u32, changed: bool, touched: &mut BTreeSet<Frontend>) {
        let slot = &mut self.slots[number as usize];
        let new: Box<[Frontend]> = slot.ports.iter().flat_map(|port| frontends(port)).collect();
        let old = std::mem::replace(&mut slot.external, new.clone());
        for frontend in old.iter().filter(|frontend| !new.contains(frontend)) {
            self.external_claims.remove(&(*frontend, number));
            touched.insert(*frontend);
        }
        for frontend in &new {
            if self.external_claims.insert((*frontend, number)) || changed {
                touched.insert(*frontend);
            }
        }
    }

    /// Gives each of the external frontends to the Service port that has it now: of several the newest. Says whether
    /// warnings changed.
    pub(super) fn assign_external(&mut self, touched: &BTreeSet<Frontend>, next: &mut Snapshot) -> bool {
        let mut warned = false;
        for frontend in touched {
            let claims = self.external_claims.range((*frontend, 0)..=(*frontend, u32::MAX));
            let claimants: Vec<u32> = claims.map(|claim| claim.1).collect();
            let owner = claimants.iter().copied().max_by(|a, b| self.age(*a).cmp(&self.age(*b)));
            let port = owner.and_then(|owner| {
                self.slots[owner as usize].ports.iter().find(|port| serves(port, frontend)).cloned()
            });
            match (next.external.get(frontend), port) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, &new) => {}
                (_, Some(new)) => _ = next.external.insert(*frontend, new),
                (Some(_), None) => _ = next.external.remove(frontend),
                (None, None) => {}
            }
            let several = owner.filter(|_| claimants.len() > 1);
            let text = several.map(|owner| {
                format!("{frontend} is claimed by Services {}", self.contest(owner, &claimants))
            });
            warned |= self.contested_external.get(frontend) != text.as_ref();
            match text {
                Some(text) => _ = self.contested_external.insert(*frontend, text),
                None => _ = self.contested_external.remove(frontend),
            }
        }
        warned
    }

    /// Puts the health check of a Service into `next`, in the place of the one it had.
    pub(super) fn put_health_check(
        &mut self,
        number: u32,
        check: Option<(u16, HealthCheck)>,
        next: &mut Snapshot,
    ) {
        let slot = &mut self.slots[number as usize];
        let old = std::mem::replace(&mut slot.health_port, check.as_ref().map(|(port, _)| *port));
        if let Some(old) = old.filter(|old| check.as_ref().is_none_or(|(port, _)| port != old))
            && next.health_checks.get(&old).is_some_and(|held| Some(&held.service) == slot.id.as_ref())
        {
            next.health_checks.remove(&old);
        }
        if let Some((port, check)) = check
            && next.health_checks.get(&port) != Some(&check)
        {
            next.health_checks.insert(port, check);
        }
    }
}

/// Every external frontend of a port, those that are left alone as well.
fn frontends(port: &ServicePort) -> impl Iterator<Item = Frontend> + '_ {
    let all = port.external.iter().flat_map(|external| &external.frontends);
    all.map(|at| frontend(at.addr, port))
}

fn frontend(addr: SocketAddr, port: &ServicePort) -> Frontend {
    Frontend { ip: addr.ip(), port: addr.port(), protocol: port.id.protocol }
}

fn serves(port: &ServicePort, at: &Frontend) -> bool {
    port.id.protocol == at.protocol
        && port.external_at(at.addr()).is_some_and(|frontend| frontend.left_alone.is_none())
}
