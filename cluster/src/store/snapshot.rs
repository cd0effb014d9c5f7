//! The whole state on its way to another node.
//!
//! Invariant: a snapshot is one consistent view with the log id that it is of.

use std::{io, sync::Arc};

use futures::StreamExt;
use kiln_proto::Digest;
use openraft::{Snapshot, alias};
use rocksdb::IteratorMode;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    db::Store,
    meta::{self, Applied, META},
    staging::{Staged, Staging},
};
use crate::{
    blocking, codec,
    error::{ClusterError, io_error},
    raft::{SnapshotMeta, Types},
    table::Table,
};

/// Bytes of records in one message, about.
const CHUNK: usize = 256 << 10;

/// One record: table, key, value.
pub(super) type Pair = (Table, Bytes, Bytes);

/// A byte string that is copied whole.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Bytes(#[serde(with = "codec::byte_string")] pub Vec<u8>);

/// A snapshot's records.
pub(crate) enum SnapshotData {
    /// Read from this node's state while it is sent.
    Live(mpsc::Receiver<io::Result<Vec<u8>>>),
    /// Received and complete on disk.
    Staged(Staged),
}

/// The state as it is now, in a view that later commands do not change.
pub(super) async fn of_now(
    store: Arc<Store>,
) -> io::Result<alias::SnapshotOf<Types, SnapshotData>> {
    let (send_meta, meta) = oneshot::channel();
    let (chunks, data) = mpsc::channel(4);
    // Goes on while the snapshot is sent.
    blocking::start(move || {
        let (view, set) = {
            let live = store.live.read_recursive();
            (store.db.snapshot(), *live)
        };
        let applied = || -> io::Result<Applied> {
            let bytes = view.get_pinned_cf(store.cf(META), meta::APPLIED).map_err(io_error)?;
            Ok(bytes.map(|b| codec::decode(&b)).transpose().map_err(io_error)?.unwrap_or_default())
        };
        let meta = applied().map(|applied| SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership,
        });
        if send_meta.send(meta).is_err() {
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
            for pair in view.iterator_cf(store.cf(set.family(table)), IteratorMode::Start) {
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
        let (view, set) = {
            let live = self.live.read_recursive();
            (self.db.snapshot(), *live)
        };
        let applied = view.get_pinned_cf(self.cf(META), meta::APPLIED);
        let applied = applied.map_err(ClusterError::storage)?;
        let applied: Applied = applied.map(|b| codec::decode(&b)).transpose()?.unwrap_or_default();
        let mut hasher = kiln_proto::Hasher::new();
        for table in Table::ALL {
            for pair in view.iterator_cf(self.cf(set.family(table)), IteratorMode::Start) {
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
            Self::Live(chunks) => {
                let chunks = ReceiverStream::new(chunks).map(|chunk| Ok(chunk?.into()));
                Staging::receive(store.incoming().to_owned(), meta.clone(), chunks).await
            }
        }
    }
}
