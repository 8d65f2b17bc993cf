//! Two things that no `iptables` program does, spoken directly over netlink because the program `nft` is missing on
//! many nodes: taking away empty tables of `nf_tables`, which the `iptables-nft` programs create and never remove, and
//! asking whether anything at all has changed since the last time.
//!
//! Every request to remove something says "not recursively" (`NLM_F_NONREC`): the kernel refuses it with `EBUSY` where
//! anything is left in the chain or table, so a rule that someone adds at the last moment is never lost. All requests go
//! in one batch, of which the kernel does everything or nothing, and which names the state of the rules that it was made
//! for: a policy that someone sets at the last moment is not lost either.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::apply::Family;
use super::names::CREATED_CHAIN;

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
/// `NFNL_BATCH_GENID`; a kernel that does not know it passes over it.
const BATCH_GENERATION: u16 = 1;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// Success, which is no error: 0.
const DONE: Errno = Errno::UnknownErrno;
/// The sequence number of a batch's beginning, and of an answer to all of it.
const BEGINNING: u32 = 1;
/// The sequence number of a batch's first request; the others follow.
const FIRST: u32 = 2;

/// What became of tables that were to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They are no more.
    Gone,
    /// The rules have changed since they were looked at. Nothing was done.
    Changed,
    /// Something is left in these. Nothing was done.
    InUse(Vec<String>),
}

/// One thing to remove: a chain, or the table itself.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    table: &'a str,
    chain: Option<&'static str>,
}

/// The built-in chains that `iptables-nft` may have made in a table.
fn built_in(table: &str) -> &'static [&'static str] {
    match table {
        "nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        "filter" => &["INPUT", "FORWARD", "OUTPUT"],
        _ => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    }
}

/// Removes `tables` with their built-in chains and the mark that they are ours, all at once, if nothing else is in
/// them and the rules are still those of `generation`.
pub fn remove_tables(family: Family, tables: &[&str], generation: Option<u32>) -> io::Result<Removal> {
    let mut requests: Vec<Request<'_>> = Vec::new();
    for table in tables {
        let chains = [CREATED_CHAIN].iter().chain(built_in(table)).copied().map(Some);
        // The table goes last: it must be empty by then.
        requests.extend(chains.chain([None]).map(|chain| Request { table, chain }));
    }
    while !requests.is_empty() {
        let answers = match send(family, &requests, generation)? {
            Ok(answers) => answers,
            Err(Errno::ERESTART) => return Ok(Removal::Changed),
            Err(error) => return Err(error.into()),
        };
        let of = |wanted: Errno| {
            let both = requests.iter().zip(&answers);
            both.filter(move |(_, answer)| **answer == wanted).map(|(request, _)| *request)
        };
        let mut used: Vec<String> = of(Errno::EBUSY).map(|request| request.table.to_owned()).collect();
        used.dedup();
        if !used.is_empty() {
            return Ok(Removal::InUse(used));
        }
        if let Some(error) = answers.iter().find(|answer| ![DONE, Errno::ENOENT].contains(*answer)) {
            return Err((*error).into());
        }
        if of(Errno::ENOENT).next().is_none() {
            return Ok(Removal::Gone);
        }
        // What was not there has failed the others, too: once more without it.
        requests = of(DONE).collect();
    }
    Ok(Removal::Gone)
}

/// The number that the kernel raises with every change to any nft rule in this network namespace. `None` if the
/// answer is not understood.
pub fn generation() -> io::Result<Option<u32>> {
    let socket = connect()?;
    socket.send(&message(GET_GENERATION, NLM_F_REQUEST, FIRST, 0, 0, &[]), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    Ok(generation_in(&answer))
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    // The kernel has answered by the time that a request is sent: what is not there then will never come.
    socket.set_non_blocking(true)?;
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

/// Sends requests in one batch and returns the answer to each, or the one to the whole batch if it was refused.
fn send(
    family: Family,
    requests: &[Request<'_>],
    generation: Option<u32>,
) -> io::Result<Result<Vec<Errno>, Errno>> {
    let family = match family {
        Family::V4 => nix::libc::AF_INET,
        Family::V6 => nix::libc::AF_INET6,
    };
    let family = u8::try_from(family).map_err(io::Error::other)?;
    let id = generation.map(u32::to_be_bytes);
    let id: Vec<(u16, &[u8])> = id.iter().map(|id| (BATCH_GENERATION, id.as_slice())).collect();
    let mut batch = message(BATCH_BEGIN, NLM_F_REQUEST, BEGINNING, 0, SUBSYSTEM, &id);
    let mut sequence = FIRST;
    for Request { table, chain } in requests {
        let table = text(table);
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_NONREC;
        batch.extend(match chain.map(text) {
            Some(chain) => {
                let attributes: [(u16, &[u8]); 2] = [(CHAIN_TABLE, &table), (CHAIN_NAME, &chain)];
                message(DELETE_CHAIN, flags, sequence, family, 0, &attributes)
            }
            None => message(DELETE_TABLE, flags, sequence, family, 0, &[(TABLE_NAME, &table)]),
        });
        sequence += 1;
    }
    batch.extend(message(BATCH_END, NLM_F_REQUEST, sequence, 0, SUBSYSTEM, &[]));
    // One of its own: late answers to another batch would have the same numbers.
    let socket = connect()?;
    socket.send(&batch, 0)?;
    let mut answers = BTreeMap::new();
    // A request that went well is answered so even if the batch is undone for another one: only all together count.
    while !(FIRST..sequence).all(|number| answers.contains_key(&number)) {
        let (more, _) = socket.recv_from_full()?;
        acknowledgements(&more, &mut answers);
        if let Some(refusal) = answers.get(&BEGINNING).filter(|answer| **answer != DONE) {
            return Ok(Err(*refusal));
        }
    }
    Ok(Ok(answers.range(FIRST..sequence).map(|(_, answer)| *answer).collect()))
}

/// A string as the kernel has it: with a closing zero.
fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), &[0]].concat()
}

/// One netlink message: header, `nfgenmsg`, attributes.
fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[(u16, &[u8])],
) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(resource.to_be_bytes());
    for (kind, value) in attributes {
        let length = 4 + value.len();
        body.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        // The next attribute begins at a multiple of four.
        body.resize(body.len().next_multiple_of(4), 0);
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

/// Adds what the kernel says about each request, by its sequence number.
fn acknowledgements(mut answers: &[u8], found: &mut BTreeMap<u32, Errno>) {
    while let Some((head, _)) = answers.split_first_chunk::<20>() {
        let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        if kind == NLMSG_ERROR {
            let code = i32::from_ne_bytes([head[16], head[17], head[18], head[19]]);
            // 0 or negative.
            found.insert(number(8), Errno::from_raw(code.wrapping_neg()));
        }
        let length = usize::try_from(number(0)).unwrap_or(usize::MAX).max(16);
        answers = length.checked_next_multiple_of(4).and_then(|end| answers.get(end..)).unwrap_or_default();
    }
}

/// Reads the kernel's answers, for tests with hostile ones.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_bytes(answer: &[u8]) {
    let _ = generation_in(answer);
    acknowledgements(answer, &mut BTreeMap::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_padded_to_four_bytes_and_say_their_length() {
        for name in ["a", "ab", "abc", "abcd"] {
            let message = message(DELETE_TABLE, NLM_F_REQUEST, 2, 2, 0, &[(TABLE_NAME, &text(name))]);
            assert_eq!(message.len() % 4, 0);
            assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
            assert_eq!(usize::from(u16::from_ne_bytes([message[20], message[21]])), 5 + name.len());
        }
    }

    #[test]
    fn tells_the_answers_apart() {
        let mut answers = Vec::new();
        for (kind, sequence, code) in
            [(3_u16, 1_u32, 0_i32), (NLMSG_ERROR, FIRST, 0), (NLMSG_ERROR, FIRST + 1, -16)]
        {
            answers.extend(20_u32.to_ne_bytes());
            answers.extend(kind.to_ne_bytes());
            answers.extend([0; 2]);
            answers.extend(sequence.to_ne_bytes());
            answers.extend([0; 4]);
            answers.extend(code.to_ne_bytes());
        }
        for (length, count) in [(answers.len(), 2), (40, 1), (20, 0), (39, 0)] {
            let mut found = BTreeMap::new();
            acknowledgements(&answers[..length], &mut found);
            let all = [(FIRST, DONE), (FIRST + 1, Errno::EBUSY)];
            assert_eq!(found, all.into_iter().take(count).collect(), "{length} bytes");
        }
    }
}
