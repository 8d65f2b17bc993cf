//! The side of the agent that comes. Pure.

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Another agent has the lock, and has answered.
    Met,
    /// Nobody had the lock: it is ours.
    Free,
    /// The other one does not give the node away.
    Refused,
    /// It could serve if it had the node.
    Ready,
    /// The other one has sent the lock.
    Yielded,
    /// The other one has closed its side, or died.
    Gone,
    /// The rules lead here.
    RulesIn,
    /// This agent is told to stop.
    Stop,
    /// The rules could not be written for long.
    Patience,
}

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Try to get the lock, and greet whoever has it: [`Event::Free`], [`Event::Met`] or [`Event::Refused`] follows.
    Approach,
    /// Ask for the node.
    Ask,
    /// Take the lock and the listeners into use, and write the rules. [`Event::RulesIn`] follows, or
    /// [`Event::Patience`].
    Own,
    /// Say that it is done.
    Tell,
    /// The node is this agent's: from here on it is an agent like any other.
    Serve,
    /// The other one has ended: nothing is led to its port any more.
    Forget,
    /// Stop writing, and close our side of the connection, so that the other one takes everything back; go on serving
    /// meanwhile.
    PutBack,
    /// End without having changed anything, or with everything put back.
    Fail,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum State {
    /// Nothing has been done yet.
    #[default]
    New,
    /// The first look at the lock.
    Looking,
    /// It loads; the other one knows of it.
    Loading,
    /// It loads; the other one has gone. Whoever kept it is to start it again: as long as we cannot serve, the node is
    /// better off so.
    Lonely,
    /// It could serve, and looks for the lock again.
    Seeking,
    /// It has asked for the node.
    Asking,
    /// It has the lock and writes the rules, with the other one at hand or without.
    Writing { watched: bool },
    /// The other one takes everything back.
    PuttingBack,
    /// The node is its own.
    Serving { watched: bool },
    /// It ends.
    Failed,
}

/// The agent that comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Taker {
    state: State,
    /// It could serve.
    ready: bool,
}

impl Taker {
    /// The first actions.
    pub fn begin(&mut self) -> Vec<Action> {
        self.state = State::Looking;
        vec![Action::Approach]
    }

    /// Takes note of an event; the actions are to be carried out in order, each before the next event.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        use Action::{Approach, Ask, Fail, Forget, Own, PutBack, Serve, Tell};
        self.ready |= event == Event::Ready;
        let (state, actions) = match (self.state, event) {
            (State::Looking | State::Seeking, Event::Free) => (State::Writing { watched: false }, vec![Own]),
            // It has died before it answered.
            (state @ (State::Looking | State::Seeking), Event::Gone) => (state, vec![Approach]),
            (State::Looking, Event::Met) if !self.ready => (State::Loading, vec![]),
            (State::Looking | State::Seeking, Event::Met) | (State::Loading, Event::Ready) => {
                (State::Asking, vec![Ask])
            }
            (State::Loading, Event::Gone) => (State::Lonely, vec![]),
            (State::Lonely, Event::Ready) | (State::Asking, Event::Gone) => (State::Seeking, vec![Approach]),
            (State::Asking, Event::Yielded) => (State::Writing { watched: true }, vec![Own]),
            (State::Writing { watched: true }, Event::RulesIn) => {
                (State::Serving { watched: true }, vec![Tell, Serve])
            }
            (State::Writing { watched: false }, Event::RulesIn) => {
                (State::Serving { watched: false }, vec![Serve])
            }
            // As after a crash of the other one: its rules stand until ours are in.
            (State::Writing { watched: true }, Event::Gone) => (State::Writing { watched: false }, vec![]),
            (State::Serving { watched: true }, Event::Gone) => {
                (State::Serving { watched: false }, vec![Forget])
            }
            (State::Writing { watched: true }, Event::Stop | Event::Patience) => {
                (State::PuttingBack, vec![PutBack])
            }
            (State::PuttingBack, Event::Gone)
            | (
                State::Looking | State::Loading | State::Lonely | State::Seeking | State::Asking,
                Event::Refused | Event::Stop,
            ) => (State::Failed, vec![Fail]),
            (state, _) => (state, vec![]),
        };
        self.state = state;
        actions
    }

    /// Whether nobody could take the node back: told to stop, this agent is then to end like any other.
    pub fn has_it_alone(&self) -> bool {
        matches!(self.state, State::Writing { watched: false } | State::Serving { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Approach, Ask, Fail, Forget, Own, PutBack, Serve, Tell};

    fn after(events: &[Event]) -> Vec<Action> {
        let mut taker = Taker::default();
        let mut actions = taker.begin();
        actions.extend(events.iter().flat_map(|event| taker.on(*event)));
        actions
    }

    #[test]
    fn the_way_it_should_go() {
        let events = [Event::Met, Event::Ready, Event::Yielded, Event::RulesIn, Event::Gone];
        assert_eq!(after(&events), [Approach, Ask, Own, Tell, Serve, Forget]);
    }

    #[test]
    fn with_nobody_there_it_is_an_ordinary_start() {
        assert_eq!(after(&[Event::Free, Event::RulesIn]), [Approach, Own, Serve]);
    }

    #[test]
    fn whose_giver_dies_goes_on_alone_once_it_could_serve() {
        assert_eq!(after(&[Event::Met, Event::Gone, Event::Ready, Event::Free]), [Approach, Approach, Own]);
        assert_eq!(
            after(&[Event::Met, Event::Ready, Event::Gone, Event::Met]),
            [Approach, Ask, Approach, Ask]
        );
        let events = [Event::Met, Event::Ready, Event::Yielded, Event::Gone, Event::RulesIn];
        assert_eq!(after(&events), [Approach, Ask, Own, Serve]);
    }

    #[test]
    fn what_was_taken_is_put_back() {
        assert_eq!(after(&[Event::Met, Event::Stop]), [Approach, Fail]);
        let events = [Event::Met, Event::Ready, Event::Yielded, Event::Patience, Event::Gone];
        assert_eq!(after(&events), [Approach, Ask, Own, PutBack, Fail]);
    }
}
