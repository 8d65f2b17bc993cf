//! What passes through: connections, datagrams, names, and what becomes of them by service port and backend.

use super::super::encode::{Family, counter, gauge, histogram};
use super::super::figures::Scrape;
use crate::obs::api::{BackendReport, ServiceReport};

pub(super) const SERVICE: &[&str] = &["namespace", "service", "port", "protocol"];
pub(super) const BACKEND: &[&str] = &["namespace", "service", "port", "protocol", "backend"];

fn labels(service: &ServiceReport) -> [&str; 4] {
    [&service.namespace, &service.name, &service.port.name, &service.port.protocol]
}

/// The service ports that get series of their own.
pub(super) fn services(s: &Scrape) -> impl Iterator<Item = ([&str; 4], &ServiceReport)> {
    s.status.services.iter().take(s.listed.services).map(|service| (labels(service), service))
}

/// The backends that get series of their own: those of the service ports that do.
pub(super) fn backends(s: &Scrape) -> impl Iterator<Item = ([&str; 5], &BackendReport)> {
    let all = services(s).flat_map(|(labels, service)| service.backends.iter().map(move |b| (labels, b)));
    all.take(s.listed.backends).map(|([namespace, name, port, protocol], backend)| {
        ([namespace, name, port, protocol, &backend.address], backend)
    })
}

fn ready(service: &ServiceReport) -> usize {
    service.backends.iter().filter(|b| b.state == "ready" && b.eligible != Some(false)).count()
}

pub(super) const PROXY: &[Family] = &[
    gauge("proxy_connections_active", &[], "Connections of all service ports open now", |s, out| {
        out.one(s.status.proxy.active_connections)
    }),
    gauge("proxy_connections_limit", &[], "Most connections at once", |s, out| {
        out.one(s.figures.max_connections)
    }),
    counter("proxy_connections_accepted", &[], "Connections accepted", |s, out| {
        out.one(s.status.proxy.accepted_total)
    }),
    counter(
        "proxy_connections_refused",
        &["reason"],
        "Connections that had nowhere to go: dialled the acceptor itself, no service port there for that client, a limit, no backend, a fault of this machine, turned away for want of room",
        |s, out| out.counts(&s.figures.refused),
    ),
    counter("proxy_accept_pauses", &[], "Times that accepting paused at a limit", |s, out| {
        out.one(s.status.proxy.accept_pauses_total)
    }),
    counter("hold_clients", &[], "Clients held until a backend was connected", |s, out| {
        out.maybe(s.status.proxy.hold.as_ref().map(|hold| hold.held_total))
    }),
    counter("hold_refused", &[], "Held clients that were refused", |s, out| {
        out.maybe(s.status.proxy.hold.as_ref().map(|hold| hold.refused_total))
    }),
    counter("hold_unpaired", &[], "Backends connected for held clients that did not come", |s, out| {
        out.maybe(s.status.proxy.hold.as_ref().map(|hold| hold.unpaired_total))
    }),
    counter("hold_passed", &[], "Clients that were not held for want of room", |s, out| {
        out.maybe(s.status.proxy.hold.as_ref().map(|hold| hold.passed_total))
    }),
    counter(
        "proxy_bytes",
        &["direction"],
        "Bytes of all service ports: `in` from clients to backends, `out` back",
        |s, out| ["in", "out"].iter().zip(s.figures.bytes).try_for_each(|(way, n)| out.put(&[way], n)),
    ),
    counter(
        "proxy_dials",
        &["result"],
        "Dials of backends by their end; `outrun`: one that was dialled later was faster",
        |s, out| out.counts(&s.figures.dials),
    ),
    histogram("proxy_dial_duration_seconds", &[], "Time that connecting a backend took", |s, out| {
        out.histogram(&s.figures.dial_times)
    }),
    counter("proxy_dial_retries", &[], "Dials beyond the first of their connection", |s, out| {
        out.one(s.figures.retries)
    }),
    counter(
        "proxy_ejections",
        &[],
        "Times that a backend's address was taken out after failed dials",
        |s, out| out.one(s.figures.ejections),
    ),
    gauge(
        "proxy_services_refusing",
        &[],
        "Service ports whose clients are refused because every backend refuses",
        |s, out| out.one(s.figures.held),
    ),
    counter(
        "proxy_out_of_ports",
        &[],
        "Dials that failed because every local port towards the backend was in use",
        |s, out| out.one(s.figures.dials.iter().find(|(end, _)| *end == "no-ports").map_or(0, |(_, n)| *n)),
    ),
    gauge(
        "proxy_pipes",
        &["state"],
        "Pipes of streams that are spliced: in use, and kept for the next",
        |s, out| {
            [("used", s.figures.pipes[0].saturating_sub(s.figures.pipes[1])), ("kept", s.figures.pipes[1])]
                .iter()
                .try_for_each(|(state, n)| out.put(&[state], *n))
        },
    ),
    gauge("udp_flows", &[], "UDP flows of all service ports now", |s, out| out.one(s.status.proxy.udp_flows)),
    gauge("udp_flows_limit", &[], "Most UDP flows at once", |s, out| out.one(s.figures.max_udp_flows)),
    counter("udp_datagrams_dropped", &[], "Datagrams passed on to nobody", |s, out| {
        out.one(s.status.proxy.udp_dropped_total)
    }),
    counter("udp_flows_unreachable", &[], "UDP flows whose backend was reported unreachable", |s, out| {
        out.one(s.status.proxy.udp_unreachable_total)
    }),
];

pub(super) const NAMES: &[Family] = &[
    counter("dns_cluster_queries", &[], "Queries for the cluster's names", |s, out| {
        out.maybe(s.status.dns.as_ref().map(|dns| dns.cluster_queries_total))
    }),
    counter("dns_foreign_queries", &[], "Queries for other names", |s, out| {
        out.maybe(s.status.dns.as_ref().map(|dns| dns.foreign_queries_total))
    }),
    counter("dns_refused", &[], "DNS packets refused or dropped", |s, out| {
        out.maybe(s.status.dns.as_ref().map(|dns| dns.refused_total))
    }),
    counter("dns_responses", &["rcode"], "Answers by response code", |s, out| {
        out.counts(&s.figures.dns_responses)
    }),
    histogram("dns_response_duration_seconds", &[], "From a question's arrival to its answer", |s, out| {
        out.histogram(&s.figures.dns_times)
    }),
    counter("dns_upstream_questions", &[], "Questions sent to servers for other names", |s, out| {
        out.maybe(s.status.dns.as_ref().map(|dns| dns.upstream_questions_total))
    }),
    counter("dns_upstream_failures", &[], "Questions that no server answered", |s, out| {
        out.maybe(s.status.dns.as_ref().map(|dns| dns.upstream_failures_total))
    }),
    counter("dns_cached_answers", &[], "Answers about other names given from memory", |s, out| {
        out.maybe(s.status.dns.as_ref().map(|dns| dns.cached_answers_total))
    }),
    counter(
        "dns_stale_answers",
        &[],
        "Answers about other names given out beyond their time because nobody could be asked",
        |s, out| out.maybe(s.status.dns.as_ref().map(|dns| dns.stale_answers_total)),
    ),
];

pub(super) const SERVICES: &[Family] = &[
    gauge("service_connections_active", SERVICE, "Connections of a service port open now", |s, out| {
        services(s).try_for_each(|(labels, service)| out.put(&labels, service.active_connections))
    }),
    counter("service_connections", SERVICE, "Connections of a service port", |s, out| {
        services(s).try_for_each(|(labels, service)| out.put(&labels, service.connections_total))
    }),
    counter(
        "service_refused",
        SERVICE,
        "Connections of a service port that were reset because no backend could be used",
        |s, out| services(s).try_for_each(|(labels, service)| out.put(&labels, service.refused_total)),
    ),
    counter("service_bytes_in", SERVICE, "Bytes from clients to backends", |s, out| {
        services(s).try_for_each(|(labels, service)| out.put(&labels, service.bytes_in_total))
    }),
    counter("service_bytes_out", SERVICE, "Bytes from backends to clients", |s, out| {
        services(s).try_for_each(|(labels, service)| out.put(&labels, service.bytes_out_total))
    }),
    gauge("service_backends_ready", SERVICE, "Backends of a service port that may be picked", |s, out| {
        services(s).try_for_each(|(labels, service)| out.put(&labels, ready(service)))
    }),
    gauge("backend_connections_active", BACKEND, "Connections to a backend open now", |s, out| {
        backends(s).try_for_each(|(labels, backend)| out.put(&labels, backend.active_connections))
    }),
    counter("backend_connections", BACKEND, "Connections to a backend", |s, out| {
        backends(s).try_for_each(|(labels, backend)| out.put(&labels, backend.connections_total))
    }),
    counter("backend_failures", BACKEND, "Failed dials of a backend", |s, out| {
        backends(s).try_for_each(|(labels, backend)| out.put(&labels, backend.failures_total))
    }),
    gauge("backend_ejected", BACKEND, "Whether a backend is out after failures", |s, out| {
        backends(s).try_for_each(|(labels, backend)| out.put(&labels, backend.state == "ejected"))
    }),
    gauge(
        "services_unlisted",
        &[],
        "Service ports without series of their own, because there are more than get them",
        |s, out| out.one(s.listed.all_services - s.listed.services),
    ),
    gauge("backends_unlisted", &[], "Backends without series of their own", |s, out| {
        out.one(s.listed.all_backends - s.listed.backends)
    }),
];
