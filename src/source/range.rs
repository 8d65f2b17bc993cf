//! The cluster's Service range by the API server's own words, for clusters without `ServiceCIDR` objects.
//!
//! A Service with a `ClusterIP` outside the range is refused with a message that names the range; with `dryRun` nothing
//! is ever made. The answer becomes an object like those that newer servers have, so that nobody downstream needs to
//! know. When it is asked is decided in `follow`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use super::kube::ApiClient;
use super::slim::{self, Kind, Object, ObjectKey};

/// Where the question goes: `namespaces/default` exists in every cluster.
const PATH: &str = "/api/v1/namespaces/default/services?dryRun=All";
/// One address of each family that lies in no cluster's range: they are set apart for documentation (RFC 5737, 3849).
const IMPOSSIBLE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The object's name; the colon keeps it apart from every name that an API server accepts.
const NAME: &str = "edgesplice:api-answer";
/// The words before the range, the same in every version since 1.2.
const MARKER: &str = "range of valid IPs is ";

/// How far the question has come; it is put once.
pub(super) enum AskRange {
    /// It is not put for this kind.
    Never,
    /// It is put as soon as the server turns out to have no such objects.
    Wanted,
    /// It has been answered, or refused; an answer stands until there are objects.
    Asked(Option<ObjectKey>),
}

/// Asks for Services that cannot be. `None` where there was no answer, so that it is worth another try.
pub(super) async fn ask(api: &ApiClient, patience: Duration) -> Option<Option<Object>> {
    let mut ranges = Vec::new();
    for ip in IMPOSSIBLE {
        match api.post(PATH, question(ip), patience).await {
            Ok((401 | 403, _)) => {
                tracing::debug!(
                    "this identity may not ask for the Service range by `create services` with dryRun"
                );
                break;
            }
            // Busy, or not yet itself.
            Ok((status @ (429 | 500..=599), _)) => {
                tracing::debug!(status, "the API server does not answer for the Service range yet");
                return None;
            }
            Ok((_, body)) => ranges.extend(answer(&body)),
            Err(fault) => {
                tracing::debug!(%fault, "the Service range could not be asked for");
                return None;
            }
        }
    }
    if ranges.is_empty() {
        return Some(None);
    }
    match object(&ranges) {
        Ok(object) => {
            tracing::info!(
                ?ranges,
                "no ServiceCIDRs here; the API server's own answer names the Service range"
            );
            Some(Some(object))
        }
        Err(why) => {
            tracing::warn!(?ranges, "the Service range that the API server names cannot be used: {why}");
            Some(None)
        }
    }
}

/// The Service that cannot be.
fn question(ip: &str) -> String {
    let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "edgesplice-service-range", "namespace": "default"},
           "spec": {"clusterIP": ip, "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 443}]}})
    .to_string()
}

/// The ranges that a refusal names.
fn answer(body: &[u8]) -> Vec<IpNet> {
    let message = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|v| v.get("message")?.as_str().map(str::to_owned))
        .unwrap_or_default();
    let Some((_, rest)) = message.split_once(MARKER) else { return Vec::new() };
    let part_of_range = |c: char| c.is_ascii_hexdigit() || ".:/".contains(c);
    rest.split(|c: char| c == ',' || c.is_whitespace())
        .map_while(|word| {
            let end = word.find(|c| !part_of_range(c)).unwrap_or(word.len());
            let word = word[..end].trim_end_matches('.');
            // Two ranges are told with a comma and a blank between them.
            if word.is_empty() { Some(None) } else { word.parse().ok().map(Some) }
        })
        .flatten()
        .filter(|net: &IpNet| {
            !IMPOSSIBLE.iter().filter_map(|ip| ip.parse().ok()).any(|ip: IpAddr| net.contains(&ip))
        })
        .collect()
}

/// The ranges as an object; the error says why they cannot be.
fn object(ranges: &[IpNet]) -> Result<Object, String> {
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    slim::decode(Kind::ServiceCidr, json!({"metadata": {"name": NAME}, "spec": {"cidrs": ranges}}))
        .map_err(|e: serde_json::Error| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(message: &str) -> Vec<String> {
        let body = json!({"kind": "Status", "code": 422, "message": message}).to_string();
        answer(body.as_bytes()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_range_is_read_from_the_refusals_of_all_versions() {
        let start = "Service \"x\" is invalid: spec.clusterIPs: Invalid value: []string{\"192.0.2.1\"}: failed to allocate IP \
                     192.0.2.1: provided IP is not in the valid range. The range of valid IPs is ";
        assert_eq!(ranges(&format!("{start}10.96.0.0/12")), ["10.96.0.0/12"]);
        assert_eq!(ranges(&format!("{start}10.96.0.0/12.")), ["10.96.0.0/12"]);
        assert_eq!(ranges(&format!("{start}fd00:10:96::/112, and more text")), ["fd00:10:96::/112"]);
        assert_eq!(ranges(&format!("{start}10.43.0.0/16,10.44.0.0/16")), ["10.43.0.0/16", "10.44.0.0/16"]);
    }

    #[test]
    fn other_answers_name_no_range() {
        for message in [
            "",
            "services is forbidden",
            "The range of valid IPs is unknown",
            "The range of valid IPs is 0.0.0.0/0",
        ] {
            assert!(ranges(message).is_empty(), "{message}");
        }
        assert!(answer(b"<html>").is_empty());
        assert!(answer(br#"{"kind":"Service"}"#).is_empty());
    }

    #[test]
    fn the_answer_becomes_an_object_and_a_range_that_is_too_wide_does_not() {
        let Ok(Object::ServiceCidr(cidr)) = object(&["10.96.0.0/12".parse().unwrap()]) else { panic!() };
        assert_eq!((&*cidr.name, cidr.cidrs.len()), (NAME, 1));
        assert!(object(&["10.0.0.0/7".parse().unwrap()]).unwrap_err().contains("too wide"));
    }
}
