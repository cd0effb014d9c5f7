//! What a member takes from the machine that it runs on: its network, the fsync of its
//! disk, and the time of day.
//!
//! Invariant: nothing else of the crate connects, syncs the database in the background or
//! reads the wall clock. So a member can be run on a network, a disk and a clock that a
//! simulation makes up.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rocksdb::DB;

use crate::transport::Connect;

/// The machine of one member.
#[derive(Clone)]
pub(crate) struct Environment {
    pub network: Arc<dyn Connect>,
    pub disk: Arc<dyn Disk>,
    pub clock: WallClock,
}

/// What makes a database's writes durable.
pub(crate) trait Disk: Send + Sync {
    fn syncer(&self, db: Arc<DB>) -> io::Result<Box<dyn Syncs>>;
}

/// Makes one database's writes durable.
pub(crate) trait Syncs: Send + Sync {
    /// Calls `done` once everything written before this call is durable.
    fn after_sync(&self, done: Completion);
}

/// What is called when a write is durable, or never will be.
pub(crate) type Completion = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Tells the time since the Unix epoch.
pub(crate) type WallClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The real machine's clock.
pub(crate) fn system_clock() -> WallClock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
