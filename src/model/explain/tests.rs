use std::sync::Arc;

use serde_json::json;

use crate::source::slim::Kind;

use super::super::testing::*;
use super::*;

const DOMAIN: &str = "cluster.local";

fn world() -> Arc<Snapshot> {
    let ends = |ips: &[&str]| ips.iter().map(|ip| json!({"addresses": [ip]})).collect::<serde_json::Value>();
    let out = json!({"metadata": {"name": "out", "labels": {"noproxy": "edgemesh"}},
        "spec": {"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}});
    let shop = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}});
    let many = json!({"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "clusterIPs": ["10.96.0.1", "fd00::1"]});
    let dns = json!({"metadata": {"name": "web-u", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}]});
    snapshot(vec![
        service("web", "10.96.0.1", &many),
        object(Kind::EndpointSlice, dns),
        service("empty", "10.96.0.2", &json!({})),
        service("local", "10.96.0.3", &json!({"internalTrafficPolicy": "Local"})),
        slice("local-x", "local", &ends(&["192.0.2.3"])),
        service("none", "None", &json!({})),
        service("bare", "10.96.0.4", &json!({"ports": []})),
        object(Kind::Service, out),
        object(Kind::Service, shop),
        service("sick", "10.96.0.6", &json!({})),
        slice(
            "sick-x",
            "sick",
            &json!([{"addresses": ["192.0.2.4"], "conditions": {"ready": false}},
            {"addresses": ["192.0.2.5"], "conditions": {"ready": false}}, {"addresses": ["10.96.0.1"]}]),
        ),
        service("far", "203.0.113.1", &json!({})),
        slice("far-x", "far", &ends(&["192.0.2.6"])),
    ])
}

fn ranges() -> Vec<IpNet> {
    vec!["10.96.0.0/16".parse().unwrap(), "fd00::/112".parse().unwrap()]
}

fn known<'a>(snapshot: &'a Snapshot, ranges: &'a [IpNet], live: LiveLookup<'a>) -> Known<'a> {
    static NAMES: BTreeSet<Frontend> = BTreeSet::new();
    Known { snapshot, ranges, names: &NAMES, by_name: &NAMES, domain: DOMAIN, live }
}

fn ask(target: &str) -> Resolution {
    resolve(known(&world(), &ranges(), &|_, _| None), target).unwrap()
}

#[test]
fn every_kind_of_target_gets_its_verdict() {
    use Verdict::{NotIntercepted, Proxied, Refused};
    // (target, verdict, frontend, part of why)
    let cases = [
        ("10.96.0.1:80", Proxied, Some("10.96.0.1:80"), "1 backend may be picked"),
        ("10.96.0.1:80/tcp", Proxied, Some("10.96.0.1:80"), ""),
        ("010.096.0.1:80", Proxied, Some("10.96.0.1:80"), ""),
        ("web:80", Proxied, Some("10.96.0.1:80"), ""),
        ("web:http", Proxied, Some("10.96.0.1:80"), ""),
        ("WEB.default:80", Proxied, Some("10.96.0.1:80"), ""),
        ("web.default.svc:80", Proxied, Some("10.96.0.1:80"), ""),
        ("web.default.svc.cluster.local:80", Proxied, Some("10.96.0.1:80"), ""),
        ("web.default.svc.cluster.local.:80", Proxied, Some("10.96.0.1:80"), ""),
        ("web", Proxied, Some("10.96.0.1:80"), "several ports, 53/UDP (dns), 80/TCP (http)"),
        ("10.96.0.1:53/udp", Proxied, Some("10.96.0.1:53"), "1 backend may be picked"),
        ("web:53/UDP", Proxied, Some("10.96.0.1:53"), "1 backend may be picked"),
        // A port or protocol that the Service does not have.
        (
            "10.96.0.1:81",
            Refused,
            None,
            "Service default/web has no port 81/TCP; it has 53/UDP (dns), 80/TCP (http)",
        ),
        ("10.96.0.1:53", Refused, None, "for UDP ask with /udp"),
        ("web:smtp", Refused, None, "no TCP port named smtp"),
        // No backends, each with its reason.
        ("empty:80", Refused, Some("10.96.0.2:80"), "Service default/empty has no endpoints for port 80/TCP"),
        ("local:80", Refused, Some("10.96.0.3:80"), "internalTrafficPolicy is Local"),
        (
            "sick:80",
            Refused,
            Some("10.96.0.6:80"),
            "none of the 3 endpoints can be used: 2 not ready; 1 would loop: ",
        ),
        ("shop.web:80", NotIntercepted, None, "no Service web/shop is known"),
        ("web.shop:80", Refused, Some("10.96.0.7:80"), "Service shop/web has no endpoints"),
        ("[fd00::1]:80", Refused, Some("[fd00::1]:80"), "no endpoints"),
        // Addresses of nobody.
        (
            "10.96.200.9:80",
            Refused,
            None,
            "no Service has the address 10.96.200.9, which lies in the captured range 10.96.0.0/16",
        ),
        ("192.168.1.1:80", NotIntercepted, None, "outside of the captured ranges (10.96.0.0/16, fd00::/112)"),
        ("203.0.113.1:80", NotIntercepted, Some("203.0.113.1:80"), "outside of the captured ranges"),
        ("bare:80", Refused, None, "has no ports"),
        ("10.96.0.4:80", Refused, None, "no Service has the address"),
        // Left alone.
        ("out:80", NotIntercepted, None, "noproxy=edgemesh"),
        ("10.96.0.5:80", NotIntercepted, None, "Service default/out, which is left alone"),
        ("none:80", NotIntercepted, None, "has no ClusterIP"),
        ("missing:80", NotIntercepted, None, "no Service default/missing is known"),
        ("www.example.com:443", NotIntercepted, None, "is not a name of the cluster's domain"),
        ("x.cluster.local:443", NotIntercepted, None, "is not a name of the cluster's domain"),
    ];
    for (target, verdict, frontend, why) in cases {
        let got = ask(target);
        assert_eq!(got.verdict, verdict, "{target}: {}", got.why);
        assert_eq!(got.frontend.as_deref(), frontend, "{target}: {}", got.why);
        assert!(got.why.contains(why), "{target}: {}", got.why);
        assert_eq!(got.target, target);
        assert_eq!(got.service.is_some(), frontend.is_some(), "{target}");
    }
}

#[test]
fn where_requests_are_answered_by_their_names_that_is_said() {
    let by_name: BTreeSet<Frontend> =
        [Frontend { ip: "169.254.96.16".parse().unwrap(), port: 80, protocol: Protocol::Tcp }].into();
    let (world, ranges) = (world(), ranges());
    let known = Known { by_name: &by_name, ..known(&world, &ranges, &|_, _| None) };
    for (target, said) in
        [("169.254.96.16:80", true), ("169.254.96.16:81", false), ("169.254.96.16:80/udp", false)]
    {
        let got = resolve(known, target).unwrap();
        assert_eq!(got.verdict, Verdict::NotIntercepted, "{target}");
        assert_eq!(got.why.contains("HTTP requests"), said, "{target}: {}", got.why);
        assert_eq!(got.why.contains("outside of the captured ranges"), !said, "{target}: {}", got.why);
    }
}

#[test]
fn targets_that_cannot_be_read_say_what_is_expected() {
    for target in [
        "",
        " ",
        "/udp",
        "web:0",
        "web:70000",
        "web:",
        "10.0.0.1:http",
        "web:a_b",
        "[fd00::1]:x",
        "web:80/sctp",
        "we b:80",
        "web..default:80",
        ":80",
        "[fd00::1]x:80",
        "http://web:80",
        "fd00::zz",
        // The same as on the command line.
        "10.96.0.1",
        "[fd00::1]",
        "fd00::1/udp",
    ] {
        let error = resolve(known(&world(), &ranges(), &|_, _| None), target).unwrap_err();
        assert!(!error.to_string().is_empty(), "{target}");
    }
}

#[test]
fn backends_are_listed_with_state_and_reason() {
    let names = |zone: &str| json!([{"name": zone}]);
    let ends = json!([
        {"addresses": ["192.0.2.1"], "hints": {"forZones": names("z1")}, "nodeName": "edge-b", "zone": "z1"},
        {"addresses": ["192.0.2.2"], "hints": {"forZones": names("z2")}},
        {"addresses": ["192.0.2.3"], "conditions": {"ready": false}},
        {"addresses": ["192.0.2.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["192.0.2.5"], "nodeName": "edge-b", "targetRef": {"kind": "Pod", "name": "p"}, "hints": {"forZones": names("z2")}},
        {"addresses": ["127.0.0.1"], "hints": {"forZones": names("z2")}}]);
    let got = snapshot(vec![
        service("web", "10.96.0.1", &json!({})),
        slice("x", "web", &ends),
        node("edge-a", "192.168.77.1", "z1"),
    ]);
    let live = |port: &PortId, backend: &Backend| {
        assert_eq!(&*port.service.name, "web");
        (backend.addr.0 == addr("192.0.2.1:8080")).then(|| Live {
            ejected: Some("5 failures in a row".to_owned()),
            active_connections: 1,
            connections_total: 2,
            failures_total: 3,
            requests_total: 0,
        })
    };
    let got = resolve(known(&got, &ranges(), &live), "web:80").unwrap();
    let rows: Vec<_> =
        got.backends.iter().map(|b| (&*b.address, &*b.state, b.eligible, &*b.reason)).collect();
    let reserve = "used only when the nearer backends cannot be reached";
    assert_eq!(rows[0], ("192.0.2.1:8080", "ejected", Some(true), "5 failures in a row"));
    assert_eq!(rows[1], ("192.0.2.2:8080", "ready", Some(true), reserve));
    let of = |address: &str| *rows.iter().find(|r| r.0 == address).unwrap();
    assert_eq!(of("192.0.2.3:8080"), ("192.0.2.3:8080", "unreachable", Some(false), "not ready"));
    assert_eq!((of("192.0.2.4:8080").1, of("192.0.2.4:8080").2), ("draining", Some(false)));
    assert!(of("192.0.2.5:8080").3.contains("pod default/p on node edge-b is not known here"));
    assert_eq!(
        (
            of("192.0.2.5:8080").1,
            &*got.backends[rows.iter().position(|r| r.0 == "192.0.2.5:8080").unwrap()].reach
        ),
        ("unreachable", "unreachable")
    );
    assert!(of("127.0.0.1:8080").3.contains("loopback"));
    assert_eq!(rows.len(), 6);
    let first = &got.backends[0];
    assert_eq!(
        (first.node.as_deref(), first.zone.as_deref(), first.failures_total),
        (Some("edge-b"), Some("z1"), 3)
    );
    assert_eq!(
        (got.verdict, got.mode.as_deref(), got.policy.as_deref()),
        (Verdict::Proxied, Some("tcp"), Some("least-request"))
    );
    assert!(
        got.why.contains("2 backends may be picked, 1 of them first by topology hints; 1 of them ejected"),
        "{}",
        got.why
    );
}

#[test]
fn a_terminating_fallback_is_draining_and_eligible() {
    let ends = json!([{"addresses": ["192.0.2.1"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let got = snapshot(vec![service("web", "10.96.0.1", &json!({})), slice("x", "web", &ends)]);
    let got = resolve(known(&got, &ranges(), &|_, _| None), "web").unwrap();
    assert_eq!((&*got.backends[0].state, got.backends[0].eligible), ("draining", Some(true)));
    assert_eq!(got.verdict, Verdict::Proxied);
}

#[test]
fn the_loser_of_an_address_is_told_so() {
    let make = |name: &str, created: &str| {
        object(
            Kind::Service,
            json!({"metadata": {"name": name, "creationTimestamp": created},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
        )
    };
    let got = snapshot(vec![make("old", "2026-01-01T00:00:00Z"), make("new", "2026-01-02T00:00:00Z")]);
    let got = resolve(known(&got, &ranges(), &|_, _| None), "old:80").unwrap();
    assert_eq!(got.verdict, Verdict::Refused);
    assert!(got.why.contains("default/new"), "{}", got.why);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_target_makes_it_panic(target in "\\PC{0,30}|[a-z0-9.:/\\[\\]]{0,30}", domain in "[a-z.]{0,8}") {
            let (world, ranges) = (world(), ranges());
            let _ = resolve(Known { domain: &domain, ..known(&world, &ranges, &|_, _| None) }, &target);
        }

        #[test]
        fn addresses_are_taken_apart(bits: u128, v4: [u8; 4], port in 1u16.., udp: bool) {
            let suffix = if udp { "/udp" } else { "" };
            for ip in [IpAddr::from(v4), IpAddr::from(bits.to_be_bytes())] {
                let target = format!("{}{suffix}", SocketAddr::new(ip, port));
                let got = Target::parse(&target, DOMAIN).unwrap();
                prop_assert_eq!(got.host, Host::Ip(ip.to_canonical()));
                prop_assert_eq!(got.port, Some(PortWord::Number(port)));
                prop_assert_eq!(got.protocol == Protocol::Udp, udp);
            }
        }
    }
}

#[test]
fn the_clusters_own_dns_is_answered_without_a_backend() {
    let dns =
        snapshot(vec![service("dns", "10.96.0.10", &json!({"ports": [{"port": 53, "protocol": "UDP"}]}))]);
    let ranges = ranges();
    let frontend = Frontend { ip: "10.96.0.10".parse().unwrap(), port: 53, protocol: Protocol::Udp };
    let names = BTreeSet::from([frontend]);
    let plain = known(&dns, &ranges, &|_, _| None);
    assert_eq!(resolve(plain, "dns:53/udp").unwrap().verdict, Verdict::Refused);
    let answered = resolve(Known { names: &names, ..plain }, "dns:53/udp").unwrap();
    assert_eq!(answered.verdict, Verdict::Proxied, "{}", answered.why);
    assert!(answered.why.contains("answers itself"), "{}", answered.why);
}

#[test]
fn what_is_set_for_a_service_is_noted() {
    let set = json!({"internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "appProtocol": "http"}]});
    let world = snapshot(vec![service("web", "10.96.0.1", &set)]);
    let ranges = ranges();
    let notes = resolve(known(&world, &ranges, &|_, _| None), "web:80").unwrap().notes.join("\n");
    for part in
        ["10.96.0.0/16 are redirected", "appProtocol is http", "internalTrafficPolicy is Local", "10800 s"]
    {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}
