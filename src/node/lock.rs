//! One process a data folder.
//!
//! Invariant: the lock is the kernel's, so it ends with the process, however that ends.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use super::NodeError;

/// Takes the data folder for this process.
pub(super) fn lock(data: &Path) -> Result<File, NodeError> {
    let path = data.join("LOCK");
    let doing = || format!("lock {}", path.display());
    let file = File::create(&path).map_err(|source| NodeError::Io { doing: doing(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(NodeError::Locked(data.to_owned())),
        Err(TryLockError::Error(source)) => Err(NodeError::Io { doing: doing(), source }),
    }
}
