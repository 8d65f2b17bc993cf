//! Whether the agent does its work: the probe of the own acceptor by the way that clients take, and what `/healthz`
//! makes of it.
//!
//! A restart must help against what is reported there as stuck. It does not help where the packet filter leads
//! nowhere, where there is no room for connections, or where the API is out of reach; these are told elsewhere.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::balance::{Held, Upstreams};
use crate::model::{Frontend, Protocol};
use crate::net::listening;
use crate::obs::api::Condition;
use crate::obs::meter::{Histogram, Tally};
use crate::proxy::{Counters, Knock, Reply};

use super::control::Shared;
use super::data::Pulse;

/// Time between two probes.
const EVERY: Duration = Duration::from_secs(5);
/// How long the acceptor may take to answer one. A busy board with 10,000 connections takes some hundred milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Probes in a row after which silence counts as stuck, and a way that leads nowhere is worth a warning.
const IN_A_ROW: u32 = 3;
/// How old the control thread's last sign may be: it shows one every ten seconds at least.
const CONTROL_STUCK: Duration = Duration::from_mins(1);
/// The words for what became of a probe.
const RESULTS: [&str; 4] = ["answered", "not-led", "ended", "silent"];

/// Probes the acceptor, and knows what came of it.
pub(super) struct Prober {
    shared: Arc<Shared>,
    upstreams: Arc<Upstreams>,
    pulse: Pulse,
    knock: Arc<Knock>,
    room: Room,
    stopping: CancellationToken,
    pub(super) seen: Seen,
}

/// How much room the acceptor has for connections.
pub(super) struct Room {
    pub(super) counters: Arc<Counters>,
    pub(super) most: u64,
}

impl Room {
    /// Whether accepting waits, or may have waited a moment ago, for connections to end. It goes on when a sixteenth of
    /// them is free.
    fn is_out(&self) -> bool {
        self.counters.active.load(Relaxed) + self.most / 16 >= self.most
    }
}

/// What the probes have come to.
pub(super) struct Seen {
    pub(super) results: Tally<4>,
    pub(super) times: Histogram,
    last: ArcSwap<Last>,
}

/// The last probe.
#[derive(Clone, Debug, Default)]
struct Last {
    at: Option<Instant>,
    frontend: Option<SocketAddr>,
    /// Probes in a row that were connected to this agent and not answered.
    silent: u32,
    /// Probes in a row that led to nobody or to somebody else.
    astray: u32,
}

impl Last {
    /// What `/healthz` says of it. `is_out`: there is no room for connections; `is_due`: there is something to probe.
    fn told(&self, is_out: bool, is_due: impl FnOnce() -> bool) -> String {
        match (self.at, self.frontend) {
            _ if is_out => "not probed: as many connections as may be are open".to_owned(),
            _ if self.silent > 0 => format!("{} probes in a row were not answered", self.silent),
            (Some(at), Some(frontend)) if self.astray == 0 => {
                format!("took a connection to {frontend} {:.0} s ago", at.elapsed().as_secs_f64())
            }
            (Some(_), Some(frontend)) => format!("not probed: connections to {frontend} do not lead here"),
            // Just after the start, or after a time without room or services.
            _ if is_due() => format!("not probed yet: that comes within {} s", EVERY.as_secs()),
            _ => "not probed: no TCP service port is served".to_owned(),
        }
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self { results: Tally::new(&RESULTS), times: Histogram::default(), last: ArcSwap::default() }
    }
}

impl Prober {
    /// `stopping` is cancelled once no new connections are taken.
    pub(super) fn new(
        shared: &Arc<Shared>,
        upstreams: &Arc<Upstreams>,
        pulse: Pulse,
        knock: Arc<Knock>,
        room: Room,
        stopping: CancellationToken,
    ) -> Self {
        let (shared, upstreams) = (Arc::clone(shared), Arc::clone(upstreams));
        Self { shared, upstreams, pulse, knock, room, stopping, seen: Seen::default() }
    }

    /// Probes until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(EVERY).await;
                self.probe().await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// A frontend that is answered by the data plane; none while there is none, or while it is not to be asked.
    fn frontend(&self) -> Option<SocketAddr> {
        if self.stopping.is_cancelled() || !self.shared.loaded.load(Acquire) {
            return None;
        }
        let (snapshot, names) = (self.shared.snapshot.load(), self.shared.dns.load());
        // Their clients are refused while every backend refuses.
        let held: BTreeSet<Frontend> = self.upstreams.held().iter().flat_map(Held::frontends).collect();
        let frontends = snapshot.frontends.iter().filter(|(at, port)| {
            at.protocol == Protocol::Tcp
                && port.is_served(at.addr())
                && !names.contains(at)
                && !held.contains(at)
        });
        let led = |at: &SocketAddr| self.shared.is_captured(at.ip());
        let mut frontends = frontends.map(|(at, _)| at.addr());
        frontends.find(led)
    }

    async fn probe(&self) {
        let Some(frontend) = self.frontend() else {
            self.seen.last.store(Arc::default());
            return;
        };
        let started = Instant::now();
        let reply = match self.knock.probe(frontend, PATIENCE).await {
            Ok(reply) => reply,
            // Out of descriptors or ports: that says nothing about the acceptor.
            Err(error) => return debug!(%error, "the acceptor could not be probed"),
        };
        let before = self.seen.last.load();
        let mut now = Last { at: Some(Instant::now()), frontend: Some(frontend), ..Last::default() };
        match reply {
            Reply::Answered => {
                self.seen.results.add(0);
                self.seen.times.observe(started.elapsed());
            }
            Reply::NotLed(_) => {
                self.seen.results.add(1);
                now.astray = before.astray + 1;
            }
            Reply::Ended => self.seen.results.add(2),
            Reply::Silent => {
                self.seen.results.add(3);
                // In nobody's queue here: somebody else has it.
                if self.room.is_out() {
                    // It takes nobody until somebody leaves, as it was told to.
                    now = Last { frontend: None, ..now };
                } else if listening::waiting(self.shared.proxy_port) > 0 {
                    now.silent = before.silent + 1;
                } else {
                    now.astray = before.astray + 1;
                }
            }
        }
        if now.silent == IN_A_ROW {
            warn!(%frontend, "the acceptor does not take connections any more");
        }
        self.seen.last.store(Arc::new(now));
    }

    /// What must make progress.
    pub(super) fn live(&self) -> Vec<Condition> {
        let condition = |name: &str, ok, detail: String| Condition { name: name.to_owned(), ok, detail };
        let (age, moves) = self.pulse.age();
        let control = self.shared.control.age();
        let last = self.seen.last.load();
        let acceptor = last.told(self.room.is_out(), || self.frontend().is_some());
        vec![
            condition("data-plane", moves, format!("last moved {:.1} s ago", age.as_secs_f64())),
            condition("acceptor", last.silent < IN_A_ROW, acceptor),
            condition(
                "control",
                control < CONTROL_STUCK,
                format!("last moved {:.1} s ago", control.as_secs_f64()),
            ),
        ]
    }

    /// What people should know, each a line.
    pub(super) fn warnings(&self) -> Option<String> {
        let last = self.seen.last.load();
        let frontend = last.frontend.filter(|_| last.astray >= IN_A_ROW)?;
        Some(format!(
            "connections of this host's processes to {frontend} do not lead to this agent; another program's rules may \
             come first: `edgesplice check` looks for it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_probe_nothing_is_said_of_what_is_served() {
        let (none, at) = (Last::default(), SocketAddr::from(([10, 96, 0, 1], 80)));
        assert_eq!(none.told(false, || true), "not probed yet: that comes within 5 s");
        assert_eq!(none.told(false, || false), "not probed: no TCP service port is served");
        // There was no room at the last probe, and there is now.
        let now = Last { at: Some(Instant::now()), ..Last::default() };
        assert!(now.told(true, || true).contains("as many connections"));
        assert!(now.told(false, || true).contains("not probed yet"));
        let took = Last { frontend: Some(at), ..now };
        assert_eq!(took.told(false, || true), "took a connection to 10.96.0.1:80 0 s ago");
    }
}
