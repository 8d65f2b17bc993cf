//! Whatever a client sends: the answer is a message to its question, of bounded length, and never larger than allowed.
#![no_main]

use std::sync::{Arc, LazyLock};

use edgesplice::dns::message::{self, Packet};
use edgesplice::dns::wire;
use edgesplice::dns::zone::{Outcome, Zone};
use edgesplice::model::{Local, Snapshot, Store};
use edgesplice::source::slim::{Kind, decode};
use hickory_proto::op::{Message, ResponseCode};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

static WORLD: LazyLock<(Arc<Snapshot>, Zone)> = LazyLock::new(|| {
    let object = |kind, value: Value| decode(kind, value).expect("a good object");
    let mut store = Store::new(Local::new("edge-a"));
    let many: Vec<Value> = (1..=90)
        .map(|n| json!({"addresses": [format!("10.1.0.{n}")], "hostname": format!("db-{n}"), "conditions": {"ready": true}}))
        .collect();
    store.replace(vec![
        object(Kind::Service, json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}})),
        object(Kind::Service, json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 1}]}})),
        object(Kind::Service, json!({"metadata": {"name": "out"}, "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}})),
        object(Kind::EndpointSlice, json!({"metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": many})),
    ]);
    (store.snapshot(), Zone::new("cluster.local").expect("a domain"))
});

fuzz_target!(|packet: &[u8]| {
    let (snapshot, zone) = &*WORLD;
    let answer = match message::read(packet) {
        Packet::Noise => return,
        Packet::Refused(answer) => {
            assert!(answer.len() <= packet.len() + 11, "a refusal must not amplify");
            answer
        }
        Packet::Query(query) => {
            let limit = query.limit(false);
            let soa = zone.soa();
            let answer = match zone.answer(snapshot, &query.name, query.kind) {
                Outcome::Found { records, additional } => {
                    query.answer(ResponseCode::NoError, records, Some(&soa), additional, limit)
                }
                Outcome::Unknown => query.answer(ResponseCode::NXDomain, vec![], Some(&soa), vec![], limit),
                Outcome::Alias { .. } | Outcome::Foreign => query.fail(ResponseCode::ServFail),
            };
            assert!(answer.len() <= limit);
            assert_eq!(answer.get(wire::HEADER..wire::HEADER + query.question.len()), Some(&query.question[..]));
            answer
        }
    };
    assert_eq!(answer[..2], packet[..2]);
    assert!(wire::flags(&answer) & wire::flag::RESPONSE != 0);
    Message::from_vec(&answer).expect("an answer can be read");
});
