//! The simulated disk: what is synced when, and what a crash leaves.
//!
//! The database is a real one. It keeps its write-ahead log in memory until it is synced
//! (see [`crate::store`]), so a copy of its folder is what a crash leaves that loses all
//! that was not synced. A log that was flushed before the copy is what a kinder crash
//! leaves, and one cut short in between is what a torn write leaves.
//!
//! Invariant: a completion is called after a sync that began after its write, some
//! simulated time later, and never by a disk whose process died before.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rocksdb::DB;
use tokio::sync::mpsc;

use super::{chance::Chance, trace::Trace};
use crate::environment::{Completion, Disk, Syncs};

/// One process's disk.
pub(super) struct SimDisk {
    chance: Mutex<Chance>,
    stalled: Mutex<bool>,
    failed: Mutex<bool>,
    /// Whether anyone was told that it failed.
    told: Mutex<bool>,
    db: Mutex<Option<Arc<DB>>>,
    trace: Arc<Trace>,
}

/// What a crash does to writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsynced {
    Lost,
    Torn,
    Kept,
}

impl SimDisk {
    pub(super) fn new(chance: Chance, trace: Arc<Trace>) -> Arc<Self> {
        let [stalled, failed, told] = [(); 3].map(|()| Mutex::new(false));
        Arc::new(Self {
            chance: Mutex::new(chance),
            stalled,
            failed,
            told,
            db: Mutex::default(),
            trace,
        })
    }

    /// Makes each sync take long, or not any more.
    pub(super) fn stall(&self, stalled: bool) {
        *self.stalled.lock() = stalled;
    }

    /// Every sync from now on fails.
    pub(super) fn fail(&self) {
        *self.failed.lock() = true;
    }

    /// Whether it failed.
    pub(super) fn has_failed(&self) -> bool {
        *self.failed.lock()
    }

    /// Whether a sync was asked for since, and refused.
    pub(super) fn told_so(&self) -> bool {
        *self.told.lock()
    }

    fn takes(&self) -> Duration {
        let stalled = *self.stalled.lock();
        if stalled {
            self.trace.count("stalled");
        }
        let mut chance = self.chance.lock();
        match stalled {
            true => chance.millis(300..2500),
            false => chance.micros(150..4000),
        }
    }

    /// Copies what a crash at this moment leaves of the folder `from` to `to`.
    pub(super) fn crash(&self, from: &Path, to: &Path, unsynced: Unsynced) -> io::Result<()> {
        let Some(db) = self.db.lock().take() else { return copy(from, to) };
        // Its own threads must not change the folder while it is copied.
        db.cancel_all_background_work(true);
        let index = from.join("index");
        let before = logs(&index)?;
        let torn = self.chance.lock().number();
        if unsynced == Unsynced::Lost {
            copy(from, to)?;
            // Only to know whether there was anything to lose.
            drop(db.flush_wal(false));
        } else {
            db.flush_wal(false).map_err(io::Error::other)?;
            copy(from, to)?;
        }
        for (name, length) in logs(&index)? {
            let synced = before.iter().find(|(known, _)| *known == name).map_or(0, |(_, l)| *l);
            if length <= synced {
                continue;
            }
            self.trace.count("unsynced");
            if unsynced == Unsynced::Torn {
                let log = fs::OpenOptions::new().write(true).open(to.join("index").join(&name))?;
                log.set_len(synced + torn % (length - synced))?;
            }
        }
        Ok(())
    }
}

/// The write-ahead logs in `index` and their lengths.
fn logs(index: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut logs = Vec::new();
    for file in fs::read_dir(index)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") {
            logs.push((name, file.metadata()?.len()));
        }
    }
    logs.sort();
    Ok(logs)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let to = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            copy(&file.path(), &to)?;
        } else if let Err(e) = fs::copy(file.path(), to)
            // The database deletes what it does not need while this copies.
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
    }
    Ok(())
}

/// The disk as a store takes it.
pub(super) struct Mounted(pub Arc<SimDisk>);

impl Disk for Mounted {
    fn syncer(&self, db: Arc<DB>) -> io::Result<Box<dyn Syncs>> {
        *self.0.db.lock() = Some(Arc::clone(&db));
        let (queue, mut waiting) = mpsc::unbounded_channel::<Completion>();
        let disk = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some(first) = waiting.recv().await {
                let mut batch = vec![first];
                while let Ok(more) = waiting.try_recv() {
                    batch.push(more);
                }
                tokio::time::sleep(disk.takes()).await;
                let synced = match disk.has_failed() {
                    false => db.flush_wal(true).map_err(|e| e.to_string()),
                    true => {
                        *disk.told.lock() = true;
                        Err("simulated: the disk failed".to_owned())
                    }
                };
                for done in batch {
                    done(synced.clone().map_err(io::Error::other));
                }
            }
        });
        Ok(Box::new(SimSyncer(queue)))
    }
}

struct SimSyncer(mpsc::UnboundedSender<Completion>);

impl Syncs for SimSyncer {
    fn after_sync(&self, done: Completion) {
        if let Err(refused) = self.0.send(done) {
            (refused.0)(Err(io::Error::other("the store is closed")));
        }
    }
}
