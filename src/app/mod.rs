//! The composition root: binds everything first, wires it, and returns a handle to the running agent.
//!
//! Only `cli` and the tests import this module. No behaviour of its own belongs here beyond order: what starts
//! before what, and what ends before what.

mod admin;
mod channel;
mod check;
mod confinement;
mod control;
mod data;
mod doors;
mod figures;
mod gate;
mod handing;
mod health;
mod health_ports;
mod hold;
mod instance;
mod kept;
mod listeners;
mod names;
mod neighbours;
mod notices;
mod offline;
mod report;
mod supervisor;
mod taking;
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
use crate::dns::{Desk, Dns};
use crate::keeper::Store;
use crate::life::Drain;
use crate::life::pen::Pen;
use crate::net::sock;
use crate::obs::admin::AdminServer;
use crate::obs::api::{HardeningReport, RulesReport};
use crate::proxy::udp::UdpPlane;
use crate::proxy::{Guard, Proxy, probe};
use crate::rules::apply::HostTools;
use crate::rules::{self, Reconciler};
use crate::source::Sink;

pub use check::{Checkup, check, refuse_impossible};
pub use instance::holder;
pub use neighbours::own_servers;
pub use offline::{check_manifests, render_rules, resolve_offline};

use channel::Channel;
use control::{Answering, Control, Shared};
use data::DataPlane;
use figures::Meters;
use handing::End;
use health::{Prober, Room};
use health_ports::HealthPorts;
use instance::InstanceLock;
use kept::{Kept, Words};
use report::Reporter;
use taking::{Place, Taken, Taking};

/// Updates that may wait for the control task; a source that is faster waits.
const UPDATE_QUEUE: usize = 1024;
/// Longest wait for the tasks of the control thread to end.
const CONTROL_STOP: Duration = Duration::from_secs(5);

/// A running agent, and the way to end it.
struct Running {
    /// The acceptor's port.
    proxy_port: u16,
    /// The admin endpoint's address.
    admin: SocketAddr,
    /// The admin endpoint's thread, and what ends it.
    answering: Option<std::thread::JoinHandle<()>>,
    admin_stop: CancellationToken,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    reporter: Arc<Reporter>,
    drain: Drain,
    data: DataPlane,
    stop: CancellationToken,
    /// Cancelled once the node is another agent's.
    left: CancellationToken,
    tasks: TaskTracker,
    rules: tokio::task::JoinHandle<Reconciler<HostTools>>,
    /// What the rules are to be, and what they are.
    wanted: watch::Receiver<Arc<rules::Wanted>>,
    installed: watch::Receiver<RulesReport>,
    pen: Arc<Pen>,
    desk: Option<Desk>,
    /// The way to the keeper.
    words: Words,
    lock: Option<InstanceLock>,
    /// The take-over from the agent that has the node.
    taking: Option<Taking>,
    /// Tells the agent that has taken over, by its end, that this one has ended.
    farewell: Option<Channel>,
}

/// Runs the agent until SIGTERM or SIGINT, or until another one has taken the node over. `keeper` holds what is to
/// outlive this process.
pub fn run(settings: Settings, keeper: Option<Store>) -> anyhow::Result<()> {
    // While this is the only thread.
    let hardening = confinement::enter(&settings, keeper.as_ref());
    control_runtime()?.block_on(async {
        // Before anything is installed, so that no signal can end the process with rules in place.
        let mut signals = Signals::new()?;
        let Some(mut running) = start(settings, keeper, hardening).await? else { return Ok(()) };
        let end = match running.take_over(&mut signals).await {
            Ok(Taken::Serving) => running.serve(&mut signals).await,
            Ok(Taken::Stopped) => End::Stopped,
            Err(error) => {
                // The service manager may be the one of the agent that has the node.
                running.left.cancel();
                running.drain().await;
                running.end(false).await?;
                return Err(error);
            }
        };
        if let End::Left { told } = end {
            tokio::select! {
                () = running.finish() => {}
                () = signals.again(told) => warn!("told to stop again: open connections are reset"),
            }
            return running.end(false).await;
        }
        tokio::select! {
            () = running.drain() => {}
            () = signals.stop() => warn!("told to stop again: open connections are reset"),
        }
        match end {
            End::Failed { error, ours } => running.end(ours).await.and(Err(error)),
            End::Stopped | End::Left { .. } => running.end(true).await,
        }
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

/// Binds, wires and starts everything. When it returns, the agent works, or is about to: `/readyz` tells; where another
/// agent has the node, it is to be taken over first. `None`: it has it for good. An error leaves the machine as it was.
async fn start(
    settings: Settings,
    keeper: Option<Store>,
    hardening: Option<HardeningReport>,
) -> anyhow::Result<Option<Running>> {
    let mut kept = Kept::new(keeper);
    let settings = Arc::new(settings);
    // Everything that can be wrong with what the user gave comes first: nothing has been touched yet.
    refuse_impossible(&settings.state_dir)?;
    let source = offline::open(&settings).await?;
    let reconciler = Reconciler::new(HostTools, &settings.intercept).await?;
    let Some(place) = taking::begin(&settings, kept.worked()).await? else {
        info!("another agent has taken the node over meanwhile: there is nothing left to do");
        kept.yielded().context("the keeper cannot be told")?;
        return Ok(None);
    };
    let warnings = neighbours::admit(&settings, reconciler.backend()).await?;
    if let Err(error) = sock::raise_nofile() {
        warn!(%error, "the limit of open descriptors could not be raised");
    }
    // Where another agent has the address, it is had from that one with the rest.
    let theirs = place.former.as_ref().and_then(|former| former.port);
    let admin = theirs.is_none().then(|| AdminServer::bind(settings.admin.listen)).transpose()?;
    let (proxy, is_adopted) = kept.acceptor(&settings, theirs)?;
    let parts = Parts { settings, source, reconciler, place, warnings, hardening, kept, proxy, is_adopted };
    let mut running = wire(parts).await?;
    if let Some(server) = admin {
        running.serve_admin(server)?;
    }
    let Running { settings, proxy_port, admin, .. } = &running;
    info!(node = settings.node_name, proxy_port, %admin, "started");
    Ok(Some(running))
}

/// What an agent is made of.
struct Parts {
    settings: Arc<Settings>,
    source: offline::Opened,
    reconciler: Reconciler<HostTools>,
    place: Place,
    warnings: neighbours::Warnings,
    hardening: Option<HardeningReport>,
    kept: Kept,
    proxy: Proxy,
    /// Whether clients may have queued on its sockets already.
    is_adopted: bool,
}

/// Makes the parts work together.
async fn wire(parts: Parts) -> anyhow::Result<Running> {
    let Parts { settings, source, reconciler, place, warnings, hardening, kept, proxy, is_adopted } = parts;
    let Place { lock, taking, former } = place;
    let pen = Arc::new(Pen::new(lock.is_some()));
    let (proxy_port, own_mark) = (proxy.port(), settings.intercept.own_mark);
    let upstreams = Arc::new(Upstreams::new());
    let held = hold::open(&settings);
    let shared = Arc::new(Shared::new(proxy_port, held.queues(&settings), former));
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
    let data = DataPlane::start(proxy, &upstreams, &drain, is_adopted, &pen)?;
    let health = HealthPorts::new(Arc::clone(&shared), data.pulse(), kept.shelf());
    let udp = UdpPlane::new(data.runtimes().to_vec(), Arc::clone(&upstreams), guard, own_mark)
        .context("cannot read the limit of open descriptors")?
        .with_shelf(kept.shelf())
        .waiting(taking.is_some());
    let datagrams = udp.counters();
    let dns = names::start(&settings, &shared, data.runtimes(), &kept)?;
    let desk = dns.as_ref().map(Dns::desk);
    names::listen_unless(taking.is_some(), &settings, &shared, desk.as_ref()).await;
    let answering = Answering { udp, dns, health };
    let control =
        Control::new(&settings, Arc::clone(&shared), Arc::clone(&upstreams), answering, wanted_tx).await;
    let refusing = Arc::clone(&upstreams);
    let room = Room { counters: Arc::clone(&counters), most: max_connections };
    let prober = Prober::new(&shared, &upstreams, data.pulse(), knock, room, drain.stop().clone());
    let (rules_times, runtimes, restarts) = (reconciler.times(), data.named(), kept.restarts());
    let meters = Meters { max_connections, pipes, rules_times, runtimes, restarts };
    let reporter = Arc::new(Reporter {
        settings: Arc::clone(&settings),
        shared: Arc::clone(&shared),
        upstreams,
        counters,
        holding,
        hold_fault,
        hardening,
        datagrams,
        source: status_rx,
        rules: rules_rx.clone(),
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
    let (for_source, until, may_write) = (Arc::clone(&settings), stop.clone(), Arc::clone(&pen));
    tasks.spawn(async move { source.run(&for_source, sink, may_write, until).await });
    let (installed, wanted, backend) = (rules_rx, wanted_rx.clone(), reconciler.backend());
    let rules = tokio::spawn(rules::run(reconciler, wanted_rx, rules_tx, Arc::clone(&pen), stop.clone()));
    tasks.spawn(warnings.follow(Arc::clone(&settings), backend, stop.clone()));
    let left = CancellationToken::new();
    tasks.spawn(supervisor::run(Arc::clone(&reporter), drain.stop().clone(), stop.clone(), left.clone()));
    let words = kept.words();
    kept.start(Arc::clone(&reporter), Arc::clone(&pen), drain.stop().clone(), &tasks)?;
    Ok(Running {
        proxy_port,
        admin: settings.admin.listen,
        answering: None,
        admin_stop: stop.child_token(),
        settings,
        shared,
        reporter,
        drain,
        data,
        stop,
        left,
        tasks,
        rules,
        wanted,
        installed,
        pen,
        desk,
        words,
        lock,
        taking,
        farewell: None,
    })
}

impl Running {
    /// Stops accepting and waits for the open connections, at most as long as `proxy.drainTimeout`; resets the rest.
    async fn drain(&self) {
        info!(timeout = ?self.settings.proxy.drain_timeout, "stopping: no new connections, open ones may end");
        let killed = self.drain.run(self.settings.proxy.drain_timeout).await;
        if killed > 0 {
            warn!(killed, "the drain timeout is over: open connections were reset");
        }
    }

    /// Ends every task. `withdraws`: the node is this agent's, and the rules are taken away unless they are to be kept.
    async fn end(self, withdraws: bool) -> anyhow::Result<()> {
        self.drain.stop().cancel();
        self.drain.kill().cancel();
        self.stop.cancel();
        self.tasks.close();
        let reconciler = self.rules.await.context("the task that owns the rules has failed")?;
        if !withdraws {
            drop(reconciler);
        } else if self.settings.proxy.keep_rules {
            warn!("the rules stay, as --keep-rules says: services are refused until an agent runs again");
        } else {
            withdraw(reconciler).await?;
        }
        if withdraws {
            names::end(&self.settings).await;
        }
        if tokio::time::timeout(CONTROL_STOP, self.tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
        self.data.join();
        if self.answering.is_some_and(|thread| thread.join().is_err()) {
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

    /// The next signal to stop that says more than what is under way already: the first one, if this agent was `told`
    /// before, else the second.
    async fn again(&mut self, told: bool) {
        if !told {
            self.stop().await;
            info!("this agent is ending already; a second signal resets open connections");
        }
        self.stop().await;
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
