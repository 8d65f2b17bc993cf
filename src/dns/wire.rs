//! DNS messages as bytes: what relaying and caching need, without taking a message apart and building it anew. Pure.

use std::ops::Range;

/// Length of the header.
pub const HEADER: usize = 12;
/// Most that a name takes, its length bytes included (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 255;
/// The record type of EDNS (RFC 6891).
const OPT: u16 = 41;
/// The record type SOA.
const SOA: u16 = 6;
/// The largest UDP answer that is offered and asked for: it passes every common link unfragmented (DNS flag day 2020).
pub const UDP_PAYLOAD: u16 = 1232;

/// Bits of the second pair of bytes of the header.
pub mod flag {
    /// It is a response.
    pub const RESPONSE: u16 = 0x8000;
    /// The operation; 0 is a query.
    pub const OPCODE: u16 = 0x7800;
    /// Authoritative.
    pub const AUTHORITATIVE: u16 = 0x0400;
    /// Truncated.
    pub const TRUNCATED: u16 = 0x0200;
    /// Recursion desired.
    pub const RECURSION_DESIRED: u16 = 0x0100;
    /// Recursion available.
    pub const RECURSION_AVAILABLE: u16 = 0x0080;
    /// Authentic data.
    pub const AUTHENTIC: u16 = 0x0020;
    /// Checking disabled.
    pub const UNCHECKED: u16 = 0x0010;
    /// The response code.
    pub const CODE: u16 = 0x000f;
}

/// The number at `at`.
pub fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(packet: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?))
}

/// Writes a number at `at`; out of range nothing is written.
pub fn put_u16(packet: &mut [u8], at: usize, value: u16) {
    if let Some(place) = packet.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// The flags of a message.
pub fn flags(packet: &[u8]) -> u16 {
    u16_at(packet, 2).unwrap_or(0)
}

/// The end of the only question of a message. `None`: it has none or several, or its name is not written out.
pub fn question_end(packet: &[u8]) -> Option<usize> {
    if u16_at(packet, 4)? != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1 + length;
        if length > 63 || at - HEADER > LONGEST_NAME {
            return None;
        }
        if length == 0 {
            break;
        }
    }
    (at + 4 <= packet.len()).then_some(at + 4)
}

/// Where the things are in a response that have to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Where the TTLs of its records stand.
    pub ttls: Vec<usize>,
    /// The smallest TTL; for a negative answer that of its SOA record, bounded by the SOA's own minimum. `None`
    /// where there is no record to say it.
    pub lowest_ttl: Option<u32>,
    /// Its EDNS record.
    pub opt: Option<Range<usize>>,
    /// Where its last record ends.
    pub end: usize,
}

/// Looks through a response with one question.
pub fn layout(packet: &[u8]) -> Option<Layout> {
    let mut at = question_end(packet)?;
    let mut found = Layout::default();
    let [answers, authorities, others] = [6, 8, 10].map(|at| u16_at(packet, at));
    let (answers, all) =
        (u32::from(answers?), u32::from(answers?) + u32::from(authorities?) + u32::from(others?));
    for n in 0..all {
        let start = at;
        at = skip_name(packet, at)?;
        let (kind, ttl) = (u16_at(packet, at)?, u32_at(packet, at + 4)?);
        let end = at + 10 + usize::from(u16_at(packet, at + 8)?);
        if end > packet.len() {
            return None;
        }
        if kind == OPT {
            if found.opt.replace(start..end).is_some() {
                return None;
            }
        } else {
            found.ttls.push(at + 4);
            // RFC 2308: a negative answer, which may begin with aliases, lives as long as the smaller of the two numbers.
            let own =
                if kind == SOA && n >= answers { ttl.min(u32_at(packet, end.checked_sub(4)?)?) } else { ttl };
            found.lowest_ttl = Some(found.lowest_ttl.map_or(own, |lowest| lowest.min(own)));
        }
        at = end;
    }
    found.end = at;
    Some(found)
}

/// The place after a name, which may end in a pointer.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return (at + 2 <= packet.len()).then_some(at + 2),
            _ => return None,
        }
    }
}

/// Takes the EDNS record out of a response and cuts off what follows the last record. `None`: it stands where it
/// cannot be taken out without moving what others point to.
pub fn without_opt(mut packet: Vec<u8>, layout: &mut Layout) -> Option<Vec<u8>> {
    packet.truncate(layout.end);
    if let Some(opt) = layout.opt.take() {
        if opt.end != layout.end {
            return None;
        }
        packet.truncate(opt.start);
        layout.end = opt.start;
        let others = u16_at(&packet, 10)?.checked_sub(1)?;
        put_u16(&mut packet, 10, others);
    }
    Some(packet)
}

/// Appends an EDNS record; the message must not have one.
pub fn add_opt(packet: &mut Vec<u8>, dnssec: bool) {
    let others = u16_at(packet, 10).unwrap_or(0).saturating_add(1);
    put_u16(packet, 10, others);
    packet.push(0);
    packet.extend(OPT.to_be_bytes());
    packet.extend(UDP_PAYLOAD.to_be_bytes());
    packet.extend([0, 0, if dnssec { 0x80 } else { 0 }, 0]);
    packet.extend([0, 0]);
}

/// A message of a header and a question, which must be a whole one.
pub fn with_question(id: u16, flags: u16, question: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + question.len() + 11);
    packet.extend(id.to_be_bytes());
    packet.extend(flags.to_be_bytes());
    packet.extend([0, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend(question);
    packet
}

/// Whether `response` answers the query `id` for `question`. Names are compared without regard to case.
pub fn answers(response: &[u8], id: u16, question: &[u8]) -> bool {
    u16_at(response, 0) == Some(id)
        && flags(response) & (flag::RESPONSE | flag::OPCODE) == flag::RESPONSE
        && question_end(response)
            .and_then(|end| response.get(HEADER..end))
            .is_some_and(|asked| asked.eq_ignore_ascii_case(question))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] = b"\x03www\x07example\x03com\x00\x00\x01\x00\x01";

    fn response() -> Vec<u8> {
        let mut packet = with_question(7, flag::RESPONSE, QUESTION);
        put_u16(&mut packet, 6, 1);
        packet.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x01\x2c\x00\x04\x01\x02\x03\x04");
        packet
    }

    #[test]
    fn a_response_is_laid_out_and_its_edns_record_taken_out_and_put_back() {
        let plain = response();
        let mut with = plain.clone();
        add_opt(&mut with, true);
        let mut found = layout(&with).unwrap();
        assert_eq!((found.lowest_ttl, found.ttls.len()), (Some(300), 1));
        assert_eq!(found.opt, Some(plain.len()..with.len()));
        assert_eq!(without_opt(with, &mut found), Some(plain.clone()));
        assert!(answers(&plain, 7, QUESTION));
        assert!(answers(&plain, 7, &QUESTION.to_ascii_uppercase()));
        assert!(!answers(&plain, 8, QUESTION));
        assert!(!answers(&plain, 7, b"\x02ww\x07example\x03com\x00\x00\x01\x00\x01"));
        assert!(!answers(&with_question(7, 0, QUESTION), 7, QUESTION), "a query is no answer");
    }

    /// Behind an alias as well.
    #[test]
    fn there_is_nothing_for_no_longer_than_the_soa_says() {
        for aliases in [0, 1] {
            let mut packet = with_question(7, flag::RESPONSE, QUESTION);
            put_u16(&mut packet, 6, aliases);
            put_u16(&mut packet, 8, 1);
            if aliases == 1 {
                packet.extend(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x01\x2c\x00\x02\xc0\x10");
            }
            packet.extend(b"\xc0\x10\x00\x06\x00\x01\x00\x00\x0e\x10\x00\x18\xc0\x10\xc0\x10");
            packet.extend([0; 16]);
            packet.extend(7u32.to_be_bytes());
            assert_eq!(layout(&packet).and_then(|found| found.lowest_ttl), Some(7), "{aliases} aliases");
        }
    }

    #[test]
    fn odd_questions_are_none() {
        let two = {
            let mut p = with_question(1, 0, QUESTION);
            put_u16(&mut p, 4, 2);
            p
        };
        assert_eq!(question_end(&two), None);
        assert_eq!(
            question_end(&with_question(1, 0, b"\xc0\x0c\x00\x01\x00\x01")),
            None,
            "a pointer to itself"
        );
        assert_eq!(question_end(&with_question(1, 0, b"\x03www\x00\x00\x01")), None, "cut off");
        let long: Vec<u8> = [b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(5);
        assert_eq!(question_end(&with_question(1, 0, &[&long, b"\0\0\x01\0\x01".as_slice()].concat())), None);
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..600), id in any::<u16>()) {
            let _ = question_end(&bytes);
            if let Some(mut found) = layout(&bytes) {
                prop_assert!(found.end <= bytes.len());
                prop_assert!(found.ttls.iter().all(|at| at + 4 <= found.end));
                let _ = without_opt(bytes.clone(), &mut found);
            }
            let _ = answers(&bytes, id, &bytes);
        }

        #[test]
        fn no_change_of_a_response_upsets_it(at in 0usize..50, value in any::<u8>(), cut in 0usize..60) {
            let mut packet = response();
            add_opt(&mut packet, false);
            if let Some(place) = packet.get_mut(at) { *place = value; }
            packet.truncate(packet.len().saturating_sub(cut));
            if let Some(mut found) = layout(&packet) {
                let _ = without_opt(packet, &mut found);
            }
        }
    }
}
