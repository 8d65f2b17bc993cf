//! Who goes where, and who is turned away.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use edgesplice::balance::BackendState;
use edgesplice::model::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{FRONTEND, Lab, backend_of, echo, eventually, refusing, service, settings, snapshot};

/// A backend that says who it is.
async fn named(name: u8) -> SocketAddr {
    backend_of(move |mut stream| async move {
        stream.write_all(&[name]).await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await
}

async fn who_answers(lab: &Lab) -> u8 {
    let mut got = [0];
    lab.connect().await.read_exact(&mut got).await.unwrap();
    got[0]
}

async fn assert_reset(mut client: TcpStream) {
    let end = client.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn who_dials_the_acceptor_itself_is_reset() {
    let lab = Lab::with_backends(&[echo().await]);
    *lab.destination.lock().unwrap() = Some(lab.addr());
    assert_reset(lab.connect().await).await;
    *lab.destination.lock().unwrap() = None;
    assert_reset(lab.connect().await).await;
    eventually("both are counted", || lab.refused() == 2).await;
}

#[tokio::test]
async fn a_service_may_use_the_acceptors_port_number() {
    let lab = Lab::with_backends(&[echo().await]);
    let frontend = SocketAddr::new(FRONTEND.ip(), lab.port);
    lab.upstreams.apply(snapshot([service("web", frontend, &[named(3).await])]));
    *lab.destination.lock().unwrap() = Some(frontend);
    assert_eq!(who_answers(&lab).await, 3);
}

#[tokio::test]
async fn unknown_destinations_and_services_without_backends_are_reset() {
    let lab = Lab::with_backends(&[echo().await]);
    *lab.destination.lock().unwrap() = Some(SocketAddr::from(([10, 96, 0, 99], 80)));
    assert_reset(lab.connect().await).await;
    *lab.destination.lock().unwrap() = Some(FRONTEND);
    lab.upstreams.apply(snapshot([service("web", FRONTEND, &[])]));
    assert_reset(lab.connect().await).await;
    eventually("both are counted", || lab.refused() == 2).await;
    lab.until_idle().await;
}

#[tokio::test]
async fn a_change_moves_new_connections_and_leaves_open_ones_alone() {
    let (old, new) = (echo().await, named(2).await);
    let lab = Lab::with_backends(&[old]);
    let mut open = lab.connect().await;
    open.write_all(b"a").await.unwrap();
    open.read_exact(&mut [0; 1]).await.unwrap();

    lab.upstreams.apply(snapshot([service("web", FRONTEND, &[new])]));
    assert_eq!(who_answers(&lab).await, 2);
    open.write_all(b"b").await.unwrap();
    open.read_exact(&mut [0; 1]).await.unwrap();

    let view = lab.view();
    let states: Vec<_> = view.backends.iter().map(|b| (b.backend.addr.0, b.state)).collect();
    assert_eq!(states, [(new, BackendState::Ready), (old, BackendState::Draining)]);
    assert_eq!(view.counters.total.load(Relaxed), 2, "counters outlive the change");
    drop(open);
    eventually("nothing is draining", || lab.states() == [BackendState::Ready]).await;
    lab.until_idle().await;
}

#[tokio::test]
async fn counters_outlive_a_service_that_goes_and_comes_back_while_in_use() {
    let backend = echo().await;
    let lab = Lab::with_backends(&[backend]);
    let mut open = lab.connect().await;
    open.write_all(b"a").await.unwrap();
    open.read_exact(&mut [0; 1]).await.unwrap();
    lab.upstreams.apply(snapshot([]));
    assert!(lab.upstreams.views().is_empty());
    lab.upstreams.apply(snapshot([service("web", FRONTEND, &[backend])]));
    let view = lab.view();
    assert_eq!((view.backends.len(), view.backends[0].active), (1, 1));
    assert_eq!(view.counters.active.load(Relaxed), 1);
}

#[tokio::test]
async fn unchanged_service_ports_are_kept_as_they_are() {
    let backend = echo().await;
    let lab = Lab::with_backends(&[backend]);
    let before = lab.upstream();
    let other = SocketAddr::from(([10, 96, 0, 11], 80));
    lab.upstreams
        .apply(snapshot([service("web", FRONTEND, &[backend]), service("other", other, &[backend])]));
    assert!(Arc::ptr_eq(&before, &lab.upstream()));
    lab.upstreams.apply(snapshot([service("web", FRONTEND, &[backend, other])]));
    assert!(!Arc::ptr_eq(&before, &lab.upstream()));
    assert_eq!(lab.upstreams.views().len(), 1);
}

#[tokio::test]
async fn health_is_shared_by_address_and_survives_changes() {
    let (dead, alive) = (refusing().await, named(1).await);
    let lab = Lab::with_backends(&[dead, alive]);
    for _ in 0..30 {
        who_answers(&lab).await;
    }
    assert_eq!(lab.states(), [BackendState::Ejected, BackendState::Ready]);
    let other = SocketAddr::from(([10, 96, 0, 11], 80));
    let mut changed = service("web", FRONTEND, &[dead, alive]);
    changed.policy = Policy::RoundRobin;
    lab.upstreams.apply(snapshot([changed, service("other", other, &[dead])]));
    let views = lab.upstreams.views();
    assert_eq!(views[0].backends[0].state, BackendState::Ejected, "the other service knows");
    assert_eq!(views[1].backends[0].state, BackendState::Ejected);
}

#[tokio::test]
async fn client_affinity_sticks_is_switched_live_and_moves_when_its_backend_fails() {
    let backends = [named(0).await, named(1).await, named(2).await];
    let lab = Lab::with_backends(&backends);
    let mut sticky = service("web", FRONTEND, &backends);
    sticky.policy = Policy::RoundRobin;
    lab.upstreams.apply(snapshot([sticky.clone()]));
    let seen: HashSet<_> = [who_answers(&lab).await, who_answers(&lab).await, who_answers(&lab).await].into();
    assert_eq!(seen.len(), 3);

    sticky.affinity = Some(Duration::from_hours(3));
    lab.upstreams.apply(snapshot([sticky.clone()]));
    let first = who_answers(&lab).await;
    for _ in 0..15 {
        assert_eq!(who_answers(&lab).await, first);
    }

    // The pinned one is gone: another, and that one from then on.
    let mut rest = backends.to_vec();
    rest[usize::from(first)] = refusing().await;
    let mut changed = service("web", FRONTEND, &rest);
    (changed.policy, changed.affinity) = (Policy::RoundRobin, sticky.affinity);
    lab.upstreams.apply(snapshot([changed]));
    let second = who_answers(&lab).await;
    assert_ne!(second, first);
    for _ in 0..15 {
        assert_eq!(who_answers(&lab).await, second);
    }

    sticky.affinity = None;
    lab.upstreams.apply(snapshot([sticky]));
    let seen: HashSet<_> = [who_answers(&lab).await, who_answers(&lab).await, who_answers(&lab).await].into();
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn above_the_connection_limit_clients_wait_their_turn() {
    let mut limits = settings();
    limits.max_connections = 2;
    let lab = Lab::start(&limits, service("web", FRONTEND, &[named(1).await]));
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = lab.connect().await;
        client.read_exact(&mut [0; 1]).await.unwrap();
        open.push(client);
    }
    let mut third = lab.connect().await;
    let early = tokio::time::timeout(Duration::from_millis(300), third.read(&mut [0; 1])).await;
    assert!(early.is_err(), "it must wait");
    assert!(lab.counters.accept_pauses.load(Relaxed) >= 1);
    drop(open);
    third.read_exact(&mut [0; 1]).await.unwrap();
}
