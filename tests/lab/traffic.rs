//! Clients that ask over and over while something is done to the node, counted by what became of each question.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::ns::Netns;
use super::serve::errno;

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A new connection, read to its end.
    Connection,
    /// A datagram of a new flow, to be sent back.
    Datagram,
    /// The address of a Service's name.
    Name,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// The connection was not made, or the datagram was refused.
    Refused(Errno),
    /// The connection was reset before all was said.
    Cut(Errno),
    /// The connection ended before all was said.
    Ended,
    /// No answer within the client's patience.
    Silent,
    /// Another answer than the right one.
    Wrong(String),
}

/// One question.
#[derive(Clone, Debug)]
pub struct Asked {
    pub kind: Kind,
    /// Since the traffic began.
    pub at: Duration,
    pub took: Duration,
    pub outcome: Outcome,
}

/// Where and how one client asks.
#[derive(Clone, Debug)]
pub struct Client {
    pub ns: Netns,
    pub kind: Kind,
    pub to: String,
    /// Between an answer and the next question.
    pub pause: Duration,
    /// Longest wait for an answer.
    pub patience: Duration,
    /// What is asked, of names, and what is answered otherwise.
    pub text: String,
}

/// Running clients. They end with [`Traffic::end`], or when this is dropped.
pub struct Traffic {
    over: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    begun: Instant,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts the clients, a thread each.
    pub fn start(clients: Vec<Client>) -> Self {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Asked>>>::default());
        let begun = Instant::now();
        let spawn = |client: Client| {
            let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
            std::thread::spawn(move || {
                let ns = client.ns.clone();
                ns.enter(|| {
                    while !over.load(SeqCst) {
                        let started = Instant::now();
                        let outcome = client.ask();
                        let (at, took) = (started.duration_since(begun), started.elapsed());
                        asked.lock().expect("no panic").push(Asked { kind: client.kind, at, took, outcome });
                        std::thread::sleep(client.pause);
                    }
                });
            })
        };
        let clients = clients.into_iter().map(spawn).collect();
        Self { over, asked, begun, clients }
    }

    /// Time since the traffic began.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How many questions have been answered so far.
    pub fn served(&self) -> usize {
        self.asked.lock().expect("no panic").iter().filter(|asked| asked.outcome == Outcome::Served).count()
    }

    /// Waits until more questions have been answered since now: the service works.
    pub fn flows(&self) {
        let since = self.now();
        super::eventually("questions are answered", Duration::from_secs(30), || {
            let asked = self.asked.lock().expect("no panic");
            let kinds: std::collections::BTreeSet<Kind> = asked.iter().map(|asked| asked.kind).collect();
            let good = |kind| {
                let of_kind = asked.iter().filter(|asked| asked.kind == kind && asked.at >= since);
                of_kind.filter(|asked| asked.outcome == Outcome::Served).count() >= 5
            };
            (!kinds.is_empty() && kinds.into_iter().all(good)).then_some(())
        });
    }

    /// Ends the clients, once each has its last answer.
    pub fn end(mut self) -> Tally {
        self.over.store(true, SeqCst);
        for client in std::mem::take(&mut self.clients) {
            client.join().expect("a client does not panic");
        }
        Tally(std::mem::take(&mut *self.asked.lock().expect("no panic")))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
    }
}

/// What became of all questions.
#[derive(Clone, Debug)]
pub struct Tally(pub Vec<Asked>);

impl Tally {
    /// The questions of one kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Asked> {
        self.0.iter().filter(move |asked| asked.kind == kind)
    }

    /// How many questions of a kind ended so.
    pub fn count(&self, kind: Kind, is: impl Fn(&Outcome) -> bool) -> usize {
        self.of(kind).filter(|asked| is(&asked.outcome)).count()
    }

    /// Everything that was not answered as it should be.
    pub fn failed(&self) -> Vec<&Asked> {
        self.0.iter().filter(|asked| asked.outcome != Outcome::Served).collect()
    }

    /// Panics if anything failed.
    pub fn assert_all_served(&self, log: impl FnOnce() -> String) {
        let failed = self.failed();
        assert!(failed.is_empty(), "{self}\n{failed:#?}\n{}", log());
    }

    /// How long answers of a kind took, in order.
    pub fn times(&self, kind: Kind) -> Vec<Duration> {
        let served = self.of(kind).filter(|asked| asked.outcome == Outcome::Served);
        let mut times: Vec<Duration> = served.map(|asked| asked.took).collect();
        times.sort();
        times
    }
}

impl fmt::Display for Tally {
    /// By kind: how many were asked, how many failed and how, and the longest time that an answer took.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for (kind, name) in
            [(Kind::Connection, "connections"), (Kind::Datagram, "datagrams"), (Kind::Name, "names")]
        {
            let tried = self.of(kind).count();
            if tried == 0 {
                continue;
            }
            let mut why = BTreeMap::<String, usize>::new();
            for asked in self.of(kind).filter(|asked| asked.outcome != Outcome::Served) {
                *why.entry(format!("{:?}", asked.outcome)).or_default() += 1;
            }
            let failed: usize = why.values().sum();
            let why: Vec<String> = why.iter().map(|(why, count)| format!("{count} {why}")).collect();
            let longest = self.times(kind).last().copied().unwrap_or_default();
            write!(text, "{tried} {name}, {failed} failed")?;
            if !why.is_empty() {
                write!(text, " ({})", why.join(", "))?;
            }
            write!(text, ", longest {} ms; ", longest.as_millis())?;
        }
        f.write_str(text.trim_end_matches("; "))
    }
}

impl Client {
    fn ask(&self) -> Outcome {
        let to: SocketAddr = self.to.parse().unwrap_or_else(|error| panic!("{}: {error}", self.to));
        match self.kind {
            Kind::Connection => self.connect(to),
            Kind::Datagram => self.send(to, self.text.as_bytes(), |answer| {
                (answer == self.text.as_bytes()).then_some(Outcome::Served)
            }),
            Kind::Name => self.send(to, &question(&self.text), |answer| {
                // Answers to our question that hold an address.
                let (code, answers) = (answer.get(3)? & 15, answer.get(7)?);
                let good = code == 0 && *answers > 0;
                Some(if good {
                    Outcome::Served
                } else {
                    Outcome::Wrong(format!("rcode {code}, {answers} records"))
                })
            }),
        }
    }

    fn connect(&self, to: SocketAddr) -> Outcome {
        let mut stream = match TcpStream::connect_timeout(&to, self.patience) {
            Ok(stream) => stream,
            // The reset may come before `connect` returns.
            Err(error) if errno(&error) == Errno::ECONNRESET => return Outcome::Cut(Errno::ECONNRESET),
            Err(error) => return Outcome::Refused(errno(&error)),
        };
        let _ = stream.set_read_timeout(Some(self.patience));
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Ok(_) if bytes == self.text.as_bytes() => Outcome::Served,
            Ok(_) if self.text.as_bytes().starts_with(&bytes) => Outcome::Ended,
            Ok(_) => Outcome::Wrong(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if errno(&error) == Errno::ETIMEDOUT => Outcome::Silent,
            Err(error) => Outcome::Cut(errno(&error)),
        }
    }

    fn send(&self, to: SocketAddr, question: &[u8], judge: impl FnOnce(&[u8]) -> Option<Outcome>) -> Outcome {
        let mut answer = [0; 2048];
        let mut ask = || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_read_timeout(Some(self.patience))?;
            socket.connect(to)?;
            socket.send(question)?;
            socket.recv(&mut answer)
        };
        match ask() {
            Ok(length) => {
                judge(&answer[..length]).unwrap_or_else(|| Outcome::Wrong("another answer".to_owned()))
            }
            Err(error) if errno(&error) == Errno::ETIMEDOUT => Outcome::Silent,
            Err(error) => Outcome::Refused(errno(&error)),
        }
    }
}

/// The query for a name's IPv4 address.
pub fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}
