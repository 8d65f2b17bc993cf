//! The loads: requests over so many connections, and connections that wait.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::contenders::Contender;
use crate::cpu::{self, Cpu};
use crate::origin::{BODY, HTTP1_PORT, HTTP2_PORT};

/// A request as a small client writes it.
const REQUEST: &[u8] =
    b"GET /path?query=1 HTTP/1.1\r\nHost: origin.default\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";
/// Idle connections by which memory is measured.
const IDLE: usize = 1_000;
/// Streams at once on the one HTTP/2 connection.
const STREAMS: usize = 32;

/// One kind of load.
pub(crate) struct Measure {
    /// Its title in the table.
    pub(crate) title: &'static str,
    connections: usize,
    http2: bool,
}

/// Every measure, in the order of the table.
pub(crate) const MEASURES: [Measure; 4] = [
    Measure { title: "HTTP/1.1, 1 connection", connections: 1, http2: false },
    Measure { title: "HTTP/1.1, 32 connections", connections: 32, http2: false },
    Measure { title: "HTTP/1.1, 256 connections", connections: 256, http2: false },
    Measure { title: "h2c, 32 streams on one connection", connections: STREAMS, http2: true },
];

/// What one run of a load came to.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Latency in microseconds.
    pub(crate) p50_us: f64,
    /// The 99th percentile of it.
    pub(crate) p99_us: f64,
    /// Processor time of the contender's processes, in microseconds a request.
    pub(crate) own_cpu_us: f64,
    /// The same for the whole machine.
    pub(crate) all_cpu_us: f64,
}

impl Measure {
    /// Runs the load through `contender` for about `length`.
    pub(crate) fn run(&self, contender: &Contender, length: Duration) -> Outcome {
        let (before, started) = (Cpu::now(&contender.pids), Instant::now());
        let mut latencies = contender.client.enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(self.load(started + length))
        });
        let (took, (own, all)) = (started.elapsed(), Cpu::now(&contender.pids).since(before));
        assert!(!latencies.is_empty(), "{} through {}: nothing came through", self.title, contender.kind);
        latencies.sort_unstable();
        let count = latencies.len() as f64;
        let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100] as f64 / 1e3;
        Outcome {
            rate: count / took.as_secs_f64(),
            p50_us: percentile(50),
            p99_us: percentile(99),
            own_cpu_us: own.as_secs_f64() * 1e6 / count,
            all_cpu_us: all.as_secs_f64() * 1e6 / count,
        }
    }

    /// The latency of each request, in nanoseconds.
    async fn load(&self, end: Instant) -> Vec<u64> {
        let mut tasks = Vec::new();
        if self.http2 {
            let stream = TcpStream::connect(Contender::address(HTTP2_PORT)).await.expect("a connection");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let (send, conn) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .expect("HTTP/2");
            tokio::spawn(conn);
            tasks.extend((0..self.connections).map(|_| tokio::spawn(streams(send.clone(), end))));
        } else {
            tasks.extend((0..self.connections).map(|_| tokio::spawn(requests(end))));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("a client does not panic"));
        }
        all
    }
}

async fn requests(end: Instant) -> Vec<u64> {
    let mut stream = connect().await;
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    // At least one, however long a busy machine took to connect.
    loop {
        let started = Instant::now();
        ask(&mut stream, &mut buffer).await;
        latencies.push(nanoseconds(started));
        if Instant::now() >= end {
            return latencies;
        }
    }
}

async fn connect() -> TcpStream {
    let stream = TcpStream::connect(Contender::address(HTTP1_PORT)).await.expect("a connection");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream
}

/// One request and its whole answer.
async fn ask(stream: &mut TcpStream, buffer: &mut Vec<u8>) {
    stream.write_all(REQUEST).await.expect("a request");
    buffer.clear();
    loop {
        let got = stream.read_buf(buffer).await.expect("an answer");
        assert!(got > 0, "the connection ended: {:?}", String::from_utf8_lossy(buffer));
        if let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n")
            && buffer.len() >= head + 4 + BODY.len()
        {
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(buffer));
            return;
        }
    }
}

async fn streams(mut send: hyper::client::conn::http2::SendRequest<Empty<Bytes>>, end: Instant) -> Vec<u64> {
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        let request = Request::get("http://origin.default/path?query=1")
            .header("user-agent", "bench/1")
            .body(Empty::new())
            .expect("a request");
        let answer = send.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body.len(), BODY.len());
        latencies.push(nanoseconds(started));
    }
    latencies
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Resident memory for each connection that has made a request and waits, in KiB.
pub(crate) fn idle(contender: &Contender) -> f64 {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let before = cpu::resident(&contender.pids);
            let mut open = Vec::with_capacity(IDLE);
            let mut buffer = Vec::with_capacity(4096);
            for _ in 0..IDLE {
                let mut stream = connect().await;
                ask(&mut stream, &mut buffer).await;
                open.push(stream);
            }
            // Whoever tidies up after a while gets the time for it.
            tokio::time::sleep(Duration::from_secs(10)).await;
            cpu::resident(&contender.pids).saturating_sub(before) as f64 / IDLE as f64
        })
    };
    contender.client.enter(work)
}
