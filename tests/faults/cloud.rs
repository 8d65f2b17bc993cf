//! An API server on a node of its own, and how the agent finds it.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::apiserver::{ApiServer, Mood, Personality};
use crate::lab::{Node, objects};
use crate::scene::Scene;

pub(crate) struct Cloud {
    pub(crate) api: ApiServer,
    pub(crate) kubeconfig: PathBuf,
    _runtime: Runtime,
}

impl Cloud {
    /// With what `scene` serves.
    pub(crate) fn new(scene: &Scene, node: &Node) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = node.enter(|| TcpListener::bind((&*node.v4, 6443))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let api = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            ApiServer::start_on(Personality::Kubernetes, listener, None)
        });
        api.set("nodes", json!({"metadata": {"name": "a"}}));
        for object in scene.objects() {
            let resource = if object["kind"] == "Service" { "services" } else { "endpointslices" };
            api.set(resource, object);
        }
        let kubeconfig = scene.lab.dir().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": api.url()}}],
            "users": [{"name": "u", "user": {}}],
        });
        fs::write(&kubeconfig, text.to_string()).unwrap();
        Self { api, kubeconfig, _runtime: runtime }
    }

    /// Adds a TCP Service on port 80 with one backend, or changes it.
    pub(crate) fn add(&self, name: &str, ip: &str, backend: &str) {
        let [service, slice] = objects::pair(name, ip, 80, 7000, &[backend]);
        self.api.set("endpointslices", slice);
        self.api.set("services", service);
    }

    /// Adds so many Services, each with `backends`.
    pub(crate) fn fill(&self, services: usize, backends: &[&str]) {
        for number in 0..services {
            let ip = format!("10.96.{}.{}", 10 + number / 250, number % 250 + 1);
            let [service, slice] = objects::pair(&format!("other-{number}"), &ip, 80, 7000, backends);
            self.api.set("endpointslices", slice);
            self.api.set("services", service);
        }
    }

    /// From now on it takes requests and never says a word.
    pub(crate) fn away(&self) {
        self.api.mood("*", Mood::Silent);
        self.api.cut();
    }
}
