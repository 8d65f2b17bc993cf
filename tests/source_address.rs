//! `edgesplice.io/source-address: preserve`: backends on this node see who is really talking to them.

mod lab;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::{Agent, Lab, Netns, Node, Server, eventually, objects, read_all, with_either_backend};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

with_either_backend!(a_backend_on_this_node_sees_its_client);

/// A service over both families whose only backend is a pod of node `a`.
fn service(name: &str, number: u8, addresses: [&str; 2], host_network: bool) -> Vec<Value> {
    let (v4, v6) = (format!("10.96.3.{number}"), format!("fd00:10:96::3{number:02x}"));
    let ports = [("tcp-0", 80, 7000, "TCP")];
    let mut service = objects::service(name, &[&v4, &v6], &ports);
    service["metadata"]["annotations"] = json!({"edgesplice.io/source-address": "preserve"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": "a", "hostNetwork": host_network, "containers": [{"name": "c"}]},
        "status": {
            "phase": "Running", "hostIP": "192.168.77.1", "podIP": addresses[0],
            "podIPs": [{"ip": addresses[0]}, {"ip": addresses[1]}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    let mut all = vec![service, pod];
    for address in addresses {
        let mut slice = objects::slice(name, &[("tcp-0", 7000, "TCP")], &[address]);
        slice["endpoints"][0]["nodeName"] = json!("a");
        slice["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": name, "namespace": "default"});
        all.push(slice);
    }
    all
}

/// Says whom it sees, then echoes.
fn witness(ns: &Netns) -> Server {
    Server::start(ns, 7000, |mut stream: TcpStream| {
        let Ok(peer) = stream.peer_addr() else { return };
        if writeln!(stream, "{}", peer.ip().to_canonical()).is_err() {
            return;
        }
        // Goes on after a signal.
        if let Ok(mut reader) = stream.try_clone() {
            let _ = std::io::copy(&mut reader, &mut stream);
        }
    })
}

/// Whom the backend of `to` sees, and that bytes pass both ways.
fn seen(client: &Netns, to: &str) -> Result<String, String> {
    let mut stream = client.connect(to).map_err(|errno| errno.to_string())?;
    let sent = "x".repeat(300_000);
    let mut writer = stream.try_clone().map_err(|e| e.to_string())?;
    let text = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ =
                writer.write_all(sent.as_bytes()).and_then(|()| writer.shutdown(std::net::Shutdown::Write));
        });
        read_all(&mut stream)
    });
    let text = text.map_err(|error| error.to_string())?;
    let (address, rest) = text.split_once('\n').ok_or_else(|| format!("it said {text:?}"))?;
    if rest == sent { Ok(address.to_owned()) } else { Err(format!("{} bytes came back", rest.len())) }
}

fn a_backend_on_this_node_sees_its_client(backend: &str) {
    let lab = Lab::new(&format!("source-{backend}"));
    let (a, b): (Node, Node) = (lab.node("a"), lab.node("b"));
    b.ip("route add 10.96.0.0/16 via 192.168.77.1\nroute add fd00:10:96::/112 via fd77::1\n");
    let (routed, bridged) = (a.pod("routed"), a.bridged_pod("bridged"));
    let (web, bridged_web) = (a.pod("web"), a.bridged_pod("bridged-web"));
    let _witnesses = [witness(&web), witness(&bridged_web), witness(&a)];
    let objects = [
        service("routed", 1, [&web.v4, &web.v6], false),
        service("bridged", 2, [&bridged_web.v4, &bridged_web.v6], false),
        service("host", 3, [&a.v4, &a.v6], true),
    ]
    .concat();
    let agent = Agent::on(&a).backend(backend).manifest("objects.json", &objects::list(objects)).start();
    agent.wait_for("the rules stand", LIMIT, |status| status["rules"]["keepsSource"] == true);
    let mut wrong = Vec::new();
    for number in 1..=3_u8 {
        for (place, client, own) in [
            ("a routed pod", &*routed, [&*routed.v4, &*routed.v6]),
            ("a bridged pod", &*bridged, [&*bridged.v4, &*bridged.v6]),
            ("another node", &*b, [&*b.v4, &*b.v6]),
        ] {
            let services = [format!("10.96.3.{number}:80"), format!("[fd00:10:96::3{number:02x}]:80")];
            for (to, own) in services.iter().zip(own) {
                let found = seen(client, to);
                // Whom it takes for a neighbour on its bridge, the backend would answer there: it sees the node.
                let shared = number == 2 && place != "another node";
                let right = found.as_ref().is_ok_and(|address| (address == own) != shared);
                if !right {
                    wrong.push(format!("{place} to {to}: {found:?}"));
                }
            }
        }
        // The host keeps being itself.
        for to in [format!("10.96.3.{number}:80"), format!("[fd00:10:96::3{number:02x}]:80")] {
            if let Err(error) = seen(&a, &to) {
                wrong.push(format!("the host to {to}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), agent.log());
    // A connection of the client's own to the same backend is not touched.
    let direct: SocketAddr = format!("{}:7000", web.v4).parse().expect("an address");
    assert_eq!(seen(&routed, &direct.to_string()), Ok(routed.v4.to_string()));
    eventually("all have ended", LIMIT, || (agent.status()["proxy"]["activeConnections"] == 0).then_some(()));
}

/// What is answered to clients is led here by a mark, whoever they are; a kernel that follows marks back to a sender
/// would find this node instead of every pod. So the one option is given up, and says so.
#[test]
fn it_is_given_up_where_the_kernel_follows_marks_back() {
    let lab = Lab::new("source-marks");
    let a = lab.node("a");
    a.sysctl("net/ipv4/conf/all/src_valid_mark", "1");
    let (pod, web) = (a.pod("pod"), a.pod("web"));
    let _witness = witness(&web);
    let objects = objects::list(service("web", 1, [&web.v4, &web.v6], false));
    let agent = Agent::on(&a).backend("nft").manifest("objects.json", &objects).start();
    let status = agent.status();
    assert_ne!(status["rules"]["keepsSource"], true, "{status}");
    assert!(status.to_string().contains("src_valid_mark is 1"), "{status}");
    assert_eq!(pod.connect("10.96.3.1:81").map(drop), Err(nix::errno::Errno::ECONNREFUSED));
    let seen = seen(&pod, "10.96.3.1:80").expect("an answer");
    assert_ne!(seen, *pod.v4);
}
