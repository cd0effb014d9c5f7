//! Where the files of a stitched artifact lie in a folder.
//!
//! ```text
//! DIR/stitching.json   its own file
//! DIR/signature.json   what the program calls its inputs, where that is known
//! DIR/pieces.json      keys of the pieces, to name them in messages
//! DIR/pieces/0/        an ordinary artifact: the piece at position 0
//! DIR/pieces/1/        ...
//! DIR/sizes.json       static sizes that there are artifacts for, beside the dynamic one
//! DIR/sizes/8/         one of them: the program for size 8, laid out as DIR itself
//! ```
//!
//! Invariant: names come from positions and sizes, never from an artifact. A folder whose
//! `stitching.json` is written last is either whole or no stitched artifact; what lies in
//! `sizes` counts only if `sizes.json`, written after it, names it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use kiln_native::split::stitch::STITCHING;
use kiln_native::{SIGNATURE_FILE, eager};
use kiln_proto::{ArtifactKey, Digest, PieceRef};
use serde::{Deserialize, Serialize};

/// Folder of the pieces.
pub const PIECES: &str = "pieces";
/// Their keys, in their order.
pub const PIECE_KEYS: &str = "pieces.json";
/// Folders of artifacts for static sizes.
pub const SIZE_DIRS: &str = "sizes";
/// Which there are.
pub const SIZES: &str = "sizes.json";
/// Machine code of an artifact that runs on a GPU.
pub const CUBIN: &str = "module.cubin";
/// How to run it.
pub const PLAN: &str = "plan.json";
/// What it was compiled from.
const SOURCE: &str = "kernels.cu";

/// Describes what Inductor made: no other artifact has it.
pub const INDUCTOR: &str = "meta.json";
/// What Inductor made: standalone, ahead of time, and the data of constants.
const INDUCTOR_FILES: [&str; 3] = ["artifact.bin", "model.pt2", "constants.pt"];

/// What artifacts of graphs have in their folder.
/// The sizes go first: they belong to what else is there.
const KNOWN: [&str; 11] = [
    SIZES,
    STITCHING,
    PIECE_KEYS,
    SIGNATURE_FILE,
    CUBIN,
    PLAN,
    SOURCE,
    eager::GRAPH,
    eager::PORTABLE,
    eager::CONSTANTS,
    INDUCTOR,
];

/// A piece as `pieces.json` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceKey {
    /// Of its artifact.
    #[serde(with = "text")]
    pub key: ArtifactKey,
    /// Of its pack.
    #[serde(with = "text")]
    pub pack: Digest,
}

/// A static size as `sizes.json` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeKey {
    /// Of the one dimension that is fixed.
    pub size: u64,
    /// Of its artifact.
    #[serde(with = "text")]
    pub key: ArtifactKey,
}

/// Whether the artifact in `dir` is stitched of others.
pub fn is_stitched(dir: &Path) -> bool {
    dir.join(STITCHING).is_file()
}

/// The folder of the piece at `position` of the artifact in `dir`.
pub fn piece_dir(dir: &Path, position: usize) -> PathBuf {
    dir.join(PIECES).join(position.to_string())
}

/// The folder of the artifact for one size, beside the dynamic one in `dir`.
pub fn size_dir(dir: &Path, size: u64) -> PathBuf {
    dir.join(SIZE_DIRS).join(size.to_string())
}

/// The bytes of `sizes.json`.
pub fn sizes_file(sizes: &[SizeKey]) -> Vec<u8> {
    // A number and text, which cannot fail.
    serde_json::to_vec_pretty(sizes).unwrap_or_default()
}

/// The sizes that `dir` has artifacts for; none without a `sizes.json`.
pub fn sizes(dir: &Path) -> io::Result<Vec<SizeKey>> {
    match fs::read(dir.join(SIZES)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes the files of an artifact that was written to `dir` before, so that
/// those of another kind do not mix with them. Files by their known names, no
/// folder: what else is there is not Kiln's.
pub fn clear(dir: &Path) -> io::Result<()> {
    for name in KNOWN.into_iter().chain(INDUCTOR_FILES) {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The bytes of `pieces.json`, for the pieces of a manifest.
pub fn keys_file(pieces: &[PieceRef]) -> Vec<u8> {
    let keys: Vec<PieceKey> =
        pieces.iter().map(|piece| PieceKey { key: piece.key, pack: piece.pack }).collect();
    // Two fields of text, which cannot fail.
    serde_json::to_vec_pretty(&keys).unwrap_or_default()
}

/// The keys of the pieces in `dir`; none where they were not written or are not
/// those of `count` pieces: they are for messages only.
pub(super) fn keys(dir: &Path, count: usize) -> Vec<ArtifactKey> {
    let read = fs::read(dir.join(PIECE_KEYS)).ok();
    let keys: Option<Vec<PieceKey>> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let keys = keys.filter(|keys| keys.len() == count).unwrap_or_default();
    keys.into_iter().map(|piece| piece.key).collect()
}

/// Digests and keys as people see them.
mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(it: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_folders_by_position() {
        assert_eq!(piece_dir("out".as_ref(), 12), Path::new("out/pieces/12"));
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let piece = |n: u8| PieceRef {
            key: ArtifactKey::from_bytes([n; 32]),
            pack: Digest::of(&[n]),
            pack_size: 3,
        };
        fs::write(dir.path().join(PIECE_KEYS), keys_file(&[piece(2), piece(1)])).unwrap();
        let read = keys(dir.path(), 2);
        assert_eq!(read, [piece(2).key, piece(1).key]);
        assert!(keys(dir.path(), 3).is_empty(), "those of another artifact name nothing");
        fs::write(dir.path().join(PIECE_KEYS), "[{]").unwrap();
        assert!(keys(dir.path(), 2).is_empty());
    }

    #[test]
    fn what_is_cleared_is_an_artifact_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(piece_dir(dir.path(), 0)).unwrap();
        let others = ["notes.txt", "pieces/0/plan.json"];
        for name in KNOWN.iter().chain(&INDUCTOR_FILES).chain(&others) {
            fs::write(path(name), "x").unwrap();
        }
        clear(dir.path()).unwrap();
        assert!(KNOWN.iter().chain(&INDUCTOR_FILES).all(|name| !path(name).exists()));
        assert!(others.iter().all(|name| path(name).exists()));
        clear(dir.path()).unwrap();
        assert!(!is_stitched(dir.path()));
    }
}
