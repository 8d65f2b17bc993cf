//! The composition root: binds everything first, wires it, and returns a handle to the running agent.
//!
//! Only `cli` and the tests import this module. No behaviour of its own belongs here beyond order: what starts
//! before what, and what ends before what.

mod admin;
mod check;
mod control;
mod data;
mod doors;
mod figures;
mod gate;
mod health;
mod health_ports;
mod hold;
mod instance;
mod names;
mod neighbours;
mod notices;
mod offline;
mod report;
mod supervisor;
mod ways;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::balance::Upstreams;
use crate::config::Settings;
use crate::keeper::Store;
use crate::life::Drain;
use crate::net::sock;
use crate::obs::admin::AdminServer;
use crate::obs::api::RulesReport;
use crate::proxy::udp::UdpPlane;
use crate::proxy::{Guard, Proxy, probe};
use crate::rules::apply::HostTools;
use crate::rules::{self, Reconciler};
use crate::source::Sink;

pub use check::{Checkup, check, refuse_impossible};
pub use instance::holder;
pub use neighbours::own_servers;
pub use offline::{check_manifests, render_rules, resolve_offline};

use control::{Answering, Control, Shared};
use data::DataPlane;
use figures::Meters;
use health::Prober;
use health_ports::HealthPorts;
use instance::InstanceLock;
use report::Reporter;

/// Updates that may wait for the control task; a source that is faster waits.
const UPDATE_QUEUE: usize = 1024;
/// The name under which the acceptor's sockets outlive this process.
const ACCEPTOR: &str = "acceptor";
/// How often readiness is looked at until it is there, for the keeper.
const READY_LOOK: Duration = Duration::from_millis(50);
/// Longest wait for the tasks of the control thread to end.
const CONTROL_STOP: Duration = Duration::from_secs(5);

/// A running agent: the addresses that were bound, and the way to end it.
pub struct Running {
    /// The acceptor's port.
    pub proxy_port: u16,
    /// The admin endpoint's address.
    pub admin: SocketAddr,
    /// The admin endpoint's thread.
    answering: std::thread::JoinHandle<()>,
    settings: Arc<Settings>,
    drain: Drain,
    data: DataPlane,
    stop: CancellationToken,
    tasks: TaskTracker,
    rules: tokio::task::JoinHandle<Reconciler<HostTools>>,
    _lock: InstanceLock,
}

/// Runs the agent until SIGTERM or SIGINT. `keeper` holds what is to outlive this process.
pub fn run(settings: Settings, keeper: Option<Store>) -> anyhow::Result<()> {
    control_runtime()?.block_on(async {
        // Before anything is installed, so that no signal can end the process with rules in place.
        let mut signals = Signals::new()?;
        let mut running = start(settings, keeper).await?;
        let failed = tokio::select! {
            () = signals.stop() => None,
            error = running.failed() => Some(error),
        };
        tokio::select! {
            () = running.drain() => {}
            () = signals.stop() => warn!("told to stop again: open connections are reset"),
        }
        running.end().await?;
        failed.map_or(Ok(()), Err)
    })
}

fn control_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control runtime")
}

/// Takes away what workers that keep dying, or one that was not given the time, have left.
pub fn withdraw_leftovers(settings: &Settings) -> anyhow::Result<()> {
    // Another agent's rules are not ours to take.
    if settings.proxy.keep_rules || holder().is_some() {
        return Ok(());
    }
    warn!("the agent has died and is not there: its rules are taken away");
    control_runtime()?.block_on(rules::remove_leftovers(&HostTools))?;
    Ok(())
}

/// Binds, wires and starts everything. When it returns, the agent works, or is about to: `/readyz` tells. An error
/// leaves the machine as it was.
pub async fn start(settings: Settings, mut keeper: Option<Store>) -> anyhow::Result<Running> {
    if let Some(last) = keeper.as_ref().and_then(Store::last) {
        warn!("the agent's last process {last}; this one goes on where it stood");
    }
    let settings = Arc::new(settings);
    // Everything that can be wrong with what the user gave comes first: nothing has been touched yet.
    refuse_impossible(&settings.state_dir)?;
    let source = offline::open(&settings).await?;
    let reconciler = Reconciler::new(HostTools, &settings.intercept).await?;
    let lock = InstanceLock::take()?;
    let backend = reconciler.backend();
    let warnings = neighbours::admit(&settings, backend).await?;
    if let Err(error) = sock::raise_nofile() {
        warn!(%error, "the limit of open descriptors could not be raised");
    }
    let admin = AdminServer::bind(settings.admin.listen)?;
    let admin_addr = admin.local_addr();
    let own_mark = settings.intercept.own_mark;
    let (proxy, is_adopted) = acceptor(&settings, keeper.as_mut())?;
    let proxy_port = proxy.port();

    let upstreams = Arc::new(Upstreams::new());
    let held = hold::open(&settings);
    let shared = Arc::new(Shared::new(proxy_port, held.queues(&settings)));
    let guard = Arc::clone(&shared);
    let guard: Guard = Arc::new(move |addr| guard.is_captured(addr.ip()));
    let proxy = proxy.with_guard(Arc::clone(&guard)).with_takeover(names::takeover(&shared));
    let proxy = proxy.with_gate(gate::open(&settings, &shared));
    let (counters, knock) = (proxy.counters(), proxy.knock());
    let (max_connections, pipes) = (proxy.max_connections(), proxy.pipes());

    let (wanted_tx, wanted_rx) = watch::channel(Arc::new(rules::Wanted::default()));
    let (rules_tx, rules_rx) = watch::channel(RulesReport::default());
    let (updates_tx, updates_rx) = mpsc::channel(UPDATE_QUEUE);
    let (status_tx, status_rx) = watch::channel(source.status());
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let drain = Drain::new();

    let (holding, hold_fault) = (held.counters(), held.fault.clone());
    let proxy = held.equip(proxy, &shared, rules_rx.clone());
    let data = DataPlane::start(proxy, &upstreams, &drain, is_adopted)?;
    let health = HealthPorts::new(Arc::clone(&shared), data.pulse());
    let udp = UdpPlane::new(data.runtimes().to_vec(), Arc::clone(&upstreams), guard, own_mark)
        .context("cannot read the limit of open descriptors")?;
    let datagrams = udp.counters();
    let dns = names::start(&settings, &shared, data.runtimes()).await?;
    let answering = Answering { udp, dns, health };
    let control =
        Control::new(&settings, Arc::clone(&shared), Arc::clone(&upstreams), answering, wanted_tx).await;
    let refusing = Arc::clone(&upstreams);
    let prober = Prober::new(&shared, &upstreams, data.pulse(), knock, drain.stop().clone());
    let meters = Meters { max_connections, pipes, rules_times: reconciler.times(), runtimes: data.named() };
    let reporter = Arc::new(Reporter {
        settings: Arc::clone(&settings),
        shared,
        upstreams,
        counters,
        holding,
        hold_fault,
        datagrams,
        source: status_rx,
        rules: rules_rx,
        prober: Arc::new(prober),
        meters,
        stopping: drain.stop().clone(),
        neighbours: warnings.clone(),
    });

    tasks.spawn(control.run(updates_rx, stop.clone()));
    tasks.spawn(probe::run(refusing, own_mark, stop.clone()));
    if let Some(recorder) = source.recorder(&settings.node_name) {
        notices::start(recorder, &reporter.shared, &warnings, &tasks, &stop);
    }
    let sink = Sink { updates: updates_tx, status: status_tx };
    let (for_source, until) = (Arc::clone(&settings), stop.clone());
    tasks.spawn(async move { source.run(&for_source, sink, until).await });
    let rules = tokio::spawn(rules::run(reconciler, wanted_rx, rules_tx, stop.clone()));
    tasks.spawn(warnings.follow(Arc::clone(&settings), backend, stop.clone()));
    tasks.spawn(supervisor::run(Arc::clone(&reporter), drain.stop().clone(), stop.clone()));
    if let Some(keeper) = keeper {
        tasks.spawn(kept(keeper, Arc::clone(&reporter), drain.stop().clone()));
    }
    let admin = admin::start(admin, reporter, stop.clone())?;
    info!(node = settings.node_name, proxy_port, admin = %admin_addr, "started");
    Ok(Running {
        proxy_port,
        admin: admin_addr,
        answering: admin,
        settings,
        drain,
        data,
        stop,
        tasks,
        rules,
        _lock: lock,
    })
}

/// The acceptor on the sockets that the keeper holds, or on new ones for it to hold; and whether they were held.
fn acceptor(settings: &Settings, mut keeper: Option<&mut Store>) -> anyhow::Result<(Proxy, bool)> {
    let (threads, own_mark) = (data::threads(&settings.proxy), settings.intercept.own_mark);
    let held = keeper.as_mut().map(|keeper| keeper.take(ACCEPTOR)).unwrap_or_default();
    let adopted = Proxy::adopt(held, &settings.proxy, own_mark, threads)?;
    let is_adopted = adopted.is_some();
    let proxy = match adopted {
        Some(proxy) => proxy,
        None => Proxy::bind_sharded(&settings.proxy, own_mark, threads)?,
    };
    if let Some(Err(error)) = keeper.map(|keeper| keeper.keep(ACCEPTOR, proxy.sockets())) {
        warn!(%error, "the acceptor's sockets will not outlive this process");
    }
    Ok((proxy, is_adopted))
}

/// Tells the keeper once the agent does its work, and lets go of the sockets when it is to end.
async fn kept(keeper: Store, reporter: Arc<Reporter>, stopping: CancellationToken) {
    let ready = async {
        while !reporter.conditions().iter().all(|condition| condition.ok) {
            tokio::time::sleep(READY_LOOK).await;
        }
        if let Err(error) = keeper.ready() {
            warn!(%error, "the keeper cannot be told that the agent is ready");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ready => {}
        // From now on clients are to be refused, not left to queue.
        () = stopping.cancelled() => drop(keeper.keep::<std::net::TcpListener>(ACCEPTOR, &[])),
    }
}

impl Running {
    /// Ends with the reason once a part without which the agent is of no use has failed.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.data.failed().await
    }

    /// Stops accepting and waits for the open connections, at most as long as `proxy.drainTimeout`; resets the rest.
    pub async fn drain(&self) {
        info!(timeout = ?self.settings.proxy.drain_timeout, "stopping: no new connections, open ones may end");
        let killed = self.drain.run(self.settings.proxy.drain_timeout).await;
        if killed > 0 {
            warn!(killed, "the drain timeout is over: open connections were reset");
        }
    }

    /// Ends every task, and takes the rules away unless they are to be kept.
    pub async fn end(self) -> anyhow::Result<()> {
        self.drain.stop().cancel();
        self.drain.kill().cancel();
        self.stop.cancel();
        self.tasks.close();
        let reconciler = self.rules.await.context("the task that owns the rules has failed")?;
        if self.settings.proxy.keep_rules {
            warn!("the rules stay, as --keep-rules says: services are refused until an agent runs again");
        } else {
            withdraw(reconciler).await?;
        }
        names::end(&self.settings).await;
        if tokio::time::timeout(CONTROL_STOP, self.tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
        self.data.join();
        if self.answering.join().is_err() {
            warn!("the admin endpoint's thread has panicked");
        }
        info!("stopped");
        Ok(())
    }
}

/// Tries for a while: something else may hold the xtables lock just now, and rules that stay refuse every service.
async fn withdraw(mut reconciler: Reconciler<HostTools>) -> anyhow::Result<()> {
    const TRIES: u32 = 5;
    for attempt in 1.. {
        match reconciler.withdraw().await {
            Ok(()) => return Ok(()),
            Err(error) if attempt < TRIES => {
                warn!(%error, "the rules could not be taken away yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => {
                return Err(error)
                    .context("the rules could not be taken away; `edgesplice cleanup` removes them");
            }
        }
    }
    Ok(())
}

/// The signals that end the agent. SIGHUP is only noted: manifests are reloaded by themselves.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("cannot install a signal handler");
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hangup: install(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => info!("SIGHUP: nothing to do, the source is followed by itself"),
            }
        }
    }
}
