//! The side of the agent that runs. Pure.

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Another agent says that it is coming.
    Greeted,
    /// It could serve, and asks for the node.
    Asked,
    /// Nothing of ours writes rules or the cache any more.
    Frozen,
    /// It serves the node.
    Done,
    /// It has closed its side, or died.
    Gone,
    /// This agent is told to stop.
    Stop,
    /// Whom we waited for after [`Event::Stop`] has taken too long.
    Patience,
}

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Tell the other one who we are.
    Answer,
    /// Turn the other one away.
    Refuse,
    /// Stop writing rules and the cache, go on serving, and say [`Event::Frozen`].
    Freeze,
    /// Send the lock and the listeners, and keep a handle on each.
    Give,
    /// Take the lock back, and write the rules anew.
    Resume,
    /// Say [`Event::Patience`] after a while.
    Wait,
    /// Take no new connections, drain, take the rules away, end.
    Withdraw,
    /// Serve what was led here before the switch, drain, take nothing away, end.
    Leave,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum State {
    /// It has the node, and nobody else wants it.
    #[default]
    Owning,
    /// Somebody is getting ready to take it.
    Expecting,
    /// Its writers come to rest.
    Freezing,
    /// The other one has the lock and may write the rules.
    Given,
    /// The other one has the node.
    Left,
    /// It is ending in the ordinary way.
    Ending,
}

/// The agent that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Giver {
    state: State,
    stopping: bool,
}

impl Giver {
    /// Takes note of an event; the actions are to be carried out in order, each before the next event.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        use Action::{Answer, Freeze, Give, Leave, Refuse, Resume, Wait, Withdraw};
        let (state, actions) = match (self.state, event) {
            (State::Owning, Event::Greeted) => (State::Expecting, vec![Answer]),
            (state, Event::Greeted) => (state, vec![Refuse]),
            (State::Expecting, Event::Asked) => (State::Freezing, vec![Freeze]),
            (State::Freezing, Event::Frozen) => (State::Given, vec![Give]),
            (State::Given, Event::Done) => (State::Left, vec![Leave]),
            (State::Owning, Event::Stop) => (State::Ending, vec![Withdraw]),
            // Nothing has been given yet.
            (State::Expecting, Event::Stop | Event::Patience | Event::Gone) if self.stopping => {
                (State::Ending, vec![Withdraw])
            }
            // The rules may still lead here: whoever has the lock is waited for, told twice or not.
            (state @ (State::Expecting | State::Freezing | State::Given), Event::Stop) => {
                self.stopping = true;
                (state, vec![Wait])
            }
            (State::Expecting, Event::Gone) => (State::Owning, vec![]),
            // Once something is given, it is taken back only when the other one is gone: two must never write.
            (State::Freezing | State::Given, Event::Gone) if self.stopping => {
                (State::Ending, vec![Resume, Withdraw])
            }
            (State::Freezing | State::Given, Event::Gone) => (State::Owning, vec![Resume]),
            (state, _) => (state, vec![]),
        };
        self.state = state;
        actions
    }

    /// Whether somebody else has the lock.
    pub fn has_given(&self) -> bool {
        matches!(self.state, State::Given | State::Left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[Event]) -> (Giver, Vec<Action>) {
        let mut giver = Giver::default();
        let actions = events.iter().flat_map(|event| giver.on(*event)).collect();
        (giver, actions)
    }

    #[test]
    fn the_way_it_should_go() {
        use Action::{Answer, Freeze, Give, Leave};
        let (giver, actions) = after(&[Event::Greeted, Event::Asked, Event::Frozen, Event::Done]);
        assert_eq!(actions, [Answer, Freeze, Give, Leave]);
        assert!(giver.has_given());
    }

    #[test]
    fn told_to_stop_it_waits_for_whoever_is_coming() {
        use Action::{Answer, Freeze, Give, Leave, Resume, Wait, Withdraw};
        let (_, actions) = after(&[Event::Stop]);
        assert_eq!(actions, [Withdraw]);
        let (_, actions) = after(&[Event::Greeted, Event::Stop, Event::Asked, Event::Frozen, Event::Done]);
        assert_eq!(actions, [Answer, Wait, Freeze, Give, Leave]);
        let (_, actions) = after(&[Event::Greeted, Event::Stop, Event::Patience, Event::Gone]);
        assert_eq!(actions, [Answer, Wait, Withdraw]);
        let (_, actions) = after(&[Event::Greeted, Event::Asked, Event::Frozen, Event::Stop, Event::Gone]);
        assert_eq!(actions, [Answer, Freeze, Give, Wait, Resume, Withdraw]);
    }

    #[test]
    fn a_second_taker_is_turned_away() {
        let (_, actions) = after(&[Event::Greeted, Event::Greeted]);
        assert_eq!(actions, [Action::Answer, Action::Refuse]);
    }
}
