//! Every reader of foreign bytes under hostile input: the fuzz targets in `fuzz/`, the property tests and the findings
//! in `tests/fixtures/fuzz` all come through here. No part of the program: it is built for tests and fuzzing only.

#![allow(
    missing_docs,
    reason = "each function takes the bytes that its target is named after, and panics on a fault"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use crate::config::{Inputs, Origin};
use crate::model::explain::{self, Known};
use crate::model::{Local, Snapshot, Store};
use crate::net::{diag, listening, queue};
use crate::source::slim::Object;
use crate::{cli, dns, obs, proxy, rules, source};

/// A target: its name, which is that of its seeds and findings, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them but those for DNS, which have a state of their own and stand in `fuzz/` alone.
pub const TARGETS: [Target; 12] = [
    ("manifests", manifests),
    ("cache_file", cache_file),
    ("api_answer", api_answer),
    ("kubeconfig", kubeconfig),
    ("config", config),
    ("migrate_config", migrate_config),
    ("iptables_save", iptables_save),
    ("ipset", ipset),
    ("netlink", netlink),
    ("held_packet", held_packet),
    ("http", http),
    ("admin", admin),
];

fn text(bytes: &[u8], read: impl FnOnce(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        read(text);
    }
}

/// Manifests, and what this node makes of objects that mean no good.
pub fn manifests(bytes: &[u8]) {
    text(bytes, |text| {
        for json in [false, true] {
            if let Some(objects) = source::manifests::read_text(text, json) {
                serve(objects);
            }
        }
    });
}

/// Puts objects in force; nothing of them may lead to a service that only this node itself is meant to reach.
fn serve(objects: Vec<Object>) {
    let local = |addresses: &[IpAddr]| {
        let mut local = Local::new("edge-a");
        local.own_addresses = addresses.to_vec();
        local
    };
    let mut store = Store::new(local(&[]));
    store.replace(objects);
    never_to_ourselves(&store.snapshot());
    // Another way to the same objects, as when the addresses of this node change.
    store.set_local(local(&[IpAddr::from([192, 0, 2, 1])]));
    let snapshot = store.snapshot();
    never_to_ourselves(&snapshot);
    for name in ["10.96.0.50:80", "web.default:80", "[fd00::1]:80/udp"] {
        let known = Known {
            snapshot: &snapshot,
            ranges: &[],
            names: &BTreeSet::default(),
            by_name: &BTreeSet::default(),
            domain: "cluster.local",
            live: &|_, _| None,
        };
        let _ = explain::resolve(known, name);
    }
}

fn never_to_ourselves(snapshot: &Snapshot) {
    for (id, port) in &snapshot.ports {
        let kubernetes = &*id.service.namespace == "default" && &*id.service.name == "kubernetes";
        for backend in port.v4.eligible.iter().chain(&port.v6.eligible) {
            let ip = backend.addr.0.ip().to_canonical();
            let link_local = match ip {
                IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            let loopback = ip.is_loopback() && !kubernetes;
            assert!(
                !loopback && !link_local && !ip.is_unspecified() && !ip.is_multicast(),
                "{id} is served from {ip}"
            );
            assert_ne!(backend.addr.0.port(), 0, "{id} is served from port 0");
        }
    }
}

pub fn cache_file(bytes: &[u8]) {
    source::cache::read_bytes(bytes);
}

pub fn api_answer(bytes: &[u8]) {
    source::read_answer(bytes);
}

pub fn kubeconfig(bytes: &[u8]) {
    text(bytes, |text| {
        source::kube::read_text(text);
        dns::probe::read_kubelet(text);
    });
}

/// The configuration file: what is accepted is printed, and that reads back as the same.
pub fn config(bytes: &[u8]) {
    text(bytes, |text| {
        let inputs = Inputs {
            node_name: Some(("edge-a".to_owned(), Origin::Default("the fuzzer"))),
            ..Inputs::default()
        };
        let file = Path::new("fuzz.yaml");
        let Ok(settings) = inputs.resolve(Some((file, text))) else { return };
        let printed = settings.to_yaml().expect("settings can be printed");
        let again = inputs.resolve(Some((file, &printed))).expect("what is printed can be read");
        assert_eq!(settings, again, "{printed}");
    });
}

pub fn migrate_config(bytes: &[u8]) {
    text(bytes, cli::migrate_config::read_text);
}

pub fn iptables_save(bytes: &[u8]) {
    text(bytes, rules::hostile::read_dump);
}

pub fn ipset(bytes: &[u8]) {
    text(bytes, |text| {
        rules::hostile::read_sets(text);
        text.lines().for_each(listening::read_line);
    });
}

/// What the kernel answers, in each of the families that are read.
pub fn netlink(bytes: &[u8]) {
    rules::hostile::read_answers(bytes);
    diag::read_bytes(bytes);
    let _ = queue::Packet::read(bytes);
}

/// A held packet, bare and as the kernel tells of it.
pub fn held_packet(bytes: &[u8]) {
    proxy::hold::read_packet(bytes);
    if let Some(packet) = queue::Packet::read(bytes) {
        proxy::hold::read_packet(packet.bytes);
    }
}

pub fn http(bytes: &[u8]) {
    proxy::read_beginning(bytes);
    proxy::read_requests(bytes);
}

/// A `Host` header and a query, one a line.
pub fn admin(bytes: &[u8]) {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let (host, query) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    text(query, |query| obs::admin::read_head(host, query));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// The files of `fuzz/seeds/TARGET` and of `tests/fixtures/fuzz/TARGET`.
    fn files(target: &str) -> Vec<Vec<u8>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = [root.join("fuzz/seeds").join(target), root.join("tests/fixtures/fuzz").join(target)];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn seeds_and_findings_do_no_harm() {
        for (name, target) in TARGETS {
            let files = files(name);
            assert!(!files.is_empty(), "no seeds for {name}");
            for bytes in &files {
                target(bytes);
            }
        }
    }

    #[test]
    fn every_target_is_a_program_of_the_fuzzer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        for (name, _) in TARGETS {
            let text = fs::read_to_string(folder.join(name).with_extension("rs")).unwrap();
            assert!(text.contains(&format!("fuzzing::{name}(")), "{name}");
        }
    }

    /// A seed of `target` with some bytes changed, a part left out, and a part of another one put in.
    fn mutated(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let seeds = files(target);
        let some = proptest::sample::select(seeds);
        let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        (some.clone(), some, edits, any::<[prop::sample::Index; 4]>()).prop_map(
            |(mut one, other, edits, at)| {
                for (index, byte) in edits {
                    if !one.is_empty() {
                        let index = index.index(one.len());
                        one[index] = byte;
                    }
                }
                let [a, b, c, d] = at;
                let cut = |bytes: &[u8], a: prop::sample::Index, b: prop::sample::Index| {
                    let (a, b) = (a.index(bytes.len() + 1), b.index(bytes.len() + 1));
                    (a.min(b), a.max(b))
                };
                let (from, to) = cut(&one, a, b);
                let (start, end) = cut(&other, c, d);
                // A few bytes are what most faults need; the rest is whole seeds run into one another.
                one.splice(from..to.min(from + 40), other[start..end].iter().copied());
                one
            },
        )
    }

    macro_rules! properties {
        ($($name:ident)*) => {
            $(proptest! {
                #[test]
                fn $name(changed in mutated(stringify!($name)), any in proptest::collection::vec(any::<u8>(), 0..300)) {
                    super::$name(&changed);
                    super::$name(&any);
                }
            })*
        };
    }

    properties! {
        manifests cache_file api_answer kubeconfig config migrate_config iptables_save ipset netlink held_packet http
        admin
    }
}
