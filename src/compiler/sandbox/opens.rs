//! What a CUDA source may open where the kernel has no Landlock.
//!
//! NVRTC opens a file for each include, `#embed` and `__has_include`, whatever macros spelled
//! its name. A filter turns each such call into a signal; its handler opens the file below one
//! of the folders that are allowed, and says that others are not there.
//!
//! Invariant: a name that leads out of every folder is never given to the kernel. It guards
//! against what a source says, not against code that runs in the process: Landlock does both.

use std::{
    ffi::CStr,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr,
    sync::OnceLock,
};

use libc::{c_int, c_long, c_void, siginfo_t, ucontext_t};

use super::calls;

/// The folders' descriptors are these and those after: the compiler opens none so high.
const FIRST: RawFd = 400;
/// As long as the kernel takes a path.
const LONGEST: usize = 4096;

/// Read by the handler: not changed once it is set.
static ALLOWED: OnceLock<Allowed> = OnceLock::new();

struct Allowed {
    /// Where relative names begin.
    here: Vec<u8>,
    /// Absolute path and descriptor of each folder.
    folders: Vec<(Vec<u8>, RawFd)>,
}

/// Lets this thread open files below `read` and `own` alone, for reading. It stands where
/// relative names begin. False: not on this architecture.
pub(super) fn keep_to(read: &[PathBuf], own: &Path) -> io::Result<bool> {
    if calls::target().is_err() {
        return Ok(false);
    }
    let mut folders = Vec::new();
    for (at, folder) in read.iter().map(PathBuf::as_path).chain([own]).enumerate() {
        let absolute = std::path::absolute(folder)?;
        let Ok(open) = std::fs::File::open(&absolute) else { continue };
        let at = FIRST + RawFd::try_from(at).map_err(io::Error::other)?;
        // SAFETY: the number is below the limit on descriptors, and nothing else has it.
        if unsafe { libc::dup2(open.as_raw_fd(), at) } < 0 {
            return Err(io::Error::last_os_error());
        }
        folders.push((absolute.as_os_str().as_bytes().to_vec(), at));
    }
    let here = std::env::current_dir()?.as_os_str().as_bytes().to_vec();
    let last = FIRST + RawFd::try_from(folders.len() + read.len()).map_err(io::Error::other)?;
    if ALLOWED.set(Allowed { here, folders }).is_err() {
        return Err(io::Error::other("a process is confined once"));
    }
    listen()?;
    calls::keep_to(&calls::opens(FIRST, last)?)?;
    Ok(true)
}

fn listen() -> io::Result<()> {
    // SAFETY: all zeros is a value of it.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = refused;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a handler that calls only what may be called in one.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the call that the filter turned away, if it may be made.
extern "C" fn refused(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the state of the interrupted thread, which nobody else has.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    let [_, path, flags, _] = arguments(context);
    // SAFETY: where the interrupted call had its path. A thread that gives a wrong address
    // crashes, instead of being told so.
    let path = unsafe { CStr::from_ptr(path as *const libc::c_char) };
    // SAFETY: this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    answer(context, open(path, flags));
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// What the kernel answers, negative where it is an error.
fn open(path: &CStr, flags: c_long) -> c_long {
    const NOT_THERE: c_long = -(libc::ENOENT as c_long);
    let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
    let Some(allowed) = ALLOWED.get() else { return NOT_THERE };
    if flags & c_long::from(writes) != 0 {
        return -c_long::from(libc::EACCES);
    }
    let mut joined = [0_u8; 2 * LONGEST];
    let name = path.to_bytes();
    let parts: [&[u8]; 3] =
        if name.starts_with(b"/") { [name, b"", b""] } else { [&allowed.here, b"/", name] };
    let mut length = 0;
    for part in parts {
        let Some(room) = joined.get_mut(length..length + part.len()) else { return NOT_THERE };
        room.copy_from_slice(part);
        length += part.len();
    }
    // One byte is left: the name ends with a NUL.
    let Some(whole) = joined.get(..=length) else { return NOT_THERE };
    for (folder, descriptor) in &allowed.folders {
        let Some(below) = below(&whole[..length], folder) else { continue };
        // SAFETY: within `whole`, which ends with a NUL.
        let opened = unsafe {
            let at = whole.as_ptr().add(below);
            libc::syscall(libc::SYS_openat, *descriptor, at, flags, 0)
        };
        if opened >= 0 {
            return opened;
        }
    }
    NOT_THERE
}

/// Where in `path` its rest below `folder` begins. No link of a folder leads up, so as many
/// `..` as there are names before them stay in it.
fn below(path: &[u8], folder: &[u8]) -> Option<usize> {
    let rest = path.strip_prefix(folder)?.strip_prefix(b"/")?;
    let mut depth = 0_i32;
    for part in rest.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return None;
        }
    }
    let rest = rest.len() - rest.iter().take_while(|byte| **byte == b'/').count();
    Some(path.len() - rest)
}

#[cfg(target_arch = "x86_64")]
fn arguments(context: &ucontext_t) -> [c_long; 4] {
    use libc::{REG_R10, REG_RDI, REG_RDX, REG_RSI};
    [REG_RDI, REG_RSI, REG_RDX, REG_R10].map(|at| context.uc_mcontext.gregs[at as usize])
}

#[cfg(target_arch = "x86_64")]
fn answer(context: &mut ucontext_t, with: c_long) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = with;
}

#[cfg(target_arch = "aarch64")]
fn arguments(context: &ucontext_t) -> [c_long; 4] {
    [0, 1, 2, 3].map(|at| context.uc_mcontext.regs[at].cast_signed())
}

#[cfg(target_arch = "aarch64")]
fn answer(context: &mut ucontext_t, with: c_long) {
    context.uc_mcontext.regs[0] = with.cast_unsigned();
}

// Elsewhere the system calls are not known either: `keep_to` does nothing.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn arguments(_: &ucontext_t) -> [c_long; 4] {
    [0; 4]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn answer(_: &mut ucontext_t, _: c_long) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_not_below_it() {
        let below = |path: &str| {
            let at = below(path.as_bytes(), b"/own")?;
            Some(path[at..].to_owned())
        };
        assert_eq!(below("/own/a/../b.h").as_deref(), Some("a/../b.h"));
        assert_eq!(below("/own//a.h").as_deref(), Some("a.h"));
        for path in ["/own", "/owner/a.h", "/own/../etc/passwd", "/own/a/../../x", "/etc/passwd"] {
            assert_eq!(below(path), None, "{path}");
        }
    }
}
