//! Raft's log and vote on disk.
//!
//! Invariant: entries are readable when `append` returns, and durable when its
//! callback is called; the log has no hole, because appends, truncations and
//! purges reach the one write-ahead log in the order in which they were asked.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use rocksdb::{IteratorMode, WriteBatch};
use tokio::sync::oneshot;

use super::{
    db::{LOG, Store},
    meta::{self, META},
};
use crate::{
    codec,
    error::io_error,
    raft::{Entry, RaftLogId, Types, Vote},
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

    fn entries(
        &self,
        range: &(impl RangeBounds<u64> + Debug),
        most_bytes: usize,
    ) -> io::Result<Vec<Entry>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match range.start_bound() {
            Included(at) => *at,
            Excluded(at) => at + 1,
            Unbounded => 0,
        };
        let within = |index: u64| match range.end_bound() {
            Included(end) => index <= *end,
            Excluded(end) => index < *end,
            Unbounded => true,
        };
        if !within(start) {
            return Ok(Vec::new());
        }
        let start = start.to_be_bytes();
        let mode = IteratorMode::From(&start, rocksdb::Direction::Forward);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for pair in self.store.db.iterator_cf(self.store.cf(LOG), mode) {
            let (_, value) = pair.map_err(io_error)?;
            let entry: Entry = codec::decode(&value).map_err(io_error)?;
            bytes += value.len();
            if !within(entry.log_id.index) || (bytes > most_bytes && !found.is_empty()) {
                break;
            }
            found.push(entry);
        }
        Ok(found)
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

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.entries(&range, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(&(start..end), MOST_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.store.meta(meta::VOTE).map_err(io_error)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let last_purged_log_id: Option<RaftLogId> =
            self.store.meta(meta::PURGED).map_err(io_error)?;
        let last = self.store.db.iterator_cf(self.store.cf(LOG), IteratorMode::End).next();
        let last_log_id = match last.transpose().map_err(io_error)? {
            Some((_, value)) => Some(codec::decode::<Entry>(&value).map_err(io_error)?.log_id()),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        self.store.put_meta(&mut batch, meta::VOTE, vote).map_err(io_error)?;
        self.store.db.write(batch).map_err(io_error)?;
        self.durable().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        for entry in entries {
            let bytes = codec::encode(&entry).map_err(io_error)?;
            batch.put_cf(self.store.cf(LOG), entry.log_id.index.to_be_bytes(), bytes);
        }
        self.store.db.write(batch).map_err(io_error)?;
        self.store.syncer.after_sync(Box::new(|result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.store.cf(LOG), from.to_be_bytes(), u64::MAX.to_be_bytes());
        self.store.db.write(batch).map_err(io_error)
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let end = (upto.index + 1).to_be_bytes();
        batch.delete_range_cf(self.store.cf(LOG), 0u64.to_be_bytes(), end);
        batch.put_cf(self.store.cf(META), meta::PURGED, codec::encode(&upto).map_err(io_error)?);
        self.store.db.write(batch).map_err(io_error)
    }
}
