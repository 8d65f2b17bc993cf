//! Clients whose first packet is held, and backends that are connected and wait for their client. Pure but for its lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::syn::Syn;

/// Longest wait of a connected backend for its client. A client answers within its round trip; one whose answer is lost,
/// or whom the acceptor had no room for, is heard again after one second.
const PATIENCE: Duration = Duration::from_secs(3);

/// A client's address and port, and where it wants to go.
type Key = (SocketAddr, SocketAddr);

/// Where one client stands.
#[derive(Debug)]
enum Place<P, C> {
    /// Its packet is held while a backend is dialled.
    Dialling { sequence: u32, packet: P },
    /// Its packet went on; the backend waits.
    Connected { sequence: u32, backend: C, until: Instant },
}

/// All of them. `P` is a held packet, `C` a connected backend.
#[derive(Debug)]
pub(super) struct Waiting<P, C> {
    places: Mutex<HashMap<Key, Place<P, C>>>,
    /// Most at once.
    most: usize,
}

/// What a packet is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<P> {
    /// The first of a new client: dial a backend, then say how that ended. It is kept.
    First,
    /// Another one of a client whose backend is being dialled: drop it. Of two the older one is kept if they belong to the
    /// same connection, else the younger.
    Double(P),
    /// Another one of a client whose backend is connected: let it pass.
    Late(P),
    /// There is no room to keep it: let it pass.
    Full(P),
}

impl<P, C> Waiting<P, C> {
    pub(super) fn new(most: usize) -> Self {
        Self { places: Mutex::default(), most }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<Key, Place<P, C>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a packet in.
    pub(super) fn arrive(&self, syn: &Syn, packet: P) -> Arrival<P> {
        let mut places = self.places();
        let full = places.len() >= self.most;
        match places.entry((syn.client, syn.to)) {
            Entry::Occupied(mut known) => match known.get_mut() {
                Place::Dialling { sequence, .. } if *sequence == syn.sequence => Arrival::Double(packet),
                Place::Dialling { sequence, packet: older } => {
                    *sequence = syn.sequence;
                    Arrival::Double(std::mem::replace(older, packet))
                }
                Place::Connected { sequence, .. } => {
                    // The client has given up and comes again: what is connected serves it as well.
                    *sequence = syn.sequence;
                    Arrival::Late(packet)
                }
            },
            Entry::Vacant(_) if full => Arrival::Full(packet),
            Entry::Vacant(free) => {
                free.insert(Place::Dialling { sequence: syn.sequence, packet });
                Arrival::First
            }
        }
    }

    /// A backend is connected. Gives the packet that may go on now, or the backend back if nobody waits for it.
    pub(super) fn connected(&self, syn: &Syn, backend: C, now: Instant) -> Result<P, C> {
        let mut places = self.places();
        let Entry::Occupied(mut known) = places.entry((syn.client, syn.to)) else { return Err(backend) };
        let Place::Dialling { sequence, .. } = *known.get() else { return Err(backend) };
        let until = now + PATIENCE;
        match known.insert(Place::Connected { sequence, backend, until }) {
            Place::Dialling { packet, .. } => Ok(packet),
            Place::Connected { backend, .. } => Err(backend),
        }
    }

    /// No backend could be connected. Gives the packet back.
    pub(super) fn failed(&self, syn: &Syn) -> Option<P> {
        let mut places = self.places();
        let Entry::Occupied(known) = places.entry((syn.client, syn.to)) else { return None };
        match known.get() {
            Place::Dialling { .. } => match known.remove() {
                Place::Dialling { packet, .. } => Some(packet),
                Place::Connected { .. } => None,
            },
            Place::Connected { .. } => None,
        }
    }

    /// The backend that waits for a client that was accepted.
    pub(super) fn take(&self, client: SocketAddr, to: SocketAddr) -> Option<C> {
        let mut places = self.places();
        let Entry::Occupied(known) = places.entry((client, to)) else { return None };
        match known.get() {
            Place::Dialling { .. } => None,
            Place::Connected { .. } => match known.remove() {
                Place::Connected { backend, .. } => Some(backend),
                Place::Dialling { .. } => None,
            },
        }
    }

    /// The backends that have waited too long.
    pub(super) fn overdue(&self, now: Instant) -> Vec<C> {
        let late = |_: &Key, place: &mut Place<P, C>| matches!(place, Place::Connected { until, .. } if *until <= now);
        let mut places = self.places();
        places
            .extract_if(late)
            .filter_map(|(_, place)| match place {
                Place::Connected { backend, .. } => Some(backend),
                Place::Dialling { .. } => None,
            })
            .collect()
    }

    /// How many clients are in it.
    pub(super) fn len(&self) -> usize {
        self.places().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(port: u16, sequence: u32) -> Syn {
        Syn { client: ([10, 0, 0, 1], port).into(), to: ([10, 96, 0, 1], 80).into(), sequence }
    }

    fn waiting() -> Waiting<&'static str, &'static str> {
        Waiting::new(2)
    }

    #[test]
    fn a_retransmission_is_dropped_while_dialling_and_passes_afterwards() {
        let (w, now, a) = (waiting(), Instant::now(), syn(1, 7));
        assert_eq!(w.arrive(&a, "first"), Arrival::First);
        assert_eq!(w.arrive(&a, "again"), Arrival::Double("again"));
        assert_eq!(w.take(a.client, a.to), None, "its backend is not there yet");
        assert_eq!(w.connected(&a, "backend", now), Ok("first"));
        assert_eq!(w.arrive(&a, "late"), Arrival::Late("late"));
        assert_eq!(w.take(a.client, a.to), Some("backend"));
        assert_eq!((w.take(a.client, a.to), w.len()), (None, 0));
    }

    #[test]
    fn a_new_connection_from_the_same_port_takes_the_place_of_the_older() {
        let w = waiting();
        assert_eq!(w.arrive(&syn(1, 7), "old"), Arrival::First);
        assert_eq!(w.arrive(&syn(1, 8), "new"), Arrival::Double("old"));
        assert_eq!(w.failed(&syn(1, 7)), Some("new"));
        assert_eq!(w.failed(&syn(1, 7)), None);
    }

    #[test]
    fn there_is_room_for_so_many() {
        let w = waiting();
        assert_eq!(w.arrive(&syn(1, 1), "a"), Arrival::First);
        assert_eq!(w.arrive(&syn(2, 1), "b"), Arrival::First);
        assert_eq!(w.arrive(&syn(3, 1), "c"), Arrival::Full("c"));
        assert_eq!(w.arrive(&syn(1, 1), "a again"), Arrival::Double("a again"));
        assert_eq!(w.connected(&syn(3, 1), "nobody's", Instant::now()), Err("nobody's"));
    }

    #[test]
    fn whoever_waits_too_long_is_given_up() {
        let (w, now) = (waiting(), Instant::now());
        w.arrive(&syn(1, 1), "a");
        w.arrive(&syn(2, 1), "b");
        w.connected(&syn(1, 1), "backend", now).unwrap();
        assert!(w.overdue(now).is_empty());
        assert_eq!(w.overdue(now + PATIENCE), ["backend"]);
        // Who is still dialled for is bounded by the dial's own time.
        assert_eq!((w.len(), w.failed(&syn(2, 1))), (1, Some("b")));
    }
}
