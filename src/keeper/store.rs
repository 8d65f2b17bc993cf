//! The words between keeper and worker: packets on a Unix socket, with descriptors beside them.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Descriptors in one packet at most. A data plane has one socket a thread; the kernel's own limit is 253.
const MOST: usize = 128;
/// Bytes of a word at most: a verb, and a name or a short sentence of this program.
const LONGEST: usize = 256;

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
            Some(("confine", rights)) => {
                if let Ok(rights) = u64::from_str_radix(rights, 16) {
                    return Ok(Heard::Confine(rights));
                }
            }
            None if text == "ready" => return Ok(Heard::Ready),
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

    /// Puts everything into the socket, for a worker that need not live yet; `last` is what became of the one before, and
    /// `confined` whether it inherits the keeper's filter of system calls.
    pub(super) fn hand_over(&self, socket: &OwnedFd, last: &str, confined: bool) -> io::Result<()> {
        if confined {
            send::<OwnedFd>(socket, "confined", &[])?;
        }
        for (name, sockets) in &self.0 {
            send(socket, &format!("held {name}"), sockets)?;
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
    confined: bool,
}

impl Store {
    /// Reads what an earlier worker has left with the keeper.
    pub(super) fn open(socket: OwnedFd) -> io::Result<Self> {
        let mut held = BTreeMap::new();
        let mut confined = false;
        loop {
            // The end of the stream: the keeper has gone.
            let (text, sockets) =
                receive(&socket, RecvFlags::empty())?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match text.split_once(' ') {
                Some(("held", name)) => drop(held.insert(name.to_owned(), sockets)),
                Some(("last", last)) => {
                    return Ok(Self { socket, held, last: last.to_owned(), confined });
                }
                None if text == "confined" => confined = true,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// What became of the worker before, in words; `None` for the first one.
    pub fn last(&self) -> Option<&str> {
        Some(&*self.last).filter(|last| !last.is_empty())
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

    /// Tells the keeper that the agent does its work.
    pub fn ready(&self) -> io::Result<()> {
        send::<OwnedFd>(&self.socket, "ready", &[])
    }
}

fn send<S: AsFd>(socket: &OwnedFd, text: &str, sockets: &[S]) -> io::Result<()> {
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("too many descriptors for one packet"));
    }
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A word and what came with it; `None` at the end of the stream.
fn receive(socket: &OwnedFd, flags: RecvFlags) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; LONGEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let length = loop {
        match recvmsg(socket, &mut parts, &mut beside, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut sockets = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(found) = message {
            sockets.extend(found);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((String::from_utf8_lossy(&text[..length]).into_owned(), sockets)))
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
            store.confine(0x3400).unwrap();
            store.ready().unwrap();
            let Heard::Keep(name, sockets) = hear(&keeper).unwrap() else { panic!("nothing kept") };
            held.keep(name, sockets);
            assert!(!store.is_confined());
            assert!(matches!(hear(&keeper).unwrap(), Heard::Confine(0x3400)));
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
        assert!(store.is_confined());
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
