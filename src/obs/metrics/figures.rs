//! What metrics are made of: plain numbers, read at the moment of the scrape.

use crate::obs::api::Status;
use crate::obs::machine::Machine;
use crate::obs::meter::Distribution;
use crate::obs::process::Process;

/// Counts by kind.
pub type Counts = Vec<(&'static str, u64)>;

/// Numbers that are counted for metrics only; everything else stands in the status.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Connections that had nowhere to go, by why.
    pub refused: Counts,
    /// Most connections at once.
    pub max_connections: u64,
    /// Bytes of all service ports, from clients to backends and back.
    pub bytes: [u64; 2],
    /// Dials by their end.
    pub dials: Counts,
    /// Times that connecting a backend took.
    pub dial_times: Distribution,
    /// Dials beyond the first of their connection.
    pub retries: u64,
    /// Times that an address was taken out after failures.
    pub ejections: u64,
    /// Service ports whose clients are refused because every backend refuses.
    pub held: u64,
    /// Pipes of streams: in existence, and of those kept for the next stream.
    pub pipes: [u64; 2],
    /// Most UDP flows at once.
    pub max_udp_flows: u64,
    /// DNS answers by response code.
    pub dns_responses: Counts,
    /// Times that DNS answers took.
    pub dns_times: Distribution,
    /// News from the source by what it was.
    pub updates: Counts,
    /// Times that it took to put news in force.
    pub build_times: Distribution,
    /// Times that it took to bring the rules to what was wanted.
    pub rules_times: Distribution,
    /// The agent's probes of its own acceptor, by what became of them.
    pub probes: Counts,
    /// Times until the acceptor answered a probe.
    pub probe_times: Distribution,
    /// Times that the keeper has started the agent again, by why.
    pub restarts: Counts,
    /// One for each runtime.
    pub runtimes: Vec<Runtime>,
    /// Requests at the admin endpoint, by path.
    pub admin_requests: Counts,
}

/// One of the program's runtimes.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    /// `data-N`, `control` or `admin`.
    pub name: String,
    /// Tasks that live.
    pub tasks: u64,
    /// Tasks that wait for their turn, but for those in the threads' own queues.
    pub queue: u64,
    /// Seconds that its threads have worked.
    pub busy_seconds: f64,
    /// Times that its threads went to sleep for want of work.
    pub parks: u64,
}

impl Runtime {
    /// What tokio knows of the runtime behind `handle`.
    pub fn of(name: &str, handle: &tokio::runtime::Handle) -> Self {
        let metrics = handle.metrics();
        let workers = 0..metrics.num_workers();
        Self {
            name: name.to_owned(),
            tasks: metrics.num_alive_tasks() as u64,
            queue: metrics.global_queue_depth() as u64,
            busy_seconds: workers.clone().map(|n| metrics.worker_total_busy_duration(n).as_secs_f64()).sum(),
            parks: workers.map(|n| metrics.worker_park_count(n)).sum(),
        }
    }
}

/// Everything that one scrape is made of.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) status: Status,
    pub(super) figures: Figures,
    pub(super) process: Process,
    pub(super) machine: Machine,
    /// How many services and backends of `status` get series of their own, from the front.
    pub(super) listed: Listed,
}

/// How many get series of their own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listed {
    pub(super) services: usize,
    pub(super) backends: usize,
    pub(super) all_services: usize,
    pub(super) all_backends: usize,
}

impl Scrape {
    /// Brings the service ports that get series of their own to the front: those that have had clients first, then in
    /// the order of their names, so that which ones they are hardly ever changes.
    pub(super) fn new(mut status: Status, figures: Figures, services: usize, backends: usize) -> Self {
        let all_services = status.services.len();
        let all_backends = status.services.iter().map(|s| s.backends.len()).sum();
        if all_services > services {
            status.services.sort_by_key(|service| service.connections_total == 0);
        }
        let mut listed = Listed { all_services, all_backends, ..Listed::default() };
        for service in status.services.iter().take(services) {
            listed.services += 1;
            listed.backends = (listed.backends + service.backends.len()).min(backends);
        }
        Self { status, figures, process: Process::read(), machine: Machine::read(), listed }
    }
}
