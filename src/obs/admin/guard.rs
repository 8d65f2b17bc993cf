//! Who is answered at all.
//!
//! Everything can only be read, but what is read is the cluster's layout: a web page that some browser on this machine
//! has open must not get at it, neither under a name of its own that leads here nor as a foreign page.

use std::net::IpAddr;

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Version};

/// A refusal: the code and the reason.
pub(super) type Refused = (StatusCode, &'static str);

/// Turns away what may not be answered, whatever it asks for. `loopback`: the endpoint can be reached from this machine
/// only, where no name but its own can be meant.
pub(super) fn admit<B>(request: &Request<B>, loopback: bool) -> Result<(), Refused> {
    let headers = request.headers();
    // A web page whose name has been rebound to this address sends that name.
    let named = headers.get_all(header::HOST).iter().map(HeaderValue::to_str);
    let target = request.uri().authority().map(|a| Ok(a.as_str()));
    let mut hosts = named.chain(target).peekable();
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err((StatusCode::BAD_REQUEST, "there is more than one Host header"));
    }
    if hosts.peek().is_none() && request.version() != Version::HTTP_10 {
        return Err((StatusCode::BAD_REQUEST, "the Host header is missing"));
    }
    if !hosts.all(|host| host.is_ok_and(|host| is_authority(host) && (!loopback || is_own_host(host)))) {
        return Err((StatusCode::MISDIRECTED_REQUEST, "ask by address, or as localhost"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered"));
    }
    if is_foreign(headers) {
        return Err((StatusCode::FORBIDDEN, "pages of other origins are not answered"));
    }
    Ok(())
}

/// Whether a page of another origin asks. A link that a person follows is no such thing.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let origins = headers.get_all(header::ORIGIN);
    if headers.contains_key(header::ORIGIN) {
        let own = text("host").map(|host| [format!("http://{host}"), format!("https://{host}")]);
        let is_own =
            |origin: &HeaderValue| own.iter().flatten().any(|own| own.as_bytes() == origin.as_bytes());
        return !origins.iter().all(is_own);
    }
    let elsewhere = matches!(text("sec-fetch-site"), Some("cross-site" | "same-site"));
    let by_hand = text("sec-fetch-mode") == Some("navigate") && text("sec-fetch-dest") == Some("document");
    elsewhere && !by_hand
}

fn is_authority(host: &str) -> bool {
    !host.contains('@') && host.parse::<hyper::http::uri::Authority>().is_ok()
}

/// Whether `host`, a `Host` header's value, cannot be a name that somebody on the internet has rebound to this address:
/// an address, or a single label such as `localhost` or a node's name, which no public domain has.
fn is_own_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<hyper::http::uri::Authority>() else { return false };
    let name = authority.host();
    // `[::1].example` is none, whatever is taken for its host.
    let behind = authority.as_str().strip_prefix(name).unwrap_or(host);
    if !behind.strip_prefix(':').unwrap_or(behind).bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok() || !name.trim_end_matches('.').contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(headers: &[(&str, &str)], loopback: bool) -> u16 {
        let mut request = Request::get("/api/v1/status");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        admit(&request.body(()).unwrap(), loopback).map_or_else(|(code, _)| code.as_u16(), |()| 200)
    }

    #[test]
    fn pages_of_other_origins_are_not_answered() {
        let host = ("host", "127.0.0.1:10265");
        assert_eq!(code(&[host], true), 200);
        assert_eq!(code(&[host, ("origin", "http://127.0.0.1:10265")], true), 200);
        assert_eq!(code(&[host, ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")], true), 200);
        assert_eq!(code(&[host, ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], true), 200);
        for origin in ["http://evil.example", "http://127.0.0.1:1", "null", "file://"] {
            assert_eq!(code(&[host, ("origin", origin)], true), 403, "{origin}");
        }
        assert_eq!(code(&[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], true), 403);
        let link = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(code(&[link.as_slice(), &[("sec-fetch-dest", "document")]].concat(), true), 200);
        assert_eq!(code(&[link.as_slice(), &[("sec-fetch-dest", "iframe")]].concat(), true), 403);
    }

    #[test]
    fn names_are_taken_only_where_they_can_be_meant() {
        assert_eq!(code(&[("host", "node-a.example.com:10265")], true), 421);
        assert_eq!(code(&[("host", "node-a.example.com:10265")], false), 200);
        assert_eq!(code(&[("host", "x@node-a.example.com")], false), 421);
        assert_eq!(code(&[], false), 400);
    }

    #[test]
    fn every_form_of_a_foreign_name_is_turned_away_on_loopback() {
        for own in [
            "127.0.0.1",
            "127.0.0.1:10265",
            "[::1]:10265",
            "[::ffff:127.0.0.1]:10265",
            "localhost",
            "LOCALHOST:10265",
            "localhost.",
            "192.168.77.1:10265",
        ] {
            assert_eq!(code(&[("host", own)], true), 200, "{own}");
        }
        for foreign in [
            "evil.example",
            "127.0.0.1.evil.example",
            "evil.example:10265",
            "evil.example.",
            "sub.localhost",
            "0x7f.1",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "127.0.0.1:80:80",
            "127.0.0.1 evil.example",
            "127.0.0.1/evil.example",
            "[::1].evil.example",
            "",
        ] {
            assert_eq!(code(&[("host", foreign)], true), 421, "{foreign:?}");
        }
        let twice = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(code(&twice, true), 400);
        assert_eq!(code(&[twice[0], twice[0]], true), 400);
    }

    #[test]
    fn a_second_origin_hides_behind_no_first_one() {
        let own = [("host", "127.0.0.1:10265"), ("origin", "http://127.0.0.1:10265")];
        assert_eq!(code(&own, true), 200);
        assert_eq!(code(&[own.as_slice(), &[("origin", "http://evil.example")]].concat(), true), 403);
        // Another port or scheme is another origin, and so is another name for this machine.
        for origin in ["http://127.0.0.1", "http://localhost:10265", "ftp://127.0.0.1:10265", ""] {
            assert_eq!(code(&[own[0], ("origin", origin)], true), 403, "{origin:?}");
        }
    }

    #[test]
    fn nobody_is_allowed_to_ask_from_elsewhere_by_asking_first() {
        for method in [Method::OPTIONS, Method::POST, Method::PUT, Method::DELETE, Method::CONNECT] {
            let request = Request::builder()
                .method(method.clone())
                .uri("/api/v1/status")
                .header("host", "127.0.0.1:10265")
                .header("origin", "http://evil.example")
                .header("access-control-request-method", "GET")
                .header("access-control-request-private-network", "true")
                .body(())
                .unwrap();
            let (code, _) = admit(&request, true).unwrap_err();
            assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        }
    }
}
