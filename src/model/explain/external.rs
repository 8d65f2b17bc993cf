//! Explains node ports, external addresses and load balancer addresses.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::obs::api::{Resolution, Verdict};

use super::super::external::{Audience, Via};
use super::super::types::{Frontend, Protocol};
use super::{Explain, no_backend};

impl Explain<'_> {
    /// The answer for an external frontend, as a client from elsewhere sees it; `None` where there is none.
    pub(super) fn external(&self, at: SocketAddr, protocol: Protocol) -> Option<Resolution> {
        let key = Frontend { ip: at.ip(), port: at.port(), protocol };
        let Some(port) = self.snapshot.external.get(&key) else {
            return self.left_alone(at, protocol);
        };
        let kind = port.external_at(at).map_or("external frontend", |frontend| frontend.kind.as_str());
        let (outside, here) =
            (port.backends_via(Via::Outside, at.ip()), port.backends_via(Via::Here, at.ip()));
        let plural = |count: usize| if count == 1 { "backend" } else { "backends" };
        let (some, near) = (outside.eligible.len(), here.eligible.len());
        let door = port.door(at);
        let (verdict, mut why) = match door.audience {
            Audience::All => (Verdict::Proxied, format!("a {kind}: {some} {} may be picked", plural(some))),
            Audience::Here => {
                let why = format!(
                    "a {kind}, refused from elsewhere: externalTrafficPolicy is Local and no usable backend runs on \
                     this node; clients of this node have {near} {}",
                    plural(near)
                );
                (Verdict::Refused, why)
            }
            Audience::Nobody => (Verdict::Refused, format!("a {kind}: {}", no_backend(port, here))),
        };
        if door.audience == Audience::All && port.takes_other(Via::Outside) != port.takes_other(Via::Here) {
            let _ = write!(why, " from elsewhere (externalTrafficPolicy is Local), {near} from this node");
        }
        if !door.sources.is_empty() {
            let ranges: Vec<String> = door.sources.iter().take(5).map(ToString::to_string).collect();
            let _ = write!(why, "; only for clients in {}", ranges.join(", "));
        }
        Some(self.answer(port, at, outside, (verdict, why)))
    }

    /// An external frontend that is left alone on this node.
    fn left_alone(&self, at: SocketAddr, protocol: Protocol) -> Option<Resolution> {
        let mut ports = self.snapshot.ports.values().filter(|port| port.id.protocol == protocol);
        let (port, frontend) = ports.find_map(|port| Some((port, port.external_at(at)?)))?;
        let why = frontend.left_alone.as_ref()?;
        let why = format!("a {} of Service {}, left alone: {why}", frontend.kind.as_str(), port.id.service);
        Some(self.elsewhere(Verdict::NotIntercepted, why))
    }
}
