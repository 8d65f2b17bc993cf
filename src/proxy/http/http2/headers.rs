//! Which headers of HTTP/2 pass from one side to the other. Pure.
//!
//! What concerns one connection ends here (RFC 9110, section 7.6.1), who asked is written down, everything else,
//! `traceparent` among it, passes as it came.

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Not to be removed because `Connection` says so.
const LASTING: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TE];

/// Makes a request's headers those of the request to the backend.
pub(super) fn forward(headers: &mut HeaderMap, client: &HeaderValue) {
    strip(headers);
    headers.remove(&HTTP2_SETTINGS);
    // The only transfer parameter that passes through a proxy; gRPC asks for it.
    match headers.get(TE) {
        Some(te) if te.as_bytes().eq_ignore_ascii_case(b"trailers") => {}
        Some(_) => drop(headers.remove(TE)),
        None => {}
    }
    match headers.entry(&FORWARDED_FOR) {
        Entry::Vacant(entry) => drop(entry.insert(client.clone())),
        Entry::Occupied(mut entry) => {
            let mut list: Vec<u8> = Vec::new();
            for before in entry.iter() {
                list.extend_from_slice(before.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(client.as_bytes());
            if let Ok(value) = HeaderValue::from_bytes(&list) {
                entry.insert(value);
            }
        }
    }
    if let Entry::Vacant(entry) = headers.entry(&FORWARDED_PROTO) {
        entry.insert(HeaderValue::from_static("http"));
    }
}

/// Makes an answer's headers those of the answer to the client.
pub(super) fn back(headers: &mut HeaderMap) {
    strip(headers);
}

/// Removes what concerns one connection only.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let words = |value: &HeaderValue| {
            let words = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            words.filter_map(|word| HeaderName::from_bytes(word).ok()).collect::<Vec<_>>()
        };
        let named: Vec<HeaderName> = headers.get_all(CONNECTION).into_iter().flat_map(words).collect();
        // Naming what frames a message, or says whose it is, does not make it go away.
        for name in named.iter().filter(|name| !LASTING.contains(name)) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value))
        };
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    fn text(map: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = map.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const CLIENT: HeaderValue = HeaderValue::from_static("10.0.0.7");

    #[test]
    fn what_concerns_one_connection_ends_here() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Hop"),
            ("connection", "host, content-length"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("upgrade", "websocket"),
            ("host", "web"),
            ("content-length", "3"),
            ("traceparent", "00-1-2-01"),
        ]);
        forward(&mut headers, &CLIENT);
        assert_eq!(
            text(&headers),
            [
                "content-length: 3",
                "host: web",
                "traceparent: 00-1-2-01",
                "x-forwarded-for: 10.0.0.7",
                "x-forwarded-proto: http"
            ]
        );
    }

    #[test]
    fn who_asked_is_added_to_who_asked_before() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
        ]);
        forward(&mut headers, &CLIENT);
        assert_eq!(
            text(&headers),
            ["x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.0.0.7", "x-forwarded-proto: https"]
        );
    }

    #[test]
    fn trailers_may_be_asked_for() {
        let mut headers = map(&[("te", "trailers")]);
        forward(&mut headers, &CLIENT);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn answers_are_stripped_too() {
        let mut headers =
            map(&[("connection", "close, x-hop"), ("x-hop", "1"), ("upgrade", "h2c"), ("etag", "1")]);
        back(&mut headers);
        assert_eq!(text(&headers), ["etag: 1"]);
    }
}
