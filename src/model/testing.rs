//! Short ways to write objects and to look at snapshots.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::source::slim::{Kind, Object, ObjectKey, decode};

use super::{BackendSet, Local, PortId, Protocol, ServiceId, ServicePort, Snapshot, Store};

/// Any object from JSON.
pub(super) fn object(kind: Kind, value: Value) -> Object {
    decode(kind, value).unwrap()
}

/// A Service `default/<name>` with the address and whatever else `spec` holds.
pub(super) fn service(name: &str, ip: &str, spec: &Value) -> Object {
    let mut whole = json!({"clusterIP": ip, "ports": [{"port": 80}]});
    merge(&mut whole, spec);
    object(Kind::Service, json!({"metadata": {"name": name}, "spec": whole}))
}

/// Puts the fields of `more` over those of `into`.
pub(super) fn merge(into: &mut Value, more: &Value) {
    for (key, value) in more.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// An IPv4 slice of Service `service` with the endpoints, on an unnamed port 8080.
pub(super) fn slice(name: &str, service: &str, endpoints: &Value) -> Object {
    let labels = json!({"kubernetes.io/service-name": service});
    let value = json!({"metadata": {"name": name, "labels": labels}, "addressType": "IPv4",
        "ports": [{"port": 8080}], "endpoints": endpoints});
    object(Kind::EndpointSlice, value)
}

/// A Running and Ready pod `default/<name>` with labels, ports and whatever else `more` overrides at the top.
pub(super) fn pod(name: &str, node: &str, ip: &str, host_ip: &str, labels: &Value, ports: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "podIP": ip, "hostIP": host_ip}})
}

/// A Node with one address.
pub(super) fn node(name: &str, ip: &str, zone: &str) -> Object {
    let value = json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
    object(Kind::Node, value)
}

pub(super) fn key(kind: Kind, name: &str) -> ObjectKey {
    let namespace = if matches!(kind, Kind::Node | Kind::ServiceCidr) { "" } else { "default" };
    ObjectKey { kind, namespace: namespace.into(), name: name.into() }
}

/// A store on node `edge-a` that holds the objects.
pub(super) fn store(objects: Vec<Object>) -> Store {
    let mut store = Store::new(Local::new("edge-a"));
    store.replace(objects);
    store
}

/// The only snapshot of a set of objects on node `edge-a`.
pub(super) fn snapshot(objects: Vec<Object>) -> Arc<Snapshot> {
    store(objects).snapshot()
}

pub(super) fn id(name: &str) -> ServiceId {
    ServiceId { namespace: "default".into(), name: name.into() }
}

/// The TCP port of that name of `default/<service>`.
pub(super) fn port<'a>(snapshot: &'a Snapshot, service: &str, name: &str) -> &'a Arc<ServicePort> {
    let id = PortId { service: id(service), name: name.into(), protocol: Protocol::Tcp };
    snapshot.ports.get(&id).unwrap_or_else(|| panic!("no port {id}"))
}

/// `reach address` of each backend that may be picked, with `|` before the reserve.
pub(super) fn eligible(set: &BackendSet) -> Vec<String> {
    let text = |(at, b): (usize, &super::Backend)| {
        let bar = if at >= set.preferred { "| " } else { "" };
        format!("{bar}{} {}", b.reach.as_str(), b.addr.0)
    };
    set.eligible.iter().enumerate().map(text).collect()
}

/// `address: reason` of each endpoint that may not be picked.
pub(super) fn excluded(set: &BackendSet) -> Vec<String> {
    set.excluded.iter().map(|e| format!("{}: {}", e.backend.endpoint, e.why)).collect()
}

/// Every frontend with the port it leads to.
pub(super) fn frontends(snapshot: &Snapshot) -> Vec<String> {
    snapshot.frontends.iter().map(|(f, p)| format!("{f} {}", p.id)).collect()
}

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
