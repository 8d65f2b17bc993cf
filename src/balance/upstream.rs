//! One service port as the data plane uses it: its backends, its counters, its clients' pins.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::model::ServicePort;

use super::affinity::Affinity;
use super::health::{EjectionPolicy, Tick};
use super::pool::Pool;

/// What a service port has seen. Lives as long as the service port, whatever else changes about it.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Connections open now, dials included.
    pub active: AtomicU64,
    /// Connections since start.
    pub total: AtomicU64,
    /// Bytes from clients to backends.
    pub bytes_in: AtomicU64,
    /// Bytes from backends to clients.
    pub bytes_out: AtomicU64,
    /// Connections that were reset because no backend could be used.
    pub refused: AtomicU64,
    /// Dials that failed because every local port towards the backend was in use.
    pub out_of_ports: AtomicU64,
}

/// One service port as the data plane uses it. Replaced, never changed, when the snapshot brings news about it.
#[derive(Debug)]
pub struct Upstream {
    /// The service port of the snapshot.
    pub port: Arc<ServicePort>,
    /// What it has seen.
    pub counters: Arc<PortCounters>,
    /// When its backends are ejected.
    pub ejection: EjectionPolicy,
    pub(super) affinity: Option<Arc<Affinity>>,
    pub(super) v4: Pool,
    pub(super) v6: Pool,
}

impl Upstream {
    /// The backends for a frontend of `ip`'s family.
    pub fn pool(&self, frontend: IpAddr) -> &Pool {
        if frontend.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// Picks a backend of `pool` (one of this upstream's) for `client` that is not among `tried`.
    pub fn pick(&self, pool: &Pool, client: IpAddr, tried: &[usize], now: Tick) -> Option<usize> {
        let choose = || pool.pick(&self.port.policy, client, tried, now);
        let (Some(affinity), Some(timeout)) = (&self.affinity, self.port.affinity) else {
            return choose();
        };
        let usable = |addr| pool.position(addr).filter(|i| !tried.contains(i) && pool.is_ready(*i, now));
        affinity.get_or_pin(client, now, timeout, usable, || {
            choose().map(|index| (index, pool.endpoints()[index].addr))
        })
    }
}
