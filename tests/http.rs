//! HTTP ports in network namespaces: requests balanced one by one, over HTTP/1.1 and HTTP/2, a backend that dies in the
//! middle, what the agent says about it, and protocols that are none of HTTP on such a port.

mod lab;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lab::{Agent, Lab, Node, Pod, Process, Server, eventually, objects, read_all};
use nix::errno::Errno;
use serde_json::{Value, json};

const IP: &str = "10.96.0.20";
const WEB: &str = "10.96.0.20:80";
const LIMIT: Duration = Duration::from_secs(20);

/// Node `a` with a client, a service with backends in pods of the same node, and its agent.
struct Scene<S> {
    client: Pod,
    backends: Vec<(Pod, S)>,
    agent: Agent,
    _node: Node,
    _lab: Lab,
}

impl<S> Scene<S> {
    fn new(label: &str, port_name: &str, start: impl Fn(&Pod, usize) -> S, count: usize) -> Self {
        let lab = Lab::new(label);
        let node = lab.node("a");
        let client = node.pod("client");
        let backends: Vec<_> = (0..count)
            .map(|n| {
                let pod = node.pod(&format!("web{n}"));
                let server = start(&pod, n);
                (pod, server)
            })
            .collect();
        let addresses: Vec<&str> = backends.iter().map(|(pod, _)| &*pod.v4).collect();
        let ports = [(port_name, 80, 8080, "TCP")];
        let mut service = objects::service("web", &[IP], &ports);
        service["metadata"]["annotations"] = json!({"edgesplice.io/load-balancing": "round-robin"});
        let slice = objects::slice("web", &[(port_name, 8080, "TCP")], &addresses);
        let objects = objects::list([service, slice]);
        let agent = Agent::on(&node).manifest("web.json", &objects).start();
        Self { client, backends, agent, _node: node, _lab: lab }
    }

    fn connect(&self) -> BufReader<TcpStream> {
        BufReader::new(self.client.connect(WEB).expect("the service accepts"))
    }
}

/// nginx, whose answers carry its name.
fn named(pod: &Pod, number: usize) -> Process {
    pod.nginx(8080, &format!("web{number}"))
}

/// The lines of the next head. `None` at the end.
fn read_head(reader: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            text => lines.push(text.to_owned()),
        }
    }
}

/// One request on a connection that is kept. Gives the status and who answered, or the body where nobody did.
fn get(reader: &mut BufReader<TcpStream>) -> (u16, String) {
    reader.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").expect("a request");
    let head = read_head(reader).expect("an answer");
    let status = head[0].split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let header = |name: &str| {
        let found = head.iter().find(|line| line.to_lowercase().starts_with(name));
        found.map(|line| line[name.len()..].trim().to_owned())
    };
    let length = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    (status, header("x-served-by:").unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()))
}

#[test]
fn requests_are_spread_and_a_backend_that_dies_is_not_noticed() {
    let mut scene = Scene::new("http-spread", "http-0", named, 3);
    let mut client = scene.connect();
    let mut seen = BTreeMap::new();
    for n in 0..30 {
        if n == 15 {
            // It is killed; its connections are reset and its port refuses.
            drop(scene.backends.pop().expect("three backends"));
        }
        let (status, body) = get(&mut client);
        assert_eq!(status, 200, "request {n}; the log:\n{}", scene.agent.log());
        *seen.entry(body).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.values().all(|count| *count >= 5), "{seen:?}");

    let service = scene.agent.service("web");
    assert_eq!(service["mode"], "http");
    assert_eq!(service["http"]["requestsByClass"], json!([0, 30, 0, 0, 0]));
    let requests = |n: usize| service["backends"][n]["requestsTotal"].as_u64().unwrap_or(0);
    assert!((0..3).all(|n| requests(n) >= 5), "{service}");
    let (_, metrics) = scene.agent.get("/metrics").expect("metrics");
    let wanted = r#"edgesplice_service_http_requests_total{namespace="default",service="web",port="http-0",protocol="TCP",class="2xx"} 30"#;
    assert!(metrics.contains(wanted), "{metrics}");
    assert!(metrics.contains("edgesplice_service_http_request_seconds_bucket{"), "{metrics}");
}

#[test]
fn an_http_client_is_told_when_no_backend_works() {
    let scene = Scene::new("http-503", "http-0", |pod, _| Server::start(pod, 9999, drop), 2);
    let mut client = scene.connect();
    for _ in 0..4 {
        let (status, body) = get(&mut client);
        assert_eq!(status, 503, "{body}");
    }
    let curl = scene.client.run(&[
        "curl",
        "-s",
        "-m",
        "10",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &format!("http://{WEB}/"),
    ]);
    assert_eq!(curl.stdout, "503", "a new connection is told the same: {}", curl.stderr);
}

#[test]
fn what_is_not_http_works_and_is_said() {
    let greeting = |pod: &Pod, n: usize| Server::greeting(pod, 8080, &format!("220 web{n}\r\n"));
    let scene = Scene::new("http-other", "http-0", greeting, 1);
    let mut client = scene.client.connect(WEB).expect("the service accepts");
    assert_eq!(read_all(&mut client).expect("a greeting"), "220 web0\r\n");
    let said = |status: &Value| {
        let warnings = status["warnings"].as_array().expect("a list");
        warnings.iter().any(|line| line.as_str().is_some_and(|line| line.contains("default/web:http-0/TCP")))
    };
    scene.agent.wait_for("a warning in status", LIMIT, said);
    eventually("a line in the log", LIMIT, || {
        scene.agent.log().contains("speaks something else").then_some(())
    });
    for _ in 0..3 {
        let mut client = scene.client.connect(WEB).expect("the service accepts");
        read_all(&mut client).expect("a greeting");
    }
    let lines = scene.agent.log().matches("speaks something else").count();
    assert_eq!(lines, 1, "{}", scene.agent.log());
}

#[test]
fn curl_speaks_http_2_to_a_port_that_is_named_so() {
    // A backend that knows the preface and answers nothing but a settings frame and a goaway tells enough: it was
    // spoken to in HTTP/2. What requests go through is tested in `direct`.
    let preface = |pod: &Pod, _| {
        Server::start(pod, 8080, |mut stream| {
            let mut got = [0; 24];
            if stream.read_exact(&mut got).is_ok() && got.starts_with(b"PRI * HTTP/2.0") {
                let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
                let _ = stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
        })
    };
    let scene = Scene::new("http-h2c", "h2c", preface, 1);
    let url = format!("http://{WEB}/");
    let curl = scene.client.run(&[
        "curl",
        "-s",
        "-m",
        "20",
        "--http2-prior-knowledge",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version}",
        &url,
    ]);
    assert_eq!(curl.stdout, "502 2", "{}", curl.stderr);
}

#[test]
fn requests_are_written_down_where_that_is_wished() {
    let lab = Lab::new("http-log");
    let node = lab.node("a");
    let (client, web) = (node.pod("client"), node.pod("web"));
    let _server = named(&web, 0);
    let ports = [("http-0", 80, 8080, "TCP")];
    let objects = objects::list([
        objects::service("web", &[IP], &ports),
        objects::slice("web", &[("http-0", 8080, "TCP")], &[&web.v4]),
    ]);
    let (log, config) = (node.dir().join("access.log"), node.dir().join("config.yaml"));
    let text = format!(
        "apiVersion: edgesplice.io/v1alpha1\nkind: EdgespliceConfiguration\nproxy: {{http: {{accessLog: '{}'}}}}\n",
        log.display()
    );
    std::fs::write(&config, text).expect("a configuration");
    let agent = Agent::on(&node)
        .manifest("web.json", &objects)
        .args(&["--config", &config.display().to_string()])
        .start();
    let mut connection = BufReader::new(client.connect(WEB).expect("the service accepts"));
    assert_eq!(get(&mut connection), (200, "web0".to_owned()));
    let line = eventually("a line in the access log", LIMIT, || {
        std::fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n'))
    });
    let entry: Value = serde_json::from_str(line.trim()).expect("a line of JSON");
    assert_eq!(
        (&entry["method"], &entry["path"], &entry["status"]),
        (&json!("GET"), &json!("/"), &json!(200))
    );
    assert_eq!(entry["service"], "default/web:http-0/TCP");
    assert_eq!(entry["backend"], format!("{}:8080", web.v4));
    drop(agent);
}

/// Sends one request for `host` to `at` from `from`. Gives the status and the body.
fn ask_for(from: &Pod, host: &str, at: &str) -> (u16, String) {
    let mut reader = BufReader::new(from.connect(at).expect("the gate accepts"));
    write!(reader.get_mut(), "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let head = read_head(&mut reader).expect("an answer");
    let mut body = String::new();
    let _ = reader.read_to_string(&mut body);
    let served =
        head.iter().find_map(|line| line.to_lowercase().strip_prefix("x-served-by: ").map(str::to_owned));
    let status = head[0].split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, served.unwrap_or(body))
}

/// The oldest EdgeMesh let all names lead to its own address, and `Host` decide.
fn names_choose_at_the_link_local_address(backend: &str) {
    let lab = Lab::new(&format!("http-gate-{backend}"));
    let node = lab.node("a");
    let (client, web, db) = (node.pod("client"), node.pod("web0"), node.pod("db"));
    let _servers = (named(&web, 0), named(&db, 1));
    let (http, tcp) = ([("http-0", 80, 8080, "TCP")], [("tcp-0", 3306, 8080, "TCP")]);
    let objects = objects::list([
        objects::service("web", &[IP], &http),
        objects::slice("web", &[("http-0", 8080, "TCP")], &[&web.v4]),
        objects::service("db", &["10.96.0.21"], &tcp),
        objects::slice("db", &[("tcp-0", 8080, "TCP")], &[&db.v4]),
    ]);
    let gate = "169.254.96.16:80";
    let before = client.connect(gate).err();
    assert!(before.is_some(), "nobody is there yet");
    let agent =
        Agent::on(&node).manifest("web.json", &objects).backend(backend).args(&["--dns", "auto"]).start();
    let port = agent.status()["proxy"]["port"].as_u64().expect("the acceptor's port");
    for host in ["web", "web.default", "web.default.svc.cluster.local", "WEB.default:80"] {
        assert_eq!(ask_for(&client, host, gate), (200, "web0".to_owned()), "{host} from a pod");
    }
    let curl = |host: &str, at: &str| {
        let line = format!("curl -s -m 10 -o /dev/null -w %{{http_code}} -H Host:{host} http://{at}/");
        node.run(&line.split(' ').collect::<Vec<_>>()).stdout
    };
    assert_eq!(curl("web.default", gate), "200", "from the host");
    for host in ["db.default", "nobody.default", "web.other", "example.com", "web.default:3306"] {
        assert_eq!(ask_for(&client, host, gate).0, 421, "{host}");
    }
    assert_eq!(curl("nobody", gate), "421");
    // What is no HTTP is reset; what no HTTP port has as its number, and the acceptor itself, refuse.
    let mut other = client.connect(gate).expect("the gate accepts");
    other.write_all(b"\x16\x03\x01\x02\x00").expect("bytes");
    assert!(read_all(&mut other).is_err(), "a reset");
    for at in
        ["169.254.96.16:3306".to_owned(), "169.254.96.16:8080".to_owned(), format!("169.254.96.16:{port}")]
    {
        assert_eq!(client.connect(&at).err(), Some(Errno::ECONNREFUSED), "{at}");
    }
    // Without backends there is no such port.
    agent.write("web.json", &objects::list([objects::service("web", &[IP], &http)]));
    eventually("the port is gone", LIMIT, || client.connect(gate).is_err().then_some(()));
    assert_eq!(agent.stop(), 0);
    assert_eq!(client.connect(gate).err(), before, "as if the agent had never been there");
}

#[test]
fn names_choose_at_the_link_local_address_nft() {
    names_choose_at_the_link_local_address("nft");
}

#[test]
fn names_choose_at_the_link_local_address_legacy() {
    names_choose_at_the_link_local_address("legacy");
}
