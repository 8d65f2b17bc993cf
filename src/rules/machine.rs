//! The rest of the seam to the machine, beside [`Firewall`]: sets as a list, routes, and what the kernel has.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;

use nix::errno::Errno;

use super::apply::{Backend, Family, Firewall, HostTools, ToolError, run_tool};
use super::legacy::conntrack;
use super::nft::{self, Removal};
use super::routes::{self, Entry, RouteError, Standing};
use super::scratch::{self, Feature};
use crate::model::Frontend;
use crate::net::link;

/// What became of a look at what the packet filter can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lacks {
    /// All that is needed is there.
    Nothing,
    /// Something is missing, and that is what the program said.
    Something(String),
    /// It cannot be tried beforehand: that takes a network namespace, which few may make.
    Unknown,
}

/// Everything the reconciler needs of one network namespace.
pub trait Machine: Firewall {
    /// The text of `ipset list -terse`. `Ok(None)` if the tool or the kernel has no sets.
    fn ipset_list(&self) -> impl Future<Output = Result<Option<String>, ToolError>> + Send;

    /// Routes and policy rules as they stand.
    fn standing(&self) -> impl Future<Output = Result<Standing, RouteError>> + Send;

    /// Adds routes and policy rules, in this order. An answer for each of them.
    fn add_entries(
        &self,
        entries: &[Entry],
    ) -> impl Future<Output = Result<Vec<Result<(), RouteError>>, RouteError>> + Send;

    /// Removes routes and policy rules, in this order, going on after a fault.
    fn remove_entries(&self, entries: &[Entry]) -> impl Future<Output = Result<(), RouteError>> + Send;

    /// Whether the kernel has policy routing for these families.
    fn has_policy_routing(&self, _families: &[Family]) -> impl Future<Output = bool> + Send {
        async { true }
    }

    /// Why processes of this machine cannot send to an address, as the kernel says it; `None` if they can.
    fn obstacle(&self, _ip: IpAddr) -> impl Future<Output = Result<Option<Errno>, RouteError>> + Send {
        async { Ok(None) }
    }

    /// Addresses and links that listeners of ours brought along, each as a line for people.
    fn own_addresses(&self) -> impl Future<Output = Result<Vec<String>, RouteError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Removes them.
    fn remove_own_addresses(&self) -> impl Future<Output = Result<(), RouteError>> + Send {
        async { Ok(()) }
    }

    /// Takes away nft tables in which nothing is but the mark that they are ours: all of them or none. Nothing is done
    /// either if the rules are not those of `generation` any more, see [`Self::nft_generation`].
    fn remove_tables(
        &self,
        family: Family,
        tables: &[&str],
        generation: Option<u32>,
    ) -> std::io::Result<Removal>;

    /// Deletes the connection-tracking entries of UDP flows to these frontends. Returns how many there were.
    fn forget_flows(&self, frontends: &BTreeSet<Frontend>) -> anyhow::Result<u64>;

    /// A number that is another one after any change to any nft rule. `None` where it cannot be had; then the rules
    /// themselves have to be read.
    fn nft_generation(&self) -> Option<u32> {
        None
    }

    /// Whether this machine has all of `features`.
    fn lacks(
        &self,
        _: Backend,
        _v6: bool,
        _features: &'static [Feature],
    ) -> impl Future<Output = Lacks> + Send {
        async { Lacks::Nothing }
    }

    /// Links, or `all`, on which the kernel looks for the way back to a packet's sender by the packet's mark.
    fn follows_marks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the kernel has IPv6 and it is not switched off at boot.
    fn has_ipv6(&self) -> bool;

    /// Whether the process may change the packet filter.
    fn may_administer(&self) -> bool;
}

impl Machine for HostTools {
    async fn ipset_list(&self) -> Result<Option<String>, ToolError> {
        match run_tool("ipset", &["list", "-terse"], None, "ipset").await {
            Ok(text) => Ok(Some(text)),
            Err(ToolError::Missing { .. } | ToolError::Failed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn standing(&self) -> Result<Standing, RouteError> {
        routes::standing().await
    }

    async fn add_entries(&self, entries: &[Entry]) -> Result<Vec<Result<(), RouteError>>, RouteError> {
        routes::add(entries).await
    }

    async fn remove_entries(&self, entries: &[Entry]) -> Result<(), RouteError> {
        routes::remove(entries).await
    }

    async fn has_policy_routing(&self, families: &[Family]) -> bool {
        // Where it cannot be told, it is nearly certain.
        routes::has_policy_routing(families).await.unwrap_or(true)
    }

    async fn obstacle(&self, ip: IpAddr) -> Result<Option<Errno>, RouteError> {
        routes::obstacle(ip).await
    }

    async fn own_addresses(&self) -> Result<Vec<String>, RouteError> {
        let failed = |source| RouteError { what: "listing addresses".to_owned(), source };
        link::leftovers().await.map_err(failed)
    }

    async fn remove_own_addresses(&self) -> Result<(), RouteError> {
        let failed = |source| RouteError { what: "removing own addresses".to_owned(), source };
        link::remove().await.map_err(failed)
    }

    fn remove_tables(
        &self,
        family: Family,
        tables: &[&str],
        generation: Option<u32>,
    ) -> std::io::Result<Removal> {
        nft::remove_tables(family, tables, generation)
    }

    fn forget_flows(&self, frontends: &BTreeSet<Frontend>) -> anyhow::Result<u64> {
        conntrack::forget(frontends)
    }

    fn nft_generation(&self) -> Option<u32> {
        nft::generation().ok().flatten()
    }

    async fn lacks(&self, backend: Backend, v6: bool, features: &'static [Feature]) -> Lacks {
        for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || v6) {
            match scratch::lacking(backend, family, features).await {
                Ok(lacks) => {
                    if let Some(lack) = lacks.into_iter().next() {
                        return Lacks::Something(lack.said);
                    }
                }
                Err(why) => {
                    tracing::debug!(why, "what the packet filter can do shows when rules are installed");
                    return Lacks::Unknown;
                }
            }
        }
        Lacks::Nothing
    }

    fn follows_marks(&self) -> Vec<String> {
        let links = std::fs::read_dir(CONF).into_iter().flatten().flatten();
        let on = links.filter(|link| {
            let value = std::fs::read_to_string(link.path().join("src_valid_mark"));
            value.is_ok_and(|value| value.trim() != "0")
        });
        let mut names: Vec<String> = on.filter_map(|link| link.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    fn has_ipv6(&self) -> bool {
        std::path::Path::new("/proc/thread-self/net/if_inet6").exists()
    }

    fn may_administer(&self) -> bool {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        effective_capabilities(&status).is_none_or(|set| set & (1 << CAP_NET_ADMIN) != 0)
    }
}

/// One folder for each link, and `all` for every link.
const CONF: &str = "/proc/sys/net/ipv4/conf";

/// Bit number of `CAP_NET_ADMIN`, `linux/capability.h`.
pub const CAP_NET_ADMIN: u32 = 12;

/// Bit number of `CAP_NET_RAW`, `linux/capability.h`.
pub const CAP_NET_RAW: u32 = 13;

/// The effective capabilities in the text of `/proc/PID/status`; `None` if it does not say.
pub fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}
