//! An artifact of pieces, as a folder.
//!
//! ```text
//! DIR/stitching.json, ...   the whole's own files
//! DIR/pieces.json           keys and packs of the pieces, for messages
//! DIR/pieces/0/...          the files of the piece at position 0
//! ```
//!
//! Invariant: everything is fetched and checked beside DIR before a name in DIR changes;
//! `stitching.json` comes last and goes first, so a folder that has it is whole. Names of
//! folders come from positions, never from an artifact.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use kiln::exec::layout::{
    PIECE_KEYS, PIECES, SIZE_DIRS, SIZES, STITCHING, clear, keys_file, piece_dir,
};
use kiln_proto::{FailureKind, Manifest, PieceRef};
use tempfile::TempDir;

use super::{
    CliError,
    fetch::{self, Fetched},
};

/// A whole that is on its way into a folder.
pub(crate) struct Staged {
    /// Gone with this, unless it became the folder itself.
    stage: TempDir,
    folder: PathBuf,
    pieces: usize,
}

impl Staged {
    /// For `folder`, where nothing changes before [`finish`](Self::finish).
    pub(crate) fn new(folder: &Path) -> Result<Self, CliError> {
        // Beside or inside it, so that files can be moved.
        let place = match (folder.is_dir(), folder.parent()) {
            (true, _) => folder,
            (false, Some(parent)) if !parent.as_os_str().is_empty() => parent,
            (false, _) => Path::new("."),
        };
        fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
        let stage = tempfile::Builder::new().prefix(".kiln-").tempdir_in(place);
        let stage = stage.with_context(|| format!("write into {}", place.display()))?;
        Ok(Self { stage, folder: folder.to_owned(), pieces: 0 })
    }

    /// Adds the next piece, if `fetched` is what the whole calls `piece`.
    pub(crate) fn add(&mut self, piece: &PieceRef, fetched: &Fetched) -> Result<(), CliError> {
        let (position, manifest) = (self.pieces, &fetched.manifest);
        check_piece(position, piece, manifest)?;
        let folder = piece_dir(self.stage.path(), position);
        fetch::write_files(&folder, manifest, &fetched.pack)?;
        self.pieces += 1;
        Ok(())
    }

    /// Puts all of it into the folder, with the whole's own files.
    pub(crate) fn finish(self, whole: &Fetched) -> Result<(), CliError> {
        let (manifest, stage) = (&whole.manifest, self.stage.path());
        if self.pieces != manifest.pieces.len() {
            let (has, wants) = (self.pieces, manifest.pieces.len());
            return Err(corrupt(format!("{has} of {wants} pieces")));
        }
        check_own(manifest)?;
        fetch::write_file(stage, &stage.join(PIECE_KEYS), &keys_file(&manifest.pieces))?;
        fetch::write_files(stage, manifest, &whole.pack)?;
        let into = |e: io::Error| anyhow::Error::new(e).context(self.folder.display().to_string());
        if !self.folder.exists() {
            // It was made for this process alone.
            use std::os::unix::fs::PermissionsExt;
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(stage, open).map_err(into)?;
            match fs::rename(stage, &self.folder) {
                Ok(()) => {
                    let _moved = self.stage.keep();
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(e) => return Err(into(e).into()),
            }
        }
        clear(&self.folder).map_err(into)?;
        for position in 0..self.pieces {
            clear(&piece_dir(&self.folder, position)).map_err(into)?;
        }
        let last = stage.join(STITCHING);
        move_into(stage, &self.folder, &last).map_err(into)?;
        if last.exists() {
            fs::rename(&last, self.folder.join(STITCHING)).map_err(into)?;
        }
        Ok(())
    }
}

/// Refuses what is not what the whole calls `piece`, at that position.
pub(crate) fn check_piece(
    position: usize,
    piece: &PieceRef,
    manifest: &Manifest,
) -> Result<(), CliError> {
    let named =
        PieceRef { key: manifest.key, pack: manifest.pack_digest, pack_size: manifest.pack_size };
    if named != *piece {
        return Err(corrupt(format!("piece {position} is not the one that was signed")));
    }
    if !manifest.pieces.is_empty() {
        return Err(corrupt(format!("piece {position} has pieces itself")));
    }
    Ok(())
}

/// `folder` is no whole any more.
pub(crate) fn clear_whole(folder: &Path) -> io::Result<()> {
    remove(folder, &[STITCHING, PIECE_KEYS])
}

/// What is in `folder` for static sizes belongs to it no more.
pub(crate) fn clear_sizes(folder: &Path) -> io::Result<()> {
    remove(folder, &[SIZES])
}

fn remove(folder: &Path, names: &[&str]) -> io::Result<()> {
    for name in names {
        match fs::remove_file(folder.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// A whole's own files are not among those of its pieces.
fn check_own(manifest: &Manifest) -> Result<(), CliError> {
    let taken = |path: &str| {
        let first = path.split('/').next().unwrap_or_default();
        [PIECES, PIECE_KEYS, SIZE_DIRS, SIZES].contains(&first)
    };
    match manifest.files.iter().find(|file| taken(&file.path)) {
        Some(file) => Err(corrupt(format!("{:?} is the place of a piece", file.path))),
        None => Ok(()),
    }
}

/// Moves the files below `from`, all but `last`, to the same places below `to`.
fn move_into(from: &Path, to: &Path, last: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            match fs::create_dir(&target) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            move_into(&source, &target, last)?;
        } else if source != last {
            fs::rename(&source, &target)?;
        }
    }
    Ok(())
}

fn corrupt(why: String) -> CliError {
    CliError::failed(FailureKind::Corrupt, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fetch::tests::artifact;

    fn fetched(files: &[(&str, &[u8])]) -> Fetched {
        let (manifest, pack) = artifact(files);
        Fetched { manifest, pack: Box::new(pack), tier: Default::default() }
    }

    fn named(piece: &Fetched) -> PieceRef {
        let Manifest { key, pack_digest, pack_size, .. } = piece.manifest;
        PieceRef { key, pack: pack_digest, pack_size }
    }

    fn whole(own: &[(&str, &[u8])], pieces: &[Fetched]) -> Fetched {
        let mut whole = fetched(own);
        whole.manifest.pieces = pieces.iter().map(named).collect();
        whole
    }

    fn write(folder: &Path, whole: &Fetched, pieces: &[Fetched]) -> Result<(), CliError> {
        let mut staged = Staged::new(folder)?;
        for (piece, fetched) in whole.manifest.pieces.iter().zip(pieces) {
            staged.add(piece, fetched)?;
        }
        staged.finish(whole)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_whole_becomes_a_folder_with_its_pieces() {
        let parent = tempfile::tempdir().unwrap();
        let pieces = [
            fetched(&[("module.cubin", b"one"), ("plan.json", b"{}")]),
            fetched(&[("module.cubin", b"two")]),
        ];
        let whole = whole(&[(STITCHING, b"how")], &pieces);
        let folder = parent.path().join("a/b");
        // Into a folder that is not there, and then into one that is.
        for round in 0..2 {
            write(&folder, &whole, &pieces).unwrap();
            let read = |path: &str| fs::read(folder.join(path)).unwrap();
            assert_eq!(read(STITCHING), b"how");
            assert_eq!(read("pieces/0/module.cubin"), b"one");
            assert_eq!(read("pieces/1/module.cubin"), b"two");
            let keys: serde_json::Value = serde_json::from_slice(&read(PIECE_KEYS)).unwrap();
            assert_eq!(keys[1]["key"], pieces[1].manifest.key.to_string());
            assert_eq!(names(&folder), [PIECES, PIECE_KEYS, STITCHING], "round {round}");
            assert_eq!(names(&parent.path().join("a")), ["b"], "nothing is left beside it");
        }
    }

    #[test]
    fn another_kind_of_artifact_leaves_the_folder_and_others_files_stay() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir_all(parent.path().join("pieces/0")).unwrap();
        for old in ["module.cubin", "pieces/0/kernels.cu"] {
            fs::write(parent.path().join(old), "old").unwrap();
        }
        fs::write(parent.path().join("notes.txt"), "mine").unwrap();
        let pieces = [fetched(&[("module.cubin", b"one")])];
        write(parent.path(), &whole(&[(STITCHING, b"how")], &pieces), &pieces).unwrap();
        assert_eq!(names(parent.path()), ["notes.txt", PIECES, PIECE_KEYS, STITCHING]);
        assert_eq!(names(&parent.path().join("pieces/0")), ["module.cubin"]);
        clear_whole(parent.path()).unwrap();
        assert_eq!(names(parent.path()), ["notes.txt", PIECES]);
    }

    #[test]
    fn what_is_wrong_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out");
        let pieces = [fetched(&[("module.cubin", b"one")]), fetched(&[("module.cubin", b"two")])];
        let good = whole(&[(STITCHING, b"how")], &pieces);
        let swapped = [fetched(&[("module.cubin", b"one")]), fetched(&[("module.cubin", b"six")])];
        let fewer = &pieces[..1];
        let mut nested =
            [fetched(&[("module.cubin", b"one")]), fetched(&[("module.cubin", b"two")])];
        nested[1].manifest.pieces = vec![named(&pieces[0])];
        let mut damaged = pieces[1].manifest.clone();
        damaged.files[0].digest = damaged.pack_digest;
        damaged.files[0].size -= 1;
        let damaged = [
            fetched(&[("module.cubin", b"one")]),
            Fetched { manifest: damaged, ..fetched(&[("module.cubin", b"two")]) },
        ];
        let outside = whole(&[("pieces/0/module.cubin", b"mine")], &pieces);
        let keys = whole(&[(PIECE_KEYS, b"mine")], &pieces);
        let bad: [(&Fetched, &[Fetched]); 6] = [
            (&good, &swapped),
            (&good, fewer),
            (&good, &nested),
            (&good, &damaged),
            (&outside, &pieces),
            (&keys, &pieces),
        ];
        for (n, (whole, pieces)) in bad.into_iter().enumerate() {
            let refused = write(&folder, whole, pieces).unwrap_err();
            assert_eq!(refused.exit_code(), 12, "{n}: {refused}");
            assert_eq!(names(parent.path()), Vec::<String>::new(), "{n}");
        }
        // The same in a folder that has a whole: it stays what it was.
        write(&folder, &good, &pieces).unwrap();
        write(&folder, &good, &swapped).unwrap_err();
        assert_eq!(names(&folder), [PIECES, PIECE_KEYS, STITCHING]);
        assert_eq!(fs::read(folder.join("pieces/1/module.cubin")).unwrap(), b"two");
    }
}
