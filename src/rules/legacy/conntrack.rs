//! Connection-tracking entries that still send packets to a proxy that is gone, over netlink.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::net::listening::Listening;
use anyhow::Context as _;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as TrackedProtocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::model::{Frontend, Protocol};

/// Message types below this are netlink's own (`NLMSG_MIN_TYPE`).
const FIRST_TYPE: u16 = 0x10;
/// The upper half of the message types of connection tracking (`NFNL_SUBSYS_CTNETLINK`).
const CTNETLINK: u16 = 1;

/// Where dead entries lead: an address, and a port or all.
pub(super) type Targets = BTreeSet<(IpAddr, Option<u16>)>;

/// Deletes every entry of the calling thread's network namespace that was translated to one of `targets` where no
/// socket listens any more. Returns how many there were.
///
/// Blocks for the time of one dump: it runs at the end of a command, and the thread must not change, because another
/// one could stand in another network namespace.
pub(super) fn delete(targets: &Targets, listeners: &[Listening]) -> anyhow::Result<u64> {
    delete_if(NetfilterProtoFamily::IPv4, |entry| leads_to(entry, targets, listeners))
}

/// Deletes every entry of the calling thread's network namespace that belongs to a UDP flow to one of `frontends`.
/// Returns how many there were. Blocks for the time of one dump, as [`delete`] does.
pub(in crate::rules) fn forget(frontends: &BTreeSet<Frontend>) -> anyhow::Result<u64> {
    let mut deleted = 0;
    for (family, v4) in [(NetfilterProtoFamily::IPv4, true), (NetfilterProtoFamily::IPv6, false)] {
        if frontends.iter().any(|frontend| frontend.ip.is_ipv4() == v4) {
            deleted += delete_if(family, |entry| is_udp_flow_to(entry, frontends))?;
        }
    }
    Ok(deleted)
}

fn is_udp_flow_to(entry: &[ConntrackAttribute], frontends: &BTreeSet<Frontend>) -> bool {
    let original = entry.iter().find_map(|part| match part {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    });
    original
        .filter(|tuple| is_udp(tuple))
        .and_then(|tuple| address(tuple, false))
        .is_some_and(|(ip, port)| frontends.contains(&Frontend { ip, port, protocol: Protocol::Udp }))
}

fn delete_if(
    family: NetfilterProtoFamily,
    which: impl Fn(&[ConntrackAttribute]) -> bool,
) -> anyhow::Result<u64> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("cannot open a netfilter netlink socket")?;
    socket.bind_auto().context("cannot bind the netfilter netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("cannot connect the netfilter netlink socket")?;
    let mut dead = Vec::new();
    request(&socket, family, NLM_F_DUMP, ConntrackMessage::Get(Vec::new()), |entry| {
        if which(&entry) {
            dead.push(entry);
        }
    })
    .context("cannot list connection-tracking entries")?;
    let mut deleted = 0;
    for entry in dead {
        let key =
            entry.into_iter().filter(|part| matches!(part, ConntrackAttribute::CtaTupleOrig(_))).collect();
        match request(&socket, family, NLM_F_ACK, ConntrackMessage::Delete(key), |_| {}) {
            Ok(()) => deleted += 1,
            // It ended by itself in the meantime.
            Err(Failure::Kernel(nix::errno::Errno::ENOENT)) => {}
            Err(error) => return Err(error).context("cannot delete a connection-tracking entry"),
        }
    }
    Ok(deleted)
}

/// A request that was not granted.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the kernel says: {0}")]
    Kernel(nix::errno::Errno),
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error("its answer cannot be read: {0}")]
    Answer(String),
}

fn request(
    socket: &Socket,
    family: NetfilterProtoFamily,
    flags: u16,
    message: ConntrackMessage,
    mut each: impl FnMut(Vec<ConntrackAttribute>),
) -> Result<(), Failure> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let family = NetfilterHeader::new(family, 0, 0);
    let mut packet =
        NetlinkMessage::new(header, NetlinkPayload::from(NetfilterMessage::new(family, message)));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if walk(&bytes, &mut each)? {
            return Ok(());
        }
    }
}

/// Hands on each entry among the kernel's answers. True: that was the last of them.
fn walk(bytes: &[u8], mut each: impl FnMut(Vec<ConntrackAttribute>)) -> Result<bool, Failure> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let head = NetlinkBuffer::new_checked(rest).map_err(|error| Failure::Answer(error.to_string()))?;
        let (kind, length) = (head.message_type(), head.length() as usize);
        // Messages are aligned to four bytes.
        let next = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if kind >= FIRST_TYPE && kind >> 8 != CTNETLINK {
            // Nobody asked, and the library's readers of other subsystems take lengths on trust.
            rest = next;
            continue;
        }
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .map_err(|error| Failure::Answer(error.to_string()))?;
        match answer.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => {
                return Err(Failure::Kernel(nix::errno::Errno::from_raw(error.raw_code().wrapping_neg())));
            }
            NetlinkPayload::InnerMessage(message) => {
                if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(entry)) = message.inner {
                    each(entry);
                }
            }
            _ => {}
        }
        rest = next;
    }
    Ok(false)
}

/// Reads the kernel's answers, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(in crate::rules) fn read_bytes(bytes: &[u8]) {
    let _ = walk(bytes, |entry| {
        let _ = (leads_to(&entry, &Targets::new(), &[]), is_udp_flow_to(&entry, &BTreeSet::new()));
    });
}

/// Whether an entry's answers come from one of `targets` although its packets were sent elsewhere.
fn leads_to(entry: &[ConntrackAttribute], targets: &Targets, listeners: &[Listening]) -> bool {
    let (mut original, mut reply) = (None, None);
    for part in entry {
        match part {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = address(tuple, false),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = address(tuple, true),
            _ => {}
        }
    }
    let (Some((asked, _)), Some((answers, port))) = (original, reply) else { return false };
    let alive = |listener: &Listening| listener.address == (answers, port).into();
    asked != answers
        && !listeners.iter().any(alive)
        && (targets.contains(&(answers, None)) || targets.contains(&(answers, Some(port))))
}

fn is_udp(tuple: &[Tuple]) -> bool {
    let is_udp = |part: &ProtoTuple| matches!(part, ProtoTuple::Protocol(TrackedProtocol::Udp));
    tuple.iter().any(|part| matches!(part, Tuple::Proto(parts) if parts.iter().any(is_udp)))
}

/// The source or the destination of one direction.
fn address(tuple: &[Tuple], source: bool) -> Option<(IpAddr, u16)> {
    let (mut ip, mut port) = (None, 0);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(address) if source => ip = Some(*address),
                        IPTuple::DestinationAddress(address) if !source => ip = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::SourcePort(number) if source => port = *number,
                        ProtoTuple::DestinationPort(number) if !source => port = *number,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((ip?, port))
}
