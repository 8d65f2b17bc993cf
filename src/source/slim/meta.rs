//! Object metadata: names with their defaults, and the labels by which a Service opts out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

use super::fields::nullable;
use crate::config::SERVICE_PROXY_NAME_LABEL as PROXY_NAME;

/// The label by which a Service or slice keeps every interceptor away, or chooses another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OptOut {
    /// `service.kubernetes.io/service-proxy-name` with this value (KEP-2447): for the proxy of that name, and no other.
    ProxyName(Box<str>),
    /// `service.kubernetes.io/headless`, any value.
    Headless,
    /// `service.edgemesh.kubeedge.io/service-proxy-name`, any value (EdgeMesh 1.10 and later).
    EdgeMeshProxyName,
    /// `noproxy=edgemesh` (EdgeMesh 1.9).
    NoProxy,
}

impl OptOut {
    /// The label as a manifest writes it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::ProxyName(_) => PROXY_NAME,
            Self::Headless => "service.kubernetes.io/headless",
            Self::EdgeMeshProxyName => "service.edgemesh.kubeedge.io/service-proxy-name",
            Self::NoProxy => "noproxy=edgemesh",
        }
    }

    /// Whether the label chooses the proxy called `name`. Without a name, no label does.
    pub fn chooses(&self, name: &str) -> bool {
        matches!(self, Self::ProxyName(value) if !name.is_empty() && **value == *name)
    }

    fn of(labels: &Labels) -> Option<Self> {
        for out in [Self::Headless, Self::EdgeMeshProxyName] {
            if labels.contains_key(out.label()) {
                return Some(out);
            }
        }
        if labels.get("noproxy").is_some_and(|v| v.as_deref() == Some("edgemesh")) {
            return Some(Self::NoProxy);
        }
        // Last, for it alone may mean that the object is ours.
        labels.get(PROXY_NAME).map(|value| Self::ProxyName(value.clone().unwrap_or_default()))
    }
}

pub(super) type Labels = BTreeMap<Box<str>, Option<Box<str>>>;

/// Metadata as written; lives only while its object is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMeta {
    pub(super) name: Name,
    #[serde(default, deserialize_with = "nullable")]
    namespace: Namespace,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) labels: Labels,
    #[serde(default, deserialize_with = "nullable")]
    annotations: Labels,
    #[serde(default)]
    pub(super) creation_timestamp: Option<Box<str>>,
    #[serde(default)]
    pub(super) deletion_timestamp: Option<Box<str>>,
    #[serde(default)]
    resource_version: Option<Box<str>>,
}

impl RawMeta {
    /// The namespace; `default` where the manifest names none.
    pub(super) fn namespace(&self) -> Arc<str> {
        self.namespace.0.clone().unwrap_or_else(|| Arc::from("default"))
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)?.as_deref()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key)?.as_deref()
    }

    pub(super) fn opt_out(&self) -> Option<OptOut> {
        OptOut::of(&self.labels)
    }

    /// Resource versions are opaque to clients; every API server writes increasing numbers, and only the order of
    /// two Services that claim one address hangs on it.
    pub(super) fn resource_version(&self) -> u64 {
        self.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

/// A name that can stand in a path, a log line and a table.
#[derive(Clone, Debug)]
pub(super) struct Name(pub(super) Arc<str>);

#[derive(Clone, Debug, Default)]
struct Namespace(Option<Arc<str>>);

struct NameVisitor {
    empty: bool,
}

impl Visitor<'_> for NameVisitor {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object name of 1 to 253 letters, digits, `-`, `.`, `:` or `_`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Arc<str>, E> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
        if text.len() > 253 || !text.bytes().all(good) || (text.is_empty() && !self.empty) {
            let shown: String = text.chars().take(80).collect();
            return Err(E::invalid_value(Unexpected::Str(&shown), &self));
        }
        Ok(Arc::from(text))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(NameVisitor { empty: false }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = from.deserialize_str(NameVisitor { empty: true })?;
        Ok(Self((!name.is_empty()).then_some(name)))
    }
}
