//! `sessionAffinity: ClientIP`: which backend a client had last, with a sliding timeout and bounded memory.
//!
//! Locks are fine here: only services that ask for affinity pay for them, and each lock covers a part of the clients.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::health::Tick;

/// Parts with a lock of their own.
const SHARDS: u16 = 16;
/// Clients remembered per service port at most, about 5 MB when full; beyond that the longest unseen of a sample goes.
const CLIENTS: usize = 65_536;
/// How many entries are compared when one has to go.
const SAMPLE: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Pin {
    backend: SocketAddr,
    seen: Tick,
}

/// The clients of one service port and where they went last.
#[derive(Debug)]
pub struct Affinity {
    shards: Box<[Mutex<HashMap<IpAddr, Pin>>]>,
    hasher: RandomState,
    shard_capacity: usize,
}

impl Default for Affinity {
    fn default() -> Self {
        Self::with_capacity(CLIENTS)
    }
}

impl Affinity {
    /// Remembers up to about `clients` of them.
    pub fn with_capacity(clients: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            shard_capacity: clients.div_ceil(usize::from(SHARDS)).max(1),
        }
    }

    /// The backend that `client` had less than `timeout` ago, which counts as a use; if there is none, or `usable`
    /// says no to it, what `choose` gives is remembered instead. Both run under the client's lock, so that
    /// simultaneous first connections of one client get the same backend.
    pub fn get_or_pin<T>(
        &self,
        client: IpAddr,
        now: Tick,
        timeout: Duration,
        usable: impl FnOnce(SocketAddr) -> Option<T>,
        choose: impl FnOnce() -> Option<(T, SocketAddr)>,
    ) -> Option<T> {
        let shard = usize::try_from(self.hasher.hash_one(client) % u64::from(SHARDS)).unwrap_or(0);
        let mut pins = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pin) = pins.get_mut(&client)
            && now < pin.seen.after(timeout)
            && let Some(found) = usable(pin.backend)
        {
            pin.seen = now;
            return Some(found);
        }
        let (chosen, backend) = choose()?;
        if pins.len() >= self.shard_capacity && !pins.contains_key(&client) {
            let oldest = pins.iter().take(SAMPLE).min_by_key(|(_, pin)| pin.seen).map(|(ip, _)| *ip);
            if let Some(oldest) = oldest {
                pins.remove(&oldest);
            }
        }
        pins.insert(client, Pin { backend, seen: now });
        Some(chosen)
    }

    /// Clients remembered now.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// True if no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Tick {
        Tick(seconds * 1_000_000)
    }

    fn client(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(n).into()
    }

    fn backend(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    /// Asks for client 1 with everything usable, choosing `choice` when there is no pin.
    fn ask(a: &Affinity, now: Tick, choice: u16) -> SocketAddr {
        a.get_or_pin(client(1), now, TIMEOUT, Some, || Some((backend(choice), backend(choice)))).unwrap()
    }

    #[test]
    fn timeout_slides() {
        let a = Affinity::default();
        assert_eq!(ask(&a, at(0), 1), backend(1));
        assert_eq!(ask(&a, at(9), 2), backend(1));
        assert_eq!(ask(&a, at(18), 2), backend(1));
        assert_eq!(ask(&a, at(28), 2), backend(2), "ten seconds after the last use");
    }

    #[test]
    fn an_unusable_pin_is_replaced_at_once() {
        let a = Affinity::default();
        ask(&a, at(0), 1);
        let got = a.get_or_pin(client(1), at(1), TIMEOUT, |_| None, || Some((backend(2), backend(2))));
        assert_eq!(got, Some(backend(2)));
        assert_eq!(ask(&a, at(2), 3), backend(2));
    }

    #[test]
    fn memory_is_bounded_and_the_recent_stay() {
        let a = Affinity::with_capacity(1_600);
        for n in 0..100_000 {
            let b = backend(7);
            a.get_or_pin(client(n), at(u64::from(n)), TIMEOUT, Some, || Some((b, b)));
        }
        assert!(a.len() <= 1_600 + usize::from(SHARDS));
        let recent = client(99_999);
        let kept = a.get_or_pin(recent, at(100_000), TIMEOUT, Some, || None);
        assert_eq!(kept, Some(backend(7)));
    }
}
