//! Which of the two iptables back ends this node uses, and whether it serves IPv6.
//!
//! The kubelet and edgecore leave hint chains in the back end they use; whoever writes into the other one writes
//! rules that fight or that nobody sees. Rules are never counted: stale rules of a former back end are common.

use super::apply::{Backend, Family, ToolError};
use super::machine::Machine;
use crate::config::IptablesBackend;

/// The chains that the kubelet and edgecore create to show which back end is in use (KEP-3178).
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// The rules cannot be worked with on this machine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No right to change the packet filter.
    #[error(
        "no right to change the packet filter: run as root, or with the capability CAP_NET_ADMIN \
         (in a container: `securityContext.capabilities.add: [NET_ADMIN, NET_RAW]`)"
    )]
    NotPermitted,
    /// Neither back end's programs are installed.
    #[error(
        "neither `iptables-nft-restore` nor `iptables-legacy-restore` is installed; install the package `iptables`"
    )]
    NoPrograms,
    /// The back end asked for is not installed.
    #[error(
        "intercept.iptablesBackend is `{0}`, but `iptables-{0}-restore` is not installed; install the package \
         `iptables`, or set `auto`"
    )]
    NotInstalled(&'static str),
    /// No back end works.
    #[error("the packet filter cannot be read: {0}")]
    Unusable(#[source] ToolError),
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detection {
    /// The back end to use.
    pub backend: Backend,
    /// Why this one, in words.
    pub why: String,
    /// Whether a hint chain decided.
    pub hinted: bool,
    /// Whether IPv6 can be served.
    pub v6: bool,
    /// Why not, in words; empty where it can.
    pub no_v6: String,
}

/// One back end's dumps: both families together, or why there are none.
enum Seen {
    Text(String),
    Absent,
    Broken(ToolError),
}

/// Chooses the back end and looks for IPv6.
pub async fn detect<M: Machine>(machine: &M, setting: IptablesBackend) -> Result<Detection, StartError> {
    if !machine.may_administer() {
        return Err(StartError::NotPermitted);
    }
    let set = match setting {
        IptablesBackend::Nft => Some(Backend::Nft),
        IptablesBackend::Legacy => Some(Backend::Legacy),
        IptablesBackend::Auto => None,
    };
    let (backend, why, hinted, v6) = if let Some(backend) = set {
        let (seen, v6) = look(machine, backend).await;
        match seen {
            Seen::Text(_) => (backend, "set by intercept.iptablesBackend".to_owned(), false, v6),
            Seen::Absent => return Err(StartError::NotInstalled(backend.as_str())),
            Seen::Broken(error) => return Err(StartError::Unusable(error)),
        }
    } else {
        let ((nft, nft_v6), (legacy, legacy_v6)) =
            tokio::join!(look(machine, Backend::Nft), look(machine, Backend::Legacy));
        let (backend, why, hinted) = choose(nft, legacy)?;
        (backend, why, hinted, if backend == Backend::Nft { nft_v6 } else { legacy_v6 })
    };
    let no_v6 = if machine.has_ipv6() {
        match v6 {
            Ok(true) => String::new(),
            Ok(false) => format!("`ip6tables-{}-save` is not installed", backend.as_str()),
            Err(error) => error.to_string(),
        }
    } else {
        "the kernel has no IPv6".to_owned()
    };
    Ok(Detection { backend, why, hinted, v6: no_v6.is_empty(), no_v6 })
}

/// The dumps of one back end, and whether it has IPv6. That may be missing; its hints then are, too.
async fn look<M: Machine>(machine: &M, backend: Backend) -> (Seen, Result<bool, ToolError>) {
    let (v4, v6) = tokio::join!(machine.save(backend, Family::V4), machine.save(backend, Family::V6));
    let seen = match v4 {
        Ok(None) => Seen::Absent,
        Err(error) => Seen::Broken(error),
        Ok(Some(mut text)) => {
            if let Ok(Some(more)) = &v6 {
                text.push_str(more);
            }
            Seen::Text(text)
        }
    };
    (seen, v6.map(|text| text.is_some()))
}

/// A hint in nft, else a hint in legacy, else nft, else what there is.
fn choose(nft: Seen, legacy: Seen) -> Result<(Backend, String, bool), StartError> {
    let hint = |text: &str| HINTS.into_iter().find(|hint| text.lines().any(|line| line.starts_with(hint)));
    for (backend, seen) in [(Backend::Nft, &nft), (Backend::Legacy, &legacy)] {
        if let Seen::Text(text) = seen
            && let Some(hint) = hint(text)
        {
            let hint = hint.trim_matches([':', ' ']);
            return Ok((backend, format!("chain {hint} is in it"), true));
        }
    }
    match (nft, legacy) {
        (Seen::Text(_), _) => Ok((Backend::Nft, "no hint chain in either back end".to_owned(), false)),
        (Seen::Absent, Seen::Text(_)) => {
            Ok((Backend::Legacy, "the nft programs are not installed".to_owned(), false))
        }
        (Seen::Broken(error), Seen::Text(_)) => {
            Ok((Backend::Legacy, format!("the nft back end does not work: {error}"), false))
        }
        (Seen::Broken(error), _) | (Seen::Absent, Seen::Broken(error)) => Err(StartError::Unusable(error)),
        (Seen::Absent, Seen::Absent) => Err(StartError::NoPrograms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(chain: &str) -> Seen {
        Seen::Text(format!("*mangle\n:PREROUTING ACCEPT [0:0]\n:{chain} - [0:0]\nCOMMIT\n"))
    }

    fn broken() -> Seen {
        Seen::Broken(ToolError::Failed {
            program: "iptables-nft-save".to_owned(),
            status: "exit status: 1".to_owned(),
            stderr: "Could not fetch rule set generation id".to_owned(),
        })
    }

    #[test]
    fn a_hint_decides_and_nft_is_asked_first() {
        for hint in ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"] {
            assert_eq!(choose(text(hint), text(hint)).unwrap().0, Backend::Nft);
            assert_eq!(choose(text("X"), text(hint)).unwrap().0, Backend::Legacy);
        }
    }

    #[test]
    fn a_chain_that_only_looks_like_a_hint_does_not_count() {
        assert_eq!(choose(text("X"), text("KUBE-IPTABLES-HINT2")).unwrap().0, Backend::Nft);
    }

    #[test]
    fn takes_what_there_is() {
        assert_eq!(choose(Seen::Absent, text("X")).unwrap().0, Backend::Legacy);
        assert_eq!(choose(broken(), text("X")).unwrap().0, Backend::Legacy);
        assert!(matches!(choose(Seen::Absent, Seen::Absent), Err(StartError::NoPrograms)));
        assert!(matches!(choose(broken(), Seen::Absent), Err(StartError::Unusable(_))));
    }
}
