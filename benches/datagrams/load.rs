//! Loads: many clients, each with a socket of its own that asks and waits.

use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use crate::Contender;
use crate::cpu::Cpu;

/// How long an answer is waited for; after that it counts as lost.
const LOST: Duration = Duration::from_secs(1);

/// One kind of load.
pub(crate) struct Load<C> {
    /// Its title in the table.
    pub(crate) title: &'static str,
    /// The clients for one contender.
    pub(crate) clients: fn(&C) -> Clients,
}

/// What the clients of a load do.
pub(crate) struct Clients {
    /// Each client's own address; the unspecified one leaves it to the kernel.
    pub(crate) from: Vec<IpAddr>,
    /// Where they ask.
    pub(crate) to: SocketAddr,
    /// What they send, one after the other; each begins somewhere else.
    pub(crate) questions: Vec<Vec<u8>>,
    /// How many a client has on the way at a time.
    pub(crate) window: usize,
    /// Whether an answer is a good one.
    pub(crate) good: fn(&[u8], &[u8]) -> bool,
}

/// What one run of a load came to.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// Answers a second.
    pub(crate) rate: f64,
    /// Median time to an answer, in microseconds.
    pub(crate) p50_us: f64,
    /// Its 99th percentile.
    pub(crate) p99_us: f64,
    /// Milliseconds of processor time of the contender's processes for 1,000 answers.
    pub(crate) own_cpu_ms: f64,
    /// The same of the whole machine.
    pub(crate) all_cpu_ms: f64,
    /// Questions without a good answer.
    pub(crate) lost: u64,
}

/// What one client noted.
#[derive(Default)]
struct Tally {
    latencies: Vec<u64>,
    lost: u64,
}

impl<C: Contender> Load<C> {
    /// Runs it for about `length`.
    pub(crate) fn run(&self, contender: &C, length: Duration) -> Outcome {
        let clients = (self.clients)(contender);
        let (before, started) = (Cpu::now(contender.pids()), Instant::now());
        let mut tally = contender.client().enter(|| clients.run(length));
        let (took, (own, all)) = (started.elapsed(), Cpu::now(contender.pids()).since(before));
        let count = tally.latencies.len();
        assert!(count > 0, "{} through {}: nothing came through", self.title, contender.kind());
        tally.latencies.sort_unstable();
        let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        let at = |percent: usize| tally.latencies[(count * percent / 100).min(count - 1)] as f64 / 1e3;
        Outcome {
            rate: count as f64 / took.as_secs_f64(),
            p50_us: at(50),
            p99_us: at(99),
            own_cpu_ms: each(own),
            all_cpu_ms: each(all),
            lost: tally.lost,
        }
    }
}

impl Clients {
    /// All clients side by side on one thread, in the namespace of the calling thread.
    fn run(&self, length: Duration) -> Tally {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let sockets: Vec<UdpSocket> = self.from.iter().map(|from| open(*from, self.to)).collect();
            let end = Instant::now() + length;
            let tasks = sockets.iter().enumerate().map(|(number, socket)| self.client(socket, number, end));
            let tallies = futures_util::future::join_all(tasks).await;
            tallies.into_iter().fold(Tally::default(), |mut sum, tally| {
                sum.latencies.extend(tally.latencies);
                sum.lost += tally.lost;
                sum
            })
        })
    }

    async fn client(&self, socket: &UdpSocket, number: usize, end: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut next = number * 31;
        let mut buffer = vec![0; 2_048];
        let mut sent: std::collections::VecDeque<(Instant, usize)> = std::collections::VecDeque::new();
        while Instant::now() < end {
            while sent.len() < self.window {
                let at = next % self.questions.len();
                next += 1;
                socket.send(&self.questions[at]).await.expect("a datagram leaves");
                sent.push_back((Instant::now(), at));
            }
            let answer = tokio::time::timeout(LOST, socket.recv(&mut buffer)).await;
            let Ok(Ok(length)) = answer else {
                tally.lost += sent.len() as u64;
                sent.clear();
                continue;
            };
            let Some((at, question)) = sent.pop_front() else { continue };
            if (self.good)(&self.questions[question], &buffer[..length]) {
                tally.latencies.push(u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX));
            } else {
                tally.lost += 1;
            }
        }
        tally
    }
}

fn open(from: IpAddr, to: SocketAddr) -> UdpSocket {
    let socket = StdSocket::bind((from, 0)).expect("a client's address");
    socket.connect(to).expect("a way to the contender");
    socket.set_nonblocking(true).expect("a socket can be made non-blocking");
    UdpSocket::from_std(socket).expect("a socket")
}
