//! Answers without a running agent: what `rules`, `resolve --source` and `check` need, and the opening of the source
//! that `run` shares with them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::config::{DnsMode, Settings, SourceKind, UsageError};
use crate::dns;
use crate::model::{Snapshot, Store, explain};
use crate::net::sock;
use crate::obs::api::{Finding, Resolution, Severity};
use crate::rules::apply::{Family, HostTools};
use crate::rules::{self, Capabilities, Reconciler, Wanted, plan, render};
use crate::source::manifests::{self, Loaded, ManifestSource};
use crate::source::{Sink, Source, SourceState, SourceStatus};

use super::control;

/// A source that has been opened: what can be wrong with the user's input is known.
pub(super) enum Opened {
    Manifests(ManifestSource),
}

impl Opened {
    /// Its first status, until it reports one of its own.
    pub(super) fn status(&self) -> SourceStatus {
        let kind = match self {
            Self::Manifests(_) => "manifests",
        };
        SourceStatus { kind, state: SourceState::Synced, fresh_at: Instant::now(), message: String::new() }
    }

    /// Runs it until `stop`.
    pub(super) async fn run(self, sink: Sink, stop: CancellationToken) {
        let result = match self {
            Self::Manifests(source) => source.run(sink, stop).await,
        };
        if let Err(error) = result {
            tracing::error!("the source has ended: {error:#}");
        }
    }
}

/// Opens the source that the settings name. A bad document is the user's to mend: exit code 64.
pub(super) fn open(settings: &Settings) -> anyhow::Result<Opened> {
    let (path, loaded) = load(settings)?;
    Ok(Opened::Manifests(ManifestSource::new(path, loaded)))
}

fn load(settings: &Settings) -> anyhow::Result<(PathBuf, Loaded)> {
    let path = match (settings.source.kind, &settings.source.manifests) {
        (SourceKind::Manifests | SourceKind::Auto, Some(path)) => path,
        (SourceKind::Manifests, None) => {
            return Err(UsageError::new(
                "source.kind is `manifests`, but no path is given; name a file or folder with --manifests PATH",
            )
            .into());
        }
        (SourceKind::Auto, None) => {
            return Err(UsageError::new(
                "no source: give a file or folder with --manifests PATH (this version has no other source)",
            )
            .into());
        }
        (SourceKind::Kubernetes | SourceKind::MetaServer, _) => {
            return Err(UsageError::new(
                "source.kind: this version reads `manifests` only; name a file or folder with --manifests PATH",
            )
            .into());
        }
    };
    let loaded = manifests::load(path).map_err(|fault| UsageError::new(fault.to_string()))?;
    Ok((path.clone(), loaded))
}

/// The snapshot and the ranges that `run` would begin with.
async fn begin(settings: &Settings) -> anyhow::Result<(Arc<Snapshot>, Vec<IpNet>)> {
    let (_, loaded) = load(settings)?;
    let mut local = control::local(settings, settings.proxy.port, Vec::new()).await;
    let mut store = Store::new(local.clone());
    store.replace(loaded.objects);
    let first = store.snapshot();
    let ranges = control::captured(settings, &first, &local, &[]);
    local.captured.clone_from(&ranges);
    store.set_local(local);
    Ok((store.snapshot(), ranges))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// Explains one destination from the source itself, without a running agent.
pub fn resolve_offline(settings: &Settings, target: &str) -> anyhow::Result<Resolution> {
    let (snapshot, ranges) = runtime()?.block_on(begin(settings))?;
    explain::resolve(&snapshot, &ranges, target, &settings.dns.domain, &|_, _| None)
        .map_err(|error| UsageError::new(error.to_string()).into())
}

/// The rules that `run` would install now, in `iptables-save` form, one text after the other for IPv4 and IPv6.
/// What is not an iptables rule (sets, routes) stands in comments.
pub fn render_rules(settings: &Settings) -> anyhow::Result<String> {
    runtime()?.block_on(async {
        let (snapshot, ranges) = begin(settings).await?;
        // Without the right to look, the full form is shown: that is what `run` installs where everything is there.
        let (capabilities, backend) = match Reconciler::new(HostTools, &settings.intercept).await {
            Ok(reconciler) => (reconciler.capabilities(), Some(reconciler.backend())),
            Err(_) => (Capabilities { ipset: true, v6: true, policy_routing: true }, None),
        };
        let mut text = String::new();
        let proxy_port = match settings.proxy.port {
            0 => {
                let port = free_port()?;
                let _ =
                    writeln!(text, "# proxy.port is 0: run takes any free port; {port} stands for it here");
                port
            }
            port => port,
        };
        let dns = settings.dns.mode == DnsMode::Auto;
        let mut served = control::served(&snapshot);
        if dns {
            served.extend(control::dns_frontends(&snapshot));
        }
        let wanted = Wanted {
            ranges,
            skip: control::skipped(&snapshot),
            served,
            listeners: settings.dns.listen.iter().copied().filter(|_| dns).collect(),
            proxy_port,
            own_mark: settings.intercept.own_mark,
            refuse_mark: settings.intercept.refuse_mark,
        };
        let plan = plan::plan(&wanted, capabilities);
        for family in &plan.families {
            for entry in &family.entries {
                let _ = writeln!(text, "# route: {entry}");
            }
            if family.sets {
                let count = |served: usize, skipped: usize| {
                    format!("{served} served frontends, {skipped} addresses left alone")
                };
                let of = |v4: bool| {
                    (
                        wanted.served.iter().filter(|frontend| frontend.ip.is_ipv4() == v4).count(),
                        wanted.skip.iter().filter(|ip| ip.is_ipv4() == v4).count(),
                    )
                };
                let (served, skipped) = of(family.family == Family::V4);
                let _ = writeln!(text, "# sets ({}): {}", family.family.as_str(), count(served, skipped));
            }
        }
        for (family, rules) in render::save_form(&plan) {
            let program = match (backend, family) {
                (Some(backend), family) => rules::apply::program_name(backend, family, "restore"),
                (None, Family::V4) => "iptables-restore".to_owned(),
                (None, Family::V6) => "ip6tables-restore".to_owned(),
            };
            let _ = writeln!(text, "# {} for {program}", family.as_str());
            text.push_str(&rules);
        }
        Ok(text)
    })
}

/// A port that is free just now.
fn free_port() -> anyhow::Result<u16> {
    let listener = sock::listen(0, false).context("cannot find a free port")?;
    Ok(sock::local_addr(&listener)?.port())
}

/// What would stop the agent on this machine, or make it work wrongly.
pub fn check(settings: &Settings) -> Vec<Finding> {
    let Ok(runtime) = runtime() else { return Vec::new() };
    let mut findings: Vec<Finding> =
        runtime.block_on(rules::findings(&settings.intercept)).into_iter().map(from_rules).collect();
    findings.extend(runtime.block_on(dns::probe::findings(&settings.dns)));
    if settings.source.manifests.is_some()
        && let Err(error) = load(settings)
    {
        findings.push(Finding {
            id: "source-manifests".to_owned(),
            severity: Severity::Problem,
            what: format!("{error:#}"),
            mend: "mend the file; `edgesplice run` refuses to start with it".to_owned(),
        });
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn from_rules(finding: rules::Finding) -> Finding {
    Finding {
        id: finding.id.to_owned(),
        severity: match finding.severity {
            rules::Severity::Problem => Severity::Problem,
            rules::Severity::Warning => Severity::Warning,
            rules::Severity::Info => Severity::Info,
        },
        what: finding.what,
        mend: finding.mend,
    }
}
