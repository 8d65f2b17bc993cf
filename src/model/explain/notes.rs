//! The way to a service port and what is set for it, in the order in which a connection meets it.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::super::types::{BackendSet, Mode, ServicePort};

/// Each a line.
pub(super) fn of(
    port: &ServicePort,
    set: &BackendSet,
    frontend: SocketAddr,
    ranges: &[IpNet],
) -> Vec<String> {
    let mut notes = Vec::new();
    match ranges.iter().find(|range| range.contains(&frontend.ip())) {
        Some(range) if port.mode == Mode::Udp => {
            notes.push(format!(
                "datagrams to {frontend} in {range} are led to a socket of this agent at that address"
            ));
        }
        Some(range) => notes.push(format!("connections to {range} are redirected to this agent's listener")),
        None => {}
    }
    if let Some(app) = &port.app_protocol {
        notes.push(format!("appProtocol is {app}"));
    }
    if port.local_only {
        notes.push("internalTrafficPolicy is Local: only backends on this node".to_owned());
    }
    if set.preferred < set.eligible.len() {
        notes.push(format!(
            "topology: {} of {} backends are nearer and come first",
            set.preferred,
            set.eligible.len()
        ));
    }
    if let Some(timeout) = port.affinity {
        notes.push(format!("sessionAffinity: a client keeps its backend for {} s", timeout.as_secs()));
    }
    if let Some(most) = port.max_connections {
        notes.push(format!("at most {most} connections at once"));
    }
    if let Some(pool) = &port.http_pool {
        let bounds = [
            ("requests at once", pool.max_requests),
            ("requests waiting for a new connection", pool.max_pending),
            ("requests sent again at once", pool.max_retries),
            ("requests on one connection", pool.max_requests_per_connection),
            ("streams at once on one HTTP/2 connection", pool.max_concurrent_streams),
        ];
        for (what, most) in bounds {
            notes.extend(most.map(|most| format!("at most {most} {what}")));
        }
        notes.extend(
            pool.idle_timeout.map(|time| format!("connections to backends are kept idle for {time:?}")),
        );
    }
    if let Some(timeout) = port.connect_timeout {
        notes.push(format!("a backend has {timeout:?} to accept"));
    }
    if port.proxy_protocol {
        notes.push("backends are told the client's address (PROXY protocol, version 2)".to_owned());
    }
    notes
}
