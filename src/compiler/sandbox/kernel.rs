//! What this machine's kernel has to confine processes with.
//!
//! Invariant: it is asked, not guessed from a version: distributions, containers and policies
//! switch these on and off.

use std::{ptr, sync::OnceLock};

/// The means of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Landlock's interface; 0: there is none, or it is switched off.
    pub landlock: u32,
    /// System calls can be filtered, and this architecture's are known.
    pub seccomp: bool,
}

/// The interfaces of Landlock that matter, and what a compile can do below them.
const LANDLOCK: [(u32, &str); 5] = [
    (1, "read the files of the node's user (Linux 5.13 with Landlock switched on)"),
    (2, "move no file between folders (Linux 5.19)"),
    (3, "truncate files that it may not write (Linux 6.2)"),
    (5, "command devices that it may open (Linux 6.10)"),
    (6, "signal other processes of the node's user (Linux 6.12)"),
];

impl Kernel {
    /// Asks the kernel, once in a process.
    pub fn of_machine() -> Self {
        static FOUND: OnceLock<Kernel> = OnceLock::new();
        *FOUND.get_or_init(|| Self { landlock: landlock(), seccomp: seccomp() })
    }

    /// What a compile can do here that it cannot on a newer kernel; empty: nothing.
    pub fn lacks(&self) -> Vec<&'static str> {
        let files = LANDLOCK.iter().filter(|(since, _)| self.landlock < *since);
        let mut found: Vec<&str> = files.map(|(_, what)| *what).collect();
        if !self.seccomp {
            found.push("use the network, and any call of the kernel (seccomp filters)");
        }
        found
    }
}

fn landlock() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no memory of ours.
    let found = unsafe {
        let none = ptr::null::<libc::c_void>();
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION)
    };
    u32::try_from(found).unwrap_or(0)
}

fn seccomp() -> bool {
    if super::calls::target().is_err() {
        return false;
    }
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: reads one integer, which lives through the call.
    let known = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_u32, &raw const action)
    };
    known == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_lacks_is_named() {
        let lacks = |landlock, seccomp| Kernel { landlock, seccomp }.lacks().len();
        assert_eq!([lacks(7, true), lacks(6, true), lacks(4, true)], [0, 0, 2]);
        assert_eq!([lacks(0, true), lacks(0, false)], [5, 6]);
    }
}
