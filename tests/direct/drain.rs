//! Stopping: no new work, running work goes on, what outlasts the timeout is reset.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Lab, echo, eventually};

async fn exchange(client: &mut TcpStream) {
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test]
async fn running_connections_end_in_peace() {
    let lab = Lab::with_backends(&[echo().await]);
    let mut client = lab.connect().await;
    exchange(&mut client).await;
    let drain = lab.drain.clone();
    let stopping = tokio::spawn(async move { drain.run(Duration::from_secs(20)).await });
    let addr = lab.addr();
    let mut refused = false;
    for _ in 0..100 {
        refused = TcpStream::connect(addr).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused, "the acceptor is closed");
    exchange(&mut client).await;
    assert!(!stopping.is_finished());
    drop(client);
    assert_eq!(stopping.await.unwrap(), 0, "nothing had to be killed");
}

#[tokio::test]
async fn what_outlasts_the_timeout_is_reset() {
    let lab = Lab::with_backends(&[echo().await]);
    let mut idle = lab.connect().await;
    exchange(&mut idle).await;
    let mut busy = lab.connect().await;
    let streaming = tokio::spawn(async move {
        let (mut r, mut w) = busy.split();
        let chunk = vec![0; 64 * 1024];
        let push = async {
            loop {
                if let Err(e) = w.write_all(&chunk).await {
                    return e.kind();
                }
            }
        };
        let pull = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match r.read(&mut buffer).await {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(e) => return Some(e.kind()),
                }
            }
        };
        tokio::join!(push, pull)
    });
    eventually("the stream is spliced", || lab.pipes.stats().taken >= 1).await;

    let killed = lab.drain.run(Duration::from_millis(300)).await;
    assert!(killed >= 2, "{killed}");
    assert!(lab.drain.tasks().is_empty(), "all noticed");
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The kernel tells of a reset once: to whichever call comes first.
    let (push, pull) = streaming.await.unwrap();
    assert!(
        push == ErrorKind::ConnectionReset || pull == Some(ErrorKind::ConnectionReset),
        "{push:?} {pull:?}"
    );
}
