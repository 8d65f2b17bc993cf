//! Foreign names: asked of the node's DNS servers and relayed as they answer.
//!
//! Each question goes out from a socket of its own with a random port and id, connected, so that only the server
//! itself is heard; an answer counts if it carries that id and the same question. The same question is asked once
//! however many wait for it, which also ends a loop: a question that comes back to us waits for itself, and no more.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cache::{Cache, Kept, Key};
use super::message::Query;
use super::servers::Servers;
use super::wire::{self, flag};
use crate::net::sock;

/// When the next server is asked beside one that is silent.
const STAGGER: Duration = Duration::from_millis(300);
/// The whole time for one question; clients are told of a failure within two seconds.
const BUDGET: Duration = Duration::from_millis(1_800);
/// How long a stale answer waits for a fresh one.
const PATIENCE: Duration = Duration::from_millis(400);
/// Most servers asked for one question.
const MOST_SERVERS: usize = 4;
/// Questions under way at once.
const MOST_QUESTIONS: usize = 1_024;

/// What foreign names have seen.
#[derive(Debug, Default)]
pub struct ForwardCounters {
    /// Questions sent to servers.
    pub asked: AtomicU64,
    /// Answers given from memory.
    pub cached: AtomicU64,
    /// Those of them whose time was over.
    pub stale: AtomicU64,
    /// Questions that no server answered.
    pub failed: AtomicU64,
}

type Pending = watch::Receiver<Option<Result<Arc<Kept>, ()>>>;

/// The way to foreign names.
pub struct Forwarder {
    servers: Servers,
    own_mark: u32,
    cache: Mutex<Cache>,
    pending: Mutex<HashMap<Key, Pending>>,
    /// What has been seen.
    pub counters: ForwardCounters,
}

impl Forwarder {
    /// `own_mark` is the packet mark of the questions; 0 sets none.
    pub fn new(servers: Servers, own_mark: u32) -> Self {
        Self {
            servers,
            own_mark,
            cache: Mutex::default(),
            pending: Mutex::default(),
            counters: ForwardCounters::default(),
        }
    }

    /// The servers, each with whether it answers.
    pub fn upstreams(&self) -> Vec<(SocketAddr, bool)> {
        self.servers.all(Instant::now())
    }

    /// The answer to `query`; `None` if there is none to be had. `tcp`: it may be as long as it likes.
    pub async fn ask(self: &Arc<Self>, query: &Query, tcp: bool) -> Option<Arc<Kept>> {
        let dnssec = query.edns.is_some_and(|edns| edns.dnssec);
        let key = Key::new(&query.question, (query.flags & flag::UNCHECKED) | u16::from(dnssec));
        let now = Instant::now();
        let known = lock(&self.cache).get(&key, now);
        if let Some(kept) = known.as_ref().filter(|kept| kept.is_fresh(now)) {
            self.counters.cached.fetch_add(1, Relaxed);
            return Some(Arc::clone(kept));
        }
        let stale = |kept: Arc<Kept>| {
            self.counters.stale.fetch_add(1, Relaxed);
            Some(kept)
        };
        let waiting = self.begin(key, query, tcp, now);
        match (known, waiting) {
            (Some(kept), None) => stale(kept),
            (Some(kept), Some(waiting)) => {
                let patience = if self.servers.any_up(now) { PATIENCE } else { Duration::ZERO };
                match timeout(patience, answer(waiting)).await {
                    // Rather an old answer than a failure (RFC 8767).
                    Ok(Some(fresh)) if matches!(fresh.flags() & flag::CODE, 0 | 3) => Some(fresh),
                    _ => stale(kept),
                }
            }
            (None, Some(waiting)) => timeout(BUDGET, answer(waiting)).await.ok().flatten(),
            (None, None) => None,
        }
    }

    /// Asks, unless that is under way already. `None`: nobody can be asked now.
    fn begin(self: &Arc<Self>, key: Key, query: &Query, tcp: bool, now: Instant) -> Option<Pending> {
        let key = if tcp { Key::new(&query.question, 0x8000) } else { key };
        let mut pending = lock(&self.pending);
        if let Some(waiting) = pending.get(&key) {
            return Some(waiting.clone());
        }
        let servers = self.servers.in_order(now, MOST_SERVERS);
        if servers.is_empty() || pending.len() >= MOST_QUESTIONS {
            self.counters.failed.fetch_add(1, Relaxed);
            return None;
        }
        let (tell, waiting) = watch::channel(None);
        pending.insert(key.clone(), waiting.clone());
        drop(pending);
        let (this, question) = (Arc::clone(self), Question::new(query, tcp));
        tokio::spawn(async move {
            let answer = timeout(BUDGET, this.race(&question, servers)).await.ok().flatten();
            let kept = answer.and_then(|packet| Kept::new(packet, Instant::now())).map(Arc::new);
            match &kept {
                Some(kept) => lock(&this.cache).put(question.key(), kept),
                None => _ = this.counters.failed.fetch_add(1, Relaxed),
            }
            lock(&this.pending).remove(&key);
            let _ = tell.send(Some(kept.ok_or(())));
        });
        Some(waiting)
    }

    /// Asks one server after the other, the next when one is silent for a while, and takes the first answer that is
    /// none of failure.
    async fn race(&self, question: &Question, servers: Vec<SocketAddr>) -> Option<Vec<u8>> {
        let mut left = servers.into_iter();
        let mut asked = FuturesUnordered::new();
        let mut worst = None;
        loop {
            if let Some(server) = left.next() {
                asked.push(self.ask_one(question, server));
            } else if asked.is_empty() {
                return worst;
            }
            loop {
                let next = tokio::select! {
                    next = asked.next() => next,
                    () = sleep(STAGGER), if left.len() > 0 => break,
                };
                match next {
                    Some(Some(packet)) if matches!(wire::flags(&packet) & flag::CODE, 0 | 3) => {
                        return Some(packet);
                    }
                    Some(Some(packet)) => worst = Some(packet),
                    Some(None) => {}
                    None => return worst,
                }
                if left.len() > 0 {
                    break;
                }
            }
        }
    }

    async fn ask_one(&self, question: &Question, server: SocketAddr) -> Option<Vec<u8>> {
        self.counters.asked.fetch_add(1, Relaxed);
        let begun = Instant::now();
        let mut watch = self.servers.watch(server, begun);
        let udp =
            async { if question.tcp { Ok(None) } else { self.over_udp(question, server).await.map(Some) } };
        let answer = match udp.await {
            Ok(Some(packet)) => Ok(packet),
            Ok(None) => match self.over_tcp(question, server).await {
                Err(_) => self.over_udp(question, server).await,
                answer => answer,
            },
            Err(e) => Err(e),
        };
        match answer {
            Ok(packet) => {
                watch.answered(Instant::now());
                Some(packet)
            }
            Err(error) => {
                watch.failed();
                tracing::debug!(%server, %error, "a DNS server does not answer");
                None
            }
        }
    }

    async fn over_udp(&self, question: &Question, server: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = UdpSocket::from_std(sock::udp_connect(server, self.own_mark)?)?;
        let id = rand::random::<u16>();
        socket.send(&question.packet(id)).await?;
        let mut buffer = vec![0; usize::from(wire::UDP_PAYLOAD.max(4_096))];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Whatever else comes is someone's guess.
            if wire::answers(&buffer[..length], id, &question.bytes) {
                buffer.truncate(length);
                buffer.shrink_to_fit();
                return Ok(buffer);
            }
        }
    }

    async fn over_tcp(&self, question: &Question, server: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = sock::connect(server, self.own_mark, true).await?;
        let id = rand::random::<u16>();
        let packet = question.packet(id);
        let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), packet.as_slice()].concat()).await?;
        let length = usize::from(stream.read_u16().await?);
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        if wire::answers(&answer, id, &question.bytes) {
            return Ok(answer);
        }
        Err(io::Error::other("it answers another question"))
    }
}

/// What is asked of servers.
struct Question {
    bytes: Vec<u8>,
    flags: u16,
    edns: Option<bool>,
    tcp: bool,
}

impl Question {
    fn new(query: &Query, tcp: bool) -> Self {
        let kept = flag::RECURSION_DESIRED | flag::UNCHECKED | flag::AUTHENTIC;
        let edns = query.edns.map(|edns| edns.dnssec);
        Self { bytes: query.question.clone(), flags: query.flags & kept, edns, tcp }
    }

    fn packet(&self, id: u16) -> Vec<u8> {
        let mut packet = wire::with_question(id, self.flags, &self.bytes);
        if let Some(dnssec) = self.edns {
            wire::add_opt(&mut packet, dnssec);
        }
        packet
    }

    fn key(&self) -> Key {
        Key::new(&self.bytes, (self.flags & flag::UNCHECKED) | u16::from(self.edns == Some(true)))
    }
}

async fn answer(mut waiting: Pending) -> Option<Arc<Kept>> {
    let told = waiting.wait_for(Option::is_some).await.ok()?;
    told.as_ref().and_then(|answer| answer.as_ref().ok().cloned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
