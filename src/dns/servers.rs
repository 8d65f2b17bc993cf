//! The servers for foreign names: the cluster's own where that is wished, then those that were given, else those of
//! `/etc/resolv.conf`; the best ones first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How often the file is looked at, and how old the list of live servers may be.
const LOOK: Duration = Duration::from_secs(2);
/// Most live servers asked for one question where there are others: each silent one takes its share of the time.
const MOST_LIVE: usize = 2;
/// Unanswered questions in a row until a server counts as down.
const STRIKES: u32 = 2;
/// How long a server that is down is not relied on; it is asked once in this time, if need be.
const DOWN: Duration = Duration::from_secs(2);
/// Share of a new answer time in the smoothed one.
const SHARE: f64 = 0.25;

/// What a server may take while another one answers.
const SLOW: Duration = Duration::from_millis(250);

/// Says which addresses must never be asked: they lead back here.
pub type Own = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// Says who is to be asked first, as of now.
pub type Live = Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// The servers.
pub struct Servers {
    live: Live,
    given: Vec<SocketAddr>,
    file: PathBuf,
    own: Own,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Vec<SocketAddr>,
    listed: Vec<SocketAddr>,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    health: HashMap<SocketAddr, Health>,
}

#[derive(Clone, Copy, Default)]
struct Health {
    /// Smoothed time to an answer, in seconds.
    time: f64,
    strikes: u32,
    /// When it was last asked while it was down, or went down.
    tried: Option<Instant>,
}

impl Health {
    fn is_up(&self) -> bool {
        self.strikes < STRIKES
    }
}

/// The addresses that a `resolv.conf` names, on port 53.
pub fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        // A scope of a link-local address is passed over with its address: it means nothing to us.
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))
    };
    text.lines().filter_map(server).collect()
}

impl Servers {
    /// `given` servers, or those that `file` names where there are none, never those that are `own`; `live` ones
    /// before them.
    pub fn new(live: Live, given: Vec<SocketAddr>, file: PathBuf, own: Own) -> Self {
        Self { live, given, file, own, state: Mutex::default() }
    }

    /// At most `most` servers, the live ones first and of both the quickest, those that are down last. None: all are
    /// down and were tried just now, or there are none.
    pub fn in_order(&self, now: Instant, most: usize) -> Vec<SocketAddr> {
        let mut state = self.look(now);
        let health =
            |state: &State, server: &SocketAddr| state.health.get(server).copied().unwrap_or_default();
        let sorted = |list: &[SocketAddr]| {
            let mut list: Vec<SocketAddr> =
                list.iter().copied().filter(|server| !(self.own)(*server)).collect();
            list.sort_by(|a, b| {
                let (a, b) = (health(&state, a), health(&state, b));
                b.is_up().cmp(&a.is_up()).then(a.time.total_cmp(&b.time))
            });
            list
        };
        let (mut list, listed) = (sorted(&state.live), sorted(&state.listed));
        // Never so many of them that nobody else is asked in time when the cluster is away.
        list.truncate(if listed.is_empty() { most } else { MOST_LIVE });
        list.extend(listed.into_iter().filter(|server| !state.live.contains(server)));
        list.sort_by_key(|server| !health(&state, server).is_up());
        list.truncate(most);
        let resting =
            |h: Health| !h.is_up() && h.tried.is_some_and(|at| now.saturating_duration_since(at) < DOWN);
        if list.iter().all(|server| resting(health(&state, server))) {
            return Vec::new();
        }
        for server in &list {
            if let Some(health) = state.health.get_mut(server).filter(|health| !health.is_up()) {
                health.tried = Some(now);
            }
        }
        list
    }

    /// Whether there is a server that answered its last questions, or was never asked.
    pub fn any_up(&self, now: Instant) -> bool {
        let state = self.look(now);
        let up = |server: &SocketAddr| state.health.get(server).is_none_or(Health::is_up);
        state.live.iter().chain(&state.listed).any(|server| !(self.own)(*server) && up(server))
    }

    /// All servers, each with whether it answered its last questions, or was never asked.
    pub fn all(&self, now: Instant) -> Vec<(SocketAddr, bool)> {
        let state = self.look(now);
        let mut all: Vec<SocketAddr> = Vec::new();
        for server in state.live.iter().chain(&state.listed) {
            if !all.contains(server) && !(self.own)(*server) {
                all.push(*server);
            }
        }
        let up = |server: &SocketAddr| state.health.get(server).is_none_or(Health::is_up);
        all.into_iter().map(|server| (server, up(&server))).collect()
    }

    /// Watches one question. Dropped without an answer it counts as unanswered, if it had its time.
    pub fn watch(&self, server: SocketAddr, begun: Instant) -> Watch<'_> {
        Watch { servers: self, server, begun, answered: false, failed: false }
    }

    fn look(&self, now: Instant) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return state;
        }
        state.looked = Some(now);
        let live = (self.live)();
        if live != state.live {
            state.live = live;
            state.forget();
        }
        if !self.given.is_empty() {
            state.listed.clone_from(&self.given);
            return state;
        }
        let modified = std::fs::metadata(&self.file).and_then(|meta| meta.modified()).ok();
        if modified.is_none() || modified != state.modified {
            state.modified = modified;
            state.listed = std::fs::read_to_string(&self.file).map(|text| parse(&text)).unwrap_or_default();
            state.forget();
        }
        state
    }
}

impl State {
    /// Forgets what is known of servers that are none any more.
    fn forget(&mut self) {
        let Self { live, listed, health, .. } = self;
        health.retain(|server, _| live.contains(server) || listed.contains(server));
    }
}

/// One question to one server.
pub struct Watch<'a> {
    servers: &'a Servers,
    server: SocketAddr,
    begun: Instant,
    answered: bool,
    failed: bool,
}

impl Watch<'_> {
    /// It refused.
    pub fn failed(&mut self) {
        self.failed = true;
    }

    /// It answered.
    pub fn answered(&mut self, now: Instant) {
        self.answered = true;
        let mut state = self.servers.state.lock().unwrap_or_else(PoisonError::into_inner);
        let health = state.health.entry(self.server).or_default();
        let took = now.saturating_duration_since(self.begun).as_secs_f64();
        health.time = if health.time > 0.0 { health.time.mul_add(1.0 - SHARE, took * SHARE) } else { took };
        health.strikes = 0;
        health.tried = None;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let waited = self.begun.elapsed();
        // Another server was quicker, and this one had no time to be slow.
        if self.answered || (!self.failed && waited < SLOW) {
            return;
        }
        let mut state = self.servers.state.lock().unwrap_or_else(PoisonError::into_inner);
        let health = state.health.entry(self.server).or_default();
        health.time = health.time.max(waited.as_secs_f64());
        health.strikes = health.strikes.saturating_add(1);
        health.tried = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_c_library_reads_it() {
        let text = "# none\nsearch lan\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver nonsense\n\
                    nameserver fe80::1%eth0\noptions ndots:5\n";
        let wanted: Vec<SocketAddr> = ["192.0.2.1:53", "[2001:db8::1]:53"].map(|s| s.parse().unwrap()).into();
        assert_eq!(parse(text), wanted);
    }

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 53))
    }

    fn servers(live: Live, given: &[SocketAddr]) -> Servers {
        Servers::new(live, given.to_vec(), "/nonexistent".into(), Arc::new(|a| a == addr(9)))
    }

    #[test]
    fn live_ones_come_first_while_they_answer() {
        let live = Arc::new(Mutex::new(vec![addr(9), addr(1), addr(2), addr(3)]));
        let told = Arc::clone(&live);
        let servers = servers(Arc::new(move || told.lock().unwrap().clone()), &[addr(7), addr(2)]);
        let start = Instant::now();
        assert_eq!(servers.in_order(start, 4), [addr(1), addr(2), addr(7)]);
        // The node's own server is quicker, and still comes after those of the cluster.
        servers.watch(addr(7), start).answered(start);
        assert_eq!(servers.in_order(start, 4), [addr(1), addr(2), addr(7)]);
        for _ in 0..STRIKES {
            servers.watch(addr(1), start).failed();
        }
        assert_eq!(servers.in_order(start, 4), [addr(2), addr(3), addr(7)]);
        for n in [2, 3] {
            for _ in 0..STRIKES {
                servers.watch(addr(n), start).failed();
            }
        }
        assert_eq!(servers.in_order(Instant::now() + LOOK, 4)[0], addr(7));
        let up: Vec<_> = servers.all(start).into_iter().filter(|(_, up)| *up).collect();
        assert_eq!(up, [(addr(7), true)]);
        // The list is followed, and nothing of those that are gone is remembered.
        *live.lock().unwrap() = vec![addr(4)];
        assert_eq!(servers.in_order(start + LOOK * 4, 4)[..2], [addr(4), addr(7)]);
        *live.lock().unwrap() = vec![addr(1)];
        assert_eq!(servers.in_order(start + LOOK * 8, 4)[..2], [addr(1), addr(7)]);
    }

    #[test]
    fn the_quick_come_first_the_dead_last_and_our_own_never() {
        let servers = servers(Arc::new(Vec::new), &[addr(9), addr(1), addr(2)]);
        let start = Instant::now();
        let before = |millis| start.checked_sub(Duration::from_millis(millis)).unwrap();
        assert_eq!(servers.in_order(start, 4), [addr(1), addr(2)]);
        servers.watch(addr(1), before(50)).answered(start);
        servers.watch(addr(2), before(5)).answered(start);
        assert_eq!(servers.in_order(start, 4), [addr(2), addr(1)]);
        for _ in 0..STRIKES {
            drop(servers.watch(addr(2), before(1_800)));
        }
        assert_eq!(servers.in_order(start, 4), [addr(1), addr(2)]);
        assert!(servers.any_up(start));
        for _ in 0..STRIKES {
            drop(servers.watch(addr(1), before(1_800)));
        }
        let now = Instant::now();
        assert!(!servers.any_up(now));
        assert!(servers.in_order(now, 4).is_empty(), "all are down and were tried just now");
        assert_eq!(servers.in_order(now + DOWN, 4).len(), 2, "once in a while they are tried again");
        assert!(servers.in_order(now + DOWN, 4).is_empty());
    }
}
