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
    let mut note = |text: String| notes.push(text);
    match ranges.iter().find(|range| range.contains(&frontend.ip())) {
        Some(range) if port.mode == Mode::Udp => {
            note(format!(
                "datagrams to {frontend} in {range} are led to a socket of this agent at that address"
            ));
        }
        Some(range) => note(format!("connections to {range} are redirected to this agent's listener")),
        None => {}
    }
    if let Some(app) = &port.app_protocol {
        note(format!("appProtocol is {app}"));
    }
    if port.local_only {
        note("internalTrafficPolicy is Local: only backends on this node".to_owned());
    }
    if set.preferred < set.eligible.len() {
        note(format!(
            "topology: {} of {} backends are nearer and come first",
            set.preferred,
            set.eligible.len()
        ));
    }
    if let Some(timeout) = port.affinity {
        note(format!("sessionAffinity: a client keeps its backend for {} s", timeout.as_secs()));
    }
    if let Some(most) = port.max_connections {
        note(format!("at most {most} connections at once"));
    }
    if let Some(timeout) = port.connect_timeout {
        note(format!("a backend has {timeout:?} to accept"));
    }
    if port.proxy_protocol {
        note("backends are told the client's address (PROXY protocol, version 2)".to_owned());
    }
    notes
}
