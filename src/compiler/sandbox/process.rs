//! What a process gives up of itself: descriptors, privileges, and what it may use.
//!
//! Invariant: hard limits alone, so that neither the process nor what it starts raises them.

use std::io;

use rustix::{
    process::{Resource, Rlimit},
    thread::{self, CapabilitySet, CapabilitySets},
};

/// Bounds that hold whatever the job is. Memory and processor time are the job's own.
pub(super) struct Bounds {
    /// Bytes of one file.
    file: u64,
    /// Open descriptors.
    descriptors: u64,
}

/// Of a process that starts no other: it writes the headers of a request, or an artifact.
pub(super) const ALONE: Bounds = Bounds { file: 8 << 30, descriptors: 512 };
/// Of Python's worker and the compilers that it starts.
pub(super) const PYTHON: Bounds = Bounds { file: 2 << 30, descriptors: 4096 };

/// Closes all but the three pipes: what the daemon was started with is none of its children's.
pub(super) fn close_others() {
    // SAFETY: nothing of this process has opened any of them yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if closed == 0 {
        return;
    }
    // Before Linux 5.9.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = open.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above; the one that listed them is closed already, which is an error here.
        unsafe { libc::close(descriptor) };
    }
}

/// Sets the bounds, each no higher than it is.
pub(super) fn bound(most: &Bounds) -> io::Result<()> {
    lower(Resource::Core, 0)?;
    lower(Resource::Fsize, most.file)?;
    lower(Resource::Nofile, most.descriptors)?;
    lower(Resource::Msgqueue, 0)?;
    lower(Resource::Memlock, 64 << 20)
}

fn lower(resource: Resource, most: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource).maximum;
    let most = Some(now.map_or(most, |now| now.min(most)));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })?)
}

/// Keeps other processes of the same user out of this one's memory and environment, by its
/// entry of `/proc`, which Landlock does elsewhere. It leaves no core dump then.
pub(super) fn hide_daemon() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// No capability now, and none by what it starts: as the superuser, too.
pub(super) fn give_up_privileges() -> io::Result<()> {
    thread::set_no_new_privs(true)?;
    thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(thread::set_capabilities(None, none)?)
}
