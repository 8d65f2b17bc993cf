//! Clients that come back to the same backend by a cookie. Pure but for the dice.

use http::header::{HeaderMap, HeaderValue};

use crate::balance::key_of;
use crate::model::CookieRule;

use super::headers;

/// What the pick goes by, and the cookie that the client gets where it has none and the rule makes one.
pub(super) fn key(rule: &CookieRule, request: &HeaderMap) -> (Option<u64>, Option<HeaderValue>) {
    if let Some(value) = headers::cookie(request, &rule.name) {
        return (Some(key_of(value)), None);
    }
    let Some(ttl) = rule.ttl else { return (None, None) };
    let value = format!("{:016x}", fastrand::u64(..));
    let mut text = format!("{}={value}; HttpOnly", rule.name);
    if !rule.path.is_empty() {
        text = format!("{text}; Path={}", rule.path);
    }
    // A lifetime of nothing is a cookie of the session.
    if !ttl.is_zero() {
        text = format!("{text}; Max-Age={}", ttl.as_secs());
    }
    (Some(key_of(value.as_bytes())), HeaderValue::try_from(text).ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_has_the_cookie_is_known_by_it_and_who_has_none_gets_one() {
        let rule =
            CookieRule { name: "user".into(), path: "/shop".into(), ttl: Some(Duration::from_mins(1)) };
        let mut request = HeaderMap::new();
        let (first, cookie) = key(&rule, &request);
        let cookie = cookie.unwrap();
        let text = cookie.to_str().unwrap();
        assert!(text.starts_with("user=") && text.ends_with("; HttpOnly; Path=/shop; Max-Age=60"), "{text}");
        let pair = text.split(';').next().unwrap();
        request.insert(http::header::COOKIE, pair.parse().unwrap());
        assert_eq!(key(&rule, &request), (first, None), "it comes back to where it was sent first");
    }

    #[test]
    fn a_rule_without_a_lifetime_makes_no_cookie() {
        let rule = CookieRule { name: "user".into(), path: "".into(), ttl: None };
        assert_eq!(key(&rule, &HeaderMap::new()), (None, None));
    }
}
