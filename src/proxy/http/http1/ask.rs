//! A request of a client, made ready for a backend.

use std::sync::Arc;

use http::header::HeaderValue;

use crate::balance::{Caller, key_of};
use crate::model::Policy;
use crate::obs::access::Entry;

use super::super::record::Record;
use super::super::reply::Trouble;
use super::super::strict::{Body, Fault, Field, Kind, Passed, Request};
use super::super::visitor::{Route, Visitor};
use super::super::{record, stick};
use super::compose::{self, Fate, Sender, Wishes};
use super::desk::Desk;
use super::flow::{Left, Pending};

/// A request under way.
pub(super) struct Ask {
    /// The service port that it is for, or why there is none.
    pub(super) route: Result<Route, Trouble>,
    pub(super) caller: Caller,
    /// The cookie that its client gets, so that it comes back to the same backend.
    pub(super) cookie: Option<HeaderValue>,
    pub(super) record: Record,
    /// What the backend is sent next: the head with what had come of the body, later pieces of the body.
    pub(super) to: Pending,
    /// What has still to come of the body from the client, and how it is framed for the backend.
    pub(super) left: Left,
    pub(super) body: Body,
    /// It may be sent more than once (RFC 9110, section 9.2.2), and has no body that would be gone then.
    pub(super) repeatable: bool,
    /// Not a byte of it was sent.
    pub(super) unsent: bool,
    /// The answer may hand the connection over.
    pub(super) upgrade: bool,
    pub(super) connect: bool,
    /// Its answer has no body.
    pub(super) head: bool,
    /// Its client speaks HTTP/1.0.
    pub(super) old: bool,
    /// Its client wants the connection kept.
    pub(super) keeps: bool,
    /// Its client waits to be told to send the body.
    pub(super) expects: bool,
    /// It is one of gRPC, whose clients look for their status elsewhere.
    pub(super) grpc: bool,
}

impl Ask {
    /// Makes `head` one for the backend, with what has come of the body behind it, and puts it into `place`. Gives how
    /// many bytes of `rest` that takes.
    pub(super) fn begin(
        place: &mut Option<Self>,
        desk: &mut Desk,
        visitor: &Arc<Visitor>,
        head: &[u8],
        (request, fields): (&Request, &[Field]),
        rest: &[u8],
    ) -> Result<usize, Fault> {
        let method = &head[request.method.clone()];
        let target = compose::target(method, &head[request.target.clone()])?;
        let wishes = Wishes::of(head, fields);
        let first = |kind| values(head, fields, kind).next();
        let host = target.authority.or_else(|| first(Kind::Host)).unwrap_or_default();
        let mut route = visitor.route(host);
        let (key, cookie) = match route.as_ref().map(|route| &route.upstream.port.policy) {
            Ok(Policy::Header(name)) => {
                let is = |field: &&Field| field.name(head).eq_ignore_ascii_case(name.as_bytes());
                (fields.iter().find(is).map(|field| key_of(field.value(head))), None)
            }
            Ok(Policy::Cookie(rule)) => stick::key(rule, values(head, fields, Kind::Cookie)),
            _ => (None, None),
        };
        let mut left = Left::of(request.body);
        let mut chunks = desk.buffer();
        let (begun, passed) = if left.is_over() || rest.is_empty() {
            (&[][..], Passed::default())
        } else {
            left.pass(rest, &mut chunks, request.body)?
        };
        let mut record = Record::new(Arc::clone(visitor), || entry(visitor, head, request, fields));
        if let Ok(found) = &route
            && let Err(trouble) = record.for_service(&found.upstream)
        {
            route = Err(trouble);
        }
        let mut to = Pending { bytes: desk.buffer(), sent: 0 };
        let sender = Sender { client: visitor.forwarded_for.as_bytes(), host: &visitor.dst };
        let upgrade = compose::request(&mut to.bytes, head, (request, fields), (wishes, target), &sender);
        to.bytes.extend_from_slice(begun);
        desk.put_buffer(chunks);
        let taken = passed.taken;
        let expects = !request.http_10
            && !left.is_over()
            && taken == 0
            && first(Kind::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let connect = method == b"CONNECT";
        *place = Some(Self {
            route,
            caller: Caller { ip: visitor.peer.ip(), key },
            cookie,
            record,
            to,
            repeatable: matches!(request.body, Body::None | Body::Length(0))
                && !upgrade
                && matches!(method, b"GET" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE"),
            unsent: true,
            upgrade,
            connect,
            head: method == b"HEAD",
            old: request.http_10,
            keeps: wishes.keeps(request.http_10),
            expects,
            grpc: first(Kind::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc")),
            left,
            body: request.body,
        });
        Ok(taken)
    }

    /// What its client is told about the connection, which is kept or not.
    pub(super) fn fate(&self, keeps: bool) -> Fate {
        match (keeps, self.old) {
            (true, false) => Fate::Kept,
            (true, true) => Fate::KeptAlive,
            (false, _) => Fate::Ends,
        }
    }
}

/// The values of the headers of a kind.
fn values<'a>(head: &'a [u8], fields: &'a [Field], kind: Kind) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |field| field.kind == kind).map(|field| field.value(head))
}

/// What the access log is to say.
fn entry(visitor: &Visitor, head: &[u8], request: &Request, fields: &[Field]) -> Entry {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let target = &head[request.target.clone()];
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    let trace = fields.iter().find(|field| field.name(head).eq_ignore_ascii_case(b"traceparent"));
    Entry {
        method: text(&head[request.method.clone()]),
        path: text(path),
        protocol: if request.http_10 { "HTTP/1.0" } else { "HTTP/1.1" }.to_owned(),
        host: values(head, fields, Kind::Host).next().map(text).unwrap_or_default(),
        traceparent: trace.map(|field| text(field.value(head))).unwrap_or_default(),
        ..record::entry(visitor)
    }
}
