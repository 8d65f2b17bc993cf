//! What the kernel knows about this network namespace: connection tracking, sockets, queues.

use std::fs;

/// The state of the machine's network; `None` where a number could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Entries of connection tracking now.
    pub conntrack_entries: Option<u64>,
    /// Most entries that there may be.
    pub conntrack_limit: Option<u64>,
    /// Packets dropped because the table was full, and new entries that could not be added.
    pub conntrack_faults: Option<[u64; 2]>,
    /// TCP sockets of this namespace: in use, in `TIME_WAIT`, orphaned. The last two are the whole machine's.
    pub tcp_sockets: Option<[u64; 3]>,
    /// Local ports that outbound connections choose from.
    pub local_ports: Option<u64>,
    /// Times that a listener's queue was full, any listener's.
    pub queue_overflows: Option<u64>,
}

impl Machine {
    /// Reads everything.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let number = |path: &str| text(path).trim().parse().ok();
        Self {
            conntrack_entries: number("/proc/sys/net/netfilter/nf_conntrack_count"),
            conntrack_limit: number("/proc/sys/net/netfilter/nf_conntrack_max"),
            conntrack_faults: conntrack_faults(&text("/proc/net/stat/nf_conntrack")),
            tcp_sockets: tcp_sockets(&text("/proc/net/sockstat")),
            local_ports: local_ports(&text("/proc/sys/net/ipv4/ip_local_port_range")),
            queue_overflows: queue_overflows(&text("/proc/net/netstat")),
        }
    }
}

/// One line of hexadecimal numbers for each processor below a line of names.
fn conntrack_faults(text: &str) -> Option<[u64; 2]> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let place = |name: &str| names.iter().position(|known| *known == name);
    let (dropped, failed) = (place("drop")?, place("insert_failed")?);
    let mut sum = [0; 2];
    for line in lines {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        for (sum, at) in sum.iter_mut().zip([dropped, failed]) {
            *sum += u64::from_str_radix(fields.get(at)?, 16).ok()?;
        }
    }
    Some(sum)
}

/// `TCP: inuse 5 orphan 0 tw 3 alloc 7 mem 1`
fn tcp_sockets(text: &str) -> Option<[u64; 3]> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let value = |name: &str| {
        let at = fields.iter().position(|field| *field == name)?;
        fields.get(at + 1)?.parse::<u64>().ok()
    };
    Some([value("inuse")?, value("tw")?, value("orphan")?])
}

fn local_ports(text: &str) -> Option<u64> {
    let mut numbers = text.split_ascii_whitespace().filter_map(|n| n.parse::<u64>().ok());
    let (first, last) = (numbers.next()?, numbers.next()?);
    Some(last.checked_sub(first)? + 1)
}

/// Names and values stand in two lines that begin alike.
fn queue_overflows(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    pairs.find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let stat = "entries  clashres found new invalid ignore delete delete_list insert insert_failed drop early_drop\n\
                    00000010 0 0 0 0 0 0 0 0 0000000a 00000001 0\n00000010 0 0 0 0 0 0 0 0 00000001 00000002 0\n";
        assert_eq!(conntrack_faults(stat), Some([3, 11]));
        let sockets = "sockets: used 30\nTCP: inuse 5 orphan 1 tw 3 alloc 7 mem 1\nUDP: inuse 2 mem 0\n";
        assert_eq!(tcp_sockets(sockets), Some([5, 3, 1]));
        assert_eq!(local_ports("32768\t60999\n"), Some(28_232));
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 4 9\nIpExt: InNoRoutes\nIpExt: 1\n";
        assert_eq!(queue_overflows(netstat), Some(4));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        assert_eq!(conntrack_faults(""), None);
        assert_eq!(conntrack_faults("entries drop\n1 1\n"), None);
        assert_eq!(
            (tcp_sockets("UDP: inuse 1\n"), local_ports("1"), queue_overflows("TcpExt: A\n")),
            (None, None, None)
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read();
        assert!(machine.tcp_sockets.is_some() && machine.local_ports.is_some(), "{machine:?}");
    }
}
