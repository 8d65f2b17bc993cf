//! Kubernetes objects cut down to the fields this program reads.
//!
//! One set of types for every source: they deserialize from YAML and from JSON, pass over unknown fields and nulls,
//! and hold the values that the API server would have filled in. What the rules of a field are stands beside the
//! field; what follows from a value is the business of `model`.

mod endpoints;
mod fields;
mod meta;
mod node;
mod pod;
mod rule;
mod service;
mod write;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

pub use endpoints::{AddressType, Endpoint, EndpointSlice, Endpoints, Hints, SlicePort, Subset};
pub use fields::{Address, PortRef, Protocol, parse_duration, parse_ip};
pub use meta::OptOut;
pub use node::{Namespace, Node, ServiceCidr};
pub use pod::{Phase, Pod, PodPort};
pub use rule::{DestinationRule, HashCookie, HttpPool};
pub use service::{Exposure, Service, ServicePort};
pub use write::encode;

/// A kind of object that this program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Endpoints.
    Endpoints,
    /// `v1` Pod.
    Pod,
    /// `v1` Node.
    Node,
    /// `v1` Namespace.
    Namespace,
    /// `networking.istio.io`, any version, DestinationRule.
    DestinationRule,
    /// `networking.k8s.io` `ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Endpoints,
        Self::Pod,
        Self::Node,
        Self::Namespace,
        Self::DestinationRule,
        Self::ServiceCidr,
    ];

    /// Which kind `apiVersion` and `kind` name, if it is one of ours.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        Some(match (group, version, kind) {
            ("", "v1", "Service") => Self::Service,
            ("", "v1", "Endpoints") => Self::Endpoints,
            ("", "v1", "Pod") => Self::Pod,
            ("", "v1", "Node") => Self::Node,
            ("", "v1", "Namespace") => Self::Namespace,
            ("discovery.k8s.io", "v1", "EndpointSlice") => Self::EndpointSlice,
            ("networking.istio.io", _, "DestinationRule") => Self::DestinationRule,
            // Both versions have the same shape.
            ("networking.k8s.io", "v1" | "v1beta1", "ServiceCIDR") => Self::ServiceCidr,
            _ => return None,
        })
    }

    /// The kind as manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object of a kind this program uses.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// An Endpoints object.
    Endpoints(Box<Endpoints>),
    /// A Pod.
    Pod(Box<Pod>),
    /// A Node.
    Node(Box<Node>),
    /// A Namespace.
    Namespace(Box<Namespace>),
    /// A DestinationRule.
    DestinationRule(Box<DestinationRule>),
    /// A `ServiceCIDR`.
    ServiceCidr(Box<ServiceCidr>),
}

/// Names one object: kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl Object {
    /// What the object is called.
    pub fn key(&self) -> ObjectKey {
        let none: Arc<str> = Arc::from("");
        let (kind, namespace, name) = match self {
            Self::Service(o) => (Kind::Service, &o.namespace, &o.name),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.namespace, &o.name),
            Self::Endpoints(o) => (Kind::Endpoints, &o.namespace, &o.name),
            Self::Pod(o) => (Kind::Pod, &o.namespace, &o.name),
            Self::DestinationRule(o) => (Kind::DestinationRule, &o.namespace, &o.name),
            Self::Node(o) => (Kind::Node, &none, &o.name),
            Self::Namespace(o) => (Kind::Namespace, &none, &o.name),
            Self::ServiceCidr(o) => (Kind::ServiceCidr, &none, &o.name),
        };
        ObjectKey { kind, namespace: namespace.clone(), name: name.clone() }
    }
}

/// Reads one object of `kind` from any serde format, with the API server's defaults applied.
///
/// Errors name the field and what is wrong with it; the format's own deserializer adds the line.
pub fn decode<'de, D: Deserializer<'de>>(kind: Kind, from: D) -> Result<Object, D::Error> {
    Ok(match kind {
        Kind::Service => Object::Service(Box::new(Service::deserialize(from)?)),
        Kind::EndpointSlice => Object::EndpointSlice(Box::new(EndpointSlice::deserialize(from)?)),
        Kind::Endpoints => Object::Endpoints(Box::new(Endpoints::deserialize(from)?)),
        Kind::Pod => Object::Pod(Box::new(Pod::deserialize(from)?)),
        Kind::Node => Object::Node(Box::new(Node::deserialize(from)?)),
        Kind::Namespace => Object::Namespace(Box::new(Namespace::deserialize(from)?)),
        Kind::DestinationRule => Object::DestinationRule(Box::new(DestinationRule::deserialize(from)?)),
        Kind::ServiceCidr => Object::ServiceCidr(Box::new(ServiceCidr::deserialize(from)?)),
    })
}

#[cfg(test)]
mod tests;
