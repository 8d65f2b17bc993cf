//! The listening sockets at fixed addresses: handed on to the next agent, and had from the one before, so that there is
//! no moment at which nobody listens.
//!
//! The acceptor's sockets and those for datagrams of Services are not among them: the rules, and the order in which
//! sockets were opened, decide who gets what comes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a socket is for, and its address, as the other agent is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    Admin,
    DnsDatagrams,
    DnsStreams,
    HealthCheck,
}

impl Purpose {
    fn at(self, addr: SocketAddr) -> String {
        let what = match self {
            Self::Admin => "admin",
            Self::DnsDatagrams => "dns-udp",
            Self::DnsStreams => "dns-tcp",
            Self::HealthCheck => "health",
        };
        format!("{what} {addr}")
    }
}

/// What can be handed on, and what was had.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Handles on own sockets, for the next agent.
    own: BTreeMap<String, OwnedFd>,
    /// Sockets of the agent before.
    inherited: BTreeMap<String, OwnedFd>,
    /// The agent before still has them.
    waiting: bool,
}

impl Listeners {
    /// `waiting`: the agent before has them, and will hand them on.
    pub(super) fn new(waiting: bool) -> Self {
        Self(Mutex::new(Known { waiting, ..Known::default() }))
    }

    /// Whether it is too early to listen at a fixed address.
    pub(super) fn is_waiting(&self) -> bool {
        self.lock().waiting
    }

    /// Takes note of what the agent before has handed on; an address that is not among it is free.
    pub(super) fn inherit(&self, sockets: impl IntoIterator<Item = (String, OwnedFd)>) {
        let mut known = self.lock();
        known.waiting = false;
        known.inherited.extend(sockets);
    }

    /// The socket that the agent before had.
    pub(super) fn take(&self, purpose: Purpose, addr: SocketAddr) -> Option<OwnedFd> {
        self.lock().inherited.remove(&purpose.at(addr))
    }

    /// Lets go of what the agent before had and nobody has taken.
    pub(super) fn forget_inherited(&self) {
        self.lock().inherited.clear();
    }

    /// Keeps a handle on an own socket for the next agent. Without one it binds the address itself once it is free.
    pub(super) fn keep(&self, purpose: Purpose, addr: SocketAddr, socket: impl AsFd) {
        match socket.as_fd().try_clone_to_owned() {
            Ok(handle) => drop(self.lock().own.insert(purpose.at(addr), handle)),
            Err(error) => tracing::debug!(%addr, %error, "a socket cannot be handed on"),
        }
    }

    /// Lets go of the handle on a socket that is closed.
    pub(super) fn drop_own(&self, purpose: Purpose, addr: SocketAddr) {
        self.lock().own.remove(&purpose.at(addr));
    }

    /// A handle on an own socket.
    pub(super) fn own(&self, purpose: Purpose, addr: SocketAddr) -> Option<OwnedFd> {
        self.lock().own.get(&purpose.at(addr)).and_then(|handle| handle.try_clone().ok())
    }

    /// Handles on all own sockets, each with its name.
    pub(super) fn all(&self) -> Vec<(String, OwnedFd)> {
        let known = self.lock();
        let handles = known.own.iter().map(|(name, handle)| Some((name.clone(), handle.try_clone().ok()?)));
        handles.flatten().collect()
    }

    /// Lets go of every handle: the sockets are the next agent's now.
    pub(super) fn let_go(&self) {
        self.lock().own.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
