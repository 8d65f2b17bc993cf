//! The laboratory itself: that it does what the other tests take for granted, without the program under test.

mod lab;

use std::time::Duration;

use lab::{Lab, Server, State};
use nix::errno::Errno;

/// Two nodes, a pod each, one of them on a bridge; a page published on the second node's port 8080.
fn published(label: &str, backend: &str) {
    let lab = Lab::new(label);
    let (a, b) = (lab.node("a"), lab.node("b"));
    let (routed, bridged, web) = (a.pod("routed"), a.bridged_pod("bridged"), b.pod("web"));
    let _nginx = web.nginx(80, "web");
    b.publish(backend, 8080, &web, 80);
    for url in [format!("http://{}:8080/", b.v4), format!("http://[{}]:8080/", b.v6)] {
        let page = a.curl(&url).expect("the page from the other node");
        assert!(page.contains("Welcome to nginx!"), "{page}");
    }
    // There is no pod network between the nodes, and no default route.
    for far in [&web.v4, &web.v6] {
        let to = if far.contains(':') { format!("[{far}]:80") } else { format!("{far}:80") };
        assert_eq!(a.connect(&to).err(), Some(Errno::ENETUNREACH));
        assert!(routed.connect_within(&to, Duration::from_secs(1)).is_err());
    }
    // Pods reach their own node.
    let _server = Server::greeting(&a, 7000, "hello");
    for pod in [&routed, &bridged] {
        for to in ["10.244.1.1:7000", "[fd44:1::1]:7000", "192.168.77.1:7000"] {
            assert!(pod.connect(to).is_ok(), "{} to {to}", pod.name());
        }
    }
}

#[test]
fn a_published_port_serves_the_lan_nft() {
    published("ground-nft", "nft");
}

#[test]
fn a_published_port_serves_the_lan_legacy() {
    published("ground-legacy", "legacy");
}

#[test]
fn failures_are_told_apart() {
    let lab = Lab::new("ground-errno");
    let (a, b) = (lab.node("a"), lab.node("b"));
    let _reset = Server::reset_after(&b, 7000, b"part");
    b.must(&["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7001", "-j", "DROP"]);
    let within = Duration::from_millis(300);
    assert_eq!(a.connect("192.168.77.2:7002").unwrap_err(), Errno::ECONNREFUSED);
    assert_eq!(a.connect_within("192.168.77.2:7001", within).unwrap_err(), Errno::ETIMEDOUT);
    assert_eq!(a.connect("10.96.0.1:80").unwrap_err(), Errno::ENETUNREACH);
    assert_eq!(a.ask_udp("192.168.77.2:7002", b"?").unwrap_err(), Errno::ECONNREFUSED);
    let mut stream = a.connect("192.168.77.2:7000").expect("the resetting server accepts");
    std::io::Write::write_all(&mut stream, b"go").expect("a request");
    let error = lab::read_all(&mut stream).expect_err("the connection is reset");
    assert_eq!(lab::errno(&error), Errno::ECONNRESET);
}

#[test]
fn changes_of_state_are_seen_and_counters_are_not() {
    let lab = Lab::new("ground-state");
    let a = lab.node("a");
    let before = a.state();
    // Looking at a table brings it into being; that is no change.
    a.must(&["iptables-legacy", "-t", "nat", "-S"]);
    a.must(&["ip6tables-nft", "-t", "mangle", "-S"]);
    before.assert_same(&a.state(), "after a look at two tables");
    let steps: [&[&str]; 5] = [
        &["iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-d", "10.96.0.0/16", "-j", "RETURN"],
        &["ip6tables-nft", "-N", "EDGESPLICE-INPUT"],
        &["ipset", "create", "edgesplice-v4", "hash:ip,port"],
        &["ip", "route", "add", "10.96.0.0/16", "dev", "lo", "proto", "237"],
        &["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"],
    ];
    let mut last: State = before.clone();
    for step in steps {
        a.must(step);
        let now = a.state();
        assert!(!last.diff(&now).is_empty(), "not seen: {}", step.join(" "));
        last = now;
    }
    assert_eq!(a.rule_count(), 1);
}

#[test]
fn what_a_killed_run_left_is_removed() {
    let gone = "edgesplice-lab.4194304.1.0.gone.a";
    let add = std::process::Command::new("ip").args(["netns", "add", gone]).status().expect("ip runs");
    assert!(add.success());
    let lab = Lab::new("ground-stale");
    assert!(!std::path::Path::new("/run/netns").join(gone).exists());
    let a = lab.node("a");
    let path = std::path::Path::new("/run/netns").join(a.name());
    assert!(path.exists());
    drop(lab);
    assert!(!path.exists(), "a lab takes itself down");
}
