//! Frontends for clients outside of the cluster: which of them are captured, and their sockets for datagrams.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use tracing::warn;

use crate::model::{Audience, Door, Frontend, Protocol, Snapshot, diff};
use crate::net::listening;
use crate::proxy::udp::UdpPlane;

/// The external frontends that are captured.
#[derive(Debug, Default)]
pub(super) struct Doors {
    captured: OrdMap<Frontend, Door>,
    /// Those whose socket could not be opened, and why not. They are left alone.
    unopened: BTreeMap<Frontend, (Door, String)>,
}

impl Doors {
    /// Brings sockets and the list in step with the snapshot. A socket is open before a rule sends anything there;
    /// where nobody is served there is none, and the flows end with it.
    pub(super) fn follow(&mut self, before: &Snapshot, now: &Snapshot, udp: &mut UdpPlane) {
        let again = std::mem::take(&mut self.unopened).into_iter();
        let changed: BTreeMap<Frontend, Option<Door>> = again
            .map(|(at, (door, _))| (at, Some(door)))
            .chain(diff::doors(before, now))
            .filter(|(at, _)| is_captured(at))
            .collect();
        for (at, door) in changed {
            let Some(door) = door else {
                self.captured.remove(&at);
                udp.close(&at);
                continue;
            };
            if at.protocol == Protocol::Udp && door.audience == Audience::Nobody {
                udp.close(&at);
            } else if at.protocol == Protocol::Udp
                && let Err(error) = udp.open(at)
            {
                self.captured.remove(&at);
                let line = format!(
                    "{at} is left alone: its socket cannot be opened ({error}); see `ss -ulnp` for who has the port \
                     on every address"
                );
                self.unopened.insert(at, (door, line));
                continue;
            }
            self.captured.insert(at, door);
        }
    }

    /// What the packet filter is to capture.
    pub(super) fn captured(&self) -> &OrdMap<Frontend, Door> {
        &self.captured
    }

    /// What could not be opened, each as a line for people.
    pub(super) fn faults(&self) -> impl Iterator<Item = &String> {
        self.unopened.values().map(|(_, line)| line)
    }
}

/// Whether packets to an external frontend are captured at all.
fn is_captured(at: &Frontend) -> bool {
    at.protocol != Protocol::Sctp
}

/// The external frontends of `snapshot`, as the packet filter must know them.
pub(super) fn all(snapshot: &Snapshot) -> OrdMap<Frontend, Door> {
    let doors = diff::doors(&Snapshot::default(), snapshot).into_iter();
    doors.filter(|(at, _)| is_captured(at)).filter_map(|(at, door)| Some((at, door?))).collect()
}

/// Where others listen, on one of `ports`. `own` says which sockets for datagrams are this program's, by address and
/// number.
pub(super) fn listening(
    ports: &BTreeSet<(Protocol, u16)>,
    own: impl Fn(&Frontend, u64) -> bool,
) -> BTreeSet<Frontend> {
    let asked = |protocol| ports.iter().any(|(of, _)| *of == protocol);
    let mut found = BTreeSet::new();
    let mut add = |protocol, at: std::net::SocketAddr, inode| {
        let frontend = Frontend { ip: at.ip(), port: at.port(), protocol };
        if ports.contains(&(protocol, at.port())) && !own(&frontend, inode) {
            found.insert(frontend);
        }
    };
    let fault = |error: &std::io::Error| warn!(%error, "this host's sockets cannot be read; node ports may shadow them");
    for (protocol, read) in [(Protocol::Tcp, listening::tcp as fn() -> _), (Protocol::Udp, listening::udp)] {
        if asked(protocol) {
            let all = read().inspect_err(fault).unwrap_or_default();
            for one in all {
                add(protocol, one.address, one.inode);
            }
        }
    }
    found
}
