//! The flows of one frontend, and which of them goes when its place is wanted. Knows no socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use indexmap::IndexMap;

use crate::balance::Tick;

/// Silence until a flow ends, `nf_conntrack_udp_timeout`.
const IDLE: Duration = Duration::from_secs(30);
/// The same once the client has gone on after an answer, `nf_conntrack_udp_timeout_stream`.
const IDLE_STREAM: Duration = Duration::from_mins(2);
/// What silence of a flow that nobody has answered counts as much as [`IDLE`] of one that was, when a place is wanted.
/// Resolvers ask again after five seconds.
const UNANSWERED: Duration = Duration::from_secs(5);
/// How many flows are compared when one has to go. With four of five in use, one that is in use goes once in a
/// million times.
const SAMPLE: usize = 64;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The backend has said nothing.
    Asked,
    /// It has answered.
    Answered,
    /// The client has gone on after that.
    Stream,
}

impl Stage {
    /// Silence until a flow ends by itself.
    pub(super) fn idle(self) -> Duration {
        match self {
            Self::Asked | Self::Answered => IDLE,
            Self::Stream => IDLE_STREAM,
        }
    }

    /// Silence after which a flow at any stage is worth the same place.
    fn worth(self) -> Duration {
        match self {
            Self::Asked => UNANSWERED,
            Self::Answered => IDLE,
            Self::Stream => IDLE_STREAM,
        }
    }
}

/// What is asked about a flow when one has to go.
pub(super) trait Flow {
    /// How far it has come.
    fn stage(&self) -> Stage;
    /// When something last passed.
    fn last(&self) -> Tick;
}

/// The flows of one frontend, by client.
pub(super) struct Table<F> {
    flows: IndexMap<SocketAddr, F>,
    /// Where the next comparison begins: it moves on, so that every flow is looked at in its turn.
    hand: usize,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self { flows: IndexMap::new(), hand: 0 }
    }
}

impl<F: Flow> Table<F> {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn get(&self, client: &SocketAddr) -> Option<&F> {
        self.flows.get(client)
    }

    pub(super) fn insert(&mut self, client: SocketAddr, flow: F) {
        self.flows.insert(client, flow);
    }

    pub(super) fn remove(&mut self, client: &SocketAddr) {
        self.flows.swap_remove(client);
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&SocketAddr, &F) -> bool) {
        self.flows.retain(|client, flow| keep(client, flow));
    }

    pub(super) fn clear(&mut self) {
        self.flows.clear();
    }

    /// Ends one flow to make room. Of those compared, a client that has more than half of them loses one of its own,
    /// whatever it does with them; else all are equal. Then the one goes that has been silent longest for its stage.
    /// `false`: there is none.
    pub(super) fn evict(&mut self, now: Tick) -> bool {
        let size = self.flows.len();
        if size == 0 {
            return false;
        }
        let sample = size.min(SAMPLE);
        // Spread evenly: flows of one client often stand side by side.
        let places = (0..sample).map(|n| (self.hand + n * size / sample) % size);
        let compared: Vec<(usize, IpAddr, u64)> = places
            .filter_map(|place| {
                let (client, flow) = self.flows.get_index(place)?;
                Some((place, client.ip(), staleness(flow, now)))
            })
            .collect();
        self.hand = (self.hand + 1) % size;
        let greedy = majority(compared.iter().map(|(_, ip, _)| *ip));
        let worst = compared
            .iter()
            .filter(|(_, ip, _)| greedy.is_none_or(|greedy| greedy == *ip))
            .max_by_key(|(_, _, staleness)| *staleness);
        worst.is_some_and(|(place, ..)| self.flows.swap_remove_index(*place).is_some())
    }
}

/// Silence as thousandths of a thousandth of what its stage is worth.
fn staleness(flow: &impl Flow, now: Tick) -> u64 {
    let silent = now.0.saturating_sub(flow.last().0);
    silent.saturating_mul(1_000_000) / u64::try_from(flow.stage().worth().as_micros()).unwrap_or(u64::MAX)
}

/// The address that makes up more than half of `all`, if there is one (Boyer and Moore).
fn majority(all: impl Iterator<Item = IpAddr> + Clone) -> Option<IpAddr> {
    let (mut leader, mut lead) = (None, 0_usize);
    for ip in all.clone() {
        if lead == 0 {
            leader = Some(ip);
        }
        lead = if leader == Some(ip) { lead + 1 } else { lead - 1 };
    }
    let (mut own, mut total) = (0, 0);
    for ip in all {
        total += 1;
        own += usize::from(leader == Some(ip));
    }
    leader.filter(|_| own * 2 > total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    struct Fake(Stage, u64);

    impl Flow for Fake {
        fn stage(&self) -> Stage {
            self.0
        }

        fn last(&self) -> Tick {
            Tick(self.1 * 1_000)
        }
    }

    /// Flows of so many clients, each at a port of its own.
    fn table(flows: &[(u8, Fake)]) -> Table<Fake> {
        let mut table = Table::default();
        for (n, (client, flow)) in flows.iter().enumerate() {
            let port = u16::try_from(n).unwrap();
            table.insert(SocketAddr::from(([10, 0, 0, *client], port)), *flow);
        }
        table
    }

    /// Which of them, by port, goes at so many milliseconds.
    fn goes(table: &mut Table<Fake>, at: u64) -> u16 {
        let before: Vec<u16> = table.flows.keys().map(SocketAddr::port).collect();
        assert!(table.evict(Tick(at * 1_000)));
        let gone: Vec<u16> =
            before.into_iter().filter(|port| !table.flows.keys().any(|at| at.port() == *port)).collect();
        assert_eq!(gone.len(), 1);
        gone[0]
    }

    #[test]
    fn the_longest_silent_one_goes_by_what_its_stage_is_worth() {
        use Stage::{Answered, Asked, Stream};
        let mut all = table(&[
            (1, Fake(Stream, 0)),
            (2, Fake(Answered, 8_000)),
            (3, Fake(Asked, 9_900)),
            (4, Fake(Stream, 9_000)),
        ]);
        // 10 s of 120, 2 s of 30, 0.1 s of 5, 1 s of 120.
        assert_eq!(goes(&mut all, 10_000), 0);
        assert_eq!(goes(&mut all, 10_000), 1);
        assert_eq!(goes(&mut all, 10_000), 2);
        assert_eq!(goes(&mut all, 10_000), 3);
        assert!(!all.evict(Tick(0)));
    }

    #[test]
    fn who_has_more_than_half_makes_room_from_what_is_its_own() {
        let fresh = Fake(Stage::Stream, 9_999);
        let old = Fake(Stage::Answered, 0);
        let mut all = table(&[(1, old), (2, fresh), (2, fresh), (2, fresh), (3, old)]);
        assert!([1, 2, 3].contains(&goes(&mut all, 10_000)));
        // Two of four are not more than half.
        assert!([0, 4].contains(&goes(&mut all, 10_000)));
    }

    #[test]
    fn a_flood_from_one_client_takes_no_place_of_others() {
        let mut all = Table::default();
        for port in 0..40 {
            all.insert(SocketAddr::from(([10, 0, 0, 1], port)), Fake(Stage::Answered, 0));
        }
        for n in 0..5_000_u16 {
            if all.len() == 200 {
                assert!(all.evict(Tick(u64::from(n) * 1_000)));
            }
            all.insert(SocketAddr::from(([10, 0, 0, 2], n)), Fake(Stage::Stream, u64::from(n)));
        }
        assert_eq!(all.flows.keys().filter(|at| at.ip() == IpAddr::from([10, 0, 0, 1])).count(), 40);
    }

    #[test]
    fn of_many_flows_in_use_the_few_that_are_not_go_first() {
        let mut all = Table::default();
        for n in 0..2_500_u16 {
            // Two in five were silent for twelve seconds.
            let last = if n % 5 < 2 { 0 } else { 12_000 };
            all.insert(SocketAddr::from(([10, 0, 0, 1], n)), Fake(Stage::Stream, last));
        }
        for n in 0..500_u16 {
            assert!(all.evict(Tick(12_001_000)));
            all.insert(SocketAddr::from(([10, 0, 0, 2], n)), Fake(Stage::Asked, 12_000));
        }
        let in_use =
            all.flows.keys().filter(|at| at.ip() == IpAddr::from([10, 0, 0, 1]) && at.port() % 5 >= 2);
        assert_eq!(in_use.count(), 1_500);
    }

    #[test]
    fn majorities() {
        let ips = |numbers: &[u8]| numbers.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect::<Vec<_>>();
        let of = |numbers: &[u8]| majority(ips(numbers).into_iter());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1]), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(of(&[1, 2]), None);
        assert_eq!(of(&[1, 2, 1]), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(of(&[1, 1, 2, 2]), None);
    }
}
