//! Where `Host` chooses the service.

use std::net::IpAddr;

use edgesplice::balance::Upstreams;
use edgesplice::proxy::Gate;

use super::*;
use crate::harness::snapshot;

const GATE: &str = "169.254.96.16:80";

/// A proxy with `web` and `shop` on HTTP ports and `db` on another one, all at port 80, for clients that dial the gate.
async fn gate() -> Lab {
    let backends = [named("web").await.0, named("shop").await.0, named("db").await.0];
    let names = ["web", "shop", "db"];
    let at = |n: u8| IpAddr::from([10, 96, 0, 10 + n]);
    let ports = [0_u8, 1, 2].map(|n| {
        let mut port = service(names[usize::from(n)], (at(n), 80).into(), &[backends[usize::from(n)]]);
        port.mode = if n == 2 { Mode::Tcp } else { Mode::Http };
        port
    });
    let first = ports[0].clone();
    let gate = Gate {
        is: Arc::new(|dst| dst == GATE.parse().unwrap()),
        find: Arc::new(move |name| {
            names.iter().zip(0..).find(|(known, _)| **known == name).map(|(_, n)| at(n))
        }),
    };
    let lab = Lab::start_with(&settings(), first, |proxy| proxy.with_gate(gate));
    let upstreams: &Upstreams = &lab.upstreams;
    upstreams.apply(snapshot(ports));
    *lab.destination.lock().unwrap() = Some(GATE.parse().unwrap());
    lab
}

#[tokio::test]
async fn each_request_goes_to_the_service_that_it_names() {
    let lab = gate().await;
    let mut client = Reader::new(lab.connect().await);
    for (host, status, text) in [
        ("web", 200, "web"),
        ("shop:80", 200, "shop"),
        ("WEB.", 200, "web"),
        ("shop:8080", 421, "Host names no service"),
        ("db", 421, "Host names no service"),
        ("nobody", 421, "Host names no service"),
        ("", 421, "Host names no service"),
        ("shop", 200, "shop"),
    ] {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status(), status, "{host}: {answer:?}");
        assert!(answer.text().starts_with(text), "{host}: {answer:?}");
    }
    let answer = client.ask("GET http://shop/ HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(answer.text(), "shop", "a target that names its host beats the header, as for the backend");
    let answer = client.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(answer.status(), 421, "an old client that names nobody");
    let count = |name: &str| {
        let views = lab.upstreams.views();
        let view = views.iter().find(|view| &*view.port.id.service.name == name).unwrap();
        view.counters.http().numbers().classes[1]
    };
    assert_eq!(
        (count("web"), count("shop"), count("db")),
        (2, 3, 0),
        "requests count with the service they name"
    );
}

#[tokio::test]
async fn what_names_nobody_is_reset() {
    let lab = gate().await;
    let mut client = Reader::new(lab.connect().await);
    client.send("\x16\x03\x01\x02\x00").await;
    let mut rest = Vec::new();
    assert!(client.stream.read_to_end(&mut rest).await.is_err(), "{rest:?}");
    *lab.destination.lock().unwrap() = Some("169.254.96.17:80".parse().unwrap());
    let mut client = lab.connect().await;
    assert!(client.read_to_end(&mut rest).await.is_err(), "another address is no gate");
    assert_eq!(lab.refused(), 2);
}
