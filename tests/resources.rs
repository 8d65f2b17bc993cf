//! Descriptors: none leak, and running out of them stops nothing. One test in a process of its own, because both
//! the count and the limit are the process's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "direct/harness.rs"]
#[allow(dead_code, reason = "shared with tests/direct, which uses the rest")]
mod harness;

use std::io::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use harness::{Lab, echo, eventually, pattern, refusing, reset};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn exchange(client: &mut TcpStream, size: usize) {
    let bytes = pattern(1, size);
    let mut got = vec![0; size];
    let (mut r, mut w) = client.split();
    let (sent, received) = tokio::join!(w.write_all(&bytes), r.read_exact(&mut got));
    sent.unwrap();
    received.unwrap();
    assert!(got == bytes);
}

#[tokio::test]
async fn descriptors_do_not_leak_and_their_end_stops_nothing() {
    let lab = Lab::with_backends(&[echo().await, refusing().await]);
    exchange(&mut lab.connect().await, 1).await;
    lab.until_idle().await;
    nothing_leaks(&lab).await;
    the_end_of_descriptors_stops_nothing(&lab).await;
}

async fn nothing_leaks(lab: &Lab) {
    let stream = vec![0; 1 << 20];
    let before = open_descriptors();
    for round in 0..60 {
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(lab.connect().await);
        }
        for (n, mut client) in clients.into_iter().enumerate() {
            match n {
                0 => exchange(&mut client, 10).await,
                1 => exchange(&mut client, 1 << 20).await,
                // Leaves with bytes in a pipe.
                2 => {
                    let _ = timeout(Duration::from_millis(2), client.write_all(&stream)).await;
                    reset(client);
                }
                3 => client.shutdown().await.unwrap(),
                _ => drop(client),
            }
        }
        assert!(round == 0 || open_descriptors() < before + 200, "round {round}");
    }
    lab.until_idle().await;
    let pipes = lab.pipes.stats();
    assert!(pipes.taken > 0 && pipes.live == pipes.kept, "{pipes:?}");
    let kept = before + 2 * pipes.kept;
    eventually("every descriptor is closed", || open_descriptors() <= kept).await;
}

async fn the_end_of_descriptors_stops_nothing(lab: &Lab) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(lab.connect().await);
    }
    let mut open = lab.connect().await;
    exchange(&mut open, 100).await;
    // The clients are in this process, so their sockets are made first; then nothing is left for the acceptor.
    let waiting: Vec<_> = (0..20).map(|_| tokio::net::TcpSocket::new_v4().unwrap()).collect();
    setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(open_descriptors()).unwrap(), hard).unwrap();
    let mut fillers = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fillers.push(file);
    }
    let cpu_before = cpu_time();
    let mut stuck = Vec::new();
    for socket in waiting {
        stuck.push(socket.connect(lab.addr()).await.unwrap());
    }

    eventually("accepting pauses", || lab.counters.accept_pauses.load(Relaxed) >= 2).await;
    exchange(&mut open, 100).await;
    let refused = lab.refused();
    for client in &mut stuck {
        let told = timeout(Duration::from_secs(5), client.read(&mut [0; 1])).await.unwrap();
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset, "nobody is left waiting");
    }
    assert!(lab.refused() >= refused);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cpu = cpu_time().saturating_sub(cpu_before);
    assert!(cpu < Duration::from_millis(700), "accepting spins: {cpu:?}");

    // Room again: service again.
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    drop((stuck, fillers));
    let mut late = lab.connect().await;
    timeout(Duration::from_secs(5), exchange(&mut late, 100)).await.unwrap();
    exchange(&mut open, 100).await;
}

fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| {
        Duration::from_secs(u64::try_from(t.tv_sec()).unwrap())
            + Duration::from_micros(u64::try_from(t.tv_usec()).unwrap())
    };
    of(usage.user_time()) + of(usage.system_time())
}
