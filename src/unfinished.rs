//! Files of the data folder that are still being written.
//!
//! Invariant: what is replaced whole there, and may be written by more than one process at once,
//! has a name that begins with [`PREFIX`] until it has its own. Nobody else gives a file such a
//! name, so whoever has the folder's lock may remove those that a process left behind.

use std::{io, path::Path};

use tempfile::NamedTempFile;

/// How their names begin; random letters stand behind it.
pub(crate) const PREFIX: &str = ".kiln-unfinished-";

/// A new one in `folder`, its owner's alone.
pub(crate) fn create(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder)
}
