//! The backends of one service port and address family, and the pick among them.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::model::Policy;

use super::health::{EjectionPolicy, Health, Standing, Tick};

/// Who is to be connected, as far as the pick goes.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The client's address.
    pub ip: IpAddr,
    /// The hash of what the policy looks at in a request, see [`key_of`]; `None` where there is no such thing.
    pub key: Option<u64>,
}

impl From<IpAddr> for Caller {
    fn from(ip: IpAddr) -> Self {
        Self { ip, key: None }
    }
}

/// The hash of a header's or a cookie's value, for [`Caller::key`]: the same on every node and at every start.
pub fn key_of(value: &[u8]) -> u64 {
    finish(eat(FNV_OFFSET, value))
}

/// One backend of one service port. The health is shared by all service ports with that address, the counts are its own.
#[derive(Debug)]
pub struct Endpoint {
    /// What is dialled.
    pub addr: SocketAddr,
    /// What is known about the address.
    pub health: Arc<Health>,
    active: AtomicU32,
    connections: AtomicU64,
    failures: AtomicU64,
    requests: AtomicU64,
}

impl Endpoint {
    /// A backend without connections.
    pub fn new(addr: SocketAddr, health: Arc<Health>) -> Self {
        Self {
            addr,
            health,
            active: AtomicU32::new(0),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// Counts a dial in; dropping the lease counts it, or the connection that came of it, out.
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.active.fetch_add(1, Relaxed);
        self.health.acquire();
        Lease(Arc::clone(self))
    }

    /// A dial connected after `took`.
    pub fn succeeded(&self, now: Tick, took: Duration) {
        self.connections.fetch_add(1, Relaxed);
        self.health.succeeded(now, took);
    }

    /// A flow of datagrams began, which nobody acknowledges.
    pub fn began(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// The first answer to a flow of datagrams: it is alive. How long the answer took is the service's business, and
    /// says nothing about the way to it.
    pub fn answered(&self, now: Tick) {
        self.health.succeeded(now, Duration::ZERO);
    }

    /// An HTTP request was sent to it.
    pub fn asked(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// An HTTP request was answered with a status of 500 or above (`fault`), or with another one. Only asked where a
    /// `DestinationRule` ejects for that.
    pub fn judged(&self, fault: bool, now: Tick, policy: &EjectionPolicy) {
        if fault {
            self.health.erred(now, policy, fastrand::f32());
        } else {
            self.health.behaved();
        }
    }

    /// A dial was refused or not answered. `true`: that has taken the address out.
    pub fn failed(&self, now: Tick, policy: &EjectionPolicy) -> bool {
        self.failures.fetch_add(1, Relaxed);
        self.health.failed(now, policy, fastrand::f32())
    }

    /// Dials under way and connections open now.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Connections since start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Failed dials since start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// HTTP requests since start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

/// Keeps a backend's connection counted for as long as it lives.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Lease {
    /// The backend.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
        self.0.health.release();
    }
}

/// The backends of one service port and address family.
#[derive(Debug, Default)]
pub struct Pool {
    endpoints: Box<[Arc<Endpoint>]>,
    preferred: usize,
    max_ejected: usize,
    turn: AtomicUsize,
}

impl Pool {
    /// A pool whose first `preferred` endpoints are picked before the others. At most `max_percent` of them count as
    /// ejected at once, the rest of the ejected are treated as ready.
    pub fn new(endpoints: Vec<Arc<Endpoint>>, preferred: usize, max_percent: u8) -> Self {
        let max_ejected =
            if max_percent >= 100 { usize::MAX } else { endpoints.len() * usize::from(max_percent) / 100 };
        Self {
            preferred: preferred.min(endpoints.len()),
            endpoints: endpoints.into(),
            max_ejected,
            turn: AtomicUsize::new(0),
        }
    }

    /// The endpoints, in the order of the snapshot.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The position of `addr`.
    pub fn position(&self, addr: SocketAddr) -> Option<usize> {
        self.endpoints.iter().position(|e| e.addr == addr)
    }

    /// Picks an endpoint that is not among `tried`: preferred ones first, then the others, and when all that are left
    /// are ejected, an ejected one all the same (panic mode). `None`: all were tried.
    pub fn pick(
        &self,
        policy: &Policy,
        client: impl Into<Caller>,
        tried: &[usize],
        now: Tick,
    ) -> Option<usize> {
        let client = client.into();
        let (near, far) = (0..self.preferred, self.preferred..self.endpoints.len());
        let lenient = self.max_ejected != usize::MAX && self.ejected(now) > self.max_ejected;
        if !lenient {
            if *policy == Policy::LeastRequest
                && tried.is_empty()
                && let Some(found) = self.pick_of_two(near.clone(), now)
            {
                return Some(found);
            }
            for range in [near.clone(), far.clone()] {
                let mut usable = candidates(range, tried);
                usable.retain(|&i| self.endpoints[i].health.standing(now) != Standing::Out);
                while let Some(found) = self.choose(policy, client, tried, &usable, now) {
                    if self.take(found, now) {
                        return Some(found);
                    }
                    usable.retain(|&i| i != found);
                }
            }
        }
        [near, far].into_iter().find_map(|range| {
            let all = candidates(range, tried);
            self.choose(policy, client, tried, &all, now)
        })
    }

    /// True if the endpoint at `index` may be picked at `now` without being a probe.
    pub fn is_ready(&self, index: usize, now: Tick) -> bool {
        self.endpoints[index].health.standing(now) == Standing::Ready
    }

    fn ejected(&self, now: Tick) -> usize {
        self.endpoints.iter().filter(|e| e.health.standing(now) == Standing::Out).count()
    }

    /// The common case without an allocation: two of the range, both ready.
    fn pick_of_two(&self, range: Range<usize>, now: Tick) -> Option<usize> {
        let n = range.len();
        if n < 2 {
            return range.into_iter().find(|&i| self.is_ready(i, now));
        }
        let (a, b) = two_of(n);
        let (a, b) = (range.start + a, range.start + b);
        for i in [a, b] {
            match self.endpoints[i].health.standing(now) {
                Standing::Ready => {}
                Standing::Due if self.take(i, now) => return Some(i),
                Standing::Due | Standing::Out => return None,
            }
        }
        Some(self.lighter(a, b, now))
    }

    fn lighter(&self, a: usize, b: usize, now: Tick) -> usize {
        if self.endpoints[b].health.load(now) < self.endpoints[a].health.load(now) { b } else { a }
    }

    /// The lighter of two of `usable`, which are at least two.
    fn lighter_of_two(&self, usable: &[usize], now: Tick) -> usize {
        let (a, b) = two_of(usable.len());
        self.lighter(usable[a], usable[b], now)
    }

    /// An endpoint that is due is taken by claiming its probe.
    fn take(&self, index: usize, now: Tick) -> bool {
        let health = &self.endpoints[index].health;
        match health.standing(now) {
            Standing::Ready => true,
            Standing::Due => health.claim_probe(now),
            Standing::Out => false,
        }
    }

    fn choose(
        &self,
        policy: &Policy,
        client: Caller,
        tried: &[usize],
        usable: &[usize],
        now: Tick,
    ) -> Option<usize> {
        let n = usable.len();
        if n < 2 {
            return usable.first().copied();
        }
        Some(match policy {
            Policy::LeastRequest => self.lighter_of_two(usable, now),
            // Without a request, or without the header in it, there is nothing to go by.
            Policy::Header(_) | Policy::Cookie(_) => match client.key {
                Some(key) => {
                    usable.iter().copied().max_by_key(|&i| rendezvous_of(key, self.endpoints[i].addr))?
                }
                None => self.lighter_of_two(usable, now),
            },
            Policy::Random => usable[fastrand::usize(..n)],
            Policy::RoundRobin => match tried.last() {
                // A retry goes to the neighbour and takes nobody's turn.
                Some(last) => usable.iter().copied().find(|i| i > last).unwrap_or(usable[0]),
                None => usable[self.turn.fetch_add(1, Relaxed) % n],
            },
            Policy::SourceIp => {
                usable.iter().copied().max_by_key(|&i| rendezvous(client.ip, self.endpoints[i].addr))?
            }
        })
    }
}

fn candidates(range: Range<usize>, tried: &[usize]) -> Vec<usize> {
    range.filter(|i| !tried.contains(i)).collect()
}

/// Two different numbers below `n`, which is at least 2.
fn two_of(n: usize) -> (usize, usize) {
    let a = fastrand::usize(..n);
    let b = fastrand::usize(..n - 1);
    (a, if b >= a { b + 1 } else { b })
}

/// Where FNV-1a begins.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn eat(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn eat_ip(hash: u64, ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => eat(hash, &ip.octets()),
        IpAddr::V6(ip) => eat(hash, &ip.octets()),
    }
}

/// The finaliser of splitmix64: FNV alone leaves the high bits too alike.
fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Highest-random-weight hashing: each client prefers the backends in its own order, so that a backend that goes
/// moves only its own clients. FNV-1a with a final mix: the same on every node, every start and every machine.
fn rendezvous(client: IpAddr, backend: SocketAddr) -> u64 {
    let hash = eat_ip(eat_ip(FNV_OFFSET, client.to_canonical()), backend.ip());
    finish(eat(hash, &backend.port().to_be_bytes()))
}

/// The same for a key that is a hash already.
fn rendezvous_of(key: u64, backend: SocketAddr) -> u64 {
    let hash = eat_ip(eat(FNV_OFFSET, &key.to_be_bytes()), backend.ip());
    finish(eat(hash, &backend.port().to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use tokio::sync::watch;

    use super::*;
    use crate::model::OutlierDetection;

    const NOW: Tick = Tick(1_000_000);

    fn client(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn pool_of(n: u16, preferred: usize, max_percent: u8) -> Pool {
        let changes = Arc::new(watch::channel(0).0);
        let endpoint = |i: u16| {
            let addr = SocketAddr::from(([10, 1, 0, 1], 1000 + i));
            Arc::new(Endpoint::new(addr, Arc::new(Health::new(Arc::clone(&changes)))))
        };
        Pool::new((0..n).map(endpoint).collect(), preferred, max_percent)
    }

    fn eject(pool: &Pool, index: usize) {
        let policy = EjectionPolicy::from(&OutlierDetection::default());
        (0..3).for_each(|_| _ = pool.endpoints[index].failed(NOW, &policy));
    }

    fn spread(pool: &Pool, policy: &Policy, picks: u32) -> HashMap<usize, u32> {
        let mut seen = HashMap::new();
        for n in 0..picks {
            *seen.entry(pool.pick(policy, client(n), &[], NOW).unwrap()).or_default() += 1;
        }
        seen
    }

    #[test]
    fn every_policy_reaches_every_backend_and_none_else() {
        for policy in [
            Policy::LeastRequest,
            Policy::RoundRobin,
            Policy::Random,
            Policy::SourceIp,
            Policy::Header("x-user".into()),
        ] {
            let pool = pool_of(5, 5, 100);
            let seen = spread(&pool, &policy, 5_000);
            assert_eq!(seen.len(), 5, "{policy}");
            assert!(seen.values().all(|n| (700..1_300).contains(n)), "{policy}: {seen:?}");
        }
    }

    #[test]
    fn the_busier_of_two_is_spared() {
        let pool = pool_of(2, 2, 100);
        let _busy: Vec<_> = (0..10).map(|_| pool.endpoints[0].lease()).collect();
        assert_eq!(spread(&pool, &Policy::LeastRequest, 100), HashMap::from([(1, 100)]));
    }

    #[test]
    fn round_robin_takes_turns() {
        let pool = pool_of(3, 3, 100);
        let picks: Vec<_> =
            (0..6).map(|n| pool.pick(&Policy::RoundRobin, client(n), &[], NOW).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn source_ip_moves_only_the_clients_of_the_backend_that_went() {
        let pool = pool_of(10, 10, 100);
        let before: Vec<_> =
            (0..1_000).map(|n| pool.pick(&Policy::SourceIp, client(n), &[], NOW).unwrap()).collect();
        eject(&pool, 3);
        for (n, old) in (0..).zip(before) {
            let new = pool.pick(&Policy::SourceIp, client(n), &[], NOW).unwrap();
            assert_ne!(new, 3);
            assert!(old == 3 || old == new);
        }
        let mapped: IpAddr = Ipv4Addr::from(0x0a00_0001).to_ipv6_mapped().into();
        let pick = |ip| pool.pick(&Policy::SourceIp, ip, &[], NOW);
        assert_eq!(pick(client(1)), pick(mapped));
    }

    #[test]
    fn preferred_first_then_the_others_then_panic() {
        let pool = pool_of(4, 2, 100);
        assert!(spread(&pool, &Policy::LeastRequest, 200).keys().all(|i| *i < 2));
        assert!(pool.pick(&Policy::LeastRequest, client(1), &[0, 1], NOW).unwrap() >= 2);
        eject(&pool, 0);
        eject(&pool, 1);
        assert!(spread(&pool, &Policy::LeastRequest, 200).keys().all(|i| *i >= 2));
        eject(&pool, 2);
        eject(&pool, 3);
        assert!(spread(&pool, &Policy::LeastRequest, 200).keys().all(|i| *i < 2), "panic mode");
        assert_eq!(pool.pick(&Policy::Random, client(1), &[0, 1, 2, 3], NOW), None);
    }

    #[test]
    fn a_backend_that_is_due_gets_exactly_one_probe() {
        for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::SourceIp] {
            let pool = pool_of(3, 3, 100);
            eject(&pool, 1);
            let later = Tick(10_000_000);
            let picks = (0..300).filter(|n| pool.pick(&policy, client(*n), &[], later) == Some(1)).count();
            assert_eq!(picks, 1, "{policy}");
        }
    }

    #[test]
    fn no_more_than_the_allowed_share_counts_as_ejected() {
        let pool = pool_of(4, 4, 50);
        eject(&pool, 0);
        eject(&pool, 1);
        assert!(spread(&pool, &Policy::Random, 200).keys().all(|i| *i >= 2));
        eject(&pool, 2);
        assert_eq!(spread(&pool, &Policy::Random, 400).len(), 4);
    }

    #[test]
    fn every_backend_is_tried_once() {
        for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random, Policy::SourceIp] {
            let pool = pool_of(7, 3, 100);
            let mut tried = Vec::new();
            while let Some(i) = pool.pick(&policy, client(1), &tried, NOW) {
                assert!(!tried.contains(&i));
                tried.push(i);
            }
            assert_eq!(tried.len(), 7);
        }
    }

    #[test]
    fn leases_count() {
        let pool = pool_of(1, 1, 100);
        let lease = pool.endpoints[0].lease();
        assert_eq!((lease.endpoint().active(), lease.endpoint().health.active()), (1, 1));
        drop(lease);
        assert_eq!((pool.endpoints[0].active(), pool.endpoints[0].health.active()), (0, 0));
        assert!(pool_of(0, 0, 100).pick(&Policy::LeastRequest, client(1), &[], NOW).is_none());
    }
}
