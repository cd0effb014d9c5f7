//! Which calls of the kernel a compiler's process may make, by seccomp.
//!
//! What is refused opens a way out (the network, namespaces, mounts, modules), reaches other
//! processes of the same user, changes files by their names alone (which Landlock does not
//! look at), or makes something that outlives the process. Calls that are newer than this list
//! are answered as if the kernel had none of them, and so are those of the x32 interface.
//!
//! Invariant: a filter holds for the process and all that it starts; what is refused is an
//! error of that call, and another architecture's calls end the process.

use std::{collections::BTreeMap, io, os::unix::process::parent_id};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Whether the process starts others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starts {
    /// Threads at most.
    Nothing,
    /// Compilers and linkers.
    Processes,
}

/// Newest call that was looked at when this list was made.
const LAST_KNOWN: c_long = libc::SYS_mseal;

/// Refused, whatever they are given.
const REFUSED: &[c_long] = &[
    // The network, and other processes' sockets.
    libc::SYS_connect,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Out of the process group, by which the daemon ends a job.
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // What outlives a process, or is in none of its limits.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // Files by name, where Landlock does not look.
    libc::SYS_truncate,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    libc::SYS_inotify_init1,
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Mounts, namespaces, roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];
/// Answered as if they were done, and not done: Inductor and linkers change the modes of what
/// they wrote, which nobody needs, and a filter cannot see whose file a name is.
const IGNORED: &[c_long] = &[libc::SYS_fchmod, libc::SYS_fchmodat, FCHMODAT2];
#[cfg(target_arch = "x86_64")]
const IGNORED_TOO: &[c_long] = &[libc::SYS_chmod];
#[cfg(not(target_arch = "x86_64"))]
const IGNORED_TOO: &[c_long] = &[];
/// Of `fcntl` and `ioctl`, the same on all architectures; the crate lacks some.
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
/// The same on all architectures; the crate lacks it for some.
const FCHMODAT2: c_long = 452;

/// Older spellings, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const REFUSED_TOO: &[c_long] = &[
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_TOO: &[c_long] = &[];

/// Refused where no process is to be started.
const STARTING: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];
#[cfg(target_arch = "x86_64")]
const STARTING_TOO: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const STARTING_TOO: &[c_long] = &[];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// The filter for a process that sees what strangers sent. Made in the process that is to be
/// kept to it, or that becomes it: it names that process and its parent, the daemon. With
/// `devices` NVIDIA's driver works in it, which listens at a local socket of its own.
pub(super) fn filter(starts: Starts, devices: bool) -> io::Result<BpfProgram> {
    let mut rules: Rules = Rules::new();
    for call in REFUSED.iter().chain(REFUSED_TOO) {
        rules.insert(*call, Vec::new());
    }
    // A local pair, which nobody else can reach; the datagram kind can be led elsewhere.
    let mut others = vec![when(0, Op::Ne, word(libc::AF_UNIX))?];
    for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
        others.push(when(1, Op::MaskedEq(0xf), word(kind))?);
    }
    rules.insert(libc::SYS_socketpair, others.clone());
    if devices {
        rules.insert(libc::SYS_socket, others);
    } else {
        for call in [libc::SYS_socket, libc::SYS_bind, libc::SYS_listen, libc::SYS_memfd_create] {
            rules.insert(call, Vec::new());
        }
    }
    // Of this process, or nobody: limits, priorities and processors of the daemon are its own.
    for call in [
        libc::SYS_prlimit64,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
    ] {
        rules.insert(call, vec![when(0, Op::Ne, 0)?]);
    }
    // Nor of all processes of the user, whose numbers these are.
    for (call, user) in [(libc::SYS_setpriority, 2), (libc::SYS_ioprio_set, 3)] {
        rules.insert(call, vec![when(1, Op::Ne, 0)?, when(0, Op::Eq, user)?]);
    }
    // A descriptor that signals whoever is named.
    let named = [libc::F_SETOWN, F_SETOWN_EX, F_SETSIG].map(|what| when(1, Op::Eq, word(what)));
    rules.insert(libc::SYS_fcntl, named.into_iter().collect::<io::Result<_>>()?);
    let named = [FIOSETOWN, SIOCSPGRP].map(|what| when(1, Op::Eq, what));
    rules.insert(libc::SYS_ioctl, named.into_iter().collect::<io::Result<_>>()?);
    let daemon = u64::from(parent_id());
    match starts {
        Starts::Nothing => {
            for call in STARTING.iter().chain(STARTING_TOO) {
                rules.insert(*call, Vec::new());
            }
            let thread = word(libc::CLONE_THREAD);
            rules.insert(libc::SYS_clone, vec![when(0, Op::MaskedEq(thread), 0)?]);
            // Its own group, of which it is all.
            rules.insert(libc::SYS_kill, vec![when(0, Op::Ne, 0)?]);
            let own = u64::from(std::process::id());
            rules.insert(libc::SYS_tgkill, vec![when(0, Op::Ne, own)?]);
        }
        Starts::Processes => {
            // A new namespace of any kind.
            let spaces = [
                libc::CLONE_NEWNS,
                libc::CLONE_NEWCGROUP,
                libc::CLONE_NEWUTS,
                libc::CLONE_NEWIPC,
                libc::CLONE_NEWUSER,
                libc::CLONE_NEWPID,
                libc::CLONE_NEWNET,
                // A child of the daemon's, which would wait for it in vain.
                libc::CLONE_PARENT,
            ];
            let spaces = spaces.map(|bit| when(0, Op::MaskedEq(word(bit)), word(bit)));
            rules.insert(libc::SYS_clone, spaces.into_iter().collect::<io::Result<_>>()?);
            // A group other than its own is a negative number: all, or one by name.
            let groups = when(0, Op::Ge, word(i32::MIN))?;
            rules.insert(libc::SYS_kill, vec![groups, when(0, Op::Eq, daemon)?]);
            rules.insert(libc::SYS_tgkill, vec![when(0, Op::Eq, daemon)?]);
        }
    }
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let mut program = first_answers();
    program.extend(made(rules, refuse)?);
    Ok(program)
}

/// A filter that turns each call that opens a file by name into a signal, but for those below
/// the descriptors `first` to `last`.
pub(super) fn opens(first: i32, last: i32) -> io::Result<BpfProgram> {
    // Unsigned, so that "here", which is negative, is beyond them.
    let outside = vec![when(0, Op::Lt, word(first))?, when(0, Op::Gt, word(last))?];
    let mut rules = Rules::from([(libc::SYS_openat, outside)]);
    let trapped = made(std::mem::take(&mut rules), SeccompAction::Trap)?;
    // The other ways to open one: NVRTC uses none.
    rules.insert(libc::SYS_openat2, Vec::new());
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_open, libc::SYS_creat] {
        rules.insert(call, Vec::new());
    }
    keep_to(&made(rules, SeccompAction::Errno(libc::EACCES.cast_unsigned()))?)?;
    Ok(trapped)
}

/// Keeps this thread, and what it starts, to `program`.
pub(super) fn keep_to(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(io::Error::other)
}

/// The architecture, where its calls are known.
pub(super) fn target() -> io::Result<TargetArch> {
    std::env::consts::ARCH.try_into().map_err(io::Error::other)
}

/// What comes before the other rules. There is no such call: for calls beyond the list, and for
/// the form of `clone` whose flags a filter cannot see, so that the C library takes the other.
/// Done: for those that are ignored.
fn first_answers() -> BpfProgram {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let above = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let number = |call: c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let answer = |errno: i32| {
        let k = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
        sock_filter { code: end, jt: 0, jf: 0, k }
    };
    let mut steps = vec![
        sock_filter { code: load, jt: 0, jf: 0, k: 0 },
        sock_filter { code: equal, jt: 1, jf: 0, k: number(libc::SYS_clone3) },
        sock_filter { code: above, jt: 0, jf: 1, k: number(LAST_KNOWN) },
        answer(libc::ENOSYS),
    ];
    for call in IGNORED.iter().chain(IGNORED_TOO) {
        steps.push(sock_filter { code: equal, jt: 0, jf: 1, k: number(*call) });
        steps.push(answer(0));
    }
    steps
}

fn made(rules: Rules, refuse: SeccompAction) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, target()?);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

/// A rule of one condition on the argument at `at`.
fn when(at: u8, op: Op, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(at, Length::Dword, op, value);
    SeccompRule::new(vec![condition.map_err(io::Error::other)?]).map_err(io::Error::other)
}

/// As the kernel sees an `int`.
fn word(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}
