//! Clients that come back to the same backend by a cookie. Pure but for the dice.

use http::header::HeaderValue;

use crate::balance::key_of;
use crate::model::CookieRule;

/// What the pick goes by, and the cookie that the client gets where it has none and the rule makes one.
/// `lines` are the values of the request's `Cookie` headers.
pub(super) fn key<'a>(
    rule: &CookieRule,
    lines: impl IntoIterator<Item = &'a [u8]>,
) -> (Option<u64>, Option<HeaderValue>) {
    if let Some(value) = find(lines, &rule.name) {
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

/// The value of the cookie `name`.
fn find<'a>(lines: impl IntoIterator<Item = &'a [u8]>, name: &str) -> Option<&'a [u8]> {
    lines.into_iter().flat_map(|line| line.split(|b| *b == b';')).find_map(|pair| {
        let pair = pair.trim_ascii();
        let (key, value) = pair.split_at(pair.iter().position(|b| *b == b'=')?);
        (key == name.as_bytes()).then_some(&value[1..])
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_has_the_cookie_is_known_by_it_and_who_has_none_gets_one() {
        let rule =
            CookieRule { name: "user".into(), path: "/shop".into(), ttl: Some(Duration::from_mins(1)) };
        let (first, cookie) = key(&rule, []);
        let cookie = cookie.unwrap();
        let text = cookie.to_str().unwrap();
        assert!(text.starts_with("user=") && text.ends_with("; HttpOnly; Path=/shop; Max-Age=60"), "{text}");
        let pair = text.split(';').next().unwrap();
        assert_eq!(key(&rule, [pair.as_bytes()]), (first, None), "it comes back to where it was sent first");
    }

    #[test]
    fn a_rule_without_a_lifetime_makes_no_cookie() {
        let rule = CookieRule { name: "user".into(), path: "".into(), ttl: None };
        assert_eq!(key(&rule, []), (None, None));
    }

    #[test]
    fn cookies_are_found_by_name() {
        let lines = [&b"a=1; user=x=y"[..], b"b=2"];
        assert_eq!(find(lines, "user"), Some(&b"x=y"[..]));
        assert_eq!(find(lines, "b"), Some(&b"2"[..]));
        assert_eq!(find(lines, "use"), None);
    }
}
