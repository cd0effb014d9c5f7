//! Files that a write which was cut off left in the data folder.
//!
//! Invariant: what is replaced whole in the data folder is first written there under a name of
//! [`FIXED`], or under one of [`NAMED`] with six letters and [`UNFINISHED`] behind it. A node that
//! starts removes those, and nothing else: a key that nobody ever knew of lies nowhere on its
//! disk, and an operator's copy of one stays.

use std::{fs, io, path::Path};

/// What becomes a file of the data folder, by processes that hold the folder's lock.
const FIXED: [&str; 2] = ["format.new", "heard.new"];
/// Files that more than one process may write at once.
const NAMED: [&str; 4] = ["signing.key", "signing.next", "signing.name", "use"];
const UNFINISHED: &str = ".new";
/// Before the six letters of a profile of use that an earlier version wrote.
const EARLIER: &str = ".tmp";
const LETTERS: usize = 6;

/// Removes them; how many there were. Only by who has the folder's lock.
pub(super) fn remove(data: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_str().is_some_and(is_unfinished) || !entry.file_type()?.is_file() {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => removed += 1,
            // A command of the operator has given it its name meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

fn is_unfinished(name: &str) -> bool {
    let random =
        |text: &str| text.len() == LETTERS && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let of = |file: &&str| {
        let middle = name.strip_prefix(*file).and_then(|rest| rest.strip_suffix(UNFINISHED));
        middle.and_then(|middle| middle.strip_prefix('.')).is_some_and(random)
    };
    FIXED.contains(&name) || NAMED.iter().any(of) || name.strip_prefix(EARLIER).is_some_and(random)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_was_not_finished_goes_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let gone = ["signing.next.aB3xYz.new", "signing.key.000000.new", "heard.new", ".tmpAbCdEf"];
        let kept = [
            "signing.key",
            "signing.next",
            "signing.name",
            "identity",
            "LOCK",
            // Of whoever has hands.
            "signing.key.new",
            "signing.key.mine.new",
            "signing.key.äöü.new",
            ".tmp",
            "config.new",
        ];
        for name in gone.iter().chain(&kept) {
            fs::write(data.path().join(name), name).unwrap();
        }
        fs::create_dir(data.path().join("use.abcdef.new")).unwrap();
        assert_eq!(remove(data.path()).unwrap(), gone.len() as u64);
        let names = fs::read_dir(data.path()).unwrap();
        let names: BTreeSet<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let wanted = kept.iter().chain(&["use.abcdef.new"]).map(ToString::to_string);
        assert_eq!(names, wanted.collect());
        assert_eq!(remove(data.path()).unwrap(), 0);
    }
}
