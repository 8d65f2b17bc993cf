//! One request over HTTP/2: which backend, over which connection, again if that is safe, and what the client is told.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, HOST, HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use crate::balance::{Caller, Lease, Upstream, key_of};
use crate::model::Policy;
use crate::obs::access::Entry;

use super::super::choice::{Choice, MOST_TRIES};
use super::super::record::{self, Record};
use super::super::reply::{self, Trouble};
use super::super::stick;
use super::super::visitor::Visitor;
use super::body::{AnswerBody, RequestBody};
use super::headers;
use super::upstream::{Http2, Stream};

/// Answers one request of `visitor`. What goes wrong is told in the answer.
pub(super) async fn answer(
    visitor: Arc<Visitor>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let grpc = reply::is_grpc(&parts.headers);
    let mut record = Record::new(Arc::clone(&visitor), || entry(&visitor, &parts));
    let limit = visitor.shared.http.request_timeout;
    let work = async {
        let route = {
            let host = || parts.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
            visitor.route(parts.uri.authority().map_or_else(host, |host| host.as_str().as_bytes()))?
        };
        record.for_service(&route.upstream)?;
        let prepared = prepare(&visitor, &route.upstream, &mut parts, &body);
        let body = if body.is_end_stream() { RequestBody::Empty } else { RequestBody::Stream(body) };
        let choice = Choice { visitor: &visitor, route: &route, caller: prepared.caller };
        let exchange = Exchange { choice, repeatable: prepared.repeatable };
        let got = exchange.run(Request::from_parts(parts, body), &mut record).await?;
        Ok((got, prepared.cookie))
    };
    let outcome = match limit {
        Duration::ZERO => work.await,
        // Boxed, so that those without a limit do not carry the room for it.
        limit => timeout(limit, Box::pin(work)).await.unwrap_or(Err(Trouble::Timeout)),
    };
    let ((answer, stream), cookie) = match outcome {
        Ok(got) => got,
        Err(trouble) => {
            record.answered(trouble.status());
            return Ok(reply::own(trouble, grpc, record));
        }
    };
    record.answered(answer.status());
    let (mut parts, body) = answer.into_parts();
    headers::back(&mut parts.headers);
    if let Some(cookie) = cookie {
        parts.headers.append(SET_COOKIE, cookie);
    }
    Ok(Response::from_parts(parts, AnswerBody::http2(body, stream, record)))
}

/// What the access log is to say.
fn entry(visitor: &Visitor, request: &Parts) -> Entry {
    let text = |name: &str| {
        let value = request.headers.get(name);
        value.map_or_else(String::new, |v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    Entry {
        method: request.method.to_string(),
        path: request.uri.path().to_owned(),
        protocol: format!("{:?}", request.version),
        host: request.uri.authority().map_or_else(|| text("host"), ToString::to_string),
        traceparent: text("traceparent"),
        ..record::entry(visitor)
    }
}

/// What is known of a request beyond its head.
#[derive(Debug)]
struct Prepared {
    /// It may be sent more than once (RFC 9110, section 9.2.2), and has no body that would be gone then.
    repeatable: bool,
    caller: Caller,
    /// The cookie that its client gets, so that it comes back to the same backend.
    cookie: Option<HeaderValue>,
}

/// Makes the head one for the backend.
fn prepare(visitor: &Visitor, upstream: &Upstream, parts: &mut Parts, body: &Incoming) -> Prepared {
    let (key, cookie) = match &upstream.port.policy {
        Policy::Header(name) => (parts.headers.get(&**name).map(|value| key_of(value.as_bytes())), None),
        Policy::Cookie(rule) => {
            stick::key(rule, parts.headers.get_all(COOKIE).into_iter().map(HeaderValue::as_bytes))
        }
        _ => (None, None),
    };
    headers::forward(&mut parts.headers, &visitor.forwarded_for);
    complete_uri(visitor, parts);
    let repeatable = body.is_end_stream() && parts.method.is_idempotent();
    let caller = Caller { ip: visitor.peer.ip(), key };
    Prepared { repeatable, caller, cookie }
}

/// HTTP/2 wants to know the authority, which a client may have put into `host`.
fn complete_uri(visitor: &Visitor, parts: &mut Parts) {
    if parts.uri.authority().is_some() && parts.uri.scheme().is_some() {
        return;
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.to_string(),
        (None, Some(host)) => host.to_owned(),
        (None, None) => visitor.dst.to_string(),
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let built = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    if let Ok(uri) = built {
        parts.uri = uri;
    }
}

/// A request that was sent, or not.
enum Failed {
    /// Not a byte was sent; here it is.
    Unsent(Box<Request<RequestBody>>),
    /// The client's body ended in an error.
    ByClient,
    /// It was sent, and the connection ended.
    Broken,
}

/// One request and where it may go.
struct Exchange<'a> {
    choice: Choice<'a>,
    repeatable: bool,
}

impl Exchange<'_> {
    async fn run(
        &self,
        request: Request<RequestBody>,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Stream), Trouble> {
        let choice = &self.choice;
        let mut avoid = Vec::new();
        let mut fresh = false;
        let mut request = request;
        for _ in 0..MOST_TRIES {
            let copy = self.repeatable.then(|| copy(&request));
            let (conn, lease) = self.connect(&avoid, fresh).await?;
            record.carried_by(lease);
            let failed = match send(conn, request).await {
                Ok(got) => {
                    choice.judge(record, got.0.status().is_server_error());
                    return Ok(got);
                }
                Err(failed) => failed,
            };
            // Whatever it was over, the next one is new: what is shared may be as old.
            fresh = true;
            request = match (failed, copy) {
                (Failed::Unsent(request), _) => *request,
                (Failed::ByClient, _) => return Err(Trouble::Request),
                (Failed::Broken, Some(copy)) if choice.may_retry(record) => {
                    choice.judge(record, true);
                    avoid.extend(choice.position(record));
                    copy
                }
                (Failed::Broken, _) => {
                    choice.judge(record, true);
                    return Err(Trouble::Broken);
                }
            };
        }
        Err(Trouble::Broken)
    }

    /// A connection on which the request can be sent: one that is shared, or a new one.
    async fn connect(&self, avoid: &[usize], fresh: bool) -> Result<(Http2, Lease), Trouble> {
        let Self { choice, .. } = self;
        let (index, avoid) = choice.pick(avoid, Instant::now())?;
        let endpoint = choice.endpoint(index);
        let pool = choice.visitor.pool();
        let share = || pool.share(endpoint.addr).filter(|_| !fresh);
        if let Some(conn) = share() {
            return Ok((conn, endpoint.lease()));
        }
        let _turn = pool.turn(endpoint.addr).await;
        if let Some(conn) = share() {
            return Ok((conn, endpoint.lease()));
        }
        // One that lives long: a packet saved is worth less than answers that are never held up.
        let (stream, lease) = Box::pin(choice.dial((index, avoid), false)).await?;
        let conn = Http2::over(stream, choice.terms()).await.map_err(|_| Trouble::Broken)?;
        pool.add(lease.endpoint().addr, conn.clone());
        Ok((conn, lease))
    }
}

async fn send(conn: Http2, request: Request<RequestBody>) -> Result<(Response<Incoming>, Stream), Failed> {
    match conn.send(request).await {
        Ok(got) => Ok(got),
        Err((Some(request), _)) => Err(Failed::Unsent(Box::new(request))),
        Err((None, error)) if error.is_user() => Err(Failed::ByClient),
        Err((None, error)) => {
            tracing::debug!(%error, "a backend gave no answer over HTTP/2");
            Err(Failed::Broken)
        }
    }
}

/// The same request again. It has no body.
fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    *copy.version_mut() = request.version();
    request.headers().clone_into(copy.headers_mut());
    request.extensions().clone_into(copy.extensions_mut());
    copy
}
