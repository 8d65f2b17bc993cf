//! The Helm chart: linted, rendered with several sets of values, held to the schemas.

use serde_json::Value;

use super::manifests::{accepted, container, hardened, kubectl_reads, rendered};
use super::tools::{Said, must, object, objects, repository, said, tool, validate};

const CHART: &str = "deploy/helm/edgesplice";

fn template(args: &[&str]) -> Said {
    let mut command = tool("helm");
    command
        .args(["template", "edgesplice"])
        .arg(repository(CHART))
        .args(["--namespace", "kube-system"])
        .args(args);
    said(&mut command)
}

/// What the chart makes of these values; validated.
fn rendering(args: &[&str]) -> Vec<Value> {
    let Said { code, stdout, stderr } = template(args);
    assert_eq!(code, Some(0), "{stderr}");
    let all = objects(&stdout);
    let known: Vec<String> =
        all.iter().filter(|object| object["kind"] != "PodMonitor").map(ToString::to_string).collect();
    // JSON is YAML, and Prometheus' own kinds are not among Kubernetes' schemas.
    let known = known.join("\n---\n");
    validate(&known);
    kubectl_reads(&known);
    all
}

fn config(objects: &[Value]) -> &str {
    object(objects, "ConfigMap")["data"]["config.yaml"].as_str().expect("text")
}

#[test]
fn the_chart_is_good() {
    must(tool("helm").args(["lint", "--strict"]).arg(repository(CHART)));
    let chart = std::fs::read_to_string(repository(CHART).join("Chart.yaml")).expect("the chart");
    let chart = objects(&chart);
    assert_eq!(chart[0]["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn its_defaults_are_the_manifests() {
    let all = rendering(&[]);
    let daemonset = object(&all, "DaemonSet");
    hardened(daemonset);
    accepted(config(&all), "auto");
    // The chart and the overlays must not drift apart.
    let manifests = objects(&rendered("kubernetes"));
    let other = object(&manifests, "DaemonSet");
    for field in
        ["securityContext", "startupProbe", "livenessProbe", "readinessProbe", "resources", "image", "args"]
    {
        assert_eq!(container(daemonset)[field], container(other)[field], "{field}");
    }
    assert_eq!(daemonset["spec"]["updateStrategy"], other["spec"]["updateStrategy"]);
    assert_eq!(object(&all, "ClusterRole")["rules"], object(&manifests, "ClusterRole")["rules"]);
    let token = |set: &Value| set["spec"]["template"]["spec"]["automountServiceAccountToken"].clone();
    assert_eq!(token(daemonset), true);
}

#[test]
fn values_reach_where_they_belong() {
    let edge = repository(CHART).join("values-kubeedge.yaml").display().to_string();
    let all = rendering(&["--values", &edge]);
    hardened(object(&all, "DaemonSet"));
    accepted(config(&all), "metaserver");
    let pod = &object(&all, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["nodeSelector"]["node-role.kubernetes.io/edge"], "");

    let digest = format!("sha256:{}", "0a".repeat(32));
    let all = rendering(&[
        "--set=config.admin.listen=0.0.0.0:10333",
        "--set=metrics.podMonitor.enabled=true",
        "--set=rbac.askServiceRange=true",
        "--set=apiServer.host=192.0.2.7",
        &format!("--set=image.digest={digest}"),
        "--set=extraArgs={--log-level=debug}",
        "--set-string=podAnnotations.team=net",
    ]);
    let daemonset = object(&all, "DaemonSet");
    hardened(daemonset);
    let agent = container(daemonset);
    assert_eq!(agent["livenessProbe"]["httpGet"]["port"], 10333);
    assert_eq!(agent["ports"][0]["containerPort"], 10333);
    assert_eq!(object(&all, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"], "admin");
    assert_eq!(object(&all, "Role")["metadata"]["namespace"], "default");
    assert_eq!(agent["args"][3], "--log-level=debug");
    assert!(agent["image"].as_str().expect("an image").ends_with(&digest));
    let variables = agent["env"].as_array().expect("variables");
    let server = serde_json::json!({"name": "KUBERNETES_SERVICE_HOST", "value": "192.0.2.7"});
    assert!(variables.contains(&server), "{variables:?}");
    let annotations = &daemonset["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["team"], "net");

    // A changed configuration rolls the DaemonSet.
    let sum = |all: &[Value]| {
        object(all, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    let changed = rendering(&["--set=config.dns.mode=off"]);
    assert_ne!(sum(&changed), sum(&rendering(&[])));
    assert!(config(&changed).contains("mode: \"off\"") || config(&changed).contains("mode: off"));
}

#[test]
fn wrong_values_are_refused_with_their_name() {
    for (value, word) in [
        ("image.tag=latest", "/image/tag"),
        ("nosuch=1", "nosuch"),
        ("config.nosuch.a=1", "nosuch"),
        ("config.source.kind=etcd", "/config/source/kind"),
        ("apiServer.host=https://10.0.0.1", "/apiServer/host"),
        ("image.digest=sha256:12", "/image/digest"),
        ("metrics.podMonitor.enabled=true", "config.admin.listen"),
    ] {
        let Said { code, stderr, .. } = template(&[&format!("--set={value}")]);
        assert_ne!(code, Some(0), "{value}");
        assert!(stderr.contains(word), "{value}: {stderr}");
    }
}

#[test]
fn the_notes_say_how_to_verify() {
    let mut command = tool("helm");
    command
        .args(["install", "--dry-run=client", "splice"])
        .arg(repository(CHART))
        .args(["-n", "kube-system"]);
    let notes = must(&mut command);
    let notes = notes.split_once("NOTES:").expect("notes").1;
    for line in
        ["rollout status daemonset/splice-edgesplice", "edgesplice check", "apiServer.host is not set"]
    {
        assert!(notes.contains(line), "{notes}");
    }
}
