//! Backends that refuse or do not answer.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use edgesplice::balance::BackendState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{
    FRONTEND, Lab, backend_of, echo, eventually, hanging, refusing, reset, service, settings,
};

async fn ping(client: &mut TcpStream) -> std::io::Result<()> {
    client.write_all(b"ping").await?;
    let mut got = [0; 4];
    client.read_exact(&mut got).await?;
    assert_eq!(&got, b"ping");
    Ok(())
}

#[tokio::test]
async fn a_refusing_backend_costs_no_client_anything_and_is_ejected() {
    let (dead, alive) = (refusing().await, [echo().await, echo().await]);
    let lab = Lab::with_backends(&[alive[0], dead, alive[1]]);
    let mut changes = lab.upstreams.health_changes();
    for _ in 0..100 {
        ping(&mut lab.connect().await).await.unwrap();
    }
    let view = lab.view();
    assert_eq!(lab.states(), [BackendState::Ready, BackendState::Ejected, BackendState::Ready]);
    assert!((3..6).contains(&view.backends[1].failures), "{}", view.backends[1].failures);
    assert_eq!(view.backends[0].connections + view.backends[2].connections, 100);
    assert!(changes.has_changed().unwrap() && *changes.borrow_and_update() >= 1);
    assert_eq!(lab.refused(), 0);
}

#[tokio::test]
async fn a_hanging_backend_delays_a_few_and_is_ejected() {
    let (dead, _keep) = hanging().await;
    let lab = Lab::with_backends(&[dead, echo().await, echo().await]);
    let (mut slow, mut slowest) = (0, Duration::ZERO);
    for _ in 0..60 {
        let begun = Instant::now();
        ping(&mut lab.connect().await).await.unwrap();
        let took = begun.elapsed();
        slow += usize::from(took > Duration::from_millis(200));
        slowest = slowest.max(took);
    }
    assert_eq!(lab.states()[0], BackendState::Ejected);
    assert!(slow <= 4, "{slow} connections waited");
    assert!(slowest < Duration::from_millis(700), "{slowest:?}");
}

#[tokio::test]
async fn when_all_refuse_the_client_is_reset_at_once() {
    let lab = Lab::with_backends(&[refusing().await, refusing().await, refusing().await]);
    for round in 1..=10 {
        let begun = Instant::now();
        let mut client = lab.connect().await;
        let end = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
        assert!(begun.elapsed() < Duration::from_millis(500));
        eventually("counted", || lab.refused() == round).await;
    }
    assert!(lab.view().backends.iter().all(|b| b.failures == 10), "each tried once per connection");
    assert_eq!(lab.view().counters.refused.load(Relaxed), 10);
    lab.until_idle().await;
}

#[tokio::test]
async fn a_lone_backend_is_dialled_even_if_ejected_and_comes_back_at_once() {
    let addr = refusing().await;
    let lab = Lab::with_backends(&[addr]);
    for _ in 0..5 {
        assert!(lab.connect().await.read(&mut [0; 1]).await.is_err());
    }
    assert_eq!(lab.states(), [BackendState::Ejected]);
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let mut client = lab.connect().await;
    let (mut backend, _) = timeout(Duration::from_secs(2), listener.accept()).await.unwrap().unwrap();
    backend.write_all(b"back").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(lab.states(), [BackendState::Ready]);
}

#[tokio::test]
async fn servers_that_speak_first_are_heard() {
    let greeter = backend_of(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let lab = Lab::with_backends(&[refusing().await, greeter]);
    for _ in 0..10 {
        let mut client = lab.connect().await;
        let mut got = [0; 11];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"220 ready\r\n");
    }
}

#[tokio::test]
async fn what_the_client_sent_before_is_not_lost_on_the_way_to_the_third_backend() {
    let (dead, _keep) = hanging().await;
    let lab = Lab::with_backends(&[refusing().await, dead, echo().await]);
    for _ in 0..6 {
        let mut client = lab.connect().await;
        ping(&mut client).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_gives_up_ends_the_dial() {
    let (dead, _keep) = hanging().await;
    let (dead_too, _keep_too) = hanging().await;
    let lab = Lab::with_backends(&[dead, dead_too]);
    let client = lab.connect().await;
    eventually("the second dial is under way", || lab.view().backends.iter().all(|b| b.active == 1)).await;
    let begun = Instant::now();
    reset(client);
    lab.until_idle().await;
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    assert_eq!(lab.refused(), 0, "the client left, nobody refused it");
}

#[tokio::test]
async fn hanging_backends_end_within_the_budget() {
    let (dead, _keep) = hanging().await;
    let mut limits = settings();
    limits.dial_budget = Duration::from_millis(700);
    let lab = Lab::start(&limits, service("web", FRONTEND, &[dead]));
    let begun = Instant::now();
    let end = lab.connect().await.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert!((600..1_200).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_guarded_address_is_never_dialled() {
    let (own, good) = (echo().await, echo().await);
    let lab = Lab::start_with(&settings(), service("web", FRONTEND, &[own, good]), |proxy| {
        proxy.with_guard(Arc::new(move |addr| addr == own))
    });
    for _ in 0..20 {
        ping(&mut lab.connect().await).await.unwrap();
    }
    let view = lab.view();
    assert_eq!((view.backends[0].connections, view.backends[1].connections), (0, 20));
    assert_eq!(view.backends[0].failures, 0);
}
