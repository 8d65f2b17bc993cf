//! A proxy in this process whose idea of "where the client wanted to go" the test sets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgesplice::balance::{BackendState, PortView, Upstream, Upstreams};
use edgesplice::config::{HttpSettings, ProxySettings};
use edgesplice::life::Drain;
use edgesplice::model::{
    Backend, BackendAddr, BackendSet, Frontend, Mode, OutlierDetection, Policy, PortId, Protocol, Reach,
    ServiceId, ServicePort, Snapshot,
};
use edgesplice::proxy::relay::PipePool;
use edgesplice::proxy::{Counters, Proxy};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The frontend of the service that most tests use.
pub(crate) const FRONTEND: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);

/// A running proxy.
pub(crate) struct Lab {
    pub(crate) port: u16,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pipes: PipePool,
    pub(crate) drain: Drain,
    /// What the proxy takes for the original destination of the next connections; `None`: there is none.
    pub(crate) destination: Arc<Mutex<Option<SocketAddr>>>,
}

/// Settings with the defaults of the contract.
pub(crate) fn settings() -> ProxySettings {
    ProxySettings {
        port: 0,
        workers: 0,
        drain_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(1),
        dial_budget: Duration::from_secs(5),
        dial_stagger: Duration::from_millis(250),
        max_connections: 0,
        max_per_source: 0,
        keep_rules: false,
        take_over: false,
        http: HttpSettings::default(),
    }
}

/// A service port at `frontend` with `backends`.
pub(crate) fn service(name: &str, frontend: SocketAddr, backends: &[SocketAddr]) -> ServicePort {
    let eligible: Vec<_> = backends.iter().map(|addr| backend(*addr)).collect();
    let set = BackendSet { preferred: eligible.len(), eligible, excluded: Vec::new() };
    let service = ServiceId { namespace: "default".into(), name: name.into() };
    ServicePort {
        id: PortId { service, name: "".into(), protocol: Protocol::Tcp },
        number: frontend.port(),
        app_protocol: None,
        mode: Mode::Tcp,
        frontends: vec![frontend],
        policy: Policy::default(),
        affinity: None,
        local_only: false,
        connect_timeout: None,
        max_connections: None,
        http_pool: None,
        proxy_protocol: false,
        keep_source: false,
        outlier: OutlierDetection::default(),
        v4: set,
        v6: BackendSet::default(),
        external: None,
    }
}

fn backend(addr: SocketAddr) -> Backend {
    Backend {
        addr: BackendAddr(addr),
        endpoint: addr,
        reach: Reach::Pod,
        node: None,
        zone: None,
        pod: None,
        local: true,
        terminating: false,
    }
}

/// A snapshot of `ports`.
pub(crate) fn snapshot(ports: impl IntoIterator<Item = ServicePort>) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    for port in ports {
        let port = Arc::new(port);
        for addr in &port.frontends {
            let frontend = Frontend { ip: addr.ip(), port: addr.port(), protocol: Protocol::Tcp };
            snapshot.frontends.insert(frontend, Arc::clone(&port));
        }
        snapshot.ports.insert(port.id.clone(), port);
    }
    Arc::new(snapshot)
}

impl Lab {
    /// A proxy with one service at [`FRONTEND`].
    pub(crate) fn with_backends(backends: &[SocketAddr]) -> Self {
        Self::start(&settings(), service("web", FRONTEND, backends))
    }

    /// A proxy with one service.
    pub(crate) fn start(settings: &ProxySettings, service: ServicePort) -> Self {
        Self::start_with(settings, service, |proxy| proxy)
    }

    /// The same, with `adjust` called on the bound proxy.
    pub(crate) fn start_with(
        settings: &ProxySettings,
        service: ServicePort,
        adjust: impl FnOnce(Proxy) -> Proxy,
    ) -> Self {
        let destination = Arc::new(Mutex::new(Some(service.frontends[0])));
        let seen = Arc::clone(&destination);
        let proxy = Proxy::bind(settings, 0).unwrap().with_destination(Arc::new(move |_, _| {
            let dst = *seen.lock().unwrap();
            dst.ok_or_else(|| io::Error::from_raw_os_error(nix::errno::Errno::ENOENT as i32))
        }));
        let proxy = adjust(proxy);
        let (port, counters, pipes) = (proxy.port(), proxy.counters(), proxy.pipes());
        let upstreams = Arc::new(Upstreams::new());
        upstreams.apply(snapshot([service]));
        let drain = Drain::new();
        drain.spawn("proxy", proxy.serve(Arc::clone(&upstreams), drain.clone()));
        Self { port, upstreams, counters, pipes, drain, destination }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr()).await.unwrap()
    }

    pub(crate) fn upstream(&self) -> Arc<Upstream> {
        let frontend = Frontend { ip: FRONTEND.ip(), port: FRONTEND.port(), protocol: Protocol::Tcp };
        self.upstreams.lookup(&frontend).unwrap()
    }

    pub(crate) fn view(&self) -> PortView {
        self.upstreams.views().remove(0)
    }

    pub(crate) fn states(&self) -> Vec<BackendState> {
        self.view().backends.iter().map(|b| b.state).collect()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.counters.refused.load(Relaxed)
    }

    /// Bytes delivered to backends and to clients.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let counters = &self.upstream().counters;
        (counters.bytes_in.load(Relaxed), counters.bytes_out.load(Relaxed))
    }

    pub(crate) async fn until_idle(&self) {
        eventually("no connection is open", || self.counters.active.load(Relaxed) == 0).await;
    }
}

/// Waits up to ten seconds for `what` to hold.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within ten seconds: {what}");
}

/// A backend that runs `serve` for each connection.
pub(crate) async fn backend_of<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                // A test may leave this process without descriptors for a while.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    addr
}

/// A backend that sends back what it gets, to the end.
pub(crate) async fn echo() -> SocketAddr {
    backend_of(|mut stream| async move {
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut w).await;
    })
    .await
}

/// A backend for exactly one connection, which the test plays itself.
pub(crate) async fn manual() -> (SocketAddr, JoinHandle<TcpStream>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, tokio::spawn(async move { listener.accept().await.unwrap().0 }))
}

/// An address that refuses.
pub(crate) async fn refusing() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

/// An address that does not answer: a listener whose queue is full drops what comes. Keep what is returned.
pub(crate) async fn hanging() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut kept = vec![listener];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&addr);
        kept.push(filler);
    }
    let addr = addr.as_socket().unwrap();
    let probe = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(addr)).await;
    assert!(probe.is_err(), "a full queue must not answer, got {probe:?}");
    (addr, kept)
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Makes short writes and reads the rule.
pub(crate) fn shrink_buffers(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(4 * 1024).unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}
