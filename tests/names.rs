//! The DNS server's pure parts against whatever may come: packets, names, and Services that come and go.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use edgesplice::config::{DnsMode, DnsSettings, UpstreamFrom};
use edgesplice::dns::message::{self, Packet};
use edgesplice::dns::zone::{Outcome, Zone};
use edgesplice::dns::{Current, Dns, cache::Kept, wire};
use edgesplice::model::{Local, Snapshot, Store};
use edgesplice::source::slim::{Kind, Object, decode};
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

fn object(kind: Kind, value: Value) -> Object {
    decode(kind, value).expect("a good object")
}

fn headless(hostname: &str, ready: bool) -> Vec<Object> {
    let service = json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 1}]}});
    let slice = json!({"metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}],
        "endpoints": [{"addresses": ["10.1.0.7"], "hostname": hostname, "conditions": {"ready": ready}}]});
    vec![object(Kind::Service, service), object(Kind::EndpointSlice, slice)]
}

fn service(name: &str, ip: &str) -> Object {
    object(
        Kind::Service,
        json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}}),
    )
}

fn ask(snapshot: &Snapshot, name: &str, kind: RecordType) -> Outcome {
    let zone = Zone::new("cluster.local").expect("a domain");
    zone.answer(snapshot, &Name::from_ascii(name).expect("a name"), kind)
}

fn ips(outcome: &Outcome) -> Vec<IpAddr> {
    let Outcome::Found { records, .. } = outcome else { return Vec::new() };
    records.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[test]
fn answers_follow_the_objects() {
    let mut store = Store::new(Local::new("edge-a"));
    let empty = store.snapshot();
    assert_eq!(ask(&empty, "db.default.svc.cluster.local.", RecordType::A), Outcome::Unknown);
    store.replace([headless("db-0", true), vec![service("web", "10.96.0.7")]].concat());
    let first = store.snapshot();
    let db = IpAddr::from([10, 1, 0, 7]);
    assert_eq!(ips(&ask(&first, "db.default.svc.cluster.local.", RecordType::A)), [db]);
    assert_eq!(ips(&ask(&first, "db-0.db.default.svc.cluster.local.", RecordType::A)), [db]);
    let pointer = |snapshot: &Snapshot, name: &str| match ask(snapshot, name, RecordType::PTR) {
        Outcome::Found { records, .. } => records.iter().map(|r| r.data.to_string()).collect(),
        other => vec![format!("{other:?}")],
    };
    assert_eq!(pointer(&first, "7.0.1.10.in-addr.arpa."), ["db-0.db.default.svc.cluster.local."]);
    assert_eq!(pointer(&first, "7.0.96.10.in-addr.arpa."), ["web.default.svc.cluster.local."]);

    // Another host name, another address, and then not ready.
    for object in headless("db-9", true) {
        store.upsert(object);
    }
    store.upsert(service("web", "10.96.0.8"));
    let second = store.snapshot();
    assert_eq!(ask(&second, "db-0.db.default.svc.cluster.local.", RecordType::A), Outcome::Unknown);
    assert_eq!(pointer(&second, "7.0.1.10.in-addr.arpa."), ["db-9.db.default.svc.cluster.local."]);
    assert_eq!(pointer(&second, "7.0.96.10.in-addr.arpa."), ["Foreign"]);
    assert_eq!(pointer(&second, "8.0.96.10.in-addr.arpa."), ["web.default.svc.cluster.local."]);
    for object in headless("db-9", false) {
        store.upsert(object);
    }
    let third = store.snapshot();
    assert_eq!(ask(&third, "db.default.svc.cluster.local.", RecordType::A), Outcome::Unknown);
    assert_eq!(pointer(&third, "7.0.1.10.in-addr.arpa."), ["Foreign"]);
    store.replace(Vec::new());
    let last = store.snapshot();
    assert!(
        last.names.is_empty() && last.owners.is_empty() && last.hosts.is_empty() && last.services.is_empty()
    );
    // The snapshot that was taken stays what it was.
    assert_eq!(
        ips(&ask(&first, "web.default.svc.cluster.local.", RecordType::A)),
        [IpAddr::from([10, 96, 0, 7])]
    );
}

fn alias(name: &str, to: &str) -> Object {
    object(
        Kind::Service,
        json!({"metadata": {"name": name}, "spec": {"type": "ExternalName", "externalName": to}}),
    )
}

#[test]
fn aliases_that_lead_in_circles_end() {
    let mut store = Store::new(Local::new("edge-a"));
    let mut objects = vec![
        alias("one", "two.default.svc.cluster.local"),
        alias("two", "one.default.svc.cluster.local"),
        alias("self", "self.default.svc.cluster.local"),
        alias("ip", "192.0.2.7"),
        service("web", "10.96.0.7"),
        alias("far-0", "web.default.svc.cluster.local"),
    ];
    let far = |n: u8| alias(&format!("far-{n}"), &format!("far-{}.default.svc.cluster.local", n - 1));
    objects.extend((1..20).map(far));
    store.replace(objects);
    let snapshot = store.snapshot();
    for name in ["one", "self", "far-19"] {
        let outcome = ask(&snapshot, &format!("{name}.default.svc.cluster.local."), RecordType::A);
        assert_eq!(outcome, Outcome::Astray, "{name}");
    }
    let near = ask(&snapshot, "far-4.default.svc.cluster.local.", RecordType::A);
    assert_eq!(ips(&near), [IpAddr::from([10, 96, 0, 7])]);
    // An address as the external name is a name like any other.
    let Outcome::Alias { target, .. } = ask(&snapshot, "ip.default.svc.cluster.local.", RecordType::A) else {
        panic!("no alias")
    };
    assert_eq!(target.to_string(), "192.0.2.7.");
}

/// A DNS server that was told what to say: the first label of the name is the code; with `none` or `nxdomain` comes
/// the SOA, of which 600 s are left, with a minimum of 60 s.
async fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let addr = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 1_500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let Ok(mut message) = Message::from_vec(&buffer[..length]) else { continue };
            let asked = message.queries[0].clone();
            message.metadata.message_type = MessageType::Response;
            let first = asked.name.iter().next().map(<[u8]>::to_vec).unwrap_or_default();
            let origin = asked.name.base_name();
            match &first[..] {
                b"good" => {
                    message.add_answer(Record::from_rdata(asked.name, 60, RData::A(A::new(192, 0, 2, 1))));
                }
                b"servfail" => message.metadata.response_code = ResponseCode::ServFail,
                b"refused" => message.metadata.response_code = ResponseCode::Refused,
                b"silent" => continue,
                code => {
                    if code == b"nxdomain" {
                        message.metadata.response_code = ResponseCode::NXDomain;
                    }
                    let soa = SOA::new(origin.clone(), origin.clone(), 1, 2, 3, 4, 60);
                    message.add_authority(Record::from_rdata(origin, 600, RData::SOA(soa)));
                }
            }
            let _ = socket.send_to(&message.to_vec().expect("a message"), client).await;
        }
    });
    addr
}

/// The answer to an alias is that of what it leads to: an alias alone would say that there is nothing, and be believed.
#[tokio::test]
async fn an_alias_is_answered_as_its_target_is() {
    let cluster = |name: &str| format!("{name}.default.svc.cluster.local");
    let mut store = Store::new(Local::new("edge-a"));
    store.replace(vec![
        service("web", "10.96.0.7"),
        alias("good", "good.example.test"),
        alias("servfail", "servfail.example.test"),
        alias("refused", "refused.example.test"),
        alias("silent", "silent.example.test"),
        alias("nxdomain", "nxdomain.example.test"),
        alias("none", "none.example.test"),
        alias("inside", &cluster("web")),
        alias("missing", &cluster("nobody")),
        alias("self", &cluster("self")),
        alias("one", &cluster("two")),
        alias("two", &cluster("one")),
    ]);
    let snapshot = store.snapshot();
    let (listener, dns) = (
        TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
        server(upstream().await, Arc::new(move || Some(Arc::clone(&snapshot)))),
    );
    let at = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(dns.resolver().serve_stream(stream, peer));
        }
    });
    let ours = Some("cluster.local.");
    let theirs = Some("example.test.");
    let (good, failure, missing) = (ResponseCode::NoError, ResponseCode::ServFail, ResponseCode::NXDomain);
    for (name, kind, code, answer, soa) in [
        ("good", RecordType::A, good, &["CNAME", "A"][..], None),
        ("good", RecordType::CNAME, good, &["CNAME"], None),
        ("nxdomain", RecordType::A, missing, &["CNAME"], theirs),
        ("nxdomain", RecordType::AAAA, missing, &["CNAME"], theirs),
        ("none", RecordType::A, good, &["CNAME"], theirs),
        ("servfail", RecordType::A, failure, &[], None),
        ("refused", RecordType::A, failure, &[], None),
        ("silent", RecordType::A, failure, &[], None),
        // Not kept as anything else.
        ("servfail", RecordType::A, failure, &[], None),
        ("inside", RecordType::A, good, &["CNAME", "A"], None),
        ("inside", RecordType::AAAA, good, &["CNAME"], ours),
        ("inside", RecordType::CNAME, good, &["CNAME"], None),
        ("missing", RecordType::A, missing, &["CNAME"], ours),
        ("missing", RecordType::CNAME, good, &["CNAME"], None),
        ("self", RecordType::A, failure, &[], None),
        ("one", RecordType::AAAA, failure, &[], None),
        ("web", RecordType::AAAA, good, &[], ours),
    ] {
        let asked = Name::from_ascii(format!("{}.", cluster(name))).expect("a name");
        let mut query = Message::query();
        query.add_query(Query::query(asked, kind));
        let mut client = TcpStream::connect(at).await.expect("a stream");
        let told = exchange(&mut client, &query.to_vec().expect("a query")).await;
        let told = Message::from_vec(&told).expect("an answer");
        let kinds: Vec<String> = told.answers.iter().map(|r| r.record_type().to_string()).collect();
        let authority = told.authorities.first().map(|r| r.name.to_string());
        assert_eq!(
            (told.metadata.response_code, &kinds[..], authority.as_deref()),
            (code, &answer.iter().map(ToString::to_string).collect::<Vec<_>>()[..], soa),
            "{name} {kind}: {told:?}"
        );
    }
}

/// A DNS server for `cluster.local` that asks `upstream` for other names.
fn server(upstream: SocketAddr, current: Current) -> Dns {
    let settings = DnsSettings {
        mode: DnsMode::Auto,
        listen: Vec::new(),
        domain: "cluster.local".to_owned(),
        upstreams: vec![upstream],
        upstream_from: UpstreamFrom::Node,
    };
    let runtime = tokio::runtime::Handle::current();
    Dns::new(&settings, runtime, current, Arc::new(|_| false), Arc::new(Vec::new), 0).expect("a DNS server")
}

async fn exchange(client: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    let length = u16::try_from(query.len()).expect("short");
    client.write_all(&[&length.to_be_bytes(), query].concat()).await.expect("a question");
    let mut answer = vec![0; usize::from(client.read_u16().await.expect("a length"))];
    client.read_exact(&mut answer).await.expect("an answer");
    answer
}

/// Before the Services are known, nothing is said not to exist: it would be remembered.
#[tokio::test]
async fn nothing_is_denied_before_the_first_snapshot() {
    let known: Arc<OnceLock<Arc<Snapshot>>> = Arc::default();
    let current = Arc::clone(&known);
    // Nobody is there: a closed port of this machine.
    let dns = server(([127, 0, 0, 1], 1).into(), Arc::new(move || current.get().cloned()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let mut client = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("a stream");
    let (stream, peer) = listener.accept().await.expect("a stream");
    let serving = tokio::spawn(dns.resolver().serve_stream(stream, peer));
    let mut ask = async |name: &[u8]| {
        let query = wire::with_question(7, 0x0100, &[name, b"\0\0\x01\0\x01"].concat());
        let answer = exchange(&mut client, &query).await;
        answer[3] & 15
    };
    let (own, foreign) = (&b"\x04none\x07default\x03svc\x07cluster\x05local"[..], &b"\x03www\x07example"[..]);
    assert_eq!((ask(own).await, ask(foreign).await), (2, 2), "SERVFAIL");
    assert!(known.set(Arc::default()).is_ok());
    assert_eq!((ask(own).await, ask(foreign).await), (3, 2), "NXDOMAIN once that is known");
    drop(client);
    serving.await.expect("no panic");
}

/// Bytes that are nearly a query.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let label = prop_oneof![
        Just("default".to_owned()),
        Just("svc".to_owned()),
        Just("cluster".to_owned()),
        Just("local".to_owned()),
        Just("_sql".to_owned()),
        Just("_tcp".to_owned()),
        Just("db".to_owned()),
        "[a-zA-Z0-9_-]{1,63}",
    ];
    let name = prop::collection::vec(label, 0..8);
    let edit = (any::<prop::sample::Index>(), any::<u8>());
    (
        any::<u16>(),
        any::<u16>(),
        name,
        any::<u16>(),
        any::<bool>(),
        prop::collection::vec(edit, 0..4),
        0usize..40,
    )
        .prop_map(|(id, flags, name, kind, opt, edits, cut)| {
            let mut question = Vec::new();
            for label in name {
                question.push(u8::try_from(label.len()).unwrap_or(63));
                question.extend(label.bytes());
            }
            question.push(0);
            question.extend(kind.to_be_bytes());
            question.extend([0, 1]);
            let mut packet = wire::with_question(id, flags & 0x0130, &question);
            if opt {
                wire::add_opt(&mut packet, true);
            }
            for (at, value) in edits {
                let at = at.index(packet.len());
                packet[at] = value;
            }
            packet.truncate(packet.len().saturating_sub(cut.saturating_sub(20)));
            packet
        })
}

proptest! {
    #[test]
    fn every_answer_is_a_message_of_bounded_length_to_the_question_that_was_asked(packet in packet()) {
        let mut store = Store::new(Local::new("edge-a"));
        store.replace([headless("db-0", true), vec![service("web", "10.96.0.7")]].concat());
        let (snapshot, zone) = (store.snapshot(), Zone::new("cluster.local").expect("a domain"));
        let answer = match message::read(&packet) {
            Packet::Noise => return Ok(()),
            Packet::Refused(answer) => {
                prop_assert!(answer.len() <= packet.len() + 11, "a refusal must not amplify");
                answer
            }
            Packet::Query(query) => {
                let limit = query.limit(false);
                let answer = match zone.answer(&snapshot, &query.name, query.kind) {
                    Outcome::Found { records, additional } => {
                        query.answer(ResponseCode::NoError, records, Some(&zone.soa()), additional, limit)
                    }
                    Outcome::Unknown => query.answer(ResponseCode::NXDomain, vec![], Some(&zone.soa()), vec![], limit),
                    _ => query.fail(ResponseCode::ServFail),
                };
                prop_assert!(answer.len() <= limit, "{} bytes, {limit} allowed", answer.len());
                let question = &query.question;
                prop_assert_eq!(answer.get(wire::HEADER..wire::HEADER + question.len()), Some(&question[..]), "case and all");
                answer
            }
        };
        let read = Message::from_vec(&answer);
        prop_assert!(read.is_ok(), "{:?}: {answer:?}", read.err());
        prop_assert_eq!(&answer[..2], &packet[..2]);
        prop_assert!(wire::flags(&answer) & wire::flag::RESPONSE != 0);
    }

    #[test]
    fn no_bytes_upset_the_reader_or_the_cache(bytes in prop::collection::vec(any::<u8>(), 0..1_300)) {
        let _ = message::read(&bytes);
        if let Some(kept) = Kept::new(bytes, Instant::now()) {
            let _ = kept.render(1, 0, b"\x01a\x00\x00\x01\x00\x01", Instant::now());
        }
    }
}
