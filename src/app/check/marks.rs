//! What the kernel does with packet marks when it asks where a packet came from.

use std::fs;

use super::finding;
use crate::obs::api::{Finding, Severity};

/// One folder for each link, and `all` for every link.
const FOLDER: &str = "/proc/sys/net/ipv4/conf";

/// Served datagrams and refused packets are led by a mark to this machine itself. With `src_valid_mark` (`wg-quick`
/// sets it) the kernel follows the mark on the way back to the sender as well, finds itself there, and drops them.
pub(super) fn check() -> Vec<Finding> {
    let links = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut on: Vec<String> = links
        .filter(|link| {
            fs::read_to_string(link.path().join("src_valid_mark")).is_ok_and(|value| value.trim() != "0")
        })
        .filter_map(|link| link.file_name().into_string().ok())
        .collect();
    on.sort();
    if on.is_empty() {
        return Vec::new();
    }
    let what = format!(
        "net.ipv4.conf.{}.src_valid_mark is 1: pods get no answer from UDP services, and a timeout where they should be \
         refused",
        on.join(", ")
    );
    let mend: Vec<String> =
        on.iter().map(|link| format!("sysctl -w net.ipv4.conf.{link}.src_valid_mark=0")).collect();
    vec![finding("src-valid-mark", Severity::Problem, what, mend.join("; "))]
}
