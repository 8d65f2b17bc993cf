//! Dialling with a clock that stands still unless told otherwise, and a network that does as it is told.

use std::future::pending;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use super::*;
use crate::model::{
    Backend, BackendAddr, BackendSet, Frontend, Mode, OutlierDetection, Policy, PortId, Protocol, Reach,
    ServiceId, ServicePort, Snapshot,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// What a backend does when it is dialled.
#[derive(Clone, Copy)]
enum Manner {
    Connects(Duration),
    Refuses(Duration),
    Hangs,
    /// No descriptor left on this machine.
    OutOfDescriptors,
    /// No local port left for this destination.
    OutOfPorts,
}
use Manner::{Connects, Hangs, OutOfDescriptors, OutOfPorts, Refuses};

/// Backend `n` stands at port `n + 1`; every dial is written down with its time.
struct Network {
    manners: Mutex<Vec<Manner>>,
    dials: Mutex<Vec<(usize, u128)>>,
    begun: Instant,
}

impl Dialer for Network {
    type Stream = usize;

    async fn dial(&self, addr: SocketAddr) -> io::Result<usize> {
        let index = usize::from(addr.port()) - 1;
        self.dials.lock().unwrap().push((index, self.begun.elapsed().as_millis()));
        let manner = self.manners.lock().unwrap()[index];
        match manner {
            Connects(after) => {
                tokio::time::sleep(after).await;
                Ok(index)
            }
            Refuses(after) => {
                tokio::time::sleep(after).await;
                Err(ErrorKind::ConnectionRefused.into())
            }
            Hangs => pending().await,
            OutOfDescriptors => Err(io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32)),
            OutOfPorts => Err(io::Error::from_raw_os_error(nix::errno::Errno::EADDRNOTAVAIL as i32)),
        }
    }
}

/// Backends in a service port that takes them in turn, so that the order is known.
struct World {
    network: Network,
    upstreams: Upstreams,
    upstream: Arc<Upstream>,
}

const LIMITS: DialLimits = DialLimits {
    connect_timeout: Duration::from_secs(1),
    budget: Duration::from_secs(5),
    stagger: Duration::from_millis(250),
};
const FRONTEND: Frontend =
    Frontend { ip: IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)), port: 80, protocol: Protocol::Tcp };

impl World {
    fn new(manners: &[Manner]) -> Self {
        Self::with(manners, |_| {})
    }

    fn with(manners: &[Manner], adjust: impl FnOnce(&mut ServicePort)) -> Self {
        let backend = |port| {
            let addr = SocketAddr::from(([10, 0, 0, 1], port));
            Backend {
                addr: BackendAddr(addr),
                endpoint: addr,
                reach: Reach::Pod,
                node: None,
                zone: None,
                pod: None,
                local: false,
                terminating: false,
            }
        };
        let eligible: Vec<_> = (1..).take(manners.len()).map(backend).collect();
        let mut port = ServicePort {
            id: PortId {
                service: ServiceId { namespace: "default".into(), name: "web".into() },
                name: "".into(),
                protocol: Protocol::Tcp,
            },
            number: 80,
            app_protocol: None,
            mode: Mode::Tcp,
            frontends: vec![FRONTEND.addr()],
            policy: Policy::RoundRobin,
            affinity: None,
            local_only: false,
            connect_timeout: None,
            max_connections: None,
            http_pool: None,
            proxy_protocol: false,
            keep_source: false,
            outlier: OutlierDetection::default(),
            v4: BackendSet { preferred: eligible.len(), eligible, excluded: Vec::new() },
            v6: BackendSet::default(),
            external: None,
        };
        adjust(&mut port);
        let port = Arc::new(port);
        let mut snapshot = Snapshot::default();
        snapshot.frontends.insert(FRONTEND, Arc::clone(&port));
        snapshot.ports.insert(port.id.clone(), port);
        let upstreams = Upstreams::new();
        upstreams.apply(Arc::new(snapshot));
        let upstream = upstreams.lookup(&FRONTEND).unwrap();
        let network =
            Network { manners: Mutex::new(manners.to_vec()), dials: Mutex::default(), begun: Instant::now() };
        Self { network, upstreams, upstream }
    }

    async fn dial(&self) -> Result<usize, DialError> {
        self.dial_until(pending()).await
    }

    async fn dial_until(&self, gone: impl Future<Output = ()>) -> Result<usize, DialError> {
        let request = Request {
            upstreams: &self.upstreams,
            upstream: &self.upstream,
            pool: self.upstream.pool(FRONTEND.ip),
            client: FRONTEND.ip.into(),
            picked: None,
            avoid: &[],
            limits: LIMITS,
            guard: &|_| false,
        };
        dial(&self.network, request, gone).await.map(|(index, _)| index)
    }

    fn dials(&self) -> Vec<(usize, u128)> {
        std::mem::take(&mut *self.network.dials.lock().unwrap())
    }

    fn failures(&self) -> Vec<u64> {
        self.upstream.pool(FRONTEND.ip).endpoints().iter().map(|e| e.failures()).collect()
    }

    fn elapsed(&self) -> Duration {
        self.network.begun.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_leads_to_the_next_one_at_once() {
    let world = World::new(&[Refuses(MS(2)), Refuses(MS(3)), Connects(MS(1))]);
    assert_eq!(world.dial().await.unwrap(), 2);
    assert_eq!(world.dials(), [(0, 0), (1, 2), (2, 5)]);
    assert_eq!(world.failures(), [1, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_dial_gets_company_and_the_first_to_connect_wins() {
    let world = World::new(&[Hangs, Connects(MS(10)), Connects(MS(1))]);
    assert_eq!(world.dial().await.unwrap(), 1);
    assert_eq!(world.dials(), [(0, 0), (1, 250)]);
    assert_eq!(world.failures(), [1, 0, 0], "who was overtaken did not answer");

    let world = World::new(&[Connects(MS(300)), Connects(MS(100))]);
    assert_eq!(world.dial().await.unwrap(), 0, "the slow one was still the first");
    assert_eq!(world.failures(), [0, 0], "a late start is no failure");
}

#[tokio::test(start_paused = true)]
async fn each_is_tried_once_and_the_end_comes_in_time() {
    let world = World::new(&[Hangs; 3]);
    let end = world.dial().await.unwrap_err();
    assert!(
        matches!(&end, DialError::Exhausted { tried: 3, last, .. } if last.kind() == ErrorKind::TimedOut),
        "{end}"
    );
    assert_eq!(world.dials(), [(0, 0), (1, 250), (2, 500)]);
    assert_eq!(world.elapsed(), MS(4_000), "the last one had three and a half times its second");
    assert_eq!(world.failures(), [1, 1, 1]);

    let world = World::new(&[Hangs; 100]);
    assert!(matches!(world.dial().await, Err(DialError::Exhausted { .. })));
    assert!((5_000..5_010).contains(&world.elapsed().as_millis()), "{:?}", world.elapsed());
    assert_eq!(world.dials().len(), 20);

    let world = World::new(&[Refuses(MS(1)); 4]);
    assert!(matches!(world.dial().await, Err(DialError::Exhausted { tried: 4, .. })));
    assert!(world.elapsed() < MS(20));
    assert!(matches!(World::new(&[]).dial().await, Err(DialError::NoBackend)));
}

/// The kernel sends a lost first packet again after a second.
#[tokio::test(start_paused = true)]
async fn a_dial_that_is_late_goes_on_where_nobody_else_is_left() {
    let late = Connects(MS(1_002));
    let world = World::new(&[late]);
    assert_eq!(world.dial().await.unwrap(), 0);
    assert_eq!(world.dials(), [(0, 0)]);
    assert_eq!(world.failures(), [1], "being late counts");

    let world = World::new(&[late, Refuses(MS(1))]);
    assert_eq!(world.dial().await.unwrap(), 0);
    assert_eq!(world.failures(), [1, 1]);

    let world = World::new(&[Hangs, late]);
    assert_eq!(world.dial().await.unwrap(), 1);
    assert_eq!(world.failures(), [1, 1], "the first counts once, though it was outrun as well");

    // Whoever sets a timeout means it.
    let world = World::with(&[late], |port| port.connect_timeout = Some(MS(1_000)));
    assert!(world.dial().await.is_err());
    assert_eq!(world.elapsed(), MS(1_000));
}

#[tokio::test(start_paused = true)]
async fn a_destination_rule_sets_the_timeout_of_one_dial() {
    let world = World::with(&[Hangs], |port| port.connect_timeout = Some(MS(3_000)));
    assert!(world.dial().await.is_err());
    assert_eq!(world.elapsed(), MS(3_000));
}

#[tokio::test(start_paused = true)]
async fn faults_of_this_machine_are_no_backends_fault() {
    let world = World::new(&[OutOfDescriptors, Connects(MS(1))]);
    assert!(matches!(world.dial().await, Err(DialError::Local(_))));
    assert_eq!(world.failures(), [0, 0]);

    let world = World::new(&[OutOfPorts, Connects(MS(1))]);
    assert_eq!(world.dial().await.unwrap(), 1, "another destination has ports left");
    assert_eq!(world.failures(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_dials_for_a_client_that_has_gone() {
    let world = World::new(&[Hangs, Hangs, Hangs]);
    let end = world.dial_until(tokio::time::sleep(MS(300))).await;
    assert!(matches!(end, Err(DialError::ClientGone)));
    assert_eq!(world.elapsed(), MS(300));
    let active: u32 = world.upstream.pool(FRONTEND.ip).endpoints().iter().map(|e| e.active()).sum();
    assert_eq!(active, 0);
}

#[tokio::test(start_paused = true)]
async fn ejection_and_return_over_time() {
    let world = World::new(&[Refuses(MS(0)), Connects(MS(0))]);
    let dials_of_first = || world.dials().iter().filter(|(index, _)| *index == 0).count();
    for _ in 0..20 {
        assert_eq!(world.dial().await.unwrap(), 1);
    }
    assert_eq!(dials_of_first(), 3, "then it is left alone");

    // Its second is over: one client tries it, and the next try is two seconds off.
    tokio::time::sleep(MS(1_150)).await;
    for _ in 0..20 {
        world.dial().await.unwrap();
    }
    assert_eq!(dials_of_first(), 1);
    tokio::time::sleep(MS(1_500)).await;
    for _ in 0..20 {
        world.dial().await.unwrap();
    }
    assert_eq!(dials_of_first(), 0);

    // It is back: the next probe brings it into rotation.
    world.network.manners.lock().unwrap()[0] = Connects(MS(0));
    tokio::time::sleep(MS(1_000)).await;
    for _ in 0..20 {
        world.dial().await.unwrap();
    }
    assert!(dials_of_first() >= 9);
    assert_eq!(world.failures(), [4, 0]);
}
