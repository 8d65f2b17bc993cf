//! Passive health of one address: ejection with back-off, return by a single probe, load.
//!
//! Everything is atomics, so that picking takes no lock, and time comes in as a [`Tick`]. A failure is a dial that
//! was refused or not answered; what happens on an open connection says nothing here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;

use crate::model::OutlierDetection;

/// Consecutive failed dials until an address is ejected. Envoy takes 5 for requests, linkerd 7; a dial that fails is
/// a stronger sign than a failed request.
const CONSECUTIVE_FAILURES: u32 = 3;
/// First ejection. Short, because one probe costs its client at most the dial stagger.
const BASE_EJECTION: Duration = Duration::from_secs(1);
/// Longest ejection: what a restarted backend may have to wait for its first connection.
const MAX_EJECTION: Duration = Duration::from_secs(30);
/// How long a probe is waited for before the next one is let through; longer than any dial takes by default.
const PROBE_HOLD: Duration = Duration::from_secs(2);
/// Connect times below this count as equal: the noise of a local network and of a busy node must not tilt the
/// balance. linkerd has 1 ms, with which a thousand connections at once on a busy machine spread badly (measured).
const CONNECT_TIME_FLOOR_US: f32 = 5_000.0;
/// Share of a new connect time in the smoothed one. Small, because one late wake-up of ours is no slow backend.
const CONNECT_TIME_SHARE: f32 = 1.0 / 8.0;
/// A slow connect is forgotten with this time constant, linkerd's.
const CONNECT_TIME_DECAY_US: f32 = 10_000_000.0;

/// A moment, in microseconds since some start that all ticks share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    /// The moment `later` after this one.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(micros(later)))
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// When an address is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionPolicy {
    /// Consecutive failures until ejection, at least 1.
    pub failures: u32,
    /// First ejection; it doubles from there.
    pub base: Duration,
    /// Longest ejection.
    pub max: Duration,
    /// Most backends of one service port that may be out at once, in percent.
    pub max_percent: u8,
}

impl From<&OutlierDetection> for EjectionPolicy {
    fn from(o: &OutlierDetection) -> Self {
        let base = o.base_ejection_time.unwrap_or(BASE_EJECTION);
        Self {
            failures: o.consecutive_errors.unwrap_or(CONSECUTIVE_FAILURES).max(1),
            base,
            max: MAX_EJECTION.max(base),
            max_percent: o.max_ejection_percent.unwrap_or(100),
        }
    }
}

/// Whether an address may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Ready,
    /// It was ejected and its time is up: one connection may try it, see [`Health::claim_probe`].
    Due,
    /// It is ejected.
    Out,
}

/// What is known about one address.
#[derive(Debug)]
pub struct Health {
    /// Dials under way and connections open now.
    active: AtomicU32,
    /// Failed dials in a row.
    strikes: AtomicU32,
    /// Answers of 500 and above in a row.
    errors: AtomicU32,
    /// Ejections in a row: the exponent of the back-off.
    level: AtomicU32,
    /// A probe is under way.
    probing: AtomicBool,
    /// End of the ejection; 0 if there is none.
    until: AtomicU64,
    /// Smoothed connect time in microseconds, the bits of an `f32`.
    connect_us: AtomicU32,
    /// When `connect_us` was last updated.
    measured_at: AtomicU64,
    /// Told about every ejection and return.
    changes: Arc<watch::Sender<u64>>,
}

impl Health {
    /// An address about which nothing is known: it may be picked.
    pub fn new(changes: Arc<watch::Sender<u64>>) -> Self {
        Self {
            active: AtomicU32::new(0),
            strikes: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            level: AtomicU32::new(0),
            probing: AtomicBool::new(false),
            until: AtomicU64::new(0),
            connect_us: AtomicU32::new(0),
            measured_at: AtomicU64::new(0),
            changes,
        }
    }

    /// Whether the address may be picked at `now`.
    pub fn standing(&self, now: Tick) -> Standing {
        match self.until.load(Relaxed) {
            0 => Standing::Ready,
            until if now.0 >= until => Standing::Due,
            _ => Standing::Out,
        }
    }

    /// When the ejection ends; `None` if there is none.
    pub fn ejected_until(&self) -> Option<Tick> {
        Some(self.until.load(Relaxed)).filter(|t| *t != 0).map(Tick)
    }

    /// Takes the one probe that an address whose time is up may get. `false`: somebody else has it, or it is not due.
    pub fn claim_probe(&self, now: Tick) -> bool {
        let until = self.until.load(Relaxed);
        let due = until != 0 && now.0 >= until;
        let won =
            due && self.until.compare_exchange(until, now.after(PROBE_HOLD).0, Relaxed, Relaxed).is_ok();
        if won {
            self.probing.store(true, Relaxed);
        }
        won
    }

    /// A dial connected after `took`: all is forgiven.
    pub fn succeeded(&self, now: Tick, took: Duration) {
        self.measure(now, took);
        if self.strikes.load(Relaxed) != 0 {
            self.strikes.store(0, Relaxed);
        }
        if self.until.load(Relaxed) != 0 && self.until.swap(0, Relaxed) != 0 {
            self.level.store(0, Relaxed);
            self.probing.store(false, Relaxed);
            self.changed();
        }
    }

    /// A dial was refused or not answered. `jitter` in 0..1 spreads the end of the ejection by ±10 %. `true`: that has
    /// taken the address out.
    pub fn failed(&self, now: Tick, policy: &EjectionPolicy, jitter: f32) -> bool {
        let ejected = self.until.load(Relaxed) != 0;
        if ejected {
            // Dials that were under way when the address was ejected, and those of panic mode, say nothing new:
            // only the probe's failure lengthens the ejection.
            if !self.probing.swap(false, Relaxed) {
                return false;
            }
        } else if self.strikes.fetch_add(1, Relaxed) + 1 < policy.failures {
            return false;
        }
        self.eject(now, policy, jitter);
        if !ejected {
            self.changed();
        }
        !ejected
    }

    /// A request was answered with a status of 500 or above. Counted apart from failed dials, which a dial that
    /// succeeds forgives: such a backend can be dialled very well. `jitter` as in [`Self::failed`].
    pub fn erred(&self, now: Tick, policy: &EjectionPolicy, jitter: f32) {
        if self.errors.fetch_add(1, Relaxed) + 1 < policy.failures || self.until.load(Relaxed) != 0 {
            return;
        }
        self.eject(now, policy, jitter);
        self.changed();
    }

    /// A request was answered with a lower status.
    pub fn behaved(&self) {
        if self.errors.load(Relaxed) != 0 {
            self.errors.store(0, Relaxed);
        }
    }

    fn eject(&self, now: Tick, policy: &EjectionPolicy, jitter: f32) {
        let level = self.level.fetch_add(1, Relaxed).min(20);
        let span = policy.base.saturating_mul(1 << level).min(policy.max).mul_f32(0.9 + 0.2 * jitter);
        self.until.store(now.after(span).0.max(1), Relaxed);
        self.strikes.store(0, Relaxed);
        self.errors.store(0, Relaxed);
    }

    /// How busy the address is, for comparison only: open connections × connect time.
    pub fn load(&self, now: Tick) -> f32 {
        (self.active.load(Relaxed) + 1) as f32 * self.connect_time_us(now).max(CONNECT_TIME_FLOOR_US)
    }

    /// Dials under way and connections open now.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Counts a connection in. Paired with [`Self::release`].
    pub(super) fn acquire(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// Counts a connection out.
    pub(super) fn release(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    fn connect_time_us(&self, now: Tick) -> f32 {
        let value = f32::from_bits(self.connect_us.load(Relaxed));
        if value <= CONNECT_TIME_FLOOR_US {
            return value;
        }
        let age = now.0.saturating_sub(self.measured_at.load(Relaxed)) as f32;
        value * (-age / CONNECT_TIME_DECAY_US).exp()
    }

    /// Two threads may overwrite each other here; a lost sample does not matter.
    fn measure(&self, now: Tick, took: Duration) {
        let sample = took.as_secs_f32() * 1e6;
        let before = self.connect_time_us(now);
        let value = before + (sample - before) * CONNECT_TIME_SHARE;
        self.connect_us.store(value.to_bits(), Relaxed);
        self.measured_at.store(now.0, Relaxed);
    }

    fn changed(&self) {
        self.changes.send_modify(|generation| *generation += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: EjectionPolicy = EjectionPolicy {
        failures: 3,
        base: Duration::from_secs(1),
        max: Duration::from_secs(30),
        max_percent: 100,
    };

    fn health() -> (Health, watch::Receiver<u64>) {
        let (tx, rx) = watch::channel(0);
        (Health::new(Arc::new(tx)), rx)
    }

    fn at(seconds: f64) -> Tick {
        Tick(micros(Duration::from_secs_f64(seconds)))
    }

    #[test]
    fn ejection_timeline() {
        let (h, changes) = health();
        h.failed(at(1.0), &POLICY, 0.5);
        h.failed(at(1.0), &POLICY, 0.5);
        assert_eq!(h.standing(at(1.0)), Standing::Ready);
        h.failed(at(1.0), &POLICY, 0.5);
        assert_eq!(h.standing(at(1.9)), Standing::Out);
        assert_eq!(*changes.borrow(), 1);

        // Latecomers do not lengthen it.
        h.failed(at(1.5), &POLICY, 0.5);
        assert_eq!(h.standing(at(2.01)), Standing::Due);

        // One probe only.
        assert!(h.claim_probe(at(2.01)));
        assert!(!h.claim_probe(at(2.01)));
        assert_eq!(h.standing(at(2.5)), Standing::Out);

        // It fails: twice the time.
        h.failed(at(2.5), &POLICY, 0.5);
        assert_eq!(h.standing(at(4.4)), Standing::Out);
        assert_eq!(h.standing(at(4.51)), Standing::Due);
        assert_eq!(*changes.borrow(), 1);

        // The next one succeeds: back, with a clean slate.
        assert!(h.claim_probe(at(4.6)));
        h.succeeded(at(4.6), Duration::from_millis(1));
        assert_eq!(h.standing(at(4.6)), Standing::Ready);
        assert_eq!(*changes.borrow(), 2);
        h.failed(at(5.0), &POLICY, 0.5);
        assert_eq!(h.standing(at(5.0)), Standing::Ready);
    }

    #[test]
    fn a_lost_probe_does_not_block_for_ever() {
        let (h, _changes) = health();
        (0..3).for_each(|_| _ = h.failed(at(0.0), &POLICY, 0.5));
        assert!(h.claim_probe(at(2.0)));
        assert!(!h.claim_probe(at(3.0)));
        assert!(h.claim_probe(at(4.1)));
    }

    #[test]
    fn back_off_is_bounded_and_jittered() {
        let (h, _changes) = health();
        (0..3).for_each(|_| _ = h.failed(at(0.0), &POLICY, 0.0));
        assert_eq!(h.standing(at(0.899)), Standing::Out);
        assert_eq!(h.standing(at(0.901)), Standing::Due);
        let mut now = at(10.0);
        for _ in 0..40 {
            assert!(h.claim_probe(now));
            h.failed(now, &POLICY, 1.0);
            now = now.after(Duration::from_secs(40));
        }
        let last = now.0 - 40_000_000;
        let left = h.ejected_until().map(|until| until.0 - last);
        assert!(left.is_some_and(|left| left.abs_diff(33_000_000) < 1_000), "{left:?}");
    }

    #[test]
    fn success_clears_strikes() {
        let (h, _changes) = health();
        for _ in 0..10 {
            h.failed(at(0.0), &POLICY, 0.5);
            h.failed(at(0.0), &POLICY, 0.5);
            h.succeeded(at(0.0), Duration::from_millis(1));
        }
        assert_eq!(h.standing(at(0.0)), Standing::Ready);
    }

    #[test]
    fn slow_connects_weigh_and_are_forgotten() {
        let (h, _changes) = health();
        h.succeeded(at(0.0), Duration::from_micros(80));
        assert!((h.load(at(0.0)) - 5_000.0).abs() < 1.0);
        h.succeeded(at(1.0), Duration::from_millis(40));
        assert!(h.load(at(1.0)) < 5_100.0, "once is chance");
        (0..40).for_each(|_| h.succeeded(at(1.0), Duration::from_millis(200)));
        assert!((h.load(at(1.0)) - 200_000.0).abs() < 2_000.0);
        h.acquire();
        assert!((h.load(at(1.0)) - 400_000.0).abs() < 4_000.0);
        h.release();
        assert!(h.load(at(11.0)) < 80_000.0);
        assert!((h.load(at(100.0)) - 5_000.0).abs() < 1.0);
    }

    #[test]
    fn errors_in_a_row_eject_whatever_dials_say() {
        let (h, changes) = health();
        for _ in 0..2 {
            h.erred(at(0.0), &POLICY, 0.5);
            h.erred(at(0.0), &POLICY, 0.5);
            h.succeeded(at(0.0), Duration::from_millis(1));
            h.behaved();
        }
        assert_eq!(h.standing(at(0.0)), Standing::Ready);
        for _ in 0..3 {
            h.erred(at(0.0), &POLICY, 0.5);
            h.succeeded(at(0.0), Duration::from_millis(1));
        }
        assert_eq!(h.standing(at(0.5)), Standing::Ready, "a dial after the third one forgives");
        (0..2).for_each(|_| h.erred(at(0.0), &POLICY, 0.5));
        h.succeeded(at(0.0), Duration::from_millis(1));
        h.erred(at(0.0), &POLICY, 0.5);
        assert_eq!(h.standing(at(0.5)), Standing::Out);
        assert_eq!(*changes.borrow(), 3);
    }

    #[test]
    fn settings_override_the_defaults() {
        let mut rule = OutlierDetection::default();
        assert_eq!(EjectionPolicy::from(&rule), POLICY);
        rule.consecutive_errors = Some(0);
        rule.base_ejection_time = Some(Duration::from_mins(1));
        rule.max_ejection_percent = Some(50);
        let policy = EjectionPolicy::from(&rule);
        assert_eq!((policy.failures, policy.max, policy.max_percent), (1, Duration::from_mins(1), 50));
    }
}
