//! One service port as the data plane uses it: its backends, its counters, its clients' pins.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use crate::model::{BackendSet, Reach, ServicePort, Via};

use super::affinity::Affinity;
use super::health::{EjectionPolicy, Tick};
use super::http::HttpCounters;
use super::pool::{Caller, Pool};

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
    /// What its HTTP requests came to; nothing stands there before the first one.
    pub http: OnceLock<Box<HttpCounters>>,
}

impl PortCounters {
    /// What its HTTP requests came to.
    pub fn http(&self) -> &HttpCounters {
        self.http.get_or_init(Box::default)
    }
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
    /// The pools of [`External::other`](crate::model::External), IPv4 first.
    pub(super) other: Option<[Pool; 2]>,
}

impl Upstream {
    /// The backends for a frontend of `ip`'s family.
    pub fn pool(&self, frontend: IpAddr) -> &Pool {
        if frontend.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// The backends for clients that come by `via` to a frontend of `ip`'s family.
    pub fn pool_via(&self, via: Via, frontend: IpAddr) -> &Pool {
        match self.other.as_ref().filter(|_| self.port.takes_other(via)) {
            Some([v4, v6]) => {
                if frontend.is_ipv4() {
                    v4
                } else {
                    v6
                }
            }
            None => self.pool(frontend),
        }
    }

    /// All its pools, each with the set of backends it stands for.
    pub(super) fn pools(&self) -> impl Iterator<Item = (&BackendSet, &Pool)> {
        let own = [(&self.port.v4, &self.v4), (&self.port.v6, &self.v6)];
        let sets = self.port.external.as_ref().and_then(|external| external.other.as_ref());
        own.into_iter().chain(sets.into_iter().flatten().zip(self.other.iter().flatten()))
    }

    /// Whether the backend dialled at `addr` is to see the client's own address: the service asks for it, and the backend
    /// is on this node.
    pub fn keeps_source(&self, addr: SocketAddr) -> bool {
        let here = |set: &BackendSet| {
            set.eligible.iter().any(|backend| {
                backend.addr.0 == addr
                    && backend.local
                    && matches!(backend.reach, Reach::Pod | Reach::HostNetwork)
            })
        };
        self.port.keep_source && self.pools().any(|(set, _)| here(set))
    }

    /// Picks a backend of `pool` (one of this upstream's) for `client` that is not among `tried`.
    pub fn pick(&self, pool: &Pool, client: impl Into<Caller>, tried: &[usize], now: Tick) -> Option<usize> {
        let client = client.into();
        let choose = || pool.pick(&self.port.policy, client, tried, now);
        let (Some(affinity), Some(timeout)) = (&self.affinity, self.port.affinity) else {
            return choose();
        };
        let usable = |addr| pool.position(addr).filter(|i| !tried.contains(i) && pool.is_ready(*i, now));
        affinity.get_or_pin(client.ip, now, timeout, usable, || {
            choose().map(|index| (index, pool.endpoints()[index].addr))
        })
    }
}
