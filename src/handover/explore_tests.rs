//! Every interleaving of a hand-over: each side's steps, the messages between them, crashes, signals and patience that
//! runs out, with an abstract machine around the two state machines. Exhaustive for a number of faults.
//!
//! Time has no place here, but for two assumptions that the waits in `app` are made for: a process that is started in the
//! place of another gives up on the lock only after whoever holds it has read what it was sent.

use std::collections::{HashSet, VecDeque};

use super::giver::{self, Giver};
use super::taker::{self, Taker};

/// What may go wrong, all together, in one history.
const FAULTS: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    Old,
    New,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Message {
    TakeOver,
    Running,
    Refused,
    Yield,
    /// With the lock.
    Yielded,
    Done,
    End,
}

/// A process of an agent, and its keeper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    alive: bool,
    /// Its keeper starts it again.
    restarts: bool,
    /// It has served the node before.
    proven: bool,
    pen: bool,
    lock: bool,
    /// The rules are to be written.
    pending: bool,
    /// It drains, and takes the rules away before it ends.
    withdrawing: bool,
    /// It drains, and ends.
    leaving: bool,
}

impl Process {
    fn owner() -> Self {
        Self { alive: true, restarts: true, pen: true, lock: true, pending: true, ..Self::default() }
    }

    /// Its end: what it held is free.
    fn ended(&mut self, restarts: bool) {
        *self = Self { restarts, proven: self.proven, ..Self::default() };
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    old: Process,
    new: Process,
    giver: Giver,
    taker: Taker,
    /// What each side has still to take note of by itself.
    giver_events: VecDeque<giver::Event>,
    taker_events: VecDeque<taker::Event>,
    /// What is under way, each with the number of its connection.
    to_old: VecDeque<(u8, Message)>,
    to_new: VecDeque<(u8, Message)>,
    /// The connection that each side has open.
    old_open: Option<u8>,
    new_open: Option<u8>,
    connections: u8,
    /// The one whose taker is heard next.
    newcomer: u8,
    /// The new one could serve, and has said so.
    ready: bool,
    /// The old one is to close its end once its rules are in.
    putting_back: Option<u8>,
    /// The rules lead to this one's acceptor.
    rules: Option<Who>,
    stopped: bool,
    faults: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Deliver(Who),
    Local(Who),
    Ready,
    Write(Who),
    /// Ends what it was about: draining, and with it the process.
    Finish(Who),
    Restart(Who),
    // What may go wrong.
    Crash(Who),
    Stop(Who),
    Patience(Who),
}

impl Step {
    fn is_fault(self) -> bool {
        matches!(self, Self::Crash(_) | Self::Stop(_) | Self::Patience(_))
    }
}

impl World {
    fn begin() -> Self {
        let old = Process { pending: false, proven: true, ..Process::owner() };
        let mut world = Self {
            old,
            new: Process::default(),
            giver: Giver::default(),
            taker: Taker::default(),
            giver_events: VecDeque::new(),
            taker_events: VecDeque::new(),
            to_old: VecDeque::new(),
            to_new: VecDeque::new(),
            old_open: None,
            new_open: None,
            connections: 0,
            newcomer: 0,
            ready: false,
            putting_back: None,
            rules: Some(Who::Old),
            stopped: false,
            faults: FAULTS,
        };
        world.start_taker();
        world
    }

    fn start_taker(&mut self) {
        self.new = Process { alive: true, restarts: true, proven: self.new.proven, ..Process::default() };
        self.taker = Taker::default();
        self.taker_events.clear();
        self.ready = false;
        let actions = self.taker.begin();
        self.take(&actions);
    }

    /// Nobody has a handle on the lock, not even a message under way.
    fn lock_is_free(&self) -> bool {
        !self.old.lock && !self.new.lock && !self.is_coming(Message::Yielded)
    }

    /// Whether the new one has still to hear that.
    fn is_coming(&self, what: Message) -> bool {
        self.to_new.iter().any(|(_, message)| *message == what)
    }

    /// Whether the old one's process answers those who come to the lock.
    fn is_answering(&self) -> bool {
        self.old.alive && self.old.lock
    }

    fn steps(&self) -> Vec<Step> {
        use Step::{Crash, Deliver, Finish, Local, Patience, Ready, Restart, Stop, Write};
        let busy = (!self.giver_events.is_empty(), !self.taker_events.is_empty());
        let mut steps = vec![
            (self.old.alive && busy.0, Local(Who::Old)),
            (self.new.alive && busy.1, Local(Who::New)),
            (self.old.alive && !busy.0 && !self.to_old.is_empty(), Deliver(Who::Old)),
            (self.new.alive && !busy.1 && !self.to_new.is_empty(), Deliver(Who::New)),
            (self.new.alive && !self.ready, Ready),
        ];
        // Whoever has the lock has read what it was sent, or died, by the time that it is given up on.
        let settled = self.lock_is_free() || (self.to_old.is_empty() && !self.is_coming(Message::End));
        for who in [Who::Old, Who::New] {
            let process = self.process(who);
            let faulty = self.faults > 0 && process.alive;
            // What follows from a step of its own is done before anything else is heard.
            let busy = if who == Who::Old { busy.0 } else { busy.1 };
            let told = faulty && !busy && !process.withdrawing && !self.taker_serves(who);
            steps.extend([
                (process.alive && process.pen && process.pending, Write(who)),
                (process.alive && (process.withdrawing || process.leaving), Finish(who)),
                (!process.alive && process.restarts && settled, Restart(who)),
                (faulty, Crash(who)),
                (told, Stop(who)),
                (told, Patience(who)),
            ]);
        }
        steps.into_iter().filter(|(possible, _)| *possible).map(|(_, step)| step).collect()
    }

    fn taker_serves(&self, who: Who) -> bool {
        who == Who::New && self.new.proven
    }

    fn process(&self, who: Who) -> &Process {
        match who {
            Who::Old => &self.old,
            Who::New => &self.new,
        }
    }

    fn go(&mut self, step: Step) {
        if step.is_fault() {
            self.faults -= 1;
        }
        match step {
            Step::Deliver(Who::Old) => self.old_hears(),
            Step::Deliver(Who::New) => self.new_hears(),
            Step::Local(Who::Old) => {
                let event = self.giver_events.pop_front().unwrap();
                self.give(event);
            }
            Step::Local(Who::New) => {
                let event = self.taker_events.pop_front().unwrap();
                self.note(event);
            }
            Step::Ready => {
                self.ready = true;
                self.note(taker::Event::Ready);
            }
            Step::Write(Who::Old) => {
                self.old.pending = false;
                self.rules = Some(Who::Old);
                self.has_put_back();
            }
            Step::Write(Who::New) => {
                self.new.pending = false;
                self.rules = Some(Who::New);
                self.taker_events.push_back(taker::Event::RulesIn);
            }
            Step::Finish(who) => {
                if self.process(who).withdrawing {
                    self.rules = None;
                }
                self.end(who, false);
            }
            Step::Restart(Who::Old) => self.restart_old(),
            Step::Restart(Who::New) => self.restart_new(),
            Step::Crash(who) => {
                let restarts = self.process(who).restarts;
                self.end(who, restarts);
            }
            Step::Stop(Who::Old) => {
                self.stopped = true;
                self.give(giver::Event::Stop);
            }
            Step::Stop(Who::New) => {
                self.stopped = true;
                let actions = self.taker.on(taker::Event::Stop);
                // An ordinary stop.
                self.new.withdrawing = self.taker.has_it_alone();
                self.take(&actions);
            }
            Step::Patience(Who::Old) => self.give(giver::Event::Patience),
            Step::Patience(Who::New) => self.note(taker::Event::Patience),
        }
    }

    fn old_hears(&mut self) {
        let Some((from, message)) = self.to_old.pop_front() else { return };
        let event = match message {
            Message::TakeOver => {
                self.newcomer = from;
                giver::Event::Greeted
            }
            // Of a connection that it has not taken up, or has closed.
            _ if self.old_open != Some(from) => return,
            Message::Yield => giver::Event::Asked,
            Message::Done => giver::Event::Done,
            Message::End => {
                self.putting_back = self.old_open.take();
                giver::Event::Gone
            }
            _ => unreachable!("{message:?}"),
        };
        self.give(event);
        if !self.old.pending {
            self.has_put_back();
        }
    }

    fn new_hears(&mut self) {
        let Some((from, message)) = self.to_new.pop_front() else { return };
        if self.new_open != Some(from) {
            return;
        }
        let event = match message {
            Message::Running => taker::Event::Met,
            Message::Refused => taker::Event::Refused,
            Message::Yielded => {
                self.new.lock = true;
                taker::Event::Yielded
            }
            Message::End => {
                self.new_open = None;
                taker::Event::Gone
            }
            _ => unreachable!("{message:?}"),
        };
        self.note(event);
    }

    /// The old one closes its end once everything stands again.
    fn has_put_back(&mut self) {
        if let Some(connection) = self.putting_back.take() {
            self.to_new.push_back((connection, Message::End));
        }
    }

    fn restart_old(&mut self) {
        if self.new.lock {
            // Another agent has taken the node over.
            self.old.restarts = false;
            return;
        }
        self.old = Process { proven: true, ..Process::owner() };
        self.giver = Giver::default();
        self.giver_events.clear();
        self.putting_back = None;
    }

    fn restart_new(&mut self) {
        if !self.new.proven {
            self.start_taker();
        } else if self.old.lock {
            self.new.restarts = false;
        } else {
            self.new = Process { proven: true, ..Process::owner() };
            self.ready = true;
            self.taker = Taker::default();
            self.taker.begin();
            self.taker.on(taker::Event::Free);
            self.taker_events.clear();
        }
    }

    /// The end of a process: its end of the connection closes, and what it had not read is lost.
    fn end(&mut self, who: Who, restarts: bool) {
        match who {
            Who::Old => {
                self.old.ended(restarts);
                // Also those that have not been heard yet.
                let unheard = self.to_old.drain(..).filter(|(_, message)| *message == Message::TakeOver);
                let mut closed: Vec<u8> = unheard.map(|(from, _)| from).collect();
                closed.extend(self.old_open.take());
                closed.extend(self.putting_back.take());
                self.to_new.extend(closed.into_iter().map(|connection| (connection, Message::End)));
            }
            Who::New => {
                self.new.ended(restarts);
                self.new_closes();
            }
        }
    }

    fn new_closes(&mut self) {
        self.to_new.clear();
        if let Some(connection) = self.new_open.take()
            && self.old.alive
        {
            self.to_old.push_back((connection, Message::End));
        }
    }

    fn give(&mut self, event: giver::Event) {
        for action in self.giver.on(event) {
            match action {
                giver::Action::Answer => {
                    self.old_open = Some(self.newcomer);
                    self.to_new.push_back((self.newcomer, Message::Running));
                }
                giver::Action::Refuse => self.to_new.push_back((self.newcomer, Message::Refused)),
                giver::Action::Freeze => {
                    self.old.pen = false;
                    self.giver_events.push_back(giver::Event::Frozen);
                }
                giver::Action::Give => {
                    if let Some(connection) = self.old_open.filter(|_| self.new_open == self.old_open) {
                        self.to_new.push_back((connection, Message::Yielded));
                    }
                }
                giver::Action::Resume => {
                    self.old.pen = true;
                    self.old.pending = true;
                }
                giver::Action::Wait => {}
                giver::Action::Withdraw => self.old.withdrawing = true,
                giver::Action::Leave => {
                    assert!(self.rules == Some(Who::New), "it leaves, and the rules lead to it: {self:#?}");
                    self.old.lock = false;
                    self.old.restarts = false;
                    self.old.leaving = true;
                }
            }
        }
    }

    fn note(&mut self, event: taker::Event) {
        let actions = self.taker.on(event);
        self.take(&actions);
    }

    fn take(&mut self, actions: &[taker::Action]) {
        for action in actions {
            match action {
                taker::Action::Approach => {
                    if self.lock_is_free() {
                        self.new.lock = true;
                        self.taker_events.push_back(taker::Event::Free);
                    } else if self.is_answering() {
                        self.connections += 1;
                        self.new_open = Some(self.connections);
                        self.to_old.push_back((self.connections, Message::TakeOver));
                    } else {
                        self.taker_events.push_back(taker::Event::Refused);
                    }
                }
                taker::Action::Ask => self.say(Message::Yield),
                taker::Action::Own => {
                    self.new.pen = true;
                    self.new.pending = true;
                }
                taker::Action::Tell => self.say(Message::Done),
                taker::Action::Serve => self.new.proven = true,
                taker::Action::Forget => {}
                taker::Action::PutBack => {
                    self.new.pen = false;
                    self.new.pending = false;
                    self.new.lock = false;
                    self.say(Message::End);
                }
                taker::Action::Fail => {
                    self.new.lock = false;
                    self.new_closes();
                    self.new.leaving = true;
                    self.new.restarts = false;
                }
            }
        }
    }

    fn say(&mut self, message: Message) {
        if let Some(connection) = self.new_open.filter(|_| self.old.alive) {
            self.to_old.push_back((connection, message));
        }
    }

    /// Whether something will still happen that leads the rules away from a dead process.
    fn is_recovering(&self) -> bool {
        let works = |process: &Process| process.restarts || (process.alive && process.pen);
        works(&self.old)
            || works(&self.new)
            || (self.old.alive && !(self.to_old.is_empty() && self.giver_events.is_empty()))
            || (self.new.alive && !(self.to_new.is_empty() && self.taker_events.is_empty()))
    }

    fn check(&self) {
        let writes = |process: &Process| process.alive && process.pen;
        assert!(!(writes(&self.old) && writes(&self.new)), "two may write: {self:#?}");
        if let Some(who) = self.rules {
            let owner = self.process(who);
            assert!(
                owner.alive || owner.restarts || self.is_recovering(),
                "traffic is led to a process that has ended: {self:#?}"
            );
        }
    }

    /// With nothing left to happen.
    fn check_end(&self) {
        let Some(who) = self.rules else {
            assert!(self.stopped, "nobody serves, though nobody was told to stop: {self:#?}");
            assert!(self.lock_is_free(), "nobody serves, and somebody has the lock: {self:#?}");
            return;
        };
        let owner = self.process(who);
        let other = self.process(if who == Who::Old { Who::New } else { Who::Old });
        assert!(owner.alive && owner.pen && owner.lock, "the owner is none: {self:#?}");
        assert!(!other.alive || !(other.pen || other.lock), "there are two owners: {self:#?}");
    }
}

/// Goes through every history. Returns how many states there are, and how many of them are ends.
fn explore() -> (usize, usize) {
    let mut seen = HashSet::new();
    let mut open = vec![World::begin()];
    let mut ends = 0;
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        world.check();
        let steps = world.steps();
        if steps.iter().all(|step| step.is_fault()) {
            world.check_end();
            ends += 1;
        }
        for step in steps {
            let mut next = world.clone();
            next.go(step);
            open.push(next);
        }
    }
    (seen.len(), ends)
}

#[test]
fn whoever_dies_at_whatever_step_there_is_one_owner_in_the_end() {
    let (states, ends) = explore();
    println!("{states} states, {ends} ends, up to {FAULTS} faults in each history");
    assert!(states > 1_000 && ends > 10, "{states} states and {ends} ends are no exploration");
}

/// Without faults there is one end: the new one has the node.
#[test]
fn without_faults_every_order_of_steps_ends_with_the_new_one() {
    let mut open = vec![World { faults: 0, ..World::begin() }];
    while let Some(world) = open.pop() {
        let steps = world.steps();
        if steps.is_empty() {
            assert_eq!(world.rules, Some(Who::New), "{world:#?}");
            assert!(!world.old.alive, "{world:#?}");
        }
        for step in steps {
            let mut next = world.clone();
            next.go(step);
            open.push(next);
        }
    }
}

/// No order of steps goes on for ever once nothing goes wrong any more.
#[test]
fn every_history_comes_to_an_end() {
    const LONGEST: usize = 200;
    let mut world = World::begin();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..20_000 {
        let mut length = 0;
        loop {
            let steps = world.steps();
            if steps.is_empty() {
                break;
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = usize::try_from(random % steps.len() as u64).unwrap();
            world.go(steps[at]);
            length += 1;
            assert!(length < LONGEST, "{world:#?}");
        }
        world.check_end();
        world = World::begin();
    }
}
