//! `edgesplice cleanup`

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use super::{Context, Exit, Output, out};
use crate::app;
use crate::config::Settings;
use crate::rules;
use crate::rules::apply::HostTools;
use crate::rules::legacy::{self, ItemReport, Options, Report, Request, Roots};

/// Arguments of `cleanup`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Show what would go and what would stay; change nothing
    #[arg(long, env = "EDGESPLICE_DRY_RUN", hide_env_values = true, value_parser = super::flags::switch)]
    dry_run: bool,
    /// Folder for the copy of all rules [default: a new folder in the state folder]
    #[arg(long, value_name = "DIR", env = "EDGESPLICE_BACKUP", hide_env_values = true)]
    backup: Option<PathBuf>,
    /// Also remove what something live still uses, and jumps that EdgeMesh did not write
    #[arg(long, env = "EDGESPLICE_FORCE", hide_env_values = true, value_parser = super::flags::switch)]
    force: bool,
    /// Also look into the network namespaces of pods, where KubeEdge v1.0 to v1.2 put rules
    #[arg(long, env = "EDGESPLICE_POD_NETNS", hide_env_values = true, value_parser = super::flags::switch)]
    pod_netns: bool,
    /// Also remove the chain PORT-MAP that KubeEdge's old guide told people to type
    #[arg(
        long,
        env = "EDGESPLICE_HOST_MANUAL_RULES",
        hide_env_values = true,
        value_parser = super::flags::switch
    )]
    host_manual_rules: bool,
    /// EdgeMesh's own address, if `bridgeDeviceIP` was configured [default: 169.254.96.16]
    #[arg(long, value_name = "ADDR", env = "EDGESPLICE_MESH_ADDRESS", hide_env_values = true)]
    mesh_address: Option<IpAddr>,
    /// State folder [default: /var/lib/edgesplice]
    #[arg(long, value_name = "DIR", env = "EDGESPLICE_STATE_DIR", hide_env_values = true)]
    state_dir: Option<String>,
}

/// Removes what older EdgeMesh versions and this program left.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.start()?;
    if args.backup.is_none() {
        app::refuse_impossible(&settings.state_dir)?;
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "cleanup must run as root, which reading and changing packet-filter rules needs (CAP_NET_ADMIN); use sudo"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let request = request(args, &settings);
    let report = runtime.block_on(async {
        let report = legacy::clean(&HostTools, &Roots::default(), &request).await?;
        if !args.dry_run && (args.force || app::holder().is_none()) {
            // What an older version cannot have left: the tables that only this program's rules needed.
            rules::remove_leftovers(&HostTools)
                .await
                .context("this program's own leftovers could not be removed")?;
        }
        anyhow::Ok(report)
    })?;
    match context.output {
        Output::Table => out::print(&text(&report))?,
        Output::Json => out::print_json(&report)?,
    }
    Ok(if report.blocked { Exit::Found } else { Exit::Done })
}

fn request(args: &Args, settings: &Settings) -> Request {
    Request {
        options: Options {
            force: args.force,
            host_manual_rules: args.host_manual_rules,
            mesh_address: args.mesh_address,
            pod: false,
            own_servers: app::own_servers(settings),
            // Unless an agent runs already, nobody answers there, and a line that leads there is dead like any other.
            starting: false,
        },
        dry_run: args.dry_run,
        backup: args
            .backup
            .clone()
            .unwrap_or_else(|| legacy::default_folder(&settings.state_dir, SystemTime::now())),
        pod_netns: args.pod_netns,
    }
}

/// What goes, what stays and why, table by table, and how to get the rules back.
fn text(report: &Report) -> String {
    let mut text = String::new();
    let removed = if report.dry_run { "would remove" } else { "removed" };
    for version in &report.versions {
        let _ = writeln!(text, "found      {version}");
    }
    for reason in &report.refused {
        let _ = writeln!(text, "alive      {}", out::plain(reason));
    }
    for ruleset in &report.rulesets {
        let place = ruleset.netns.as_ref().map(|netns| format!(" in {netns}")).unwrap_or_default();
        for table in &ruleset.tables {
            let _ = writeln!(text, "\n{} {} {}{place}", ruleset.backend, ruleset.family, table.name);
            for rule in &table.removed_rules {
                let _ = writeln!(text, "  {removed}  {}", out::plain(rule));
            }
            for chain in &table.removed_chains {
                let _ = writeln!(text, "  {removed}  -N {}", out::plain(chain));
            }
            for kept in &table.kept {
                let _ = writeln!(
                    text,
                    "  kept  {}\n        {}",
                    out::plain(&kept.rule),
                    out::plain(&kept.reason)
                );
            }
        }
    }
    items(&mut text, "links", removed, &report.links);
    items(&mut text, "routes", removed, &report.routes);
    items(&mut text, "policy rules", removed, &report.policy_rules);
    items(&mut text, "sets", removed, &report.sets);
    items(&mut text, "files", removed, &report.files);
    if report.conntrack_deleted > 0 {
        let _ = writeln!(text, "\nconnections to dead proxies ended: {}", report.conntrack_deleted);
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {}", out::plain(note));
    }
    if report.is_empty() {
        let _ = writeln!(text, "nothing found");
    }
    if let Some(backup) = &report.backup {
        let _ = writeln!(text, "\nbackup: {backup}");
    }
    if let Some(command) = &report.restore {
        let _ = writeln!(text, "put the rules back with: {command}");
    }
    text.trim_start_matches('\n').to_owned()
}

fn items(text: &mut String, heading: &str, removed: &str, items: &[ItemReport]) {
    if items.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{heading}");
    for item in items {
        let action = if item.action == "removed" { removed } else { item.action };
        let _ = writeln!(text, "  {action}  {} ({})", out::plain(&item.name), out::plain(&item.reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::legacy::{KeptReport, RulesetReport, TableReport};

    fn report() -> Report {
        Report {
            backup: Some("/b".to_owned()),
            restore: Some("iptables-nft-restore -c < '/b/nft-ipv4.rules'".to_owned()),
            versions: vec!["EdgeMesh v1.8.0".to_owned()],
            rulesets: vec![RulesetReport {
                netns: None,
                backend: "nft",
                family: "ipv4",
                tables: vec![TableReport {
                    name: "nat".to_owned(),
                    removed_chains: vec!["EDGE-MESH".to_owned()],
                    removed_rules: vec!["-A OUTPUT -j EDGE-MESH".to_owned()],
                    kept: vec![KeptReport {
                        rule: "-N EDGE-MESH-X".to_owned(),
                        reason: "not ours".to_owned(),
                    }],
                }],
            }],
            links: vec![ItemReport {
                name: "edgemesh0".to_owned(),
                action: "removed",
                reason: "old".to_owned(),
            }],
            ..Report::default()
        }
    }

    #[test]
    fn says_what_goes_what_stays_and_how_to_get_it_back() {
        insta::assert_snapshot!(text(&report()), @r"
        found      EdgeMesh v1.8.0

        nft ipv4 nat
          removed  -A OUTPUT -j EDGE-MESH
          removed  -N EDGE-MESH
          kept  -N EDGE-MESH-X
                not ours

        links
          removed  edgemesh0 (old)

        backup: /b
        put the rules back with: iptables-nft-restore -c < '/b/nft-ipv4.rules'
        ");
        assert_eq!(text(&Report::default()), "nothing found\n");
    }

    #[test]
    fn the_json_has_the_fields_of_the_contract() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["dryRun"], false);
        assert_eq!(json["rulesets"][0]["tables"][0]["removedChains"][0], "EDGE-MESH");
        assert_eq!(json["rulesets"][0]["tables"][0]["kept"][0]["reason"], "not ours");
        assert_eq!(json["links"][0]["action"], "removed");
        for field in ["backup", "routes", "files", "conntrackDeleted"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(serde_json::to_value(Report::default()).unwrap()["backup"], serde_json::Value::Null);
    }
}
