//! Serving the node until it is told to stop, or until another agent has taken the node over: what [`Giver`] says is
//! done here.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use crate::handover::Giver;
use crate::handover::giver::{Action, Event};
use crate::handover::words::{MOST_NUMBERS, Word};
use crate::net::listening;
use crate::obs::VERSION;
use crate::obs::admin::AdminServer;

use super::channel::Channel;
use super::instance::{self, Arrival};
use super::listeners::Purpose;
use super::{Running, Signals};

/// How long connections are still accepted after the switch: handshakes that were half done then end within the second
/// retransmission of a first packet, after three seconds.
const LINGER: Duration = Duration::from_secs(3);

/// Why this agent serves no more.
pub(super) enum End {
    /// It was told to stop.
    Stopped,
    /// A part without which it is of no use has failed.
    Failed {
        error: anyhow::Error,
        /// Whether the node is still this agent's, with all that stands there.
        ours: bool,
    },
    /// The node is another agent's.
    Left {
        /// Whether it was told to stop meanwhile.
        told: bool,
    },
}

/// A hand-over under way, or none.
#[derive(Default)]
struct Handing {
    machine: Giver,
    channel: Option<Channel>,
    newcomer: Option<Arrival>,
    /// Told by its end that everything stands again.
    putting_back: Option<Channel>,
    patience: Option<Instant>,
    asked: Option<Instant>,
}

impl Running {
    /// Serves.
    pub(super) async fn serve(&mut self, signals: &mut Signals) -> End {
        let mut handing = Handing::default();
        let mut events = VecDeque::new();
        let mut told = false;
        loop {
            let next = async {
                match events.pop_front() {
                    Some(event) => Ok(event),
                    None => self.hear(&mut handing).await,
                }
            };
            let event = tokio::select! {
                biased;
                event = next => event,
                () = signals.stop() => {
                    told = true;
                    Ok(Event::Stop)
                }
            };
            let event = match event {
                Ok(event) => event,
                // Whoever has the lock goes on as after a crash.
                Err(error) => return End::Failed { error, ours: !handing.machine.has_given() },
            };
            for action in handing.machine.on(event) {
                match action {
                    Action::Answer => {
                        let newcomer = handing.newcomer.take();
                        handing.channel = self.answer(newcomer).await;
                        if handing.channel.is_none() {
                            events.push_back(Event::Gone);
                        }
                    }
                    Action::Refuse => refuse(handing.newcomer.take()).await,
                    Action::Freeze => {
                        handing.asked = Some(Instant::now());
                        self.pen.lay_down().await;
                        events.push_back(Event::Frozen);
                    }
                    Action::Give => self.give(&handing).await,
                    Action::Resume => self.resume(&mut handing),
                    Action::Wait => {
                        info!("told to stop; another agent is taking the node over, and is waited for");
                        handing.patience = Some(Instant::now() + self.settings.proxy.drain_timeout);
                    }
                    Action::Withdraw => return End::Stopped,
                    Action::Leave => {
                        self.leave(handing);
                        return End::Left { told };
                    }
                }
            }
        }
    }

    /// Waits for something that the other side does, or that time does. An error says that a part of this agent has
    /// failed.
    async fn hear(&mut self, handing: &mut Handing) -> anyhow::Result<Event> {
        loop {
            let patience = handing.patience;
            let arrival = async {
                match &mut self.lock {
                    Some(lock) => lock.arrival().await,
                    None => std::future::pending().await,
                }
            };
            let word = async {
                match &mut handing.channel {
                    Some(channel) => channel.hear().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                error = self.data.failed() => return Err(error),
                word = word => match word {
                    Some((Word::Yield, _)) => return Ok(Event::Asked),
                    Some((Word::Done, _)) => return Ok(Event::Done),
                    Some(_) => {}
                    None => {
                        handing.putting_back = handing.channel.take();
                        return Ok(Event::Gone);
                    }
                },
                arrival = arrival => {
                    handing.newcomer = Some(arrival);
                    return Ok(Event::Greeted);
                }
                Ok(()) = self.installed.changed(), if handing.putting_back.is_some() => {
                    if self.installed.borrow().installed {
                        handing.putting_back = None;
                    }
                }
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    handing.patience = None;
                    return Ok(Event::Patience);
                }
            }
        }
    }

    /// Says who this is. `None`: nobody listens any more.
    async fn answer(&self, newcomer: Option<Arrival>) -> Option<Channel> {
        let Arrival { channel, version } = newcomer?;
        info!(version, "another agent is coming to take the node over");
        let own = instance::sockets_of(std::process::id());
        let datagrams = listening::udp().unwrap_or_default();
        let numbers: Vec<u64> =
            datagrams.iter().map(|one| one.inode).filter(|inode| own.contains(inode)).collect();
        for some in numbers.chunks(MOST_NUMBERS) {
            channel.say(&Word::Sockets(some.to_vec()), &[]).await.ok()?;
        }
        let running = Word::Running { version: VERSION.to_owned(), port: self.proxy_port };
        channel.say(&running, &[]).await.ok()?;
        Some(channel)
    }

    /// Hands the lock and the listeners on. If the other one is gone, that is the next event.
    async fn give(&mut self, handing: &Handing) {
        let (Some(lock), Some(channel)) = (&self.lock, &handing.channel) else { return };
        info!("the other agent could serve: it gets the lock, this one writes no rules any more");
        lock.pause();
        self.admin_stop.cancel();
        for (name, socket) in self.shared.listeners.all() {
            if channel.say(&Word::Listener(name), &[socket.as_fd()]).await.is_err() {
                return;
            }
        }
        let _ = channel.say(&Word::Yielded, &[lock.as_fd()]).await;
    }

    /// Is the node's agent again.
    fn resume(&mut self, handing: &mut Handing) {
        warn!("the other agent is gone before it had the node: this one goes on, and writes its rules anew");
        handing.patience = None;
        if let Some(lock) = &mut self.lock
            && let Err(error) = lock.resume()
        {
            error!(%error, "the instance lock @edgesplice is held, but nobody who asks there is answered");
        }
        if self.admin_stop.is_cancelled() {
            let listeners = &self.shared.listeners;
            let server = match listeners.own(Purpose::Admin, self.settings.admin.listen) {
                Some(socket) => AdminServer::on(socket.into()).map_err(anyhow::Error::from),
                None => AdminServer::bind(self.settings.admin.listen),
            };
            if let Err(error) = server.and_then(|server| self.serve_admin(server)) {
                error!("the admin endpoint does not answer any more: {error:#}");
            }
        }
        self.installed.mark_unchanged();
        self.pen.take_up();
    }

    /// Lets go of the node. Connections that are open, and those that were led here before the switch, are served on.
    fn leave(&mut self, handing: Handing) {
        self.words.yielded();
        info!(took = ?handing.asked.map(|at| at.elapsed()), "the node is the other agent's; open connections may end here");
        self.left.cancel();
        self.lock = None;
        self.shared.listeners.let_go();
        if let Some(desk) = &self.desk {
            desk.close();
        }
        self.stop.cancel();
        // Closed with this process: the other agent then knows that nothing is led here any more.
        self.farewell = handing.channel;
    }

    /// Waits for the connections that were led here before the switch, and drains.
    pub(super) async fn finish(&self) {
        sleep(LINGER.min(self.settings.proxy.drain_timeout)).await;
        self.drain().await;
    }
}

async fn refuse(newcomer: Option<Arrival>) {
    if let Some(Arrival { channel, .. }) = newcomer {
        let why = "it is ending, or another agent is taking the node over already";
        let _ = channel.say(&Word::Refused(why.to_owned()), &[]).await;
    }
}
