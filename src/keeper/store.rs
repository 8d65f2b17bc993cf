//! The words between keeper and worker: packets on a Unix socket, with descriptors beside them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use crate::net::parcel::{MOST, receive, send};

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
    /// The agent does its work.
    Ready,
    /// Another agent, of another keeper, does its work from now on.
    Yielded,
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
            None if text == "ready" => return Ok(Heard::Ready),
            None if text == "yielded" => return Ok(Heard::Yielded),
            // Nothing that a worker of this version says.
            _ => {}
        }
    }
}

/// What the keeper holds for the next worker.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<String, Vec<OwnedFd>>);

impl Held {
    pub(super) fn keep(&mut self, name: String, sockets: Vec<OwnedFd>) {
        self.0.insert(name, sockets);
    }

    /// Puts everything into the socket, for a worker that need not live yet; `last` is what became of the one before,
    /// `worked` whether any has worked.
    pub(super) fn hand_over(&self, socket: &OwnedFd, last: &str, worked: bool) -> io::Result<()> {
        for (name, sockets) in &self.0 {
            send(socket, &format!("held {name}"), sockets)?;
        }
        if worked {
            send::<OwnedFd>(socket, "worked", &[])?;
        }
        send::<OwnedFd>(socket, &format!("last {last}"), &[])
    }
}

/// The worker's side: what outlives it.
#[derive(Debug)]
pub struct Store {
    socket: OwnedFd,
    held: BTreeMap<String, Vec<OwnedFd>>,
    last: String,
    worked: bool,
}

impl Store {
    /// Reads what an earlier worker has left with the keeper.
    pub(super) fn open(socket: OwnedFd) -> io::Result<Self> {
        let mut held = BTreeMap::new();
        let mut worked = false;
        loop {
            // The end of the stream: the keeper has gone.
            let (text, sockets) =
                receive(&socket, RecvFlags::empty())?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match text.split_once(' ') {
                Some(("held", name)) => drop(held.insert(name.to_owned(), sockets)),
                Some(("last", last)) => return Ok(Self { socket, held, last: last.to_owned(), worked }),
                None if text == "worked" => worked = true,
                // Nothing that a keeper of this version says. It is older or newer after an upgrade.
                _ => {}
            }
        }
    }

    /// What became of the worker before, in words; `None` for the first one.
    pub fn last(&self) -> Option<&str> {
        Some(&*self.last).filter(|last| !last.is_empty())
    }

    /// Takes what was left under `name`, in the order in which it was left; nothing if there is none.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        self.held.remove(name).unwrap_or_default()
    }

    /// Leaves `sockets` with the keeper under `name`, in place of what is there.
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

    /// Tells the keeper that the agent does its work.
    pub fn ready(&self) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, "ready", &[])
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_outlives_whoever_opened_it() {
        let mut held = Held::default();
        let address = {
            let (keeper, worker) = pair().unwrap();
            held.hand_over(&keeper, "", false).unwrap();
            let mut store = Store::open(worker).unwrap();
            assert!(store.take("tcp").is_empty());
            assert_eq!(store.last(), None);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            store.keep("tcp", &[&listener]).unwrap();
            store.ready().unwrap();
            let Heard::Keep(name, sockets) = hear(&keeper).unwrap() else { panic!("nothing kept") };
            held.keep(name, sockets);
            assert!(matches!(hear(&keeper).unwrap(), Heard::Ready));
            assert!(matches!(hear(&keeper).unwrap(), Heard::Nothing));
            listener.local_addr().unwrap()
        };
        // Nobody accepts, and yet a client is let in.
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"x").unwrap();

        let (keeper, worker) = pair().unwrap();
        held.hand_over(&keeper, "was killed by signal 9", true).unwrap();
        let mut store = Store::open(worker).unwrap();
        assert_eq!(store.last(), Some("was killed by signal 9"));
        assert!(store.worked());
        let mut sockets = store.take("tcp");
        let listener = TcpListener::from(sockets.pop().unwrap());
        assert!(sockets.is_empty());
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
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
