//! EdgeMesh's configuration file, taken apart into keys with their path.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::config::UsageError;

/// The values by path, such as `modules.edgeDNS.listenPort`. Lists and empty sections are values.
#[derive(Debug, Default)]
pub(super) struct Keys(BTreeMap<String, Value>);

impl Keys {
    /// Reads `text`, the content of `file`: the agent's own file, a ConfigMap that holds it, or an edgecore.yaml with
    /// the EdgeMesh of KubeEdge up to v1.7 in it.
    pub(super) fn read(text: &str, file: &Path) -> Result<Self, UsageError> {
        let mut root = parse(text, file)?;
        if root["kind"] == "ConfigMap" {
            let data = root["data"].as_object();
            let inner =
                data.and_then(|data| data.iter().find(|(name, _)| name.starts_with("edgemesh-agent")));
            let inner = inner.and_then(|(_, value)| value.as_str()).ok_or_else(|| {
                fault(
                    file,
                    "this ConfigMap has no `edgemesh-agent.yaml`: give EdgeMesh's, `edgemesh-agent-cfg`",
                )
            })?;
            root = parse(inner, file)?;
        }
        let only = match root["kind"].as_str() {
            Some("EdgeMeshAgent") => "",
            None if root["modules"].is_object() || root["commonConfig"].is_object() => "",
            Some("EdgeCore") if root["modules"]["edgeMesh"].is_object() => "modules.edgeMesh.",
            Some(kind) => {
                let why = format!(
                    "kind is {kind:?}: give the configuration of EdgeMesh's agent (kind EdgeMeshAgent), its ConfigMap, \
                     or an edgecore.yaml with modules.edgeMesh"
                );
                return Err(fault(file, &why));
            }
            None => {
                return Err(fault(
                    file,
                    "this is no EdgeMesh configuration: it has neither kind nor modules",
                ));
            }
        };
        let mut keys = Self::default();
        keys.flatten("", root);
        keys.0.retain(|key, _| key.starts_with(only));
        keys.0.remove("apiVersion");
        keys.0.remove("kind");
        Ok(keys)
    }

    fn flatten(&mut self, path: &str, value: Value) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (name, value) in map {
                    let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                    self.flatten(&path, value);
                }
            }
            value => {
                self.0.insert(path.to_owned(), value);
            }
        }
    }

    /// All of them, by path.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key as text; empty if it is not there.
    pub(super) fn text(&self, key: &str) -> String {
        self.0.get(key).map(show).unwrap_or_default()
    }

    /// The entries of a list; none if it is not there.
    pub(super) fn list(&self, key: &str) -> Vec<String> {
        let list = self.0.get(key).and_then(Value::as_array);
        list.map(|list| list.iter().map(show).collect()).unwrap_or_default()
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| value == true || value == "true")
    }
}

/// A value as people write it.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn parse(text: &str, file: &Path) -> Result<Value, UsageError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet().to_string().replace('\n', " ");
        fault(file, &format!("{error}: give a YAML file"))
    })
}

fn fault(file: &Path, why: &str) -> UsageError {
    UsageError::new(format!("{}: {why}", file.display()))
}
