//! The loads: what a client does, and what it notes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::contenders::Contender;
use crate::cpu::Cpu;
use crate::origin::{ANSWER, BULK_CHUNK, BULK_PORT, CLOSE, HTTP_PORT, REQUEST};

/// Connections of the keep-alive load.
const KEEP_ALIVE: usize = 32;
/// Connections that are opened at the same time by the load of new connections.
const OPENING: usize = 8;
/// The load of new connections at a given rate opens those that are due so often.
const BEAT: Duration = Duration::from_millis(1);
/// Share of a contender's peak rate at which its tail is looked at.
const SHARE: f64 = 0.8;
/// Its key: it needs the rate that [`PEAK`] came to.
pub(crate) const AT_SHARE: &str = "atShare";
/// The measure whose rate is a contender's peak.
pub(crate) const PEAK: &str = "newConnections";

/// One kind of load.
pub(crate) struct Measure {
    /// Its key in the JSON.
    pub(crate) key: &'static str,
    /// Its title in the table.
    pub(crate) title: &'static str,
    /// The unit of [`Outcome::rate`], and of the units that processor time is divided by.
    pub(crate) unit: &'static str,
    /// What processor time is divided by: so many counts.
    pub(crate) per: f64,
    work: fn(&Contender, Duration, f64) -> Tally,
    /// From counts a second to the unit.
    scale: f64,
}

/// What one run of a load came to.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// Counts a second, in the measure's unit.
    pub(crate) rate: f64,
    /// Median latency in microseconds; 0 for bulk.
    pub(crate) p50_us: f64,
    /// 99th percentile of latency in microseconds; 0 for bulk.
    pub(crate) p99_us: f64,
    /// The slowest, in microseconds; 0 for bulk.
    pub(crate) max_us: f64,
    /// Milliseconds of processor time of the contender's processes, per GB, 1,000 requests or 1,000 connections.
    pub(crate) own_cpu_ms: f64,
    /// The same for the whole machine: client, server and the kernel's packet work too.
    pub(crate) all_cpu_ms: f64,
    /// Connections that failed.
    pub(crate) failed: u64,
}

/// Every measure, in the order of the table.
pub(crate) const MEASURES: [Measure; 6] = [
    Measure {
        key: "bulk1",
        title: "bulk, 1 stream",
        unit: "Gbit/s",
        per: 1e9,
        work: |c, d, _| bulk(c, d, 1),
        scale: 8e-9,
    },
    Measure {
        key: "bulk8",
        title: "bulk, 8 streams",
        unit: "Gbit/s",
        per: 1e9,
        work: |c, d, _| bulk(c, d, 8),
        scale: 8e-9,
    },
    Measure {
        key: "keepAlive",
        title: "keep-alive, 32 connections",
        unit: "requests/s",
        per: 1e3,
        work: |c, d, _| in_runtime(c, d, KEEP_ALIVE, requests),
        scale: 1.0,
    },
    Measure {
        key: PEAK,
        title: "new connections, 8 at a time",
        unit: "connections/s",
        per: 1e3,
        work: |c, d, _| in_runtime(c, d, OPENING, connections),
        scale: 1.0,
    },
    Measure {
        key: AT_SHARE,
        title: "new connections at 80 % of that rate",
        unit: "connections/s",
        per: 1e3,
        work: at_share,
        scale: 1.0,
    },
    Measure {
        key: "latency",
        title: "one connection",
        unit: "requests/s",
        per: 1e3,
        work: |c, d, _| ping(c, d),
        scale: 1.0,
    },
];

/// What the clients of a load noted.
#[derive(Default)]
struct Tally {
    /// Bytes, requests or connections.
    count: u64,
    /// Each latency, in nanoseconds.
    latencies: Vec<u64>,
    failed: u64,
}

impl Tally {
    /// Notes how a connection went.
    fn note(&mut self, waited: &std::io::Result<u64>) {
        match waited {
            Ok(nanoseconds) => {
                self.latencies.push(*nanoseconds);
                self.count += 1;
            }
            Err(_) => self.failed += 1,
        }
    }
}

impl Measure {
    /// Runs the load through `contender` for about `length`. `peak` is the rate that [`PEAK`] came to last.
    pub(crate) fn run(&self, contender: &Contender, length: Duration, peak: f64) -> Outcome {
        let (before, started) = (Cpu::now(&contender.pids), Instant::now());
        let mut tally = contender.client.enter(|| (self.work)(contender, length, peak));
        let (took, (own, all)) = (started.elapsed(), Cpu::now(&contender.pids).since(before));
        assert!(tally.count > 0, "{} through {}: nothing came through", self.key, contender.kind);
        let units = tally.count as f64 / self.per;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3 / units;
        tally.latencies.sort_unstable();
        Outcome {
            rate: tally.count as f64 / took.as_secs_f64() * self.scale,
            p50_us: percentile(&tally.latencies, 50),
            p99_us: percentile(&tally.latencies, 99),
            max_us: percentile(&tally.latencies, 100),
            own_cpu_ms: milliseconds(own),
            all_cpu_ms: milliseconds(all),
            failed: tally.failed,
        }
    }
}

fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1e3)
}

fn address(contender: &Contender, port: u16) -> SocketAddr {
    SocketAddr::new(contender.address.parse().expect("an address"), port)
}

/// Reads as fast as it can from `streams` connections, a thread each.
fn bulk(contender: &Contender, length: Duration, streams: usize) -> Tally {
    let (to, stop, count) = (address(contender, BULK_PORT), AtomicBool::new(false), AtomicU64::new(0));
    let read = || {
        let mut stream = TcpStream::connect(to).expect("a bulk connection");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        stream.write_all(b"g").expect("the start of a stream");
        let mut buffer = vec![0; BULK_CHUNK];
        while !stop.load(Ordering::Relaxed) {
            let length = stream.read(&mut buffer).expect("the stream goes on");
            assert!(length > 0, "the stream ended");
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(read);
        }
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
    });
    Tally { count: count.into_inner(), ..Tally::default() }
}

/// Runs `client` so many times side by side on one thread, until `length` is over.
fn in_runtime<F>(
    contender: &Contender,
    length: Duration,
    clients: usize,
    client: fn(SocketAddr, Instant) -> F,
) -> Tally
where
    F: Future<Output = Tally> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (to, end) = (address(contender, HTTP_PORT), Instant::now() + length);
    runtime.block_on(async {
        let tasks: Vec<_> = (0..clients).map(|_| tokio::spawn(client(to, end))).collect();
        let mut sum = Tally::default();
        for task in tasks {
            let tally = task.await.expect("a client does not panic");
            sum.count += tally.count;
            sum.failed += tally.failed;
            sum.latencies.extend(tally.latencies);
        }
        sum
    })
}

/// Request after request on one connection.
async fn requests(to: SocketAddr, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut stream = tokio::net::TcpStream::connect(to).await.expect("a keep-alive connection");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let mut answer = [0; ANSWER];
    while Instant::now() < end {
        let started = Instant::now();
        stream.write_all(&[b'r'; REQUEST]).await.expect("a request");
        stream.read_exact(&mut answer).await.expect("an answer");
        tally.latencies.push(nanoseconds(started));
        tally.count += 1;
    }
    tally
}

/// Connection after connection.
async fn connections(to: SocketAddr, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        tally.note(&connection(to, Instant::now()).await);
    }
    tally
}

/// Connect, ask, read the answer, close. The latency in nanoseconds is from `since` up to the first byte.
async fn connection(to: SocketAddr, since: Instant) -> std::io::Result<u64> {
    let mut request = [b'r'; REQUEST];
    request[REQUEST - 1] = CLOSE;
    let mut stream = tokio::net::TcpStream::connect(to).await?;
    stream.write_all(&request).await?;
    let mut answer = vec![0; ANSWER];
    let first = stream.read(&mut answer).await?;
    let waited = nanoseconds(since);
    let rest = stream.read_to_end(&mut answer).await?;
    if first + rest == ANSWER { Ok(waited) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// New connections at [`SHARE`] of `peak`, whether those before have been answered or not. The latency is from the
/// moment at which a connection was due, so that one that is held up is not hidden by those that wait behind it.
fn at_share(contender: &Contender, length: Duration, peak: f64) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let to = address(contender, HTTP_PORT);
    let each_beat = peak * SHARE * BEAT.as_secs_f64();
    runtime.block_on(async {
        let mut beats = tokio::time::interval(BEAT);
        let (mut due, end) = (0.0, Instant::now() + length);
        let mut under_way = tokio::task::JoinSet::new();
        let mut tally = Tally::default();
        while Instant::now() < end {
            let beat = beats.tick().await.into_std();
            due += each_beat;
            while due >= 1.0 {
                due -= 1.0;
                under_way.spawn(connection(to, beat));
            }
            while let Some(done) = under_way.try_join_next() {
                tally.note(&done.expect("a client does not panic"));
            }
        }
        while let Some(done) = under_way.join_next().await {
            tally.note(&done.expect("a client does not panic"));
        }
        tally
    })
}

/// One connection, one request at a time, on a blocking thread.
fn ping(contender: &Contender, length: Duration) -> Tally {
    let mut tally = Tally::default();
    let mut stream = TcpStream::connect(address(contender, HTTP_PORT)).expect("a connection");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let (mut answer, end) = ([0; ANSWER], Instant::now() + length);
    while Instant::now() < end {
        let started = Instant::now();
        stream.write_all(&[b'r'; REQUEST]).expect("a request");
        stream.read_exact(&mut answer).expect("an answer");
        tally.latencies.push(nanoseconds(started));
        tally.count += 1;
    }
    tally
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
