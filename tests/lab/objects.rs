//! Kubernetes objects as JSON, as an API server would give them.

use serde_json::{Value, json};

/// One service port: name, port, target port, protocol.
pub type Port<'a> = (&'a str, u16, u16, &'a str);

/// Several objects as the text of one manifest file.
pub fn list(items: impl IntoIterator<Item = Value>) -> String {
    let items: Vec<Value> = items.into_iter().collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// A Service in namespace `default`. Two addresses make it dual stack.
pub fn service(name: &str, cluster_ips: &[&str], ports: &[Port<'_>]) -> Value {
    let families: Vec<&str> = cluster_ips.iter().map(|ip| family(ip)).collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, target, protocol)| {
            json!({"name": name, "port": port, "targetPort": target, "protocol": protocol})
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips,
            "ipFamilies": families, "ipFamilyPolicy": if families.len() > 1 { "PreferDualStack" } else { "SingleStack" },
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "ports": ports,
        },
    })
}

/// An `EndpointSlice` of ready endpoints that belong to no pod, all with the Service's ports in `ports`
/// (name, number, protocol).
pub fn slice(service: &str, ports: &[(&str, u16, &str)], addresses: &[&str]) -> Value {
    let kind = addresses.first().map_or("IPv4", |address| family(address));
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}}))
        .collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", kind.to_lowercase()), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": kind, "ports": ports, "endpoints": endpoints,
    })
}

/// A Service with one TCP port and its slice, as a pair: `target` is the backends' port.
pub fn pair(name: &str, cluster_ip: &str, port: u16, target: u16, addresses: &[&str]) -> [Value; 2] {
    [
        service(name, &[cluster_ip], &[("tcp-0", port, target, "TCP")]),
        slice(name, &[("tcp-0", target, "TCP")], addresses),
    ]
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}
