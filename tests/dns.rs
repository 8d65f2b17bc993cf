//! Names as clients see them: pods and host, on the agent's own address and on the cluster's, with and without servers
//! for foreign names.

mod lab;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::time::Duration;

use lab::{Agent, Datagrams, Lab, Netns, Node, Pod, Run, eventually, objects};
use nix::errno::Errno;
use serde_json::{Value, json};

const OWN: &str = "169.254.96.16";
const CLUSTER: &str = "10.96.0.10";
const CLUSTER_V6: &str = "fd00:10:96::a";

fn headless(name: &str, ports: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": ports}})
}

fn manifest() -> String {
    let mut dns = objects::service(
        "kube-dns",
        &[CLUSTER, CLUSTER_V6],
        &[("dns", 53, 53, "UDP"), ("dns-tcp", 53, 53, "TCP")],
    );
    dns["metadata"]["namespace"] = json!("kube-system");
    let mut database =
        objects::slice("db", &[("sql", 5432, "TCP")], &["10.244.2.7", "10.244.2.8", "10.244.2.9"]);
    database["endpoints"][0]["hostname"] = json!("db-0");
    database["endpoints"][2]["conditions"]["ready"] = json!(false);
    let external = |name: &str, target: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": target}})
    };
    let many: Vec<String> = (1..=100).map(|n| format!("10.244.3.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    objects::list([
        dns,
        objects::service(
            "web",
            &["10.96.0.60", "fd00:10:96::60"],
            &[("http", 80, 8080, "TCP"), ("sync", 90, 9090, "UDP")],
        ),
        objects::service("solo", &["10.96.0.61"], &[("http", 80, 8080, "TCP")]),
        headless("db", &json!([{"name": "sql", "port": 5432, "protocol": "TCP"}])),
        database,
        headless("asleep", &json!([])),
        headless("crowd", &json!([{"name": "x", "port": 1}])),
        objects::slice("crowd", &[("x", 1, "TCP")], &many),
        external("alias", "web.default.svc.cluster.local"),
        external("outside", "www.example.test"),
        external("lost", "nothing.example.test"),
        external("alone", "solo.default.svc.cluster.local"),
        external("dangling", "none.default.svc.cluster.local"),
        external("circle", "circle.default.svc.cluster.local"),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bare"}}),
    ])
}

struct Scene {
    a: Node,
    b: Node,
    routed: Pod,
    bridged: Pod,
    agent: Agent,
    _lab: Lab,
}

impl Scene {
    fn new(label: &str, args: &[&str]) -> Self {
        let lab = Lab::new(label);
        let (a, b) = (lab.node("a"), lab.node("b"));
        let (routed, bridged) = (a.pod("routed"), a.bridged_pod("bridged"));
        let agent = Agent::on(&a).backend("nft").args(args).manifest("cluster.json", &manifest()).start();
        Self { a, b, routed, bridged, agent, _lab: lab }
    }

    fn clients(&self) -> [(&str, &Netns); 3] {
        [("a routed pod", &self.routed), ("a bridged pod", &self.bridged), ("the host", &self.a)]
    }
}

/// What `dig` printed, and what it says of the answer.
struct Dug {
    text: String,
    status: String,
}

impl Dug {
    fn flag(&self, flag: &str) -> bool {
        let line = self.text.lines().find_map(|line| line.strip_prefix(";; flags: "));
        line.and_then(|line| line.split(';').next()).is_some_and(|flags| flags.split(' ').any(|f| f == flag))
    }

    /// How long the answer took, without the start of `dig` itself.
    fn took(&self) -> Duration {
        let line = self.text.lines().find_map(|line| line.strip_prefix(";; Query time: "));
        let millis = line.and_then(|line| line.split(' ').next()).and_then(|word| word.parse().ok());
        Duration::from_millis(millis.unwrap_or_else(|| panic!("no answer: {}", self.text)))
    }

    /// The lines of a section without their columns' padding.
    fn section(&self, title: &str) -> Vec<String> {
        let head = format!(";; {title} SECTION:");
        let lines = self.text.lines().skip_while(|line| *line != head).skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        let mut lines: Vec<String> =
            lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        lines.sort();
        lines
    }
}

fn dig(client: &Netns, server: &str, args: &[&str]) -> Dug {
    let at = format!("@{server}");
    let Run { stdout, stderr, .. } =
        client.run(&[&["dig", "+time=3", "+tries=1", "+nocookie", &at], args].concat());
    let status = stdout.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none");
    Dug { status: status.to_owned(), text: format!("{stdout}{stderr}") }
}

#[test]
fn cluster_names_are_answered_everywhere() {
    let scene = Scene::new("dns-where", &[]);
    for (place, client) in scene.clients() {
        for server in [OWN, CLUSTER, CLUSTER_V6] {
            for more in ["+notcp", "+tcp"] {
                let dug = dig(client, server, &["web.default.svc.cluster.local", "A", more]);
                let wanted = ["web.default.svc.cluster.local. 5 IN A 10.96.0.60"];
                assert_eq!(
                    dug.section("ANSWER"),
                    wanted,
                    "{place} {server} {more}: {}\n{}",
                    dug.text,
                    scene.agent.log()
                );
            }
        }
    }
    let status = scene.agent.status();
    assert_eq!(status["warnings"], json!([]), "{status}");
}

/// Rows D1 to D18 of the specification: question, type, status, answer.
#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_kind_of_record() {
    let scene = Scene::new("dns-records", &[]);
    let all: Vec<String> =
        (1..=100).map(|n| format!("crowd.default.svc.cluster.local. 5 IN A 10.244.3.{n}")).collect();
    let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
    all.sort_unstable();
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (
            "dns-version.cluster.local",
            "TXT",
            "NOERROR",
            &["dns-version.cluster.local. 28800 IN TXT \"1.1.0\""],
        ),
        (
            "web.default.svc.cluster.local",
            "AAAA",
            "NOERROR",
            &["web.default.svc.cluster.local. 5 IN AAAA fd00:10:96::60"],
        ),
        (
            "wEb.DEFAULT.svc.Cluster.local",
            "A",
            "NOERROR",
            &["wEb.DEFAULT.svc.Cluster.local. 5 IN A 10.96.0.60"],
        ),
        ("solo.default.svc.cluster.local", "AAAA", "NOERROR", &[]),
        ("solo.default.svc.cluster.local", "MX", "NOERROR", &[]),
        ("none.default.svc.cluster.local", "A", "NXDOMAIN", &[]),
        ("web.none.svc.cluster.local", "A", "NXDOMAIN", &[]),
        ("x.y.z.web.default.svc.cluster.local", "A", "NXDOMAIN", &[]),
        (
            "_http._tcp.web.default.svc.cluster.local",
            "SRV",
            "NOERROR",
            &["_http._tcp.web.default.svc.cluster.local. 5 IN SRV 0 100 80 web.default.svc.cluster.local."],
        ),
        (
            "_sync._udp.web.default.svc.cluster.local",
            "SRV",
            "NOERROR",
            &["_sync._udp.web.default.svc.cluster.local. 5 IN SRV 0 100 90 web.default.svc.cluster.local."],
        ),
        ("_http._udp.web.default.svc.cluster.local", "SRV", "NXDOMAIN", &[]),
        ("_tcp.web.default.svc.cluster.local", "SRV", "NOERROR", &[]),
        (
            "60.0.96.10.in-addr.arpa",
            "PTR",
            "NOERROR",
            &["60.0.96.10.in-addr.arpa. 5 IN PTR web.default.svc.cluster.local."],
        ),
        (
            "db.default.svc.cluster.local",
            "A",
            "NOERROR",
            &[
                "db.default.svc.cluster.local. 5 IN A 10.244.2.7",
                "db.default.svc.cluster.local. 5 IN A 10.244.2.8",
            ],
        ),
        (
            "db-0.db.default.svc.cluster.local",
            "A",
            "NOERROR",
            &["db-0.db.default.svc.cluster.local. 5 IN A 10.244.2.7"],
        ),
        (
            "10-244-2-8.db.default.svc.cluster.local",
            "A",
            "NOERROR",
            &["10-244-2-8.db.default.svc.cluster.local. 5 IN A 10.244.2.8"],
        ),
        ("db-1.db.default.svc.cluster.local", "A", "NXDOMAIN", &[]),
        (
            "_sql._tcp.db.default.svc.cluster.local",
            "SRV",
            "NOERROR",
            &[
                "_sql._tcp.db.default.svc.cluster.local. 5 IN SRV 0 100 5432 10-244-2-8.db.default.svc.cluster.local.",
                "_sql._tcp.db.default.svc.cluster.local. 5 IN SRV 0 100 5432 db-0.db.default.svc.cluster.local.",
            ],
        ),
        (
            "7.2.244.10.in-addr.arpa",
            "PTR",
            "NOERROR",
            &["7.2.244.10.in-addr.arpa. 5 IN PTR db-0.db.default.svc.cluster.local."],
        ),
        ("asleep.default.svc.cluster.local", "A", "NXDOMAIN", &[]),
        (
            "alias.default.svc.cluster.local",
            "A",
            "NOERROR",
            &[
                "alias.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.",
                "web.default.svc.cluster.local. 5 IN A 10.96.0.60",
            ],
        ),
        // Where an alias ends counts.
        (
            "alone.default.svc.cluster.local",
            "AAAA",
            "NOERROR",
            &["alone.default.svc.cluster.local. 5 IN CNAME solo.default.svc.cluster.local."],
        ),
        (
            "dangling.default.svc.cluster.local",
            "A",
            "NXDOMAIN",
            &["dangling.default.svc.cluster.local. 5 IN CNAME none.default.svc.cluster.local."],
        ),
        (
            "10-1-0-2.default.pod.cluster.local",
            "A",
            "NOERROR",
            &["10-1-0-2.default.pod.cluster.local. 5 IN A 10.1.0.2"],
        ),
        ("10-1-0-2.none.pod.cluster.local", "A", "NXDOMAIN", &[]),
        ("svc.cluster.local", "A", "NOERROR", &[]),
        ("default.svc.cluster.local", "A", "NOERROR", &[]),
        ("bare.svc.cluster.local", "A", "NOERROR", &[]),
        ("none.svc.cluster.local", "A", "NXDOMAIN", &[]),
        ("cluster.local", "NS", "NOERROR", &["cluster.local. 5 IN NS ns.dns.cluster.local."]),
        ("ns.dns.cluster.local", "A", "NOERROR", &["ns.dns.cluster.local. 5 IN A 10.96.0.10"]),
        ("crowd.default.svc.cluster.local", "A", "NOERROR", &all),
    ];
    let mut wrong = String::new();
    for (name, kind, status, answer) in cases {
        let dug = dig(&scene.routed, CLUSTER, &[name, kind]);
        let negative = answer.iter().all(|line| line.contains(" IN CNAME "));
        let soa = dug.section("AUTHORITY").iter().any(|line| line.contains(" IN SOA ns.dns.cluster.local. "));
        if dug.status != *status || dug.section("ANSWER") != *answer || soa != negative || !dug.flag("aa") {
            let _ = writeln!(wrong, "{name} {kind}: wanted {status} {answer:?}\n{}", dug.text);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // Nobody can say what a circle leads to.
    let dug = dig(&scene.routed, CLUSTER, &["circle.default.svc.cluster.local"]);
    assert!(dug.status == "SERVFAIL" && dug.section("ANSWER").is_empty(), "{}", dug.text);
    // Too much for a client without EDNS: cut off and said to be; over TCP it is whole.
    let cut = dig(&scene.routed, CLUSTER, &["crowd.default.svc.cluster.local", "+noedns", "+ignore"]);
    assert!(cut.flag("tc") && (1..100).contains(&cut.section("ANSWER").len()), "{}", cut.text);
    let whole = dig(&scene.routed, CLUSTER, &["crowd.default.svc.cluster.local", "+tcp"]);
    assert!(!whole.flag("tc") && whole.section("ANSWER").len() == 100, "{}", whole.text);
    // What is no question for us.
    for (args, status) in [
        (&["cluster.local", "AXFR", "+tcp"][..], "REFUSED"),
        (&["version.bind", "CH", "TXT"], "REFUSED"),
        (&["cluster.local", "SOA", "+opcode=NOTIFY"], "NOTIMP"),
        (&["cluster.local", "SOA", "+edns=7", "+noednsneg"], "BADVERS"),
    ] {
        let dug = dig(&scene.routed, OWN, args);
        assert!(dug.status == status || dug.text.contains("Transfer failed"), "{args:?}: {}", dug.text);
    }
}

/// A server for foreign names: `www.example.test` has an address and 2 seconds, nothing else exists.
fn example(ns: &Netns) -> Datagrams {
    Datagrams::start(ns, 53, |query| {
        let end = query.get(12..)?.iter().position(|byte| *byte == 0)? + 17;
        let good =
            query.get(12..end)?.eq_ignore_ascii_case(b"\x03www\x07example\x04test\x00\x00\x01\x00\x01");
        let mut answer = query.get(..end)?.to_vec();
        answer[2..4].copy_from_slice(if good { b"\x81\x80" } else { b"\x81\x83" });
        answer[6..12].copy_from_slice(if good { b"\0\x01\0\0\0\0" } else { b"\0\0\0\0\0\0" });
        if good {
            answer.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x02\x00\x04\xc6\x33\x64\x07");
        }
        Some(answer)
    })
}

#[test]
fn foreign_names_are_relayed_kept_and_given_out_when_nobody_can_be_asked() {
    let scene = Scene::new("dns-foreign", &["--dns-upstream", "192.168.77.2"]);
    let server = example(&scene.b);
    let dug = dig(&scene.routed, CLUSTER, &["WWW.example.test", "A"]);
    assert_eq!(dug.section("ANSWER"), ["WWW.example.test. 2 IN A 198.51.100.7"], "{}", dug.text);
    for (place, client) in scene.clients() {
        for more in ["+notcp", "+tcp"] {
            let dug = dig(client, OWN, &["www.example.test", "A", more]);
            assert_eq!((&*dug.status, dug.section("ANSWER").len()), ("NOERROR", 1), "{place}: {}", dug.text);
        }
    }
    assert!(server.taken() <= 3, "{} questions for one name", server.taken());
    assert_eq!(dig(&scene.routed, OWN, &["nothing.example.test"]).status, "NXDOMAIN");
    let dug = dig(&scene.routed, OWN, &["outside.default.svc.cluster.local"]);
    let wanted = ["outside.default.svc.cluster.local. 5 IN CNAME www.example.test."];
    assert!(dug.section("ANSWER").len() == 2 && dug.section("ANSWER")[0] == wanted[0], "{}", dug.text);

    let lost = ["lost.default.svc.cluster.local. 5 IN CNAME nothing.example.test."];
    let dug = dig(&scene.routed, OWN, &["lost.default.svc.cluster.local"]);
    assert_eq!((&*dug.status, &dug.section("ANSWER")[..]), ("NXDOMAIN", &lost.map(String::from)[..]));

    // The server goes, and the answer's time passes.
    drop(server);
    std::thread::sleep(Duration::from_millis(2_500));
    for _ in 0..3 {
        let dug = dig(&scene.routed, OWN, &["www.example.test", "A"]);
        assert_eq!(dug.section("ANSWER"), ["www.example.test. 30 IN A 198.51.100.7"], "{}", dug.text);
        assert!(dug.took() < Duration::from_secs(1), "{}", dug.text);
        let dug = dig(&scene.routed, OWN, &["other.example.test"]);
        assert!(dug.status == "SERVFAIL" && dug.took() < Duration::from_secs(2), "{}", dug.text);
        // An alias to what nobody can be asked about: no empty answer, which programs take for "no such host".
        let dug = dig(&scene.routed, OWN, &["lost.default.svc.cluster.local"]);
        assert!(dug.status == "SERVFAIL" && dug.took() < Duration::from_secs(2), "{}", dug.text);
        let dug = dig(&scene.routed, OWN, &["outside.default.svc.cluster.local"]);
        assert!(dug.status == "NOERROR" && dug.section("ANSWER").len() == 2, "{}", dug.text);
    }
    let dug = dig(&scene.routed, OWN, &["web.default.svc.cluster.local"]);
    assert!(dug.status == "NOERROR" && dug.took() < Duration::from_millis(500), "{}", dug.text);

    // And comes back.
    let _server = example(&scene.b);
    eventually("fresh answers", Duration::from_secs(8), || {
        let dug = dig(&scene.routed, OWN, &["www.example.test", "A"]);
        dug.section("ANSWER").first().is_some_and(|line| line.contains(" 2 IN A ")).then_some(())
    });
}

/// The cluster's own DNS is asked first while an endpoint of it answers, then the servers of the node, and never an
/// address at which this agent itself answers.
#[test]
fn the_clusters_own_dns_is_asked_first_where_that_is_wished() {
    let lab = Lab::new("dns-cluster");
    let (a, b, c) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\n\
                dns: {upstreamFrom: kube-dns, upstreams: [192.168.77.3, 169.254.96.99]}\n";
    std::fs::write(file.path(), text).expect("a configuration");
    let mut dns =
        objects::service("kube-dns", &[CLUSTER], &[("dns", 53, 53, "UDP"), ("dns-tcp", 53, 53, "TCP")]);
    dns["metadata"]["namespace"] = json!("kube-system");
    let with = |addresses: &[&str]| {
        let mut slice = objects::slice("kube-dns", &[("dns", 53, "UDP"), ("dns-tcp", 53, "TCP")], addresses);
        slice["metadata"]["namespace"] = json!("kube-system");
        objects::list([dns.clone(), slice])
    };
    let config = file.path().display().to_string();
    let agent = Agent::on(&a)
        .backend("nft")
        .args(&["--config", &config])
        // The second endpoint is the cluster's own DNS address once more.
        .manifest("cluster.json", &with(&["192.168.77.2", CLUSTER]))
        .start();
    let (cluster, node) = (example(&b), example(&c));
    for n in 0..4 {
        assert_eq!(dig(&a, OWN, &[&format!("n{n}.example.test")]).status, "NXDOMAIN", "{}", agent.log());
    }
    assert_eq!((cluster.taken(), node.taken()), (4, 0), "{}", agent.log());
    let status = agent.status();
    let listed: Vec<_> = status["dns"]["upstreams"].as_array().expect("a list").iter().collect();
    assert_eq!(listed[0], &json!({"address": "192.168.77.2:53", "up": true}), "{status}");
    assert!(!status["dns"]["upstreams"].to_string().contains(CLUSTER), "{status}");

    // It dies: answers come from the node's server, none is lost.
    drop(cluster);
    for n in 0..6 {
        let dug = dig(&a, OWN, &[&format!("m{n}.example.test")]);
        assert_eq!(dug.status, "NXDOMAIN", "{}\n{}", dug.text, agent.log());
    }
    // Its endpoint moves: followed.
    let asked = node.taken();
    let _back = example(&b);
    agent.write("cluster.json", &with(&["192.168.77.3"]));
    eventually("the new endpoint", Duration::from_secs(10), || {
        let status = agent.status();
        (status["dns"]["upstreams"][0]["address"] == "192.168.77.3:53").then_some(())
    });
    assert_eq!(dig(&a, OWN, &["last.example.test"]).status, "NXDOMAIN");
    assert_eq!(node.taken(), asked + 1);
}

#[test]
fn a_silent_server_costs_two_seconds_at_most_and_a_loop_is_none() {
    // Nobody answers at the first address, and the second leads back here.
    let scene = Scene::new("dns-silent", &["--dns-upstream", "192.168.77.99,10.96.0.10"]);
    for _ in 0..3 {
        let dug = dig(&scene.routed, OWN, &["www.example.test"]);
        assert!(dug.status == "SERVFAIL" && dug.took() < Duration::from_secs(2), "{}", dug.text);
    }
}

#[test]
fn forged_answers_are_not_believed() {
    let scene = Scene::new("dns-forged", &["--dns-upstream", "192.168.77.2"]);
    // Its answers carry another id than the question.
    let forger = lab::Datagrams::start(&scene.b, 53, |query| {
        let mut answer = query.to_vec();
        answer[0] ^= 0xff;
        answer[2] |= 0x80;
        Some(answer)
    });
    assert_eq!(dig(&scene.routed, OWN, &["www.example.test"]).status, "SERVFAIL");
    assert!(forger.taken() > 0);
}

#[test]
fn hostile_packets_are_refused_or_dropped_and_hurt_nobody() {
    let scene = Scene::new("dns-hostile", &["--dns-upstream", "192.168.77.2"]);
    let question = b"\x03web\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
    let query = |flags: [u8; 2], counts: [u8; 8], rest: &[u8]| [&[1, 2], &flags[..], &counts, rest].concat();
    let one = [0, 1, 0, 0, 0, 0, 0, 0];
    let cases: Vec<(&str, Vec<u8>, Option<u8>)> = vec![
        ("nothing", vec![], None),
        ("half a header", vec![0; 7], None),
        ("a response", query([0x81, 0], one, question), None),
        ("no question", query([1, 0], [0; 8], &[]), Some(1)),
        (
            "two questions",
            query([1, 0], [0, 2, 0, 0, 0, 0, 0, 0], &[&question[..], question].concat()),
            Some(1),
        ),
        ("a name that points to itself", query([1, 0], one, b"\xc0\x0c\x00\x01\x00\x01"), Some(1)),
        ("a name that is cut off", query([1, 0], one, b"\x3fab"), Some(1)),
        ("records that are not there", query([1, 0], [0, 1, 0, 0, 0, 0, 255, 255], question), Some(1)),
        ("an update", query([0x28, 0], one, question), Some(4)),
        ("a good one", query([1, 0], one, question), Some(0)),
    ];
    let socket = scene.routed.udp_from(0, "169.254.96.16:53");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    for (what, packet, code) in &cases {
        let mut answer = [0; 2_048];
        socket.send(packet).expect(what);
        let got = socket.recv(&mut answer).ok().map(|_| answer[3] & 15);
        assert_eq!(got, *code, "{what}");
    }
    // A flood of noise, and a stream that lies about its length.
    for n in 0..5_000_u32 {
        let noise: Vec<u8> =
            (0..n % 600).map(|at| u8::try_from((n * 31 + at * 17) % 256).unwrap_or(0)).collect();
        let _ = socket.send(&noise);
    }
    let mut stream = scene.routed.connect("169.254.96.16:53").expect("TCP");
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).expect("a lie");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert_eq!(dig(&scene.bridged, OWN, &["web.default.svc.cluster.local"]).status, "NOERROR");
}

/// `check` with files of its own in place of the machine's: the chain of a good node, and of one that goes past us.
#[test]
fn check_follows_the_chain_and_prints_the_line_to_change() {
    let lab = Lab::new("dns-check");
    let (a, _other) = (lab.node("a"), lab.node("b"));
    let _agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest()).start();
    let check = |resolv_conf: &str, cluster_dns: &str| -> Vec<(String, String)> {
        let script = format!(
            "mount -t tmpfs none /var/lib && mkdir /var/lib/kubelet && \
             printf 'clusterDomain: cluster.local\\nclusterDNS: [{cluster_dns}]\\n' >/var/lib/kubelet/config.yaml && \
             printf '{resolv_conf}' >/var/lib/resolv && mount --bind /var/lib/resolv /etc/resolv.conf && \
             printf 'hosts: files dns\\n' >/var/lib/nss && mount --bind /var/lib/nss /etc/nsswitch.conf && \
             {} check -o json --service-cidr 10.96.0.0/16 --state-dir {}",
            lab::PROGRAM,
            lab.dir().display(),
        );
        let run = a.run(&["unshare", "-m", "sh", "-ec", &script]);
        let found: Value =
            serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stderr));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = found.as_array().expect("a list").iter();
        let all = list.map(|one| (text(&one["id"]), text(&one["mend"])));
        all.filter(|(id, _)| id.starts_with("dns")).collect()
    };
    let good = "nameserver 169.254.96.16\\nnameserver 192.0.2.1\\n";
    assert_eq!(check(good, "10.96.0.10"), []);
    assert_eq!(check(good, OWN), []);
    let found = check("nameserver 192.0.2.1\\n", "192.0.2.1");
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    // That host processes ask somebody else is usual, and no finding.
    assert_eq!(ids, ["dns-pods"]);
    assert!(found[0].1.contains("/var/lib/kubelet/config.yaml: `clusterDNS: [169.254.96.16]`"), "{found:?}");
    // That they ask somebody else first is not what anybody means.
    let found = check("nameserver 192.0.2.1\\nnameserver 169.254.96.16\\n", OWN);
    assert_eq!(found[0].0, "dns-resolv-conf", "{found:?}");
    assert!(found[0].1.contains("first line of /etc/resolv.conf: `nameserver 169.254.96.16`"), "{found:?}");
    // A VPN has made the kernel ask for the way back by mark.
    a.sysctl("net/ipv4/conf/all/src_valid_mark", "1");
    let found = a.edgesplice(&["check", "--dns", "off"]).stdout;
    assert!(found.contains("sysctl -w net.ipv4.conf.all.src_valid_mark=0"), "{found}");
    // Someone has the cluster's own DNS address on this machine.
    a.ip("addr add 10.96.0.10/32 dev lo\n");
    let found = check(good, OWN);
    assert_eq!(found[0].0, "dns-node-local", "{found:?}");
}

#[test]
fn off_means_off_and_the_end_leaves_nothing() {
    let lab = Lab::new("dns-end");
    let a = lab.node("a");
    let before = a.state();
    let agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest()).start();
    assert_eq!(dig(&a, OWN, &["web.default.svc.cluster.local"]).status, "NOERROR");
    assert_eq!(agent.stop(), 0);
    before.assert_same(&a.state(), "after the end");
    let agent =
        Agent::on(&a).backend("nft").args(&["--dns", "off"]).manifest("cluster.json", &manifest()).start();
    // The cluster's DNS has no endpoint here.
    assert_eq!(a.ask_udp("10.96.0.10:53", b"?"), Err(Errno::ECONNREFUSED));
    assert!(!a.must(&["ip", "addr"]).contains(OWN));
    agent.kill();
    let agent = Agent::on(&a).backend("nft").manifest("cluster.json", &manifest()).start();
    agent.kill();
    assert!(a.must(&["ip", "addr"]).contains(OWN));
    a.edgesplice(&["cleanup", "--force"]);
    assert!(!a.must(&["ip", "addr"]).contains(OWN), "cleanup takes the address away");
}
