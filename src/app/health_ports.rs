//! The ports on which load balancers ask for a Service's health (`healthCheckNodePort`): one small HTTP server for
//! each at every node port address, opened and closed as the snapshot changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::model::Snapshot;
use crate::net::shelf::{Shelf, Use};
use crate::obs::health_port::{self, ServiceHealth, ServiceName};

use super::control::Shared;
use super::data::Pulse;
use super::listeners::Purpose;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// All health check ports that are open.
pub(super) struct HealthPorts {
    shared: Arc<Shared>,
    pulse: Pulse,
    shelf: Arc<Shelf>,
    open: BTreeMap<SocketAddr, DropGuard>,
    /// Those that could not be opened, with the reason; none where the agent before has them still.
    failed: BTreeMap<SocketAddr, String>,
}

impl HealthPorts {
    pub(super) fn new(shared: Arc<Shared>, pulse: Pulse, shelf: Arc<Shelf>) -> Self {
        Self { shared, pulse, shelf, open: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Opens and closes what `snapshot` changes. What a port answers is read from the snapshot in force.
    pub(super) fn apply(&mut self, snapshot: &Snapshot) {
        let addresses = &snapshot.here.node_port_addresses;
        let at = |port: &u16| {
            let port = *port;
            addresses.iter().map(move |ip| SocketAddr::new(*ip, port))
        };
        let wanted: BTreeSet<SocketAddr> = snapshot.health_checks.keys().flat_map(at).collect();
        for (addr, _stop) in self.open.extract_if(.., |addr, _| !wanted.contains(addr)) {
            self.shared.listeners.drop_own(Purpose::HealthCheck, addr);
            self.shelf.close(Use::Health, addr);
        }
        self.failed.retain(|addr, _| wanted.contains(addr));
        for addr in wanted {
            // The agent before has it still: it is had with the rest, see `retry`.
            if self.shared.listeners.is_waiting() {
                self.failed.insert(addr, String::new());
            } else if !self.open.contains_key(&addr) && !self.failed.contains_key(&addr) {
                self.open(addr);
            }
        }
        self.report();
    }

    /// Tries once more to open what could not be opened.
    pub(super) fn retry(&mut self) {
        if self.shared.listeners.is_waiting() {
            return;
        }
        let failed: Vec<SocketAddr> = self.failed.keys().copied().collect();
        if !failed.is_empty() {
            for addr in failed {
                self.open(addr);
            }
            self.report();
        }
    }

    fn open(&mut self, addr: SocketAddr) {
        let inherited = self.shared.listeners.take(Purpose::HealthCheck, addr);
        let bind = || inherited.map_or_else(|| listen(addr), |socket| Ok(socket.into()));
        let listener = match self.shelf.open(Use::Health, addr, bind).and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                let text =
                    format!("healthCheckNodePort {addr} cannot be listened on: {error}; it is tried again");
                if self.failed.get(&addr) != Some(&text) {
                    warn!("{text}");
                }
                self.failed.insert(addr, text);
                return;
            }
        };
        info!(%addr, "answering health checks");
        self.shared.listeners.keep(Purpose::HealthCheck, addr, &listener);
        self.failed.remove(&addr);
        let (shared, pulse) = (Arc::clone(&self.shared), self.pulse.clone());
        let handler = move || {
            let snapshot = shared.snapshot.load();
            let check = snapshot.health_checks.get(&addr.port())?;
            Some(ServiceHealth {
                service: ServiceName {
                    namespace: check.service.namespace.to_string(),
                    name: check.service.name.to_string(),
                },
                local_endpoints: check.local_endpoints,
                service_proxy_healthy: pulse.age().1,
            })
        };
        let stop = CancellationToken::new();
        tokio::spawn(health_port::serve(listener, Arc::new(handler), stop.clone()));
        self.open.insert(addr, stop.drop_guard());
    }

    /// For `status`.
    fn report(&self) {
        let faults: Vec<String> = self.failed.values().filter(|text| !text.is_empty()).cloned().collect();
        if **self.shared.health_faults.load() != faults {
            self.shared.health_faults.store(Arc::new(faults));
        }
    }
}

fn listen(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
