//! The way of this node's own processes to the captured ranges, beside the routes of others.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use edgesplice::config::IptablesBackend;
use edgesplice::rules::apply::HostTools;
use edgesplice::rules::{Machine, Reconciler};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Acceptor, Lab, Namespace};
use crate::machines::WithoutPolicyRouting;
use crate::{BACKENDS, REFUSED, frontend, install, program, wanted};

/// Makes the bridged pod the way out of the node, with somebody beyond who has the addresses that are left alone.
fn with_way_out(lab: &Lab) -> Acceptor {
    lab.bridged.sh("ip addr add 10.96.0.1/32 dev lo; ip addr add fd00:96::1/128 dev lo nodad
        ip addr add 10.96.9.9/32 dev lo; ip addr add fd00:96::99/128 dev lo nodad");
    lab.node.sh("ip route add default via 10.8.0.2; ip -6 route add default via fd08::2");
    Acceptor::start(&lab.bridged)
}

fn left_alone(beyond: &Acceptor) -> [String; 2] {
    [format!("10.96.0.1:{}", beyond.port), format!("[fd00:96::1]:{}", beyond.port)]
}

const SERVED: [&str; 2] = ["10.96.0.10:80", "[fd00:96::a]:80"];

/// Whether an ICMP echo request is answered.
fn pings(from: &Namespace, to: &str) -> bool {
    from.run(|| {
        let to = SocketAddr::new(to.parse().expect("an address"), 0);
        let (protocol, request, header, reply) = if to.is_ipv4() {
            // Type, code, checksum, identifier, sequence number; and 20 bytes of IP in front of the answer.
            (Protocol::ICMPV4, [8, 0, 0xf7, 0xfd, 0, 1, 0, 1], 20, 0)
        } else {
            (Protocol::ICMPV6, [128, 0, 0, 0, 0, 1, 0, 1], 0, 129)
        };
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol)).expect("a raw socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let mut socket = socket;
        let ask = |socket: &mut Socket| -> std::io::Result<bool> {
            socket.connect(&to.into())?;
            socket.send(&request)?;
            let mut answer = [0; 128];
            loop {
                let length = socket.read(&mut answer)?;
                match answer[..length].get(header) {
                    Some(kind) if *kind == reply => return Ok(true),
                    // Other messages, such as the request itself on its way through `lo`.
                    _ => {}
                }
            }
        };
        ask(&mut socket).unwrap_or(false)
    })
}

#[test]
fn what_is_left_alone_is_reached_over_a_default_route() {
    for backend in BACKENDS {
        for strict in [0, 1] {
            let lab = Lab::new();
            // The kernel takes the stricter one of `all` and the link's own.
            lab.node.sh(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={strict}"));
            let beyond = with_way_out(&lab);
            let before = lab.state();
            let mut reconciler = install(&lab, HostTools, backend, &wanted(lab.acceptor.port));
            let context = format!("{}, rp_filter {strict}", program(backend));
            for client in [&lab.node, &lab.routed] {
                for to in left_alone(&beyond) {
                    let answer = client.tcp(&to);
                    assert!(answer.is_ok(), "{to} from {}: {answer:?} ({context})", client.name);
                }
            }
            assert_eq!(beyond.count(), 4, "{context}");
            for client in lab.clients() {
                for to in SERVED {
                    assert!(client.tcp(to).is_ok(), "{to} from {} ({context})", client.name);
                }
                for to in ["10.96.7.7:80", "[fd00:96::77]:80"] {
                    assert_eq!(client.tcp(to), Err(REFUSED.to_owned()), "{to} from {}", client.name);
                }
            }
            lab.node.block_on(reconciler.check()).unwrap();
            let report = reconciler.report();
            assert_eq!((report.repairs_total, report.warnings), (0, Vec::new()), "{context}");
            lab.node.block_on(reconciler.withdraw()).unwrap();
            if backend == IptablesBackend::Nft {
                assert_eq!(lab.state(), before, "{context}");
            }
        }
    }
}

#[test]
fn what_is_left_alone_comes_and_goes_without_a_rule_being_written() {
    let lab = Lab::new();
    let beyond = with_way_out(&lab);
    let mut want = wanted(lab.acceptor.port);
    want.skip.clear();
    let mut reconciler = install(&lab, HostTools, IptablesBackend::Nft, &want);
    let [v4, v6] = left_alone(&beyond);
    assert_eq!(lab.node.tcp(&v4), Err(REFUSED.to_owned()));
    let generation = || lab.node.run(|| HostTools.nft_generation()).expect("an answer");
    let before = generation();
    lab.node.block_on(reconciler.apply(&wanted(lab.acceptor.port))).unwrap();
    assert!(lab.node.tcp(&v4).is_ok() && lab.node.tcp(&v6).is_ok());
    lab.node.block_on(reconciler.apply(&want)).unwrap();
    assert_eq!(lab.node.tcp(&v4), Err(REFUSED.to_owned()));
    assert_eq!(
        lab.node.sh("ip route show table 238; ip -6 route show table 238").matches("throw").count(),
        0
    );
    assert_eq!(generation(), before);
}

#[test]
fn another_route_to_the_range_is_left_alone() {
    let lab = Lab::new();
    lab.node.sh("ip route add 10.96.0.0/16 dev br0");
    let mut reconciler = install(&lab, HostTools, IptablesBackend::Nft, &wanted(lab.acceptor.port));
    lab.node.block_on(reconciler.check()).unwrap();
    assert_eq!(reconciler.report().repairs_total, 0);
    assert!(lab.node.tcp(SERVED[0]).is_ok());
    assert!(!lab.node.sh("ip route show table 238").contains("dev lo"));
    lab.node.block_on(reconciler.withdraw()).unwrap();
    assert_eq!(lab.node.sh("ip route show 10.96.0.0/16").trim(), "10.96.0.0/16 dev br0 scope link");
}

#[test]
fn a_route_into_the_range_goes_on_to_work_for_what_is_not_captured() {
    let lab = Lab::new();
    let _beyond = with_way_out(&lab);
    let mut reconciler = install(&lab, HostTools, IptablesBackend::Nft, &wanted(lab.acceptor.port));
    let own = lab.state();
    for (add, del, to) in [
        ("ip route add 10.96.9.0/24 via 10.8.0.2", "ip route del 10.96.9.0/24", "10.96.9.9"),
        ("ip -6 route add fd00:96::90/124 via fd08::2", "ip -6 route del fd00:96::90/124", "fd00:96::99"),
    ] {
        assert!(!pings(&lab.node, to), "{to}");
        lab.node.sh(add);
        lab.node.block_on(reconciler.check()).unwrap();
        assert!(pings(&lab.node, to), "{to}");
        for to in SERVED {
            assert!(lab.node.tcp(to).is_ok(), "{to}");
        }
        lab.node.sh(del);
        lab.node.block_on(reconciler.check()).unwrap();
        assert_eq!(lab.state(), own, "{del}");
    }
    assert_eq!(reconciler.report().repairs_total, 0, "nobody has broken anything");
}

/// What a machine says when it is checked.
fn told<M: Machine>(lab: &Lab, reconciler: &mut Reconciler<M>) -> Vec<String> {
    lab.node.block_on(reconciler.check()).expect("a check");
    let warnings = reconciler.report().warnings;
    warnings.into_iter().filter(|line| line.contains("cannot reach")).collect()
}

#[test]
fn a_route_that_swallows_the_range_does_no_harm_but_to_what_is_left_alone() {
    for route in ["blackhole 10.96.0.0/16", "unreachable 10.0.0.0/9", "prohibit 10.96.0.0/24"] {
        let lab = Lab::new();
        let beyond = with_way_out(&lab);
        lab.node.sh(&format!("ip route add {route}"));
        let mut reconciler = install(&lab, HostTools, IptablesBackend::Nft, &wanted(lab.acceptor.port));
        let [to, _] = left_alone(&beyond);
        assert!(lab.node.tcp(SERVED[0]).is_ok(), "{route}");
        assert!(lab.node.tcp(&to).is_err(), "{route}");
        let lines = told(&lab, &mut reconciler);
        let mend = format!("ip route del {route}");
        assert!(
            lines.len() == 1
                && lines[0].contains("10.96.0.1, which is left alone")
                && lines[0].contains(&mend),
            "{route}: {lines:?}"
        );
        assert_eq!(told(&lab, &mut reconciler), lines);
        lab.node.sh(&mend);
        assert_eq!(told(&lab, &mut reconciler), [""; 0], "{route}");
        assert!(lab.node.tcp(&to).is_ok(), "{route}");
    }
}

#[test]
fn without_policy_routing_what_swallows_the_range_is_named_with_the_command_that_removes_it() {
    let lab = Lab::new();
    lab.node.sh("ip route add blackhole 10.96.0.0/16; ip -6 route add unreachable fd00:96::/112");
    let before = lab.state();
    let mut reconciler =
        install(&lab, WithoutPolicyRouting, IptablesBackend::Nft, &wanted(lab.acceptor.port));
    assert!(reconciler.report().warnings.iter().any(|line| line.contains("no policy routing")));
    let lines = told(&lab, &mut reconciler);
    let mends = ["ip route del blackhole 10.96.0.0/16", "ip -6 route del unreachable fd00:96::/112"];
    for mend in mends {
        assert!(lines.iter().any(|line| line.contains(mend)), "{mend}: {lines:?}");
    }
    for to in SERVED {
        assert!(lab.node.tcp(to).is_err() && lab.routed.tcp(to).is_ok(), "{to}");
    }
    lab.node.block_on(reconciler.withdraw()).unwrap();
    assert_eq!(lab.state(), before);
    lab.node.block_on(reconciler.apply(&wanted(lab.acceptor.port))).unwrap();
    for mend in mends {
        lab.node.sh(mend);
    }
    assert_eq!(told(&lab, &mut reconciler), [""; 0]);
    for to in SERVED {
        assert!(lab.node.tcp(to).is_ok(), "{to}");
    }
    assert!(
        !lab.node.sh("ip rule").contains("23") && lab.node.sh("ip route").contains("10.96.0.0/16 dev lo")
    );
}

#[test]
fn without_policy_routing_a_default_route_is_way_enough() {
    let lab = Lab::new();
    let beyond = with_way_out(&lab);
    let mut reconciler =
        install(&lab, WithoutPolicyRouting, IptablesBackend::Nft, &wanted(lab.acceptor.port));
    for to in left_alone(&beyond) {
        assert!(lab.node.tcp(&to).is_ok(), "{to}");
    }
    assert!(!lab.node.sh("ip route; ip -6 route").contains("dev lo"));
    lab.node.sh("ip route del default; ip -6 route del default");
    lab.node.block_on(reconciler.check()).unwrap();
    for to in SERVED {
        assert!(lab.node.tcp(to).is_ok(), "{to}");
    }
    let mut more = wanted(lab.acceptor.port);
    more.served.insert(frontend("10.96.0.11:80"));
    lab.node.block_on(reconciler.apply(&more)).unwrap();
    assert!(lab.node.tcp("10.96.0.11:80").is_ok());
}
