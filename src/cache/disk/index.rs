//! What is remembered about the files across restarts, in RocksDB.
//!
//! Invariant: the index is never the only truth about bytes. A file without a
//! record is verified and adopted, a record without a file is dropped, so a
//! record may be written without fsync and the whole index may be lost: that
//! costs hints, never a wrong answer. Only the upload queue is written through.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kiln_proto::Digest;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, IteratorMode, Options,
    WriteBatch, WriteOptions,
};
use serde::{Serialize, de::DeserializeOwned};

use super::record::{Piece, Record};
use crate::cache::TierError;

const FILES: &str = "files";
const UPLOADS: &str = "uploads";
const FAMILIES: [&str; 2] = [FILES, UPLOADS];
/// Before the digest of a whole, among the files: an earlier version opens no family that
/// it does not know, but passes over such a row.
const WHOLE: u8 = b'w';
/// RocksDB's own files: descriptors, memory and logs stay small, for it holds
/// a hundred bytes a blob.
const OPEN_FILES: i32 = 32;
const WRITE_BUFFER: usize = 4 << 20;
const BLOCK_CACHE: usize = 8 << 20;
const LOG_BYTES: usize = 1 << 20;

pub(super) struct Index {
    db: DB,
}

impl Index {
    /// Opens the index at `path`. One that cannot be read is set aside, and a
    /// fresh one opened: whether that happened is the second value.
    pub(super) fn open(path: &Path) -> Result<(Self, bool), TierError> {
        let broken = match Self::open_readable(path) {
            Ok(index) => return Ok((index, false)),
            Err(e) if is_corrupt(&e) => e,
            Err(e) => return Err(failed("open index", e)),
        };
        tracing::warn!(path = %path.display(), error = %broken,
            "the disk tier's index cannot be read; building a new one from the files");
        let aside = path.with_extension("broken");
        remove_folder(&aside).map_err(|e| TierError::disk("remove old broken index", 0, e))?;
        fs::rename(path, &aside).map_err(|e| TierError::disk("set broken index aside", 0, e))?;
        let index = Self::open_readable(path).map_err(|e| failed("open fresh index", e))?;
        Ok((index, true))
    }

    /// Opens and reads all of it once, so that damage shows now.
    fn open_readable(path: &Path) -> Result<Self, rocksdb::Error> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(OPEN_FILES);
        options.set_write_buffer_size(WRITE_BUFFER);
        options.set_max_total_wal_size(4 * WRITE_BUFFER as u64);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(LOG_BYTES);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE));
        options.set_block_based_table_factory(&blocks);
        // RocksDB opens all families or none: those of a later version are left alone. Where
        // they cannot be listed, the open says why.
        let mut names = DB::list_cf(&options, path).unwrap_or_default();
        names.extend(FAMILIES.map(String::from));
        names.sort_unstable();
        names.dedup();
        let families = names.iter().map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
        let index = Self { db: DB::open_cf_descriptors(&options, path, families)? };
        for name in FAMILIES {
            for row in index.db.iterator_cf(index.family(name), IteratorMode::Start) {
                row?;
            }
        }
        Ok(index)
    }

    /// All file records; one that cannot be decoded is as good as none.
    pub(super) fn files(&self) -> Result<Vec<(Digest, Record)>, TierError> {
        self.rows(FILES, |key| Digest::try_from(key).ok())
    }

    /// Which blobs are of no use without which others.
    pub(super) fn wholes(&self) -> Result<Vec<(Digest, Vec<Piece>)>, TierError> {
        self.rows(FILES, |key| Digest::try_from(key.strip_prefix(&[WHOLE])?).ok())
    }

    /// Remembers all pieces of `whole`; none: it is no whole.
    pub(super) fn put_whole(&self, whole: &Digest, pieces: &[Piece]) -> Result<(), TierError> {
        let (files, row) = (self.family(FILES), whole_row(whole));
        let written = match pieces {
            [] => self.db.delete_cf(files, row),
            pieces => self.db.put_cf(files, row, encode(&pieces)?),
        };
        written.map_err(|e| failed("write whole", e))
    }

    /// All uploads that wait.
    pub(super) fn uploads(&self) -> Result<Vec<Digest>, TierError> {
        let rows: Vec<(Digest, ())> = self.rows(UPLOADS, |key| Digest::try_from(key).ok())?;
        Ok(rows.into_iter().map(|(digest, ())| digest).collect())
    }

    /// The rows of a family whose keys name a digest.
    fn rows<T: DeserializeOwned>(
        &self,
        name: &str,
        digest: impl Fn(&[u8]) -> Option<Digest>,
    ) -> Result<Vec<(Digest, T)>, TierError> {
        let rows = self.db.iterator_cf(self.family(name), IteratorMode::Start);
        rows.filter_map(|row| match row {
            Ok((key, value)) => {
                let digest = digest(&key)?;
                Some(Ok((digest, postcard::from_bytes(&value).ok()?)))
            }
            Err(e) => Some(Err(failed("read index", e))),
        })
        .collect()
    }

    /// Stores and deletes file records in one write; what is deleted is no whole any more.
    pub(super) fn write(
        &self,
        stored: &[(Digest, Record)],
        deleted: &[Digest],
    ) -> Result<(), TierError> {
        if stored.is_empty() && deleted.is_empty() {
            return Ok(());
        }
        let files = self.family(FILES);
        let mut batch = WriteBatch::default();
        for (digest, record) in stored {
            batch.put_cf(files, digest.as_bytes(), encode(record)?);
        }
        for digest in deleted {
            batch.delete_cf(files, digest.as_bytes());
            batch.delete_cf(files, whole_row(digest));
        }
        self.db.write(batch).map_err(|e| failed("write index", e))
    }

    /// Remembers an upload, durably: it is a promise.
    pub(super) fn put_upload(&self, digest: &Digest) -> Result<(), TierError> {
        self.db
            .put_cf_opt(self.family(UPLOADS), digest.as_bytes(), [], &durable())
            .map_err(|e| failed("queue upload", e))
    }

    /// An upload that is done or pointless. Done twice is harmless: no fsync.
    pub(super) fn delete_upload(&self, digest: &Digest) -> Result<(), TierError> {
        self.db
            .delete_cf(self.family(UPLOADS), digest.as_bytes())
            .map_err(|e| failed("finish upload", e))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every column family is made by open")
    }
}

fn whole_row(whole: &Digest) -> [u8; 33] {
    let mut row = [WHOLE; 33];
    row[1..].copy_from_slice(whole.as_bytes());
    row
}

fn durable() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, TierError> {
    postcard::to_stdvec(value)
        .map_err(|e| TierError::disk("encode index record", 0, io::Error::other(e)))
}

/// RocksDB reports a missing or torn file of its own as an I/O error that names
/// the file, or as a corruption.
fn is_corrupt(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => true,
        rocksdb::ErrorKind::IOError => error.to_string().contains("No such file"),
        rocksdb::ErrorKind::InvalidArgument => error.to_string().contains("does not exist"),
        _ => false,
    }
}

fn failed(action: &'static str, error: rocksdb::Error) -> TierError {
    let full = error.to_string().contains("No space left on device");
    let source = match full {
        true => io::Error::new(io::ErrorKind::StorageFull, error),
        false => io::Error::other(error),
    };
    TierError::disk(action, 0, source)
}

fn remove_folder(path: &PathBuf) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
