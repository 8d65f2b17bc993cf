//! Answers for the cluster's own names from a snapshot (kubernetes/dns specification 1.1.0). Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::model::{NamedEndpoint, NamedPort, Names, PortId, Protocol, ServiceId, Snapshot};

/// How long an answer may be kept: `CoreDNS`'s default for cluster names.
pub const TTL: u32 = 5;
/// The same for the version of the schema, which never changes (`CoreDNS`).
const VERSION_TTL: u32 = 28_800;
/// The version of the specification, as its record tells it.
const SCHEMA: &str = "1.1.0";
/// Every target is as good as another.
const SRV_WEIGHT: u16 = 100;
/// How often one `ExternalName` may lead to another.
const MOST_ALIASES: usize = 8;

/// What is to be said.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The name is none of the cluster's.
    Foreign,
    /// These records. Empty: the name exists, but has none of that type.
    Found {
        /// The answer.
        records: Vec<Record>,
        /// Addresses of what the answer names.
        additional: Vec<Record>,
    },
    /// The answer begins so, and goes on with what a foreign name has.
    Alias {
        /// The answer's records so far.
        records: Vec<Record>,
        /// The foreign name.
        target: Name,
    },
    /// There is no such name.
    Unknown,
    /// Aliases, and where they lead there is no such name in the zone.
    Dangling {
        /// The aliases.
        records: Vec<Record>,
    },
    /// An alias that leads in a circle, too far, or to what is no name: nobody can say what is there.
    Astray,
}

/// The cluster's domain.
#[derive(Clone, Debug)]
pub struct Zone {
    labels: Vec<String>,
    origin: Name,
}

/// A name that exists, with what it leads to.
enum Node {
    /// It has names below it, and nothing of its own.
    Empty,
    Apex,
    Version,
    /// Addresses, and the ports by which `SRV` asks for them.
    Addresses(Vec<IpAddr>),
    Service(Vec<IpAddr>, ServiceId),
    Headless(Arc<Names>, ServiceId),
    Targets(Vec<Target>),
    External(Arc<str>),
}

/// What an SRV record says.
struct Target {
    port: u16,
    name: Name,
    ip: Vec<IpAddr>,
}

impl Zone {
    /// The zone of a domain such as `cluster.local`. `None` if it is no domain name.
    pub fn new(domain: &str) -> Option<Self> {
        let labels: Vec<String> = domain.split('.').map(str::to_ascii_lowercase).collect();
        let origin = Name::from_labels(labels.iter().map(String::as_bytes)).ok()?;
        Some(Self { labels, origin })
    }

    /// Whether the zone, or the cluster, answers for `name` if it does for anything.
    pub fn contains(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    /// The record that goes with every negative answer.
    pub fn soa(&self) -> Record {
        let below = |labels: &[&str]| self.below(labels).unwrap_or_else(|| self.origin.clone());
        let soa = SOA::new(below(&["ns", "dns"]), below(&["hostmaster"]), 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    /// The answer for a question of class IN.
    pub fn answer(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Outcome {
        if let Some(outcome) = self.reverse(snapshot, name, kind) {
            return outcome;
        }
        let mut records = Vec::new();
        let mut asked = name.clone();
        for _ in 0..MOST_ALIASES {
            if !self.contains(&asked) {
                return if records.is_empty() {
                    Outcome::Foreign
                } else {
                    Outcome::Alias { records, target: asked }
                };
            }
            let Some(node) = self.find(snapshot, &asked) else {
                return if records.is_empty() { Outcome::Unknown } else { Outcome::Dangling { records } };
            };
            let Node::External(target) = node else {
                let (own, additional) = self.records(snapshot, &asked, kind, node);
                records.extend(own);
                return Outcome::Found { records, additional };
            };
            let Ok(target) = Name::from_labels(target.split('.').map(str::as_bytes)) else {
                return Outcome::Astray;
            };
            records.push(Record::from_rdata(asked, TTL, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME {
                return found(records);
            }
            asked = target;
        }
        Outcome::Astray
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        let all = labels.iter().copied().chain(self.labels.iter().map(String::as_str));
        Name::from_labels(all.map(str::as_bytes)).ok()
    }

    /// What a name of the zone leads to; `None` if there is no such name.
    fn find(&self, snapshot: &Snapshot, name: &Name) -> Option<Node> {
        let labels: Vec<String> = name
            .iter()
            .map(|label| std::str::from_utf8(label).map(str::to_ascii_lowercase))
            .collect::<Result<_, _>>()
            .ok()?;
        let own: Vec<&str> =
            labels.get(..labels.len().checked_sub(self.labels.len())?)?.iter().map(String::as_str).collect();
        let namespace = |ns: &str| has_namespace(snapshot, ns).then_some(Node::Empty);
        match own[..] {
            [] => Some(Node::Apex),
            ["dns-version"] => Some(Node::Version),
            ["svc" | "pod" | "dns"] => Some(Node::Empty),
            ["ns", "dns"] => Some(Node::Addresses(
                snapshot
                    .cluster_dns
                    .iter()
                    .filter_map(|id| snapshot.services.get(id))
                    .flat_map(|ips| ips.to_vec())
                    .collect(),
            )),
            [ns, "svc" | "pod"] => namespace(ns),
            [ip, ns, "pod"] => {
                let ip = dashed(ip)?;
                namespace(ns).map(|_| Node::Addresses(vec![ip]))
            }
            [service, ns, "svc"] => service_node(snapshot, service, ns),
            [host, service, ns, "svc"] => {
                let id = id(service, ns);
                if let Some(protocol) = host.strip_prefix('_') {
                    let some = ports(snapshot, &id)?.iter().any(|port| is_protocol(port, protocol));
                    return some.then_some(Node::Empty);
                }
                let Names::Headless(endpoints) = &**snapshot.names.get(&id)? else { return None };
                let ips: Vec<IpAddr> =
                    endpoints.iter().filter(|e| host_label(e) == host).map(|e| e.ip).collect();
                (!ips.is_empty()).then_some(Node::Addresses(ips))
            }
            [port, protocol, service, ns, "svc"] => {
                let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
                let fits = |p: &NamedPort| *p.name == *port && is_protocol(p, protocol);
                let targets = self.targets(snapshot, &id(service, ns), fits)?;
                (!port.is_empty() && !targets.is_empty()).then_some(Node::Targets(targets))
            }
            _ => None,
        }
    }

    /// What the ports of a Service that `fits` accepts lead to.
    fn targets(
        &self,
        snapshot: &Snapshot,
        id: &ServiceId,
        fits: impl Fn(&NamedPort) -> bool,
    ) -> Option<Vec<Target>> {
        let service = [&*id.name, &*id.namespace, "svc"];
        if let Some(names) = snapshot.names.get(id)
            && let Names::Headless(endpoints) = &**names
        {
            let each = endpoints.iter().flat_map(|e| e.ports.iter().filter(|p| fits(p)).map(move |p| (e, p)));
            let target = |(endpoint, port): (&NamedEndpoint, &NamedPort)| {
                let host = host_label(endpoint);
                let name = self.below(&[&[host.as_str()], &service[..]].concat())?;
                Some(Target { port: port.number, name, ip: vec![endpoint.ip] })
            };
            return Some(each.filter_map(target).collect());
        }
        let (name, ips) = (self.below(&service)?, snapshot.services.get(id)?);
        let fitting = ports(snapshot, id)?.into_iter().filter(|port| fits(port));
        Some(fitting.map(|port| Target { port: port.number, name: name.clone(), ip: ips.to_vec() }).collect())
    }

    fn records(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        kind: RecordType,
        node: Node,
    ) -> (Vec<Record>, Vec<Record>) {
        let record = |data: RData| Record::from_rdata(name.clone(), TTL, data);
        let addresses = |ips: &[IpAddr]| address_records(name, ips, kind);
        let plain = |records| (records, Vec::new());
        match node {
            Node::Apex => plain(match kind {
                RecordType::SOA => vec![self.soa()],
                RecordType::NS => {
                    self.below(&["ns", "dns"]).map(|ns| record(RData::NS(NS(ns)))).into_iter().collect()
                }
                _ => Vec::new(),
            }),
            Node::Version => plain(match kind {
                RecordType::TXT | RecordType::ANY => {
                    let data = RData::TXT(TXT::new(vec![SCHEMA.to_owned()]));
                    vec![Record::from_rdata(name.clone(), VERSION_TTL, data)]
                }
                _ => Vec::new(),
            }),
            Node::Service(_, id) | Node::Headless(_, id) if kind == RecordType::SRV => {
                srv_records(name, self.targets(snapshot, &id, |_| true).unwrap_or_default())
            }
            Node::Addresses(ips) | Node::Service(ips, _) => plain(addresses(&ips)),
            Node::Headless(names, _) => match &*names {
                Names::Headless(endpoints) => {
                    plain(addresses(&endpoints.iter().map(|e| e.ip).collect::<Vec<_>>()))
                }
                _ => plain(Vec::new()),
            },
            Node::Targets(targets) if matches!(kind, RecordType::SRV | RecordType::ANY) => {
                srv_records(name, targets)
            }
            Node::Targets(_) | Node::Empty | Node::External(_) => plain(Vec::new()),
        }
    }

    /// The answer for the name of an address that is the cluster's; `None` for other names and addresses.
    fn reverse(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Option<Outcome> {
        let ip = reversed(name)?;
        let mut names: Vec<Name> = Vec::new();
        if let Some(id) = snapshot.owners.get(&ip) {
            names.extend(self.below(&[&id.name, &id.namespace, "svc"]));
        }
        let none = ServiceId { namespace: Arc::from(""), name: Arc::from("") };
        for ((_, id), hostname) in snapshot.hosts.range((ip, none)..).take_while(|((at, _), _)| *at == ip) {
            names.extend(self.below(&[hostname, &id.name, &id.namespace, "svc"]));
        }
        if names.is_empty() {
            return None;
        }
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Some(found(Vec::new()));
        }
        let record = |target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)));
        Some(found(names.into_iter().map(record).collect()))
    }
}

/// What the name of a Service leads to.
fn service_node(snapshot: &Snapshot, service: &str, namespace: &str) -> Option<Node> {
    let id = id(service, namespace);
    let ips = snapshot.services.get(&id)?;
    match snapshot.names.get(&id) {
        Some(names) => match &**names {
            // CoreDNS: without a ready endpoint there is no such name.
            Names::Headless(endpoints) if endpoints.is_empty() => None,
            Names::Headless(_) => Some(Node::Headless(Arc::clone(names), id)),
            Names::External(target) => Some(Node::External(Arc::clone(target))),
            Names::LeftAlone(_) => Some(Node::Service(ips.to_vec(), id)),
        },
        None if ips.is_empty() => Some(Node::Empty),
        None => Some(Node::Service(ips.to_vec(), id)),
    }
}

/// Whether an answer to a question for `kind` says that there is none: at most aliases on the way there, and their
/// signatures, stand in it.
pub fn is_negative(records: &[Record], kind: RecordType) -> bool {
    let answers = |record: &Record| match kind {
        RecordType::ANY => record.record_type() != RecordType::CNAME,
        kind => record.record_type() == kind,
    };
    !records.iter().any(answers)
}

fn found(records: Vec<Record>) -> Outcome {
    Outcome::Found { records, additional: Vec::new() }
}

fn id(service: &str, namespace: &str) -> ServiceId {
    ServiceId { namespace: Arc::from(namespace), name: Arc::from(service) }
}

/// Whether a namespace is known by its object or by a Service in it.
fn has_namespace(snapshot: &Snapshot, namespace: &str) -> bool {
    snapshot.namespaces.contains(namespace)
        || snapshot
            .services
            .range(id("", namespace)..)
            .next()
            .is_some_and(|(first, _)| *first.namespace == *namespace)
}

/// The ports of a Service, whether or not they are intercepted.
fn ports(snapshot: &Snapshot, id: &ServiceId) -> Option<Vec<NamedPort>> {
    snapshot.services.get(id)?;
    Some(match snapshot.names.get(id).map(|names| &**names) {
        Some(Names::LeftAlone(ports)) => ports.to_vec(),
        Some(Names::Headless(endpoints)) => endpoints.iter().flat_map(|e| e.ports.to_vec()).collect(),
        Some(Names::External(_)) => Vec::new(),
        None => {
            let from = PortId { service: id.clone(), name: Arc::from(""), protocol: Protocol::Tcp };
            let own = snapshot.ports.range(from..).take_while(|(key, _)| key.service == *id);
            own.map(|(key, port)| NamedPort {
                name: Arc::clone(&key.name),
                protocol: key.protocol,
                number: port.number,
            })
            .collect()
        }
    })
}

fn is_protocol(port: &NamedPort, word: &str) -> bool {
    port.protocol.to_string().eq_ignore_ascii_case(word)
}

/// An endpoint's name below its Service's: its own, else its address with dashes, as `CoreDNS` has it.
fn host_label(endpoint: &NamedEndpoint) -> String {
    endpoint
        .hostname
        .as_deref()
        .map_or_else(|| endpoint.ip.to_string().replace(['.', ':'], "-"), str::to_owned)
}

/// The address that a pod's name spells with dashes.
fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::from);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from)).ok()
}

fn address_records(name: &Name, ips: &[IpAddr], kind: RecordType) -> Vec<Record> {
    let fits = |ip: &&IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let data = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => RData::A(A(*ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
    };
    ips.iter().filter(fits).map(|ip| Record::from_rdata(name.clone(), TTL, data(ip))).collect()
}

fn srv_records(name: &Name, targets: Vec<Target>) -> (Vec<Record>, Vec<Record>) {
    let mut additional: Vec<Record> = Vec::new();
    let mut records = Vec::with_capacity(targets.len());
    for target in targets {
        for record in address_records(&target.name, &target.ip, RecordType::ANY) {
            if !additional.contains(&record) {
                additional.push(record);
            }
        }
        let data = RData::SRV(SRV::new(0, SRV_WEIGHT, target.port, target.name));
        records.push(Record::from_rdata(name.clone(), TTL, data));
    }
    (records, additional)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` spells in full.
fn reversed(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&str> = name.iter().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let [own @ .., zone, arpa] = &labels[..] else { return None };
    if !arpa.eq_ignore_ascii_case("arpa") {
        return None;
    }
    if zone.eq_ignore_ascii_case("in-addr") && own.len() == 4 {
        let octets: Vec<u8> = own.iter().rev().map(|label| label.parse()).collect::<Result<_, _>>().ok()?;
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    if zone.eq_ignore_ascii_case("ip6") && own.len() == 32 && own.iter().all(|label| label.len() == 1) {
        let digits: String = own.iter().rev().copied().collect();
        return u128::from_str_radix(&digits, 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into());
    }
    None
}
