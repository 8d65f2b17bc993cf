//! One table: what each EdgeMesh version left on a node.
//!
//! To teach `cleanup` another version, add a [`Footprint`] to [`FOOTPRINTS`]; nothing else has to change. Chain names
//! are compared whole, never by prefix. Rules are written as `iptables-save` prints them, with these placeholders:
//! `<net>` a network, `<range>` a network other than [`FAKE_RANGE`], `<host>` one address (`/32`, `/128` or no mask), `<dev>` an interface, `<proto>` `tcp` or `udp`,
//! `<port>` a port, `<addr>` an address, `<addr:port>` both, `<mesh:port>` with [`MESH_ADDRESS`], `<node:port>` with any
//! other address, `<service>` EdgeMesh's `namespace/name[:port]`, `<ignore.>` and `<ignore/>` its two `ignore …`
//! comments. The order of a rule's options does not matter: versions of the programs print them differently.

use crate::rules::names;

/// Where a version put its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the node.
    Node,
    /// Into the network namespace of each client pod. Also looked for on the node: the names are EdgeMesh's alone.
    Pod,
    /// Typed by hand after a page of the documentation; removed only on demand.
    ByHand,
    /// This program's own.
    Own,
}

/// What it takes to call a chain EdgeMesh's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nobody else ever used these names.
    Name,
    /// kube-proxy's userspace mode has the same names: every DNAT target must be EdgeMesh's address.
    Target,
}

/// One version's leftovers in the packet filter.
#[derive(Debug)]
pub struct Footprint {
    /// What people read: the product and its versions.
    pub versions: &'static str,
    /// Where it put them.
    pub place: Place,
    /// What it takes to be sure.
    pub proof: Proof,
    /// Its chains.
    pub chains: &'static [ChainShape],
    /// The rules in other chains that lead into its own: table and rule.
    pub jumps: &'static [(&'static str, &'static str)],
}

/// One chain and every shape of rule that the version wrote into it.
#[derive(Debug)]
pub struct ChainShape {
    /// The table.
    pub table: &'static str,
    /// The whole name.
    pub name: &'static str,
    /// The shapes; `None` if whatever stands there was written by the chain's owner.
    pub rules: Option<&'static [&'static str]>,
}

const fn chain(table: &'static str, name: &'static str, rules: &'static [&'static str]) -> ChainShape {
    ChainShape { table, name, rules: Some(rules) }
}

/// The proxy's address of every version since v1.9.0, and the default `bridgeDeviceIP` since v1.12.0.
pub const MESH_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 96, 16);
/// The range of the fake service addresses of KubeEdge v1.1 to v1.7.
pub const FAKE_RANGE: &str = "9.251.0.0/16";
/// Link with [`MESH_ADDRESS`], since v1.9.0: a bridge, in images of October 2021 a dummy.
pub const MESH_LINK: &str = "edgemesh0";
/// Dummy link with addresses of [`FAKE_RANGE`], KubeEdge v1.1 and v1.2.
pub const FAKE_LINK: &str = "edge0";
/// TUN device of `EdgeCNI`, since v1.15.0.
pub const TUN_LINK: &str = "edge_tun0";
/// Interfaces whose address v1.3 to v1.8 used as the proxy's and the name server's.
pub const LISTEN_LINKS: [&str; 2] = ["docker0", "cni0"];
/// Files and folders by exact name: the path, whether it is a folder, and what it was.
pub const FILES: [(&str, bool, &str); 5] = [
    ("/run/edgemesh-iptables", false, "rule list of KubeEdge v1.3 to v1.7"),
    ("/etc/kubeedge/edgemesh", true, "host folder of EdgeMesh v1.8.0 and v1.9.0"),
    // The misspelling is EdgeMesh's own.
    ("/opt/cni/bin/egdemesh-cni", false, "CNI program of EdgeMesh v1.16.0 and later"),
    ("/etc/cni/net.d/10-edgemesh-cni.conflist", false, "CNI list of EdgeMesh v1.16.0 and later"),
    ("/etc/edgemesh/config/10-edgemesh-cni.conflist", false, "CNI list of EdgeMesh v1.16.0 and later"),
];
/// Beginnings that make a chain look like EdgeMesh's; such a chain that is not in the table is reported and kept.
pub const LOOK_ALIKES: [&str; 2] = ["EDGE-MESH", "EDGEMESH"];

/// One rule per service port; the same shapes in v1.10 and in v1.12, under other chain names.
const PORTALS: &[&str] = &[
    "-d <host> -p <proto> -m comment --comment <service> --dport <port> -j DNAT --to-destination <addr:port>",
    "-d <host> -p <proto> -m comment --comment <service> --dport <port> -m physdev ! --physdev-is-in \
     -j DNAT --to-destination <addr:port>",
    "-d <host> -p <proto> -m comment --comment <service> --dport <port> -m addrtype --dst-type LOCAL \
     -j DNAT --to-destination <addr:port>",
];
const NODE_PORTS: &[&str] =
    &["-p <proto> -m comment --comment <service> --dport <port> -j DNAT --to-destination <addr:port>"];
const NON_LOCAL: &[&str] =
    &["-p <proto> -m comment --comment <service> --dport <port> -m state --state NEW -j ACCEPT"];
/// `PORTALS` and its four fellows, and the jumps to them, behind the prefix that each version chose.
macro_rules! portals {
    ($versions:literal, $proof:expr, $prefix:literal) => {
        Footprint {
            versions: $versions,
            place: Place::Node,
            proof: $proof,
            chains: &[
                chain("nat", concat!($prefix, "-PORTALS-CONTAINER"), PORTALS),
                chain("nat", concat!($prefix, "-PORTALS-HOST"), PORTALS),
                chain("nat", concat!($prefix, "-NODEPORT-CONTAINER"), NODE_PORTS),
                chain("nat", concat!($prefix, "-NODEPORT-HOST"), NODE_PORTS),
                chain("filter", concat!($prefix, "-NODEPORT-NON-LOCAL"), NON_LOCAL),
            ],
            jumps: &[
                ("nat", portals!(@ip $prefix, "-PORTALS-CONTAINER")),
                ("nat", portals!(@ip $prefix, "-PORTALS-HOST")),
                ("nat", portals!(@port $prefix, "-NODEPORT-CONTAINER")),
                ("nat", portals!(@port $prefix, "-NODEPORT-HOST")),
                (
                    "filter",
                    concat!(
                        "-m comment --comment \"Ensure that non-local NodePort traffic can flow\" -j ",
                        $prefix,
                        "-NODEPORT-NON-LOCAL"
                    ),
                ),
            ],
        }
    };
    (@ip $prefix:literal, $chain:literal) => {
        concat!(
            "-m comment --comment \"handle ClusterIPs; NOTE: this must be before the NodePort rules\" -j ",
            $prefix,
            $chain
        )
    };
    (@port $prefix:literal, $chain:literal) => {
        concat!(
            "-m addrtype --dst-type LOCAL -m comment --comment \"handle service NodePorts; ",
            "NOTE: this must be the last rule in the chain\" -j ",
            $prefix,
            $chain
        )
    };
}

/// Every version, oldest first.
pub const FOOTPRINTS: &[Footprint] = &[
    Footprint {
        versions: "EdgeMesh of KubeEdge v1.0.0 to v1.2.1",
        place: Place::Pod,
        proof: Proof::Name,
        chains: &[
            chain(
                "nat",
                "EDGEMESH_OUTBOUND",
                &[
                    "-j RETURN",
                    "-p tcp --dport <port> -j RETURN",
                    "-d <net> -j RETURN",
                    "-d <net> -p tcp -j RETURN",
                    "! -d <net> -o lo -j EDGEMESH_OUTBOUND_REDIRECT",
                    "-j EDGEMESH_OUTBOUND_REDIRECT",
                    "-p tcp -j EDGEMESH_OUTBOUND_REDIRECT",
                    "-d <net> -j EDGEMESH_OUTBOUND_REDIRECT",
                    "-d <net> -p tcp -j EDGEMESH_OUTBOUND_REDIRECT",
                    "-p tcp --dport <port> -j EDGEMESH_OUTBOUND_REDIRECT",
                ],
            ),
            chain("nat", "EDGEMESH_OUTBOUND_DNS", &["-j DNAT --to-destination <addr>"]),
            chain("nat", "EDGEMESH_OUTBOUND_REDIRECT", &["-p tcp -j DNAT --to-destination <addr:port>"]),
        ],
        jumps: &[
            ("nat", "-p tcp -j EDGEMESH_OUTBOUND"),
            ("nat", "-p udp --dport 53 -j EDGEMESH_OUTBOUND_DNS"),
        ],
    },
    Footprint {
        versions: "hand-made rules of KubeEdge's guide for v1.0 to v1.2",
        place: Place::ByHand,
        proof: Proof::Name,
        chains: &[chain(
            "nat",
            "PORT-MAP",
            &[
                "-i <dev> -j RETURN",
                "! -i <dev> -p <proto> --dport <port> -j DNAT --to-destination <addr:port>",
            ],
        )],
        jumps: &[
            ("nat", "-p tcp -m addrtype --dst-type LOCAL -j PORT-MAP"),
            ("nat", "! -d <net> -p tcp -m addrtype --dst-type LOCAL -j PORT-MAP"),
            ("nat", "-m addrtype --dst-type LOCAL -j PORT-MAP"),
            ("nat", "! -d <net> -m addrtype --dst-type LOCAL -j PORT-MAP"),
        ],
    },
    Footprint {
        versions: "EdgeMesh of KubeEdge v1.3.0 to v1.7.x",
        place: Place::Node,
        proof: Proof::Name,
        chains: &[chain("nat", "EDGE-MESH", &["-p tcp -j DNAT --to-destination <node:port>"])],
        jumps: &[
            ("nat", "-d 9.251.0.0/16 -i <dev> -p tcp -j EDGE-MESH"),
            ("nat", "-d 9.251.0.0/16 -o <dev> -p tcp -j EDGE-MESH"),
        ],
    },
    Footprint {
        // KubeEdge with another `subNet` wrote the same.
        versions: "EdgeMesh v1.7.0",
        place: Place::Node,
        proof: Proof::Name,
        chains: &[chain("nat", "EDGE-MESH", &["-p tcp -j DNAT --to-destination <node:port>"])],
        jumps: &[
            ("nat", "-d <range> -i <dev> -p tcp -j EDGE-MESH"),
            ("nat", "-d <range> -o <dev> -p tcp -j EDGE-MESH"),
            // Between v1.7.0 and v1.8.0.
            ("nat", "-d <net> -p tcp -j EDGE-MESH"),
        ],
    },
    Footprint {
        versions: "EdgeMesh v1.8.0",
        place: Place::Node,
        proof: Proof::Name,
        chains: &[
            chain(
                "nat",
                "EDGE-MESH",
                &[
                    "-d <host> -m comment --comment <ignore.> -j RETURN",
                    "-d <net> -p tcp -m comment --comment \"tcp service proxy\" -j EDGE-MESH-TCP",
                ],
            ),
            chain("nat", "EDGE-MESH-TCP", &["-p tcp -j DNAT --to-destination <node:port>"]),
        ],
        jumps: &[("nat", "-m comment --comment \"edgemesh root chain\" -j EDGE-MESH")],
    },
    Footprint {
        versions: "EdgeMesh v1.9.0",
        place: Place::Node,
        proof: Proof::Name,
        chains: &[
            chain(
                "nat",
                "EDGE-MESH",
                &[
                    "-d <host> -m comment --comment <ignore/> -j RETURN",
                    "-d <net> -p tcp -m comment --comment \"tcp service proxy\" -j EDGE-MESH-TCP",
                    "-d <net> -p udp -m comment --comment \"udp service proxy\" -j EDGE-MESH-UDP",
                ],
            ),
            chain("nat", "EDGE-MESH-TCP", &["-p tcp -j DNAT --to-destination <mesh:port>"]),
            // Its source could make this chain, but no image did.
            chain("nat", "EDGE-MESH-UDP", &["-p udp -j DNAT --to-destination <addr:port>"]),
        ],
        jumps: &[("nat", "-m comment --comment \"edgemesh root chain\" -j EDGE-MESH")],
    },
    portals!("EdgeMesh v1.10.0 to v1.11.0", Proof::Name, "EDGEMESH"),
    portals!("EdgeMesh v1.12.0 to v1.17.0", Proof::Target, "KUBE"),
    Footprint {
        versions: "edgesplice",
        place: Place::Own,
        proof: Proof::Name,
        chains: &[
            ChainShape { table: "nat", name: names::NAT_CHAIN, rules: None },
            ChainShape { table: "mangle", name: names::MANGLE_CHAIN, rules: None },
            ChainShape { table: "filter", name: names::INPUT_CHAIN, rules: None },
            ChainShape { table: "filter", name: names::FORWARD_CHAIN, rules: None },
            ChainShape { table: "filter", name: names::OUTPUT_CHAIN, rules: None },
        ],
        // Bare ones, and any with our comment.
        jumps: &[],
    },
];
