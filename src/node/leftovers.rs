//! Files that a write which was cut off left in the data folder.
//!
//! Invariant: a node that starts removes what only Kiln can have named: what is [`unfinished`],
//! the files of [`FIXED`], and names that earlier versions made up of random letters. Nothing else
//! goes: an operator's copy of a key stays, also where that leaves a file of an earlier version.

use std::{
    fs::{self, DirEntry},
    io,
    path::Path,
};

use crate::unfinished;

/// What becomes a file of the data folder, by processes that hold the folder's lock.
const FIXED: [&str; 2] = ["format.new", "heard.new"];
/// What earlier versions wrote under the file's own name, six random letters and [`NEW`].
const EARLIER: [&str; 3] = ["signing.key.", "signing.next.", "signing.name."];
const NEW: &str = ".new";
/// Before the six letters of a profile of use that an earlier version wrote.
const EARLIER_USE: &str = ".tmp";
const LETTERS: usize = 6;

/// Removes them; how many there were. Only by who has the folder's lock.
pub(super) fn remove(data: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_unfinished(name)) else { continue };
        match remove_file(&entry) {
            Ok(true) => {
                tracing::info!(name, "a file that was not finished is removed");
                removed += 1;
            }
            Ok(false) => {}
            // A command of the operator has given it its name meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

/// Whether it was a file, which is no more.
fn remove_file(entry: &DirEntry) -> io::Result<bool> {
    let is_file = entry.file_type()?.is_file();
    if is_file {
        fs::remove_file(entry.path())?;
    }
    Ok(is_file)
}

fn is_unfinished(name: &str) -> bool {
    let earlier = |before: &&str| {
        name.strip_prefix(*before).and_then(|rest| rest.strip_suffix(NEW)).is_some_and(is_random)
    };
    name.starts_with(unfinished::PREFIX)
        || FIXED.contains(&name)
        || EARLIER.iter().any(earlier)
        || name.strip_prefix(EARLIER_USE).is_some_and(is_random)
}

/// Whether nobody has written that by hand: words and dates have capitals at their beginning
/// alone, or nothing else.
fn is_random(text: &str) -> bool {
    let capital = |b: u8| b.is_ascii_uppercase();
    text.len() == LETTERS
        && text.bytes().all(|b| b.is_ascii_alphanumeric())
        && text.bytes().skip(1).any(capital)
        && !text.bytes().all(capital)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_was_not_finished_goes_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let gone = [
            &format!("{}aB3xYz", unfinished::PREFIX),
            "signing.next.aB3xYz.new",
            "heard.new",
            ".tmpAbCdEf",
        ];
        let kept = [
            "signing.key",
            "signing.next",
            "signing.name",
            "identity",
            "LOCK",
            // Of whoever has hands.
            "signing.key.new",
            "signing.key.mine.new",
            "signing.key.backup.new",
            "signing.key.BACKUP.new",
            "signing.key.Backup.new",
            "signing.key.node01.new",
            "signing.key.202611.new",
            ".tmpbackup",
            "signing.key.äöü.new",
            ".tmp",
            "config.new",
        ];
        for name in gone.iter().chain(&kept) {
            fs::write(data.path().join(name), name).unwrap();
        }
        let folder = format!("{}folder", unfinished::PREFIX);
        fs::create_dir(data.path().join(&folder)).unwrap();
        assert_eq!(remove(data.path()).unwrap(), gone.len() as u64);
        let names = fs::read_dir(data.path()).unwrap();
        let names: BTreeSet<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let wanted = kept.iter().map(ToString::to_string).chain([folder]);
        assert_eq!(names, wanted.collect());
        assert_eq!(remove(data.path()).unwrap(), 0);
    }
}
