//! Events for the cluster's users, told to a scripted API server: what lasts is told, once, with the object it is about;
//! a server that does not want them is left alone, and nothing else suffers.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up does")]

#[allow(dead_code, reason = "the scripted server can do more than is tested here")]
mod apiserver;
mod lab;

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use apiserver::{ApiServer, Personality};
use lab::{Agent, Lab, Node, Server, eventually, objects, read_all};

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

struct Scene {
    api: ApiServer,
    _runtime: Runtime,
    _server: Server,
    a: Node,
    lab: Lab,
}

impl Scene {
    /// A Service that works, one that this node cannot reach, and one with SCTP.
    fn new(label: &str) -> Self {
        let lab = Lab::new(label);
        let (a, b) = (lab.node("a"), lab.node("b"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = b.enter(|| std::net::TcpListener::bind("192.168.77.2:6443")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let api = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            ApiServer::start_on(Personality::Kubernetes, listener, None)
        });
        let server = Server::greeting(&b, 7000, "hello");
        for node in ["a", "b"] {
            api.set("nodes", json!({"metadata": {"name": node}}));
        }
        let [service, slice] = objects::pair("web", "10.96.0.60", 80, 7000, &["192.168.77.2"]);
        api.set("services", service);
        api.set("endpointslices", slice);
        // Dialling this would lead back into the agent.
        let [mut service, slice] = objects::pair("lost", "10.96.0.61", 80, 7000, &["10.96.0.99"]);
        service["metadata"]["uid"] = json!("the-uid-of-lost");
        api.set("services", service);
        api.set("endpointslices", slice);
        api.set("services", objects::service("radio", &["10.96.0.62"], &[("s", 38412, 38412, "SCTP")]));
        // No endpoints at all is nobody's fault here.
        api.set("services", objects::service("idle", &["10.96.0.63"], &[("t", 80, 80, "TCP")]));
        Self { api, _runtime: runtime, _server: server, a, lab }
    }

    fn agent(&self, args: &[&str]) -> Agent {
        let file = self.lab.dir().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": self.api.url()}}], "users": [{"name": "u", "user": {}}],
        });
        fs::write(&file, config.to_string()).unwrap();
        let file = file.display().to_string();
        Agent::on(&self.a).source(&["--source", "kubernetes", "--kubeconfig", &file]).args(args).start()
    }

    fn event(&self, reason: &str) -> Value {
        eventually(reason, LONG, || self.api.events().into_iter().find(|event| event["reason"] == reason))
    }

    fn served(&self) {
        let mut stream = self.a.connect("10.96.0.60:80").unwrap();
        assert_eq!(read_all(&mut stream).unwrap(), "hello");
    }
}

#[test]
fn what_lasts_is_told_once_about_its_object() {
    let scene = Scene::new("events");
    let jump = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
    let rules = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING {jump}\n-A KUBE-SERVICES -d 192.0.2.7/32 -j RETURN\nCOMMIT\n"
    );
    scene.a.feed(&["iptables-nft-restore", "--noflush"], &rules);
    let agent = scene.agent(&["--coexist-with-kube-proxy", "--iptables-backend", "nft"]);

    let lost = scene.event("NoReachableBackend");
    let object = &lost["involvedObject"];
    assert_eq!(
        (&object["kind"], &object["name"], &object["namespace"]),
        (&json!("Service"), &json!("lost"), &json!("default"))
    );
    assert_eq!(object["uid"], "the-uid-of-lost", "kubectl describe finds it by this");
    assert!(lost["message"].as_str().unwrap().contains("10.96.0.99:7000"), "{lost}");
    assert_eq!(
        (&lost["type"], &lost["count"], &lost["source"]["host"]),
        (&json!("Warning"), &json!(1), &json!("a"))
    );
    assert_eq!(lost["metadata"]["namespace"], "default");
    let radio = scene.event("UnsupportedProtocol");
    assert_eq!(radio["involvedObject"]["name"], "radio", "{radio}");
    let rival = scene.event("ConflictingProxy");
    assert_eq!(
        (&rival["involvedObject"]["kind"], &rival["involvedObject"]["uid"]),
        (&json!("Node"), &json!("a")),
        "{rival}"
    );
    assert_eq!(scene.api.events().len(), 3, "{:?}", scene.api.events());

    // Another life says nothing new: the server has these events already.
    let asked = scene.api.count("events", false);
    assert_eq!(agent.stop(), 0);
    let agent = scene.agent(&["--coexist-with-kube-proxy", "--iptables-backend", "nft"]);
    eventually("the same three told again", LONG, || {
        (scene.api.count("events", false) >= asked + 3).then_some(())
    });
    assert_eq!(scene.api.events().len(), 3, "{:?}", scene.api.events());
    scene.served();
    assert_eq!(agent.stop(), 0);
}

#[test]
fn a_server_that_wants_no_events_is_left_alone() {
    let scene = Scene::new("events-no");
    scene.api.forbid_events();
    let agent = scene.agent(&[]);
    eventually("the attempt", LONG, || agent.log().contains("may not create events").then_some(()));
    scene.served();
    assert_eq!(
        (scene.api.events().len(), scene.api.count("events", false)),
        (0, 1),
        "one attempt, and no more"
    );
    let status = agent.status();
    assert_eq!((&status["ready"], &status["source"]["state"]), (&json!(true), &json!("synced")), "{status}");
    assert_eq!(agent.stop(), 0);
}
