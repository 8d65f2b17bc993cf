//! Names: the cluster's own from the snapshot, all others from the node's DNS servers.
//!
//! `serve` holds the sockets, `message` reads queries and writes answers, `zone` knows the cluster's names, `forward`
//! asks `servers` for the others and keeps what they say in `cache`, `limit` keeps one client from taking it all,
//! `probe` looks at who else answers names on this machine. `wire`, `message`, `zone`, `cache` and `limit` are pure.
//! What does not belong here: how packets get here (`rules`), and which Services exist (`model`).

pub mod cache;
pub mod forward;
pub mod limit;
pub mod message;
pub mod probe;
mod serve;
pub mod servers;
pub mod wire;
pub mod zone;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::config::DnsSettings;
use crate::model::{Frontend, Snapshot};
use crate::net::shelf::{Shelf, Use};
use crate::net::sock;
use crate::obs::meter::{Histogram, Tally};

use forward::Forwarder;
use limit::Limit;
use message::{Packet, Query};
use servers::{Live, Own, Servers};
use wire::flag;
use zone::{Outcome, Zone};

/// The snapshot in force; `None` until there is one.
pub type Current = Arc<dyn Fn() -> Option<Arc<Snapshot>> + Send + Sync>;

/// What the DNS server has seen.
#[derive(Debug)]
pub struct DnsCounters {
    /// Queries for the cluster's names.
    pub cluster: AtomicU64,
    /// Queries for others.
    pub foreign: AtomicU64,
    /// Queries and other packets that were refused or dropped.
    pub refused: AtomicU64,
    /// Answers by their response code.
    pub responses: Tally<7>,
    /// From a question's arrival to its answer.
    pub took: Histogram,
}

impl Default for DnsCounters {
    fn default() -> Self {
        let (cluster, foreign, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { cluster, foreign, refused, responses: Tally::new(&CODES), took: Histogram::default() }
    }
}

/// The response codes of RFC 1035 by their number; whatever is higher counts as the last.
const CODES: [&str; 7] = ["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "other"];

/// The DNS server. One owner opens and closes the cluster's own DNS addresses as the snapshot changes.
pub struct Dns {
    resolver: Arc<Resolver>,
    runtime: Handle,
    own_mark: u32,
    shelf: Arc<Shelf>,
    /// Cancelled once questions may be answered.
    begin: CancellationToken,
    frontends: HashMap<Frontend, CancellationToken>,
}

/// Answers on addresses of this machine, until it is closed or the process ends.
#[derive(Clone)]
pub struct Desk {
    resolver: Arc<Resolver>,
    runtime: Handle,
    shelf: Arc<Shelf>,
    /// Cancelled once questions may be answered.
    begin: CancellationToken,
    closed: CancellationToken,
}

/// The two sockets of an address, bound.
#[derive(Debug)]
pub struct Bound {
    /// For datagrams.
    pub udp: UdpSocket,
    /// For streams.
    pub tcp: TcpListener,
}

impl Desk {
    /// Binds an address of this machine, or takes back what an earlier process had there.
    pub fn bind(&self, addr: SocketAddr) -> anyhow::Result<Bound> {
        let hint =
            || format!("cannot answer DNS on {addr}; give another address with --dns-listen, or --dns off");
        let udp = self.shelf.open(Use::Names, addr, || sock::udp_listen(addr)).with_context(hint)?;
        let tcp = self.shelf.open(Use::NameStreams, addr, || sock::tcp_listen(addr)).with_context(hint)?;
        Ok(Bound { udp, tcp })
    }

    /// Takes the sockets of another process at an address of this machine.
    pub fn adopt(&self, addr: SocketAddr, udp: OwnedFd, tcp: OwnedFd) -> Bound {
        self.shelf.keep(Use::Names, addr, &udp);
        self.shelf.keep(Use::NameStreams, addr, &tcp);
        Bound { udp: udp.into(), tcp: tcp.into() }
    }

    /// Answers what comes in on `bound`, once questions may be answered.
    pub fn serve(&self, bound: Bound) -> io::Result<()> {
        let _context = self.runtime.enter();
        let (udp, tcp) = (serve::udp(bound.udp)?, serve::tcp(bound.tcp)?);
        let answering = serve::datagrams(udp, Arc::clone(&self.resolver), self.closed.clone());
        let accepting = serve::accept(tcp, Arc::clone(&self.resolver));
        let (begin, begin_too, closed) = (self.begin.clone(), self.begin.clone(), self.closed.clone());
        self.runtime.spawn(async move {
            begin.cancelled().await;
            answering.await;
        });
        self.runtime.spawn(async move {
            begin_too.cancelled().await;
            closed.run_until_cancelled(accepting).await
        });
        Ok(())
    }

    /// Takes no more questions; those that were taken are answered.
    pub fn close(&self) {
        self.closed.cancel();
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("closed", &self.closed.is_cancelled()).finish_non_exhaustive()
    }
}

/// What all sockets share.
pub struct Resolver {
    zone: Zone,
    current: Current,
    forwarder: Arc<Forwarder>,
    limit: Mutex<Limit>,
    counters: DnsCounters,
}

impl Dns {
    /// A server that listens nowhere yet; work will be done on `runtime`. `own` says which addresses lead back to
    /// this agent, so that they are never asked; `live` gives those that are asked before all others.
    pub fn new(
        settings: &DnsSettings,
        runtime: Handle,
        current: Current,
        own: Own,
        live: Live,
        own_mark: u32,
    ) -> anyhow::Result<Self> {
        let zone = Zone::new(&settings.domain).context("dns.domain is no domain name")?;
        let listen = settings.listen.clone();
        let own: Own = Arc::new(move |addr| listen.contains(&addr) || own(addr));
        let servers = Servers::new(live, settings.upstreams.clone(), probe::RESOLV_CONF.into(), own);
        let resolver = Resolver {
            zone,
            current,
            forwarder: Arc::new(Forwarder::new(servers, own_mark)),
            limit: Mutex::default(),
            counters: DnsCounters::default(),
        };
        let begin = CancellationToken::new();
        begin.cancel();
        Ok(Self {
            resolver: Arc::new(resolver),
            runtime,
            own_mark,
            shelf: Arc::default(),
            begin,
            frontends: HashMap::new(),
        })
    }

    /// Opens sockets on `sockets`, so that they may outlive this process, and answers nothing on own addresses before
    /// `begin` is cancelled: questions may be waiting there already that cannot be answered before there is a snapshot.
    #[must_use]
    pub fn with_shelf(mut self, sockets: Arc<Shelf>, begin: CancellationToken) -> Self {
        (self.shelf, self.begin) = (sockets, begin);
        self
    }

    /// What answers, for streams that come in elsewhere, and for its numbers.
    pub fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// What answers on addresses of this machine.
    pub fn desk(&self) -> Desk {
        Desk {
            resolver: self.resolver(),
            runtime: self.runtime.clone(),
            shelf: Arc::clone(&self.shelf),
            begin: self.begin.clone(),
            closed: CancellationToken::new(),
        }
    }

    /// Answers at `frontend`, the cluster's own DNS. Streams to it come in through the data plane.
    pub fn open(&mut self, frontend: Frontend) -> io::Result<()> {
        if self.frontends.contains_key(&frontend) {
            return Ok(());
        }
        let closed = CancellationToken::new();
        if frontend.protocol == crate::model::Protocol::Udp {
            let socket = self.shelf.udp_transparent(frontend.addr(), self.own_mark)?;
            let _context = self.runtime.enter();
            let socket = serve::udp(socket)?;
            self.runtime.spawn(serve::datagrams(socket, self.resolver(), closed.clone()));
        }
        self.frontends.insert(frontend, closed);
        Ok(())
    }

    /// Answers at `frontend` no more.
    pub fn close(&mut self, frontend: &Frontend) {
        if let Some(closed) = self.frontends.remove(frontend) {
            closed.cancel();
            if frontend.protocol == crate::model::Protocol::Udp {
                self.shelf.close(Use::Datagrams, frontend.addr());
            }
        }
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// What is to be done with a packet.
enum Step {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask others first.
    Ask(Box<Query>),
    /// Nothing.
    Drop,
}

impl Resolver {
    /// What has been seen of queries.
    pub fn counters(&self) -> &DnsCounters {
        &self.counters
    }

    /// Counts an answer that is about to be sent.
    fn note(&self, answer: &[u8], asked: Instant) {
        self.counters.responses.add(usize::from(wire::flags(answer) & flag::CODE));
        self.counters.took.observe(asked.elapsed());
    }

    /// What has been seen of foreign names.
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Serves a TCP connection to its end.
    pub async fn serve_stream(self: Arc<Self>, stream: TcpStream, client: SocketAddr) {
        serve::stream(stream, client.ip().to_canonical(), self).await;
    }

    /// Answers what can be answered from memory.
    fn begin(&self, packet: &[u8], client: IpAddr, tcp: bool) -> Step {
        let query = match message::read(packet) {
            Packet::Query(query) => query,
            Packet::Refused(answer) => {
                self.counters.refused.fetch_add(1, Relaxed);
                return Step::Reply(answer);
            }
            Packet::Noise => {
                self.counters.refused.fetch_add(1, Relaxed);
                return Step::Drop;
            }
        };
        // A flood gets short answers that say "over TCP": whoever really waits can go on, forged senders cannot.
        let admitted =
            tcp || self.limit.lock().unwrap_or_else(PoisonError::into_inner).admit(client, Instant::now());
        if !admitted {
            self.counters.refused.fetch_add(1, Relaxed);
            return Step::Reply(query.truncated(0));
        }
        let current = (self.current)();
        let Some(snapshot) = current else {
            // No word of "no such name" before the Services are known: it would be remembered.
            if self.zone.contains(&query.name) {
                self.counters.cluster.fetch_add(1, Relaxed);
                return Step::Reply(query.fail(ResponseCode::ServFail));
            }
            return Step::Ask(query);
        };
        match self.own(&query, self.zone.answer(&snapshot, &query.name, query.kind), tcp) {
            Ok(reply) => Step::Reply(reply),
            Err(_) => Step::Ask(query),
        }
    }

    /// What can be said of a name without asking others; the outcome again where they must be asked.
    fn own(&self, query: &Query, outcome: Outcome, tcp: bool) -> Result<Vec<u8>, Outcome> {
        let limit = query.limit(tcp);
        let missing = |records| {
            query.answer(ResponseCode::NXDomain, records, Some(&self.zone.soa()), Vec::new(), limit)
        };
        let reply = match outcome {
            Outcome::Foreign | Outcome::Alias { .. } => return Err(outcome),
            Outcome::Found { records, additional } => {
                let soa = zone::is_negative(&records, query.kind).then(|| self.zone.soa());
                query.answer(ResponseCode::NoError, records, soa.as_ref(), additional, limit)
            }
            Outcome::Unknown => missing(Vec::new()),
            // The code is that of the last name (RFC 6604).
            Outcome::Dangling { records } => missing(records),
            // Not "no such name", which would be remembered.
            Outcome::Astray => query.fail(ResponseCode::ServFail),
        };
        self.counters.cluster.fetch_add(1, Relaxed);
        Ok(reply)
    }

    /// Answers with the help of others.
    async fn finish(&self, query: &Query, tcp: bool) -> Vec<u8> {
        let outcome = (self.current)().map(|snapshot| self.zone.answer(&snapshot, &query.name, query.kind));
        match outcome.map(|outcome| self.own(query, outcome, tcp)) {
            // The Services have changed meanwhile.
            Some(Ok(reply)) => reply,
            Some(Err(Outcome::Alias { records, target })) => {
                self.counters.cluster.fetch_add(1, Relaxed);
                self.follow(query, records, target, tcp).await
            }
            _ => {
                self.counters.foreign.fetch_add(1, Relaxed);
                self.relay(query, tcp).await
            }
        }
    }

    /// Relays what a foreign server says.
    async fn relay(&self, query: &Query, tcp: bool) -> Vec<u8> {
        let Some(kept) = self.forwarder.ask(query, tcp).await else {
            return query.fail(ResponseCode::ServFail);
        };
        let theirs = kept.flags() & (flag::CODE | flag::TRUNCATED | flag::AUTHENTIC);
        let ours = query.flags & (flag::RECURSION_DESIRED | flag::UNCHECKED);
        let flags = theirs | ours | flag::RESPONSE | flag::RECURSION_AVAILABLE;
        let mut answer = kept.render(query.id, flags, &query.question, Instant::now());
        if let Some(edns) = query.edns {
            wire::add_opt(&mut answer, edns.dnssec);
        }
        if answer.len() > query.limit(tcp) { query.truncated(0) } else { answer }
    }

    /// Adds to an alias what its foreign target has. The code is that of the target (RFC 6604): an alias by itself would
    /// say that the target has no such record, which nobody knows before it has been asked for.
    async fn follow(&self, query: &Query, mut records: Vec<Record>, target: Name, tcp: bool) -> Vec<u8> {
        let failure = || query.fail(ResponseCode::ServFail);
        let Some(question) = question(&target, query) else { return failure() };
        let onward = Query { question, name: target, ..query.clone() };
        let Some(kept) = self.forwarder.ask(&onward, tcp).await else { return failure() };
        let cut = kept.flags() & flag::TRUNCATED != 0;
        if cut && !tcp {
            return query.truncated(flag::AUTHORITATIVE);
        }
        let code = match kept.flags() & flag::CODE {
            0 => ResponseCode::NoError,
            3 => ResponseCode::NXDomain,
            _ => return failure(),
        };
        let packet = kept.render(0, kept.flags(), &onward.question, Instant::now());
        let Ok(theirs) = Message::from_vec(&packet) else { return failure() };
        records.extend(theirs.answers);
        let negative = code == ResponseCode::NXDomain || zone::is_negative(&records, query.kind);
        if cut && negative {
            return failure();
        }
        // It says for how long that there is nothing may be remembered; without one it may not be at all.
        let soa = theirs.authorities.into_iter().find(|record| record.record_type() == RecordType::SOA);
        query.answer(code, records, soa.filter(|_| negative).as_ref(), Vec::new(), query.limit(tcp))
    }
}

/// The question for `name` with the type and class of `query`.
fn question(name: &Name, query: &Query) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name {
        bytes.push(u8::try_from(label.len()).ok()?);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes.extend(query.question.get(query.question.len().checked_sub(4)?..)?);
    Some(bytes)
}
