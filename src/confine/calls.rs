//! System calls that neither the agent nor a program that it starts ever makes: forbidden with `EPERM`.
//!
//! A list of what is forbidden, not of what is allowed: iptables and its libc are the machine's, and what a later
//! version of either calls must not stop the node's network (`docs/adr/0024-give-up-what-is-never-needed.md`).

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Whatever may be asked of them.
const FORBIDDEN: &[libc::c_long] = &[
    // Other processes: their memory, their namespaces, their descriptors' handles.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_setns,
    libc::SYS_unshare,
    // File systems.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // The machine's clock, name and memory.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_move_pages,
];
/// More of them, which stand on this architecture alone.
#[cfg(target_arch = "x86_64")]
const MORE: &[libc::c_long] = &[
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const MORE: &[libc::c_long] = &[];

/// Kinds of namespaces that a new process could be given: as root of a user namespace of its own it would have every
/// right there.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];
/// The families of sockets in use. What is not among them: packets past the packet filter (`AF_PACKET`), for which
/// `NET_RAW` would do, the kernel's ciphers (`AF_ALG`), and what nobody has looked at for years.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// What types into a terminal as if somebody sat there (`asm-generic/ioctls.h`, `linux/tiocl.h`).
const TERMINAL: [u64; 2] = [0x5412, 0x541C];

/// How many system calls are forbidden, in whole or in part.
pub(super) fn count() -> usize {
    // clone, clone3, socket and ioctl in part.
    FORBIDDEN.len() + MORE.len() + 4
}

/// Puts the filter in force for the calling thread and whatever it starts. Returns how many calls are forbidden.
pub(super) fn forbid() -> Result<usize, String> {
    let arch = std::env::consts::ARCH;
    let arch = TargetArch::try_from(arch)
        .map_err(|_| format!("system calls are not restricted: the filter does not know {arch}"))?;
    let fault = |error: &dyn std::fmt::Display| format!("system calls cannot be restricted: {error}");
    let filters = programs(arch).map_err(|error| fault(&error))?;
    for filter in &filters {
        apply_filter(filter).map_err(|error| fault(&error))?;
    }
    Ok(count())
}

#[allow(clippy::useless_conversion, reason = "32-bit systems have it in 32 bits")]
fn number(call: libc::c_long) -> i64 {
    i64::from(call)
}

fn programs(arch: TargetArch) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().chain(MORE).map(|call| (number(*call), Vec::new())).collect();
    let dword = |index, op, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value);
    let wide = |flag: libc::c_int| u64::from(flag.cast_unsigned());
    let clone = NAMESPACES
        .map(wide)
        .map(|flag| SeccompRule::new(vec![dword(0, SeccompCmpOp::MaskedEq(flag), flag)?]));
    rules.insert(number(libc::SYS_clone), clone.into_iter().collect::<Result<_, _>>()?);
    let strange = FAMILIES.map(wide).map(|family| dword(0, SeccompCmpOp::Ne, family));
    let strange = SeccompRule::new(strange.into_iter().collect::<Result<_, _>>()?)?;
    rules.insert(number(libc::SYS_socket), vec![strange]);
    let typed = TERMINAL.map(|request| SeccompRule::new(vec![dword(1, SeccompCmpOp::Eq, request)?]));
    rules.insert(number(libc::SYS_ioctl), typed.into_iter().collect::<Result<_, _>>()?);
    let errno = |number: libc::c_int| SeccompAction::Errno(number.cast_unsigned());
    let filter = |rules, action| SeccompFilter::new(rules, SeccompAction::Allow, action, arch);
    let mut forbidden: BpfProgram = filter(rules, errno(libc::EPERM))?.try_into()?;
    forbid_second_numbers(&mut forbidden);
    // Its flags are in memory, where a filter cannot look. Whoever hears that it does not exist takes `clone`.
    let unseen = BTreeMap::from([(number(libc::SYS_clone3), Vec::new())]);
    Ok([forbidden, filter(unseen, errno(libc::ENOSYS))?.try_into()?])
}

/// On x86-64 every call has a second number, with this bit (the x32 ABI), and the same architecture as the filter sees
/// it. Nobody uses them.
#[cfg(target_arch = "x86_64")]
fn forbid_second_numbers(program: &mut BpfProgram) {
    const SECOND: u32 = 0x4000_0000;
    // `BPF_JMP | BPF_JGE | BPF_K` and `BPF_RET | BPF_K` of `linux/bpf_common.h`.
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    // `SECCOMP_RET_ERRNO` of `linux/seccomp.h`.
    const ERRNO: u32 = 0x0005_0000;
    // Behind the look at the architecture, three instructions, and the one that loads the number.
    const PLACE: usize = 4;
    let jump = seccompiler::sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: SECOND };
    let refuse =
        seccompiler::sock_filter { code: RETURN, jt: 0, jf: 0, k: ERRNO | libc::EPERM.cast_unsigned() };
    program.splice(PLACE..PLACE, [jump, refuse]);
}

#[cfg(not(target_arch = "x86_64"))]
fn forbid_second_numbers(_: &mut BpfProgram) {}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::process::Command;

    use nix::errno::Errno;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// On a thread of its own, which takes the filter with it.
    fn within<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
        let confined = std::thread::spawn(|| {
            assert_eq!(forbid(), Ok(count()));
            act()
        });
        confined.join().unwrap()
    }

    #[test]
    fn what_nobody_needs_is_refused_and_what_is_needed_is_not() {
        within(|| {
            assert_eq!(unshare(CloneFlags::CLONE_NEWNET), Err(Errno::EPERM));
            assert_eq!(unshare(CloneFlags::empty()), Err(Errno::EPERM));
            let open = |family| socket(family, SockType::Datagram, SockFlag::empty(), None).map(drop);
            assert_eq!(open(AddressFamily::Packet), Err(Errno::EPERM));
            assert_eq!(open(AddressFamily::Inet), Ok(()));
            assert_eq!(open(AddressFamily::Inet6), Ok(()));
            assert_eq!(open(AddressFamily::Unix), Ok(()));
            assert_eq!(open(AddressFamily::Netlink), Ok(()));
            // Threads, and programs.
            std::thread::spawn(|| assert_eq!(unshare(CloneFlags::empty()), Err(Errno::EPERM)))
                .join()
                .unwrap();
            assert!(Command::new("true").status().unwrap().success());
        });
    }

    #[test]
    fn programs_that_are_started_are_held_to_the_same() {
        within(|| {
            let run = |line: &str| Command::new("sh").args(["-c", line]).output().unwrap();
            for line in ["unshare -n true", "mount -t tmpfs none /mnt", "chroot / true", "mknod /tmp/x-$$ p"]
            {
                let out = run(line);
                assert!(!out.status.success(), "{line}");
                let said = String::from_utf8_lossy(&out.stderr).to_lowercase();
                assert!(said.contains("permitted") || said.contains("permission"), "{line}: {said}");
            }
            let found = Command::new("no-such-program-here").status().unwrap_err();
            assert_eq!(found.kind(), ErrorKind::NotFound);
        });
    }

    #[test]
    fn the_filter_fits_every_architecture_it_knows() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64, TargetArch::riscv64] {
            assert_eq!(programs(arch).unwrap().len(), 2);
        }
    }
}
