//! The admin endpoint of a running agent: health that means that the data plane moves, an endpoint that bad clients
//! cannot hurt and through which nothing can be changed, metrics of real traffic, and the page with its events.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up does")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, whatever a scrape calls them")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use lab::{Agent, Lab, Netns, Node, Server, eventually, objects, read_all};
use nix::errno::Errno;
use serde_json::{Value, json};

const ADMIN: &str = "127.0.0.1:10265";
const WEB: &str = "10.96.0.60:80";
/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

struct Scene {
    a: Node,
    agent: Agent,
    _server: Server,
    _lab: Lab,
}

impl Scene {
    /// A node with one service that greets, one whose backend refuses, and the cluster's DNS without endpoints.
    fn new(label: &str) -> Self {
        let lab = Lab::new(label);
        let (a, b) = (lab.node("a"), lab.node("b"));
        let server = Server::greeting(&b, 7000, "hello");
        let mut dns = objects::service(
            "kube-dns",
            &["10.96.0.10"],
            &[("dns", 53, 53, "UDP"), ("dns-tcp", 53, 53, "TCP")],
        );
        dns["metadata"]["namespace"] = json!("kube-system");
        let web = objects::pair("web", "10.96.0.60", 80, 7000, &["192.168.77.2"]);
        let dead = objects::pair("dead", "10.96.0.61", 80, 7001, &["192.168.77.2"]);
        let all = objects::list(web.into_iter().chain(dead).chain([dns]));
        let agent = Agent::on(&a).manifest("all.json", &all).start();
        Self { a, agent, _server: server, _lab: lab }
    }

    fn served(&self) {
        let mut stream = self.a.connect(WEB).unwrap();
        assert_eq!(read_all(&mut stream).unwrap(), "hello");
    }

    /// Sends `request` to the admin endpoint as it stands; what comes back, as far as it comes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.a.connect(ADMIN).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str, headers: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: {ADMIN}\r\n{headers}\r\n").as_bytes())
    }

    /// One number of a scrape; series are named with their labels.
    fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.agent.get("/metrics").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series}: {text}")).parse().unwrap()
    }
}

/// Holds a thread where it is until killed: traced and interrupted, without a debugger.
const HOLD: &str = r#"
    my ($call, $thread) = (`uname -m` =~ /x86_64/ ? 101 : 117, int $ARGV[0]);
    syscall($call, 0x4206, $thread, 0, 0) == 0 or die "seize: $!";
    syscall($call, 0x4207, $thread, 0, 0) == 0 or die "interrupt: $!";
    sleep;
"#;

#[test]
fn health_means_that_the_data_plane_moves() {
    let scene = Scene::new("admin-health");
    let health = || scene.agent.get("/healthz").unwrap();
    // The agent connects to a service of its own, by the way that clients take.
    eventually("a probe through the acceptor", LONG, || {
        let (code, text) = health();
        assert_eq!(code, 200, "{text}");
        text.contains(&format!("acceptor ok took a connection to {WEB}")).then_some(())
    });
    eventually("a probe in the metrics", LONG, || {
        (scene.metric("edgesplice_selfprobes_total{result=\"answered\"}") >= 2.0).then_some(())
    });
    let status = scene.agent.status();
    assert_eq!(status["proxy"]["acceptedTotal"], 0, "a probe is no client: {status}");
    assert_eq!(status["proxy"]["refusedTotal"], 0, "{status}");

    let threads = std::fs::read_dir(format!("/proc/{}/task", scene.agent.worker())).unwrap();
    let thread = threads
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim() == "data-0")
        .unwrap();
    let thread = thread.file_name().unwrap().to_str().unwrap().to_owned();
    let hold = scene.a.spawn(&["perl", "-e", HOLD, &thread]);
    eventually("a stuck data plane", LONG, || {
        let (code, text) = health();
        assert!(hold.log().is_empty(), "{}", hold.log());
        (code == 503 && text.contains("data-plane not ok")).then_some(())
    });
    // Everything else goes on telling.
    assert_eq!(scene.agent.get("/api/v1/status").unwrap().0, 200);
    drop(hold);
    eventually("a data plane that moves again", LONG, || (health().0 == 200).then_some(()));
    scene.served();
}

#[test]
fn bad_clients_hurt_nobody_and_nothing_can_be_changed() {
    let scene = Scene::new("admin-bad");
    let before = scene.a.state();
    // Far more than are served at once, all of them silent in the middle of a request.
    let slow: Vec<TcpStream> = (0..300)
        .filter_map(|_| {
            let mut stream = scene.a.connect(ADMIN).ok()?;
            let _ = stream.write_all(b"GET /api/v1/sta");
            Some(stream)
        })
        .collect();
    eventually("an answer beside the slow ones", LONG, || {
        matches!(scene.agent.get("/healthz"), Ok((200, _))).then_some(())
    });
    scene.served();
    drop(slow);

    let head = format!("Host: {ADMIN}\r\n");
    for (what, request) in [
        ("a huge path", format!("GET /{} HTTP/1.1\r\n{head}\r\n", "x".repeat(1 << 20)).into_bytes()),
        ("a huge header", format!("GET / HTTP/1.1\r\n{head}X: {}\r\n\r\n", "x".repeat(1 << 20)).into_bytes()),
        ("many headers", format!("GET / HTTP/1.1\r\n{head}{}\r\n", "X: y\r\n".repeat(10_000)).into_bytes()),
        ("no HTTP at all", vec![0xff; 1 << 16]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("a path out of the tree", format!("GET /ui/../../etc/passwd HTTP/1.1\r\n{head}\r\n").into_bytes()),
        ("an encoded one", format!("GET /ui/%2e%2e/page.js HTTP/1.1\r\n{head}\r\n").into_bytes()),
        ("a path with nothing in it", format!("GET //// HTTP/1.1\r\n{head}\r\n").into_bytes()),
        ("another's name", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec()),
        (
            "another's page",
            format!("GET /api/v1/status HTTP/1.1\r\n{head}Origin: http://evil.example\r\n\r\n").into_bytes(),
        ),
        ("half a body", format!("POST / HTTP/1.1\r\n{head}Content-Length: 99999999\r\n\r\nx").into_bytes()),
    ] {
        let answer = scene.raw(&request);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer:.200}");
    }
    for path in
        ["/", "/healthz", "/api/v1/status", "/api/v1/resolve", "/api/v1/events", "/metrics", "/-/quit"]
    {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"] {
            let answer = scene
                .raw(format!("{method} {path} HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n{{}}").as_bytes());
            assert!(
                answer.starts_with("HTTP/1.1 405 ") || method == "CONNECT",
                "{method} {path}: {answer:.200}"
            );
        }
    }
    for target in ["", "%", "%00", "%ff", "a%20b", "1.2.3.4:99999", &"x".repeat(5_000)] {
        let answer = scene.get(&format!("/api/v1/resolve?target={target}"), "");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target:.20}: {answer:.200}");
    }
    scene.served();
    assert!(!scene.agent.log().contains("panicked"), "{}", scene.agent.log());
    before.assert_same(&scene.a.state(), "after all that was asked");
    assert_eq!(scene.agent.stop(), 0);
}

/// What `OpenMetrics` demands of a text, as far as a scraper would stumble over it.
fn check_open_metrics(text: &str) -> BTreeMap<String, String> {
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let (body, rest) = text.split_once("# EOF\n").expect("it has its end");
    assert!(rest.is_empty());
    for line in body.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two heads");
            continue;
        }
        if line.starts_with("# ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        assert!(seen.insert(series.to_owned()), "{series} stands there twice");
        let name = series.split('{').next().unwrap();
        let (last, kind) = kinds
            .iter()
            .filter(|(family, _)| name.starts_with(*family))
            .max_by_key(|(f, _)| f.len())
            .unwrap();
        let end = &name[last.len()..];
        let ends: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        assert!(ends.contains(&end), "{line} of the {kind} {last}");
    }
    kinds
}

#[test]
fn metrics_tell_what_has_passed() {
    let scene = Scene::new("admin-metrics");
    for _ in 0..3 {
        scene.served();
    }
    // Its backend refuses: reset after the connect at first, refused before it from then on.
    eventually("a service that refuses", LONG, || {
        (scene.a.connect("10.96.0.61:80").err() == Some(Errno::ECONNREFUSED)).then_some(())
    });
    eventually("three connections in the metrics", LONG, || {
        (scene.metric("edgesplice_proxy_dials_total{result=\"connected\"}") == 3.0
            && scene.metric("edgesplice_proxy_bytes_total{direction=\"out\"}") == 15.0)
            .then_some(())
    });
    assert_eq!(scene.metric("edgesplice_proxy_dial_duration_seconds_count"), 3.0);
    assert!(scene.metric("edgesplice_proxy_dials_total{result=\"refused\"}") >= 1.0);
    assert!(scene.metric("edgesplice_proxy_connections_refused_total{reason=\"no-backend\"}") >= 1.0);
    assert_eq!(scene.metric("edgesplice_proxy_services_refusing"), 1.0);
    let web = "namespace=\"default\",service=\"web\",port=\"tcp-0\",protocol=\"TCP\"";
    assert_eq!(scene.metric(&format!("edgesplice_service_connections_total{{{web}}}")), 3.0);
    assert_eq!(scene.metric(&format!("edgesplice_service_bytes_out_total{{{web}}}")), 15.0);
    assert_eq!(scene.metric("edgesplice_snapshot_service_ports"), 4.0);
    assert_eq!(scene.metric("edgesplice_rules_installed"), 1.0);
    assert!(scene.metric("edgesplice_rules_sync_duration_seconds_count") >= 1.0);
    assert!(scene.metric("edgesplice_source_updates_total{type=\"full\"}") >= 1.0);
    assert!(scene.metric("edgesplice_conntrack_entries_limit") > 0.0);
    for runtime in ["data-0", "control", "admin"] {
        assert!(
            scene.metric(&format!("edgesplice_runtime_busy_seconds_total{{runtime=\"{runtime}\"}}")) > 0.0,
            "{runtime}"
        );
    }
    let question = scene.a.run(&["dig", "+short", "@169.254.96.16", "web.default.svc.cluster.local"]);
    assert_eq!(question.stdout.trim(), "10.96.0.60", "{}", question.stderr);
    assert!(scene.metric("edgesplice_dns_responses_total{rcode=\"noerror\"}") >= 1.0);
    assert!(scene.metric("edgesplice_dns_response_duration_seconds_count") >= 1.0);
    let kinds = check_open_metrics(&scene.agent.get("/metrics").unwrap().1);
    assert!(kinds.len() > 60, "{kinds:?}");
}

#[test]
fn the_page_is_whole_and_its_events_come() {
    let scene = Scene::new("admin-page");
    let page = scene.get("/", "");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(page.contains(header), "{header}: {page:.900}");
    }
    // Whatever it names is part of the program; nothing comes from elsewhere.
    let links = page.match_indices("=\"/").map(|(at, _)| page[at + 2..].split('"').next().unwrap());
    let links: BTreeSet<&str> = links.collect();
    assert!(links.contains("/ui/page.js") && links.contains("/ui/page.css"), "{links:?}");
    for link in links {
        let answer = scene.get(link, "");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{link}: {answer:.200}");
    }
    let files = ["/", "/ui/page.js", "/ui/page.css"].map(|path| scene.get(path, ""));
    let text = files.concat().replace("http://www.w3.org/2000/svg", "");
    assert!(!text.contains("http://") && !text.contains("https://"), "something comes from elsewhere");
    for danger in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "<style",
        " style=",
        " onclick=",
    ] {
        assert!(!text.contains(danger), "{danger}");
    }

    let first = events(&scene.a, 1);
    assert_eq!(first[0]["status"]["node"], "a", "{}", first[0]);
    assert_eq!(first[0]["status"]["services"].as_array().unwrap().len(), 4);
    assert_eq!(first[0]["omittedServices"], 0);
    // The machine is looked over for the page, beside the events.
    let looked = eventually("findings", LONG, || {
        events(&scene.a, 1).pop().filter(|event| event["findings"].is_array())
    });
    assert!(looked["findingsAgeSeconds"].is_u64(), "{looked}");
    let two = events(&scene.a, 2);
    assert!(two[1]["atMillis"].as_u64() > two[0]["atMillis"].as_u64(), "{two:?}");

    // So many pages and no more; the endpoint goes on all the same, and a place is free once one is closed.
    let listen = || {
        let mut stream = scene.a.connect(ADMIN).unwrap();
        write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {ADMIN}\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        (String::from_utf8_lossy(&head).into_owned(), stream)
    };
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..24 {
        let (head, stream) = listen();
        match head.as_str() {
            "HTTP/1.1 200" => open.push(stream),
            "HTTP/1.1 503" => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(open.len() <= 16 && refused >= 8, "{} pages, {refused} refused", open.len());
    assert_eq!(scene.agent.get("/readyz").unwrap().0, 200);
    drop(open);
    eventually("a place for another page", LONG, || (listen().0 == "HTTP/1.1 200").then_some(()));
    // A page that somebody has open does not hold up the end.
    let _page = listen();
    assert_eq!(scene.agent.stop(), 0);
}

/// The next `count` events.
fn events(node: &Netns, count: usize) -> Vec<Value> {
    let mut stream = node.connect(ADMIN).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {ADMIN}\r\nAccept: text/event-stream\r\n\r\n")
        .unwrap();
    let (mut text, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the events have ended: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..length]);
        let whole = String::from_utf8_lossy(&text);
        let found: Vec<Value> = whole
            .match_indices("event: status\ndata: ")
            .filter_map(|(at, head)| whole[at + head.len()..].split_once("\n\n"))
            // An event that is cut by the framing of the transfer is not needed here.
            .filter_map(|(json, _)| serde_json::from_str(json).ok())
            .collect();
        if found.len() >= count {
            return found;
        }
    }
}

#[test]
fn resolve_and_status_tell_how_it_is_now() {
    let scene = Scene::new("admin-resolve");
    for target in ["kube-dns.kube-system:53/udp", "kube-dns.kube-system:53", "10.96.0.10:53"] {
        let answer = scene.agent.get(&format!("/api/v1/resolve?target={target}")).unwrap().1;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["verdict"], "proxied", "{target}: {answer}");
        assert!(answer["why"].as_str().unwrap().contains("this agent answers itself"), "{answer}");
    }
    let offline = scene.a.edgesplice_json(&[
        "resolve",
        "kube-dns.kube-system:53",
        "-o",
        "json",
        "--service-cidr",
        lab::SERVICE_CIDRS,
        "--manifests",
        &scene.agent.state_dir().with_file_name("manifests").display().to_string(),
    ]);
    assert_eq!(offline["verdict"], "proxied", "{offline}");

    let web = scene.a.edgesplice(&["resolve", WEB]);
    assert!(web.stdout.contains("because   connections to 10.96.0.0/16 are redirected"), "{}", web.stdout);
    eventually("a service that refuses", LONG, || {
        (scene.a.connect("10.96.0.61:80").err() == Some(Errno::ECONNREFUSED)).then_some(())
    });
    let dead = scene.a.edgesplice_json(&["resolve", "dead:80", "-o", "json"]);
    assert_eq!(dead["verdict"], "refused", "{dead}");
    assert!(dead["why"].as_str().unwrap().contains("every backend refused"), "{dead}");

    let one = scene.a.edgesplice(&["status", "default/web"]).stdout;
    assert!(one.contains("default/web:tcp-0") && !one.contains("dead"), "{one}");
    assert!(one.contains("\ndns      169.254.96.16:53  10.96.0.10:53"), "{one}");
    let one = scene.a.edgesplice_json(&["status", "web", "-o", "json"]);
    assert_eq!(one["services"].as_array().unwrap().len(), 1, "{one}");
    let none = scene.a.edgesplice(&["status", "nosuch"]).stdout;
    assert!(none.contains("none of 4 service ports has nosuch in its name"), "{none}");
    // Drawn again and again until interrupted; with rates from the second time on.
    let watched = scene.a.run(&["timeout", "-s", "INT", "8", lab::PROGRAM, "status", "--watch"]).stdout;
    assert!(watched.matches("\nnode     a  ").count() + 1 >= 2 && watched.contains("rates    "), "{watched}");
    let watched =
        scene.a.run(&["timeout", "-s", "INT", "8", lab::PROGRAM, "status", "--watch", "-o", "json"]).stdout;
    let redrawn = watched.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert!(redrawn >= 2, "{watched}");
}
