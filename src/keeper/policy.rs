//! When a worker that has ended is started again. Pure: the time is given.

use std::time::{Duration, Instant};

use nix::libc::{SIGINT, SIGKILL, SIGTERM};
use serde::{Deserialize, Serialize};

use super::watch::SILENCE;

/// Pause before the second restart in a row; the first one is at once, and each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while the rules stand: clients wait in the sockets' queues for as long.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Deaths in a row after which the rules are taken away: about two seconds of clients who wait in vain.
const PATIENCE: u32 = 6;
/// Pause between two tries once the rules are gone.
const WITHOUT_RULES: Duration = Duration::from_secs(10);
/// A worker that was ready for so long has recovered: one that dies every ten seconds serves its node better, with a
/// start that takes a fraction of one, than no worker for ten.
const RECOVERED: Duration = Duration::from_secs(10);

/// What the keeper does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// End with that code.
    Exit(u8),
    /// Start a worker after a pause.
    Start(Duration),
    /// Take the rules away, and start a worker after a pause.
    Withdraw(Duration),
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with that exit code.
    Exited(i32),
    /// By that signal.
    Killed(i32),
    /// By the keeper, because it did not move any more.
    Stuck,
}

impl Ended {
    /// The exit code as a shell counts it.
    fn code(self) -> u8 {
        let code = match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
            Self::Stuck => 128 + SIGKILL,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// What is known of the workers so far.
#[derive(Debug, Default)]
pub(super) struct Policy {
    stopping: bool,
    /// The node is an agent's of another keeper.
    yielded: bool,
    /// Some worker has been ready: the configuration is good, and there are rules to answer for.
    proven: bool,
    ready_since: Option<Instant>,
    deaths: u32,
}

/// A policy that goes on in another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    proven: bool,
    ready_for: Option<Duration>,
    deaths: u32,
}

impl Policy {
    /// What goes on: of a policy that neither stops nor has given the node away.
    pub(super) fn record(&self, now: Instant) -> Record {
        let ready_for = self.ready_since.map(|since| now.saturating_duration_since(since));
        Record { proven: self.proven, ready_for, deaths: self.deaths }
    }

    /// Goes on with a record.
    pub(super) fn of(record: Record, now: Instant) -> Self {
        let Record { proven, ready_for, deaths } = record;
        let ready_since = ready_for.map(|time| now.checked_sub(time).unwrap_or(now));
        Self { proven, ready_since, deaths, ..Self::default() }
    }

    /// The worker does its work.
    pub(super) fn ready(&mut self, now: Instant) {
        self.proven = true;
        self.ready_since = Some(now);
    }

    /// The node is an agent's of another keeper: nobody is started any more, and nothing is taken away.
    pub(super) fn yielded(&mut self) {
        self.yielded = true;
    }

    pub(super) fn has_yielded(&self) -> bool {
        self.yielded
    }

    /// The agent was told to stop.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether a worker has ever worked.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    /// The worker has ended.
    pub(super) fn ended(&mut self, how: Ended, now: Instant) -> Next {
        if self.yielded {
            // However it ended: what it had left to do was to let open connections end.
            return Next::Exit(0);
        }
        // An agent that ends by itself before it ever worked has said why: its configuration is wrong, or another
        // agent runs. One that ends well was told to.
        let by_itself = matches!(how, Ended::Exited(code) if code == 0 || !self.proven);
        if self.stopping && matches!(how, Ended::Killed(SIGTERM | SIGINT)) {
            // It was too young to answer the signal itself, and did what it asks for.
            return Next::Exit(0);
        }
        if by_itself || self.stopping {
            return Next::Exit(how.code());
        }
        // One that got stuck has not worked for a while already.
        let needed = if how == Ended::Stuck { RECOVERED + SILENCE } else { RECOVERED };
        let recovered = self.ready_since.take().is_some_and(|since| now.duration_since(since) >= needed);
        self.deaths = if recovered { 1 } else { self.deaths.saturating_add(1) };
        match self.deaths {
            1 => Next::Start(Duration::ZERO),
            n if n < PATIENCE => Next::Start((FIRST_PAUSE * (1 << (n - 2))).min(LONGEST_PAUSE)),
            PATIENCE => Next::Withdraw(WITHOUT_RULES),
            // It may have put them up again.
            _ if self.proven => Next::Withdraw(WITHOUT_RULES),
            // It never worked: whoever started us is to know.
            _ => Next::Exit(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Ended::{Exited, Killed};

    #[test]
    fn what_ends_by_itself_before_it_worked_has_said_why() {
        for code in [0, 1, 64] {
            let next = Policy::default().ended(Exited(code), Instant::now());
            assert_eq!(next, Next::Exit(u8::try_from(code).unwrap()));
        }
    }

    #[test]
    fn the_first_death_is_followed_by_a_start_at_once_and_the_next_ones_ever_later() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        let mut seen = Vec::new();
        for _ in 0..8 {
            policy.ready(now);
            seen.push(policy.ended(Killed(9), now));
        }
        let ms = |n| Next::Start(Duration::from_millis(n));
        let withdrawn = Next::Withdraw(WITHOUT_RULES);
        assert_eq!(seen, [ms(0), ms(100), ms(200), ms(400), ms(800), withdrawn, withdrawn, withdrawn]);
    }

    #[test]
    fn who_worked_for_a_while_starts_with_a_clean_slate() {
        let (mut policy, begun) = (Policy::default(), Instant::now());
        for hour in 0..20 {
            let now = begun + Duration::from_secs(3600 * hour);
            policy.ready(now);
            let next = policy.ended(Killed(9), now + RECOVERED);
            assert_eq!(next, Next::Start(Duration::ZERO));
        }
    }

    #[test]
    fn one_that_gets_stuck_again_and_again_is_taken_out_of_the_way() {
        let (mut policy, mut now) = (Policy::default(), Instant::now());
        let mut seen = Vec::new();
        for _ in 0..6 {
            policy.ready(now);
            now += SILENCE + Duration::from_secs(2);
            seen.push(policy.ended(Ended::Stuck, now));
        }
        assert_eq!(seen[0], Next::Start(Duration::ZERO));
        assert_eq!(seen[5], Next::Withdraw(WITHOUT_RULES));
    }

    #[test]
    fn a_worker_that_fails_after_it_worked_is_started_again() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        policy.ready(now);
        assert_eq!(policy.ended(Exited(1), now), Next::Start(Duration::ZERO));
        assert_eq!(policy.ended(Exited(64), now), Next::Start(FIRST_PAUSE));
        assert_eq!(policy.ended(Exited(0), now), Next::Exit(0));
    }

    #[test]
    fn one_that_dies_before_it_ever_worked_is_given_up_in_the_end() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        let ends = std::iter::repeat_with(|| policy.ended(Killed(9), now));
        let last = ends.take(20).find(|next| matches!(next, Next::Exit(_)));
        assert_eq!(last, Some(Next::Exit(1)));
    }

    #[test]
    fn nobody_follows_one_that_has_yielded() {
        for how in [Exited(0), Exited(1), Killed(9)] {
            let (mut policy, now) = (Policy::default(), Instant::now());
            policy.ready(now);
            policy.yielded();
            assert_eq!(policy.ended(how, now), Next::Exit(0));
            assert!(policy.has_yielded());
        }
    }

    #[test]
    fn a_record_goes_on_where_it_was() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        policy.ready(now);
        assert_eq!(policy.ended(Killed(9), now), Next::Start(Duration::ZERO));
        policy.ready(now);
        let mut later = Policy::of(policy.record(now), now);
        assert!(later.is_proven());
        assert_eq!(later.ended(Killed(9), now), Next::Start(FIRST_PAUSE));
        let mut recovered = Policy::of(policy.record(now + RECOVERED), now + RECOVERED);
        assert_eq!(recovered.ended(Killed(9), now + RECOVERED), Next::Start(Duration::ZERO));
    }

    #[test]
    fn a_stop_is_final() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        policy.ready(now);
        policy.stop();
        assert_eq!(policy.ended(Killed(9), now), Next::Exit(137));
        assert_eq!(policy.ended(Killed(SIGTERM), now), Next::Exit(0));
        assert_eq!(policy.ended(Exited(1), now), Next::Exit(1));
    }
}
