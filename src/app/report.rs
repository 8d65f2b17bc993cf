//! What the admin endpoint says: put together from the snapshot, the counters and the tasks' own reports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::balance::{BackendState, BackendView, Held, HttpNumbers, LATENCY_BOUNDS_US, PortView, Upstreams};
use crate::config::Settings;
use crate::model::explain::{self, Known, Live};
use crate::model::{Backend, Frontend, PortId};
use crate::obs::admin::AdminHandlers;
use crate::obs::api::{
    BackendReport, Condition, DnsReport, Finding, HardeningReport, HoldReport, HttpReport, PortReport,
    ProxyReport, Resolution, RulesReport, ServiceReport, SourceReport, Status, UpstreamReport, Verdict,
};
use crate::proxy::Counters;
use crate::proxy::hold::HoldCounters;
use crate::proxy::udp::UdpCounters;
use crate::source::SourceStatus;

use super::check;
use super::control::Shared;
use super::figures::Meters;
use super::health::Prober;
use super::neighbours::Warnings;

/// Everything that can be reported.
pub(super) struct Reporter {
    pub(super) settings: Arc<Settings>,
    pub(super) shared: Arc<Shared>,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) counters: Arc<Counters>,
    /// What holding clients' first packets came to; `None` where they are not held.
    pub(super) holding: Option<Arc<HoldCounters>>,
    /// Why first packets are not held though they should be.
    pub(super) hold_fault: Option<String>,
    pub(super) hardening: Option<HardeningReport>,
    pub(super) datagrams: Arc<UdpCounters>,
    pub(super) source: watch::Receiver<SourceStatus>,
    pub(super) rules: watch::Receiver<RulesReport>,
    pub(super) prober: Arc<Prober>,
    pub(super) meters: Meters,
    /// Cancelled once no new connections are taken.
    pub(super) stopping: CancellationToken,
    pub(super) neighbours: Warnings,
}

impl Reporter {
    /// The closures that the admin endpoint calls.
    pub(super) fn handlers(self: Arc<Self>) -> AdminHandlers {
        let [status, figures, checked, resolve, health, live] = [(); 6].map(|()| Arc::clone(&self));
        AdminHandlers {
            status: Box::new(move || status.status()),
            figures: Box::new(move || figures.figures()),
            check: Box::new(move || checked.look_over()),
            resolve: Box::new(move |target| resolve.resolve(target)),
            health: Box::new(move || health.conditions()),
            live: Box::new(move || live.live()),
        }
    }

    fn status(&self) -> Status {
        let snapshot = self.shared.snapshot.load();
        let conditions = self.conditions();
        let source = self.source.borrow();
        let rules = self.rules.borrow().clone();
        let mut warnings = self.neighbours.lines();
        warnings.extend(snapshot.warnings.iter().cloned());
        warnings.extend(self.shared.unopened.load().iter().cloned());
        warnings.extend(self.shared.dns_faults.load().iter().cloned());
        warnings.extend(rules.warnings.iter().cloned());
        warnings.extend(self.hold_fault.iter().cloned());
        warnings.extend(self.hardening.iter().flat_map(|report| report.notes.iter().cloned()));
        warnings.extend(self.shared.health_faults.load().iter().cloned());
        if rules.installed {
            warnings.extend(self.prober.warnings());
        }
        warnings.extend(source.unreadable.first.iter().cloned());
        let more = source.unreadable.count.saturating_sub(source.unreadable.first.len());
        if more > 0 {
            warnings.push(format!("and {more} more objects that cannot be read"));
        }
        let views = self.upstreams.views();
        warnings.extend(not_http(&views));
        Status {
            version: crate::obs::VERSION.to_owned(),
            node: self.settings.node_name.clone(),
            ready: conditions.iter().all(|condition| condition.ok),
            conditions,
            source: SourceReport {
                kind: source.kind.to_owned(),
                state: source.state.as_str().to_owned(),
                age_seconds: source.fresh_at.elapsed().as_secs_f64(),
                message: source.message.clone(),
                unreadable: source.unreadable.count,
            },
            proxy: ProxyReport {
                port: self.shared.proxy_port,
                active_connections: self.counters.active.load(Relaxed),
                accepted_total: self.counters.accepted.load(Relaxed),
                refused_total: self.counters.refused.load(Relaxed),
                accept_pauses_total: self.counters.accept_pauses.load(Relaxed),
                hold: self.holding.as_deref().map(|seen| HoldReport {
                    held_total: seen.held.load(Relaxed),
                    refused_total: seen.refused.load(Relaxed),
                    unpaired_total: seen.unpaired.load(Relaxed),
                    passed_total: seen.passed.load(Relaxed),
                }),
                udp_flows: self.datagrams.sessions.load(Relaxed),
                udp_dropped_total: self.datagrams.dropped.load(Relaxed),
                udp_unreachable_total: self.datagrams.unreachable.load(Relaxed),
            },
            dns: self.dns(),
            rules,
            hardening: self.hardening.clone(),
            service_cidrs: self.shared.ranges.load().iter().map(ToString::to_string).collect(),
            warnings,
            services: views.iter().map(service).collect(),
        }
    }

    fn dns(&self) -> Option<DnsReport> {
        let resolver = self.shared.resolver.get()?;
        let (seen, foreign) = (resolver.counters(), &resolver.forwarder().counters);
        let own = self.shared.dns_listen.load();
        let cluster = self.shared.dns.load();
        let mut addresses: Vec<String> = own.iter().map(ToString::to_string).collect();
        // Each stands there for UDP and for TCP.
        let cluster: std::collections::BTreeSet<_> = cluster.iter().map(Frontend::addr).collect();
        addresses.extend(cluster.iter().map(ToString::to_string));
        let upstreams = resolver.forwarder().upstreams().into_iter();
        Some(DnsReport {
            addresses,
            upstreams: upstreams
                .map(|(address, up)| UpstreamReport { address: address.to_string(), up })
                .collect(),
            cluster_queries_total: seen.cluster.load(Relaxed),
            foreign_queries_total: seen.foreign.load(Relaxed),
            refused_total: seen.refused.load(Relaxed),
            upstream_questions_total: foreign.asked.load(Relaxed),
            upstream_failures_total: foreign.failed.load(Relaxed),
            cached_answers_total: foreign.cached.load(Relaxed),
            stale_answers_total: foreign.stale.load(Relaxed),
        })
    }

    fn resolve(&self, target: &str) -> Result<Resolution, String> {
        let snapshot = self.shared.snapshot.load();
        let live = |port: &PortId, backend: &Backend| {
            let view = self.upstreams.view(port)?;
            view.backends.iter().find(|known| known.backend.addr == backend.addr).map(live)
        };
        let known = Known {
            snapshot: &snapshot,
            ranges: &self.shared.ranges.load(),
            names: &self.shared.dns.load(),
            by_name: &super::gate::frontends(&self.settings, &snapshot, &self.shared.dns_listen.load()),
            domain: &self.settings.dns.domain,
            live: &live,
        };
        let mut resolution = explain::resolve(known, target).map_err(|error| error.to_string())?;
        self.add_what_is_so_now(&mut resolution);
        Ok(resolution)
    }

    /// What the snapshot alone does not tell.
    fn add_what_is_so_now(&self, resolution: &mut Resolution) {
        let Some(frontend) = resolution.frontend.as_ref().and_then(|at| at.parse::<SocketAddr>().ok()) else {
            return;
        };
        let held = self.upstreams.held();
        if resolution.verdict == Verdict::Proxied
            && held.iter().flat_map(Held::frontends).any(|at| at.addr() == frontend)
            && !self.shared.dns.load().iter().any(|at| at.addr() == frontend)
        {
            resolution.verdict = Verdict::Refused;
            "every backend refused, so clients are refused before accept until one of them accepts again"
                .clone_into(&mut resolution.why);
        }
        let rules = self.rules.borrow();
        if resolution.verdict != Verdict::NotIntercepted && !rules.installed {
            let why = if rules.last_error.is_empty() { "not yet" } else { &rules.last_error };
            resolution.notes.insert(0, format!("the rules are not in, so nothing is captured now: {why}"));
        }
        let unserved = resolution.verdict == Verdict::Refused;
        if unserved && !rules.refuse_before_accept && rules.installed {
            resolution.notes.push("without ip sets the refusal is a reset after the connect".to_owned());
        }
        let unopened = self.shared.unopened.load();
        resolution.notes.extend(unopened.iter().filter(|line| line.contains(&frontend.to_string())).cloned());
    }

    /// Readiness: a snapshot is in force, the rules are in, and the listeners are up.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        let condition = |name: &str, ok, detail: String| Condition { name: name.to_owned(), ok, detail };
        let loaded = self.shared.loaded.load(Acquire);
        let ports = self.shared.snapshot.load().ports.len();
        let snapshot =
            if loaded { format!("{ports} service ports") } else { "waiting for the source".to_owned() };
        let rules = self.rules.borrow();
        let nothing_to_capture = loaded && self.shared.ranges.load().is_empty();
        let (rules_ok, rules_detail) = match (rules.installed, nothing_to_capture) {
            (true, _) => (true, format!("iptables-{}", rules.backend)),
            (false, true) => (true, "no ClusterIP to capture".to_owned()),
            (false, false) if rules.last_error.is_empty() => (false, "not installed yet".to_owned()),
            (false, false) => (false, rules.last_error.clone()),
        };
        vec![
            condition("snapshot", loaded, snapshot),
            condition("rules", rules_ok, rules_detail),
            if self.stopping.is_cancelled() {
                condition("listeners", false, "stopping: open connections may end".to_owned())
            } else {
                condition("listeners", true, format!("port {}", self.shared.proxy_port))
            },
        ]
    }

    /// What must make progress: a restart helps where it does not.
    pub(super) fn live(&self) -> Vec<Condition> {
        self.prober.live()
    }

    /// What `check` finds on this machine.
    fn look_over(&self) -> Vec<Finding> {
        match check::check(&self.settings) {
            Ok(checkup) => checkup.findings,
            Err(error) => {
                tracing::debug!("this machine could not be looked over: {error:#}");
                Vec::new()
            }
        }
    }
}

/// What the data plane knows of a backend.
fn live(view: &BackendView) -> Live {
    Live {
        ejected: (view.state == BackendState::Ejected).then(|| {
            let left = view.out_for.unwrap_or_default().as_secs_f64().ceil();
            format!("its last dials failed; it is left out for {left} s more, then tried with one client")
        }),
        active_connections: u64::from(view.active),
        connections_total: view.connections,
        failures_total: view.failures,
        requests_total: view.requests,
    }
}

fn http(numbers: &HttpNumbers) -> HttpReport {
    HttpReport {
        requests_by_class: numbers.classes,
        unanswered_total: numbers.unanswered,
        retries_total: numbers.retries,
        not_http_total: numbers.not_http,
        limited_total: numbers.limited,
        latency_bounds: LATENCY_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).collect(),
        latency_counts: numbers.latency.to_vec(),
        latency_sum: numbers.latency_us as f64 / 1e6,
    }
}

/// What is to be said about HTTP ports on which something else is spoken.
fn not_http(views: &[PortView]) -> impl Iterator<Item = String> + '_ {
    views.iter().filter_map(|view| {
        let count = view.counters.http.get()?.numbers().not_http;
        (count > 0).then(|| {
            format!(
                "{}: {count} connections to this HTTP port were none of HTTP, or waited for the server to begin; they \
                 were relayed as TCP",
                view.port.id
            )
        })
    })
}

fn service(view: &PortView) -> ServiceReport {
    let port = &view.port;
    let known = |_: &PortId, backend: &Backend| {
        view.backends.iter().find(|known| known.backend.addr == backend.addr).map(live)
    };
    let mut backends: Vec<BackendReport> = [&port.v4, &port.v6]
        .into_iter()
        .flat_map(|set| explain::backend_reports(port, set, &known))
        .collect();
    let draining = view.backends.iter().filter(|known| known.state == BackendState::Draining);
    backends.extend(draining.map(|known| {
        let backend = &known.backend;
        BackendReport {
            address: backend.addr.0.to_string(),
            reach: backend.reach.as_str().to_owned(),
            node: backend.node.as_deref().map(str::to_owned),
            zone: backend.zone.as_deref().map(str::to_owned),
            pod: backend.pod.as_deref().map(str::to_owned),
            state: BackendState::Draining.as_str().to_owned(),
            reason: "gone from the service; open connections go on".to_owned(),
            active_connections: u64::from(known.active),
            connections_total: known.connections,
            failures_total: known.failures,
            requests_total: known.requests,
            eligible: Some(false),
        }
    }));
    ServiceReport {
        namespace: port.id.service.namespace.to_string(),
        name: port.id.service.name.to_string(),
        port: PortReport {
            name: port.id.name.to_string(),
            protocol: port.id.protocol.to_string(),
            port: port.number,
            app_protocol: port.app_protocol.as_deref().map(str::to_owned),
        },
        frontends: port.all_frontends().map(|at| at.to_string()).collect(),
        mode: port.mode.as_str().to_owned(),
        policy: port.policy.to_string(),
        active_connections: view.counters.active.load(Relaxed),
        connections_total: view.counters.total.load(Relaxed),
        bytes_in_total: view.counters.bytes_in.load(Relaxed),
        bytes_out_total: view.counters.bytes_out.load(Relaxed),
        http: view.counters.http.get().map(|counters| http(&counters.numbers())),
        refused_total: view.counters.refused.load(Relaxed),
        out_of_ports_total: view.counters.out_of_ports.load(Relaxed),
        backends,
    }
}
