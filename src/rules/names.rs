//! Every name and number this program leaves on a node. `cleanup` removes exactly these, the reconciler writes
//! nothing else.

use super::apply::Family;

/// Chain in table `nat`: redirects captured connections to the acceptor.
pub const NAT_CHAIN: &str = "EDGESPLICE";
/// Chain in table `mangle`: marks new packets to captured ranges that nobody serves.
pub const MANGLE_CHAIN: &str = "EDGESPLICE";
/// Chain in table `filter`, from `INPUT`: refuses marked packets, guards the acceptor's port.
pub const INPUT_CHAIN: &str = "EDGESPLICE-INPUT";
/// Chain in table `filter`, from `FORWARD`: refuses what would loop through the route to `lo`.
pub const FORWARD_CHAIN: &str = "EDGESPLICE-FORWARD";
/// Chain in table `filter`, from `OUTPUT`: refuses marked packets of this node's own processes.
pub const OUTPUT_CHAIN: &str = "EDGESPLICE-OUTPUT";
/// Chain in table `mangle`: lets go on what was held and comes a second time.
pub const HELD_CHAIN: &str = "EDGESPLICE-HELD";
/// Chain in table `mangle`: leads to this machine what backends answer to clients whose address they see.
pub const HOME_CHAIN: &str = "EDGESPLICE-HOME";
/// The first of the queues in which clients' first packets are held; there are as many as the data plane has threads.
pub const FIRST_QUEUE: u16 = 23_700;
/// An empty chain in each nft table that did not exist before this program made it. It outlives a killed agent, so
/// that whoever withdraws the rules knows to take the table away as well, and is made and goes in one transaction with it.
pub const CREATED_CHAIN: &str = "EDGESPLICE-CREATED";
/// Comment on every rule in own chains but those that nearly every packet of the node meets; jumps to own chains have none.
pub const COMMENT: &str = "edgesplice";
/// Prefix of the names of all ip sets.
pub const SET_PREFIX: &str = "edgesplice-";
/// Routing protocol number of the routes and policy rules this program adds, shown by `ip route` as `proto 237`;
/// unassigned in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 237;
/// The routing table that delivers packets to this machine itself whatever their destination: refused ones, so that
/// it can answer them with a reset from the address the client dialled, and datagrams of served frontends.
pub const REFUSE_TABLE: u32 = 237;
/// Priority of the policy rule that leads them there: behind `local` (0), before `main` (32766).
pub const REFUSE_PRIORITY: u32 = 237;
/// The routing table that gives host processes a route to the captured ranges.
pub const RANGE_TABLE: u32 = 238;
/// Priority of the policy rule that leads there: before `main`, so that whatever route a range has there does not count,
/// and behind [`REFUSE_PRIORITY`].
pub const RANGE_PRIORITY: u32 = 238;

/// Whether a chain of that name belongs to this program, in whichever table.
pub fn is_own_chain(name: &str) -> bool {
    [NAT_CHAIN, INPUT_CHAIN, FORWARD_CHAIN, OUTPUT_CHAIN, HELD_CHAIN, HOME_CHAIN, CREATED_CHAIN]
        .contains(&name)
}

/// The set of the frontends that have a usable backend, `hash:ip,port`.
pub fn served_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "edgesplice-served-v4",
        Family::V6 => "edgesplice-served-v6",
    }
}

/// The set of the addresses inside captured ranges that are left alone, `hash:ip`.
pub fn skip_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "edgesplice-skip-v4",
        Family::V6 => "edgesplice-skip-v6",
    }
}

/// The sets behind external frontends, all but the last `hash:ip,port`; `ipset` says what is in each.
#[derive(Clone, Copy, Debug)]
pub struct ExternalSets {
    /// All that are captured.
    pub all: &'static str,
    /// Those that nobody is served at.
    pub nobody: &'static str,
    /// Those that clients of this node only are served at.
    pub here: &'static str,
    /// Where health checks are answered.
    pub health: &'static str,
    /// Those with source ranges.
    pub guarded: &'static str,
    /// Their source ranges, `hash:ip,port,net`.
    pub sources: &'static str,
}

/// The names of the sets behind external frontends.
pub fn external_sets(family: Family) -> ExternalSets {
    match family {
        Family::V4 => ExternalSets {
            all: "edgesplice-external-v4",
            nobody: "edgesplice-ext-none-v4",
            here: "edgesplice-ext-here-v4",
            health: "edgesplice-health-v4",
            guarded: "edgesplice-guarded-v4",
            sources: "edgesplice-sources-v4",
        },
        Family::V6 => ExternalSets {
            all: "edgesplice-external-v6",
            nobody: "edgesplice-ext-none-v6",
            here: "edgesplice-ext-here-v6",
            health: "edgesplice-health-v6",
            guarded: "edgesplice-guarded-v6",
            sources: "edgesplice-sources-v6",
        },
    }
}
