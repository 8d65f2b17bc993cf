//! Every name this program leaves on a node. `cleanup` removes exactly these, the reconciler writes nothing else.

/// Chain in table `nat`: redirects captured connections to the acceptor.
pub const NAT_CHAIN: &str = "EDGESPLICE";
/// Chain in table `mangle`: marks new packets to captured ranges that nobody serves.
pub const MANGLE_CHAIN: &str = "EDGESPLICE";
/// Chain in table `filter`, from `INPUT`: refuses marked packets, guards the acceptor's port.
pub const INPUT_CHAIN: &str = "EDGESPLICE-INPUT";
/// Chain in table `filter`, from `FORWARD`: refuses what would loop through the route to `lo`.
pub const FORWARD_CHAIN: &str = "EDGESPLICE-FORWARD";
/// Comment on every rule this program writes outside and inside its own chains.
pub const COMMENT: &str = "edgesplice";
/// Prefix of the names of all ip sets.
pub const SET_PREFIX: &str = "edgesplice-";
/// Routing protocol number of the routes this program adds, shown by `ip route` as `proto 237`; unassigned in
/// iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 237;
