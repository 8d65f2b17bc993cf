//! Small scripted servers and clients, for behaviour that no ordinary server can be made to show.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;

use super::ns::Netns;

/// A TCP server with a scripted answer, one thread a connection, on both families. Stops when dropped.
pub struct Server {
    listener: TcpListener,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Listens on `port` in the namespace; `script` gets each connection.
    pub fn start(ns: &Netns, port: u16, script: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = ns
            .enter(|| TcpListener::bind(("::", port)))
            .unwrap_or_else(|error| panic!("port {port}: {error}"));
        let accepting = listener.try_clone().expect("a second handle on the listener");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, script) = (Arc::clone(&accepted), Arc::new(script));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                count.fetch_add(1, Ordering::Relaxed);
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(stream));
            }
        });
        Self { listener, accepted }
    }

    /// Answers each connection with `text` at once and closes.
    pub fn greeting(ns: &Netns, port: u16, text: &str) -> Self {
        let text = text.to_owned();
        Self::start(ns, port, move |mut stream| {
            let _ = stream.write_all(text.as_bytes());
        })
    }

    /// Reads to the client's end of file, waits for `pause`, and only then sends back everything it got.
    pub fn echo_after_eof(ns: &Netns, port: u16, pause: Duration) -> Self {
        Self::start(ns, port, move |mut stream| {
            let mut bytes = Vec::new();
            if stream.read_to_end(&mut bytes).is_ok() {
                std::thread::sleep(pause);
                let _ = stream.write_all(&bytes);
            }
        })
    }

    /// Sends back what comes, as it comes.
    pub fn echo(ns: &Netns, port: u16) -> Self {
        Self::start(ns, port, |mut stream| {
            let mut buffer = [0; 16 * 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        })
    }

    /// Reads once, sends `first`, and resets the connection.
    pub fn reset_after(ns: &Netns, port: u16, first: &'static [u8]) -> Self {
        Self::start(ns, port, move |mut stream| {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(first);
            // Let it arrive: a reset overtakes what is still in the client's queue.
            std::thread::sleep(Duration::from_millis(200));
            reset(stream);
        })
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread in `accept`, which then ends.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// A UDP server with a scripted answer, on both families. Stops when dropped.
pub struct Datagrams {
    socket: UdpSocket,
    answered: Arc<AtomicUsize>,
}

impl Datagrams {
    /// Listens on `port` in the namespace; what `script` gives for a datagram is sent back.
    pub fn start(ns: &Netns, port: u16, script: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> Self {
        let socket = ns
            .enter(|| UdpSocket::bind(("::", port)))
            .unwrap_or_else(|error| panic!("UDP port {port}: {error}"));
        let (serving, answered) =
            (socket.try_clone().expect("a second handle"), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&answered);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            // A shutdown wakes the thread with an empty datagram from nowhere.
            while let Ok((length, from)) = serving.recv_from(&mut buffer) {
                if from.port() == 0 {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = script(&buffer[..length]) {
                    let _ = serving.send_to(&answer, from);
                }
            }
        });
        Self { socket, answered }
    }

    /// Sends back what comes.
    pub fn echo(ns: &Netns, port: u16) -> Self {
        Self::start(ns, port, |datagram| Some(datagram.to_vec()))
    }

    /// Answers each datagram with `name`.
    pub fn named(ns: &Netns, port: u16, name: &str) -> Self {
        let name = name.to_owned();
        Self::start(ns, port, move |_| Some(name.clone().into_bytes()))
    }

    /// How many datagrams it has got.
    pub fn taken(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }
}

/// Closes a connection with a reset.
pub fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// Reads until the end of file.
pub fn read_all(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads until what has come ends with `last`.
pub fn read_until(stream: &mut TcpStream, last: &[u8]) -> Vec<u8> {
    let (mut all, mut some) = (Vec::new(), [0; 1024]);
    while !all.ends_with(last) {
        match stream.read(&mut some).expect("more of an answer") {
            0 => panic!("it ended with {}", String::from_utf8_lossy(&all)),
            length => all.extend_from_slice(&some[..length]),
        }
    }
    all
}

/// Asks for `path` over a fresh connection. Returns the status code and the body.
pub fn http_get(stream: &mut TcpStream, path: &str) -> std::io::Result<(u16, String)> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())?;
    let text = read_all(stream)?;
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no HTTP answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    Ok((code, body.to_owned()))
}

/// The kernel's error number behind an I/O error. A read, write or connect that ran out of time is `ETIMEDOUT`.
pub fn errno(error: &std::io::Error) -> Errno {
    match (error.raw_os_error().map(Errno::from_raw), error.kind()) {
        (Some(Errno::EAGAIN), _) | (None, std::io::ErrorKind::TimedOut) => Errno::ETIMEDOUT,
        (Some(errno), _) => errno,
        (None, kind) => panic!("no error number behind {kind:?}: {error}"),
    }
}
