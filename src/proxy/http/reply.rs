//! What the client is told where no backend has anything to say.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use super::http2::AnswerBody;
use super::record::Record;

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No backend could be connected, or there is none any more.
    NoBackend,
    /// This node has no descriptors or memory left.
    Overload,
    /// The service has as many requests under way as it is to have.
    Limit,
    /// A backend's answer broke off, or was none.
    Broken,
    /// It took too long.
    Timeout,
    /// The client's body was malformed, or broke off.
    Request,
    /// It was sent to where names choose, and names nobody.
    Misdirected,
}

impl Trouble {
    /// The status for it.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::NoBackend | Self::Overload | Self::Limit => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Request => StatusCode::BAD_REQUEST,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NoBackend => "no backend of this service can be reached\n",
            Self::Overload => "this node has no room for another connection\n",
            Self::Limit => "this service has as many requests under way as its DestinationRule allows\n",
            Self::Broken => "the backend's answer broke off\n",
            Self::Timeout => "the backend did not answer in time\n",
            Self::Request => "the request's body is malformed or broke off\n",
            Self::Misdirected => "Host names no service with an HTTP port of this number\n",
        }
    }

    /// gRPC's code: `DEADLINE_EXCEEDED`, `INTERNAL`, `NOT_FOUND` or `UNAVAILABLE`.
    fn grpc_code(self) -> &'static str {
        match self {
            Self::Timeout => "4",
            Self::Request => "13",
            Self::Misdirected => "5",
            _ => "14",
        }
    }
}

/// Whether a request is one of gRPC, whose clients look for their status elsewhere.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The answer for `trouble` over HTTP/2.
pub(super) fn own(trouble: Trouble, grpc: bool, record: Record) -> Response<AnswerBody> {
    let text = trouble.text();
    let mut answer = if grpc {
        let mut answer = Response::new(AnswerBody::own("", record));
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(trouble.grpc_code()));
        headers.insert("grpc-message", HeaderValue::from_static(text.trim_ascii_end()));
        answer
    } else {
        let mut answer = Response::new(AnswerBody::own(text, record));
        *answer.status_mut() = trouble.status();
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer
    };
    if trouble.status() == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// The same for HTTP/1, as bytes. `connection` says what becomes of the connection. `body`: the answer may have one.
pub(super) fn text(trouble: Trouble, grpc: bool, connection: &str, body: bool) -> String {
    let text = trouble.text();
    let retry = if trouble.status() == StatusCode::SERVICE_UNAVAILABLE { "Retry-After: 1\r\n" } else { "" };
    if grpc {
        return format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\ngrpc-status: {}\r\ngrpc-message: {}\r\n\
             {retry}Content-Length: 0\r\n{connection}\r\n",
            trouble.grpc_code(),
            text.trim_ascii_end()
        );
    }
    let status = trouble.status();
    let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or("Refused"));
    format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n{retry}Content-Length: {}\r\n\
         {connection}\r\n{}",
        text.len(),
        if body { text } else { "" }
    )
}

/// The bytes by which a request is refused that is not seen as one.
pub(super) fn refusal(status: StatusCode) -> String {
    let reason = status.canonical_reason().unwrap_or("Refused");
    let code = status.as_u16();
    format!(
        "HTTP/1.1 {code} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{reason}\n",
        reason.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_whole_answer() {
        let text = refusal(StatusCode::BAD_REQUEST);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.ends_with("connection: close"));
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
    }
}
