//! The agent on an edge node, fed by a scripted API server or MetaServer on another one: what comes is served, and
//! when the server fails, misbehaves or is out of reach, traffic goes on and `status` says what is wrong.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up does")]

#[allow(dead_code, reason = "the scripted server can do more than is tested here")]
mod apiserver;
mod lab;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use apiserver::{ApiServer, Authority, Mood, Personality};
use lab::{Agent, AgentBuilder, Lab, Netns, Node, Server, errno, eventually, objects, read_all};

/// Where the service of most tests is.
const WEB: &str = "10.96.0.60:80";
/// The server's address: the second node of each scene.
const SERVER: &str = "192.168.77.2";
/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(20);
/// Longest wait where the agent's own patience (30 s for an answer, 30 s between attempts) comes in.
const LATER: Duration = Duration::from_secs(90);

/// An edge node, the node with the API server, and two nodes with backends that say their names.
struct Scene {
    api: ApiServer,
    runtime: Runtime,
    _servers: [Server; 2],
    edge: Node,
    cloud: Node,
    lab: Lab,
}

impl Scene {
    fn new(label: &str, personality: Personality, authority: Option<&Authority>) -> Self {
        let lab = Lab::new(label);
        let (edge, cloud, b, c) = (lab.node("edge"), lab.node("cloud"), lab.node("b"), lab.node("c"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let api = serve(&runtime, &cloud, personality, authority);
        let servers = [Server::greeting(&b, 7000, "b"), Server::greeting(&c, 7000, "c")];
        for node in ["edge", "b", "c"] {
            api.set("nodes", json!({"metadata": {"name": node}}));
        }
        web(&api, "192.168.77.3");
        Self { api, runtime, _servers: servers, edge, cloud, lab }
    }

    /// The server ends and another takes its place, with nothing in it.
    fn replace_server(&mut self, personality: Personality) {
        // A port is free again once its listener's task has ended.
        let placeholder = ApiServer::start(personality);
        self.api = self.runtime.block_on(placeholder);
        self.api = eventually("the port", SOON, || {
            let bound = self.cloud.enter(|| std::net::TcpListener::bind((SERVER, 6443))).ok()?;
            Some(on(&self.runtime, bound, personality, None))
        });
    }

    fn agent(&self, source: &[&str]) -> AgentBuilder {
        Agent::on(&self.edge).source(source)
    }
}

fn serve(
    runtime: &Runtime,
    node: &Node,
    personality: Personality,
    authority: Option<&Authority>,
) -> ApiServer {
    let listener = node.enter(|| std::net::TcpListener::bind((SERVER, 6443))).unwrap();
    on(runtime, listener, personality, authority)
}

fn on(
    runtime: &Runtime,
    listener: std::net::TcpListener,
    personality: Personality,
    authority: Option<&Authority>,
) -> ApiServer {
    listener.set_nonblocking(true).unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        ApiServer::start_on(personality, listener, authority)
    })
}

fn web(api: &ApiServer, backend: &str) {
    let [service, slice] = objects::pair("web", "10.96.0.60", 80, 7000, &[backend]);
    api.set("services", service);
    api.set("endpointslices", slice);
}

/// A kubeconfig for `server`, with what `user` and `cluster` say.
fn kubeconfig(dir: &Path, server: &str, cluster: &[(&str, &Path)], user: &[(&str, &Path)]) -> PathBuf {
    let object = |pairs: &[(&str, &Path)]| -> Value {
        pairs
            .iter()
            .map(|(key, path)| ((*key).to_owned(), json!(path)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut cluster = object(cluster);
    cluster["server"] = json!(server);
    let file = dir.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": object(user)}],
    });
    fs::write(&file, text.to_string()).unwrap();
    file
}

fn plain_kubeconfig(scene: &Scene) -> String {
    kubeconfig(scene.lab.dir(), &scene.api.url(), &[], &[]).display().to_string()
}

fn ask(client: &Netns, to: &str) -> Result<String, Errno> {
    let mut stream = client.connect(to)?;
    read_all(&mut stream).map_err(|error| errno(&error))
}

fn until_answer(client: &Netns, to: &str, wanted: &Result<String, Errno>) {
    eventually(&format!("{wanted:?} from {to}"), SOON, || (ask(client, to) == *wanted).then_some(()));
}

/// A client that asks again and again, one connection each, and counts what fails.
struct Hammer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Hammer {
    fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (node, until) = (node.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (mut done, mut failed) = (0, Vec::new());
            node.enter(|| {
                let to = WEB.parse().unwrap();
                while !until.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let mut answer = String::new();
                    let asked = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5))
                        .and_then(|mut stream| stream.read_to_string(&mut answer));
                    match asked {
                        Ok(1) => done += 1,
                        other => failed.push(format!("{other:?} {answer:?} after {:?}", begun.elapsed())),
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            (done, failed)
        });
        Self { stop, thread }
    }

    /// Ends it; every request must have been answered.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let (done, failed) = self.thread.join().unwrap();
        assert!(
            failed.is_empty(),
            "{} of {} failed: {:?}",
            failed.len(),
            done + failed.len(),
            failed.first()
        );
        done
    }
}

fn source<'a>(status: &'a Value, key: &str) -> &'a str {
    status["source"][key].as_str().unwrap()
}

/// Waits for a state and for words in its message; gives back the message.
fn told(agent: &Agent, state: &str, words: &[&str]) -> String {
    let wished = |status: &Value| {
        let message = source(status, "message");
        source(status, "state") == state && words.iter().all(|word| message.contains(word))
    };
    let status = agent.wait_for(&format!("{state} with {words:?}"), LATER, |status| {
        wished(status) || {
            assert!(!agent.log().contains("panicked"), "{}", agent.log());
            false
        }
    });
    source(&status, "message").to_owned()
}

fn served(agent: &Agent) {
    assert!(
        agent.status()["services"].as_array().unwrap().iter().any(|s| s["name"] == "web"),
        "{}",
        agent.log()
    );
}

fn services_appear_change_and_go(label: &str, personality: Personality) {
    let scene = Scene::new(label, personality, None);
    let (url, config) = (scene.api.url(), plain_kubeconfig(&scene));
    let args = match personality {
        Personality::Kubernetes => ["--kubeconfig", &config],
        Personality::MetaServer => ["--metaserver", &url],
    };
    let kind = if personality == Personality::Kubernetes { "kubernetes" } else { "metaserver" };
    let agent = scene.agent(&args).args(&["--source", kind]).start();
    assert_eq!(told(&agent, "synced", &[]), "");
    assert_eq!(source(&agent.status(), "kind"), kind);
    let edge: &Netns = &scene.edge;
    until_answer(edge, WEB, &Ok("b".to_owned()));

    web(&scene.api, "192.168.77.4");
    until_answer(edge, WEB, &Ok("c".to_owned()));

    let [service, slice] = objects::pair("late", "10.96.0.61", 80, 7000, &["192.168.77.3"]);
    assert_eq!(ask(edge, "10.96.0.61:80"), Err(Errno::ECONNREFUSED));
    scene.api.set("endpointslices", slice);
    scene.api.set("services", service);
    until_answer(edge, "10.96.0.61:80", &Ok("b".to_owned()));

    let [service, _] = objects::pair("late", "10.96.0.61", 81, 7000, &["192.168.77.3"]);
    scene.api.set("services", service);
    until_answer(edge, "10.96.0.61:81", &Ok("b".to_owned()));
    until_answer(edge, "10.96.0.61:80", &Err(Errno::ECONNREFUSED));

    // No ready endpoint: refused before it is accepted. Then one again.
    let mut empty = objects::slice("late", &[("tcp-0", 7000, "TCP")], &["192.168.77.3"]);
    empty["endpoints"][0]["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    scene.api.set("endpointslices", empty);
    until_answer(edge, "10.96.0.61:81", &Err(Errno::ECONNREFUSED));
    let [_, slice] = objects::pair("late", "10.96.0.61", 81, 7000, &["192.168.77.3"]);
    scene.api.set("endpointslices", slice);
    until_answer(edge, "10.96.0.61:81", &Ok("b".to_owned()));

    scene.api.delete("services", "default", "late");
    until_answer(edge, "10.96.0.61:81", &Err(Errno::ECONNREFUSED));
    assert_eq!(ask(edge, WEB).as_deref(), Ok("c"));
    assert_eq!(agent.stop(), 0);
}

#[test]
fn services_of_a_kubernetes_api_appear_change_and_go() {
    services_appear_change_and_go("live-kube", Personality::Kubernetes);
}

#[test]
fn services_of_a_metaserver_appear_change_and_go() {
    services_appear_change_and_go("live-meta", Personality::MetaServer);
}

fn range(name: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})
}

#[test]
fn a_change_of_range_takes_effect_without_a_restart() {
    let scene = Scene::new("live-range", Personality::Kubernetes, None);
    scene.api.set("servicecidrs", range("kubernetes", "10.96.0.0/20"));
    let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).finding_ranges().start();
    let edge: &Netns = &scene.edge;
    until_answer(edge, WEB, &Ok("b".to_owned()));
    assert_eq!(agent.status()["serviceCIDRs"], json!(["10.96.0.0/20"]));
    assert_eq!(ask(edge, "10.96.15.9:80"), Err(Errno::ECONNREFUSED), "inside, and no service");
    assert_eq!(ask(edge, "10.97.1.1:80"), Err(Errno::ENETUNREACH), "none of our business");

    let hammer = Hammer::start(&scene.edge);
    scene.api.set("servicecidrs", range("more", "10.97.0.0/16"));
    let [service, slice] = objects::pair("new", "10.97.200.1", 80, 7000, &["192.168.77.4"]);
    scene.api.set("services", service);
    scene.api.set("endpointslices", slice);
    until_answer(edge, "10.97.200.1:80", &Ok("c".to_owned()));
    until_answer(edge, "10.97.1.1:80", &Err(Errno::ECONNREFUSED));
    assert_eq!(agent.status()["serviceCIDRs"], json!(["10.96.0.0/20", "10.97.0.0/16"]));

    scene.api.delete("servicecidrs", "", "more");
    agent.wait_for("the narrower range", SOON, |s| {
        s["serviceCIDRs"] == json!(["10.96.0.0/20", "10.97.200.1/32"])
    });
    until_answer(edge, "10.97.1.1:80", &Err(Errno::ENETUNREACH));
    assert_eq!(ask(edge, "10.97.200.1:80").as_deref(), Ok("c"), "a ClusterIP outside is captured by itself");
    hammer.end();
    assert!(agent.log().contains("the cluster's own account"), "{}", agent.log());
}

#[test]
fn without_service_cidrs_the_range_is_what_the_api_server_says_it_is() {
    let scene = Scene::new("live-dryrun", Personality::Kubernetes, None);
    scene.api.absent("servicecidrs");
    scene.api.name_ranges(&["10.96.0.0/14"]);
    let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).finding_ranges().start();
    until_answer(&scene.edge, WEB, &Ok("b".to_owned()));
    assert_eq!(agent.status()["serviceCIDRs"], json!(["10.96.0.0/14"]));
    assert!(agent.log().contains("the API server's own answer names the Service range"), "{}", agent.log());
}

#[test]
fn without_any_word_on_the_range_it_is_read_off_the_addresses() {
    let scene = Scene::new("live-seen", Personality::Kubernetes, None);
    scene.api.absent("servicecidrs");
    let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).finding_ranges().start();
    until_answer(&scene.edge, WEB, &Ok("b".to_owned()));
    assert_eq!(agent.status()["serviceCIDRs"], json!(["10.96.0.0/24"]));
    assert!(agent.log().contains("the addresses seen"), "{}", agent.log());
}

#[test]
fn a_token_that_is_not_accepted_is_told_and_one_that_is_turned_is_used() {
    let authority = Authority::for_servers(&[SERVER], true);
    let scene = Scene::new("live-401", Personality::Kubernetes, Some(&authority));
    let [ca, cert, key] = authority.client_files(scene.lab.dir());
    let token = scene.lab.dir().join("token");
    fs::write(&token, "first\n").unwrap();
    scene.api.require_token("first");
    let cluster: &[(&str, &Path)] = &[("certificate-authority", &ca)];
    let user: &[(&str, &Path)] =
        &[("client-certificate", &cert), ("client-key", &key), ("tokenFile", &token)];
    let file = kubeconfig(scene.lab.dir(), &scene.api.url(), cluster, user).display().to_string();
    let agent = scene.agent(&["--kubeconfig", &file]).start();
    told(&agent, "synced", &[]);
    let hammer = Hammer::start(&scene.edge);
    scene.api.require_token("second");
    scene.api.cut();
    told(&agent, "stale", &["401 Unauthorized", "check the user's credentials in", &file]);
    served(&agent);
    fs::write(&token, "second\n").unwrap();
    told(&agent, "synced", &[]);
    web(&scene.api, "192.168.77.4");
    until_answer(&scene.edge, WEB, &Ok("c".to_owned()));
    hammer.end();
}

#[test]
fn what_is_forbidden_is_named_with_resource_and_verb_and_a_foreign_server_is_told() {
    let scene = Scene::new("live-403", Personality::Kubernetes, None);
    let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).start();
    told(&agent, "synced", &[]);
    let hammer = Hammer::start(&scene.edge);
    scene.api.mood("endpointslices", Mood::Status(403, None));
    scene.api.cut();
    let words =
        ["watch endpointslices at http://192.168.77.2:6443", "403", "apiGroups: [\"discovery.k8s.io\"]"];
    told(&agent, "stale", &words);
    served(&agent);
    scene.api.mood("endpointslices", Mood::Well);
    told(&agent, "synced", &[]);
    scene.api.compact(false);
    scene.api.mood("*", Mood::Html);
    scene.api.cut();
    told(&agent, "stale", &["`server` in"]);
    served(&agent);
    scene.api.mood("*", Mood::Well);
    told(&agent, "synced", &[]);
    hammer.end();
}

#[test]
fn a_half_dead_server_is_told_while_traffic_goes_on() {
    let scene = Scene::new("live-half", Personality::Kubernetes, None);
    let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).start();
    told(&agent, "synced", &[]);
    let hammer = Hammer::start(&scene.edge);
    scene.api.mood("*", Mood::Silent);
    scene.api.cut();
    told(&agent, "stale", &["no answer within 30s", "the server or the way to it hangs"]);
    served(&agent);
    scene.api.mood("*", Mood::Well);
    web(&scene.api, "192.168.77.4");
    told(&agent, "synced", &[]);
    until_answer(&scene.edge, WEB, &Ok("c".to_owned()));
    hammer.end();
}

#[test]
fn an_unknown_authority_and_a_wrong_address_are_told_and_the_cache_serves() {
    let authority = Authority::for_servers(&[SERVER], true);
    let scene = Scene::new("live-ca", Personality::Kubernetes, Some(&authority));
    let dir = scene.lab.dir();
    let [ca, cert, key] = authority.client_files(dir);
    let config = |ca: &Path| {
        let user: &[(&str, &Path)] = &[("client-certificate", &cert), ("client-key", &key)];
        kubeconfig(dir, &scene.api.url(), &[("certificate-authority", ca)], user).display().to_string()
    };
    let file = config(&ca);
    let agent = scene.agent(&["--kubeconfig", &file]).start();
    told(&agent, "synced", &[]);
    assert_eq!(agent.stop(), 0);

    let other = dir.join("other");
    fs::create_dir(&other).unwrap();
    let [wrong, ..] = Authority::new().client_files(&other);
    config(&wrong);
    let agent = scene.agent(&["--kubeconfig", &file]).start();
    told(
        &agent,
        "cached",
        &["signed by an authority that is not trusted", "check `certificate-authority` in"],
    );
    until_answer(&scene.edge, WEB, &Ok("b".to_owned()));
    // Files are read again at each attempt.
    config(&ca);
    told(&agent, "synced", &[]);
    assert_eq!(agent.stop(), 0);

    let user: &[(&str, &Path)] = &[("client-certificate", &cert), ("client-key", &key)];
    kubeconfig(dir, "https://192.168.77.2:6444", &[("certificate-authority", &ca)], user);
    let agent = scene.agent(&["--kubeconfig", &file]).launch();
    eventually("its admin endpoint", SOON, || agent.get("/healthz").ok());
    told(&agent, "error", &["https://192.168.77.2:6444", "nothing listens there", "`server` in"]);
    // The cache is another server's.
    told(&agent, "error", &["belongs to another source", "set aside as"]);
}

#[test]
fn a_cut_network_costs_no_request_and_no_change() {
    for personality in [Personality::Kubernetes, Personality::MetaServer] {
        let scene = Scene::new("live-cut", personality, None);
        let (url, config) = (scene.api.url(), plain_kubeconfig(&scene));
        let args = match personality {
            Personality::Kubernetes => ["--kubeconfig", &config],
            Personality::MetaServer => ["--metaserver", &url],
        };
        let agent = scene.agent(&args).start();
        told(&agent, "synced", &[]);
        let hammer = Hammer::start(&scene.edge);
        scene.cloud.ip("link set eth0 down\n");
        std::thread::sleep(Duration::from_secs(5));
        web(&scene.api, "192.168.77.4");
        std::thread::sleep(Duration::from_secs(5));
        served(&agent);
        assert!(
            agent.status()["source"]["ageSeconds"].as_f64().unwrap() > 4.0,
            "{}",
            agent.status()["source"]
        );
        assert_eq!(ask(&scene.edge, WEB).as_deref(), Ok("b"), "the last word stands");
        scene.cloud.ip("link set eth0 up\n");
        eventually("the change", LATER, || (ask(&scene.edge, WEB).as_deref() == Ok("c")).then_some(()));
        told(&agent, "synced", &[]);
        let asked = hammer.end();
        assert!(asked > 500, "only {asked} requests");
    }
}

#[test]
fn a_killed_agent_starts_from_the_cache_and_a_bad_cache_is_set_aside_and_named() {
    let mut scene = Scene::new("live-cache", Personality::Kubernetes, None);
    let file = plain_kubeconfig(&scene);
    let args = ["--kubeconfig", file.as_str()];
    let agent = scene.agent(&args).start();
    let cache = agent.state_dir().join("last-good.json");
    eventually("the cache", SOON, || cache.exists().then_some(()));
    agent.kill();
    let good = fs::read_to_string(&cache).unwrap();

    scene.cloud.ip("link set eth0 down\n");
    std::thread::sleep(Duration::from_secs(2));
    let agent = scene.agent(&args).start();
    assert_eq!(ask(&scene.edge, WEB).as_deref(), Ok("b"), "{}", agent.log());
    let status = agent.status();
    assert_eq!(source(&status, "state"), "cached");
    assert!(status["source"]["ageSeconds"].as_f64().unwrap() > 1.0, "{}", status["source"]);
    let table = scene.edge.edgesplice(&["status"]).stdout;
    assert!(table.contains("cached"), "{table}");
    scene.cloud.ip("link set eth0 up\n");
    told(&agent, "synced", &[]);
    assert_eq!(ask(&scene.edge, WEB).as_deref(), Ok("b"));
    agent.kill();

    let damages = [
        ("truncated", good[..good.len() / 2].to_owned()),
        ("corrupt", good.replace("10.96.0.60", "10.96.0.62")),
        ("version-9", good.replace("\"version\":1", "\"version\":9")),
    ];
    for (suffix, text) in damages {
        assert_ne!(text, good);
        fs::write(&cache, text).unwrap();
        scene.api.mood("*", Mood::Status(500, None));
        let agent = scene.agent(&args).launch();
        eventually("its admin endpoint", SOON, || agent.get("/healthz").ok());
        let aside = format!("set aside as {}.{suffix}", cache.display());
        told(&agent, "error", &[&aside, "500"]);
        assert!(cache.with_extension(format!("json.{suffix}")).exists());
        scene.api.mood("*", Mood::Well);
        assert_eq!(told(&agent, "synced", &[]), "");
        until_answer(&scene.edge, WEB, &Ok("b".to_owned()));
        agent.kill();
    }
    scene.replace_server(Personality::Kubernetes);
    let agent = scene.agent(&args).start();
    // A server that really has nothing is believed.
    until_answer(&scene.edge, WEB, &Err(Errno::ECONNREFUSED));
    assert_eq!(agent.stop(), 0);
}

#[test]
fn a_state_folder_that_refuses_is_reported_and_the_agent_goes_on() {
    for (options, word) in [("size=64k", "No space left"), ("ro,size=64k", "Read-only file system")] {
        let scene = Scene::new("live-disk", Personality::Kubernetes, None);
        for number in 0..300 {
            let name = format!("service-{number}");
            let ip = format!("10.96.{}.{}", 1 + number / 200, 1 + number % 200);
            let [service, slice] = objects::pair(&name, &ip, 80, 7000, &["192.168.77.3"]);
            scene.api.set("services", service);
            scene.api.set("endpointslices", slice);
        }
        let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]);
        let state = scene.lab.dir().join("agent-edge/state");
        fs::create_dir_all(&state).unwrap();
        // In the mount namespace that `ip netns exec` makes; it goes with the process.
        let mount = format!("mount -t tmpfs -o {options} none {} && exec \"$@\"", state.display());
        let agent = agent.wrapped(&["sh", "-c", &mount, "sh"]).start();
        told(&agent, "synced", &["cannot write the cache", word]);
        web(&scene.api, "192.168.77.4");
        until_answer(&scene.edge, WEB, &Ok("c".to_owned()));
        assert_eq!(ask(&scene.edge, "10.96.2.7:80").as_deref(), Ok("b"));
        assert_eq!(agent.stop(), 0);
    }
}

#[test]
fn in_a_pod_the_service_account_is_used_and_its_token_followed() {
    let authority = Authority::for_servers(&[SERVER], false);
    let scene = Scene::new("live-pod", Personality::Kubernetes, Some(&authority));
    let [ca, ..] = authority.client_files(scene.lab.dir());
    scene.api.require_token("first");
    // `/run` is the process's own, with the files where the kubelet puts them.
    let account = "/run/secrets/kubernetes.io/serviceaccount";
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p {account} && cp {} {account}/ca.crt && printf first > {account}/token && \
         printf default > {account}/namespace && exec \"$@\"",
        ca.display()
    );
    let env = [&format!("KUBERNETES_SERVICE_HOST={SERVER}"), "KUBERNETES_SERVICE_PORT=6443"];
    let wrapper = ["env", env[0], env[1], "sh", "-c", &script, "sh"];
    // What is chosen by itself in such surroundings.
    let agent = scene.agent(&["--source", "auto"]).wrapped(&wrapper).start();
    told(&agent, "synced", &[]);
    until_answer(&scene.edge, WEB, &Ok("b".to_owned()));
    let hammer = Hammer::start(&scene.edge);
    scene.api.require_token("second");
    scene.api.cut();
    told(&agent, "stale", &["401", "the token of the pod's service account"]);
    fs::write(format!("/proc/{}/root{account}/token", agent.pid()), "second").unwrap();
    told(&agent, "synced", &[]);
    web(&scene.api, "192.168.77.4");
    until_answer(&scene.edge, WEB, &Ok("c".to_owned()));
    hammer.end();
}

#[test]
fn objects_that_cannot_be_read_stand_among_the_warnings() {
    let scene = Scene::new("live-odd", Personality::Kubernetes, None);
    for number in 0..12 {
        let [service, _] = objects::pair(&format!("odd-{number:02}"), "127.0.0.1", 80, 7000, &[]);
        scene.api.set("services", service);
    }
    let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).start();
    until_answer(&scene.edge, WEB, &Ok("b".to_owned()));
    let status = agent.status();
    assert_eq!(status["source"]["unreadable"], 12, "{status}");
    let warnings: Vec<&str> =
        status["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let of = |text: &str| warnings.iter().filter(|w| w.contains(text)).count();
    assert_eq!(
        (of("cannot be read and is passed over"), of("and 2 more objects that cannot be read")),
        (10, 1)
    );
    assert!(scene.edge.edgesplice(&["status"]).stdout.contains("Service default/odd-00 cannot be read"));
}

fn connect_from(client: &Netns, from: &str, to: &str) -> Result<(), Errno> {
    let address = |text: &str| -> std::net::SocketAddr { text.parse().unwrap() };
    let (from, to) = (address(from), address(to));
    client.enter(|| {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), Duration::from_secs(3)).map_err(|error| errno(&error))
    })
}

#[test]
fn who_was_refused_is_served_a_moment_later_from_the_very_same_port() {
    for backend in ["nft", "legacy"] {
        let scene = Scene::new("live-port", Personality::Kubernetes, None);
        let pod = scene.edge.pod("client");
        let agent = scene.agent(&["--kubeconfig", &plain_kubeconfig(&scene)]).backend(backend).start();
        let (host4, host6) = (format!("{}:40000", scene.edge.v4), format!("[{}]:40000", scene.edge.v6));
        let (pod4, pod6) = (format!("{}:40000", pod.v4), format!("[{}]:40000", pod.v6));
        let (late4, late6) = ("10.96.0.61:80", "[fd00:10:96::61]:80");
        let clients: [(&Netns, &str, &str); 4] = [
            (&scene.edge, &host4, late4),
            (&scene.edge, &host6, late6),
            (&pod, &pod4, late4),
            (&pod, &pod6, late6),
        ];
        for (client, from, to) in clients {
            assert_eq!(connect_from(client, from, to), Err(Errno::ECONNREFUSED), "{backend} {from}");
        }
        let ips = ["10.96.0.61", "fd00:10:96::61"];
        scene.api.set("services", objects::service("late", &ips, &[("tcp-0", 80, 7000, "TCP")]));
        scene.api.set("endpointslices", objects::slice("late", &[("tcp-0", 7000, "TCP")], &["192.168.77.3"]));
        scene.api.set("endpointslices", objects::slice("late", &[("tcp-0", 7000, "TCP")], &["fd77::3"]));
        until_answer(&scene.edge, late4, &Ok("b".to_owned()));
        until_answer(&scene.edge, late6, &Ok("b".to_owned()));
        for (client, from, to) in clients {
            assert_eq!(connect_from(client, from, to), Ok(()), "{backend} {from}; {}", agent.log());
        }
    }
}
