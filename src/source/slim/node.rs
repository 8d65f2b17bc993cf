//! The kinds without a namespace: Node, Namespace and `ServiceCIDR`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::fields::{Address, nullable};
use super::meta::RawMeta;

/// A Node.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Node {
    /// The name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, or the older `failure-domain.beta.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Annotation `edgesplice.io/host-ip`: one address, or one of each family separated by a comma.
    pub host_ip_override: Box<[Address]>,
    /// Its addresses of type `InternalIP`, or those of type `ExternalIP` where there is none.
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`, or `podCIDR` alone.
    pub pod_cidrs: Box<[IpNet]>,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Namespace {
    /// The name.
    pub name: Arc<str>,
}

/// A `ServiceCIDR`.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct ServiceCidr {
    /// The name.
    pub name: Arc<str>,
    /// `spec.cidrs`, host bits cleared.
    pub cidrs: Box<[IpNet]>,
}

#[derive(Deserialize)]
struct RawNode {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
struct RawSpec {
    #[serde(rename = "podCIDR", default)]
    pod_cidr: Option<Box<str>>,
    #[serde(rename = "podCIDRs", default, deserialize_with = "nullable")]
    pod_cidrs: Vec<Box<str>>,
}

#[derive(Default, Deserialize)]
struct RawStatus {
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(rename = "type")]
    kind: Box<str>,
    address: Address,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawNode { metadata, spec, status } = RawNode::deserialize(from)?;
        let of_type = |kind: &str| -> Box<[IpAddr]> {
            status.addresses.iter().filter(|a| *a.kind == *kind).filter_map(|a| a.address.ip()).collect()
        };
        let internal = of_type("InternalIP");
        let zone = metadata
            .label("topology.kubernetes.io/zone")
            .or_else(|| metadata.label("failure-domain.beta.kubernetes.io/zone"));
        let host_ip = metadata.annotation("edgesplice.io/host-ip").unwrap_or("");
        let cidrs = spec.pod_cidrs.iter().chain(&spec.pod_cidr);
        let mut pod_cidrs: Vec<IpNet> = cidrs.filter_map(|c| c.parse().ok()).collect();
        pod_cidrs.sort_unstable();
        pod_cidrs.dedup();
        Ok(Self {
            zone: zone.filter(|z| !z.is_empty()).map(Arc::from),
            host_ip_override: host_ip
                .split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(Address::from)
                .collect(),
            addresses: if internal.is_empty() { of_type("ExternalIP") } else { internal },
            pod_cidrs: pod_cidrs.into(),
            name: metadata.name.0,
        })
    }
}

#[derive(Deserialize)]
struct RawNamed {
    metadata: RawMeta,
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self { name: RawNamed::deserialize(from)?.metadata.name.0 })
    }
}

#[derive(Deserialize)]
struct RawCidr {
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: CidrSpec,
}

#[derive(Default, Deserialize)]
struct CidrSpec {
    #[serde(default, deserialize_with = "nullable")]
    cidrs: Vec<Cidr>,
}

/// A range that may be captured whole. The API server allows 20 bits of host part for IPv4; a range that spans a
/// good part of the address space is a mistake that would cut the node off.
struct Cidr(IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(from)?;
        let parsed = text
            .split_once('/')
            .and_then(|(ip, prefix)| IpNet::new(super::parse_ip(ip)?, prefix.parse().ok()?).ok());
        match parsed {
            Some(net) if net.prefix_len() >= if net.addr().is_ipv4() { 8 } else { 32 } => {
                Ok(Self(net.trunc()))
            }
            Some(net) => {
                Err(serde::de::Error::custom(format_args!("the CIDR {net} is too wide for Services")))
            }
            None => {
                Err(serde::de::Error::custom(format_args!("{text:?} is not a CIDR such as 10.96.0.0/12")))
            }
        }
    }
}

impl<'de> Deserialize<'de> for ServiceCidr {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = RawCidr::deserialize(from)?;
        Ok(Self { cidrs: raw.spec.cidrs.into_iter().map(|cidr| cidr.0).collect(), name: raw.metadata.name.0 })
    }
}
