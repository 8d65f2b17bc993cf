//! Sockets that outlive this process: opened here, left with whoever keeps them, taken back by the next process.
//!
//! What arrives while no process reads waits in the socket. One that nobody has taken back once the agent knows what it
//! serves is let go of, so that its clients are refused.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::SockRef;

use super::sock;

/// What a socket is for. A socket is found again by this and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Datagrams to a served frontend.
    Datagrams,
    /// Questions to the DNS server, as datagrams.
    Names,
    /// The same as streams.
    NameStreams,
    /// Health checks of load balancers.
    Health,
}

impl Use {
    /// Every use.
    pub const ALL: [Self; 4] = [Self::Datagrams, Self::Names, Self::NameStreams, Self::Health];

    /// The group under which such sockets are kept: a word without blanks.
    pub fn group(self) -> &'static str {
        match self {
            Self::Datagrams => "datagrams",
            Self::Names => "names",
            Self::NameStreams => "name-streams",
            Self::Health => "health",
        }
    }
}

/// What whoever keeps sockets is to do.
#[derive(Debug)]
pub enum Word {
    /// Keep this one under that name.
    Keep(String, OwnedFd),
    /// Let go of what is kept under that name.
    LetGo(String),
    /// Let go of everything: another process, of another keeper, does what this one did.
    Yielded,
}

/// Opens sockets, or takes back those that an earlier process has left. By default nothing is taken back, and nothing
/// outlives the process.
#[derive(Debug, Default)]
pub struct Shelf {
    held: Mutex<BTreeMap<(Use, SocketAddr), OwnedFd>>,
    words: Option<Sender<Word>>,
}

struct Name(Use, SocketAddr);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.group(), self.1)
    }
}

impl Shelf {
    /// With what an earlier process has left, and the way to whoever keeps it.
    pub fn new(left: impl IntoIterator<Item = (Use, Vec<OwnedFd>)>, words: Sender<Word>) -> Self {
        let all = left.into_iter().flat_map(|(of, sockets)| sockets.into_iter().map(move |one| (of, one)));
        let held = all.filter_map(|(of, socket)| Some(((of, sock::local_addr(&socket).ok()?), socket)));
        Self { held: Mutex::new(held.collect()), words: Some(words) }
    }

    /// Opens a socket for datagrams to `addr`, see [`sock::udp_transparent`].
    pub fn udp_transparent(&self, addr: SocketAddr, mark: u32) -> io::Result<std::net::UdpSocket> {
        let socket = self.open(Use::Datagrams, addr, || sock::udp_transparent(addr, mark))?;
        if mark != 0 {
            // The configuration may have changed meanwhile.
            SockRef::from(&socket).set_mark(mark)?;
        }
        Ok(socket)
    }

    /// The socket for `of` at `addr`: one that was left, or what `make` makes.
    pub fn open<S: AsFd + From<OwnedFd>>(
        &self,
        of: Use,
        addr: SocketAddr,
        make: impl FnOnce() -> io::Result<S>,
    ) -> io::Result<S> {
        if let Some(socket) = self.lock().remove(&(of, addr)) {
            return Ok(socket.into());
        }
        let socket = make()?;
        self.keep(of, addr, &socket);
        Ok(socket)
    }

    /// Has `socket`, which was opened elsewhere, outlive this process as the one for `of` at `addr`.
    pub fn keep(&self, of: Use, addr: SocketAddr, socket: impl AsFd) {
        // Short of descriptors: it serves all the same, and does not outlive this process.
        if let Some(words) = &self.words
            && let Ok(copy) = socket.as_fd().try_clone_to_owned()
        {
            let _ = words.send(Word::Keep(Name(of, addr).to_string(), copy));
        }
    }

    /// Whether a socket was left there and has not been taken back.
    pub fn holds(&self, of: Use, addr: SocketAddr) -> bool {
        self.lock().contains_key(&(of, addr))
    }

    /// Has the socket for `of` at `addr` go with this process's own.
    pub fn close(&self, of: Use, addr: SocketAddr) {
        self.lock().remove(&(of, addr));
        self.tell(of, addr);
    }

    /// Lets go of what nobody has taken back.
    pub fn let_go(&self) {
        for (of, addr) in std::mem::take(&mut *self.lock()).into_keys() {
            self.tell(of, addr);
        }
    }

    fn tell(&self, of: Use, addr: SocketAddr) {
        if let Some(words) = &self.words {
            let _ = words.send(Word::LetGo(Name(of, addr).to_string()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Use, SocketAddr), OwnedFd>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::mpsc::channel;

    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_socket_is_found_again_by_its_use_and_address() {
        let (words, _heard) = channel();
        let left = UdpSocket::bind(any()).unwrap();
        let addr = left.local_addr().unwrap();
        let sender = UdpSocket::bind(any()).unwrap();
        sender.send_to(b"before", addr).unwrap();
        let shelf = Shelf::new([(Use::Names, vec![left.into()])], words);
        assert!(shelf.holds(Use::Names, addr) && !shelf.holds(Use::Health, addr));
        let socket: UdpSocket = shelf.open(Use::Names, addr, || UdpSocket::bind(addr)).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 6, "what came meanwhile");
        assert!(!shelf.holds(Use::Names, addr));
    }

    #[test]
    fn what_is_opened_is_kept_until_it_is_closed() {
        let (words, heard) = channel();
        let shelf = Shelf::new([], words);
        let addr = "127.0.0.1:53".parse().unwrap();
        let _socket: UdpSocket = shelf.open(Use::Names, addr, || UdpSocket::bind(any())).unwrap();
        assert!(matches!(heard.recv().unwrap(), Word::Keep(name, _) if name == "names 127.0.0.1:53"));
        shelf.close(Use::Names, addr);
        assert!(matches!(heard.recv().unwrap(), Word::LetGo(name) if name == "names 127.0.0.1:53"));
        // One that cannot be opened is not kept.
        let failed = shelf.open::<UdpSocket>(Use::Names, addr, || Err(io::ErrorKind::AddrInUse.into()));
        assert!(failed.is_err() && heard.try_recv().is_err());
    }

    #[test]
    fn what_nobody_takes_back_is_let_go_of() {
        let (words, heard) = channel();
        let left = UdpSocket::bind(any()).unwrap();
        let addr = left.local_addr().unwrap();
        let shelf = Shelf::new([(Use::Datagrams, vec![left.into()])], words);
        shelf.let_go();
        let Word::LetGo(name) = heard.recv().unwrap() else { panic!("it is kept") };
        assert_eq!(name, format!("datagrams {addr}"));
        assert!(UdpSocket::bind(addr).is_ok(), "the port is free");
    }

    #[test]
    fn without_a_keeper_sockets_are_opened_all_the_same() {
        let shelf = Shelf::default();
        let socket: UdpSocket = shelf.open(Use::Names, any(), || UdpSocket::bind(any())).unwrap();
        shelf.close(Use::Names, socket.local_addr().unwrap());
        shelf.let_go();
    }
}
