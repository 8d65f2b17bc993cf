//! What a change of the objects costs, and what it leaves as it is.

use serde_json::json;

use super::*;
use crate::model::diff::diff;
use crate::model::testing::*;

#[test]
fn derived_backends_follow_their_pods() {
    let make = |ip: &str, app: &str| {
        object(Kind::Pod, pod("p", "edge-a", ip, "192.168.77.1", &json!({"app": app}), &json!([])))
    };
    let mut store = store(vec![service("web", "10.96.0.1", &json!({"selector": {"app": "web"}}))]);
    let backends = |store: &mut Store| eligible(&port(&store.snapshot(), "web", "").v4);
    assert!(backends(&mut store).is_empty());
    store.upsert(make("10.1.0.1", "web"));
    assert_eq!(backends(&mut store), ["pod 10.1.0.1:80"]);
    store.upsert(make("10.1.0.2", "web"));
    assert_eq!(backends(&mut store), ["pod 10.1.0.2:80"]);
    store.upsert(make("10.1.0.2", "other"));
    assert!(backends(&mut store).is_empty());
    store.upsert(make("10.1.0.2", "web"));
    store.delete(&key(Kind::Pod, "p"));
    assert!(backends(&mut store).is_empty());
    // A selector-less Service has no backends of its own accord.
    store.upsert(make("10.1.0.2", "web"));
    store.upsert(service("web", "10.96.0.1", &json!({})));
    assert!(backends(&mut store).is_empty());
}

#[test]
fn a_recreated_service_leaves_nothing_at_its_old_address() {
    // S10
    let mut store = store(pair("web", "10.96.0.1", "192.0.2.1"));
    store.snapshot();
    store.upsert(service("web", "10.96.0.2", &json!({})));
    assert_eq!(frontends(&store.snapshot()), ["10.96.0.2:80/TCP default/web/TCP"]);
    store.delete(&key(Kind::Service, "web"));
    let got = store.snapshot();
    assert!(got.frontends.is_empty() && got.ports.is_empty() && got.services.is_empty());
}

#[test]
fn ports_that_change_leave_the_others_as_they_are() {
    // S9
    let mut store = store(vec![service(
        "web",
        "10.96.0.1",
        &json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}),
    )]);
    let before = store.snapshot();
    store.upsert(service(
        "web",
        "10.96.0.1",
        &json!({"ports": [{"name": "a", "port": 80}, {"name": "c", "port": 82}]}),
    ));
    let after = store.snapshot();
    assert!(Arc::ptr_eq(port(&before, "web", "a"), port(&after, "web", "a")));
    assert_eq!(
        frontends(&after),
        ["10.96.0.1:80/TCP default/web:a/TCP", "10.96.0.1:82/TCP default/web:c/TCP"]
    );
}

#[test]
fn an_address_claimed_twice_belongs_to_the_newest() {
    // S11: (created, resourceVersion) of the Services a and b, and who has the address.
    let cases = [
        (("2026-01-01T00:00:00Z", "5"), ("2026-01-02T00:00:00Z", "4"), "b"),
        (("2026-01-02T00:00:00Z", "4"), ("2026-01-01T00:00:00Z", "5"), "a"),
        (("2026-01-01T00:00:00Z", "5"), ("2026-01-01T00:00:00Z", "10"), "b"),
        (("2026-01-01T00:00:00Z", "5"), ("2026-01-01T00:00:00Z", "5"), "a"),
    ];
    for (a, b, owner) in cases {
        let make = |name: &str, (created, version): (&str, &str), number: u16| {
            object(
                Kind::Service,
                json!({"metadata": {"name": name, "creationTimestamp": created,
                "resourceVersion": version}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": number}]}}),
            )
        };
        for turn in [false, true] {
            let mut objects = vec![make("a", a, 80), make("b", b, 81)];
            if turn {
                objects.reverse();
            }
            let mut store = store(objects);
            let got = store.snapshot();
            let number = if owner == "a" { 80 } else { 81 };
            assert_eq!(frontends(&got), [format!("10.96.0.1:{number}/TCP default/{owner}/TCP")]);
            let warning = got.warnings.join(" ");
            assert!(warning.contains("default/a") && warning.contains("default/b"), "{warning}");
            // The winner goes: the other one comes into its own, and the warning goes too.
            store.delete(&key(Kind::Service, owner));
            let got = store.snapshot();
            assert_eq!((got.frontends.len(), got.warnings.len()), (1, 0));
        }
    }
}

#[test]
fn what_changes_nothing_costs_nothing() {
    let objects = || [pair("web", "10.96.0.1", "192.0.2.1"), pair("api", "10.96.0.2", "192.0.2.2")].concat();
    let mut store = store(objects());
    let before = store.snapshot();
    assert!(Arc::ptr_eq(&before, &store.snapshot()));
    store.replace(objects());
    assert!(Arc::ptr_eq(&before, &store.snapshot()));
    // Equal ports keep their allocation even when they were built anew.
    store.set_local(Local { own_addresses: vec!["192.168.77.1".parse().unwrap()], ..Local::new("edge-a") });
    let after = store.snapshot();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(diff(&before, &after).is_empty());
    assert!(Arc::ptr_eq(port(&before, "web", ""), port(&after, "web", "")));
}

#[test]
fn a_full_state_sweeps_what_is_not_in_it() {
    let cidr = object(
        Kind::ServiceCidr,
        json!({"metadata": {"name": "c"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00::/108"]}}),
    );
    let orphan = object(Kind::EndpointSlice, json!({"metadata": {"name": "orphan"}, "addressType": "IPv4"}));
    let rule = object(Kind::DestinationRule, json!({"metadata": {"name": "web"}}));
    let pod = object(Kind::Pod, pod("p", "edge-a", "10.1.0.1", "192.168.77.1", &json!({}), &json!([])));
    let all = [
        pair("web", "10.96.0.1", "192.0.2.1"),
        pair("api", "10.96.0.2", "192.0.2.2"),
        vec![cidr, orphan, rule, pod, node("edge-b", "192.168.77.2", "z")],
    ]
    .concat();
    let mut store = store(all);
    let got = store.snapshot();
    assert_eq!((got.service_cidrs.len(), got.node_ips.len(), got.warnings.len()), (2, 1, 1));
    store.replace(pair("api", "10.96.0.2", "192.0.2.2"));
    let got = store.snapshot();
    assert_eq!((got.service_cidrs.len(), got.node_ips.len(), got.warnings.len()), (0, 0, 0));
    assert_eq!((got.services.len(), got.ports.len(), got.frontends.len()), (1, 1, 1));
    store.replace(Vec::new());
    let got = store.snapshot();
    assert!(got.services.is_empty() && got.ports.is_empty() && got.frontends.is_empty());
    assert_eq!(
        (store.keys().len(), store.ids.len(), store.claims.len()),
        (0, 0, 0),
        "nothing is left behind"
    );
    assert_eq!(store.free.len(), store.slots.len());
}
