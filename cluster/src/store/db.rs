//! Everything a member keeps on disk, in one RocksDB with one write-ahead log.
//!
//! The state is kept in one of two sets of column families; a snapshot is installed
//! into the other one, which becomes the live set in one batch.
//!
//! Invariant: what was acknowledged was fsynced, and what is on disk after a
//! power loss is a prefix of what was written: log, vote and state share one
//! write-ahead log, so none of them is ever ahead of what it depends on. A view reads
//! one set, which is not cleared while the view is held.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fail::fail_point;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DataBlockIndexType, ErrorKind, IteratorMode, LogLevel, Options, PrefixRange, ReadOptions,
    ReadTier, WriteBatch,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    meta::{self, Applied, META, Owner, Set},
    needs::{self, Needs},
};
use crate::{
    codec,
    command::NewNode,
    endorsement::Admitted,
    environment::{Disk, Syncs},
    error::ClusterError,
    table::{Changes, Pairs, StateError, Table, View},
};

/// The column family of Raft's log.
pub(super) const LOG: &str = "log";

/// Bounds of what RocksDB keeps in memory, in bytes: of the entries with their
/// manifests, of which the page cache has the rest, and of the many small records.
const ENTRY_CACHE: usize = 32 << 20;
const RECORD_CACHE: usize = 64 << 20;
/// Bytes of one cached block, about.
const BLOCK: usize = 4 << 10;
const WRITE_BUFFERS: usize = 48 << 20;
/// Tables that are open at once: those of an index of some gigabytes. Others are opened
/// again when they are read.
const OPEN_FILES: i32 = 128;
/// Most bytes of write-ahead log before tables are flushed to shorten it.
const LONGEST_WAL: u64 = 128 << 20;

/// The database of one member.
pub(crate) struct Store {
    pub(super) db: Arc<DB>,
    pub(super) syncer: Box<dyn Syncs>,
    /// The set that the state is in. Read-locked while it is read, write-locked while
    /// another set takes its place.
    pub(super) live: RwLock<Set>,
    /// Which version it takes to read all this.
    pub(super) needs: Needs,
    /// Taken while a received snapshot replaces the state.
    pub(super) install: Mutex<()>,
    /// How a read says that it does not wait for the disk.
    in_memory: ReadOptions,
    incoming: PathBuf,
}

/// Drops what a later version made for its records, and did not use yet: its commands wait
/// until all nodes run it, so a node may go back before. `Storage`: there are such records.
fn drop_unused(db: &mut DB, later: &[String]) -> Result<(), ClusterError> {
    for name in later {
        let used = match db.cf_handle(name) {
            Some(family) => db.iterator_cf(family, IteratorMode::Start).next().is_some(),
            None => false,
        };
        if used {
            return Err(ClusterError::storage(format!(
                "the index has {name:?}, which a later version of Kiln wrote: start the node with \
                 that version"
            )));
        }
        tracing::warn!(name, "an unused table of a later version is dropped");
        db.drop_cf(name).map_err(ClusterError::storage)?;
    }
    Ok(())
}

impl Store {
    /// About the bytes of the log, in memory and on disk; 0 where RocksDB does not say.
    pub(crate) fn log_bytes(&self) -> u64 {
        let parts = ["rocksdb.cur-size-all-mem-tables", "rocksdb.estimate-live-data-size"];
        let read = |name| self.db.property_int_value_cf(self.cf(LOG), name);
        parts.into_iter().filter_map(|name| read(name).ok().flatten()).sum()
    }

    /// Opens or creates the database below `data_dir`.
    pub(super) fn open(
        data_dir: &Path,
        disk: &dyn Disk,
        program: &str,
    ) -> Result<Arc<Self>, ClusterError> {
        let (dir, incoming) = (Self::folder(data_dir), data_dir.join("incoming"));
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
        options.set_max_open_files(OPEN_FILES);
        let entries = Cache::new_hyper_clock_cache(ENTRY_CACHE, BLOCK);
        let records = Cache::new_hyper_clock_cache(RECORD_CACHE, BLOCK);
        let descriptor = |name: &str, point_reads: bool, buffer: usize| {
            let mut table = BlockBasedOptions::default();
            let mut cf = Options::default();
            cf.set_write_buffer_size(buffer);
            if name.starts_with(Table::Entries.name()) {
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
            families.push(descriptor(Set::A.family(table), true, buffer));
            families.push(descriptor(Set::B.family(table), true, buffer));
        }
        let known: Vec<String> = families.iter().map(|family| family.name().to_owned()).collect();
        // RocksDB opens all families or none. Where they cannot be listed, the open says why.
        let mut later = DB::list_cf(&options, &dir).unwrap_or_default();
        later.retain(|name| !known.contains(name));
        families.extend(later.iter().map(|name| descriptor(name, true, 1 << 20)));
        let mut db = DB::open_cf_descriptors(&options, &dir, families)
            .map_err(|e| ClusterError::storage(format!("open {}: {e}", dir.display())))?;
        let needs = needs::check(&db, program)?;
        drop_unused(&mut db, &later)?;
        let db = Arc::new(db);
        let syncer = disk.syncer(Arc::clone(&db)).map_err(ClusterError::storage)?;
        let live = RwLock::new(Set::A);
        let in_memory = in_memory();
        let install = Mutex::new(());
        let store = Self { db, syncer, live, needs, install, in_memory, incoming };
        let live = store.meta(meta::LIVE)?.unwrap_or_default();
        *store.live.write() = live;
        Ok(Arc::new(store))
    }

    /// The database's own folder.
    pub(super) fn folder(data_dir: &Path) -> PathBuf {
        data_dir.join("index")
    }

    /// Who the data belongs to; `None` on an empty disk.
    pub(crate) fn owner(&self) -> Result<Option<Owner>, ClusterError> {
        self.meta(meta::OWNER).map_err(ClusterError::storage)
    }

    /// Marks the data as this node's, durably.
    pub(crate) fn set_owner(&self, owner: Owner) -> Result<(), ClusterError> {
        let bytes = codec::encode(&owner)?;
        self.db.put_cf(self.cf(META), meta::OWNER, bytes).map_err(ClusterError::storage)?;
        fail_point!("owner.written");
        self.db.flush_wal(true).map_err(ClusterError::storage)?;
        fail_point!("owner.synced");
        Ok(())
    }

    /// What this node was given as it was let in; `None`: by a member of an earlier version.
    pub(crate) fn admitted(&self) -> Result<Option<Admitted>, ClusterError> {
        self.meta(meta::ADMITTED).map_err(ClusterError::storage)
    }

    /// Notes it; durable with the next owner, or [`Self::sync`].
    pub(crate) fn set_admitted(&self, admitted: &Admitted) -> Result<(), ClusterError> {
        let bytes = codec::encode(admitted)?;
        self.db.put_cf(self.cf(META), meta::ADMITTED, bytes).map_err(ClusterError::storage)
    }

    /// Takes that note back.
    pub(crate) fn clear_admitted(&self) -> Result<(), ClusterError> {
        self.db.delete_cf(self.cf(META), meta::ADMITTED).map_err(ClusterError::storage)
    }

    /// Makes all that was noted durable.
    pub(crate) fn sync(&self) -> Result<(), ClusterError> {
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

    /// How far the state has come.
    pub(crate) fn applied(&self) -> Result<Applied, StateError> {
        Ok(self.meta(meta::APPLIED)?.unwrap_or_default())
    }

    /// Where snapshots from other nodes are received.
    pub(crate) fn incoming(&self) -> &Path {
        &self.incoming
    }

    pub(super) fn cf(&self, name: &str) -> &ColumnFamily {
        match self.db.cf_handle(name) {
            Some(cf) => cf,
            // `open` creates every family that this program names.
            None => unreachable!("column family {name} was opened"),
        }
    }

    pub(super) fn meta<T: DeserializeOwned>(
        &self,
        key: &'static str,
    ) -> Result<Option<T>, StateError> {
        let bytes = self.db.get_pinned_cf(self.cf(META), key);
        let bytes = bytes.map_err(|e| StateError::Read(key, e))?;
        Ok(bytes.map(|b| codec::decode(&b)).transpose()?)
    }

    pub(super) fn put_meta<T: Serialize>(
        &self,
        batch: &mut WriteBatch,
        key: &str,
        value: &T,
    ) -> Result<(), StateError> {
        batch.put_cf(self.cf(META), key, codec::encode(value)?);
        Ok(())
    }

    /// The state as of now. Hold it for one read of some records, and never across
    /// an await: a set that is read is not swapped.
    pub(crate) fn view(&self) -> StateView<'_> {
        StateView { store: self, set: self.live.read_recursive(), in_memory: false }
    }

    /// Like [`Store::view`]; what it would have to read from the disk is
    /// [`StateError::NotInMemory`].
    pub(crate) fn view_in_memory(&self) -> StateView<'_> {
        StateView { in_memory: true, ..self.view() }
    }

    /// Up to `limit` pairs of `table` from `start` on.
    pub(crate) fn scan(
        &self,
        table: Table,
        start: &[u8],
        limit: usize,
    ) -> Result<Pairs, StateError> {
        self.view().scan(table, start, limit)
    }
}

/// Reads that fail with [`ErrorKind::Incomplete`] where they would have to wait for the
/// disk.
pub(super) fn in_memory() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_read_tier(ReadTier::BlockCache);
    options
}

/// The live set, which no snapshot replaces while this is held.
pub(crate) struct StateView<'a> {
    store: &'a Store,
    set: RwLockReadGuard<'a, Set>,
    in_memory: bool,
}

impl StateView<'_> {
    fn cf(&self, table: Table) -> &ColumnFamily {
        self.store.cf(self.set.family(table))
    }

    /// Up to `limit` pairs of `table` from `start` on.
    pub(crate) fn scan(
        &self,
        table: Table,
        start: &[u8],
        limit: usize,
    ) -> Result<Pairs, StateError> {
        let mode = IteratorMode::From(start, rocksdb::Direction::Forward);
        let pairs = self.store.db.iterator_cf(self.cf(table), mode).take(limit);
        pairs
            .map(|pair| pair.map(|(k, v)| (k.into_vec(), v.into_vec())))
            .collect::<Result<_, _>>()
            .map_err(|e| StateError::Read(table.name(), e))
    }

    pub(super) fn put_changes(&self, batch: &mut WriteBatch, changes: &Changes) {
        for ((table, key), value) in changes {
            match value {
                Some(value) => batch.put_cf(self.cf(*table), key, value),
                None => batch.delete_cf(self.cf(*table), key),
            }
        }
    }
}

impl View for StateView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError> {
        let (db, cf) = (&self.store.db, self.cf(table));
        let bytes = match self.in_memory {
            true => db.get_pinned_cf_opt(cf, key, &self.store.in_memory),
            false => db.get_pinned_cf(cf, key),
        };
        bytes.map_err(|e| match e.kind() {
            ErrorKind::Incomplete if self.in_memory => StateError::NotInMemory(table.name()),
            _ => StateError::Read(table.name(), e),
        })
    }

    fn all(&self, table: Table) -> Result<Pairs, StateError> {
        self.scan(table, &[], usize::MAX)
    }

    fn starting_with(&self, table: Table, prefix: &[u8]) -> Result<Pairs, StateError> {
        let mut options = ReadOptions::default();
        // Or else the end would be looked for beyond all that was removed behind it.
        options.set_iterate_range(PrefixRange(prefix));
        let pairs = self.store.db.iterator_cf_opt(self.cf(table), options, IteratorMode::Start);
        pairs
            .map(|pair| pair.map(|(k, v)| (k.into_vec(), v.into_vec())))
            .collect::<Result<_, _>>()
            .map_err(|e| StateError::Read(table.name(), e))
    }
}

/// Reads one record each, for callers that need no more than that at once.
impl View for Store {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError> {
        let live = self.live.read_recursive();
        // What was found is pinned: clearing the set later does not touch it.
        let bytes = self.db.get_pinned_cf(self.cf(live.family(table)), key);
        bytes.map_err(|e| StateError::Read(table.name(), e))
    }

    fn all(&self, table: Table) -> Result<Pairs, StateError> {
        self.scan(table, &[], usize::MAX)
    }

    fn starting_with(&self, table: Table, prefix: &[u8]) -> Result<Pairs, StateError> {
        self.view().starting_with(table, prefix)
    }
}
