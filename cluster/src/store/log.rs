//! Raft's log and vote on disk.
//!
//! Invariant: entries are readable when `append` returns, and durable when its
//! callback is called; the log has no hole, because appends, truncations and
//! purges reach the one write-ahead log in the order in which they were asked.

use std::{
    fmt::Debug,
    io,
    ops::{Range, RangeBounds},
    sync::Arc,
};

use fail::fail_point;
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use rocksdb::{ErrorKind, IteratorMode, ReadOptions, WriteBatch};
use tokio::sync::oneshot;

use super::{
    db::{self, LOG, Store},
    meta::{self, META},
};
use crate::{
    blocking, codec,
    error::io_error,
    raft::{Entry, RaftLogId, Types, Vote},
    versions,
};

/// Most bytes of entries in one request to a follower, unless one entry is larger.
const MOST_BYTES: usize = 1 << 20;

/// Raft's view of the store: log and vote.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Arc<Store>,
}

impl LogStore {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// The entries in `range`, up to `most_bytes`. Those that followers and the state
    /// machine ask for are mostly the last ones, which are in memory.
    async fn entries(&self, range: Range<u64>, most_bytes: usize) -> io::Result<Vec<Entry>> {
        if let Some(found) = read(&self.store, range.clone(), most_bytes, true)? {
            return Ok(found);
        }
        self.blocking(move |store| {
            let found = read(store, range, most_bytes, false)?;
            found.ok_or_else(|| io::Error::other("the log is not in memory"))
        })
        .await
    }

    /// Does `work` where waiting for the disk delays nobody else.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let store = Arc::clone(&self.store);
        blocking::run(move || work(&store)).await?
    }

    async fn durable(&self) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        self.store.syncer.after_sync(Box::new(move |result| {
            // The other end is gone only when the caller was: nobody to tell.
            drop(done.send(result));
        }));
        synced.await.map_err(io_error)?
    }
}

/// The entries of `range`, up to `most_bytes` or one that is larger; `None` where they
/// are not all `in_memory` and had to be.
pub(super) fn read(
    store: &Store,
    range: Range<u64>,
    most_bytes: usize,
    in_memory: bool,
) -> io::Result<Option<Vec<Entry>>> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    if range.is_empty() {
        return Ok(Some(found));
    }
    let start = range.start.to_be_bytes();
    let mode = IteratorMode::From(&start, rocksdb::Direction::Forward);
    let options = if in_memory { db::in_memory() } else { ReadOptions::default() };
    for pair in store.db.iterator_cf_opt(store.cf(LOG), options, mode) {
        let (_, value) = match pair {
            Err(e) if in_memory && e.kind() == ErrorKind::Incomplete => return Ok(None),
            pair => pair.map_err(io_error)?,
        };
        let entry: Entry = codec::decode(&value).map_err(io_error)?;
        bytes += value.len();
        if !range.contains(&entry.log_id.index) || (bytes > most_bytes && !found.is_empty()) {
            break;
        }
        found.push(entry);
    }
    Ok(Some(found))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match range.start_bound() {
            Included(at) => *at,
            Excluded(at) => at.saturating_add(1),
            Unbounded => 0,
        };
        let end = match range.end_bound() {
            Included(end) => end.saturating_add(1),
            Excluded(end) => *end,
            Unbounded => u64::MAX,
        };
        // Not held across the read: a range need not be one that threads share.
        drop(range);
        self.entries(start..end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = self.entries(start..end, MOST_BYTES).await?;
        // What was purged meanwhile would be a hole at the follower's.
        if entries.first().is_some_and(|first| first.log_id.index != start) {
            entries.clear();
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.blocking(|store| store.meta(meta::VOTE).map_err(io_error)).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        self.blocking(|store| {
            let last_purged_log_id: Option<RaftLogId> =
                store.meta(meta::PURGED).map_err(io_error)?;
            let last = store.db.iterator_cf(store.cf(LOG), IteratorMode::End).next();
            let last_log_id = match last.transpose().map_err(io_error)? {
                Some((_, value)) => {
                    Some(codec::decode::<Entry>(&value).map_err(io_error)?.log_id())
                }
                None => last_purged_log_id,
            };
            Ok(LogState { last_purged_log_id, last_log_id })
        })
        .await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.blocking(move |store| {
            let mut batch = WriteBatch::default();
            store.put_meta(&mut batch, meta::VOTE, &vote).map_err(io_error)?;
            fail_point!("vote.begin");
            store.db.write(batch).map_err(io_error)
        })
        .await?;
        fail_point!("vote.written");
        self.durable().await?;
        fail_point!("vote.synced");
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut batch, mut needs) = (WriteBatch::default(), None);
        for entry in entries {
            if let EntryPayload::Normal(command) = &entry.payload {
                needs = needs.max(versions::since(command));
            }
            let bytes = codec::encode(&entry).map_err(io_error)?;
            batch.put_cf(self.store.cf(LOG), entry.log_id.index.to_be_bytes(), bytes);
        }
        self.store.raise_needs(&mut batch, needs).map_err(io_error)?;
        fail_point!("log.begin");
        // RocksDB lets a writer wait while its tables cannot be flushed fast enough.
        self.blocking(move |store| store.db.write(batch).map_err(io_error)).await?;
        fail_point!("log.written");
        self.store.syncer.after_sync(Box::new(|result| {
            fail_point!("log.synced");
            callback.io_completed(result);
        }));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.store.cf(LOG), from.to_be_bytes(), u64::MAX.to_be_bytes());
        self.blocking(move |store| store.db.write(batch).map_err(io_error)).await?;
        fail_point!("log.truncated");
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let end = (upto.index + 1).to_be_bytes();
        batch.delete_range_cf(self.store.cf(LOG), 0u64.to_be_bytes(), end);
        batch.put_cf(self.store.cf(META), meta::PURGED, codec::encode(&upto).map_err(io_error)?);
        self.blocking(move |store| store.db.write(batch).map_err(io_error)).await?;
        fail_point!("log.purged");
        Ok(())
    }
}
