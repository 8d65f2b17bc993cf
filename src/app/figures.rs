//! The numbers that only metrics show.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::keeper::Restarts;
use crate::net::sock;
use crate::obs::meter::Histogram;
use crate::obs::metrics::{Figures, Runtime};
use crate::proxy::relay::PipePool;
use crate::proxy::udp;

use super::report::Reporter;

/// What is asked for numbers, beside what the status is made of.
pub(super) struct Meters {
    pub(super) max_connections: u64,
    pub(super) pipes: PipePool,
    pub(super) rules_times: Arc<Histogram>,
    /// Each with its name.
    pub(super) runtimes: Vec<(String, Handle)>,
    /// How often the keeper has started the agent again.
    pub(super) restarts: Restarts,
}

impl Reporter {
    pub(super) fn figures(&self) -> Figures {
        let (carried, dials, pipes) =
            (self.upstreams.carried(), self.upstreams.tallies(), self.meters.pipes.stats());
        let names = self.shared.resolver.get().map(|resolver| resolver.counters());
        Figures {
            refused: self.counters.refusals.read(),
            max_connections: self.meters.max_connections,
            bytes: [carried.bytes_in, carried.bytes_out],
            dials: dials.ends(),
            dial_times: dials.connect().read(),
            retries: dials.retries(),
            ejections: dials.ejections(),
            held: self.upstreams.held().len() as u64,
            pipes: [pipes.live as u64, pipes.kept as u64],
            max_udp_flows: sock::nofile().map(udp::max_sessions).unwrap_or_default(),
            dns_responses: names.map(|names| names.responses.read()).unwrap_or_default(),
            dns_times: names.map(|names| names.took.read()).unwrap_or_default(),
            updates: self.shared.updates.read(),
            build_times: self.shared.build_times.read(),
            rules_times: self.meters.rules_times.read(),
            probes: self.prober.seen.results.read(),
            probe_times: self.prober.seen.times.read(),
            runtimes: self.meters.runtimes.iter().map(|(name, handle)| Runtime::of(name, handle)).collect(),
            restarts: vec![("died", self.meters.restarts.died), ("stuck", self.meters.restarts.stuck)],
            admin_requests: Vec::new(),
        }
    }
}
