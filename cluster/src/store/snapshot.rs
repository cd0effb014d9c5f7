//! The whole state on its way to another node.
//!
//! Invariant: a snapshot is one consistent view with the log id that it is of. A
//! received one is complete and checked on disk before it replaces anything, and
//! a crash in the middle of the replacement is finished at the next start.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_proto::Digest;
use openraft::{Snapshot, alias};
use rocksdb::{IteratorMode, WriteBatch};
use tokio::sync::{mpsc, oneshot};

use super::{
    db::Store,
    meta::{self, Applied, META},
};
use crate::{
    codec,
    error::{ClusterError, io_error},
    raft::{SnapshotMeta, Types},
    table::Table,
};

/// Bytes of records in one message, about.
const CHUNK: usize = 256 << 10;
/// Largest record or chunk that is taken from another node, in bytes.
const MOST_CHUNK: usize = 64 << 20;

/// One record: table, key, value.
type Pair = (Table, Bytes, Bytes);

/// A byte string that is copied whole.
#[derive(serde::Serialize, serde::Deserialize)]
struct Bytes(#[serde(with = "codec::byte_string")] Vec<u8>);

/// A snapshot's records.
pub(crate) enum SnapshotData {
    /// Read from this node's state while it is sent.
    Live(mpsc::Receiver<io::Result<Vec<u8>>>),
    /// Received and complete on disk.
    Staged(Staged),
}

/// A received snapshot on disk; the file goes with it.
pub(crate) struct Staged {
    path: PathBuf,
    keep: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a snapshot");
        }
    }
}

impl Staged {
    /// The file's name within its folder.
    pub(super) fn name(&self) -> io::Result<String> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        Ok(name.ok_or_else(|| io::Error::other("a snapshot without a name"))?.to_owned())
    }

    /// Leaves the file behind, as a crash would.
    #[cfg(test)]
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

/// The state as it is now, in a view that later commands do not change.
pub(super) async fn of_now(
    store: Arc<Store>,
) -> io::Result<alias::SnapshotOf<Types, SnapshotData>> {
    let (tell_meta, meta) = oneshot::channel();
    let (chunks, data) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let view = store.db.snapshot();
        let applied = || -> io::Result<Applied> {
            let bytes = view.get_pinned_cf(store.cf(META), meta::APPLIED).map_err(io_error)?;
            Ok(bytes.map(|b| codec::decode(&b)).transpose().map_err(io_error)?.unwrap_or_default())
        };
        let meta = applied().map(|applied| SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership,
        });
        if tell_meta.send(meta).is_err() {
            return;
        }
        let mut pairs: Vec<Pair> = Vec::new();
        let mut size = 0;
        let flush = |pairs: &mut Vec<Pair>| {
            let chunk = codec::encode(pairs).map_err(io_error);
            pairs.clear();
            chunks.blocking_send(chunk).is_ok()
        };
        for table in Table::ALL {
            for pair in view.iterator_cf(store.cf(table.name()), IteratorMode::Start) {
                match pair {
                    Ok((key, value)) => {
                        size += key.len() + value.len();
                        pairs.push((table, Bytes(key.into_vec()), Bytes(value.into_vec())));
                    }
                    Err(e) => {
                        // A receiver that is gone needs no reason either.
                        drop(chunks.blocking_send(Err(io_error(e))));
                        return;
                    }
                }
                if size >= CHUNK {
                    size = 0;
                    if !flush(&mut pairs) {
                        return;
                    }
                }
            }
        }
        if !pairs.is_empty() {
            flush(&mut pairs);
        }
    });
    let meta = meta.await.map_err(io_error)??;
    Ok(Snapshot { meta, snapshot: SnapshotData::Live(data) })
}

impl Store {
    /// The applied index and the digest of all tables at it.
    pub(crate) fn digest(&self) -> Result<(u64, Digest), ClusterError> {
        let view = self.db.snapshot();
        let applied = view.get_pinned_cf(self.cf(META), meta::APPLIED);
        let applied = applied.map_err(ClusterError::storage)?;
        let applied: Applied = applied.map(|b| codec::decode(&b)).transpose()?.unwrap_or_default();
        let mut hasher = kiln_proto::Hasher::new();
        for table in Table::ALL {
            for pair in view.iterator_cf(self.cf(table.name()), IteratorMode::Start) {
                let (key, value) = pair.map_err(ClusterError::storage)?;
                for part in [table.name().as_bytes(), &key, &value] {
                    hasher.update(&(part.len() as u64).to_be_bytes());
                    hasher.update(part);
                }
            }
        }
        Ok((applied.last.map_or(0, |id| id.index), hasher.finalize().into()))
    }
}

impl SnapshotData {
    /// The records on disk, whole.
    pub(super) async fn stage(self, store: &Store, meta: &SnapshotMeta) -> io::Result<Staged> {
        match self {
            Self::Staged(staged) => Ok(staged),
            Self::Live(mut chunks) => {
                let mut staging = Staging::create(store.incoming(), meta)?;
                while let Some(chunk) = chunks.recv().await {
                    staging.push(&chunk?)?;
                }
                staging.finish()
            }
        }
    }
}

/// A snapshot that is being received.
pub(crate) struct Staging {
    staged: Staged,
    file: BufWriter<File>,
    hasher: kiln_proto::Hasher,
}

impl Staging {
    /// Starts a file in `dir`.
    pub(crate) fn create(dir: &Path, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(io_error)?;
        let path = dir.join(format!("{}.snapshot", hex::encode(name)));
        let file = BufWriter::new(File::create_new(&path)?);
        let staged = Staged { path, keep: false };
        let mut staging = Self { staged, file, hasher: kiln_proto::Hasher::new() };
        staging.push(&codec::encode(meta).map_err(io_error)?)?;
        Ok(staging)
    }

    /// Adds one chunk.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        if chunk.is_empty() || chunk.len() > MOST_CHUNK {
            return Err(io::Error::other(format!("a snapshot chunk of {} bytes", chunk.len())));
        }
        let size = u32::try_from(chunk.len()).map_err(io_error)?.to_be_bytes();
        self.hasher.update(&size);
        self.hasher.update(chunk);
        self.file.write_all(&size)?;
        self.file.write_all(chunk)
    }

    /// Ends the file and makes it durable.
    pub(crate) fn finish(mut self) -> io::Result<Staged> {
        self.file.write_all(&0u32.to_be_bytes())?;
        self.file.write_all(self.hasher.finalize().as_bytes())?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        if let Some(dir) = self.staged.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(self.staged)
    }
}

/// Reads a staged file's chunks in order, the meta data first; the end is
/// reached only if the whole file is as it was written.
fn read_chunks(
    path: &Path,
    mut take: impl FnMut(usize, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let mut hasher = kiln_proto::Hasher::new();
    let mut chunk = Vec::new();
    for at in 0.. {
        let mut size = [0; 4];
        file.read_exact(&mut size)?;
        let length = u32::from_be_bytes(size) as usize;
        if length == 0 {
            break;
        }
        if length > MOST_CHUNK {
            return Err(io::Error::other("a staged snapshot is damaged"));
        }
        chunk.resize(length, 0);
        file.read_exact(&mut chunk)?;
        hasher.update(&size);
        hasher.update(&chunk);
        take(at, &chunk)?;
    }
    let mut digest = [0; 32];
    file.read_exact(&mut digest)?;
    if hasher.finalize().as_bytes() != &digest {
        return Err(io::Error::other("a staged snapshot is damaged"));
    }
    Ok(())
}

/// Replaces the state by the staged one.
pub(super) fn install(store: &Store, staged: &Staged) -> io::Result<()> {
    let _one_at_a_time = store.install.lock();
    read_chunks(&staged.path, |_, _| Ok(()))?;
    let mut batch = WriteBatch::default();
    store.put_meta(&mut batch, meta::INSTALLING, &staged.name()?).map_err(io_error)?;
    for table in Table::ALL {
        batch.delete_range_cf(store.cf(table.name()), &[][..], &[0xff; 64][..]);
    }
    batch.delete_cf(store.cf(META), meta::APPLIED);
    store.db.write(batch).map_err(io_error)?;
    store.db.flush_wal(true).map_err(io_error)?;

    let mut applied = Applied::default();
    read_chunks(&staged.path, |at, chunk| {
        if at == 0 {
            let meta: SnapshotMeta = codec::decode(chunk).map_err(io_error)?;
            applied = Applied { last: meta.last_log_id, membership: meta.last_membership };
            return Ok(());
        }
        let pairs: Vec<Pair> = codec::decode(chunk).map_err(io_error)?;
        let mut batch = WriteBatch::default();
        for (table, Bytes(key), Bytes(value)) in pairs {
            batch.put_cf(store.cf(table.name()), key, value);
        }
        store.db.write(batch).map_err(io_error)
    })?;

    let mut batch = WriteBatch::default();
    store.put_meta(&mut batch, meta::APPLIED, &applied).map_err(io_error)?;
    batch.delete_cf(store.cf(META), meta::INSTALLING);
    store.db.write(batch).map_err(io_error)?;
    store.db.flush_wal(true).map_err(io_error)
}

/// Finishes a replacement that a crash interrupted, and removes what is left of
/// snapshots that never arrived whole.
pub(super) fn finish_interrupted_install(store: &Store) -> Result<(), ClusterError> {
    let failed = |e: io::Error| ClusterError::storage(format!("received snapshots: {e}"));
    let interrupted: Option<String> = store.meta(meta::INSTALLING)?;
    if let Some(name) = &interrupted {
        tracing::info!("finishing the installation of a snapshot");
        let staged = Staged { path: store.incoming().join(name), keep: true };
        install(store, &staged).map_err(failed)?;
    }
    for file in std::fs::read_dir(store.incoming()).map_err(failed)? {
        std::fs::remove_file(file.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(())
}
