//! Rules that stand only where they are asked for: those that hold clients' first packets, and those that let backends see
//! their clients' addresses.

use ipnet::IpNet;

use super::super::names::{COMMENT, FIRST_QUEUE, HELD_CHAIN, HOME_CHAIN, served_set};
use super::Input;

impl Input<'_> {
    /// Whether the first packets of clients are held.
    pub(super) fn holds(&self) -> bool {
        self.wanted.queues > 0 && self.capabilities.ipset && self.capabilities.queues
    }

    /// Whether backends may see their clients' own addresses.
    pub(super) fn keeps_source(&self) -> bool {
        self.wanted.keep_source && self.capabilities.policy_routing && self.capabilities.connection_marks
    }

    /// Remembers connections of ours that come from somebody else's address, and has what is answered to them brought
    /// here: with both marks, as datagrams are.
    pub(super) fn homing(&self) -> [String; 2] {
        let own = self.wanted.own_mark;
        [
            format!(
                "-p tcp -m connmark --mark {own:#x}/{own:#x} -m conntrack --ctdir REPLY \
                 -m comment --comment {COMMENT} -g {HOME_CHAIN}"
            ),
            format!(
                "-p tcp -m mark --mark {own:#x}/{own:#x} -m conntrack --ctstate NEW -m addrtype ! --src-type LOCAL \
                 -m comment --comment {COMMENT} -j CONNMARK --set-xmark {own:#x}/{own:#x}"
            ),
        ]
    }

    /// Leads packets that were held out of the chain, to those that stand behind it. They carry both marks.
    pub(super) fn held_before(&self) -> String {
        let both = self.deliver_mark();
        format!("-p tcp -m mark --mark {both:#x}/{both:#x} -m comment --comment {COMMENT} -g {HELD_CHAIN}")
    }

    /// Holds a client's first packet to what is served in `range`. A queue that nobody reads lets it through.
    pub(super) fn hold(&self, range: &IpNet) -> String {
        let (served, refuse) = (served_set(self.family), self.wanted.refuse_mark);
        let last = FIRST_QUEUE.saturating_add(self.wanted.queues - 1);
        let queues = if last == FIRST_QUEUE {
            format!("--queue-num {FIRST_QUEUE} --queue-bypass")
        } else {
            format!("--queue-balance {FIRST_QUEUE}:{last} --queue-bypass --queue-cpu-fanout")
        };
        format!(
            "-d {range} -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m mark ! --mark {refuse:#x}/{refuse:#x} \
             -m set --match-set {served} dst,dst -m comment --comment {COMMENT} -j NFQUEUE {queues}"
        )
    }
}
