//! What goes wrong between this node and its API server, and how it is told to the person who has to mend it.

use std::time::Duration;

use thiserror::Error;

/// One failed request, sorted by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Fault {
    /// Configuration or credentials could not be read; the text names the file.
    #[error("{0}")]
    Setup(String),
    /// 401.
    #[error("401 Unauthorized")]
    Unauthorized,
    /// 403.
    #[error("403 Forbidden")]
    Forbidden,
    /// 404.
    #[error("404 Not Found")]
    NotFound,
    /// 410, as an HTTP status or inside a watch: the version asked for is no longer held.
    #[error("410 Gone")]
    Gone,
    /// Any other status that is not a success.
    #[error("{code} {message}")]
    Status {
        /// The HTTP status code.
        code: u16,
        /// The server's own words.
        message: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// TLS could not be agreed on; the text says why.
    #[error("{0}")]
    Tls(String),
    /// No answer in this time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// Any other failure of the network.
    #[error("{0}")]
    Network(String),
    /// The answer is not what a Kubernetes API says.
    #[error("{0}")]
    Foreign(String),
}

/// Where the pieces of a connection are configured, in words that complete "check …".
#[derive(Clone, Debug)]
pub(super) struct Hints {
    pub(super) address: String,
    pub(super) credentials: String,
    pub(super) ca: String,
}

/// What was tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    /// Scheme, host and port.
    pub(super) server: &'a str,
    /// `list` or `watch`.
    pub(super) verb: &'a str,
    /// The plural name, as RBAC writes it.
    pub(super) resource: &'a str,
    /// The API group; empty for the core group.
    pub(super) group: &'a str,
}

impl Fault {
    /// How long the server asked us to stay away.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// True if new credentials or certificates may mend it.
    pub(super) fn is_about_credentials(&self) -> bool {
        matches!(self, Self::Unauthorized | Self::Tls(_) | Self::Setup(_))
    }

    /// True if the server does not have the kind, or will not give it.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Forbidden | Self::NotFound)
    }

    /// One line: what was tried, what came of it, what to do.
    pub(super) fn explain(&self, attempt: Attempt<'_>, hints: &Hints) -> String {
        let Attempt { server, verb, resource, group } = attempt;
        let tried = format!("{verb} {resource} at {server}: {self}");
        let Hints { address, credentials, ca } = hints;
        match self {
            Self::Setup(_) => format!("{server}: {self}"),
            Self::Unauthorized => {
                format!("{tried}: the server does not accept who we say we are; check {credentials}")
            }
            Self::Forbidden => format!(
                "{tried}: this identity may not do that; grant it `apiGroups: [\"{group}\"], resources: [{resource}], \
                 verbs: [list, watch]` in a ClusterRole"
            ),
            Self::NotFound => format!("{tried}: no Kubernetes API there, or one too old; check {address}"),
            Self::Refused => {
                format!("{tried}: nothing listens there; check that the server runs, and {address}")
            }
            Self::Tls(_) => format!("{tried}; check {ca} and {address}"),
            Self::Timeout(_) => {
                format!(
                    "{tried}: the server or the way to it hangs; check the network, a firewall, and {address}"
                )
            }
            Self::Network(_) | Self::Foreign(_) => format!("{tried}; check {address}"),
            Self::Gone | Self::Status { .. } => tried,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_says_what_was_tried_and_what_to_do() {
        let hints = Hints {
            address: "`server` in /etc/k".into(),
            credentials: "the user in /etc/k".into(),
            ca: "`certificate-authority` in /etc/k".into(),
        };
        let attempt = Attempt {
            server: "https://10.0.0.1:6443",
            verb: "list",
            resource: "endpointslices",
            group: "discovery.k8s.io",
        };
        let faults = [
            (Fault::Unauthorized, "check the user in /etc/k"),
            (Fault::Forbidden, "apiGroups: [\"discovery.k8s.io\"], resources: [endpointslices]"),
            (Fault::Refused, "check that the server runs"),
            (Fault::Tls("unknown issuer".into()), "check `certificate-authority` in /etc/k"),
            (Fault::Timeout(Duration::from_secs(30)), "no answer within 30s"),
            (Fault::Foreign("the answer is HTML".into()), "check `server` in /etc/k"),
        ];
        for (fault, want) in faults {
            let line = fault.explain(attempt, &hints);
            assert!(
                line.contains("endpointslices at https://10.0.0.1:6443") && line.contains(want),
                "{line}"
            );
            assert!(!line.contains('\n'));
        }
    }
}
