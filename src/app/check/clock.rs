//! The clock: certificates and the age of data hang on it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::process::Command;

use super::finding;
use crate::obs::api::{Finding, Severity};

/// 2024-01-01T00:00:00Z, in hours since 1970. A clock before that has been reset: boards without a battery start in 1970 or at the date of
/// their image.
const LATE_ENOUGH: Duration = Duration::from_hours(473_352);
/// The answer comes over the system bus, which may hang.
const PATIENCE: Duration = Duration::from_secs(2);
/// What mends both.
const MEND: &str = "timedatectl set-ntp true, or start chronyd";

/// Whether the clock is plausible, and kept so.
pub(super) async fn check() -> Option<Finding> {
    judge(SystemTime::now(), synchronised().await)
}

fn judge(now: SystemTime, synchronised: Option<bool>) -> Option<Finding> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let what = if since < LATE_ENOUGH {
        format!(
            "the clock says {}, which is years ago: certificates are not yet valid then",
            humantime::format_rfc3339_seconds(UNIX_EPOCH + since)
        )
    } else if synchronised == Some(false) {
        "the clock is not synchronised: certificates and the age of data will be judged wrongly".to_owned()
    } else {
        return None;
    };
    Some(finding("clock", Severity::Warning, what, MEND))
}

/// What the kernel says about the clock, through `timedatectl`: without unsafe code there is no `adjtimex`. `None`
/// where nothing can be said, as in a container.
async fn synchronised() -> Option<bool> {
    let mut command = Command::new("timedatectl");
    command.args(["show", "--property=NTPSynchronized", "--value"]).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    match output.stdout.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_former_years_and_one_nobody_sets_are_found() {
        let at = |year: u64| UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_557_600);
        let found = |now, synchronised| judge(now, synchronised).map(|finding| finding.what);
        assert_eq!(found(at(2026), Some(true)), None);
        assert_eq!(found(at(2026), None), None);
        assert!(found(at(2026), Some(false)).is_some_and(|what| what.contains("not synchronised")));
        assert!(found(at(1970), Some(true)).is_some_and(|what| what.contains("1970-01-01T00:00:00Z")));
        assert!(found(at(2023), None).is_some());
    }
}
