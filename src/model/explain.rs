//! Explains one destination: which service port it is, which backends may be picked, and what a client gets.

mod external;
mod notes;
mod target;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::obs::api::{BackendReport, Resolution, ResolvedService, Verdict};

use target::{Host, PortWord, Target};

pub use target::TargetError;

use super::types::{
    Backend, BackendSet, Excluded, Exclusion, Frontend, PortId, Protocol, ServiceId, ServicePort, Snapshot,
};

/// What the running agent knows of a backend beyond the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Passively ejected; the text says since when or why.
    pub ejected: Option<String>,
    /// Connections open now.
    pub active_connections: u64,
    /// Connections since start.
    pub connections_total: u64,
    /// Failed dials since start.
    pub failures_total: u64,
    /// HTTP requests since start.
    pub requests_total: u64,
}

/// Asks the running agent about a backend of a service port; `None` where it knows nothing.
pub type LiveLookup<'a> = &'a dyn Fn(&PortId, &Backend) -> Option<Live>;

/// What an explanation is made from.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The snapshot in force.
    pub snapshot: &'a Snapshot,
    /// The captured ranges.
    pub ranges: &'a [IpNet],
    /// Where the cluster's own DNS is answered by this agent, whether or not it has a backend.
    pub names: &'a BTreeSet<Frontend>,
    /// Where HTTP requests are answered by the name that they carry.
    pub by_name: &'a BTreeSet<Frontend>,
    /// The cluster's domain.
    pub domain: &'a str,
    /// Adds health and counters.
    pub live: LiveLookup<'a>,
}

/// Explains `target`: `IP:PORT`, `[IPV6]:PORT`, `NAME:PORT`, `NAME`, each with `/tcp` (the default) or `/udp`.
pub fn resolve(known: Known<'_>, target: &str) -> Result<Resolution, TargetError> {
    let Known { snapshot, ranges, names, by_name, domain, live } = known;
    let asked = Target::parse(target, domain)?;
    let explain = Explain { snapshot, ranges, names, by_name, live, target };
    Ok(match &asked.host {
        Host::Ip(ip) => explain.address(*ip, asked.port.as_ref(), asked.protocol),
        Host::Service(id) => explain.service(id, asked.port.as_ref(), asked.protocol),
        Host::Foreign(name) => explain.elsewhere(
            Verdict::NotIntercepted,
            format!("{name} is not a name of the cluster's domain {domain}"),
        ),
    })
}

/// Every endpoint of a set for `status` and `resolve`: those that may be picked first, in their order.
pub fn backend_reports(port: &ServicePort, set: &BackendSet, live: LiveLookup<'_>) -> Vec<BackendReport> {
    let eligible = set.eligible.iter().enumerate().map(|(at, backend)| {
        let spare = at >= set.preferred;
        let mut report = report(&port.id, backend, live);
        let terminating = "terminating, and used because no endpoint is ready";
        let reserve = "used only when the nearer backends cannot be reached";
        for (_, text) in [(backend.terminating, terminating), (spare, reserve)].iter().filter(|(on, _)| *on) {
            let separator = if report.reason.is_empty() { "" } else { "; " };
            let _ = write!(report.reason, "{separator}{text}");
        }
        BackendReport { eligible: Some(true), ..report }
    });
    let excluded = set.excluded.iter().map(|Excluded { backend, why }| {
        let state = match why {
            Exclusion::Terminating => "draining",
            Exclusion::NotLocal | Exclusion::NotLocalExternal => "ready",
            _ => "unreachable",
        };
        let report = report(&port.id, backend, live);
        BackendReport { state: state.to_owned(), reason: why.to_string(), eligible: Some(false), ..report }
    });
    eligible.chain(excluded).collect()
}

fn report(port: &PortId, backend: &Backend, live: LiveLookup<'_>) -> BackendReport {
    let live = live(port, backend);
    let count = |of: fn(&Live) -> u64| live.as_ref().map_or(0, of);
    let ejected = live.as_ref().and_then(|l| l.ejected.clone());
    let state = match (&ejected, backend.terminating) {
        (Some(_), _) => "ejected",
        (None, true) => "draining",
        (None, false) => "ready",
    };
    BackendReport {
        address: backend.addr.0.to_string(),
        reach: backend.reach.as_str().to_owned(),
        node: backend.node.as_deref().map(str::to_owned),
        zone: backend.zone.as_deref().map(str::to_owned),
        pod: backend.pod.as_deref().map(str::to_owned),
        state: state.to_owned(),
        reason: ejected.unwrap_or_default(),
        active_connections: count(|l| l.active_connections),
        connections_total: count(|l| l.connections_total),
        failures_total: count(|l| l.failures_total),
        requests_total: count(|l| l.requests_total),
        eligible: None,
    }
}

struct Explain<'a> {
    snapshot: &'a Snapshot,
    ranges: &'a [IpNet],
    names: &'a BTreeSet<Frontend>,
    by_name: &'a BTreeSet<Frontend>,
    live: LiveLookup<'a>,
    target: &'a str,
}

impl Explain<'_> {
    /// An answer without a service port.
    fn elsewhere(&self, verdict: Verdict, why: String) -> Resolution {
        Resolution {
            target: self.target.to_owned(),
            service: None,
            frontend: None,
            mode: None,
            policy: None,
            backends: Vec::new(),
            verdict,
            why,
            notes: Vec::new(),
        }
    }

    /// The service ports that stand at an address.
    fn ports_at(&self, ip: IpAddr) -> Vec<&Arc<ServicePort>> {
        let first = Frontend { ip, port: 0, protocol: Protocol::Tcp };
        let last = Frontend { ip, port: u16::MAX, protocol: Protocol::Sctp };
        self.snapshot.frontends.range(first..=last).map(|(_, port)| port).collect()
    }

    fn address(&self, ip: IpAddr, port: Option<&PortWord>, protocol: Protocol) -> Resolution {
        let ports = self.ports_at(ip);
        if ports.is_empty() {
            if let Some(PortWord::Number(number)) = port
                && let Some(answer) = self.external(SocketAddr::new(ip, *number), protocol)
            {
                return answer;
            }
            if let Some(PortWord::Number(port)) = port
                && self.by_name.contains(&Frontend { ip, port: *port, protocol })
            {
                let at = SocketAddr::new(ip, *port);
                let why = format!(
                    "{at} belongs to no Service, but this agent answers HTTP requests there for the service that their \
                     Host names, if its port {port} is an HTTP port"
                );
                return self.elsewhere(Verdict::NotIntercepted, why);
            }
            return self.no_service_at(ip);
        }
        self.among(&ports, ip, port, protocol)
    }

    fn service(&self, id: &ServiceId, port: Option<&PortWord>, protocol: Protocol) -> Resolution {
        let Some(ips) = self.snapshot.services.get(id) else {
            let why = format!("no Service {id} is known here, so the name leads to no ClusterIP");
            return self.elsewhere(Verdict::NotIntercepted, why);
        };
        if let Some(left_alone) = self.snapshot.not_proxied.get(id) {
            let why = format!("Service {id} is left alone: {}", left_alone.why);
            return self.elsewhere(Verdict::NotIntercepted, why);
        }
        let Some(ip) = ips.first() else {
            let why = format!(
                "Service {id} has no ClusterIP (it is headless or an ExternalName): its clients go straight to \
                 what its name leads to"
            );
            return self.elsewhere(Verdict::NotIntercepted, why);
        };
        let from = PortId { service: id.clone(), name: Arc::from(""), protocol: Protocol::Tcp };
        let own = self.snapshot.ports.range(from..).take_while(|(key, _)| key.service == *id);
        let mut ports: Vec<&Arc<ServicePort>> = own.map(|(_, port)| port).collect();
        ports.sort_by_key(|p| (p.number, p.id.protocol));
        if ports.is_empty() {
            let why = format!("Service {id} has no ports");
            return self.elsewhere(self.unserved_verdict(*ip), why);
        }
        self.among(&ports, *ip, port, protocol)
    }

    fn no_service_at(&self, ip: IpAddr) -> Resolution {
        let left_alone = self.snapshot.not_proxied.iter().find(|(_, entry)| entry.cluster_ips.contains(&ip));
        if let Some((id, entry)) = left_alone {
            let why = format!("{ip} is the ClusterIP of Service {id}, which is left alone: {}", entry.why);
            return self.elsewhere(Verdict::NotIntercepted, why);
        }
        match self.ranges.iter().find(|range| range.contains(&ip)) {
            Some(range) => {
                let why =
                    format!("no Service has the address {ip}, which lies in the captured range {range}");
                self.elsewhere(Verdict::Refused, why)
            }
            None => self.elsewhere(
                Verdict::NotIntercepted,
                format!("{ip} is outside of the captured ranges ({})", list(self.ranges)),
            ),
        }
    }

    /// What becomes of packets to an address of ours that no service port takes.
    fn unserved_verdict(&self, ip: IpAddr) -> Verdict {
        if self.ranges.iter().any(|range| range.contains(&ip)) {
            Verdict::Refused
        } else {
            Verdict::NotIntercepted
        }
    }

    /// Picks the port that was asked for among those at `ip`, in order of their numbers.
    fn among(
        &self,
        ports: &[&Arc<ServicePort>],
        ip: IpAddr,
        asked: Option<&PortWord>,
        protocol: Protocol,
    ) -> Resolution {
        let fits = |p: &&&Arc<ServicePort>| match asked {
            None => true,
            Some(PortWord::Number(number)) => p.number == *number,
            Some(PortWord::Name(name)) => p.id.name.eq_ignore_ascii_case(name),
        };
        let same_protocol = |p: &&&Arc<ServicePort>| p.id.protocol == protocol;
        let named: Vec<String> = ports.iter().map(|p| port_text(p)).collect();
        if let Some(port) = ports.iter().filter(same_protocol).find(fits) {
            let mut answer = self.port(port, ip);
            if asked.is_none() && ports.len() > 1 {
                let _ = write!(
                    answer.why,
                    "; the Service has several ports, {}: this is the first",
                    named.join(", ")
                );
            }
            return answer;
        }
        let word = match asked {
            Some(PortWord::Number(number)) => format!("no port {number}/{protocol}"),
            Some(PortWord::Name(name)) => format!("no {protocol} port named {name}"),
            None => format!("no {protocol} port"),
        };
        let id = ports.first().map(|p| p.id.service.to_string()).unwrap_or_default();
        let other = if protocol == Protocol::Tcp { ("UDP", "udp") } else { ("TCP", "tcp") };
        let hint = if ports.iter().any(|p| fits(&p)) {
            format!("; for {} ask with /{}", other.0, other.1)
        } else {
            String::new()
        };
        let why = format!("Service {id} has {word}; it has {}{hint}", named.join(", "));
        self.elsewhere(self.unserved_verdict(ip), why)
    }

    /// The answer for one service port at one of its addresses.
    fn port(&self, port: &Arc<ServicePort>, ip: IpAddr) -> Resolution {
        let frontend = SocketAddr::new(ip, port.number);
        let key = Frontend { ip, port: port.number, protocol: port.id.protocol };
        let set = port.backends(ip);
        let holder = self.snapshot.frontends.get(&key);
        let (verdict, why) = match holder {
            Some(holder) if holder.id != port.id => (
                Verdict::Refused,
                format!(
                    "{frontend} belongs to the newer Service {}, which claims the same address",
                    holder.id.service
                ),
            ),
            None => {
                (Verdict::Refused, format!("{ip} belongs to a newer Service that claims the same address"))
            }
            Some(_) if self.names.contains(&key) => (
                Verdict::Proxied,
                "the cluster's own DNS: this agent answers itself, whether or not there are backends"
                    .to_owned(),
            ),
            Some(_) => self.verdict(port, frontend, set),
        };
        self.answer(port, frontend, set, (verdict, why))
    }

    /// The answer about a service port at one of its frontends.
    fn answer(
        &self,
        port: &ServicePort,
        frontend: SocketAddr,
        set: &BackendSet,
        (verdict, why): (Verdict, String),
    ) -> Resolution {
        Resolution {
            target: self.target.to_owned(),
            service: Some(ResolvedService {
                namespace: port.id.service.namespace.to_string(),
                name: port.id.service.name.to_string(),
                port: port.number,
                protocol: port.id.protocol.to_string(),
                port_name: port.id.name.to_string(),
            }),
            frontend: Some(frontend.to_string()),
            mode: Some(port.mode.as_str().to_owned()),
            policy: Some(port.policy.to_string()),
            backends: backend_reports(port, set, self.live),
            verdict,
            why,
            notes: notes::of(port, set, frontend, self.ranges),
        }
    }

    fn verdict(&self, port: &ServicePort, frontend: SocketAddr, set: &BackendSet) -> (Verdict, String) {
        if !self.ranges.iter().any(|range| range.contains(&frontend.ip())) {
            let why = format!("{} is outside of the captured ranges ({})", frontend.ip(), list(self.ranges));
            return (Verdict::NotIntercepted, why);
        }
        if set.eligible.is_empty() {
            return (Verdict::Refused, no_backend(port, set));
        }
        let count = set.eligible.len();
        let ejected = |b: &&Backend| (self.live)(&port.id, b).is_some_and(|l| l.ejected.is_some());
        let out = set.eligible.iter().filter(ejected).count();
        let plural = if count == 1 { "backend" } else { "backends" };
        let mut why = format!("{count} {plural} may be picked");
        if set.preferred < count {
            let _ = write!(why, ", {} of them first by topology hints", set.preferred);
        }
        if out > 0 {
            let _ = write!(why, "; {out} of them ejected after failures");
        }
        (Verdict::Proxied, why)
    }
}

/// Why a port has no backend to offer.
fn no_backend(port: &ServicePort, set: &BackendSet) -> String {
    if set.excluded.is_empty() {
        return format!("Service {} has no endpoints for port {}", port.id.service, port_text(port));
    }
    let elsewhere = set.excluded.iter().filter(|e| e.why == Exclusion::NotLocal).count();
    if port.local_only && elsewhere > 0 {
        return format!(
            "internalTrafficPolicy is Local and none of the usable backends runs on this node ({elsewhere} elsewhere)"
        );
    }
    let mut reasons: Vec<(String, usize)> = Vec::new();
    for excluded in &set.excluded {
        let text = excluded.why.to_string();
        match reasons.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => reasons.push((text, 1)),
        }
    }
    // A few reasons tell the story; all of them stand with their backends.
    let told: Vec<String> = reasons.iter().take(3).map(|(text, count)| format!("{count} {text}")).collect();
    let more = if reasons.len() > told.len() { "; and more" } else { "" };
    format!("none of the {} endpoints can be used: {}{more}", set.excluded.len(), told.join("; "))
}

fn port_text(port: &ServicePort) -> String {
    if port.id.name.is_empty() {
        format!("{}/{}", port.number, port.id.protocol)
    } else {
        format!("{}/{} ({})", port.number, port.id.protocol, port.id.name)
    }
}

fn list(ranges: &[IpNet]) -> String {
    if ranges.is_empty() {
        return "there are none".to_owned();
    }
    let texts: Vec<String> = ranges.iter().take(5).map(ToString::to_string).collect();
    let more = if ranges.len() > texts.len() { ", …" } else { "" };
    format!("{}{more}", texts.join(", "))
}

#[cfg(test)]
mod tests;
