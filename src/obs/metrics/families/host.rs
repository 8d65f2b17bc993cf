//! What is around: the machine's network, the process, its runtimes.

use super::super::encode::{Family, counter, gauge};

pub(super) const MACHINE: &[Family] = &[
    gauge("conntrack_entries", &[], "Entries of connection tracking in this network namespace", |s, out| {
        out.maybe(s.machine.conntrack_entries)
    }),
    gauge("conntrack_entries_limit", &[], "Most entries of connection tracking", |s, out| {
        out.maybe(s.machine.conntrack_limit)
    }),
    counter(
        "conntrack_faults",
        &["kind"],
        "Packets dropped because the table was full, and entries that could not be added",
        |s, out| {
            s.machine.conntrack_faults.iter().try_for_each(|[drop, insert]| {
                out.put(&["drop"], *drop).and_then(|()| out.put(&["insert-failed"], *insert))
            })
        },
    ),
    gauge(
        "tcp_sockets",
        &["state"],
        "TCP sockets in use in this network namespace; in TIME_WAIT and orphaned",
        |s, out| {
            s.machine.tcp_sockets.iter().try_for_each(|counts| {
                ["used", "time-wait", "orphaned"]
                    .iter()
                    .zip(counts)
                    .try_for_each(|(state, n)| out.put(&[state], *n))
            })
        },
    ),
    gauge(
        "local_ports",
        &[],
        "Local ports that outbound connections to one backend choose from",
        |s, out| out.maybe(s.machine.local_ports),
    ),
    counter(
        "listen_queue_overflows",
        &[],
        "Times that a listener's queue was full, any listener's in this network namespace",
        |s, out| out.maybe(s.machine.queue_overflows),
    ),
];

pub(super) const PROCESS: &[Family] = &[
    counter("process_cpu_seconds", &[], "Processor time used", |s, out| out.maybe(s.process.cpu_seconds)),
    gauge("process_resident_memory_bytes", &[], "Resident memory", |s, out| {
        out.maybe(s.process.resident_bytes)
    }),
    gauge("process_open_fds", &[], "Open descriptors", |s, out| out.maybe(s.process.open_fds)),
    gauge("process_max_fds", &[], "Most descriptors allowed", |s, out| out.maybe(s.process.max_fds)),
    gauge("process_threads", &[], "Threads", |s, out| out.maybe(s.process.threads)),
    gauge("process_start_time_seconds", &[], "When the process started, in seconds since 1970", |s, out| {
        out.maybe(s.process.start_seconds)
    }),
    gauge("runtime_tasks", &["runtime"], "Tasks that live on a runtime", |s, out| {
        s.figures.runtimes.iter().try_for_each(|r| out.put(&[&r.name], r.tasks))
    }),
    gauge("runtime_queue_depth", &["runtime"], "Tasks that wait in a runtime's shared queue", |s, out| {
        s.figures.runtimes.iter().try_for_each(|r| out.put(&[&r.name], r.queue))
    }),
    counter(
        "runtime_busy_seconds",
        &["runtime"],
        "Seconds that a runtime's threads have worked",
        |s, out| s.figures.runtimes.iter().try_for_each(|r| out.put(&[&r.name], r.busy_seconds)),
    ),
    counter(
        "runtime_parks",
        &["runtime"],
        "Times that a runtime's threads went to sleep for want of work",
        |s, out| s.figures.runtimes.iter().try_for_each(|r| out.put(&[&r.name], r.parks)),
    ),
];
