//! Metrics: the documentation that is made from their tables, and the alert rules and the dashboard that use them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgesplice::obs::metrics;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn observability(file: &str) -> PathBuf {
    root().join("deploy/observability").join(file)
}

#[test]
fn the_documentation_is_that_of_this_code() {
    let (path, text) = (root().join("docs/metrics.md"), metrics::document());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/metrics.md is not what the code says: `UPDATE_DOCS=1 cargo test --test metrics`"
    );
}

/// Names as they stand in a scrape; a histogram has three.
fn exposed() -> BTreeSet<String> {
    let document = metrics::document();
    let mut names = BTreeSet::new();
    for row in document.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = row.split_once('`').unwrap();
        if rest.starts_with(" | histogram") {
            names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            names.insert(name.to_owned());
        }
    }
    assert!(names.len() > 60, "{names:?}");
    names
}

/// Every name of ours that `text` uses.
fn used(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("edgesplice_") {
        names.insert(text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
    }
    names
}

#[test]
fn alerts_and_dashboard_use_names_that_there_are() {
    let exposed = exposed();
    for file in ["alerts.yaml", "alerts.test.yaml", "dashboard.json"] {
        let text = fs::read_to_string(observability(file)).unwrap();
        let unknown: Vec<String> = used(&text).into_iter().filter(|name| !exposed.contains(name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let text = fs::read_to_string(observability("dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dashboard["uid"], "edgesplice");
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}: its id stands there twice", panel["title"]);
        let place = &panel["gridPos"];
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| place[key].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(places.insert(cell), "{} lies on another panel", panel["title"]);
        }
        if panel["type"] != "row" {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty() && targets.iter().all(|t| t["expr"].is_string()), "{panel}");
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{panel}");
        }
    }
    assert!(panels.len() > 20);
}

/// Prometheus' own tool, installed by `scripts/setup.sh test`.
fn promtool(args: &[&str]) {
    let kept = root().join("target/tools/promtool");
    let program = if kept.is_file() { kept } else { PathBuf::from("promtool") };
    let output = Command::new(&program)
        .args(args)
        .current_dir(observability(""))
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}: `scripts/setup.sh test` brings it", program.display()));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}: {said}");
}

#[test]
fn promtool_accepts_the_alert_rules() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"]);
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    promtool(&["test", "rules", "alerts.test.yaml"]);
}

#[test]
fn every_alert_is_tested_and_says_what_to_do() {
    let rules = fs::read_to_string(observability("alerts.yaml")).unwrap();
    let tests = fs::read_to_string(observability("alerts.test.yaml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} is not tested");
    }
    assert_eq!(rules.matches("- alert: ").count(), rules.matches("description: ").count());
}
