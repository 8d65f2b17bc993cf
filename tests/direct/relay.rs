//! Bytes, ends, resets, backpressure.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::harness::{Lab, echo, eventually, manual, pattern, reset, shrink_buffers};

const MIB: usize = 1 << 20;

/// A client and the backend it was connected to.
async fn pair() -> (Lab, TcpStream, TcpStream) {
    let (addr, backend) = manual().await;
    let lab = Lab::with_backends(&[addr]);
    let client = lab.connect().await;
    (lab, client, backend.await.unwrap())
}

/// A length of any magnitude up to `bits` bits.
fn ragged(rng: &mut fastrand::Rng, bits: u32) -> usize {
    let most = 1 << rng.u32(0..bits);
    rng.usize(0..=most)
}

/// Sends `bytes` in random chunks, with random rests, then shuts the write half.
async fn send_raggedly(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8], seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = ragged(&mut rng, 18).clamp(1, rest.len());
        stream.write_all(&rest[..n]).await.unwrap();
        rest = &rest[n..];
        if rng.u8(..) < 8 {
            sleep(Duration::from_millis(rng.u64(0..3))).await;
        }
    }
    stream.shutdown().await.unwrap();
}

/// Reads to the end in random chunks, with random rests.
async fn read_raggedly(stream: &mut (impl AsyncReadExt + Unpin), seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut got = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        let n = ragged(&mut rng, 17).max(1);
        match stream.read(&mut buffer[..n]).await.unwrap() {
            0 => return got,
            n => got.extend_from_slice(&buffer[..n]),
        }
        if rng.u8(..) < 8 {
            sleep(Duration::from_millis(rng.u64(0..3))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_unchanged_whatever_their_sizes() {
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..24_u64 {
        let (lab, mut client, mut backend) = pair().await;
        if round % 2 == 0 {
            shrink_buffers(&client);
            shrink_buffers(&backend);
        }
        let up = pattern(round, ragged(&mut rng, 22));
        let down = pattern(!round, ragged(&mut rng, 22));
        let (mut client_read, mut client_write) = client.split();
        let (mut backend_read, mut backend_write) = backend.split();
        let ((), (), got_up, got_down) = timeout(Duration::from_mins(1), async {
            tokio::join!(
                send_raggedly(&mut client_write, &up, round),
                send_raggedly(&mut backend_write, &down, round + 1),
                read_raggedly(&mut backend_read, round + 2),
                read_raggedly(&mut client_read, round + 3),
            )
        })
        .await
        .unwrap();
        assert!(got_up == up && got_down == down, "round {round}");
        lab.until_idle().await;
        assert_eq!(lab.bytes(), (up.len() as u64, down.len() as u64), "round {round}");
    }
}

#[tokio::test]
async fn client_may_stop_sending_and_wait_long_for_the_answer() {
    let (lab, mut client, mut backend) = pair().await;
    let question = pattern(1, 2 * MIB);
    let ask = async {
        client.write_all(&question).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (heard_len, ()) = tokio::join!(backend.read_to_end(&mut heard), ask);
    assert_eq!(heard_len.unwrap(), question.len());
    sleep(Duration::from_millis(2_500)).await;
    let answer = pattern(2, 2 * MIB);
    let answering = answer.clone();
    tokio::spawn(async move { backend.write_all(&answering).await.unwrap() });
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert!(got == answer && heard == question);
    lab.until_idle().await;
}

#[tokio::test]
async fn backend_may_stop_sending_and_still_listen() {
    let (lab, mut client, mut backend) = pair().await;
    backend.write_all(b"bye").await.unwrap();
    backend.shutdown().await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
    sleep(Duration::from_millis(1_500)).await;
    let late = pattern(3, 3 * MIB);
    let sending = late.clone();
    tokio::spawn(async move { client.write_all(&sending).await.unwrap() });
    let mut heard = Vec::new();
    backend.read_to_end(&mut heard).await.unwrap();
    assert!(heard == late);
    lab.until_idle().await;
}

#[tokio::test]
async fn an_orderly_close_never_turns_into_a_reset() {
    for size in [0, 1, 70_000, 5 * MIB] {
        let (lab, mut client, mut backend) = pair().await;
        let bytes = pattern(4, size);
        let sending = bytes.clone();
        tokio::spawn(async move {
            backend.write_all(&sending).await.unwrap();
            // Dropped: both directions end, while the client still reads.
        });
        sleep(Duration::from_millis(50)).await;
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == bytes);
        drop(client);
        lab.until_idle().await;
    }
}

#[tokio::test]
async fn a_backends_reset_reaches_the_client_after_what_it_sent() {
    for size in [0, 1_000, 2 * MIB] {
        let (lab, mut client, mut backend) = pair().await;
        let bytes = pattern(5, size);
        let receiving = tokio::spawn(async move {
            let mut got = vec![0; size];
            client.read_exact(&mut got).await.unwrap();
            (got, client)
        });
        backend.write_all(&bytes).await.unwrap();
        let (got, mut client) = receiving.await.unwrap();
        assert!(got == bytes);
        reset(backend);
        let end = timeout(Duration::from_secs(2), client.read(&mut [0; 1])).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "after {size} bytes");
        lab.until_idle().await;
    }
}

#[tokio::test]
async fn a_clients_reset_reaches_the_backend() {
    for size in [0, 1_000, 2 * MIB] {
        let (lab, mut client, mut backend) = pair().await;
        let bytes = pattern(6, size);
        let receiving = tokio::spawn(async move {
            let mut got = vec![0; size];
            backend.read_exact(&mut got).await.unwrap();
            backend
        });
        client.write_all(&bytes).await.unwrap();
        let mut backend = receiving.await.unwrap();
        reset(client);
        let end = timeout(Duration::from_secs(2), backend.read(&mut [0; 1])).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "after {size} bytes");
        lab.until_idle().await;
    }
}

#[tokio::test]
async fn a_reset_under_full_load_is_never_a_clean_end() {
    let (lab, mut client, mut backend) = pair().await;
    let pushing = tokio::spawn(async move {
        let bytes = vec![1; 64 * 1024];
        for _ in 0..200 {
            backend.write_all(&bytes).await.unwrap();
        }
        reset(backend);
    });
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        match client.read(&mut buffer).await {
            Ok(0) => panic!("a reset looked like the end of the stream"),
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    pushing.await.unwrap();
    lab.until_idle().await;
}

#[tokio::test]
async fn sending_to_a_backend_that_has_closed_is_a_reset() {
    let (lab, mut client, backend) = pair().await;
    drop(backend);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    let failed = timeout(Duration::from_secs(5), async {
        while client.write_all(&[0; 1000]).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    failed.await.unwrap();
    lab.until_idle().await;
}

#[tokio::test]
async fn an_answer_before_the_backends_reset_is_not_lost() {
    // A server that answers and closes without reading the whole request resets.
    let (lab, mut client, mut backend) = pair().await;
    client.write_all(&pattern(8, 32 * 1024)).await.unwrap();
    backend.read_exact(&mut [0; 10]).await.unwrap();
    backend.write_all(b"413 too large").await.unwrap();
    drop(backend);
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got).await;
    assert_eq!(got, b"413 too large");
    lab.until_idle().await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back() {
    let (lab, mut client, mut backend) = pair().await;
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    while let Ok(n) = timeout(Duration::from_millis(500), client.write(&chunk)).await {
        sent += n.unwrap();
        assert!(sent < 64 * MIB, "the proxy swallows what nobody reads");
    }
    // Backpressure reached the client; now everything must come through.
    client.shutdown().await.unwrap_or_default();
    let mut got = 0;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match backend.read(&mut buffer).await.unwrap() {
            0 => break,
            n => got += n,
        }
    }
    assert_eq!(got, sent);
    drop((client, backend));
    lab.until_idle().await;
}

#[tokio::test]
async fn streams_are_spliced_messages_are_not_and_pipes_come_back() {
    let lab = Lab::with_backends(&[echo().await]);
    let mut client = lab.connect().await;
    let mut message = [0; 100];
    for _ in 0..2_000 {
        client.write_all(&message).await.unwrap();
        client.read_exact(&mut message).await.unwrap();
    }
    assert_eq!(lab.pipes.stats().taken, 0, "small messages need no pipe");

    let bytes = pattern(9, 16 * MIB);
    let (mut r, mut w) = client.split();
    let mut got = vec![0; bytes.len()];
    let (sent, received) = tokio::join!(w.write_all(&bytes), r.read_exact(&mut got));
    sent.unwrap();
    received.unwrap();
    assert!(got == bytes);
    assert_eq!(lab.pipes.stats().taken, 2, "both directions streamed");

    // A connection that has streamed and fell silent holds no pipe, and goes on.
    eventually("pipes are given back", || lab.pipes.stats().kept == 2).await;
    client.write_all(b"still there").await.unwrap();
    let mut got = [0; 11];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still there");
    drop(client);
    lab.until_idle().await;
    assert_eq!(lab.pipes.stats().live, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_at_once() {
    let lab = Lab::with_backends(&[echo().await, echo().await, echo().await]);
    let mut clients = Vec::new();
    for n in 0..1_000_u64 {
        let mut client = lab.connect().await;
        clients.push(tokio::spawn(async move {
            let bytes = pattern(n, 10_000);
            let (mut r, mut w) = client.split();
            let mut got = vec![0; bytes.len()];
            for _ in 0..3 {
                let (sent, received) = tokio::join!(w.write_all(&bytes), r.read_exact(&mut got));
                sent.unwrap();
                received.unwrap();
                assert!(got == bytes);
            }
            client
        }));
    }
    let mut open = Vec::new();
    for client in clients {
        open.push(client.await.unwrap());
    }
    let view = lab.view();
    assert_eq!(view.backends.iter().map(|b| b.active).sum::<u32>(), 1_000);
    assert!(view.backends.iter().all(|b| b.active > 200), "least-request spreads");
    drop(open);
    // A reader may have the last bytes before they are counted.
    lab.until_idle().await;
    assert_eq!(lab.bytes(), (30_000_000, 30_000_000));
    assert_eq!(lab.view().backends.iter().map(|b| b.active).sum::<u32>(), 0);
}
