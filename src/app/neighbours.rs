//! The look around at start: the agent does not go to work beside another proxy, and says what a former one left.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{DnsMode, SERVICE_PROXY_NAME_LABEL, Settings};
use crate::rules::apply::{Backend, HostTools};
use crate::rules::firewall::{self, Closed};
use crate::rules::legacy::{self, Options, Request, Roots};
use crate::rules::neighbours::Neighbours;

/// How often it is looked again whether the leftovers are gone, as long as there are any.
const LOOK_AGAIN: Duration = Duration::from_mins(1);
/// Begins the warning about kube-proxy.
const KUBE_PROXY: &str = "kube-proxy serves the same Services";
/// What takes leftovers away.
const WAY_OUT: &str = "`edgesplice cleanup` removes it, `--dry-run` shows what would go";

/// Warnings about the neighbourhood, for `status`.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(Arc<ArcSwap<Found>>);

#[derive(Debug, Default)]
struct Found {
    lasting: Vec<String>,
    /// What older versions left.
    stale: Vec<String>,
    /// Firewalls in the way, each with what mends it.
    closed: Vec<String>,
}

impl Warnings {
    /// Each a line.
    pub(super) fn lines(&self) -> Vec<String> {
        let found = self.0.load();
        let stale = found.stale.iter().map(|line| format!("{line}; {WAY_OUT}"));
        found.lasting.iter().chain(&found.closed).cloned().chain(stale).collect()
    }

    /// Those about another proxy that serves the same Services.
    pub(super) fn conflicts(&self) -> Vec<String> {
        self.0.load().lasting.iter().filter(|line| line.starts_with(KUBE_PROXY)).cloned().collect()
    }

    /// Looks now and then whether what was found is gone, until it is.
    pub(super) async fn follow(self, settings: Arc<Settings>, backend: Backend, stop: CancellationToken) {
        while !(self.0.load().stale.is_empty() && self.0.load().closed.is_empty()) {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            if let Ok((found, closed)) = look(&settings, backend).await {
                let lasting = self.0.load().lasting.clone();
                self.0.store(Arc::new(Found { lasting, stale: found.stale, closed }));
            }
        }
    }
}

/// The addresses at which this agent answers DNS, or is about to: what leads there is nobody's leftover.
pub fn own_servers(settings: &Settings) -> BTreeSet<IpAddr> {
    let listen = settings.dns.listen.iter().filter(|_| settings.dns.mode == DnsMode::Auto);
    listen.map(SocketAddr::ip).collect()
}

fn options(settings: &Settings) -> Options {
    Options { own_servers: own_servers(settings), starting: true, ..Options::default() }
}

/// Who else works here, and which firewalls are in the way.
async fn look(settings: &Settings, backend: Backend) -> anyhow::Result<(Neighbours, Vec<String>)> {
    let options = options(settings);
    let facts = legacy::facts(&HostTools, &Roots::default(), &options).await?;
    let closed = firewall::closed(&facts, backend, settings.intercept.refuse_mark).into_iter();
    let closed = closed.filter(|closed| closed.input);
    let lines = closed.map(|Closed { what, mend, .. }| format!("{what}; `{mend}` mends it"));
    Ok((Neighbours::of(&facts, &options), lines.collect()))
}

/// Refuses to start beside a live EdgeMesh, or beside kube-proxy unless told to coexist; removes leftovers if told to.
/// Call it with the instance lock held, so that what a killed agent left is not taken for somebody's leftovers.
pub(super) async fn admit(settings: &Settings, backend: Backend) -> anyhow::Result<Warnings> {
    let (mut found, closed) = match look(settings, backend).await {
        Ok(found) => found,
        // No proof of a neighbour: the reconciler reports it if the rules cannot be worked with.
        Err(error) => {
            let lasting = vec![format!("older rules and other proxies could not be looked for: {error:#}")];
            warn!("{}", lasting[0]);
            return Ok(Warnings(Arc::new(ArcSwap::from_pointee(Found { lasting, ..Found::default() }))));
        }
    };
    refuse(settings, &found)?;
    if settings.intercept.remove_stale && !found.stale.is_empty() {
        match remove(settings).await {
            Ok(()) => found = look(settings, backend).await.map_or(found, |(found, _)| found),
            Err(error) => warn!("the leftovers of older versions could not be removed: {error:#}"),
        }
    }
    let mut lasting = Vec::new();
    if !found.kube_proxy.is_empty() && settings.intercept.service_proxy_name.is_empty() {
        lasting.push(format!(
            "{KUBE_PROXY} ({}): the rules that stand first win; share the Services out with \
             intercept.serviceProxyName and the label {SERVICE_PROXY_NAME_LABEL}",
            found.kube_proxy.join("; ")
        ));
    }
    let warnings = Warnings(Arc::new(ArcSwap::from_pointee(Found { lasting, stale: found.stale, closed })));
    for line in warnings.lines() {
        warn!("{line}");
    }
    Ok(warnings)
}

fn refuse(settings: &Settings, found: &Neighbours) -> anyhow::Result<()> {
    if !found.edgemesh.is_empty() {
        bail!(
            "EdgeMesh is alive on this node: {}; stop it (`kubectl -n kubeedge delete daemonset edgemesh-agent`, or \
             edgeMesh.enable: false in edgecore.yaml), then start again",
            found.edgemesh.join("; ")
        );
    }
    if !found.kube_proxy.is_empty() && !settings.intercept.coexist_with_kube_proxy {
        bail!(
            "kube-proxy is at work on this node: {}; keep it off this node and run `kube-proxy --cleanup`, or let \
             both work with --coexist-with-kube-proxy and --service-proxy-name",
            found.kube_proxy.join("; ")
        );
    }
    Ok(())
}

async fn remove(settings: &Settings) -> anyhow::Result<()> {
    let request = Request {
        options: options(settings),
        backup: legacy::default_folder(&settings.state_dir, SystemTime::now()),
        ..Request::default()
    };
    let report = legacy::clean(&HostTools, &Roots::default(), &request).await?;
    info!(
        found = report
            .versions
            .iter()
            .filter(|name| *name != "edgesplice")
            .cloned()
            .collect::<Vec<_>>()
            .join("; "),
        backup = report.backup.as_deref().unwrap_or_default(),
        restore = report.restore.as_deref().unwrap_or_default(),
        "removed what older versions left"
    );
    Ok(())
}
