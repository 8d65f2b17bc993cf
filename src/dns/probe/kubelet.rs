//! What the kubelet, or KubeEdge's edged, tells pods about names. Pure but for [`read`].

use serde_json::Value;

/// Where it is written, the first that is there counts.
const PLACES: [&str; 2] = ["/etc/kubeedge/config/edgecore.yaml", "/var/lib/kubelet/config.yaml"];
/// Where in the file: KubeEdge 1.12 and later, before that, and the kubelet itself.
const PARENTS: [&[&str]; 3] = [&["modules", "edged", "tailoredKubeletConfig"], &["modules", "edged"], &[]];

/// What pods with the usual `dnsPolicy: ClusterFirst` are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kubelet {
    /// The file.
    pub(super) path: String,
    /// The way to `clusterDNS` and `clusterDomain` in it, with a dot at its end, or empty.
    pub(super) parent: String,
    /// The servers; none: pods get what the node has in `/etc/resolv.conf`.
    pub(super) servers: Vec<String>,
    /// The domain; `None`: pods get no search path for the cluster.
    pub(super) domain: Option<String>,
}

/// Reads this node's file. `None` if there is none, or if it cannot be read.
pub(super) fn read() -> Option<Kubelet> {
    PLACES.iter().find_map(|path| parse(path, &std::fs::read_to_string(path).ok()?))
}

fn parse(path: &str, text: &str) -> Option<Kubelet> {
    let whole: Value = serde_saphyr::from_str(text).ok()?;
    let at = |parent: &[&str]| {
        parent.iter().try_fold(&whole, |value, key| value.get(key)).filter(|value| value.is_object())
    };
    let named = |value: &Value| value.get("clusterDNS").is_some() || value.get("clusterDomain").is_some();
    let there = |parent: &&&[&str]| at(parent).is_some();
    // Where nothing is said, it has to be said at the place that this version reads.
    let parent = PARENTS
        .iter()
        .find(|parent| at(parent).is_some_and(named))
        .or_else(|| PARENTS.iter().find(there))
        .copied()?;
    let value = at(parent)?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let servers = match value.get("clusterDNS") {
        Some(Value::Array(list)) => list.iter().filter_map(text).collect(),
        Some(one) => text(one).into_iter().collect(),
        None => Vec::new(),
    };
    Some(Kubelet {
        path: path.to_owned(),
        parent: if parent.is_empty() { String::new() } else { format!("{}.", parent.join(".")) },
        servers,
        domain: value.get("clusterDomain").and_then(text),
    })
}

/// Reads a file, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_text(text: &str) {
    let _ = parse("fuzz", text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Option<(String, Vec<String>, Option<String>)> {
        parse("x.yaml", text).map(|k| (k.parent, k.servers, k.domain))
    }

    #[test]
    fn every_version_of_the_file_is_understood() {
        let some = |parent: &str, servers: &[&str], domain: Option<&str>| {
            let servers = servers.iter().map(ToString::to_string).collect();
            Some((parent.to_owned(), servers, domain.map(str::to_owned)))
        };
        let kubelet =
            "kind: KubeletConfiguration\nclusterDNS: [10.96.0.10, fd00::a]\nclusterDomain: cluster.local\n";
        assert_eq!(told(kubelet), some("", &["10.96.0.10", "fd00::a"], Some("cluster.local")));
        let edged = "modules:\n  edged:\n    enable: true\n    tailoredKubeletConfig:\n      clusterDNS:\n      - 169.254.96.16\n";
        assert_eq!(told(edged), some("modules.edged.tailoredKubeletConfig.", &["169.254.96.16"], None));
        let older = "modules:\n  edged:\n    clusterDNS: 169.254.96.16\n    clusterDomain: \"\"\n";
        assert_eq!(told(older), some("modules.edged.", &["169.254.96.16"], None));
        let silent = "modules:\n  edged:\n    tailoredKubeletConfig: {maxPods: 110}\n";
        assert_eq!(told(silent), some("modules.edged.tailoredKubeletConfig.", &[], None));
        assert_eq!(told("kind: KubeletConfiguration\n"), some("", &[], None));
        assert_eq!(told(": ["), None);
        assert_eq!(told("just words"), None);
    }
}
