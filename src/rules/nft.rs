//! Two things that no `iptables` program does, spoken directly over netlink because the program `nft` is missing on
//! many nodes: taking away empty tables of `nf_tables`, which the `iptables-nft` programs create and never remove, and
//! asking whether anything at all has changed since the last time.
//!
//! Every request to remove something says "not recursively" (`NLM_F_NONREC`): the kernel refuses it with `EBUSY` where
//! anything is left in the chain or table, so a rule that someone adds at the last moment is never lost.

use std::io;

use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::apply::Family;

// Numbers of `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_NONREC: u16 = 0x100;
const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const NEW_GENERATION: u16 = SUBSYSTEM << 8 | 15;
const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
const GENERATION_ID: u16 = 1;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// The sequence number of the one request in a batch; its answer is told from others by it.
const REQUEST: u32 = 2;

/// The built-in chains that `iptables-nft` may have made in a table.
fn built_in(table: &str) -> &'static [&'static str] {
    match table {
        "nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        "filter" => &["INPUT", "FORWARD", "OUTPUT"],
        _ => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    }
}

/// Removes `table` with its built-in chains if nothing is in them. Returns false if something is left, which then
/// stays.
pub fn remove_empty_table(family: Family, table: &str) -> io::Result<bool> {
    let socket = connect()?;
    for chain in built_in(table) {
        let attributes = [(CHAIN_TABLE, table), (CHAIN_NAME, *chain)];
        if !gone(request(&socket, family, DELETE_CHAIN, &attributes)?)? {
            return Ok(false);
        }
    }
    gone(request(&socket, family, DELETE_TABLE, &[(TABLE_NAME, table)])?)
}

/// The number that the kernel raises with every change to any nft rule in this network namespace. `None` if the
/// answer is not understood.
pub fn generation() -> io::Result<Option<u32>> {
    let socket = connect()?;
    socket.send(&message(GET_GENERATION, NLM_F_REQUEST, REQUEST, 0, 0, &[]), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    Ok(generation_in(&answer))
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Reads the answer: netlink header (16 bytes), `nfgenmsg` (4), then attributes.
fn generation_in(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let mut attributes = answer.get(20..)?;
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(4..length)?;
        if kind == NEW_GENERATION && u16::from_ne_bytes([head[2], head[3]]) == GENERATION_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Whether the kernel's answer means that the object is no more.
fn gone(answer: Errno) -> io::Result<bool> {
    match answer {
        Errno::UnknownErrno | Errno::ENOENT => Ok(true),
        Errno::EBUSY => Ok(false),
        other => Err(other.into()),
    }
}

/// Sends one request in a batch of its own and returns the answer; [`Errno::UnknownErrno`] (0) is success.
fn request(socket: &Socket, family: Family, kind: u16, attributes: &[(u16, &str)]) -> io::Result<Errno> {
    let family = match family {
        Family::V4 => nix::libc::AF_INET,
        Family::V6 => nix::libc::AF_INET6,
    };
    let family = u8::try_from(family).map_err(io::Error::other)?;
    let mut batch = message(BATCH_BEGIN, NLM_F_REQUEST, 1, 0, SUBSYSTEM, &[]);
    batch.extend(message(kind, NLM_F_REQUEST | NLM_F_ACK | NLM_F_NONREC, REQUEST, family, 0, attributes));
    batch.extend(message(BATCH_END, NLM_F_REQUEST, 3, 0, SUBSYSTEM, &[]));
    socket.send(&batch, 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        if let Some(code) = acknowledgement(&answers) {
            return Ok(Errno::from_raw(-code));
        }
    }
}

/// One netlink message: header, `nfgenmsg`, attributes of type string.
fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[(u16, &str)],
) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(resource.to_be_bytes());
    for (kind, value) in attributes {
        // Header, the text and its closing zero; the next attribute begins at a multiple of four.
        let length = 4 + value.len() + 1;
        body.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value.as_bytes());
        body.resize(body.len() + 1 + (length.next_multiple_of(4) - length), 0);
    }
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend(u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// The error code (0 or negative) in the acknowledgement of the request, or of the whole batch if it was refused.
fn acknowledgement(mut answers: &[u8]) -> Option<i32> {
    while let Some((head, _)) = answers.split_first_chunk::<20>() {
        let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let code = i32::from_ne_bytes([head[16], head[17], head[18], head[19]]);
        if kind == NLMSG_ERROR && (number(8) == REQUEST || code != 0) {
            return Some(code);
        }
        let length = usize::try_from(number(0)).ok()?.next_multiple_of(4);
        answers = answers.get(length.max(16)..)?;
    }
    None
}

/// Reads the kernel's answers, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(answer: &[u8]) {
    let _ = (generation_in(answer), acknowledgement(answer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_padded_to_four_bytes_and_say_their_length() {
        for name in ["a", "ab", "abc", "abcd"] {
            let message = message(DELETE_TABLE, NLM_F_REQUEST, 2, 2, 0, &[(TABLE_NAME, name)]);
            assert_eq!(message.len() % 4, 0);
            assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
            assert_eq!(usize::from(u16::from_ne_bytes([message[20], message[21]])), 5 + name.len());
        }
    }

    #[test]
    fn finds_the_answer_behind_other_messages() {
        let mut answers = Vec::new();
        for (kind, sequence, code) in [(3_u16, 1_u32, 0_i32), (NLMSG_ERROR, REQUEST, -16)] {
            answers.extend(20_u32.to_ne_bytes());
            answers.extend(kind.to_ne_bytes());
            answers.extend([0; 2]);
            answers.extend(sequence.to_ne_bytes());
            answers.extend([0; 4]);
            answers.extend(code.to_ne_bytes());
        }
        assert_eq!(acknowledgement(&answers), Some(-16));
        assert_eq!(acknowledgement(&answers[..20]), None);
    }
}
