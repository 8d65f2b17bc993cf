//! What should stand in the packet filter, as data. Pure: the same input gives the same plan.

mod entries;
mod optional;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use super::apply::Family;
use super::ipset::Set;
use super::names::{
    COMMENT, FORWARD_CHAIN, HELD_CHAIN, HOME_CHAIN, INPUT_CHAIN, MANGLE_CHAIN, NAT_CHAIN, OUTPUT_CHAIN,
    external_sets, served_set, skip_set,
};
use super::routes::Entry;
use crate::model::{Door, Frontend, Protocol};

/// What the rules are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The captured ranges. Empty: nothing is captured, and nothing of ours stands on the node.
    pub ranges: Vec<IpNet>,
    /// Addresses inside the ranges that are left alone: Services that opted out, `default/kubernetes`.
    pub skip: BTreeSet<IpAddr>,
    /// The TCP and UDP frontends that are answered. Everything else inside the ranges is refused.
    pub served: OrdSet<Frontend>,
    /// The frontends outside of the ranges: node ports, external and load balancer addresses. Captured with ip sets
    /// only.
    pub external: OrdMap<Frontend, Door>,
    /// Where health checks of load balancers are answered.
    pub health: OrdSet<Frontend>,
    /// The ranges of this node's pods, at most one of each family: their clients count as this node's own.
    pub pods: Vec<IpNet>,
    /// Own addresses on which the agent answers over UDP and TCP, let in whatever rules stand below.
    pub listeners: BTreeSet<SocketAddr>,
    /// In how many queues, from [`FIRST_QUEUE`](super::names::FIRST_QUEUE) on, the first packets of clients of the ranges are held until a backend
    /// is connected. 0: they are not held.
    pub queues: u16,
    /// Connections may be made to backends on this node from their clients' own addresses.
    pub keep_source: bool,
    /// The acceptor's port.
    pub proxy_port: u16,
    /// The acceptor's port of the agent that was here before and still serves what was led to it.
    pub former_port: Option<u16>,
    /// The mark on the agent's own packets, one bit.
    pub own_mark: u32,
    /// The mark on packets that are to be refused, one bit.
    pub refuse_mark: u32,
}

/// What this machine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The kernel and the tool know ip sets, and rules can match on them. Without: refusal before accept is given up
    /// for TCP, and each address left alone costs a rule.
    pub ipset: bool,
    /// The kernel has IPv6, and `ip6tables` works.
    pub v6: bool,
    /// The kernel has policy routing. Without: UDP is refused, and pods on a bridge whose packets pass `iptables`
    /// (`bridge-nf-call-iptables=1`) see a timeout where they should be refused.
    pub policy_routing: bool,
    /// The kernel has sets of the type `hash:ip,port,net`. Without: source ranges of load balancers hold after accept.
    pub source_sets: bool,
    /// The kernel can hold packets in queues. Without: no packet is held.
    pub queues: bool,
    /// Connections can be marked. Without: backends see this node's address.
    pub connection_marks: bool,
}

impl Capabilities {
    /// A machine that has everything.
    pub const ALL: Self = Self {
        ipset: true,
        v6: true,
        policy_routing: true,
        source_sets: true,
        queues: true,
        connection_marks: true,
    };
}

/// Everything that should stand on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One for each family that has a captured range, IPv4 first.
    pub families: Vec<FamilyPlan>,
}

/// The rules and routes of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyPlan {
    /// The family.
    pub family: Family,
    /// In the order of installation: what refuses and guards first, what captures last.
    pub tables: Vec<TablePlan>,
    /// Routes and policy rules.
    pub entries: BTreeSet<Entry>,
    /// Whether the rules refer to the family's sets.
    pub sets: bool,
    /// Whether they refer to those for source ranges as well.
    pub guarded: bool,
}

impl FamilyPlan {
    /// Whether the rules are the same as those of `other`, whatever the routes.
    pub fn has_rules_of(&self, other: &Self) -> bool {
        self.tables == other.tables && self.sets == other.sets && self.guarded == other.guarded
    }

    /// The sets that the rules refer to.
    pub fn needed_sets(&self) -> impl Iterator<Item = Set> {
        let (sets, guarded) = (self.sets, self.guarded);
        super::ipset::sets(self.family)
            .into_iter()
            .filter(move |set| sets && (guarded || !set.is_for_sources()))
    }
}

/// Own chains and jumps of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    /// `filter`, `mangle` or `nat`.
    pub name: &'static str,
    /// Own chains.
    pub chains: Vec<ChainPlan>,
    /// Built-in chains, each with the own chain that it jumps to from its first place.
    pub jumps: Vec<(&'static str, &'static str)>,
}

/// One own chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainPlan {
    /// The chain's name.
    pub name: &'static str,
    /// Its rules as `iptables-save` prints them, without `-A CHAIN `.
    pub rules: Vec<String>,
}

impl Plan {
    /// The part for one family.
    pub fn family(&self, family: Family) -> Option<&FamilyPlan> {
        self.families.iter().find(|plan| plan.family == family)
    }

    /// Routes and policy rules of both families.
    pub fn entries(&self) -> BTreeSet<Entry> {
        self.families.iter().flat_map(|plan| plan.entries.iter().copied()).collect()
    }
}

/// The text of a jump to `chain`, without `-A CHAIN `. It has no comment: each packet of the node meets it, and with
/// iptables-nft a comment is an extension that is called (measured: `docs/bench/profile.md`).
pub fn jump(chain: &str) -> String {
    format!("-j {chain}")
}

/// Packets of TCP that begin no connection: nearly all. What iptables-nft reads of a packet itself costs a fraction of
/// what asking `conntrack` does. Stands behind `-p tcp -m tcp`.
const UNDER_WAY: &str = "! --tcp-flags FIN,SYN,RST,ACK SYN";

/// Lets the packets of established TCP connections leave a chain that has to do with new ones. Without a comment, as
/// [`jump`].
fn established_tcp() -> String {
    format!("-p tcp -m tcp {UNDER_WAY} -j RETURN")
}

/// Makes the plan. The number of rules depends on the ranges alone, on whether any load balancer has source ranges,
/// and on whether any frontend outside of the ranges takes datagrams; only without ipset also on `wanted.skip`.
pub fn plan(wanted: &Wanted, capabilities: Capabilities) -> Plan {
    let families = Family::ALL
        .into_iter()
        .filter(|family| *family == Family::V4 || capabilities.v6)
        .filter_map(|family| family_plan(wanted, capabilities, family));
    Plan { families: families.collect() }
}

/// Whether an address is of that family.
pub fn is_of(family: Family, ip: IpAddr) -> bool {
    ip.is_ipv4() == (family == Family::V4)
}

/// The ranges of one family without those that lie inside another.
fn ranges_of(wanted: &Wanted, family: Family) -> Vec<IpNet> {
    let all: BTreeSet<IpNet> =
        wanted.ranges.iter().filter(|range| is_of(family, range.addr())).map(IpNet::trunc).collect();
    all.iter()
        .filter(|range| !all.iter().any(|other| other != *range && other.contains(*range)))
        .copied()
        .collect()
}

fn family_plan(wanted: &Wanted, capabilities: Capabilities, family: Family) -> Option<FamilyPlan> {
    let ranges = ranges_of(wanted, family);
    if ranges.is_empty() {
        return None;
    }
    let input = Input { wanted, capabilities, family, ranges: &ranges };
    let entries = input.entries();
    let tables = vec![input.filter(), input.mangle(), input.nat()];
    Some(FamilyPlan { family, tables, entries, sets: capabilities.ipset, guarded: input.is_guarded() })
}

/// What one family's tables are made from.
struct Input<'a> {
    wanted: &'a Wanted,
    capabilities: Capabilities,
    family: Family,
    ranges: &'a [IpNet],
}

impl Input<'_> {
    /// Whether refused TCP packets reach `INPUT` with their destination unchanged. A reset to a bridged pod is sent
    /// past connection tracking, so it must not depend on address translation.
    fn resets_unserved(&self) -> bool {
        self.capabilities.ipset && self.capabilities.policy_routing
    }

    /// Whether source ranges are a matter of the rules.
    fn is_guarded(&self) -> bool {
        let mut doors = self.wanted.external.iter().filter(|(at, _)| is_of(self.family, at.ip));
        self.capabilities.ipset
            && self.capabilities.source_sets
            && doors.any(|(_, door)| !door.sources.is_empty())
    }

    /// Whether datagrams are captured outside of the ranges: it costs each packet of every other flow a look, so
    /// only where there are such frontends.
    fn has_external_datagrams(&self) -> bool {
        let mut udp = self.wanted.external.keys().filter(|at| at.protocol == Protocol::Udp);
        self.capabilities.ipset && self.capabilities.policy_routing && udp.any(|at| is_of(self.family, at.ip))
    }

    /// Served datagrams carry both marks: the one leads them to this machine's own sockets, the other past every
    /// rule that would refuse or redirect them.
    fn deliver_mark(&self) -> u32 {
        self.wanted.own_mark | self.wanted.refuse_mark
    }

    /// Marks datagrams for delivery; `which` says those to whom. All packets of a flow, not only its first. Flows
    /// that someone translated before this program came go on as they were.
    fn deliver(&self, which: &str) -> String {
        format!(
            "{which} -m conntrack ! --ctstate DNAT -m comment --comment {COMMENT} -j MARK --set-xmark {0:#x}/{0:#x}",
            self.deliver_mark()
        )
    }

    fn refused(&self) -> String {
        format!("-m mark --mark {0:#x}/{0:#x}", self.wanted.refuse_mark)
    }

    fn own(&self) -> String {
        format!("-m mark --mark {0:#x}/{0:#x} -m comment --comment {COMMENT} -j RETURN", self.wanted.own_mark)
    }

    fn unreachable(&self) -> &'static str {
        match self.family {
            Family::V4 => "icmp-port-unreachable",
            Family::V6 => "icmp6-port-unreachable",
        }
    }

    /// One rule for each address left alone, where there are no sets.
    fn skip_each(&self) -> impl Iterator<Item = String> {
        let skip = self.wanted.skip.iter().copied().filter(|ip| is_of(self.family, *ip));
        skip.map(|ip| format!("-d {} -m comment --comment {COMMENT} -j RETURN", IpNet::from(ip)))
    }

    /// Refuses what `mangle` marked, lets captured connections through whatever rules stand below, and turns away
    /// whoever dials the acceptor's port directly.
    fn filter(&self) -> TablePlan {
        let (port, unreachable, refused) = (self.wanted.proxy_port, self.unreachable(), self.refused());
        let accept_delivered = |protocol: &str| {
            let mark = self.deliver_mark();
            format!(
                "-p {protocol} -m mark --mark {mark:#x}/{mark:#x} -m comment --comment {COMMENT} -j ACCEPT"
            )
        };
        let mut input = Vec::new();
        if self.keeps_source() {
            input.push(accept_delivered("tcp"));
        }
        let to_us = format!("-p tcp -m tcp --dport {port}");
        // Nearly every packet of TCP leaves at one of these two. A connection begins below, or not at all.
        input.push(format!("{to_us} {UNDER_WAY} -j ACCEPT"));
        // Handshakes that were half done when the ranges were led here, where the host's firewall would not let them in.
        input.extend(self.wanted.former_port.filter(|former| *former != port).map(|former| {
            format!(
                "-p tcp -m tcp --dport {former} -m conntrack --ctstate DNAT -m comment --comment {COMMENT} -j ACCEPT"
            )
        }));
        input.push(established_tcp());
        input.push(format!("{to_us} -m conntrack --ctstate DNAT -m comment --comment {COMMENT} -j ACCEPT"));
        if self.capabilities.policy_routing {
            input.push(accept_delivered("udp"));
        }
        if self.capabilities.ipset {
            input.push(format!(
                "-p tcp {refused} -m comment --comment {COMMENT} -j REJECT --reject-with tcp-reset"
            ));
        }
        input.push(format!(
            "-p udp {refused} -m comment --comment {COMMENT} -j REJECT --reject-with {unreachable}"
        ));
        for listener in self.wanted.listeners.iter().filter(|addr| is_of(self.family, addr.ip())) {
            let (to, port) = (IpNet::from(listener.ip()), listener.port());
            for protocol in ["udp", "tcp"] {
                input.push(format!(
                    "-d {to} -p {protocol} -m {protocol} --dport {port} -m comment --comment {COMMENT} -j ACCEPT"
                ));
            }
        }
        input.push(format!("{to_us} -m comment --comment {COMMENT} -j REJECT --reject-with tcp-reset"));
        if self.capabilities.ipset {
            let health = external_sets(self.family).health;
            input.push(format!(
                "-p tcp -m set --match-set {health} dst,dst -m comment --comment {COMMENT} -j ACCEPT"
            ));
        }
        // What is left alone may be routed to whoever serves it. The range comes first: other traffic pays for no look-up.
        let (mut forward, spared) = if self.capabilities.ipset {
            (Vec::new(), format!("-m set ! --match-set {} dst ", skip_set(self.family)))
        } else {
            (self.skip_each().collect(), String::new())
        };
        forward.extend(self.ranges.iter().map(|range| {
            format!("-d {range} {spared}-m comment --comment {COMMENT} -j REJECT --reject-with {unreachable}")
        }));
        // On its way out, before connection tracking knows it: a refusal that is remembered would be remembered as not
        // redirected, and the next connection from the same port be lost if the frontend is served by then.
        let mut output = Vec::new();
        if self.keeps_source() {
            // What this host's own backends answer to clients whose address they see.
            let both = self.deliver_mark();
            output.push(format!(
                "-p tcp -m mark --mark {both:#x}/{both:#x} -m comment --comment {COMMENT} -j RETURN"
            ));
        }
        if self.capabilities.ipset {
            output.push(format!(
                "-p tcp {refused} -m comment --comment {COMMENT} -j REJECT --reject-with tcp-reset"
            ));
        }
        TablePlan {
            name: "filter",
            chains: vec![
                ChainPlan { name: OUTPUT_CHAIN, rules: output },
                ChainPlan { name: INPUT_CHAIN, rules: input },
                ChainPlan { name: FORWARD_CHAIN, rules: forward },
            ],
            jumps: vec![("INPUT", INPUT_CHAIN), ("FORWARD", FORWARD_CHAIN), ("OUTPUT", OUTPUT_CHAIN)],
        }
    }

    /// Marks new packets to a range that nobody serves, and every datagram to a frontend that is served. The packets of
    /// established connections leave at once, and the range is matched before a set: other traffic pays for neither.
    fn mangle(&self) -> TablePlan {
        let mark = format!(
            "-m comment --comment {COMMENT} -j MARK --set-xmark {0:#x}/{0:#x}",
            self.wanted.refuse_mark
        );
        let mut rules = Vec::new();
        let mut chains = Vec::new();
        let both = self.deliver_mark();
        let homing = self.keeps_source().then(|| self.homing());
        if let Some([answers, _]) = &homing {
            rules.push(answers.clone());
            let deliver = format!("-m comment --comment {COMMENT} -j MARK --set-xmark {both:#x}/{both:#x}");
            chains.push(ChainPlan { name: HOME_CHAIN, rules: vec![deliver] });
        }
        if self.holds() {
            // Before the own mark is looked at: these carry it too.
            rules.push(self.held_before());
            let clear = format!("-m comment --comment {COMMENT} -j MARK --set-xmark 0x0/{both:#x}");
            chains.push(ChainPlan { name: HELD_CHAIN, rules: vec![clear] });
        }
        if self.capabilities.ipset {
            // Nearly every packet leaves here.
            rules.push(established_tcp());
        }
        rules.extend(homing.map(|[_, connections]| connections));
        rules.push(self.own());
        if self.capabilities.ipset {
            let (served, skip) = (served_set(self.family), skip_set(self.family));
            let left_alone = format!("-m set ! --match-set {skip} dst");
            let unserved = format!("{left_alone} -m set ! --match-set {served} dst,dst");
            let routed = self.capabilities.policy_routing;
            for range in self.ranges {
                // Datagrams that cannot be delivered are refused, served or not.
                rules.push(format!("-d {range} -p tcp {unserved} {mark}"));
                let whom = if routed { &unserved } else { &left_alone };
                rules.push(format!("-d {range} -p udp -m conntrack --ctstate NEW {whom} {mark}"));
                if routed {
                    rules.push(
                        self.deliver(&format!("-d {range} -p udp -m set --match-set {served} dst,dst")),
                    );
                }
            }
            rules.extend(self.mangle_external(&mark));
            if self.holds() {
                // Last: the packet that is held goes no further in this chain.
                rules.extend(self.ranges.iter().map(|range| self.hold(range)));
            }
        } else {
            rules.extend(self.skip_each());
            // Without sets each served frontend costs a rule; what it marks is not refused by the rule of the range.
            if self.capabilities.policy_routing {
                let udp = self.wanted.served.iter().filter(|frontend| frontend.protocol == Protocol::Udp);
                for frontend in udp.filter(|frontend| is_of(self.family, frontend.ip)) {
                    let to = IpNet::from(frontend.ip);
                    rules.push(self.deliver(&format!("-d {to} -p udp -m udp --dport {}", frontend.port)));
                }
            }
            let new = "-p udp -m conntrack --ctstate NEW";
            rules.extend(self.ranges.iter().map(|range| format!("-d {range} {new} {mark}")));
        }
        chains.push(ChainPlan { name: MANGLE_CHAIN, rules });
        TablePlan {
            name: "mangle",
            chains,
            jumps: vec![("PREROUTING", MANGLE_CHAIN), ("OUTPUT", MANGLE_CHAIN)],
        }
    }

    /// Drops what a load balancer's source ranges do not have, as kube-proxy does; marks new connections to external
    /// frontends that nobody serves, and those from elsewhere to the ones that serve clients of this node only.
    fn mangle_external(&self, mark: &str) -> Vec<String> {
        let sets = external_sets(self.family);
        let datagrams = self.has_external_datagrams();
        let mut rules = Vec::new();
        // What is left of TCP here is new.
        for new in if datagrams { &["-p tcp", "-p udp -m conntrack --ctstate NEW"][..] } else { &["-p tcp"] }
        {
            if self.is_guarded() {
                rules.push(format!(
                    "{new} -m set --match-set {} dst,dst -m set ! --match-set {} dst,dst,src \
                     -m comment --comment {COMMENT} -j DROP",
                    sets.guarded, sets.sources
                ));
            }
            rules.push(format!("{new} -m set --match-set {} dst,dst {mark}", sets.nobody));
            let pods = self.wanted.pods.iter().find(|net| is_of(self.family, net.addr()));
            let elsewhere = pods.map(|net| format!("! -s {net} ")).unwrap_or_default();
            rules.push(format!(
                "{elsewhere}{new} -m addrtype ! --src-type LOCAL -m set --match-set {} dst,dst {mark}",
                sets.here
            ));
        }
        if datagrams {
            let unrefused = format!("-m mark ! --mark {0:#x}/{0:#x}", self.wanted.refuse_mark);
            rules.push(self.deliver(&format!("-p udp -m set --match-set {} dst,dst {unrefused}", sets.all)));
        }
        rules
    }

    /// Redirects the ranges to the acceptor. Refused UDP is redirected as well: only so do its refusals come from
    /// an address that this machine may send from.
    fn nat(&self) -> TablePlan {
        let mut rules = vec![self.own()];
        if self.capabilities.ipset {
            let skip = skip_set(self.family);
            rules.push(format!("-m set --match-set {skip} dst -m comment --comment {COMMENT} -j RETURN"));
        } else {
            rules.extend(self.skip_each());
        }
        let refused = self.refused();
        if self.resets_unserved() {
            rules.push(format!("-p tcp {refused} -m comment --comment {COMMENT} -j RETURN"));
        }
        let redirect =
            format!("-m comment --comment {COMMENT} -j REDIRECT --to-ports {}", self.wanted.proxy_port);
        for range in self.ranges {
            rules.push(format!("-d {range} -p tcp {redirect}"));
            rules.push(format!("-d {range} -p udp {refused} {redirect}"));
        }
        if self.capabilities.ipset {
            let external = external_sets(self.family).all;
            rules.push(format!("-p tcp -m set --match-set {external} dst,dst {redirect}"));
            if self.has_external_datagrams() {
                rules.push(format!("-p udp -m set --match-set {external} dst,dst {refused} {redirect}"));
            }
        }
        TablePlan {
            name: "nat",
            chains: vec![ChainPlan { name: NAT_CHAIN, rules }],
            jumps: vec![("PREROUTING", NAT_CHAIN), ("OUTPUT", NAT_CHAIN)],
        }
    }
}
