//! Which format the data folder and the disk tier's have: how their parts lie in them, and
//! what they are called.
//!
//! Of what it does not know, a node makes short work: a file that is no blob is removed from
//! the disk tier. So the folder says first whether this program knows all there is.
//!
//! Invariant: nothing of a data folder is read or changed before its format is known, and
//! the file is written whole or not at all. What the index holds says for itself which
//! version it needs: see `kiln_cluster`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::NodeError;

/// Of the whole folder. A version that changes it raises it, and reads all below.
const FORMAT: u32 = 1;
const FILE: &str = "format";

/// Refuses a folder that a later version wrote, and marks one that has no mark: it is new,
/// or of a version before there were marks, whose format is 1.
pub(super) fn check(data: &Path) -> Result<(), NodeError> {
    if is_marked(data)? {
        return Ok(());
    }
    write(data).map_err(|source| {
        let doing = format!("write {}", data.join(FILE).display());
        NodeError::Io { doing, source }
    })
}

/// The same of the disk tier's folder, which may lie elsewhere. That nothing can be written
/// there is the tier's to tell.
pub(super) fn check_tier(disk: &Path) -> Result<(), NodeError> {
    if let Err(error) = fs::create_dir_all(disk) {
        tracing::warn!(%error, disk = %disk.display(), "the disk tier's folder cannot be made");
        return Ok(());
    }
    // A mark that is there and cannot be read may be a later version's.
    let is_marked = is_marked(disk).map_err(|e| match e {
        NodeError::Io { doing, source } => NodeError::Io {
            doing: format!("{doing}, without which the disk tier is not touched (mend that disk, or give disk.path another folder)"),
            source,
        },
        other => other,
    })?;
    if !is_marked && let Err(error) = write(disk) {
        tracing::warn!(%error, disk = %disk.display(), "the disk tier's format is not marked");
    }
    Ok(())
}

/// Whether the folder says that its format is one of those that are known; another is an error.
fn is_marked(data: &Path) -> Result<bool, NodeError> {
    let path = data.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(NodeError::NoFormat(path)),
        Err(source) => {
            return Err(NodeError::Io { doing: format!("read {}", path.display()), source });
        }
    };
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    match field("format").and_then(|number| number.parse().ok()) {
        None => Err(NodeError::NoFormat(path)),
        Some(found) if found > FORMAT => Err(NodeError::LaterFormat {
            folder: data.to_owned(),
            found,
            version: field("kiln").unwrap_or("of an unknown version").to_owned(),
            program: crate::VERSION,
            known: FORMAT,
        }),
        Some(_) => Ok(true),
    }
}

fn write(data: &Path) -> io::Result<()> {
    let temporary = data.join("format.new");
    let mut file = File::create(&temporary)?;
    file.write_all(format!("format {FORMAT}\nkiln {}\n", crate::VERSION).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, data.join(FILE))?;
    File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_marked_once_and_opens_again() {
        let data = tempfile::tempdir().unwrap();
        check(data.path()).unwrap();
        let marked = fs::read_to_string(data.path().join(FILE)).unwrap();
        assert!(marked.starts_with("format 1\n"), "{marked}");
        check(data.path()).unwrap();
        assert_eq!(fs::read_to_string(data.path().join(FILE)).unwrap(), marked);
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tier_whose_mark_cannot_be_read_is_not_touched_and_one_that_takes_none_is() {
        let disk = tempfile::tempdir().unwrap();
        // A folder of that name is there, and no text can be read of it, by root neither.
        fs::create_dir(disk.path().join(FILE)).unwrap();
        assert!(matches!(check_tier(disk.path()), Err(NodeError::Io { .. })));
        let full = tempfile::tempdir().unwrap();
        fs::create_dir(full.path().join("format.new")).unwrap();
        check_tier(full.path()).unwrap();
        assert!(check(full.path()).is_err(), "a data folder is marked before it is used");
    }

    #[test]
    fn a_folder_of_a_version_to_come_and_one_that_does_not_say_are_refused() {
        let data = tempfile::tempdir().unwrap();
        let judge = |text: &[u8]| {
            fs::write(data.path().join(FILE), text).unwrap();
            let refused = check(data.path()).unwrap_err().to_string();
            assert_eq!(fs::read(data.path().join(FILE)).unwrap(), text, "it stays");
            refused
        };
        let later = judge(b"format 2\nkiln 7.1.0\nand more\n");
        assert!(later.contains("which Kiln 7.1.0 wrote, and this is Kiln "), "{later}");
        assert!(later.contains("start the node with 7.1.0 or later"), "{later}");
        for odd in [b"".as_slice(), b"format\n", b"format x\n", b"\xff\xfe", b"formats 1\n"] {
            assert!(judge(odd).contains("restore it"), "{odd:?}");
        }
    }
}
