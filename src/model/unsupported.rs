//! Services with ports that no proxy of this kind carries.

use super::types::{ServiceId, Snapshot};

/// Begins the warning about a port that is left alone beside others that are not.
pub(super) const SCTP_PORT: &str = "SCTP is not intercepted; port ";
/// Why a Service is left alone that has such ports only.
pub(super) const SCTP_ONLY: &str = "it has SCTP ports only, and SCTP is not intercepted";

/// Every such Service, with what is so, in words.
pub fn unsupported(snapshot: &Snapshot) -> Vec<(ServiceId, String)> {
    let only = snapshot.not_proxied.iter().filter(|(_, entry)| entry.why == SCTP_ONLY);
    let mut found: Vec<(ServiceId, String)> =
        only.map(|(id, entry)| (id.clone(), entry.why.clone())).collect();
    let beside = snapshot.warnings.iter().filter_map(|line| {
        let (service, rest) = line.strip_prefix("Service ")?.split_once(": ")?;
        let (namespace, name) = service.split_once('/')?;
        let id = ServiceId { namespace: namespace.into(), name: name.into() };
        rest.starts_with(SCTP_PORT).then(|| (id, rest.to_owned()))
    });
    found.extend(beside);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn sctp_is_found_alone_and_beside_others() {
        let sctp = json!({"name": "s", "port": 38412, "protocol": "SCTP"});
        let world = snapshot(vec![
            service("only", "10.96.0.1", &json!({"ports": [sctp]})),
            service("both", "10.96.0.2", &json!({"ports": [sctp, {"name": "t", "port": 80}]})),
            service("none", "10.96.0.3", &json!({})),
        ]);
        let found: Vec<String> =
            unsupported(&world).into_iter().map(|(id, why)| format!("{id}: {why}")).collect();
        assert_eq!(
            found,
            [
                "default/only: it has SCTP ports only, and SCTP is not intercepted",
                "default/both: SCTP is not intercepted; port 38412 is left alone"
            ]
        );
    }
}
