//! What the kernel does with packet marks when it asks where a packet came from.

use super::finding;
use crate::obs::api::{Finding, Severity};
use crate::rules::Machine;
use crate::rules::apply::HostTools;

/// What backends answer to clients whose address they see is led by a mark to this machine itself, whoever the client
/// is. With `src_valid_mark` (`wg-quick` sets it) the kernel follows the mark on the way back to a sender as well.
pub(super) fn check() -> Vec<Finding> {
    let on = HostTools.follows_marks();
    if on.is_empty() {
        return Vec::new();
    }
    let what = format!(
        "net.ipv4.conf.{}.src_valid_mark is 1: backends see this node's address whatever \
         `edgesplice.io/source-address: preserve` says; if it is set while such a Service is served, pods get no answer \
         from UDP services and a timeout where they should be refused. Without such Services it does no harm",
        on.join(", ")
    );
    let mend: Vec<String> =
        on.iter().map(|link| format!("sysctl -w net.ipv4.conf.{link}.src_valid_mark=0")).collect();
    vec![finding("src-valid-mark", Severity::Info, what, mend.join("; "))]
}
