//! The kustomize overlays: rendered, held to the schemas, read by kubectl, and what must hold for each.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use super::discovery;
use super::tools::{must, object, objects, repository, tool, validate};

/// All overlays, with the source that each sets.
pub(crate) const OVERLAYS: [(&str, &str); 3] =
    [("kubernetes", "kubernetes"), ("kubeedge", "metaserver"), ("migrate-from-edgemesh", "metaserver")];

/// What `kubectl kustomize` makes of an overlay.
pub(crate) fn rendered(overlay: &str) -> String {
    let folder = repository("deploy/kustomize/overlays").join(overlay);
    must(tool("kubectl").arg("kustomize").arg(folder))
}

/// The agent's container in a `DaemonSet`.
pub(crate) fn container(daemonset: &Value) -> &Value {
    let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 1);
    &containers[0]
}

#[test]
fn every_overlay_is_good() {
    for (overlay, source) in OVERLAYS {
        let text = rendered(overlay);
        validate(&text);
        kubectl_reads(&text);
        let objects = objects(&text);
        hardened(object(&objects, "DaemonSet"));
        let daemonset = object(&objects, "DaemonSet");
        let pod = &daemonset["spec"]["template"]["spec"];
        let config =
            objects.iter().find(|object| object["data"]["config.yaml"].is_string()).expect("a configuration");
        let volumes = pod["volumes"].as_array().expect("volumes");
        assert!(
            volumes.iter().any(|volume| volume["configMap"]["name"] == config["metadata"]["name"]),
            "{overlay}"
        );
        accepted(config["data"]["config.yaml"].as_str().expect("text"), source);
        // Only who follows the API server gets a token.
        assert_eq!(pod["automountServiceAccountToken"], source == "kubernetes", "{overlay}");
        for object in &objects {
            let namespaced = !object["kind"].as_str().expect("a kind").starts_with("Cluster");
            assert_eq!(object["metadata"]["namespace"] == "kube-system", namespaced, "{object}");
        }
    }
}

#[test]
fn edge_and_migration_overlays_choose_their_nodes() {
    let selector = |overlay| {
        let objects = objects(&rendered(overlay));
        object(&objects, "DaemonSet")["spec"]["template"]["spec"]["nodeSelector"].clone()
    };
    let edge = serde_json::json!({"kubernetes.io/os": "linux", "node-role.kubernetes.io/edge": ""});
    assert_eq!(selector("kubeedge"), edge);
    let mut labelled = edge;
    labelled["edgesplice.io/interceptor"] = "edgesplice".into();
    assert_eq!(selector("migrate-from-edgemesh"), labelled);
    // The patch that keeps EdgeMesh off names the same label the other way round.
    let patch = std::fs::read_to_string(repository(
        "deploy/kustomize/overlays/migrate-from-edgemesh/edgemesh-keep-off.yaml",
    ));
    let patch = objects(&patch.expect("the patch"));
    let terms = &patch[0]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
    let terms = &terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    assert_eq!(
        terms[0]["matchExpressions"][0],
        serde_json::json!({"key": "edgesplice.io/interceptor", "operator": "NotIn", "values": ["edgesplice"]})
    );
}

/// `kubectl create --dry-run=client`, with a server that knows nothing but kinds.
pub(crate) fn kubectl_reads(text: &str) {
    let server = format!("--server=http://{}", discovery::start());
    let mut command = tool("kubectl");
    command.args([&server, "create", "--dry-run=client", "--validate=false", "-o", "name", "-f", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("kubectl reads");
    let output = child.wait_with_output().expect("kubectl ends");
    let (names, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{names}{errors}");
    assert_eq!(names.lines().count(), objects(text).len(), "{names}");
}

/// What each `DaemonSet` of ours keeps to.
pub(crate) fn hardened(daemonset: &Value) {
    let spec = &daemonset["spec"];
    let pod = &spec["template"]["spec"];
    let agent = container(daemonset);
    let security = &agent["securityContext"];
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["hostNetwork"], true);
    assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null());
    assert_eq!(pod["dnsPolicy"], "Default");
    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]));
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(30), "longer than the drain");
    let rolling = &spec["updateStrategy"]["rollingUpdate"];
    if agent["ports"].is_null() {
        assert_eq!((&rolling["maxUnavailable"], &rolling["maxSurge"]), (&0.into(), &"25%".into()));
    } else {
        // In the node's network a port of the pod is one of the node: two pods would wait for each other.
        assert_eq!((&rolling["maxUnavailable"], &rolling["maxSurge"]), (&"25%".into(), &0.into()));
    }
    let args = agent["args"].as_array().expect("arguments");
    assert!(args.iter().any(|arg| arg == "--take-over"), "{args:?}");
    // Over HTTP the agent that has the node answers, which may be another pod's.
    let asked = agent["readinessProbe"]["exec"]["command"].as_array().expect("a command");
    assert_eq!(asked[..3], ["/usr/bin/edgesplice", "status", "--ready"]);
    assert!(args.contains(&asked[3]), "both have the same configuration: {asked:?}");
    assert!(agent["resources"]["limits"]["cpu"].is_null(), "it is in the path of every connection");
    assert!(agent["resources"]["limits"]["memory"].is_string());
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(agent[probe]["httpGet"]["path"], "/healthz");
        assert_eq!(agent[probe]["httpGet"]["host"], "127.0.0.1");
    }
    let image = agent["image"].as_str().expect("an image");
    assert!(image.contains(':') && !image.ends_with(":latest"), "{image}");
    assert!(image.ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))) || image.contains('@'), "{image}");
    // Nothing of the host is mounted but its state folder and the lock.
    let volumes = pod["volumes"].as_array().expect("volumes");
    let paths: Vec<&str> = volumes.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
    assert_eq!(paths, ["/var/lib/edgesplice", "/run/xtables.lock"]);
}

/// Whether the program takes this configuration, and follows this source with it.
pub(crate) fn accepted(config: &str, source: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, config).expect("a file");
    let mut command = std::process::Command::new(super::lab::PROGRAM);
    command.env_clear().env("NODE_NAME", "edge").args(["run", "--print-config", "--config"]).arg(&file);
    let effective = objects(&must(&mut command));
    assert_eq!(effective[0]["source"]["kind"], source, "{config}");
}

#[test]
fn the_readable_rights_are_those_of_the_documents() {
    let text = rendered("kubernetes");
    let objects = objects(&text);
    let rules = object(&objects, "ClusterRole")["rules"].as_array().expect("rules");
    for rule in rules {
        let resources: Vec<&str> =
            rule["resources"].as_array().expect("resources").iter().filter_map(Value::as_str).collect();
        let verbs: Vec<&str> =
            rule["verbs"].as_array().expect("verbs").iter().filter_map(Value::as_str).collect();
        if resources == ["events"] {
            assert_eq!(verbs, ["create", "patch", "update"]);
        } else {
            assert!(verbs.iter().all(|verb| ["get", "list", "watch"].contains(verb)), "{rule}");
        }
        for never in ["*", "secrets", "configmaps"] {
            assert!(!resources.contains(&never) && !verbs.contains(&"*"), "{rule}");
        }
    }
}

#[test]
fn the_dockerfile_is_good() {
    let mut command = tool("python/bin/hadolint");
    must(command.arg("--failure-threshold=style").arg(repository("deploy/Dockerfile")));
    let text = std::fs::read_to_string(repository("deploy/Dockerfile")).expect("the file");
    let version = format!("ARG VERSION={}", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&version), "the image's label is not this version's");
    let rust =
        text.lines().find_map(|line| line.strip_prefix("ARG RUST_VERSION=")).expect("a version of Rust");
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    assert!(rust.starts_with(wanted), "the image builds with Rust {rust}, Cargo.toml wants {wanted}");
    assert!(!text.contains(":latest"));
}
