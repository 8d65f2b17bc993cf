//! Reading queries and writing answers. Pure.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use super::wire::{self, HEADER, UDP_PAYLOAD, flag};

/// What a client can take without EDNS (RFC 1035).
const PLAIN_PAYLOAD: u16 = 512;

/// A query that can be answered.
#[derive(Clone, Debug)]
pub struct Query {
    /// Its id.
    pub id: u16,
    /// Its flags.
    pub flags: u16,
    /// The question as it was sent.
    pub question: Vec<u8>,
    /// The name that is asked for, its case kept.
    pub name: Name,
    /// The type that is asked for.
    pub kind: RecordType,
    /// What the client says about itself, if it speaks EDNS.
    pub edns: Option<EdnsQuery>,
}

/// What matters of a query's EDNS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdnsQuery {
    /// The largest answer that the client takes over UDP.
    pub payload: u16,
    /// It wants signatures.
    pub dnssec: bool,
}

/// What a packet is.
#[derive(Debug)]
pub enum Packet {
    /// A query.
    Query(Box<Query>),
    /// Something that gets this answer at once.
    Refused(Vec<u8>),
    /// Something that gets none: it is no query at all, or a response, and an answer to it could go round for ever.
    Noise,
}

/// Reads what a client sent.
pub fn read(packet: &[u8]) -> Packet {
    let (Some(id), false) = (wire::u16_at(packet, 0), packet.len() < HEADER) else { return Packet::Noise };
    let flags = wire::flags(packet);
    if flags & flag::RESPONSE != 0 {
        return Packet::Noise;
    }
    let end = wire::question_end(packet);
    let question = end.and_then(|end| packet.get(HEADER..end)).unwrap_or_default();
    let refuse = |code: ResponseCode| Packet::Refused(error(id, flags, question, None, code));
    if flags & flag::OPCODE != 0 {
        return refuse(ResponseCode::NotImp);
    }
    if question.is_empty() {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(packet) else { return refuse(ResponseCode::FormErr) };
    let Some(asked) = message.queries.first() else { return refuse(ResponseCode::FormErr) };
    if message.metadata.op_code != OpCode::Query
        || !message.answers.is_empty()
        || !message.authorities.is_empty()
    {
        return refuse(ResponseCode::FormErr);
    }
    let edns = message.edns.as_ref().map(|edns| EdnsQuery {
        payload: edns.max_payload().max(PLAIN_PAYLOAD),
        dnssec: edns.flags().dnssec_ok,
    });
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        let mut answer = error(id, flags, question, edns, ResponseCode::NoError);
        // The upper bits of BADVERS (16) stand in the EDNS record, behind its name, type and payload.
        let at = answer.len().saturating_sub(6);
        if let Some(place) = answer.get_mut(at) {
            *place = 1;
        }
        return Packet::Refused(answer);
    }
    let transfer = matches!(asked.query_type, RecordType::AXFR | RecordType::IXFR);
    if transfer || asked.query_class != DNSClass::IN {
        return Packet::Refused(error(id, flags, question, edns, ResponseCode::Refused));
    }
    Packet::Query(Box::new(Query {
        id,
        flags,
        question: question.to_vec(),
        name: asked.name.clone(),
        kind: asked.query_type,
        edns,
    }))
}

/// An answer without records.
fn error(id: u16, flags: u16, question: &[u8], edns: Option<EdnsQuery>, code: ResponseCode) -> Vec<u8> {
    let kept = flags & (flag::OPCODE | flag::RECURSION_DESIRED | flag::UNCHECKED);
    let flags = kept | flag::RESPONSE | flag::RECURSION_AVAILABLE | (u16::from(code.low()) & flag::CODE);
    let mut answer = wire::with_question(id, flags, question);
    if question.is_empty() {
        wire::put_u16(&mut answer, 4, 0);
    }
    if let Some(edns) = edns {
        wire::add_opt(&mut answer, edns.dnssec);
    }
    answer
}

impl Query {
    /// The longest answer that may be sent.
    pub fn limit(&self, tcp: bool) -> usize {
        let udp = self.edns.map_or(PLAIN_PAYLOAD, |edns| edns.payload.min(UDP_PAYLOAD));
        usize::from(if tcp { u16::MAX } else { udp })
    }

    /// An answer that says only how it went.
    pub fn fail(&self, code: ResponseCode) -> Vec<u8> {
        error(self.id, self.flags, &self.question, self.edns, code)
    }

    /// An answer that says no more than that it would be too long for UDP.
    pub fn truncated(&self, flags: u16) -> Vec<u8> {
        let mut answer = self.fail(ResponseCode::NoError);
        let flags = wire::flags(&answer) | flags | flag::TRUNCATED;
        wire::put_u16(&mut answer, 2, flags);
        answer
    }

    /// An answer with records, at most `limit` bytes; what does not fit is left out and said to be.
    pub fn answer(
        &self,
        code: ResponseCode,
        mut answers: Vec<Record>,
        authority: Option<&Record>,
        mut additional: Vec<Record>,
        limit: usize,
    ) -> Vec<u8> {
        let mut truncated = false;
        loop {
            let mut message = Message::response(self.id, OpCode::Query);
            message.metadata.authoritative = true;
            message.metadata.recursion_desired = self.flags & flag::RECURSION_DESIRED != 0;
            message.metadata.recursion_available = true;
            message.metadata.checking_disabled = self.flags & flag::UNCHECKED != 0;
            message.metadata.response_code = code;
            message.metadata.truncation = truncated;
            let mut query = hickory_proto::op::Query::query(self.name.clone(), self.kind);
            query.set_query_class(DNSClass::IN);
            message.add_query(query);
            message.answers.clone_from(&answers);
            message.authorities.extend(authority.cloned());
            message.additionals.clone_from(&additional);
            if let Some(asked) = self.edns {
                let mut edns = Edns::new();
                edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(asked.dnssec);
                message.set_edns(edns);
            }
            let Ok(bytes) = message.to_vec() else { return self.fail(ResponseCode::ServFail) };
            if bytes.len() <= limit {
                return bytes;
            }
            if !additional.is_empty() {
                // Nobody was promised these.
                additional.clear();
                continue;
            }
            truncated = true;
            let fitting = answers.len() * limit / bytes.len();
            answers.truncate(fitting.min(answers.len().saturating_sub(1)));
            if answers.is_empty() {
                return self.truncated(flag::AUTHORITATIVE);
            }
        }
    }
}
