//! Machines that lack something: the real tools, but for one answer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use edgesplice::model::Frontend;
use edgesplice::rules::Machine;
use edgesplice::rules::apply::{Backend, Family, Firewall, HostTools, ToolError};
use edgesplice::rules::nft::Removal;
use edgesplice::rules::routes::{Entry, RouteError, Standing};
use nix::errno::Errno;

/// A machine on which `ipset` is not installed.
#[derive(Debug)]
pub(crate) struct WithoutIpset;

/// A machine on which something happens right before tables are removed: an error is the end of the process.
pub(crate) struct Disturbed<'a>(pub(crate) &'a (dyn Fn() -> std::io::Result<()> + Sync));

/// A machine whose kernel has one routing table.
#[derive(Debug)]
pub(crate) struct WithoutPolicyRouting;

macro_rules! real_firewall {
    () => {
        async fn save(&self, backend: Backend, family: Family) -> Result<Option<String>, ToolError> {
            HostTools.save(backend, family).await
        }
        async fn restore(&self, backend: Backend, family: Family, script: &str) -> Result<(), ToolError> {
            HostTools.restore(backend, family, script).await
        }
        async fn command(
            &self,
            backend: Backend,
            family: Family,
            args: &[&str],
        ) -> Result<String, ToolError> {
            HostTools.command(backend, family, args).await
        }
    };
}

macro_rules! real_tables {
    () => {
        fn remove_tables(
            &self,
            family: Family,
            tables: &[&str],
            generation: Option<u32>,
        ) -> std::io::Result<Removal> {
            HostTools.remove_tables(family, tables, generation)
        }
    };
}

macro_rules! real_machine {
    () => {
        async fn standing(&self) -> Result<Standing, RouteError> {
            HostTools.standing().await
        }
        async fn add_entries(&self, entries: &[Entry]) -> Result<Vec<Result<(), RouteError>>, RouteError> {
            HostTools.add_entries(entries).await
        }
        async fn remove_entries(&self, entries: &[Entry]) -> Result<(), RouteError> {
            HostTools.remove_entries(entries).await
        }
        async fn obstacle(&self, ip: IpAddr) -> Result<Option<Errno>, RouteError> {
            HostTools.obstacle(ip).await
        }
        fn forget_flows(&self, frontends: &BTreeSet<Frontend>) -> anyhow::Result<u64> {
            HostTools.forget_flows(frontends)
        }
        fn has_ipv6(&self) -> bool {
            HostTools.has_ipv6()
        }
        fn may_administer(&self) -> bool {
            HostTools.may_administer()
        }
    };
}

impl Firewall for WithoutIpset {
    real_firewall!();
    async fn ipset_restore(&self, _: &str) -> Result<(), ToolError> {
        Err(ToolError::Missing { program: "ipset".to_owned(), package: "ipset" })
    }
    async fn ipset_save(&self) -> Result<Option<String>, ToolError> {
        Ok(None)
    }
}

impl Machine for WithoutIpset {
    real_machine!();
    real_tables!();
    async fn ipset_list(&self) -> Result<Option<String>, ToolError> {
        Ok(None)
    }
}

macro_rules! real_sets {
    ($($machine:ty),+) => {$(
        impl Firewall for $machine {
            real_firewall!();
            async fn ipset_restore(&self, script: &str) -> Result<(), ToolError> {
                HostTools.ipset_restore(script).await
            }
            async fn ipset_save(&self) -> Result<Option<String>, ToolError> {
                HostTools.ipset_save().await
            }
        }
    )+};
}

real_sets!(WithoutPolicyRouting, Disturbed<'_>);

impl Machine for WithoutPolicyRouting {
    real_machine!();
    real_tables!();
    async fn ipset_list(&self) -> Result<Option<String>, ToolError> {
        HostTools.ipset_list().await
    }
    async fn has_policy_routing(&self, _: &[Family]) -> bool {
        false
    }
}

impl Machine for Disturbed<'_> {
    real_machine!();
    async fn ipset_list(&self) -> Result<Option<String>, ToolError> {
        HostTools.ipset_list().await
    }
    fn nft_generation(&self) -> Option<u32> {
        HostTools.nft_generation()
    }
    fn remove_tables(
        &self,
        family: Family,
        tables: &[&str],
        generation: Option<u32>,
    ) -> std::io::Result<Removal> {
        (self.0)()?;
        HostTools.remove_tables(family, tables, generation)
    }
}
