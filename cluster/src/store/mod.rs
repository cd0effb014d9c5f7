//! Everything a member keeps on disk.
//!
//! Invariant: [`open`] returns a store whose state is whole: what a crash left half
//! done is finished or undone by then.

mod db;
mod install;
mod log;
mod machine;
mod mark;
mod meta;
mod moving;
mod needs;
mod snapshot;
mod staging;
mod sync;

use std::{path::Path, sync::Arc};

pub(crate) use self::{
    db::{StateView, Store},
    log::LogStore,
    machine::Machine,
    meta::Owner,
    moving::{Direction, Moving},
    snapshot::SnapshotData,
    staging::Staging,
    sync::RealDisk,
};
use crate::{environment::Disk, error::ClusterError};

/// Opens or creates the store below `data_dir`, which is on `disk`, for a program of version
/// `program`. `Storage`: it cannot be read, or not by this version.
pub(crate) fn open(
    data_dir: &Path,
    disk: &dyn Disk,
    program: &str,
) -> Result<Arc<Store>, ClusterError> {
    mark::check_manifest(&Store::folder(data_dir))?;
    let store = Store::open(data_dir, disk, program)?;
    mark::check_writes(&store.db)?;
    store.note_opened(program)?;
    install::recover(&store)?;
    Ok(store)
}

#[cfg(test)]
mod tests;
