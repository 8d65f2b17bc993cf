//! The servers for foreign names: those that were given, else those of `/etc/resolv.conf`, the best ones first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);
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

/// The servers.
pub struct Servers {
    given: Vec<SocketAddr>,
    file: PathBuf,
    own: Own,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
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
    /// `given` servers, or those that `file` names where there are none, never those that are `own`.
    pub fn new(given: Vec<SocketAddr>, file: PathBuf, own: Own) -> Self {
        Self { given, file, own, state: Mutex::default() }
    }

    /// At most `most` servers, the quickest first, those that are down last. None: all are down and were tried just
    /// now, or there are none.
    pub fn in_order(&self, now: Instant, most: usize) -> Vec<SocketAddr> {
        let mut state = self.look(now);
        let mut list: Vec<SocketAddr> =
            state.listed.iter().copied().filter(|server| !(self.own)(*server)).collect();
        let health =
            |state: &State, server: &SocketAddr| state.health.get(server).copied().unwrap_or_default();
        list.sort_by(|a, b| {
            let (a, b) = (health(&state, a), health(&state, b));
            b.is_up().cmp(&a.is_up()).then(a.time.total_cmp(&b.time))
        });
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
        state.listed.iter().any(|server| !(self.own)(*server) && up(server))
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
        if !self.given.is_empty() {
            state.listed.clone_from(&self.given);
            return state;
        }
        let modified = std::fs::metadata(&self.file).and_then(|meta| meta.modified()).ok();
        if modified.is_none() || modified != state.modified {
            state.modified = modified;
            state.listed = std::fs::read_to_string(&self.file).map(|text| parse(&text)).unwrap_or_default();
            let listed = state.listed.clone();
            state.health.retain(|server, _| listed.contains(server));
        }
        state
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

    #[test]
    fn the_quick_come_first_the_dead_last_and_our_own_never() {
        let addr = |n| SocketAddr::from(([192, 0, 2, n], 53));
        let own = addr(9);
        let servers =
            Servers::new(vec![own, addr(1), addr(2)], "/nonexistent".into(), Arc::new(move |a| a == own));
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
