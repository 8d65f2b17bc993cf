//! Which headers pass from one side to the other. Pure.
//!
//! What concerns one connection ends here (RFC 9110, section 7.6.1), who asked is written down, everything else,
//! `traceparent` among it, passes as it came.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Makes a request's headers those of the request to the backend. Returns what it asks to be upgraded to, which is put
/// back by [`ask_upgrade`]. Upgrading to HTTP/2 is not offered: behind it requests would go unseen.
pub(super) fn forward(headers: &mut HeaderMap, client: &HeaderValue) -> Option<HeaderValue> {
    let wants_upgrade = strip(headers);
    let upgrade = headers.remove(UPGRADE);
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
    upgrade.filter(|to| wants_upgrade && !to.as_bytes().to_ascii_lowercase().starts_with(b"h2"))
}

/// Asks the backend to upgrade to `protocol`.
pub(super) fn ask_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Makes an answer's headers those of the answer to the client; `upgraded` keeps what an upgrade needs.
pub(super) fn back(headers: &mut HeaderMap, upgraded: bool) {
    strip(headers);
    if upgraded {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

/// Removes what concerns one connection only. True if it asks for an upgrade.
fn strip(headers: &mut HeaderMap) -> bool {
    let mut upgrade = false;
    if headers.contains_key(CONNECTION) {
        let mut named: Vec<HeaderName> = Vec::new();
        for value in headers.get_all(CONNECTION) {
            for word in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if word.eq_ignore_ascii_case(b"upgrade") {
                    upgrade = true;
                } else if word.eq_ignore_ascii_case(b"close") || word.eq_ignore_ascii_case(b"keep-alive") {
                } else if let Ok(name) = HeaderName::from_bytes(word) {
                    named.push(name);
                }
            }
        }
        // Naming what frames a message, or says whose it is, does not make it go away.
        for name in named.iter().filter(|name| ![HOST, CONTENT_LENGTH, TE].contains(name)) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    upgrade
}

/// An address as a header's value, made once for all requests of a connection.
pub(super) fn value_of(ip: IpAddr) -> HeaderValue {
    // An address's text has no character that a header may not have.
    HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// The value of the cookie `name`.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(http::header::COOKIE).into_iter();
    pairs.flat_map(|line| line.as_bytes().split(|b| *b == b';')).find_map(|pair| {
        let pair = pair.trim_ascii();
        let (key, value) = pair.split_at(pair.iter().position(|b| *b == b'=')?);
        (key == name.as_bytes()).then_some(&value[1..])
    })
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
        assert_eq!(forward(&mut headers, &CLIENT), None, "an upgrade has to stand in Connection");
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
    fn upgrades_pass_but_not_to_http_2() {
        let asked = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")];
        let mut headers = map(&asked);
        let upgrade = forward(&mut headers, &CLIENT).unwrap();
        assert_eq!(upgrade, "websocket");
        ask_upgrade(&mut headers, upgrade);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        let h2c =
            [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
        let mut headers = map(&h2c);
        assert_eq!(forward(&mut headers, &CLIENT), None);
        assert_eq!(headers.len(), 2, "{headers:?}");
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
        back(&mut headers, false);
        assert_eq!(text(&headers), ["etag: 1"]);
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        back(&mut headers, true);
        assert_eq!(text(&headers), ["connection: upgrade", "upgrade: websocket"]);
    }

    #[test]
    fn cookies_are_found_by_name() {
        let headers = map(&[("cookie", "a=1; user=x=y"), ("cookie", "b=2")]);
        assert_eq!(cookie(&headers, "user"), Some(&b"x=y"[..]));
        assert_eq!(cookie(&headers, "b"), Some(&b"2"[..]));
        assert_eq!(cookie(&headers, "use"), None);
    }
}
