//! Whatever the order of changes, the snapshot is that of a fresh load.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::super::diff::diff;
use super::super::testing::*;
use super::*;

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

proptest! {
    /// However a state was reached, its snapshot is the one that a fresh store makes of it.
    #[test]
    fn the_snapshot_does_not_depend_on_the_way(
        steps in prop::collection::vec((any_object(), prop::bool::weighted(0.3)), 1..40),
    ) {
        let mut store = Store::new(Local::new("edge-a"));
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
            let fresh = snapshot(state.values().cloned().collect());
            prop_assert!(diff(&fresh, &now).is_empty(), "{:?}", diff(&fresh, &now));
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
    }
}
