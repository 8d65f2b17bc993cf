//! Conditions, hints and policies (sections 3 and 4 of the table of Service semantics).

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::super::testing::*;
use super::super::{Local, Store};

/// `(node, zone hints, node hints, conditions)` of an endpoint; its address follows from its place in the list.
type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Conditions);

/// ready, serving, terminating
type Conditions = (Option<bool>, Option<bool>, Option<bool>);

const READY: Conditions = (Some(true), Some(true), Some(false));
const NOT: Conditions = (Some(false), Some(false), Some(false));
const ENDING: Conditions = (Some(false), Some(true), Some(true));
const DYING: Conditions = (Some(false), Some(false), Some(true));

fn rows(rows: &[Row<'_>]) -> Value {
    let names = |list: &[&str]| list.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
    let row = |(at, (node, zones, nodes, (ready, serving, terminating))): (usize, &Row<'_>)| {
        json!({"addresses": [format!("192.0.2.{}", at + 1)], "nodeName": node,
            "hints": {"forZones": names(zones), "forNodes": names(nodes)},
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    };
    rows.iter().enumerate().map(row).collect()
}

/// The last numbers of the eligible addresses, `|` before the reserve, then `:` and the excluded ones with the
/// first word of their reason.
fn outcome(spec: &Value, endpoints: &Value, zone: Option<&str>) -> String {
    let mut objects = vec![service("web", "10.96.0.1", spec), slice("x", "web", endpoints)];
    objects.extend(zone.map(|zone| node("edge-a", "192.168.77.1", zone)));
    let mut store = Store::new(Local::new("edge-a"));
    store.replace(objects);
    let snapshot = store.snapshot();
    let set = &port(&snapshot, "web", "").v4;
    let last = |ip: std::net::IpAddr| ip.to_string().rsplit('.').next().unwrap().to_owned();
    let mut text = String::new();
    for (at, backend) in set.eligible.iter().enumerate() {
        if at == set.preferred {
            text += "|";
        }
        text += &last(backend.addr.0.ip());
        if backend.terminating {
            text += "t";
        }
    }
    for gone in &set.excluded {
        let why = gone.why.to_string();
        let _ = write!(
            text,
            " {}:{}",
            last(gone.backend.addr.0.ip()),
            why.split([' ', ',']).take(2).collect::<Vec<_>>().join("-")
        );
    }
    text
}

/// What it is about, the Service's spec, its endpoints, this node's zone, the outcome.
type Case<'a> = (&'a str, &'a Value, Vec<Row<'a>>, Option<&'a str>, &'a str);

#[test]
#[allow(clippy::too_many_lines)] // one table
fn endpoints_are_chosen_by_conditions_hints_and_policy() {
    let cluster = json!({});
    let local = json!({"internalTrafficPolicy": "Local"});
    let (a, b) = ("edge-a", "edge-b");
    let cases: Vec<Case<'_>> = vec![
        ("all ready", &cluster, vec![(a, &[], &[], READY), (b, &[], &[], READY)], None, "12"),
        ("E1 nil is ready", &cluster, vec![(b, &[], &[], (None, None, None))], None, "1"),
        ("not ready", &cluster, vec![(a, &[], &[], NOT), (b, &[], &[], READY)], None, "2 1:not-ready"),
        (
            "E4 a terminating one while others are ready",
            &cluster,
            vec![(a, &[], &[], ENDING), (b, &[], &[], READY)],
            None,
            "2 1:terminating-",
        ),
        (
            "E4 fallback",
            &cluster,
            vec![(a, &[], &[], ENDING), (b, &[], &[], NOT), (b, &[], &[], DYING)],
            None,
            "1t 2:not-ready 3:not-ready",
        ),
        ("E4 never one that does not serve", &cluster, vec![(b, &[], &[], DYING)], None, " 1:not-ready"),
        (
            "E4 serving but not terminating is no fallback",
            &cluster,
            vec![(b, &[], &[], (Some(false), Some(true), Some(false)))],
            None,
            " 1:not-ready",
        ),
        (
            "S12 ready and terminating is ready",
            &cluster,
            vec![(b, &[], &[], (Some(true), Some(true), Some(true))), (b, &[], &[], ENDING)],
            None,
            "1 2:terminating-",
        ),
        // Hints.
        ("zone hints", &cluster, vec![(b, &["z1"], &[], READY), (b, &["z2"], &[], READY)], Some("z2"), "2|1"),
        (
            "zone hints, zone unknown",
            &cluster,
            vec![(b, &["z1"], &[], READY), (b, &["z2"], &[], READY)],
            None,
            "12",
        ),
        (
            "zone hints, none for us",
            &cluster,
            vec![(b, &["z1"], &[], READY), (b, &["z2"], &[], READY)],
            Some("z3"),
            "12",
        ),
        (
            "zone hints incomplete",
            &cluster,
            vec![(b, &["z1"], &[], READY), (b, &[], &[], READY)],
            Some("z1"),
            "12",
        ),
        (
            "hints of those not ready do not count",
            &cluster,
            vec![(b, &["z1"], &[], READY), (b, &["z2"], &[], READY), (b, &[], &[], NOT)],
            Some("z1"),
            "1|2 3:not-ready",
        ),
        (
            "node hints",
            &cluster,
            vec![(b, &["z"], &["edge-b"], READY), (a, &["z"], &["edge-a"], READY)],
            Some("z"),
            "2|1",
        ),
        (
            "node hints for others: zones",
            &cluster,
            vec![(b, &["z1"], &["edge-b"], READY), (a, &["z2"], &["edge-c"], READY)],
            Some("z1"),
            "1|2",
        ),
        (
            "node hints incomplete: zones",
            &cluster,
            vec![(b, &["z1"], &[], READY), (a, &["z2"], &["edge-a"], READY)],
            Some("z1"),
            "1|2",
        ),
        (
            "several zones in one hint",
            &cluster,
            vec![(b, &["z1", "z2"], &[], READY), (b, &["z2"], &[], READY), (b, &["z1"], &[], READY)],
            Some("z2"),
            "12|3",
        ),
        (
            "fallback ignores hints",
            &cluster,
            vec![(b, &["z1"], &[], ENDING), (b, &["z2"], &[], ENDING)],
            Some("z1"),
            "1t2t",
        ),
        // internalTrafficPolicy: Local.
        ("B6", &local, vec![(a, &[], &[], READY), (b, &[], &[], READY)], None, "1 2:not-on"),
        ("B6 none here", &local, vec![(b, &[], &[], READY)], None, " 1:not-on"),
        (
            "B6 never remote, not even terminating ones",
            &local,
            vec![(a, &[], &[], NOT), (b, &[], &[], READY)],
            None,
            " 1:not-ready 2:not-on",
        ),
        ("B6 local fallback", &local, vec![(a, &[], &[], ENDING), (b, &[], &[], READY)], None, "1t 2:not-on"),
        (
            "B6 ignores hints",
            &local,
            vec![(a, &["z1"], &[], READY), (a, &["z2"], &[], READY)],
            Some("z2"),
            "12",
        ),
    ];
    for (what, spec, endpoints, zone, want) in cases {
        assert_eq!(outcome(spec, &rows(&endpoints), zone), want, "{what}");
    }
}

#[test]
fn an_endpoint_without_a_node_is_never_local() {
    let endpoints = json!([{"addresses": ["192.0.2.1"]}]);
    assert_eq!(outcome(&json!({"internalTrafficPolicy": "Local"}), &endpoints, None), " 1:not-on");
}

#[test]
fn the_reserve_steps_in_when_the_near_ones_are_out_of_reach() {
    let refer = json!({"kind": "Pod", "name": "p"});
    let endpoints = json!([
        {"addresses": ["192.0.2.1"], "nodeName": "edge-b", "targetRef": refer, "hints": {"forZones": [{"name": "z"}]}},
        {"addresses": ["192.0.2.2"], "hints": {"forZones": [{"name": "y"}]}}]);
    assert_eq!(outcome(&json!({}), &endpoints, Some("z")), "2 1:unreachable:-pod");
    // Likewise the terminating ones, when all that are ready are out of reach.
    let endpoints = json!([
        {"addresses": ["192.0.2.1"], "nodeName": "edge-b", "targetRef": refer},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    assert_eq!(outcome(&json!({}), &endpoints, None), "2t 1:unreachable:-pod");
}

#[test]
fn a_relabelled_node_takes_effect_at_once() {
    // B9
    let endpoints = rows(&[("edge-b", &["z1"], &[], READY), ("edge-b", &["z2"], &[], READY)]);
    let mut store = store(vec![service("web", "10.96.0.1", &json!({})), slice("x", "web", &endpoints)]);
    let mut look = |zone: Option<&str>| {
        if let Some(zone) = zone {
            store.upsert(node("edge-a", "192.168.77.1", zone));
        }
        eligible(&port(&store.snapshot(), "web", "").v4).join(" ")
    };
    assert_eq!(look(None), "external 192.0.2.1:8080 external 192.0.2.2:8080");
    assert_eq!(look(Some("z1")), "external 192.0.2.1:8080 | external 192.0.2.2:8080");
    assert_eq!(look(Some("z2")), "external 192.0.2.2:8080 | external 192.0.2.1:8080");
}

#[test]
fn copies_of_an_endpoint_count_once() {
    // E7: ready beats serving beats not, a local copy makes it local, and one copy going leaves the other.
    let copy = |ready: bool, serving: bool, node: Option<&str>| {
        json!([{"addresses": ["192.0.2.1"], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": !ready}}])
    };
    let cases = [
        (copy(true, true, None), copy(false, false, None), "1"),
        (copy(false, false, None), copy(true, true, None), "1"),
        (copy(false, true, None), copy(false, false, None), "1t"),
        (copy(false, false, None), copy(false, false, None), " not-ready"),
    ];
    for (first, second, want) in cases {
        let mut store = store(vec![
            service("web", "10.96.0.1", &json!({})),
            slice("a", "web", &first),
            slice("b", "web", &second),
        ]);
        let snapshot = store.snapshot();
        let set = &port(&snapshot, "web", "").v4;
        assert_eq!(set.eligible.len() + set.excluded.len(), 1, "{want}");
        assert_eq!(set.eligible.len(), usize::from(!want.starts_with(' ')), "{want}");
        assert!(set.eligible.iter().all(|b| b.terminating == want.ends_with('t')), "{want}");
    }
    let mut store = store(vec![
        service("web", "10.96.0.1", &json!({"internalTrafficPolicy": "Local"})),
        slice("a", "web", &copy(true, true, Some("edge-b"))),
        slice("b", "web", &copy(true, true, Some("edge-a"))),
    ]);
    assert_eq!(port(&store.snapshot(), "web", "").v4.eligible.len(), 1, "one copy is local");
    store.delete(&key(crate::source::slim::Kind::EndpointSlice, "a"));
    assert_eq!(port(&store.snapshot(), "web", "").v4.eligible.len(), 1);
}

mod properties {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the copies are spread over slices: each address once, by its best copy.
        #[test]
        fn any_spread_of_copies_gives_the_same_set(
            copies in prop::collection::vec((0usize..4, 1u8..5, any::<bool>(), any::<bool>()), 0..16),
        ) {
            let mut slices = vec![Vec::new(); 4];
            let mut best: BTreeMap<u8, u8> = BTreeMap::new();
            for (slice, ip, ready, serving) in copies {
                let rank = if ready { 2 } else { u8::from(serving) };
                let known = best.entry(ip).or_default();
                *known = rank.max(*known);
                slices[slice].push(json!({"addresses": [format!("192.0.2.{ip}")],
                    "conditions": {"ready": ready, "serving": serving, "terminating": !ready}}));
            }
            let mut objects = vec![service("web", "10.96.0.1", &json!({}))];
            objects.extend(slices.iter().enumerate().map(|(n, e)| slice(&format!("s{n}"), "web", &json!(e))));
            let got = snapshot(objects);
            let set = &port(&got, "web", "").v4;
            let top = best.values().copied().max().unwrap_or(0);
            let want: Vec<u8> = best.iter().filter(|(_, r)| top > 0 && **r == top).map(|(ip, _)| *ip).collect();
            let addrs: Vec<String> = want.iter().map(|ip| format!("external 192.0.2.{ip}:8080")).collect();
            prop_assert_eq!(eligible(set), addrs);
            prop_assert_eq!(set.excluded.len(), best.len() - want.len());
        }
    }
}
