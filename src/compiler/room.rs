//! Memory that this machine, or this container, has left.
//!
//! Invariant: what cannot be read limits nothing: each compile has a limit of its own.

use std::{fs, path::Path};

/// Whether a compile of `bytes` fits beside compiles that may still come to take
/// `at_work`.
pub(crate) fn has_room(bytes: u64, at_work: u64) -> bool {
    left().is_none_or(|left| bytes.saturating_add(at_work) <= left)
}

/// Bytes that there are; `None`: nothing says.
pub(crate) fn left() -> Option<u64> {
    available(Path::new("/proc/meminfo"), Path::new("/sys/fs/cgroup"))
}

fn available(meminfo: &Path, cgroup: &Path) -> Option<u64> {
    let machine = fs::read_to_string(meminfo).ok().and_then(|text| machine(&text));
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(cgroup.join(name)).ok()?.trim().parse().ok()
    };
    // Without a limit the file says `max`. Caches of files make room.
    let stat = fs::read_to_string(cgroup.join("memory.stat")).unwrap_or_default();
    let files = field(&stat, "inactive_file").unwrap_or_default();
    let container = number("memory.max").and_then(|most| {
        Some(most.saturating_sub(number("memory.current")?.saturating_sub(files)))
    });
    match (machine, container) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn machine(meminfo: &str) -> Option<u64> {
    Some(field(meminfo, "MemAvailable:")? << 10)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_of_machine_and_container_counts() {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = dir.path().join("meminfo");
        let left = || available(&meminfo, dir.path());
        assert_eq!(left(), None, "nothing is known");
        fs::write(&meminfo, "MemTotal: 100 kB\nMemAvailable:   64 kB\n").unwrap();
        assert_eq!(left(), Some(64 << 10));
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "9000\n");
        assert_eq!(left(), Some(64 << 10), "no limit");
        write("memory.max", "10000\n");
        assert_eq!(left(), Some(1000));
        write("memory.stat", "anon 1\ninactive_file 500\n");
        assert_eq!(left(), Some(1500), "caches make room");
        write("memory.current", "20000\n");
        assert_eq!(left(), Some(0));
    }

    #[test]
    fn this_machine_has_room_for_something_and_not_for_everything() {
        assert!(has_room(1, 0));
        assert!(!has_room(u64::MAX, 1));
    }
}
