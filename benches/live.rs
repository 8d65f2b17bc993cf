//! What live data costs: start from the disk cache, time from a change to its update, memory.
//!
//! `cargo bench --bench live`. The scripted API server runs in a process of its own, so that its memory is not ours.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement ends where its set-up does, and prints"
)]
#![allow(dead_code, reason = "the scripted server can do more than is measured here")]

#[path = "../tests/apiserver/mod.rs"]
mod apiserver;
#[path = "shared/pod.rs"]
mod pod;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use edgesplice::config::Credentials;
use edgesplice::source::cached::CachedSource;
use edgesplice::source::kube::Origin;
use edgesplice::source::kubernetes::KubernetesSource;
use edgesplice::source::slim::{Object, ObjectKey};
use edgesplice::source::{Sink, Source, SourceState, SourceStatus, Unreadable, Update};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use apiserver::{ApiServer, Personality};
use pod::pod;

fn main() {
    let mut args = std::env::args().skip(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let job = args.next().unwrap_or_default();
    let numbers: Vec<usize> = args.filter_map(|a| a.parse().ok()).collect();
    match (job.as_str(), numbers[..].first_chunk()) {
        ("serve", Some(&[services, endpoints, pods])) => runtime.block_on(serve(services, endpoints, pods)),
        ("start", Some(&[services, endpoints, pods])) => runtime.block_on(start(services, endpoints, pods)),
        _ => {
            println!(
                "{:<46} {:>10} {:>10} {:>10} {:>12}",
                "", "first list", "from disk", "file KiB", "memory KiB"
            );
            // Each in a process of its own: freed memory is not given back at once.
            for [services, endpoints, pods] in
                [[1, 1, 0], [1_000, 10_000, 0], [1, 1, 10_000], [10_000, 100_000, 0]]
            {
                let args = [services, endpoints, pods].map(|n: usize| n.to_string());
                let program = std::env::current_exe().unwrap();
                assert!(Command::new(program).arg("start").args(args).status().unwrap().success());
            }
            runtime.block_on(changes());
        }
    }
}

/// The server's process: fills itself, says where it is, then changes one Service for each line on standard input.
async fn serve(services: usize, endpoints: usize, pods: usize) {
    let server = ApiServer::start(Personality::Kubernetes).await;
    server.set("nodes", json!({"metadata": {"name": "edge-1"}}));
    for number in 0..services {
        server.set("services", service(number, 80));
        let per = endpoints / services;
        let list: Vec<_> = (0..per)
            .map(|e| {
                let (e, n) = (e % 250 + 1, number % 250);
                json!({"addresses": [format!("10.244.{n}.{e}")], "nodeName": format!("edge-{e}"),
                       "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("service-{number}-{e}")}})
            })
            .collect();
        server.set(
            "endpointslices",
            json!({"metadata": {"name": format!("service-{number}-abcde"), "namespace": "shop",
                   "labels": {"kubernetes.io/service-name": format!("service-{number}")}},
                   "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": list}),
        );
    }
    for number in 0..pods {
        server.set("pods", pod(number));
    }
    println!("{}", server.url());
    let lines = tokio::task::spawn_blocking(move || {
        for (number, line) in std::io::stdin().lock().lines().enumerate() {
            if line.is_err() {
                return;
            }
            server.set("services", service(number % services, 81 + number));
        }
    });
    lines.await.unwrap();
}

fn service(number: usize, port: usize) -> serde_json::Value {
    json!({"metadata": {"name": format!("service-{number}"), "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
           "spec": {"clusterIP": format!("10.{}.{}.{}", 96 + number / 62_500, number / 250 % 250, number % 250 + 1),
           "selector": {"app": format!("service-{number}")}, "ports": [{"name": "http", "port": port, "targetPort": 8080}]}})
}

struct Server {
    child: Child,
    stdin: ChildStdin,
    url: String,
}

impl Server {
    fn start(services: usize, endpoints: usize, pods: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve".to_owned(), services.to_string(), endpoints.to_string(), pods.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, url: url.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Running {
    updates: mpsc::Receiver<Update>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn run(url: &str, dir: &std::path::Path) -> Running {
    let origin = Origin::Url { url: url.to_owned(), credentials: Credentials::default() };
    let source = CachedSource::new(KubernetesSource::new(origin).await.unwrap(), dir);
    let (updates_in, updates) = mpsc::channel(64);
    let status = SourceStatus {
        kind: "",
        state: SourceState::Error,
        fresh_at: Instant::now(),
        message: String::new(),
        unreadable: Unreadable::default(),
    };
    let stop = CancellationToken::new();
    let sink = Sink { updates: updates_in, status: watch::channel(status).0 };
    Running { updates, stop: stop.clone(), task: tokio::spawn(source.run(sink, stop)) }
}

impl Running {
    async fn first(&mut self) -> Vec<Object> {
        match self.updates.recv().await {
            Some(Update::Replace(all)) => all,
            other => panic!("{other:?}"),
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// From the API, then from the disk with the API gone. The objects are kept, as the rest of the program keeps them.
async fn start(services: usize, endpoints: usize, pods: usize) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(services, endpoints, pods);
    let before = resident_kib();
    let begun = Instant::now();
    let mut running = run(&server.url, dir.path()).await;
    let all = running.first().await;
    let listed = begun.elapsed();
    let kept: BTreeMap<ObjectKey, Object> = all.into_iter().map(|o| (o.key(), o)).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = resident_kib().saturating_sub(before);
    running.end().await;
    let url = server.url.clone();
    drop(server);
    let begun = Instant::now();
    let mut running = run(&url, dir.path()).await;
    let again = running.first().await;
    let loaded = begun.elapsed();
    assert_eq!(again.len(), kept.len());
    running.end().await;
    let file = std::fs::metadata(dir.path().join("last-good.json")).unwrap().len() / 1024;
    let name = format!("{services} services, {endpoints} endpoints, {pods} pods");
    println!("{name:<46} {listed:>10.1?} {loaded:>10.1?} {file:>10} {memory:>12}");
}

/// A thousand changes, one after the other: from the server's standard input to the update.
async fn changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(1_000, 10_000, 0);
    let mut running = run(&server.url, dir.path()).await;
    running.first().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut times = Vec::new();
    for _ in 0..1_000 {
        let begun = Instant::now();
        server.stdin.write_all(b"\n").unwrap();
        match running.updates.recv().await {
            Some(Update::Upsert(_)) => times.push(begun.elapsed()),
            other => panic!("{other:?}"),
        }
    }
    times.sort();
    println!("change to update: p50 {:.1?}, p99 {:.1?}, max {:.1?}", times[500], times[990], times[999]);
    running.end().await;
}
