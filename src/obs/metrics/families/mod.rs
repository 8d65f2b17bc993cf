//! Every family of metrics, in the order of the exposition. `docs/metrics.md` is made from these tables. What does not
//! belong here: how numbers are counted, and how series are written.

mod agent;
mod host;
mod http;
mod traffic;

use super::encode::Family;

/// All families under the headings of the documentation.
pub(super) const GROUPS: &[(&str, &[Family])] = &[
    ("The agent", agent::AGENT),
    ("Source and snapshot", agent::SOURCE),
    ("Data plane", traffic::PROXY),
    ("Names", traffic::NAMES),
    ("Rules", agent::RULES),
    ("Service ports and backends", traffic::SERVICES),
    ("HTTP", http::HTTP),
    ("The machine's network", host::MACHINE),
    ("Process and runtimes", host::PROCESS),
];
