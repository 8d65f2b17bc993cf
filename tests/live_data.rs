//! The live sources against a scripted API server: what they tell must be the truth, at every moment.
//!
//! In process, on loopback, without root.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up does")]

mod apiserver;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use edgesplice::config::Credentials;
use edgesplice::source::cached::{CachedSource, Resumable};
use edgesplice::source::follow::Timing;
use edgesplice::source::kube::Origin;
use edgesplice::source::kubernetes::KubernetesSource;
use edgesplice::source::metaserver::MetaServerSource;
use edgesplice::source::slim::{self, Kind, Object, ObjectKey, Phase};
use edgesplice::source::{Sink, Source, SourceState, SourceStatus, Unreadable, Update};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use apiserver::{ApiServer, Authority, Mood, Personality};

/// Far above anything that is waited for, so that only a real fault ends it.
const PATIENCE: Duration = Duration::from_secs(30);
const RESOURCES: [(&str, Kind); 6] = [
    ("services", Kind::Service),
    ("endpointslices", Kind::EndpointSlice),
    ("pods", Kind::Pod),
    ("nodes", Kind::Node),
    ("servicecidrs", Kind::ServiceCidr),
    ("destinationrules", Kind::DestinationRule),
];

/// A tenth of everybody's patience.
fn quick() -> Timing {
    Timing {
        answer: Duration::from_secs(1),
        piece: Duration::from_secs(1),
        backoff_first: Duration::from_millis(50),
        backoff_most: Duration::from_millis(400),
        steady: Duration::from_millis(200),
        relist: Duration::from_millis(700),
        hold: Duration::from_secs(1),
        hold_all: Duration::from_secs(3),
        absent: Duration::from_secs(1),
        ..Timing::kubernetes()
    }
}

/// Everything a source has told, put together as the rest of the program would.
struct Mirror {
    objects: BTreeMap<ObjectKey, Object>,
    replaces: usize,
    /// Kind of each update in order: `=`, `+name`, `-name`.
    told: Vec<String>,
    /// These must never be missing once they were there.
    permanent: BTreeSet<ObjectKey>,
    updates: mpsc::Receiver<Update>,
    status: watch::Receiver<SourceStatus>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Mirror {
    fn of(source: impl Source) -> Self {
        let (updates_in, updates) = mpsc::channel(16);
        let start = SourceStatus {
            kind: "",
            state: SourceState::Error,
            fresh_at: Instant::now(),
            message: String::new(),
            unreadable: Unreadable::default(),
        };
        let (status_in, status) = watch::channel(start);
        let stop = CancellationToken::new();
        let task = tokio::spawn(source.run(Sink { updates: updates_in, status: status_in }, stop.clone()));
        Self {
            objects: BTreeMap::new(),
            replaces: 0,
            told: Vec::new(),
            permanent: BTreeSet::new(),
            updates,
            status,
            stop,
            task,
        }
    }

    fn apply(&mut self, update: Update) {
        match update {
            Update::Replace(all) => {
                self.replaces += 1;
                self.told.push("=".to_owned());
                let count = all.len();
                self.objects = all.into_iter().map(|o| (o.key(), o)).collect();
                assert_eq!(self.objects.len(), count, "an object stands twice in a full state");
            }
            Update::Upsert(object) => {
                let key = object.key();
                self.told.push(format!("+{}", key.name));
                let old = self.objects.insert(key.clone(), *object);
                assert_ne!(
                    old.as_ref(),
                    self.objects.get(&key),
                    "{key} was told again although nothing changed"
                );
            }
            Update::Delete(key) => {
                self.told.push(format!("-{}", key.name));
                assert!(self.objects.remove(&key).is_some(), "{key} was deleted twice");
            }
        }
        for key in &self.permanent {
            assert!(self.objects.contains_key(key), "{key} was missing after {:?}", self.told.last());
        }
    }

    /// Takes updates in until `wanted` holds.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !wanted(self) {
            tokio::select! {
                update = self.updates.recv() => {
                    let update = update.unwrap_or_else(|| panic!("the source ended while waiting for {what}"));
                    self.apply(update);
                }
                changed = self.status.changed() => changed.expect("the source ended"),
                () = tokio::time::sleep_until(deadline) => {
                    panic!("{what} did not come; status {:?}, told {:?}", *self.status.borrow(), self.told)
                }
            }
        }
    }

    /// Takes updates in for a while.
    async fn during(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        loop {
            tokio::select! {
                Some(update) = self.updates.recv() => self.apply(update),
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    fn state(&self) -> SourceState {
        self.status.borrow().state
    }

    fn message(&self) -> String {
        self.status.borrow().message.clone()
    }

    fn has(&self, name: &str) -> bool {
        self.objects.keys().any(|k| &*k.name == name)
    }

    async fn synced(&mut self) {
        self.until("sync", |m| m.replaces > 0 && m.state() == SourceState::Synced).await;
    }

    async fn equal_to(&mut self, server: &ApiServer) {
        self.until("the truth", |m| m.objects == truth(server)).await;
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("ends when told").unwrap().unwrap();
    }
}

/// What a source must have told once it is up to date.
fn truth(server: &ApiServer) -> BTreeMap<ObjectKey, Object> {
    let mut all = BTreeMap::new();
    for (resource, kind) in RESOURCES {
        for value in server.objects(resource) {
            let mut object = slim::decode(kind, value).unwrap();
            match &mut object {
                Object::Pod(pod) if pod.phase == Phase::Ended => continue,
                Object::Pod(pod) => {
                    pod.labels = Box::default();
                    pod.ports = pod.ports.iter().filter(|p| p.host_port.is_some()).cloned().collect();
                }
                Object::EndpointSlice(slice) if slice.opt_out.is_some() => continue,
                _ => {}
            }
            all.insert(object.key(), object);
        }
    }
    all
}

fn service(name: &str, ip: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}})
}

fn slice(service: &str, ips: &[&str]) -> Value {
    let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
    json!({"metadata": {"name": format!("{service}-x"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints})
}

fn pod(name: &str, ip: &str, phase: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
           "spec": {"nodeName": "edge-1", "containers": [{"ports": [{"containerPort": 8080, "hostPort": 18080}, {"name": "m", "containerPort": 9}]}]},
           "status": {"phase": phase, "podIP": ip, "hostIP": "192.0.2.1"}})
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

fn fill(server: &ApiServer) {
    server.set("services", service("web", "10.96.0.10"));
    server.set("endpointslices", slice("web", &["10.244.0.5"]));
    server.set("pods", pod("web-0", "10.244.0.5", "Running"));
    server.set("nodes", node("edge-1"));
    server.set(
        "servicecidrs",
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
    );
}

async fn kubernetes(server: &ApiServer) -> KubernetesSource {
    kubernetes_at(&server.url(), Credentials::default()).await.with_timing(quick())
}

async fn kubernetes_at(url: &str, credentials: Credentials) -> KubernetesSource {
    KubernetesSource::new(Origin::Url { url: url.to_owned(), credentials }).await.unwrap()
}

async fn metaserver(server: &ApiServer) -> MetaServerSource {
    MetaServerSource::new(&server.url(), Credentials::default()).await.unwrap().with_timing(quick())
}

async fn eventually(what: &str, wanted: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !wanted() {
        assert!(Instant::now() < deadline, "{what} did not come");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn all_watched(server: &ApiServer) {
    eventually("all watches", || RESOURCES[..4].iter().all(|(r, _)| server.watching(r) == 1)).await;
}

#[tokio::test]
async fn nothing_is_told_before_everything_is_listed_and_then_all_at_once() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    for number in 0..1200 {
        server.set(
            "services",
            service(&format!("s{number}"), &format!("10.97.{}.{}", number / 250, 1 + number % 250)),
        );
    }
    server.mood("pods", Mood::Slow(Duration::from_millis(800)));
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.during(Duration::from_millis(500)).await;
    assert!(mirror.told.is_empty() && mirror.state() == SourceState::Error, "{:?}", mirror.told);
    assert!(mirror.message().contains("to list pods"), "{}", mirror.message());
    mirror.synced().await;
    assert_eq!(mirror.told, ["="]);
    assert_eq!(mirror.objects, truth(&server));
    let pages = server.asked().iter().filter(|a| a.resource == "services" && !a.watch).count();
    assert_eq!(pages, 3, "1,201 Services are three pages");
    mirror.end().await;
}

#[tokio::test]
async fn kinds_that_are_not_essential_hold_the_first_state_up_for_a_moment_only() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    server.mood("servicecidrs", Mood::Status(500, None));
    server.mood("destinationrules", Mood::Silent);
    let mut mirror = Mirror::of(
        kubernetes(&server).await.with_timing(Timing { grace: Duration::from_millis(300), ..quick() }),
    );
    mirror.until("the first state", |m| m.replaces == 1).await;
    assert!(mirror.has("web") && !mirror.has("kubernetes"));
    server.mood("*", Mood::Well);
    server.mood("servicecidrs", Mood::Well);
    mirror.equal_to(&server).await;
    mirror.end().await;
}

#[tokio::test]
async fn a_list_that_expires_between_two_pages_is_read_in_one_piece() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    for number in 0..600 {
        server.set(
            "services",
            service(&format!("s{number}"), &format!("10.97.{}.{}", number / 250, 1 + number % 250)),
        );
    }
    server.expire_pages();
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    assert_eq!(mirror.objects, truth(&server));
    mirror.end().await;
}

#[tokio::test]
async fn each_change_is_told_by_itself() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    all_watched(&server).await;
    mirror.told.clear();
    server.set("services", service("web", "10.96.0.11"));
    mirror.equal_to(&server).await;
    server.set("pods", pod("job", "10.244.0.6", "Running"));
    mirror.equal_to(&server).await;
    server.set("pods", pod("job", "10.244.0.6", "Succeeded"));
    mirror.equal_to(&server).await;
    // Nothing that anyone reads has changed: nothing is told.
    server.set("nodes", node("edge-1"));
    server.bookmark();
    server.delete("services", "shop", "web");
    mirror.equal_to(&server).await;
    assert_eq!(mirror.told, ["+web", "+job", "-job", "-web"]);
    mirror.end().await;
}

#[tokio::test]
async fn services_that_opt_out_stay_known_and_their_slices_go() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    all_watched(&server).await;
    for label in
        ["service.kubernetes.io/service-proxy-name", "service.edgemesh.kubeedge.io/service-proxy-name"]
    {
        let (mut out, mut out_slice) = (service("web", "10.96.0.10"), slice("web", &["10.244.0.5"]));
        out["metadata"]["labels"] = json!({label: "other"});
        out_slice["metadata"]["labels"][label] = json!("other");
        server.set("services", out);
        server.set("endpointslices", out_slice);
        mirror.until("the slice to go", |m| !m.has("web-x")).await;
        mirror.equal_to(&server).await;
        assert!(mirror.has("web"));
        server.set("services", service("web", "10.96.0.10"));
        server.set("endpointslices", slice("web", &["10.244.0.5"]));
        mirror.until("the slice to come back", |m| m.has("web-x")).await;
    }
    mirror.end().await;
}

#[tokio::test]
async fn a_watch_that_ends_is_taken_up_without_a_new_list() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    for round in 0..4 {
        all_watched(&server).await;
        if round % 2 == 0 {
            server.end_watches();
        } else {
            server.cut();
        }
        server.set("services", service("web", &format!("10.96.1.{round}")));
        server.delete("pods", "shop", "web-0");
        server.set("pods", pod(&format!("web-{round}-new"), "10.244.0.9", "Running"));
        mirror.equal_to(&server).await;
    }
    assert_eq!(server.count("services", false), 1, "one list is enough");
    assert_eq!(mirror.replaces, 1);
    mirror.end().await;
}

#[tokio::test]
async fn expired_versions_lead_to_a_list_that_is_told_as_a_difference() {
    for as_event in [false, true] {
        let server = ApiServer::start(Personality::Kubernetes).await;
        fill(&server);
        server.set("services", service("stays", "10.96.0.20"));
        let mut mirror = Mirror::of(kubernetes(&server).await);
        mirror.synced().await;
        all_watched(&server).await;
        mirror.permanent = mirror.objects.keys().filter(|k| &*k.name != "web").cloned().collect();
        mirror.told.clear();
        server.mood("*", Mood::Silent);
        server.end_watches();
        server.delete("services", "shop", "web");
        server.set("services", service("new", "10.96.0.21"));
        server.compact(as_event);
        server.mood("*", Mood::Well);
        mirror.until("the difference", |m| m.has("new") && !m.has("web")).await;
        mirror.until("sync", |m| m.state() == SourceState::Synced).await;
        assert_eq!(mirror.told, ["+new", "-web"], "410 as an event: {as_event}");
        assert!(server.count("services", false) >= 2);
        mirror.end().await;
    }
}

#[tokio::test]
async fn every_fault_before_the_first_list_is_told_in_one_line_and_heals() {
    let cases = [
        (Mood::Status(401, None), "401 Unauthorized", "check "),
        (Mood::Status(403, None), "403 Forbidden", "verbs: [list, watch]"),
        (Mood::Status(404, None), "404 Not Found", "no Kubernetes API there"),
        (Mood::Status(500, None), "500 scripted failure", "list services"),
        (Mood::Status(503, None), "503 scripted failure", "list services"),
        (Mood::Html, "no Kubernetes list", "<html>"),
        (Mood::Silent, "no answer within 1s", "hangs"),
    ];
    for (mood, what, remedy) in cases {
        let server = ApiServer::start(Personality::Kubernetes).await;
        fill(&server);
        server.mood("*", mood.clone());
        let mut mirror = Mirror::of(kubernetes(&server).await);
        mirror.until(what, |m| m.message().contains(what)).await;
        let message = mirror.message();
        assert!(message.contains(remedy) && message.contains(&server.url()), "{mood:?}: {message}");
        assert!(!message.contains('\n') && mirror.told.is_empty() && mirror.state() == SourceState::Error);
        server.mood("*", Mood::Well);
        mirror.synced().await;
        mirror.until("an empty message", |m| m.message().is_empty()).await;
        mirror.end().await;
    }
}

#[tokio::test]
async fn only_the_kind_that_is_forbidden_is_named_and_kinds_we_can_do_without_are_not() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    server.mood("servicecidrs", Mood::Status(403, None));
    server.absent("destinationrules");
    server.mood("pods", Mood::Status(403, None));
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.until("a line about pods", |m| m.message().contains("list pods at")).await;
    assert!(mirror.message().contains("resources: [pods]"), "{}", mirror.message());
    server.mood("pods", Mood::Well);
    mirror.synced().await;
    assert!(!mirror.has("kubernetes") && mirror.message().is_empty());
    server.mood("servicecidrs", Mood::Well);
    mirror.equal_to(&server).await;
    mirror.end().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_and_awaited() {
    let addr = {
        let gone = ApiServer::start(Personality::Kubernetes).await;
        gone.addr
    };
    eventually("the port to close", || std::net::TcpStream::connect(addr).is_err()).await;
    let source = kubernetes_at(&format!("http://{addr}"), Credentials::default()).await.with_timing(quick());
    let mut mirror = Mirror::of(source);
    mirror.until("the fault", |m| m.message().contains("connection refused")).await;
    assert!(mirror.message().contains("nothing listens there"), "{}", mirror.message());
    let server = ApiServer::start_with(Personality::Kubernetes, addr, None).await;
    fill(&server);
    mirror.synced().await;
    assert_eq!(mirror.objects, truth(&server));
    mirror.end().await;
}

#[tokio::test]
async fn nothing_is_lost_while_the_server_is() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    all_watched(&server).await;
    mirror.permanent = mirror.objects.keys().cloned().collect();
    for mood in [Mood::Status(401, None), Mood::Status(500, None), Mood::Silent, Mood::Html] {
        server.mood("*", mood.clone());
        server.cut();
        mirror.until("a stale state", |m| m.state() == SourceState::Stale).await;
        assert!(!mirror.message().is_empty(), "{mood:?}");
        server.mood("*", Mood::Well);
        mirror.synced().await;
    }
    assert_eq!(mirror.told, ["="]);
    mirror.end().await;
}

#[tokio::test]
async fn the_server_may_ask_for_a_longer_wait() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    server.mood("services", Mood::Status(429, Some(2)));
    let mirror = Mirror::of(kubernetes(&server).await);
    sleep(Duration::from_millis(1800)).await;
    assert_eq!(server.count("services", false), 1, "asked again before the two seconds were over");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.count("services", false), 2);
    mirror.end().await;
}

#[tokio::test]
async fn no_kind_is_asked_for_more_than_once_a_second_whatever_the_server_does() {
    let time = Duration::from_secs(12);
    let moods = [Mood::CutsWatches, Mood::Status(500, None), Mood::Status(401, None), Mood::Html];
    let mut running = Vec::new();
    for personality in [Personality::Kubernetes, Personality::MetaServer] {
        for mood in &moods {
            let server = ApiServer::start(personality).await;
            fill(&server);
            server.mood("*", mood.clone());
            running.push((server, format!("{personality:?} {mood:?}")));
        }
    }
    // Every watch is told that its version is gone, for ever.
    let expiring = ApiServer::start(Personality::Kubernetes).await;
    fill(&expiring);
    running.push((expiring, "expiring".to_owned()));
    let mut mirrors = Vec::new();
    for (server, name) in &running {
        let mirror = if name.starts_with("MetaServer") {
            Mirror::of(MetaServerSource::new(&server.url(), Credentials::default()).await.unwrap())
        } else {
            Mirror::of(kubernetes_at(&server.url(), Credentials::default()).await)
        };
        mirrors.push(mirror);
    }
    let until = Instant::now() + time;
    while Instant::now() < until {
        let (expiring, _) = &running[running.len() - 1];
        expiring.compact(false);
        expiring.end_watches();
        sleep(Duration::from_millis(20)).await;
        for mirror in &mut mirrors {
            mirror.during(Duration::from_millis(1)).await;
        }
    }
    for (server, name) in &running {
        for (resource, _) in RESOURCES {
            let asked = server.asked().iter().filter(|a| a.resource == resource).count();
            assert!(
                asked as f64 <= time.as_secs_f64(),
                "{name}: {resource} was asked for {asked} times in {time:?}"
            );
        }
    }
    for mirror in mirrors {
        mirror.end().await;
    }
}

#[tokio::test]
async fn a_client_certificate_an_authority_and_a_token_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let [ca, cert, key] = authority.client_files(dir.path());
    let server = ApiServer::start_tls(Personality::Kubernetes, &authority).await;
    fill(&server);
    server.require_token("second");
    let token = dir.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let files = Credentials {
        ca_file: Some(ca.clone()),
        cert_file: Some(cert.clone()),
        key_file: Some(key.clone()),
        token_file: Some(token.clone()),
    };
    let mut mirror = Mirror::of(kubernetes_at(&server.url(), files.clone()).await.with_timing(quick()));
    mirror.until("the refusal", |m| m.message().contains("401 Unauthorized")).await;
    std::fs::write(&token, "second").unwrap();
    mirror.synced().await;
    mirror.end().await;
    // The token is turned while all is well: no watch is taken up with the old one for ever.
    std::fs::write(&token, "second").unwrap();
    let mut mirror = Mirror::of(kubernetes_at(&server.url(), files.clone()).await.with_timing(quick()));
    mirror.synced().await;
    server.require_token("third");
    std::fs::write(&token, "third").unwrap();
    server.cut();
    server.set("services", service("web", "10.96.0.77"));
    mirror.equal_to(&server).await;
    mirror.end().await;
    // Somebody else's authority.
    let other = tempfile::tempdir().unwrap();
    let [other_ca, ..] = Authority::new().client_files(other.path());
    let wrong = Credentials { ca_file: Some(other_ca), ..files.clone() };
    let mut mirror = Mirror::of(kubernetes_at(&server.url(), wrong).await.with_timing(quick()));
    mirror.until("the distrust", |m| m.message().contains("not trusted")).await;
    assert!(mirror.message().contains("tlsCaFile"), "{}", mirror.message());
    mirror.end().await;
    // No certificate where one is demanded.
    let bare = Credentials { cert_file: None, key_file: None, ..files };
    let mut mirror = Mirror::of(kubernetes_at(&server.url(), bare).await.with_timing(quick()));
    mirror.until("the demand", |m| m.message().to_lowercase().contains("certificate")).await;
    mirror.end().await;
    // The other scheme.
    let plain = format!("http://{}", server.addr);
    let mut mirror = Mirror::of(kubernetes_at(&plain, Credentials::default()).await.with_timing(quick()));
    mirror.until("a fault", |m| m.message().contains(&plain) && m.message().contains("check")).await;
    mirror.end().await;
}

#[tokio::test]
async fn kubeconfig_files_are_read_with_certificates_and_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.client_files(dir.path());
    let server = ApiServer::start_tls(Personality::Kubernetes, &authority).await;
    fill(&server);
    server.require_token("sesame");
    std::fs::write(dir.path().join("token"), "sesame\n").unwrap();
    let config = |user: &str, cluster: &str| {
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": serde_json::from_str::<Value>(cluster).unwrap()}],
            "users": [{"name": "u", "user": serde_json::from_str::<Value>(user).unwrap()}]})
        .to_string()
    };
    let cluster = format!(r#"{{"server": "{}", "certificate-authority": "ca.pem"}}"#, server.url());
    let path = dir.path().join("config");
    for user in [
        r#"{"client-certificate": "cert.pem", "client-key": "key.pem", "token": "sesame"}"#,
        &format!(
            r#"{{"client-certificate": "cert.pem", "client-key": "key.pem", "tokenFile": "{}"}}"#,
            dir.path().join("token").display()
        ),
    ] {
        std::fs::write(&path, config(user, &cluster)).unwrap();
        let source =
            KubernetesSource::new(Origin::Kubeconfig(path.clone())).await.unwrap().with_timing(quick());
        assert_eq!(source.identity(), format!("kubernetes {}", server.url()));
        let mut mirror = Mirror::of(source);
        mirror.synced().await;
        mirror.end().await;
    }
    // A user without what is demanded, told where to look.
    std::fs::write(&path, config(r#"{"client-certificate": "cert.pem", "client-key": "key.pem"}"#, &cluster))
        .unwrap();
    let source = KubernetesSource::new(Origin::Kubeconfig(path.clone())).await.unwrap().with_timing(quick());
    let mut mirror = Mirror::of(source);
    let hint = format!("the user's credentials in {}", path.display());
    mirror.until("the hint", |m| m.message().contains(&hint)).await;
    mirror.end().await;
    // Files that cannot be used are named, with the reason.
    let bad = [
        (
            config(
                "{}",
                &format!(r#"{{"server": "{}", "certificate-authority": "none.pem"}}"#, server.url()),
            ),
            "none.pem",
        ),
        (config("{}", r#"{"server": "https://127.0.0.1:1", "proxy-url": "http://proxy:3128"}"#), "proxy-url"),
        ("clusters: [".to_owned(), "config"),
    ];
    for (text, want) in bad {
        std::fs::write(&path, text).unwrap();
        let error = KubernetesSource::new(Origin::Kubeconfig(path.clone())).await.unwrap_err().to_string();
        assert!(error.contains(want) && error.contains("config"), "{error}");
    }
    let error = KubernetesSource::new(Origin::Kubeconfig("/not/there".into())).await.unwrap_err().to_string();
    assert!(error.contains("/not/there"), "{error}");
}

#[tokio::test]
async fn metaserver_replays_are_not_told_again_and_ghosts_are_laid() {
    let server = ApiServer::start(Personality::MetaServer).await;
    fill(&server);
    server.set("services", service("ghost", "10.96.0.30"));
    let mut mirror = Mirror::of(metaserver(&server).await);
    mirror.synced().await;
    mirror.during(Duration::from_millis(300)).await;
    assert_eq!(mirror.told, ["="], "the replay says nothing new");
    // Deleted while nobody was connected: no event will ever tell, and the edge's own store has not noticed either.
    server.cut();
    let ghost = server.lose("services", "shop", "ghost").unwrap();
    server.haunt("services", ghost);
    server.set("services", service("web", "10.96.0.12"));
    mirror.equal_to(&server).await;
    assert!(!mirror.has("ghost"));
    let lists = server.count("services", false);
    mirror.told.clear();
    mirror.during(Duration::from_secs(2)).await;
    assert!(server.count("services", false) > lists);
    assert!(mirror.told.is_empty(), "{:?}", mirror.told);
    // And with the connection in place, found by the next regular list.
    server.lose("services", "shop", "web");
    server.set("services", service("other", "10.96.0.31"));
    mirror.equal_to(&server).await;
    mirror.end().await;
}

#[tokio::test]
async fn metaserver_falls_back_to_endpoints_where_no_slices_come() {
    for absent in [true, false] {
        let server = ApiServer::start(Personality::MetaServer).await;
        server.set("services", service("web", "10.96.0.10"));
        server.set("nodes", node("edge-1"));
        server.set(
            "endpoints",
            json!({"metadata": {"name": "web", "namespace": "shop"}, "subsets": [{"addresses": [{"ip": "10.244.0.5"}], "ports": [{"port": 8080}]}]}),
        );
        if absent {
            server.absent("endpointslices");
        }
        let mut mirror = Mirror::of(metaserver(&server).await);
        mirror.synced().await;
        assert_eq!(mirror.told, ["="], "slices absent: {absent}");
        assert!(mirror.objects.keys().any(|k| k.kind == Kind::Endpoints));
        mirror.end().await;
    }
}

#[tokio::test]
async fn metaserver_without_its_cloud_takes_nothing_away() {
    let server = ApiServer::start(Personality::MetaServer).await;
    fill(&server);
    server.set("services", service("never-stored", "10.96.0.40"));
    let mut mirror = Mirror::of(metaserver(&server).await);
    mirror.synced().await;
    mirror.permanent = mirror.objects.keys().cloned().collect();
    // The edge's own store: an old version, a Service it never stored, slices and pods that fail to persist.
    let lost = server.lose("services", "shop", "never-stored").unwrap();
    server.go_offline(Some(34), &["endpointslices", "pods"]);
    server.cut();
    // Each kind comes to its own doubt, in any order; the message names some of them.
    let doubt = |m: &Mirror| m.state() == SourceState::Stale && m.message().contains("list version 34 after");
    mirror.until("doubt", doubt).await;
    // Longer than every hold-down.
    mirror.during(Duration::from_secs(5)).await;
    assert_eq!(mirror.told, ["="]);
    // What the watch tells is still believed.
    mirror.permanent.retain(|k| &*k.name != "edge-1");
    server.delete("nodes", "", "edge-1");
    mirror.until("the deletion", |m| !m.has("edge-1")).await;
    // The cloud comes back.
    server.find("services", lost);
    server.go_online();
    server.cut();
    mirror.synced().await;
    mirror.equal_to(&server).await;
    mirror.end().await;
}

#[tokio::test]
async fn metaserver_that_is_suddenly_empty_has_to_say_so_for_a_while() {
    let server = ApiServer::start(Personality::MetaServer).await;
    fill(&server);
    let mut mirror = Mirror::of(metaserver(&server).await);
    mirror.synced().await;
    server.lose("pods", "shop", "web-0");
    let begun = Instant::now();
    mirror.until("the pod to go", |m| !m.has("web-0")).await;
    assert!(begun.elapsed() >= Duration::from_millis(900), "gone after {:?}", begun.elapsed());
    // Everything at once: longer still.
    for (resource, namespace, name) in [
        ("services", "shop", "web"),
        ("endpointslices", "shop", "web-x"),
        ("nodes", "", "edge-1"),
        ("servicecidrs", "", "kubernetes"),
    ] {
        server.lose(resource, namespace, name);
    }
    let begun = Instant::now();
    mirror.until("all to go", |m| m.objects.is_empty()).await;
    assert!(begun.elapsed() >= Duration::from_millis(2900), "gone after {:?}", begun.elapsed());
    mirror.end().await;
}

#[tokio::test]
async fn metaserver_may_take_long_over_its_first_list() {
    let server = ApiServer::start(Personality::MetaServer).await;
    fill(&server);
    server.mood("*", Mood::Slow(Duration::from_secs(9)));
    let source = MetaServerSource::new(&server.url(), Credentials::default()).await.unwrap();
    let mut mirror = Mirror::of(source);
    mirror.until("the state", |m| m.replaces == 1).await;
    assert_eq!(server.count("services", false), 1, "it was not asked twice");
    assert_eq!(mirror.objects, truth(&server));
    mirror.end().await;
}

fn cached<S: Resumable>(source: S, dir: &Path) -> CachedSource<S> {
    CachedSource::new(source, dir).with_write_every(Duration::from_millis(100))
}

#[tokio::test]
async fn a_node_that_starts_offline_serves_what_it_last_knew() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(cached(kubernetes(&server).await, dir.path()));
    mirror.synced().await;
    all_watched(&server).await;
    eventually("the file", || dir.path().join("last-good.json").exists()).await;
    server.set("services", service("later", "10.96.0.50"));
    mirror.equal_to(&server).await;
    mirror.end().await;
    // The server hangs, the node starts.
    server.mood("*", Mood::Silent);
    let begun = Instant::now();
    let mut mirror = Mirror::of(cached(kubernetes(&server).await, dir.path()));
    mirror.until("the cached state", |m| m.replaces == 1).await;
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    assert_eq!(mirror.objects, truth(&server));
    mirror.until("the reason", |m| m.message().contains("no answer")).await;
    assert_eq!(mirror.state(), SourceState::Cached);
    assert!(mirror.status.borrow().fresh_at.elapsed() >= begun.elapsed());
    // The server comes back with another truth.
    server.delete("services", "shop", "web");
    server.mood("*", Mood::Well);
    mirror.until("the server's state", |m| m.replaces == 2 && m.state() == SourceState::Synced).await;
    assert_eq!(mirror.told, ["=", "="]);
    assert_eq!(mirror.objects, truth(&server));
    mirror.end().await;
}

#[tokio::test]
async fn metaserver_offline_after_a_reboot_does_not_undo_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::start(Personality::MetaServer).await;
    fill(&server);
    let mut mirror = Mirror::of(cached(metaserver(&server).await, dir.path()));
    mirror.synced().await;
    mirror.end().await;
    let before = truth(&server);
    // Edge and agent restart without the cloud: an old version, and two kinds that failed to persist.
    server.lose("services", "shop", "web");
    server.go_offline(Some(34), &["endpointslices", "services"]);
    let mut mirror = Mirror::of(cached(metaserver(&server).await, dir.path()));
    mirror.until("the cached state", |m| m.replaces == 1).await;
    mirror.permanent = before.keys().cloned().collect();
    mirror.until("the answer of the edge", |m| m.replaces == 2).await;
    mirror.until("doubt", |m| m.state() == SourceState::Stale).await;
    mirror.during(Duration::from_secs(4)).await;
    assert_eq!(mirror.objects, before);
    mirror.permanent.clear();
    server.go_online();
    server.set("services", service("new", "10.96.0.60"));
    mirror.equal_to(&server).await;
    mirror.end().await;
}

#[tokio::test]
async fn a_bad_cache_file_is_named_and_never_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last-good.json");
    std::fs::write(&path, "{\"version\":1,").unwrap();
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    server.mood("*", Mood::Silent);
    let mut mirror = Mirror::of(cached(kubernetes(&server).await, dir.path()));
    mirror.until("the note", |m| m.message().contains("last-good.json is truncated; set aside as")).await;
    server.mood("*", Mood::Well);
    mirror.synced().await;
    eventually("a new file", || path.exists()).await;
    mirror.end().await;
    // The same server under another address is another source.
    let other = ApiServer::start(Personality::Kubernetes).await;
    other.mood("*", Mood::Silent);
    let mut mirror = Mirror::of(cached(kubernetes(&other).await, dir.path()));
    mirror.until("the note", |m| m.message().contains("belongs to another source")).await;
    assert!(mirror.told.is_empty());
    mirror.end().await;
}

#[tokio::test]
async fn a_disk_that_refuses_is_reported_and_the_work_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    std::fs::write(&state_dir, "a file where the folder should be").unwrap();
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(cached(kubernetes(&server).await, &state_dir));
    mirror.synced().await;
    mirror.until("the report", |m| m.message().contains("cannot write the cache")).await;
    server.set("services", service("web", "10.96.0.13"));
    mirror.equal_to(&server).await;
    std::fs::remove_file(&state_dir).unwrap();
    mirror.until("the report to go", |m| m.message().is_empty()).await;
    assert!(state_dir.join("last-good.json").exists());
    mirror.end().await;
}

#[test]
fn a_disk_that_hangs_holds_up_no_update() {
    // What writes to disk has one thread, and that one hangs as a worn-out flash does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let server = ApiServer::start(Personality::Kubernetes).await;
        fill(&server);
        let mut mirror = Mirror::of(cached(kubernetes(&server).await, dir.path()));
        mirror.synced().await;
        all_watched(&server).await;
        eventually("the file", || dir.path().join("last-good.json").exists()).await;
        let (release, hanging) = std::sync::mpsc::channel::<()>();
        let hangs = tokio::task::spawn_blocking(move || _ = hanging.recv());
        server.set("services", service("first", "10.96.0.51"));
        mirror.equal_to(&server).await;
        // The write that this one was worth is under way by now.
        mirror.during(Duration::from_millis(500)).await;
        server.set("services", service("second", "10.96.0.52"));
        mirror.equal_to(&server).await;
        let path = dir.path().join("last-good.json");
        assert!(!std::fs::read_to_string(&path).unwrap().contains("10.96.0.52"), "the disk did not hang");
        drop(release);
        hangs.await.unwrap();
        eventually("the last change on disk", || {
            std::fs::read_to_string(&path).unwrap().contains("10.96.0.52")
        })
        .await;
        mirror.end().await;
    });
}

/// Changes, deletions, cuts, expiry and errors at random: the mirror converges, and what exists all the time is never
/// missing on the way.
async fn random_walk<S: Source, F: Future<Output = S>>(
    personality: Personality,
    seed: u64,
    source: impl Fn(String) -> F,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let server = ApiServer::start(personality).await;
    fill(&server);
    for number in 0..20 {
        server.set("services", service(&format!("stays-{number}"), &format!("10.96.8.{}", number + 1)));
        server.set("endpointslices", slice(&format!("stays-{number}"), &["10.244.8.1"]));
    }
    let mut mirror = Mirror::of(source(server.url()).await);
    mirror.synced().await;
    mirror.permanent = mirror.objects.keys().filter(|k| k.name.starts_with("stays")).cloned().collect();
    assert_eq!(mirror.permanent.len(), 40);
    for _ in 0..250 {
        let number = random.u8(1..12);
        let name = format!("n{number}");
        let ip = format!("10.244.{}.{number}", random.u8(0..4));
        match random.u8(0..22) {
            0..=3 => {
                server.set("services", service(&name, &format!("10.96.{}.{number}", random.u8(1..4))));
            }
            4..=6 => {
                server.set("endpointslices", slice(&name, &[&ip]));
            }
            7..=9 => {
                let phase = if random.bool() { "Running" } else { "Failed" };
                server.set("pods", pod(&name, &ip, phase));
            }
            10 => {
                server.set("nodes", node(&name));
            }
            11..=12 => server.delete("services", "shop", &name),
            13..=14 => server.delete("endpointslices", "shop", &format!("{name}-x")),
            15 => server.delete("pods", "shop", &name),
            16 => {
                let stays = format!("stays-{}", random.u8(0..20));
                server.set("endpointslices", slice(&stays, &[&ip]));
            }
            17 => server.end_watches(),
            18 => server.cut(),
            19 if personality == Personality::Kubernetes => {
                server.compact(random.bool());
                server.end_watches();
            }
            20 => {
                let all = ["services", "endpointslices", "pods", "nodes"];
                let moods =
                    [Mood::Status(500, None), Mood::CutsWatches, Mood::Slow(Duration::from_millis(30))];
                server.mood(all[random.usize(0..4)], moods[random.usize(0..3)].clone());
            }
            _ => {
                for resource in ["services", "endpointslices", "pods", "nodes"] {
                    server.mood(resource, Mood::Well);
                }
            }
        }
        mirror.during(Duration::from_millis(random.u64(0..20))).await;
    }
    for resource in ["services", "endpointslices", "pods", "nodes"] {
        server.mood(resource, Mood::Well);
    }
    mirror.equal_to(&server).await;
    mirror.synced().await;
    mirror.during(Duration::from_millis(300)).await;
    assert_eq!(mirror.objects, truth(&server), "seed {seed}");
    assert_eq!(mirror.replaces, 1, "never flushed, seed {seed}");
    mirror.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_random_walk_with_a_kubernetes_api_converges_and_never_blinks() {
    for seed in [1, 2, fastrand::u64(..)] {
        random_walk(Personality::Kubernetes, seed, |url| async move {
            kubernetes_at(&url, Credentials::default()).await.with_timing(quick())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_random_walk_with_a_metaserver_converges_and_never_blinks() {
    for seed in [3, 4, fastrand::u64(..)] {
        random_walk(Personality::MetaServer, seed, |url| async move {
            MetaServerSource::new(&url, Credentials::default()).await.unwrap().with_timing(quick())
        })
        .await;
    }
}

fn ranges(mirror: &Mirror) -> Vec<String> {
    let cidrs = mirror.objects.values().filter_map(|object| match object {
        Object::ServiceCidr(cidr) => Some(&cidr.cidrs),
        _ => None,
    });
    cidrs.flat_map(|cidrs| cidrs.iter().map(ToString::to_string)).collect()
}

#[tokio::test]
async fn without_service_cidrs_the_servers_own_answer_names_the_range_until_there_are_some() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    server.set("services", service("web", "10.96.0.10"));
    server.absent("servicecidrs");
    server.name_ranges(&["10.96.0.0/14", "fd00:10:96::/112"]);
    let dir = tempfile::tempdir().unwrap();
    let mut mirror = Mirror::of(cached(kubernetes(&server).await, dir.path()));
    mirror.synced().await;
    assert_eq!(mirror.told, ["="], "the range is part of the first state");
    assert_eq!(ranges(&mirror), ["10.96.0.0/14", "fd00:10:96::/112"]);
    mirror.during(Duration::from_secs(3)).await;
    assert_eq!(server.count("range", false), 2, "once for each family, and never again");

    // The cluster is brought up to date: its objects count.
    server.appear("servicecidrs");
    server.set(
        "servicecidrs",
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
    );
    mirror.until("the objects", |m| ranges(m) == ["10.96.0.0/12"]).await;
    mirror.end().await;
    let text = std::fs::read_to_string(dir.path().join("last-good.json")).unwrap();
    assert!(text.contains("10.96.0.0/12") && !text.contains("10.96.0.0/14"), "{text}");
}

#[tokio::test]
async fn the_range_answer_is_kept_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::start(Personality::Kubernetes).await;
    server.absent("servicecidrs");
    server.name_ranges(&["10.96.0.0/14"]);
    let mut mirror = Mirror::of(cached(kubernetes(&server).await, dir.path()));
    mirror.synced().await;
    mirror.end().await;
    let url = server.url();
    drop(server);
    let source = kubernetes_at(&url, Credentials::default()).await.with_timing(quick());
    let mut mirror = Mirror::of(cached(source, dir.path()));
    mirror.until("the cache", |m| m.replaces == 1).await;
    assert_eq!(ranges(&mirror), ["10.96.0.0/14"]);
    mirror.end().await;
}

#[tokio::test]
async fn who_may_not_ask_for_the_range_asks_once_and_says_nothing() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    server.absent("servicecidrs");
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    mirror.during(Duration::from_secs(3)).await;
    assert_eq!((server.count("range", false), mirror.message().as_str()), (1, ""));
    assert!(ranges(&mirror).is_empty());
    mirror.end().await;

    // Nor is it asked where there are objects, where the range is given, or by an edge.
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    mirror.end().await;
    server.absent("servicecidrs");
    let mut mirror = Mirror::of(kubernetes(&server).await.with_known_range());
    mirror.synced().await;
    mirror.end().await;
    let mut mirror = Mirror::of(metaserver(&server).await);
    mirror.synced().await;
    mirror.end().await;
    assert_eq!(server.count("range", false), 0);
}

#[tokio::test]
async fn objects_that_cannot_be_read_are_counted_and_named_until_they_can() {
    let server = ApiServer::start(Personality::Kubernetes).await;
    fill(&server);
    for number in 0..12 {
        server.set("services", service(&format!("bad-{number:02}"), "127.0.0.1"));
    }
    let mut mirror = Mirror::of(kubernetes(&server).await);
    mirror.synced().await;
    let unreadable = mirror.status.borrow().unreadable.clone();
    assert_eq!((unreadable.count, unreadable.first.len()), (12, 10));
    assert!(unreadable.first[0].starts_with("Service shop/bad-00 cannot be read"), "{unreadable:?}");

    // A known one turns bad: its last readable state stays.
    let web = ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: "web".into() };
    mirror.permanent.insert(web);
    server.set("services", service("web", "127.0.0.1"));
    mirror.until("13", |m| m.status.borrow().unreadable.count == 13).await;
    server.set("services", service("web", "10.96.0.11"));
    for number in 0..6 {
        server.set("services", service(&format!("bad-{number:02}"), &format!("10.96.1.{number}")));
    }
    for number in 6..9 {
        server.delete("services", "shop", &format!("bad-{number:02}"));
    }
    mirror.until("3", |m| m.status.borrow().unreadable.count == 3).await;
    // Gone while nobody was looking.
    for number in 9..12 {
        server.lose("services", "shop", &format!("bad-{number:02}"));
    }
    server.compact(false);
    server.end_watches();
    mirror.until("none", |m| m.status.borrow().unreadable.count == 0).await;
    mirror.equal_to(&server).await;
    mirror.end().await;
}
