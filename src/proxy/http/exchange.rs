//! One request: which backend, over which connection, again if that is safe, and what the client is told.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use http::header::{HOST, HeaderValue, SET_COOKIE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::balance::{Caller, Lease, Upstream, key_of};
use crate::model::{Policy, Via};

use super::super::dial::{self, DialError, TcpDialer};
use super::body::{AnswerBody, RequestBody};
use super::record::Record;
use super::reply::{self, Trouble};
use super::upstream1::Http1;
use super::upstream2::{Http2, Stream};
use super::visitor::{Upgrade, Visitor};
use super::{headers, stick};

/// Times that a request may be sent: more than any service needs to find one backend of several that works.
const MOST_TRIES: usize = 6;

/// Answers one request of `visitor`. What goes wrong is told in the answer.
pub(super) async fn answer(
    visitor: Arc<Visitor>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let grpc = reply::is_grpc(&parts.headers);
    let mut record = Record::new(Arc::clone(&visitor), &parts);
    let limit = visitor.shared.http.request_timeout;
    let work = async {
        let (upstream, via) = visitor.route().ok_or(Trouble::NoBackend)?;
        record.for_service(&upstream.port.id);
        let prepared = prepare(&visitor, &upstream, &mut parts, &body);
        let body = if body.is_end_stream() { RequestBody::Empty } else { RequestBody::Stream(body) };
        let exchange = Exchange { visitor: &visitor, upstream: &upstream, via, prepared: &prepared };
        let got = exchange.run(Request::from_parts(parts, body), &mut record).await?;
        Ok((got, prepared))
    };
    let outcome = match limit {
        Duration::ZERO => work.await,
        // Boxed, so that those without a limit do not carry the room for it.
        limit => timeout(limit, Box::pin(work)).await.unwrap_or(Err(Trouble::Timeout)),
    };
    let (got, prepared) = match outcome {
        Ok(got) => got,
        Err(trouble) => {
            record.answered(trouble.status());
            return Ok(reply::own(trouble, grpc, visitor, record));
        }
    };
    Ok(pass_back(got, &prepared, visitor, record).await)
}

/// What is known of a request beyond its head.
#[derive(Debug)]
struct Prepared {
    /// It goes over HTTP/2, as it came.
    http2: bool,
    /// It may be sent more than once (RFC 9110, section 9.2.2), and has no body that would be gone then.
    repeatable: bool,
    /// The answer may hand the connection over.
    may_upgrade: bool,
    /// It is a `CONNECT`, which hands the connection over with any answer that says yes.
    connect: bool,
    caller: Caller,
    /// The cookie that its client gets, so that it comes back to the same backend.
    cookie: Option<HeaderValue>,
}

/// Makes the head one for the backend.
fn prepare(visitor: &Visitor, upstream: &Upstream, parts: &mut Parts, body: &Incoming) -> Prepared {
    let http2 = parts.version == Version::HTTP_2;
    let (key, cookie) = match &upstream.port.policy {
        Policy::Header(name) => (parts.headers.get(&**name).map(|value| key_of(value.as_bytes())), None),
        Policy::Cookie(rule) => stick::key(rule, &parts.headers),
        _ => (None, None),
    };
    let upgrade = headers::forward(&mut parts.headers, &visitor.forwarded_for);
    let connect = parts.method == Method::CONNECT;
    let may_upgrade = !http2 && (upgrade.is_some() || connect);
    if http2 {
        complete_uri(visitor, parts);
    } else {
        parts.version = Version::HTTP_11;
        if let Some(protocol) = upgrade {
            headers::ask_upgrade(&mut parts.headers, protocol);
        }
        // The `Expect` of the client is answered by us as soon as its body is wanted.
        parts.headers.remove(http::header::EXPECT);
        if !parts.headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(visitor.dst.to_string())
        {
            parts.headers.insert(HOST, host);
        }
        if !body.is_end_stream() && body.size_hint().exact().is_none() {
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    let repeatable = body.is_end_stream() && !may_upgrade && parts.method.is_idempotent();
    let caller = Caller { ip: visitor.peer.ip(), key };
    Prepared { http2, repeatable, may_upgrade, connect, caller, cookie }
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

/// A backend's answer.
enum Got {
    Http1(Response<Incoming>, Box<Http1>),
    Http2(Response<Incoming>, Stream),
}

/// A request that was sent, or not.
enum Failed {
    /// Not a byte was sent; here it is.
    Unsent(Box<Request<RequestBody>>),
    /// The client's body ended in an error.
    ByClient,
    /// It was sent, and the connection ended. `stale`: it had waited in the pool, and nothing was heard.
    Broken { stale: bool, heard: bool },
}

/// One request and where it may go.
struct Exchange<'a> {
    visitor: &'a Visitor,
    upstream: &'a Arc<Upstream>,
    via: Via,
    prepared: &'a Prepared,
}

impl Exchange<'_> {
    async fn run(&self, request: Request<RequestBody>, record: &mut Record) -> Result<Got, Trouble> {
        let mut avoid = Vec::new();
        let mut fresh = false;
        let mut request = request;
        for _ in 0..MOST_TRIES {
            let copy = self.prepared.repeatable.then(|| copy(&request));
            let (conn, lease) = self.connect(&avoid, fresh).await?;
            let backend = self.position(&lease);
            record.carried_by(lease);
            let failed = match conn.send(request, &self.visitor.looks).await {
                Ok(got) => {
                    self.judge(record, got.status().is_server_error());
                    return Ok(got);
                }
                Err(failed) => failed,
            };
            // Whatever it was over, the next one is new: what waits in the pool may be as old.
            fresh = true;
            request = match (failed, copy) {
                (Failed::Unsent(request), _) => *request,
                (Failed::ByClient, _) => return Err(Trouble::Request),
                (Failed::Broken { stale: true, .. }, Some(copy)) => copy,
                (Failed::Broken { stale: false, heard: false }, Some(copy))
                    if self.visitor.counters.http().may_retry() =>
                {
                    self.judge(record, true);
                    avoid.extend(backend);
                    copy
                }
                (Failed::Broken { .. }, _) => {
                    self.judge(record, true);
                    return Err(Trouble::Broken);
                }
            };
        }
        Err(Trouble::Broken)
    }

    /// A connection on which the request can be sent: one that waits, or a new one.
    async fn connect(&self, avoid: &[usize], fresh: bool) -> Result<(Conn, Lease), Trouble> {
        let Self { visitor, upstream, prepared, .. } = *self;
        let pool = upstream.pool_via(self.via, visitor.dst.ip());
        let now = visitor.upstreams.now();
        let (mut avoid, all) = (avoid, pool.endpoints());
        let mut picked = upstream.pick(pool, prepared.caller, avoid, now);
        if picked.is_none() && !avoid.is_empty() {
            // Every one has failed once. Better the same again than none.
            avoid = &[];
            picked = upstream.pick(pool, prepared.caller, avoid, now);
        }
        let index = picked.ok_or(Trouble::NoBackend)?;
        let addr = all[index].addr;
        let waiting = if prepared.http2 {
            visitor.pool().share(addr).filter(|_| !fresh).map(Conn::Http2)
        } else if fresh {
            None
        } else {
            visitor.pool().take(addr, !prepared.repeatable).map(Conn::Http1)
        };
        if let Some(conn) = waiting {
            return Ok((conn, all[index].lease()));
        }
        let _turn = if prepared.http2 { visitor.pool().turn(addr).await } else { None };
        if prepared.http2
            && !fresh
            && let Some(conn) = visitor.pool().share(addr)
        {
            return Ok((Conn::Http2(conn), all[index].lease()));
        }
        let request = dial::Request {
            upstreams: &visitor.upstreams,
            upstream,
            pool,
            client: prepared.caller,
            picked,
            avoid,
            limits: visitor.shared.limits,
            guard: &*visitor.shared.guard,
        };
        // hyper drops this future when it sees that the client is gone.
        let dialer = TcpDialer { speaks_first: true, ..visitor.shared.dialer };
        let dialled = Box::pin(dial::dial(&dialer, request, pending())).await;
        let (stream, lease) = dialled.map_err(|error| match error {
            DialError::NoBackend | DialError::Exhausted { .. } | DialError::ClientGone => Trouble::NoBackend,
            DialError::Local(_) => Trouble::Overload,
        })?;
        // A socket that has failed already tells so when it is used.
        let _ = crate::net::sock::keep_alive(&stream);
        let conn = if prepared.http2 {
            let conn = Http2::over(stream).await.map_err(|_| Trouble::Broken)?;
            visitor.pool().add(lease.endpoint().addr, conn.clone());
            Conn::Http2(conn)
        } else {
            Conn::Http1(Box::new(Http1::over(stream).await.map_err(|_| Trouble::Broken)?))
        };
        Ok((conn, lease))
    }

    fn position(&self, lease: &Lease) -> Option<usize> {
        self.upstream.pool_via(self.via, self.visitor.dst.ip()).position(lease.endpoint().addr)
    }

    /// Counts the answer for or against its backend, where a `DestinationRule` wants that.
    fn judge(&self, record: &Record, fault: bool) {
        let wanted = self.upstream.port.outlier.consecutive_errors.is_some_and(|most| most > 0);
        if let Some(lease) = record.lease().filter(|_| wanted) {
            lease.endpoint().judged(fault, self.visitor.upstreams.now(), &self.upstream.ejection);
        }
    }
}

/// A connection that can carry a request.
enum Conn {
    Http1(Box<Http1>),
    Http2(Http2),
}

impl Conn {
    async fn send(self, request: Request<RequestBody>, looks: &AtomicU32) -> Result<Got, Failed> {
        match self {
            Self::Http1(conn) => match conn.send(request, looks).await {
                Ok((answer, conn)) => Ok(Got::Http1(answer, conn)),
                Err(failed) => {
                    tracing::debug!(error = %failed.why, reused = failed.reused, "a backend gave no answer");
                    Err(match failed.unsent {
                        Some(request) => Failed::Unsent(Box::new(request)),
                        None if failed.why.is_user() => Failed::ByClient,
                        None => Failed::Broken { stale: failed.reused && !failed.heard, heard: failed.heard },
                    })
                }
            },
            Self::Http2(conn) => match conn.send(request).await {
                Ok((answer, stream)) => Ok(Got::Http2(answer, stream)),
                Err((Some(request), _)) => Err(Failed::Unsent(Box::new(request))),
                Err((None, error)) if error.is_user() => Err(Failed::ByClient),
                Err((None, error)) => {
                    tracing::debug!(%error, "a backend gave no answer over HTTP/2");
                    Err(Failed::Broken { stale: false, heard: false })
                }
            },
        }
    }
}

impl Got {
    fn status(&self) -> StatusCode {
        match self {
            Self::Http1(answer, _) | Self::Http2(answer, _) => answer.status(),
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

/// Makes a backend's answer the client's.
async fn pass_back(
    got: Got,
    prepared: &Prepared,
    visitor: Arc<Visitor>,
    mut record: Record,
) -> Response<AnswerBody> {
    let status = got.status();
    record.answered(status);
    let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
    let tunnel = prepared.may_upgrade && (upgraded || prepared.connect && status.is_success());
    let (mut parts, body) = match got {
        Got::Http1(answer, conn) => {
            let (parts, body) = answer.into_parts();
            if tunnel {
                drop(body);
                let handed = conn.into_parts().await;
                let own = AnswerBody::none(Arc::clone(&visitor));
                if let Some((backend, ahead)) = handed {
                    visitor.hand_over(Upgrade { backend, ahead, record });
                }
                (parts, own)
            } else {
                (parts, AnswerBody::http1(body, conn, visitor, record))
            }
        }
        Got::Http2(answer, stream) => {
            let (parts, body) = answer.into_parts();
            (parts, AnswerBody::http2(body, stream, visitor, record))
        }
    };
    headers::back(&mut parts.headers, upgraded);
    if let Some(cookie) = &prepared.cookie {
        parts.headers.append(SET_COOKIE, cookie.clone());
    }
    if !prepared.http2 {
        parts.version = Version::HTTP_11;
    }
    Response::from_parts(parts, body)
}
