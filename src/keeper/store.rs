//! The words between keeper and worker: packets on a Unix socket, with descriptors beside them.
//!
//! A name is a group, and behind a blank what tells its members apart: `acceptor`, `datagrams 10.96.0.10:53`. What is
//! handed over goes by groups, many descriptors a packet: the socket itself says which address it has.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use super::resume::FORM;
use crate::net::parcel::{LONGEST, MOST, receive, send};

/// Sockets that are kept at most. More would not fit into the socket that they are handed over through before the next
/// worker reads there; a node has far fewer UDP services.
const MOST_KEPT: usize = 16_384;
/// Descriptors that the keeper needs for other things: its own, and those of starting a process.
const OTHERS: u64 = 32;

/// The two ends of the socket between keeper and worker. Both are closed on exec; the worker's becomes its standard
/// input.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// What is heard of a worker.
#[derive(Debug)]
pub(super) enum Heard {
    /// Keep these descriptors, in place of those of that name.
    Keep(String, Vec<OwnedFd>),
    /// The worker has confined itself to these rights, as `/proc/PID/status` writes them.
    Confine(u64),
    /// The agent does its work.
    Ready,
    /// Another agent, of another keeper, does its work from now on.
    Yielded,
    /// It moves.
    Moves,
    /// A part of it does not move any more: which one, in words.
    Stuck(String),
    /// It is about to end, in its own time.
    Ending,
    /// A keeper of its program takes up what is left in that form.
    Form(u32),
    /// No word for now.
    Nothing,
    /// It has closed its side.
    End,
}

/// The next word of the worker.
pub(super) fn hear(socket: &OwnedFd) -> io::Result<Heard> {
    loop {
        let (text, sockets) = match receive(socket, RecvFlags::DONTWAIT) {
            Ok(Some(word)) => word,
            Ok(None) => return Ok(Heard::End),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(error) => return Err(error),
        };
        match text.split_once(' ') {
            Some(("keep", name)) => return Ok(Heard::Keep(name.to_owned(), sockets)),
            Some(("stuck", why)) => return Ok(Heard::Stuck(why.to_owned())),
            Some(("form", form)) => {
                if let Ok(form) = form.parse() {
                    return Ok(Heard::Form(form));
                }
            }
            Some(("confine", rights)) => {
                if let Ok(rights) = u64::from_str_radix(rights, 16) {
                    return Ok(Heard::Confine(rights));
                }
            }
            None if text == "ready" => return Ok(Heard::Ready),
            None if text == "yielded" => return Ok(Heard::Yielded),
            None if text == "moves" => return Ok(Heard::Moves),
            None if text == "ending" => return Ok(Heard::Ending),
            // Nothing that a worker of this version says.
            _ => {}
        }
    }
}

/// What the keeper holds for the next worker.
#[derive(Debug)]
pub(super) struct Held {
    sockets: BTreeMap<String, Vec<OwnedFd>>,
    /// How many sockets that may be together.
    most: usize,
}

impl Held {
    /// Holds nothing yet, and never more than a process with so many descriptors can.
    pub(super) fn new(descriptors: u64) -> Self {
        let room = usize::try_from(descriptors.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
        Self { sockets: BTreeMap::new(), most: room.min(MOST_KEPT) }
    }

    /// Holds `sockets` in place of those of that name, as long as there is room; none: lets go of them.
    pub(super) fn keep(&mut self, name: String, sockets: Vec<OwnedFd>) {
        self.sockets.remove(&name);
        let kept: usize = self.sockets.values().map(Vec::len).sum();
        if !sockets.is_empty() && kept + sockets.len() <= self.most {
            self.sockets.insert(name, sockets);
        }
    }

    /// Lets go of everything: whoever waits there is to be told, and not to wait.
    pub(super) fn clear(&mut self) {
        self.sockets.clear();
    }

    /// What is held, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[OwnedFd])> {
        self.sockets.iter().map(|(name, sockets)| (&**name, &**sockets))
    }

    /// Puts everything into the socket, for a worker that need not live yet.
    pub(super) fn hand_over(&self, socket: &OwnedFd, before: &Before<'_>) -> io::Result<()> {
        self.pass(socket, |_| true, before)
    }

    /// Puts only what is kept in `group` into the socket, for a worker that is to live beside the one that has it.
    pub(super) fn lend(&self, socket: &OwnedFd, group: &str, confined: bool) -> io::Result<()> {
        self.pass(socket, |of| of == group, &Before { confined, ..Before::default() })
    }

    fn pass(
        &self,
        socket: &OwnedFd,
        is_wanted: impl Fn(&str) -> bool,
        before: &Before<'_>,
    ) -> io::Result<()> {
        let group = |name: &str| name.split(' ').next().unwrap_or_default().to_owned();
        let mut packet: (String, Vec<&OwnedFd>) = Default::default();
        for (name, sockets) in self.sockets.iter().filter(|(name, _)| is_wanted(&group(name))) {
            let of = group(name);
            if packet.0 != of || packet.1.len() + sockets.len() > MOST {
                flush(socket, &packet)?;
                packet = (of, Vec::new());
            }
            packet.1.extend(sockets);
        }
        flush(socket, &packet)?;
        let Restarts { died, stuck } = before.restarts;
        send::<OwnedFd>(socket, &format!("restarts {died} {stuck}"), &[])?;
        for (word, _) in
            [("worked", before.worked), ("confined", before.confined)].iter().filter(|(_, is)| *is)
        {
            send::<OwnedFd>(socket, word, &[])?;
        }
        send::<OwnedFd>(socket, &format!("last {}", cut(before.last)), &[])
    }
}

fn flush(socket: &OwnedFd, (group, sockets): &(String, Vec<&OwnedFd>)) -> io::Result<()> {
    if sockets.is_empty() { Ok(()) } else { send(socket, &format!("held {group}"), sockets) }
}

/// As much of a sentence as a word has room for.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST - 32)]
}

/// What a worker is told of those before it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before<'a> {
    pub(super) restarts: Restarts,
    /// What became of the last one; empty: there was none.
    pub(super) last: &'a str,
    /// Whether any has worked.
    pub(super) worked: bool,
    /// Whether the keeper has confined itself, so that the worker inherits its filter of system calls.
    pub(super) confined: bool,
}

/// How often a keeper has started the agent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// Because it had died.
    pub died: u64,
    /// Because it was stuck.
    pub stuck: u64,
}

/// The worker's side: what outlives it.
#[derive(Debug)]
pub struct Store {
    socket: OwnedFd,
    held: BTreeMap<String, Vec<OwnedFd>>,
    restarts: Restarts,
    last: String,
    worked: bool,
    confined: bool,
}

impl Store {
    /// Reads what an earlier worker has left with the keeper.
    pub(super) fn open(socket: OwnedFd) -> io::Result<Self> {
        let mut held = BTreeMap::<String, Vec<OwnedFd>>::new();
        let mut restarts = Restarts::default();
        let (mut worked, mut confined) = (false, false);
        loop {
            // The end of the stream: the keeper has gone.
            let (text, sockets) =
                receive(&socket, RecvFlags::empty())?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match text.split_once(' ') {
                Some(("held", name)) => held.entry(name.to_owned()).or_default().extend(sockets),
                Some(("restarts", counts)) => {
                    let mut counts = counts.split(' ').map(|count| count.parse().unwrap_or(0));
                    let mut next = || counts.next().unwrap_or(0);
                    restarts = Restarts { died: next(), stuck: next() };
                }
                Some(("last", last)) => {
                    let last = last.to_owned();
                    return Ok(Self { socket, held, restarts, last, worked, confined });
                }
                None if text == "worked" => worked = true,
                None if text == "confined" => confined = true,
                // Nothing that a keeper of this version says. It is older or newer after an upgrade.
                _ => {}
            }
        }
    }

    /// What became of the worker before, in words; `None` for the first one.
    pub fn last(&self) -> Option<&str> {
        Some(&*self.last).filter(|last| !last.is_empty())
    }

    /// How often the agent has been started again since its keeper began.
    pub fn restarts(&self) -> Restarts {
        self.restarts
    }

    /// Whether the keeper has confined itself, so that this process was born with its filter of system calls.
    pub fn is_confined(&self) -> bool {
        self.confined
    }

    /// Has the keeper confine itself as this process has, and with it every later worker. `rights` as
    /// `/proc/PID/status` writes them.
    pub fn confine(&self, rights: u64) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, &format!("confine {rights:x}"), &[])
    }

    /// Takes what was left in a group; what was left under one name in the order in which it was left.
    pub fn take(&mut self, group: &str) -> Vec<OwnedFd> {
        self.held.remove(group).unwrap_or_default()
    }

    /// Leaves `sockets` with the keeper under `name`, in place of what is there; none: has it let go of them.
    pub fn keep<S: AsFd>(&self, name: &str, sockets: &[S]) -> io::Result<()> {
        if sockets.len() > MOST {
            let why = format!("{} sockets; at most {MOST} outlive a worker", sockets.len());
            return Err(io::Error::other(why));
        }
        send(&self.socket, &format!("keep {name}"), sockets)
    }

    /// Tells the keeper that another agent does the work from now on: whatever becomes of this process, nobody is to be
    /// started in its place, and the rules are not its keeper's to take away.
    pub fn yielded(&self) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, "yielded", &[])
    }

    /// Whether a worker of this keeper has done the work before.
    pub fn worked(&self) -> bool {
        self.worked
    }

    /// Tells the keeper that the agent does its work, and that a keeper of this program could do the keeper's.
    pub fn ready(&self) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, &format!("form {FORM}"), &[])?;
        send::<OwnedFd>(&self.socket, "ready", &[])
    }

    /// Shows the keeper that the agent moves. From the first time on it is to be shown every [`super::BEAT`].
    pub fn moves(&self) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, "moves", &[])
    }

    /// Tells the keeper that a part of the agent is stuck, and which: the keeper ends this process.
    pub fn stuck(&self, why: &str) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, &format!("stuck {}", cut(why)), &[])
    }

    /// Tells the keeper that this process ends in its own time, and need not move any more.
    pub fn ending(&self) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, "ending", &[])
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_outlives_whoever_opened_it() {
        let mut held = Held::new(1_024);
        let address = {
            let (keeper, worker) = pair().unwrap();
            held.hand_over(&keeper, &Before::default()).unwrap();
            let mut store = Store::open(worker).unwrap();
            assert!(store.take("tcp").is_empty());
            assert_eq!(store.last(), None);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            store.keep("tcp", &[&listener]).unwrap();
            store.confine(0x3400).unwrap();
            store.ready().unwrap();
            let Heard::Keep(name, sockets) = hear(&keeper).unwrap() else { panic!("nothing kept") };
            held.keep(name, sockets);
            assert!(!store.is_confined());
            assert!(matches!(hear(&keeper).unwrap(), Heard::Confine(0x3400)));
            assert!(matches!(hear(&keeper).unwrap(), Heard::Form(FORM)));
            assert!(matches!(hear(&keeper).unwrap(), Heard::Ready));
            assert!(matches!(hear(&keeper).unwrap(), Heard::Nothing));
            listener.local_addr().unwrap()
        };
        // Nobody accepts, and yet a client is let in.
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"x").unwrap();

        let (keeper, worker) = pair().unwrap();
        let restarts = Restarts { died: 3, stuck: 1 };
        let last = "was killed by signal 9";
        held.hand_over(&keeper, &Before { restarts, last, worked: true, confined: true }).unwrap();
        let mut store = Store::open(worker).unwrap();
        assert_eq!(store.restarts(), restarts);
        assert_eq!(store.last(), Some("was killed by signal 9"));
        assert!(store.worked());
        assert!(store.is_confined());
        let mut sockets = store.take("tcp");
        let listener = TcpListener::from(sockets.pop().unwrap());
        assert!(sockets.is_empty());
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    fn sockets(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()).collect()
    }

    #[test]
    fn groups_are_handed_over_together_and_names_are_let_go_of_one_by_one() {
        let mut held = Held::new(1_024);
        held.keep("acceptor".to_owned(), sockets(3));
        for number in 0..300 {
            held.keep(format!("datagrams 10.0.0.1:{number}"), sockets(1));
        }
        held.keep("datagrams 10.0.0.1:7".to_owned(), Vec::new());
        held.keep("names 10.0.0.1:53".to_owned(), sockets(1));
        let (keeper, worker) = pair().unwrap();
        let last = "ä".repeat(LONGEST);
        held.hand_over(&keeper, &Before { last: &last, ..Before::default() }).unwrap();
        let mut store = Store::open(worker).unwrap();
        let counts = ["acceptor", "datagrams", "names", "nothing"].map(|group| store.take(group).len());
        assert_eq!(counts, [3, 299, 1, 0]);
        assert!(store.last().unwrap().starts_with("ää"));
        held.clear();
        let (keeper, worker) = pair().unwrap();
        held.hand_over(&keeper, &Before::default()).unwrap();
        assert!(Store::open(worker).unwrap().take("datagrams").is_empty());
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut held = Held::new(OTHERS + 3);
        held.keep("acceptor".to_owned(), sockets(2));
        held.keep("names 1".to_owned(), sockets(1));
        held.keep("names 2".to_owned(), sockets(1));
        assert_eq!(held.sockets.keys().collect::<Vec<_>>(), ["acceptor", "names 1"]);
        // In place of what is there.
        held.keep("acceptor".to_owned(), sockets(2));
        assert_eq!(held.sockets.len(), 2);
    }

    #[test]
    fn what_a_worker_says_of_itself_is_heard() {
        let (keeper, worker) = pair().unwrap();
        let socket = worker.try_clone().unwrap();
        Held::new(64).hand_over(&keeper, &Before::default()).unwrap();
        let store = Store::open(socket).unwrap();
        store.moves().unwrap();
        store.stuck("data-plane: last moved 11 s ago").unwrap();
        store.ending().unwrap();
        assert!(matches!(hear(&keeper).unwrap(), Heard::Moves));
        assert!(matches!(hear(&keeper).unwrap(), Heard::Stuck(why) if why.starts_with("data-plane")));
        assert!(matches!(hear(&keeper).unwrap(), Heard::Ending));
    }

    #[test]
    fn whoever_has_gone_says_nothing() {
        let (keeper, worker) = pair().unwrap();
        drop(worker);
        assert!(matches!(hear(&keeper).unwrap(), Heard::End));
        let (keeper, worker) = pair().unwrap();
        drop(keeper);
        assert!(Store::open(worker).is_err());
    }
}
