//! Which files of the machine a compiler's process can reach, by Landlock.
//!
//! Invariant: where the kernel has Landlock, a job can read what its compiler is made of, write
//! in its own folder, and reach nothing else: no key, no configuration, no cache, no file in
//! `/proc` of another process, no signal to one, no port. Without it [`super::opens`] keeps
//! CUDA sources from other files, and the node tells what stays open.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};

/// Newest interface asked for; older kernels enforce what they know.
const WANTED: ABI = ABI::V6;

/// What programs are made of, and what they ask of the machine: nothing here is Kiln's, or
/// secret. Of `/etc` what the loader, compilers and the C library read.
pub(super) const SYSTEM: [&str; 26] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/opt",
    "/nix/store",
    "/sys",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/nvidia",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/devices",
    "/proc/modules",
    "/proc/sys",
    "/proc/driver",
    "/proc/self",
];
/// Devices that are no place to keep anything.
const NULLS: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// There where a machine has NVIDIA's driver.
const GPU: &str = "/dev/nvidiactl";
/// Where processes that compile for a GPU side by side keep their locks.
const SHARED_MEMORY: &str = "/dev/shm";

/// Read access to `read`, all access to `own`, the devices where `read` has the system.
pub(super) fn rules(read: &[PathBuf], own: &Path) -> io::Result<RulesetCreated> {
    let reading: BitFlags<AccessFs> = AccessFs::from_read(ABI::V1);
    let writing: BitFlags<AccessFs> = AccessFs::from_all(WANTED);
    let mut written = vec![own.to_owned()];
    let mut devices = Vec::new();
    if read.iter().any(|path| path == Path::new("/sys")) {
        devices.extend(NULLS.iter().map(PathBuf::from));
        if has_gpu() {
            devices.extend(gpus());
            written.push(SHARED_MEMORY.into());
        }
    }
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(WANTED)))
        .and_then(|rules| rules.scope(Scope::from_all(WANTED)))
        .and_then(Ruleset::create)
        // What is not there is left out.
        .and_then(|rules| rules.add_rules(path_beneath_rules(read, reading)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(written, writing)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(devices, device)))
        .map_err(io::Error::other)
}

/// Keeps this thread, and what it starts, to `rules`. True: the kernel enforces them.
pub(super) fn keep_to(rules: RulesetCreated) -> io::Result<bool> {
    let status = rules.restrict_self().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// The rules for a program that is started, which keeps itself to them; `None`: the kernel has
/// none. With them the rights by which it lets itself read what is its own.
pub(super) fn handed_over(read: &[PathBuf], own: &Path) -> io::Result<Option<(OwnedFd, u64)>> {
    let descriptor: Option<OwnedFd> = rules(read, own)?.into();
    Ok(descriptor.map(|descriptor| (descriptor, AccessFs::from_read(ABI::V1).bits())))
}

/// Whether this machine has NVIDIA's driver.
pub(super) fn has_gpu() -> bool {
    Path::new(GPU).exists()
}

fn gpus() -> Vec<PathBuf> {
    let all = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let named = |name: &str| name.starts_with("nvidia") || name == "dri";
    all.filter(|e| e.file_name().to_str().is_some_and(named)).map(|e| e.path()).collect()
}
