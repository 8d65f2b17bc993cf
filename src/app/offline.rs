//! Answers without a running agent: what `rules`, `resolve --source` and `check` need, and the opening of the source
//! that `run` shares with them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{DnsMode, Settings, SourceKind, UsageError};
use crate::life::pen::Pen;
use crate::model::explain::{self, Known};
use crate::model::{Snapshot, Store};
use crate::net::sock;
use crate::obs::api::Resolution;
use crate::rules::apply::{Family, HostTools};
use crate::rules::{self, Capabilities, Reconciler, Wanted, plan, render, routes};
use crate::source::cached::{CachedSource, Resumable as _};
use crate::source::choose::{Chosen, choose};
use crate::source::events::Recorder;
use crate::source::kubernetes::KubernetesSource;
use crate::source::manifests::{self, ManifestSource};
use crate::source::metaserver::MetaServerSource;
use crate::source::slim::Object;
use crate::source::{Sink, Source, SourceState, SourceStatus, Unreadable, Update};

use super::{control, doors, instance};

/// How long a command without an agent waits for the first full state of a live source. A MetaServer whose cloud is
/// away needs eight seconds and more for its first list.
const FIRST_STATE: Duration = Duration::from_secs(20);

/// A source that has been opened: what can be wrong with the user's input is known.
pub(super) enum Opened {
    Manifests(ManifestSource),
    Kubernetes(KubernetesSource),
    MetaServer(MetaServerSource),
}

impl Opened {
    /// Its first status, until it reports one of its own.
    pub(super) fn status(&self) -> SourceStatus {
        let (kind, state, message) = match self {
            Self::Manifests(_) => ("manifests", SourceState::Synced, ""),
            Self::Kubernetes(source) => (source.kind(), SourceState::Error, "not synced yet"),
            Self::MetaServer(source) => (source.kind(), SourceState::Error, "not synced yet"),
        };
        let unreadable = Unreadable::default();
        SourceStatus { kind, state, fresh_at: Instant::now(), message: message.to_owned(), unreadable }
    }

    /// What tells its cluster's users by events, where it can be told.
    pub(super) fn recorder(&self, node: &str) -> Option<Recorder> {
        match self {
            Self::Kubernetes(source) => Some(source.recorder(node)),
            // A MetaServer keeps what is written to it on the edge.
            Self::Manifests(_) | Self::MetaServer(_) => None,
        }
    }

    /// Runs it until `stop`. What a live source delivers is kept in the state folder and served from at once at the
    /// next start.
    pub(super) async fn run(self, settings: &Settings, sink: Sink, pen: Arc<Pen>, stop: CancellationToken) {
        let state_dir = &settings.state_dir;
        let result = match self {
            Self::Manifests(source) => source.run(sink, stop).await,
            Self::Kubernetes(source) => {
                let told = !settings.intercept.service_cidrs.is_empty();
                let source = if told { source.with_known_range() } else { source };
                CachedSource::new(source, state_dir).with_pen(pen).run(sink, stop).await
            }
            Self::MetaServer(source) => {
                CachedSource::new(source, state_dir).with_pen(pen).run(sink, stop).await
            }
        };
        if let Err(error) = result {
            tracing::error!("the source has ended: {error:#}");
        }
    }

    /// Its first full state, without the cache.
    async fn first(self) -> anyhow::Result<Vec<Object>> {
        let (updates, mut received) = mpsc::channel(1);
        let (status, report) = watch::channel(self.status());
        let sink = Sink { updates, status };
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        let run = async {
            match self {
                Self::Manifests(source) => source.run(sink, stop).await,
                Self::Kubernetes(source) => source.run(sink, stop).await,
                Self::MetaServer(source) => source.run(sink, stop).await,
            }
        };
        let first = async {
            while let Some(update) = received.recv().await {
                if let Update::Replace(objects) = update {
                    return Ok(objects);
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            objects = first => objects,
            ended = run => {
                ended?;
                bail!("the source has ended without a word")
            }
            () = tokio::time::sleep(FIRST_STATE) => {
                bail!("no full state from {} within {FIRST_STATE:?}: {}", report.borrow().kind, report.borrow().message)
            }
        }
    }
}

/// Opens the source that the settings name. A bad document, or a source that is not configured, is the user's to
/// mend: exit code 64.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<Opened> {
    match choose(settings).await {
        Ok(Chosen::Manifests(path)) => {
            let first = manifests::load(&path).map_err(|fault| UsageError::new(fault.to_string()))?;
            Ok(Opened::Manifests(ManifestSource::new(path, first)))
        }
        Ok(Chosen::Kubernetes(source)) => {
            Ok(Opened::Kubernetes(source.with_service_proxy_name(&settings.intercept.service_proxy_name)))
        }
        Ok(Chosen::MetaServer(source)) => Ok(Opened::MetaServer(source)),
        // Nothing was asked for and nothing was found, which may be otherwise in a minute.
        Err(error) if settings.source.kind == SourceKind::Auto && settings.source.kubeconfig.is_none() => {
            Err(error)
        }
        Err(error) => Err(UsageError::new(format!("{error:#}")).into()),
    }
}

/// Reads the manifests as a start would, where they are the source; touches nothing and asks nobody.
pub fn check_manifests(settings: &Settings) -> Result<(), UsageError> {
    let source = &settings.source;
    let chosen = matches!(source.kind, SourceKind::Auto | SourceKind::Manifests);
    let Some(path) = source.manifests.as_ref().filter(|_| chosen) else { return Ok(()) };
    manifests::load(path).map(drop).map_err(|fault| UsageError::new(fault.to_string()))
}

/// The snapshot and the ranges that `run` would begin with.
pub(super) async fn begin(settings: &Settings) -> anyhow::Result<(Arc<Snapshot>, Vec<IpNet>)> {
    let objects = open(settings).await?.first().await?;
    let mut local = control::local(settings, settings.proxy.port, Vec::new()).await;
    let mut store = Store::new(local.clone());
    store.replace(objects);
    let first = store.snapshot();
    let ranges = control::captured(settings, &first, &local, &[]);
    local.captured.clone_from(&ranges);
    // What a running agent has open is its, not in its way.
    let own = instance::sockets();
    local.listening = doors::listening(&store.exposed_ports(), |_, inode| own.contains(&inode));
    store.set_local(local);
    Ok((store.snapshot(), ranges))
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// Explains one destination from the source itself, without a running agent.
pub fn resolve_offline(settings: &Settings, target: &str) -> anyhow::Result<Resolution> {
    let (snapshot, ranges) = runtime()?.block_on(begin(settings))?;
    let names =
        if settings.dns.mode == DnsMode::Auto { control::dns_frontends(&snapshot) } else { BTreeSet::new() };
    let dns = settings.dns.mode == DnsMode::Auto;
    let listen = settings.dns.listen.iter().copied().filter(|_| dns).collect();
    let known = Known {
        snapshot: &snapshot,
        ranges: &ranges,
        names: &names,
        by_name: &super::gate::frontends(settings, &snapshot, &listen),
        domain: &settings.dns.domain,
        live: &|_, _| None,
    };
    explain::resolve(known, target).map_err(|error| UsageError::new(error.to_string()).into())
}

/// The rules that `run` would install now, in `iptables-save` form, one text after the other for IPv4 and IPv6.
/// What is not an iptables rule (sets, routes) stands in comments.
pub fn render_rules(settings: &Settings) -> anyhow::Result<String> {
    runtime()?.block_on(async {
        let (snapshot, ranges) = begin(settings).await?;
        // Without the right to look, the full form is shown: that is what `run` installs where everything is there.
        let reconciler = Reconciler::new(HostTools, &settings.intercept).await.ok();
        let capabilities = reconciler.as_ref().map_or(Capabilities::ALL, Reconciler::capabilities);
        let backend = reconciler.as_ref().map(Reconciler::backend);
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
        let listeners = settings.dns.listen.iter().copied().filter(|_| dns).collect();
        let mut external = doors::all(&snapshot);
        if settings.proxy.http.on {
            external.extend(super::gate::doors(&snapshot, &listeners));
        }
        let wanted = Wanted {
            ranges,
            skip: control::skipped(&snapshot),
            served,
            external,
            health: control::health(&snapshot),
            pods: snapshot.here.pods.clone(),
            listeners,
            queues: super::hold::wanted(settings),
            keep_source: snapshot.ports.values().any(|port| port.keep_source),
            proxy_port,
            former_port: None,
            own_mark: settings.intercept.own_mark,
            refuse_mark: settings.intercept.refuse_mark,
        };
        let plan = plan::plan(&wanted, capabilities);
        let foreign = routes::standing().await.map(|standing| standing.foreign).unwrap_or_default();
        for family in &plan.families {
            for entry in &routes::beside(&family.entries, &foreign) {
                let _ = writeln!(text, "# route: {entry}");
            }
            if family.sets {
                let count = |served: usize, skipped: usize, external: usize| {
                    format!("{served} served frontends, {skipped} addresses left alone, {external} external frontends")
                };
                let of = |v4: bool| {
                    (
                        wanted.served.iter().filter(|frontend| frontend.ip.is_ipv4() == v4).count(),
                        wanted.skip.iter().filter(|ip| ip.is_ipv4() == v4).count(),
                        wanted.external.keys().filter(|frontend| frontend.ip.is_ipv4() == v4).count(),
                    )
                };
                let (served, skipped, external) = of(family.family == Family::V4);
                let _ = writeln!(text, "# sets ({}): {}", family.family.as_str(), count(served, skipped, external));
            }
        }
        let seen = match &reconciler {
            Some(reconciler) => reconciler.preview(&plan).await.ok(),
            None => None,
        };
        for (family, rules) in seen.unwrap_or_else(|| render::save_form(&plan, &BTreeSet::new())) {
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
