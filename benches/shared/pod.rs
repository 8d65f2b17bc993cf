//! Pods by the thousand, for a cluster of realistic size.

use serde_json::{Value, json};

/// About as large as pods are: most of it is never read.
pub(crate) fn pod(number: usize) -> Value {
    let environment: Vec<_> = (0..20)
        .map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "some text of some length"}))
        .collect();
    json!({"metadata": {"name": format!("pod-{number}"), "namespace": "shop",
            "labels": {"app": "shop", "pod-template-hash": format!("{number:x}"), "tier": "backend"},
            "annotations": {"kubernetes.io/config.source": "api"}},
           "spec": {"nodeName": format!("edge-{}", number % 500), "containers": [{"name": "main", "image": "registry.example/shop:1.2.3",
            "env": environment, "ports": [{"name": "http", "containerPort": 8080, "hostPort": 8000 + number % 1000}]}]},
           "status": {"phase": "Running", "podIP": format!("10.244.{}.{}", number / 250 % 250, number % 250 + 1), "hostIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True"}]}})
}
