//! One thread that makes the write-ahead log durable, for all writers at once.
//!
//! Invariant: a completion is called with `Ok` only after an fsync that started
//! after its write. A failed fsync is final: every later one fails as well,
//! because the kernel may have dropped the pages that it could not write. The mark is
//! raised after an fsync, to what was written before it.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use rocksdb::DB;

use super::mark::Mark;
use crate::environment::{Completion, Disk, Syncs};

/// This machine's disk.
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn syncer(&self, db: Arc<DB>) -> io::Result<Box<dyn Syncs>> {
        Ok(Box::new(SyncThread::spawn(db)?))
    }
}

/// The handle; dropping it ends the thread after what is queued.
struct SyncThread {
    queue: Option<Sender<Completion>>,
    thread: Option<JoinHandle<()>>,
}

impl SyncThread {
    fn spawn(db: Arc<DB>) -> io::Result<Self> {
        let (queue, requests) = channel();
        let mark = Mark::open(&db)?;
        let thread = std::thread::Builder::new()
            .name("kiln-wal-sync".into())
            .spawn(move || run(&db, mark, &requests))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }
}

impl Syncs for SyncThread {
    fn after_sync(&self, done: Completion) {
        let gone = || io::Error::other("the store is closed");
        match &self.queue {
            None => done(Err(gone())),
            Some(queue) => {
                if let Err(refused) = queue.send(done) {
                    (refused.0)(Err(gone()));
                }
            }
        }
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs the index panicked");
        }
    }
}

fn run(db: &DB, mut mark: Mark, requests: &Receiver<Completion>) {
    let mut broken: Option<String> = None;
    let took = metrics::histogram!("kiln_raft_fsync_seconds");
    while let Ok(first) = requests.recv() {
        let waiting: Vec<Completion> = std::iter::once(first).chain(requests.try_iter()).collect();
        if broken.is_none() {
            // Before the fsync: what is written during it may miss it.
            let sequence = db.latest_sequence_number();
            let began = Instant::now();
            match db.flush_wal(true) {
                Ok(()) => {
                    took.record(began.elapsed());
                    if let Err(e) = mark.raise(sequence) {
                        tracing::warn!(error = %e, "the index's mark is not written");
                    }
                }
                Err(e) => {
                    tracing::error!(error = %e, "fsync of the index failed: this node must stop");
                    broken = Some(e.to_string());
                }
            }
        }
        for done in waiting {
            done(match &broken {
                None => Ok(()),
                Some(why) => Err(io::Error::other(why.clone())),
            });
        }
    }
}
