//! Taking the node over from the agent that runs: what [`Taker`] says is done here.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::config::Settings;
use crate::handover::Taker;
use crate::handover::taker::{Action, Event};
use crate::handover::words::Word;
use crate::obs::admin::AdminServer;

use super::channel::Channel;
use super::instance::{AlreadyRunning, Approached, InstanceLock, Met};
use super::listeners::Purpose;
use super::{Running, Signals, admin, names};

/// How often it is looked whether this agent could serve.
const LOOK: Duration = Duration::from_millis(20);
/// How long the rules may take, counted from when the node is ours. A busy xtables lock is tried for as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a process that has died may take to close its sockets.
const CLOSING: Duration = Duration::from_secs(1);
/// How long the lock may be in somebody else's hands until what was started in the place of a worker that died leaves the
/// node to that one: longer than it takes anybody to read what it was sent, and to give back what it had.
const SETTLED: Duration = Duration::from_secs(3);

/// What is known of the agent before.
#[derive(Debug, Default)]
pub(super) struct Former {
    /// Its acceptor's port.
    pub(super) port: Option<u16>,
    /// The numbers of its sockets for datagrams: they are not somebody's whom ours would shadow.
    pub(super) sockets: BTreeSet<u64>,
}

/// How a start finds the node.
pub(super) struct Place {
    /// Had where nobody else is here.
    pub(super) lock: Option<InstanceLock>,
    /// The way to it, where another agent has it.
    pub(super) taking: Option<Taking>,
    pub(super) former: Option<Former>,
}

impl Place {
    fn alone(lock: InstanceLock) -> Self {
        Self { lock: Some(lock), taking: None, former: None }
    }
}

/// A take-over under way.
pub(super) struct Taking {
    machine: Taker,
    channel: Option<Channel>,
    /// What came beside the other one's words.
    listeners: Vec<(String, OwnedFd)>,
    lock: Option<OwnedFd>,
    /// Why the other one does not give the node away.
    refusal: String,
    /// Whether it has been told that this agent could serve.
    ready: bool,
    /// Since when the node is ours.
    owned: Option<Instant>,
    /// How long the rules may take.
    patience: Option<Instant>,
}

/// How it went.
pub(super) enum Taken {
    /// The node is this agent's.
    Serving,
    /// It is, and this agent was told to stop meanwhile.
    Stopped,
}

/// Takes the lock, or meets the one who has it where the settings say so. `None`: another agent has taken the node over
/// from the one that this process was started in the place of. `replaces`: an agent of the same keeper has worked before.
pub(super) async fn begin(settings: &Settings, replaces: bool) -> anyhow::Result<Option<Place>> {
    // What takes the place of a worker that died does not take the node back from whoever has it by now.
    if !settings.proxy.take_over || replaces {
        let end = Instant::now() + SETTLED;
        loop {
            return match InstanceLock::take() {
                Ok(lock) => Ok(Some(Place::alone(lock))),
                Err(error) if !replaces || !error.is::<AlreadyRunning>() => Err(error),
                Err(_) if Instant::now() >= end => Ok(None),
                Err(_) => {
                    sleep(LOOK).await;
                    continue;
                }
            };
        }
    }
    let mut machine = Taker::default();
    machine.begin();
    match InstanceLock::approach().await? {
        Approached::Free(lock) => Ok(Some(Place::alone(lock))),
        Approached::Met(Met { channel, version, port, sockets }) => {
            machine.on(Event::Met);
            info!(
                version,
                port, "another agent runs here; the node is taken over from it once this one could serve"
            );
            let taking = Taking {
                machine,
                channel: Some(channel),
                listeners: Vec::new(),
                lock: None,
                refusal: String::new(),
                ready: false,
                owned: None,
                patience: None,
            };
            let former = Former { port: Some(port), sockets };
            Ok(Some(Place { lock: None, taking: Some(taking), former: Some(former) }))
        }
        Approached::Refused(why) => bail!("the agent that runs does not give the node away: {why}"),
    }
}

impl Running {
    /// Takes the node over, if another agent has it. An error says that it has it still, or again: then this one must
    /// end without taking anything away.
    pub(super) async fn take_over(&mut self, signals: &mut Signals) -> anyhow::Result<Taken> {
        let Some(mut taking) = self.taking.take() else { return Ok(Taken::Serving) };
        let taken = self.try_to(&mut taking, signals).await;
        if taken.is_ok() {
            self.watch_former(taking);
        } else {
            // Before the other one hears of it, by the end of the connection.
            self.pen.lay_down().await;
            self.lock = None;
        }
        taken
    }

    async fn try_to(&mut self, taking: &mut Taking, signals: &mut Signals) -> anyhow::Result<Taken> {
        let mut events = VecDeque::new();
        loop {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.next(taking, signals).await?,
            };
            let actions = taking.machine.on(event);
            if event == Event::Stop && taking.machine.has_it_alone() {
                return Ok(Taken::Stopped);
            }
            for action in actions {
                match action {
                    Action::Approach => events.push_back(self.approach(taking).await?),
                    Action::Ask => taking.say(&Word::Yield).await,
                    Action::Own => self.own(taking).await?,
                    Action::Tell => taking.say(&Word::Done).await,
                    Action::Serve => {
                        let took = taking.owned.map(|since| since.elapsed());
                        info!(?took, "the node is this agent's");
                        return Ok(Taken::Serving);
                    }
                    Action::PutBack => {
                        warn!("the node is given back to the agent that had it");
                        (taking.owned, taking.patience) = (None, None);
                        self.pen.lay_down().await;
                        self.lock = None;
                        if let Some(channel) = &taking.channel {
                            channel.fall_silent();
                        }
                    }
                    // Comes later, see `watch_former`.
                    Action::Forget => {}
                    Action::Fail if event == Event::Refused => {
                        bail!("the agent that runs does not give the node away: {}", taking.refusal)
                    }
                    Action::Fail => bail!("the node was not taken over; the agent that had it goes on"),
                }
            }
        }
    }

    /// Waits for what happens next.
    async fn next(&mut self, taking: &mut Taking, signals: &mut Signals) -> anyhow::Result<Event> {
        loop {
            if !taking.ready && self.could_serve() {
                taking.ready = true;
                return Ok(Event::Ready);
            }
            if taking.owned.is_some() && self.rules_are_in() {
                return Ok(Event::RulesIn);
            }
            let patience = taking.patience;
            tokio::select! {
                biased;
                () = signals.stop() => return Ok(Event::Stop),
                error = self.data.failed() => return Err(error),
                event = hear(taking), if taking.channel.is_some() => {
                    if let Some(event) = event {
                        return Ok(event);
                    }
                }
                Ok(()) = self.installed.changed(), if taking.owned.is_some() => {}
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    taking.patience = None;
                    return Ok(Event::Patience);
                }
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Whether there is a snapshot, and what the rules are to be.
    fn could_serve(&self) -> bool {
        self.shared.loaded.load(std::sync::atomic::Ordering::Acquire) && self.wanted.borrow().proxy_port != 0
    }

    fn rules_are_in(&self) -> bool {
        self.reporter.conditions().iter().any(|condition| condition.name == "rules" && condition.ok)
    }

    async fn approach(&mut self, taking: &mut Taking) -> anyhow::Result<Event> {
        Ok(match InstanceLock::approach().await? {
            Approached::Free(lock) => {
                warn!("the agent that had the node has died; this one goes on in its place");
                self.lock = Some(lock);
                Event::Free
            }
            Approached::Met(met) => {
                self.shared.former.store(Former { port: Some(met.port), sockets: met.sockets }.into());
                taking.channel = Some(met.channel);
                Event::Met
            }
            Approached::Refused(why) => {
                taking.refusal = why;
                Event::Refused
            }
        })
    }

    /// Takes what there is one of on a node into use: the lock, the listeners, the pen.
    async fn own(&mut self, taking: &mut Taking) -> anyhow::Result<()> {
        if let Some(lock) = taking.lock.take() {
            self.lock = Some(InstanceLock::adopt(lock).context("cannot hold the instance lock @edgesplice")?);
        }
        let now = Instant::now();
        (taking.owned, taking.patience) = (Some(now), Some(now + PATIENCE));
        let listeners = &self.shared.listeners;
        listeners.inherit(taking.listeners.drain(..));
        let addr = self.settings.admin.listen;
        let server = match listeners.take(Purpose::Admin, addr) {
            Some(socket) => AdminServer::on(socket.into())?,
            None => bind_admin(addr).await?,
        };
        self.serve_admin(server)?;
        if let Some(desk) = &self.desk {
            names::listen(&self.settings, &self.shared, desk).await;
        }
        // The health check ports, and the sockets for datagrams; they are open before a rule of ours sends anything there.
        self.shared.poke.notify_one();
        tokio::task::yield_now().await;
        self.pen.take_up();
        Ok(())
    }

    /// Serves the admin endpoint on a thread of its own.
    pub(super) fn serve_admin(&mut self, server: AdminServer) -> anyhow::Result<()> {
        self.admin = server.local_addr();
        self.shared.listeners.keep(Purpose::Admin, self.settings.admin.listen, server.listener());
        self.admin_stop = self.stop.child_token();
        self.answering = Some(admin::start(server, self.reporter.clone(), self.admin_stop.clone())?);
        Ok(())
    }

    /// Waits, aside, for the end of the agent that was here before: until then its port is let in.
    fn watch_former(&mut self, mut taking: Taking) {
        self.shared.listeners.forget_inherited();
        let shared = self.shared.clone();
        let watch = async move {
            while taking.channel.is_some() {
                hear(&mut taking).await;
            }
            taking.machine.on(Event::Gone);
            info!("the agent that was here before has ended");
            shared.former.store(Former::default().into());
            shared.poke.notify_one();
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(watch).await });
    }
}

/// Binds the admin endpoint's address. The kernel closes the sockets of a process that has died one after the other: this
/// one may be free some moments later than the lock.
async fn bind_admin(addr: SocketAddr) -> anyhow::Result<AdminServer> {
    let end = Instant::now() + CLOSING;
    loop {
        match AdminServer::bind(addr) {
            Err(_) if Instant::now() < end => sleep(LOOK).await,
            bound => return bound,
        }
    }
}

impl Taking {
    /// What cannot be said finds nobody to hear it; the end of the connection is the next event.
    async fn say(&self, word: &Word) {
        if let Some(channel) = &self.channel {
            let _ = channel.say(word, &[]).await;
        }
    }
}

/// The next event that the other one makes.
async fn hear(taking: &mut Taking) -> Option<Event> {
    let channel = taking.channel.as_mut()?;
    match channel.hear().await {
        None => {
            taking.channel = None;
            Some(Event::Gone)
        }
        Some((Word::Listener(name), beside)) => {
            taking.listeners.extend(beside.into_iter().map(|socket| (name.clone(), socket)));
            None
        }
        Some((Word::Yielded, mut beside)) => {
            taking.lock = beside.pop();
            Some(Event::Yielded)
        }
        Some((Word::Refused(why), _)) => {
            taking.refusal = why;
            Some(Event::Refused)
        }
        Some(_) => None,
    }
}
