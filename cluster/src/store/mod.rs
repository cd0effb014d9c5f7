//! Everything a member keeps on disk, in one RocksDB with one write-ahead log.
//!
//! Invariant: what was acknowledged was fsynced, and what is on disk after a
//! power loss is a prefix of what was written: log, vote and state share one
//! write-ahead log, so none of them is ever ahead of what it depends on.

mod log;
mod machine;
mod snapshot;
mod sync;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_proto::NodeId;
use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DataBlockIndexType, IteratorMode, LogLevel, Options, WriteBatch,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::sync::Syncer;
pub(crate) use self::{
    log::LogStore,
    machine::Machine,
    snapshot::{SnapshotData, Staging},
};
use crate::{
    codec,
    command::NewNode,
    error::ClusterError,
    table::{Changes, Pairs, StateError, Table, View},
};

const LOG: &str = "log";
const META: &str = "meta";

/// Bounds of what RocksDB keeps in memory, in bytes: of the entries with their
/// manifests, of which the page cache has the rest, and of the many small records.
const ENTRY_CACHE: usize = 32 << 20;
const RECORD_CACHE: usize = 64 << 20;
/// Bytes of one cached block, about.
const BLOCK: usize = 4 << 10;
const WRITE_BUFFERS: usize = 48 << 20;
/// Most bytes of write-ahead log before tables are flushed to shorten it.
const LONGEST_WAL: u64 = 128 << 20;

/// The keys of the `meta` column family.
mod meta {
    pub(super) const VOTE: &str = "vote";
    pub(super) const PURGED: &str = "purged";
    pub(super) const APPLIED: &str = "applied";
    pub(super) const OWNER: &str = "owner";
    pub(super) const FOUNDERS: &str = "founders";
    pub(super) const INSTALLING: &str = "installing";
}

/// Which node of which cluster the data belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub cluster: u64,
    pub node: NodeId,
}

/// The database of one member.
pub(crate) struct Store {
    db: Arc<DB>,
    syncer: Syncer,
    /// Taken while a received snapshot replaces the state.
    install: Mutex<()>,
    incoming: PathBuf,
}

impl Store {
    /// Opens or creates the database below `data_dir`.
    pub(crate) fn open(data_dir: &Path) -> Result<Arc<Self>, ClusterError> {
        let (dir, incoming) = (data_dir.join("index"), data_dir.join("incoming"));
        std::fs::create_dir_all(&incoming)
            .map_err(|e| ClusterError::storage(format!("create {}: {e}", incoming.display())))?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_background_jobs(2);
        options.set_db_write_buffer_size(WRITE_BUFFERS);
        options.set_max_total_wal_size(LONGEST_WAL);
        // Writes are collected in memory until the next sync takes them all.
        options.set_manual_wal_flush(true);
        // Reused log files are already allocated: an fsync then writes no metadata.
        options.set_recycle_log_file_num(2);
        options.set_log_level(LogLevel::Warn);
        options.set_keep_log_file_num(2);
        let entries = Cache::new_hyper_clock_cache(ENTRY_CACHE, BLOCK);
        let records = Cache::new_hyper_clock_cache(RECORD_CACHE, BLOCK);
        let descriptor = |name: &str, point_reads: bool, buffer: usize| {
            let mut table = BlockBasedOptions::default();
            let mut cf = Options::default();
            cf.set_write_buffer_size(buffer);
            if name == Table::Entries.name() {
                // Manifests are mostly digests: there is little to compress, and every look-up
                // of a cold key would pay for it.
                cf.set_compression_type(DBCompressionType::None);
                table.set_block_cache(&entries);
            } else {
                cf.set_compression_type(DBCompressionType::Lz4);
                table.set_block_cache(&records);
            }
            if point_reads {
                table.set_bloom_filter(10.0, false);
                table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
                cf.set_memtable_whole_key_filtering(true);
                cf.set_memtable_prefix_bloom_ratio(0.05);
            }
            cf.set_block_based_table_factory(&table);
            ColumnFamilyDescriptor::new(name, cf)
        };
        let mut families = vec![
            descriptor(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, false, 1 << 20),
            descriptor(META, false, 1 << 20),
            descriptor(LOG, false, 16 << 20),
        ];
        for table in Table::ALL {
            let buffer = if table == Table::Entries { 16 << 20 } else { 4 << 20 };
            families.push(descriptor(table.name(), true, buffer));
        }
        let db = DB::open_cf_descriptors(&options, &dir, families)
            .map_err(|e| ClusterError::storage(format!("open {}: {e}", dir.display())))?;
        let db = Arc::new(db);
        let syncer = Syncer::spawn(Arc::clone(&db)).map_err(ClusterError::storage)?;
        let store = Arc::new(Self { db, syncer, install: Mutex::new(()), incoming });
        snapshot::finish_interrupted_install(&store)?;
        Ok(store)
    }

    /// Who the data belongs to; `None` on an empty disk.
    pub(crate) fn owner(&self) -> Result<Option<Owner>, ClusterError> {
        self.meta(meta::OWNER).map_err(ClusterError::storage)
    }

    /// Marks the data as this node's, durably.
    pub(crate) fn set_owner(&self, owner: Owner) -> Result<(), ClusterError> {
        let bytes = codec::encode(&owner)?;
        self.db.put_cf(self.cf(META), meta::OWNER, bytes).map_err(ClusterError::storage)?;
        self.db.flush_wal(true).map_err(ClusterError::storage)
    }

    /// The first nodes of a cluster that this node is founding.
    pub(crate) fn founders(&self) -> Result<Option<Vec<NewNode>>, ClusterError> {
        self.meta(meta::FOUNDERS).map_err(ClusterError::storage)
    }

    /// Notes them; durable with the next owner.
    pub(crate) fn set_founders(&self, founders: &[NewNode]) -> Result<(), ClusterError> {
        let bytes = codec::encode(&founders)?;
        self.db.put_cf(self.cf(META), meta::FOUNDERS, bytes).map_err(ClusterError::storage)
    }

    /// The cluster exists.
    pub(crate) fn clear_founders(&self) -> Result<(), ClusterError> {
        self.db.delete_cf(self.cf(META), meta::FOUNDERS).map_err(ClusterError::storage)
    }

    /// Where snapshots from other nodes are received.
    pub(crate) fn incoming(&self) -> &Path {
        &self.incoming
    }

    fn cf(&self, name: &str) -> &ColumnFamily {
        match self.db.cf_handle(name) {
            Some(cf) => cf,
            // `open` creates every family that this program names.
            None => unreachable!("column family {name} was opened"),
        }
    }

    fn meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, StateError> {
        let bytes = self.db.get_pinned_cf(self.cf(META), key);
        let bytes = bytes.map_err(|e| StateError::Read(key, e))?;
        Ok(bytes.map(|b| codec::decode(&b)).transpose()?)
    }

    fn put_meta<T: Serialize>(
        &self,
        batch: &mut WriteBatch,
        key: &str,
        value: &T,
    ) -> Result<(), StateError> {
        batch.put_cf(self.cf(META), key, codec::encode(value)?);
        Ok(())
    }

    fn put_changes(&self, batch: &mut WriteBatch, changes: &Changes) {
        for ((table, key), value) in changes {
            match value {
                Some(value) => batch.put_cf(self.cf(table.name()), key, value),
                None => batch.delete_cf(self.cf(table.name()), key),
            }
        }
    }

    /// Up to `limit` pairs of `table` from `start` on.
    pub(crate) fn scan(
        &self,
        table: Table,
        start: &[u8],
        limit: usize,
    ) -> Result<Pairs, StateError> {
        let mode = IteratorMode::From(start, rocksdb::Direction::Forward);
        let pairs = self.db.iterator_cf(self.cf(table.name()), mode).take(limit);
        pairs
            .map(|pair| pair.map(|(k, v)| (k.into_vec(), v.into_vec())))
            .collect::<Result<_, _>>()
            .map_err(|e| StateError::Read(table.name(), e))
    }
}

impl View for Store {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError> {
        let bytes = self.db.get_pinned_cf(self.cf(table.name()), key);
        bytes.map_err(|e| StateError::Read(table.name(), e))
    }

    fn all(&self, table: Table) -> Result<Pairs, StateError> {
        self.scan(table, &[], usize::MAX)
    }
}

#[cfg(test)]
mod tests;
