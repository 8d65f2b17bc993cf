//! Heads for the other side: what concerns one connection ends here (RFC 9110, section 7.6.1), who asked is written
//! down, the framing is written anew, everything else, `traceparent` among it, passes as it came. Pure.

use std::io::Write as _;

use super::super::strict::{Answer, Body, Fault, Field, HeadReader, Kind, Request};

/// What `Connection` and its relatives say in a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The connection is to end with the message.
    pub(super) close: bool,
    /// It is to be kept.
    pub(super) keep_alive: bool,
    /// It is to speak something else.
    pub(super) upgrade: bool,
    /// It names headers that concern it.
    names: bool,
}

impl Wishes {
    /// What the head says.
    pub(super) fn of(head: &[u8], fields: &[Field]) -> Self {
        let mut wishes = Self::default();
        for field in fields.iter().filter(|field| field.kind == Kind::Connection) {
            for word in words(field.value(head)) {
                if word.eq_ignore_ascii_case(b"close") {
                    wishes.close = true;
                } else if word.eq_ignore_ascii_case(b"keep-alive") {
                    wishes.keep_alive = true;
                } else if word.eq_ignore_ascii_case(b"upgrade") {
                    wishes.upgrade = true;
                } else {
                    wishes.names = true;
                }
            }
        }
        wishes
    }

    /// Whether the connection may carry another message.
    pub(super) fn keeps(self, http_10: bool) -> bool {
        !self.close && (!http_10 || self.keep_alive)
    }
}

fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// Whether `Connection` names the header. Naming what frames a message, or says whose it is, does not make it go away:
/// those have kinds of their own.
fn is_named(field: Field, head: &[u8], fields: &[Field]) -> bool {
    let name = field.name(head);
    fields
        .iter()
        .filter(|other| other.kind == Kind::Connection)
        .any(|other| words(other.value(head)).any(|word| word.eq_ignore_ascii_case(name)))
}

/// Copies the lines that pass. Neighbours go in one piece.
fn copy_lines(out: &mut Vec<u8>, head: &[u8], fields: &[Field], passes: impl Fn(Field) -> bool) {
    let mut run = 0..0;
    for field in fields.iter().filter(|field| passes(**field)) {
        let line = field.line();
        if line.start == run.end {
            run.end = line.end;
        } else {
            out.extend_from_slice(&head[run]);
            run = line;
        }
    }
    out.extend_from_slice(&head[run]);
}

/// A request's target as a server expects it, and whose it is if the target says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// What is put before the path: nothing, or a slash where the path is empty.
    slash: bool,
    path: &'a [u8],
    pub(super) authority: Option<&'a [u8]>,
}

/// Reads a target (RFC 9112, section 3.2). One that names its host is made one that does not, and that host beats the
/// `Host` header: otherwise the two could differ, and each reader could choose.
pub(super) fn target<'a>(method: &[u8], target: &'a [u8]) -> Result<Target<'a>, Fault> {
    let plain = Target { slash: false, path: target, authority: None };
    if target[0] == b'/' || method == b"CONNECT" || target == b"*" && method == b"OPTIONS" {
        return Ok(plain);
    }
    let bad = Fault::Malformed("a request target that is no path, and no http address");
    let scheme =
        |name: &str| target.len() > name.len() && target[..name.len()].eq_ignore_ascii_case(name.as_bytes());
    let rest = match () {
        () if scheme("http://") => &target[7..],
        () if scheme("https://") => &target[8..],
        () => return Err(bad),
    };
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains(&b'@') {
        return Err(bad);
    }
    let path = if path.is_empty() && method == b"OPTIONS" { b"*" } else { path };
    let slash = !matches!(path.first(), Some(b'/' | b'*'));
    Ok(Target { slash, path, authority: Some(authority) })
}

/// What is known about a request beyond its head.
pub(super) struct Sender<'a> {
    /// The client's address as text.
    pub(super) client: &'a [u8],
    /// What is asked for where an old client names no host.
    pub(super) host: &'a dyn std::fmt::Display,
}

/// Writes the request to the backend. Returns whether it asks for an upgrade. Upgrading to HTTP/2 is not offered: behind
/// it requests would go unseen.
pub(super) fn request(
    out: &mut Vec<u8>,
    head: &[u8],
    (request, fields): (&Request, &[Field]),
    (wishes, target): (Wishes, Target<'_>),
    sender: &Sender<'_>,
) -> bool {
    out.extend_from_slice(&head[request.method.start..=request.method.end]);
    if target.slash {
        out.push(b'/');
    }
    out.extend_from_slice(target.path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let find = |kind| fields.iter().find(move |field| field.kind == kind);
    match (target.authority, find(Kind::Host)) {
        (Some(authority), _) => line(out, "Host", authority),
        (None, Some(host)) => out.extend_from_slice(&head[host.line()]),
        // Writing to memory does not fail.
        (None, None) => drop(write!(out, "Host: {}\r\n", sender.host)),
    }
    copy_lines(out, head, fields, |field| match field.kind {
        Kind::Other | Kind::Cookie | Kind::ContentType => !(wishes.names && is_named(field, head, fields)),
        Kind::ForwardedProto => true,
        // The only transfer parameter that passes through a proxy; gRPC asks for it.
        Kind::Te => field.value(head).eq_ignore_ascii_case(b"trailers"),
        _ => false,
    });
    out.extend_from_slice(b"x-forwarded-for: ");
    for before in fields.iter().filter(|field| field.kind == Kind::ForwardedFor) {
        out.extend_from_slice(before.value(head));
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(sender.client);
    out.extend_from_slice(b"\r\n");
    if find(Kind::ForwardedProto).is_none() {
        out.extend_from_slice(b"x-forwarded-proto: http\r\n");
    }
    framing(out, request.body);
    let protocol = find(Kind::Upgrade).map(|field| field.value(head)).filter(|protocol| {
        wishes.upgrade && !protocol.get(..2).is_some_and(|begin| begin.eq_ignore_ascii_case(b"h2"))
    });
    if let Some(protocol) = protocol {
        line(out, "Connection", b"upgrade");
        line(out, "Upgrade", protocol);
    }
    out.extend_from_slice(b"\r\n");
    protocol.is_some()
}

/// How an answer goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// How its body is framed there.
    pub(super) body: Body,
    /// What the client is told about its connection.
    pub(super) fate: Fate,
}

/// What becomes of the client's connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is kept, which goes without saying.
    Kept,
    /// It is kept, which a client of HTTP/1.0 has to be told.
    KeptAlive,
    /// It ends.
    Ends,
    /// It speaks something else from here on.
    Upgraded,
}

impl Fate {
    /// What a head says about it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Kept => "",
            Self::KeptAlive => "Connection: keep-alive\r\n",
            Self::Ends => "Connection: close\r\n",
            Self::Upgraded => "Connection: upgrade\r\n",
        }
    }
}

/// Writes the answer to the client.
pub(super) fn answer(
    out: &mut Vec<u8>,
    head: &[u8],
    (reader, wishes): (&HeadReader, Wishes),
    manner: Manner,
    cookie: Option<&[u8]>,
) {
    let (first, fields) = (reader.first(), &*reader.fields);
    out.extend_from_slice(b"HTTP/1.1");
    out.extend_from_slice(&head[first.start + b"HTTP/1.1".len()..first.end + 2]);
    let upgraded = manner.fate == Fate::Upgraded;
    copy_lines(out, head, fields, |field| match field.kind {
        Kind::ContentLength | Kind::TransferEncoding | Kind::Connection | Kind::Hop => false,
        Kind::Upgrade => upgraded,
        Kind::Other => !(wishes.names && is_named(field, head, fields)),
        _ => true,
    });
    framing(out, manner.body);
    out.extend_from_slice(manner.fate.words().as_bytes());
    if let Some(cookie) = cookie {
        line(out, "Set-Cookie", cookie);
    }
    out.extend_from_slice(b"\r\n");
}

/// Says how the body is framed.
fn framing(out: &mut Vec<u8>, body: Body) {
    match body {
        Body::None | Body::UntilEnd => {}
        // Writing to memory does not fail.
        Body::Length(length) => drop(write!(out, "Content-Length: {length}\r\n")),
        Body::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The body that an answer really has: some have none, whatever their headers say (RFC 9112, section 6.3).
pub(super) fn body_of(answer: Answer, to_head: bool) -> Body {
    if to_head || answer.status < 200 || matches!(answer.status, 204 | 304) {
        Body::None
    } else {
        answer.body
    }
}

/// How the client is told about the body of an answer that is `found` so. What only the end of the connection ends goes
/// in chunks, and chunks go bare to a client of HTTP/1.0.
pub(super) fn told_as(answer: Answer, to_head: bool, old_client: bool) -> Body {
    match (body_of(answer, to_head), answer.body) {
        // A length that says how long the body would be.
        (Body::None, Body::Length(length)) if to_head || answer.status == 304 => Body::Length(length),
        (Body::Chunked, _) if old_client => Body::UntilEnd,
        (Body::UntilEnd, _) if !old_client => Body::Chunked,
        (body, _) => body,
    }
}

#[cfg(test)]
#[path = "compose_tests.rs"]
mod tests;
