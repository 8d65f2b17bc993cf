//! The kinds of objects that are followed, and where an API keeps them.

use super::slim::Kind;

/// A kind of object and where the API keeps it.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// The plural name.
    pub(super) name: &'static str,
    /// The API group.
    pub(super) group: &'static str,
    /// Where it is, newest API version first.
    pub(super) paths: &'static [&'static str],
    /// Selectors, as query parameters.
    pub(super) query: &'static str,
    pub(super) need: Need,
    /// Followed only where this other kind has no objects.
    pub(super) instead_of: Option<Kind>,
}

/// What it means when a kind cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// There is no complete state without it.
    Required,
    /// It may be absent (404, 403), since another kind stands in for it; any other failure is waited out.
    Replaceable,
    /// Everything works without it.
    Optional,
}

/// The kinds as every API serves them.
pub(super) const SERVICES: Resource = core(Kind::Service, "services", &["/api/v1/services"]);
/// See [`SERVICES`].
pub(super) const SLICES: Resource = Resource {
    kind: Kind::EndpointSlice,
    name: "endpointslices",
    group: "discovery.k8s.io",
    paths: &["/apis/discovery.k8s.io/v1/endpointslices"],
    query: "",
    need: Need::Required,
    instead_of: None,
};
/// See [`SERVICES`].
pub(super) const ENDPOINTS: Resource = core(Kind::Endpoints, "endpoints", &["/api/v1/endpoints"]);
/// See [`SERVICES`].
pub(super) const PODS: Resource = core(Kind::Pod, "pods", &["/api/v1/pods"]);
/// See [`SERVICES`].
pub(super) const NODES: Resource = core(Kind::Node, "nodes", &["/api/v1/nodes"]);
/// See [`SERVICES`].
pub(super) const SERVICE_CIDRS: Resource = Resource {
    kind: Kind::ServiceCidr,
    name: "servicecidrs",
    group: "networking.k8s.io",
    paths: &["/apis/networking.k8s.io/v1/servicecidrs"],
    query: "",
    need: Need::Optional,
    instead_of: None,
};
/// See [`SERVICES`]. This version is served by every Istio, and the only one that `EdgeMesh` installs everywhere.
pub(super) const DESTINATION_RULES: Resource = Resource {
    kind: Kind::DestinationRule,
    name: "destinationrules",
    group: "networking.istio.io",
    paths: &["/apis/networking.istio.io/v1alpha3/destinationrules"],
    query: "",
    need: Need::Optional,
    instead_of: None,
};

const fn core(kind: Kind, name: &'static str, paths: &'static [&'static str]) -> Resource {
    Resource { kind, name, group: "", paths, query: "", need: Need::Required, instead_of: None }
}
