//! Whatever the order of changes, the snapshot is that of a fresh load.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::super::diff::{diff, doors};
use super::super::testing::*;
use super::super::types::PortId;
use super::*;
use crate::config::{NodePortAddresses, PodNetwork};

/// A small world, so that changes meet.
fn any_object() -> impl Strategy<Value = Object> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let ip = (1u8..4).prop_map(|n| format!("10.96.0.{n}"));
    let number = || 1u8..5;
    prop_oneof![
        (name(), ip, any::<bool>(), any::<bool>()).prop_map(|(name, ip, local, out)| {
            let labels = if out { json!({"noproxy": "edgemesh"}) } else { json!({}) };
            let policy = if local { "Local" } else { "Cluster" };
            object(
                Kind::Service,
                json!({"metadata": {"name": name, "labels": labels}, "spec": {"clusterIP": ip,
                "ports": [{"port": 80}], "selector": {"app": name}, "internalTrafficPolicy": policy}}),
            )
        }),
        (name(), name(), number(), any::<[Option<bool>; 3]>(), any::<bool>()).prop_map(
            |(name, of, n, c, refer)| {
                let target = refer.then(|| json!({"kind": "Pod", "name": format!("p{n}")}));
                let conditions = json!({"ready": c[0], "serving": c[1], "terminating": c[2]});
                slice(
                    name,
                    of,
                    &json!([{"addresses": [format!("10.1.0.{n}")], "conditions": conditions,
                "targetRef": target, "nodeName": if n % 2 == 0 { "edge-a" } else { "edge-b" }}]),
                )
            }
        ),
        (number(), number(), name(), any::<bool>()).prop_map(|(n, ip, app, host)| {
            let ports = json!([{"containerPort": 8080, "hostPort": 30000 + u16::from(n)}]);
            let node = if n % 2 == 0 { "edge-a" } else { "edge-b" };
            let mut p = pod(
                &format!("p{n}"),
                node,
                &format!("10.1.0.{ip}"),
                "192.168.77.2",
                &json!({"app": app}),
                &ports,
            );
            p["spec"]["hostNetwork"] = json!(host);
            object(Kind::Pod, p)
        }),
        (prop::sample::select(vec!["edge-a", "edge-b"]), number())
            .prop_map(|(name, n)| { node(name, &format!("192.168.77.{n}"), &format!("z{n}")) }),
    ]
}

/// Services that are offered outside of the cluster, with endpoints at the places where they are, and Pods and Nodes that
/// say anything of their addresses.
fn any_outer() -> impl Strategy<Value = Object> {
    let name = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let number = || 1u8..4;
    let port = || 30_001u16..30_004;
    let host = |n: u8| format!("192.168.77.{n}");
    let node_name = |n: u8| format!("edge-{}", ["a", "b", "c"][usize::from(n - 1)]);
    let protocol = || prop::sample::select(vec!["TCP", "TCP", "TCP", "UDP"]);
    prop_oneof![
        3 => (name(), prop::option::weighted(0.8, port()), protocol(), 0u8..8).prop_map(|(name, port, protocol, kind)| {
            let ip = format!("10.96.0.{}", name.as_bytes()[0]);
            let labels = if kind == 7 { json!({"noproxy": "edgemesh"}) } else { json!({}) };
            let external = if kind == 1 { vec!["203.0.113.1"] } else { vec![] };
            let ingress = if kind == 2 { json!([{"ip": "203.0.113.2"}]) } else { json!([]) };
            object(
                Kind::Service,
                json!({"metadata": {"name": name, "labels": labels}, "spec": {"type": "LoadBalancer", "clusterIP": ip,
                    "externalIPs": external, "ports": [{"port": 80, "protocol": protocol, "nodePort": port}]},
                    "status": {"loadBalancer": {"ingress": ingress}}}),
            )
        }),
        6 => (name(), 0u8..3, number(), port(), protocol(), prop::option::weighted(0.4, number())).prop_map(
            move |(of, slice, n, port, protocol, pod)| {
                let (ip, port) = match (slice, pod) {
                    (_, Some(pod)) => (if n == pod { host(n) } else { format!("10.1.0.{pod}") }, port),
                    (2, _) if n < 3 => (format!("203.0.113.{n}"), 80),
                    _ => (host(n), port),
                };
                let target = pod.map(|pod| json!({"kind": "Pod", "name": format!("p{pod}")}));
                object(
                    Kind::EndpointSlice,
                    json!({"metadata": {"name": format!("{of}-{slice}"), "labels": {"kubernetes.io/service-name": of}},
                        "addressType": "IPv4", "ports": [{"port": port, "protocol": protocol}],
                        "endpoints": [{"addresses": [ip], "targetRef": target}]}),
                )
            }
        ),
        3 => (number(), (number(), number(), number()), (port(), port(), protocol()), 0u8..12).prop_map(
            move |(n, (runs_on, at, says), (port, published, protocol), kind)| {
                let mut ports = json!([{"containerPort": port, "hostPort": published, "protocol": protocol}]);
                if kind < 3 {
                    ports[0]["hostIP"] = json!(host(says));
                }
                let ip = if at == 1 { format!("10.1.0.{n}") } else { host(at) };
                let mut p = pod(&format!("p{n}"), &node_name(runs_on), &ip, &host(says), &json!({}), &ports);
                p["spec"]["hostNetwork"] = json!(kind % 3 == 1);
                if kind == 11 {
                    p["status"]["phase"] = json!("Failed");
                }
                object(Kind::Pod, p)
            }
        ),
        2 => (number(), number(), 0u8..6).prop_map(move |(n, other, kind)| {
            let mut addresses = vec![json!({"type": "InternalIP", "address": host(n)})];
            if kind == 1 {
                addresses.push(json!({"type": "InternalIP", "address": host(other)}));
            }
            let annotations = if kind == 2 { json!({"edgesplice.io/host-ip": host(other)}) } else { json!({}) };
            object(
                Kind::Node,
                json!({"metadata": {"name": node_name(n), "annotations": annotations}, "status": {"addresses": addresses}}),
            )
        }),
    ]
}

/// Follows `steps` and compares what comes of them with what a fresh store makes of each state.
fn follow(local: &Local, steps: Vec<(Object, bool)>) -> Result<(), TestCaseError> {
    let mut store = Store::new(local.clone());
    let mut state = BTreeMap::new();
    let mut last = store.snapshot();
    for (step, (object, delete)) in steps.into_iter().enumerate() {
        let key = object.key();
        if delete {
            store.delete(&key);
            state.remove(&key);
        } else {
            store.upsert(object.clone());
            state.insert(key, object);
        }
        if step % 3 > 0 {
            continue;
        }
        let now = store.snapshot();
        let mut fresh = Store::new(local.clone());
        fresh.replace(state.values().cloned().collect());
        let fresh = fresh.snapshot();
        prop_assert!(diff(&fresh, &now).is_empty(), "{:?}", diff(&fresh, &now));
        prop_assert!(doors(&fresh, &now).is_empty(), "{:?}", doors(&fresh, &now));
        prop_assert_eq!(&now.warnings, &fresh.warnings);
        prop_assert_eq!(&now.not_proxied, &fresh.not_proxied);
        prop_assert_eq!(&now.services, &fresh.services);
        prop_assert_eq!(&now.node_ips, &fresh.node_ips);
        // The differences lead from one to the next.
        let change = diff(&last, &now);
        let served = |s: &Snapshot| -> BTreeSet<_> {
            s.frontends.iter().filter(|(f, p)| p.is_served(f.addr())).map(|(f, _)| *f).collect()
        };
        let mut walked = served(&last);
        walked.extend(change.served.iter().copied());
        walked.retain(|f| !change.unserved.contains(f));
        prop_assert_eq!(walked, served(&now));
        for port in now.ports.values() {
            let addrs: BTreeSet<_> = port.v4.eligible.iter().map(|b| b.addr).collect();
            prop_assert_eq!(addrs.len(), port.v4.eligible.len(), "no address twice");
            prop_assert!(port.v4.preferred <= port.v4.eligible.len());
            prop_assert!(port.v4.preferred > 0 || port.v4.eligible.is_empty());
        }
        last = now;
    }
    Ok(())
}

/// The nodes of [`any_outer`], each with its address and with a pod network that is routed or not.
fn locals(routed: [bool; 3]) -> [Local; 3] {
    let one = |(n, routed): (u8, bool)| Local {
        own_addresses: vec![addr(&format!("192.168.77.{n}:0")).ip()],
        node_ports: Some(NodePortAddresses::Ranges(vec!["0.0.0.0/0".parse().unwrap()])),
        external_ips: true,
        pod_network: if routed { PodNetwork::Routed } else { PodNetwork::None },
        ..Local::new(["edge-a", "edge-b", "edge-c"][usize::from(n - 1)])
    };
    [(1, routed[0]), (2, routed[1]), (3, routed[2])].map(one)
}

/// Who is where: the number of a node and a service port there.
type Seat = (usize, PortId);

/// Where a connection is next that one of the agents takes for a service port.
fn next(nodes: &[(Local, Arc<Snapshot>)], (node, port): &Seat) -> Vec<Seat> {
    let (local, snapshot) = &nodes[*node];
    let Some(port) = snapshot.ports.get(port) else { return Vec::new() };
    let other = port.external.iter().flat_map(|external| &external.other).flatten();
    let backends = [&port.v4].into_iter().chain(other).flat_map(|set| &set.eligible);
    let dialled = backends.map(|backend| backend.addr.0);
    // What an agent dials itself is never redirected on its own node.
    let away = dialled.filter(|to| !local.own_addresses.contains(&to.ip()));
    let led = away.flat_map(|to| {
        let at = Frontend { ip: to.ip(), port: to.port(), protocol: port.id.protocol };
        let owner = nodes.iter().any(|(local, _)| local.own_addresses.contains(&at.ip));
        let takes = move |(local, _): &(Local, Arc<Snapshot>)| !owner || local.own_addresses.contains(&at.ip);
        let there = nodes.iter().enumerate().filter(move |(_, node)| takes(node));
        there
            .filter_map(move |(number, (_, snapshot))| Some((number, snapshot.external.get(&at)?.id.clone())))
    });
    led.collect()
}

proptest! {
    /// However a state was reached, its snapshot is the one that a fresh store makes of it.
    #[test]
    fn the_snapshot_does_not_depend_on_the_way(
        steps in prop::collection::vec((any_object(), prop::bool::weighted(0.3)), 1..40),
    ) {
        follow(&Local::new("edge-a"), steps)?;
    }

    #[test]
    fn neither_does_it_where_services_lead_on_to_each_other(
        steps in prop::collection::vec((any_outer(), prop::bool::weighted(0.2)), 1..60),
    ) {
        follow(&locals([true; 3])[0], steps)?;
    }

    /// Whatever the objects say, no agent passes on a connection that comes back to it.
    #[test]
    fn nothing_goes_round(
        objects in prop::collection::vec(any_outer(), 1..40),
        routed in any::<[bool; 3]>(),
    ) {
        // Every node is known by its address.
        let known = |n: u8| node(["edge-a", "edge-b", "edge-c"][usize::from(n)], &format!("192.168.77.{}", n + 1), "z");
        let objects: Vec<_> = (0..3).map(known).chain(objects).collect();
        let nodes = locals(routed).map(|local| {
            let mut store = Store::new(local.clone());
            store.replace(objects.clone());
            (local, store.snapshot())
        });
        for (number, (_, snapshot)) in nodes.iter().enumerate() {
            for port in snapshot.ports.keys() {
                let start = (number, port.clone());
                let mut left = next(&nodes, &start);
                let mut seen = BTreeSet::new();
                while let Some(seat) = left.pop() {
                    prop_assert_ne!(&seat, &start, "{:?}", nodes[number].1.ports.get(port));
                    if seen.insert(seat.clone()) {
                        left.extend(next(&nodes, &seat));
                    }
                }
            }
        }
    }
}
