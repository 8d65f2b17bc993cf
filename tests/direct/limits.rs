//! What a service port may have and what backends are told, and how connections are spread over threads.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use edgesplice::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{FRONTEND, Lab, backend_of, echo, eventually, refusing, service, settings};

async fn ping(client: &mut TcpStream) -> std::io::Result<()> {
    client.write_all(b"?").await?;
    client.read_exact(&mut [0; 1]).await.map(drop)
}

async fn reset_by(client: &mut TcpStream) {
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_service_port_has_no_more_connections_than_it_may() {
    let mut port = service("web", FRONTEND, &[echo().await]);
    port.max_connections = Some(2);
    let lab = Lab::start(&settings(), port);
    let (mut first, mut second) = (lab.connect().await, lab.connect().await);
    ping(&mut first).await.unwrap();
    ping(&mut second).await.unwrap();
    reset_by(&mut lab.connect().await).await;
    drop(first);
    eventually("the first has ended", || lab.counters.active.load(Relaxed) == 1).await;
    ping(&mut lab.connect().await).await.unwrap();
    ping(&mut second).await.unwrap();
    assert_eq!(lab.refused(), 1);
}

#[tokio::test]
async fn one_address_has_no_more_connections_than_it_may() {
    let mut limits = settings();
    limits.max_per_source = 2;
    let lab = Lab::start(&limits, service("web", FRONTEND, &[echo().await]));
    let (mut first, mut second) = (lab.connect().await, lab.connect().await);
    ping(&mut first).await.unwrap();
    ping(&mut second).await.unwrap();
    reset_by(&mut lab.connect().await).await;
    // Another address of this machine is another client.
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    ping(&mut other.connect(lab.addr()).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_backend_that_asks_for_it_is_told_who_the_client_is() {
    let backend = backend_of(|mut stream| async move {
        let mut header = [0; 28];
        stream.read_exact(&mut header).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    let mut port = service("web", FRONTEND, &[refusing().await, backend]);
    port.proxy_protocol = true;
    let lab = Lab::start(&settings(), port);
    for _ in 0..4 {
        let mut client = lab.connect().await;
        client.write_all(b"after it").await.unwrap();
        let mut got = [0; 28 + 8];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert_eq!(got[16..24], [127, 0, 0, 1, 10, 96, 0, 10]);
        let port = client.local_addr().unwrap().port();
        assert_eq!(got[24..28], [port.to_be_bytes(), 80_u16.to_be_bytes()].concat());
        assert_eq!(&got[28..], b"after it");
    }
}

#[tokio::test]
async fn every_connection_is_served_whichever_part_accepts_it() {
    let two = |_: Proxy| {
        let proxy = Proxy::bind_sharded(&settings(), 0, 2).unwrap();
        proxy.with_destination(Arc::new(|_, _| Ok(FRONTEND)))
    };
    let lab = Lab::start_with(&settings(), service("web", FRONTEND, &[echo().await]), two);
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut client = lab.connect().await;
        ping(&mut client).await.unwrap();
        open.push(client);
    }
    for client in &mut open {
        ping(client).await.unwrap();
    }
    drop(open);
    lab.until_idle().await;
    assert_eq!(lab.refused(), 0);
}

#[tokio::test]
async fn a_service_port_is_held_while_all_refuse_and_no_longer() {
    let (first, second) = (refusing().await, refusing().await);
    let lab = Lab::with_backends(&[first, second]);
    reset_by(&mut lab.connect().await).await;
    let held = lab.upstreams.held();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].frontends().map(|f| f.addr()).collect::<Vec<_>>(), [FRONTEND]);
    let stop = tokio_util::sync::CancellationToken::new();
    let probing = edgesplice::proxy::probe::run(Arc::clone(&lab.upstreams), 0, stop.clone());
    let probing = tokio::spawn(probing);
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    assert_eq!(lab.upstreams.held().len(), 1);
    let _back = tokio::net::TcpListener::bind(second).await.unwrap();
    eventually("the release", || lab.upstreams.held().is_empty()).await;
    stop.cancel();
    probing.await.unwrap();
}
