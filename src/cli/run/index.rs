//! What a pack says about its files beside their bytes.
//!
//! Invariant: it travels inside the pack as [`PATH`], which is never a file of
//! the folder: captures leave `.kiln*` out, and it is not written at restore.

use std::collections::BTreeMap;

use kiln::artifact::Attributes;
use serde::{Deserialize, Serialize};

use super::scan::Seen;

/// Where a pack has what is no file of the folder.
pub(crate) const OWN: &str = ".kiln/";
/// Its path within the pack.
pub(crate) const PATH: &str = ".kiln/folder.json";
pub(super) const VERSION: u32 = 1;

/// Permissions and times of a pack's files, by path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct FolderIndex {
    version: u32,
    files: BTreeMap<String, Meta>,
}

/// One file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    mode: u32,
    /// Seconds and nanoseconds: ninja compares them.
    mtime: (i64, u32),
}

impl FolderIndex {
    pub(crate) fn insert(&mut self, path: String, meta: Meta) {
        self.files.insert(path, meta);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Meta> {
        self.files.get(path).copied()
    }

    /// What becomes of the file at `path`; plain where the index does not tell.
    pub(crate) fn attributes(&self, path: &str) -> Attributes {
        self.get(path).map_or_else(Attributes::default, |meta| Attributes {
            mode: meta.mode & 0o777 | 0o400,
            modified: (meta.mtime.1 < 1_000_000_000).then_some(meta.mtime),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let written = Self { version: VERSION, files: self.files.clone() };
        // Of a map from text to numbers: it cannot fail.
        serde_json::to_vec(&written).unwrap_or_default()
    }

    /// Reads one; what cannot be read says nothing about any file.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let read: Result<Self, _> = serde_json::from_slice(bytes);
        read.ok().filter(|index| index.version == VERSION).unwrap_or_default()
    }
}

impl From<&Seen> for Meta {
    fn from(seen: &Seen) -> Self {
        Self { mode: seen.mode, mtime: seen.modified }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let mut index = FolderIndex::default();
        index.insert("a".into(), Meta { mode: 0o755, mtime: (5, 7) });
        let read = FolderIndex::decode(&index.encode());
        assert_eq!(read.attributes("a"), Attributes { mode: 0o755, modified: Some((5, 7)) });
        assert_eq!(read.attributes("b"), Attributes::default());
    }

    #[test]
    fn what_it_says_is_bounded() {
        let text = br#"{"version":1,"files":{"a":{"mode":68893,"mtime":[1,4294967295]}}}"#;
        let attributes = FolderIndex::decode(text).attributes("a");
        assert_eq!(attributes, Attributes { mode: 0o435, modified: None });
        for unknown in [b"".as_slice(), b"[]", br#"{"version":9,"files":{}}"#] {
            assert_eq!(FolderIndex::decode(unknown).attributes("a"), Attributes::default());
        }
    }
}
