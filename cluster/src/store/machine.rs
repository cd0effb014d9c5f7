//! The state machine on disk.
//!
//! Invariant: the changes of a batch of commands and the log id of its last one
//! are written in one piece; answers and wake-ups follow the write.

use std::{io, sync::Arc, time::Instant};

use fail::fail_point;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, alias,
    entry::RaftEntry,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use rocksdb::WriteBatch;

use super::{
    db::Store,
    install,
    meta::{self, Applied},
    snapshot::{self, SnapshotData},
};
use crate::{
    blocking,
    command::Response,
    error::io_error,
    raft::{Membership, RaftLogId, SnapshotMeta, Types},
    state::{self, Event},
    table::Txn,
    watch::Watch,
};

/// Most commands in one write.
const MOST_COMMANDS: usize = 256;

type Snapshot = alias::SnapshotOf<Types, SnapshotData>;

/// Raft's view of the store: the state.
pub(crate) struct Machine {
    store: Arc<Store>,
    watch: Arc<Watch>,
    applied: Applied,
}

type Answers = Vec<(ApplyResponder<Types>, Response)>;

impl Machine {
    /// The state machine of `store`, which tells `watch` what it did.
    pub(crate) fn new(store: Arc<Store>, watch: Arc<Watch>) -> io::Result<Self> {
        let applied = store.applied().map_err(io_error)?;
        Ok(Self { store, watch, applied })
    }
}

/// Applies `entries` after `applied` and writes what they change. Blocks.
fn apply_batch(
    store: &Store,
    watch: &Watch,
    mut applied: Applied,
    entries: Vec<EntryResponder<Types>>,
) -> io::Result<(Applied, Answers)> {
    fail_point!("apply.begin");
    let began = Instant::now();
    let mut events: Vec<Event> = Vec::new();
    let mut answers = Vec::new();
    {
        let view = store.view();
        let mut txn = Txn::new(&view);
        for (entry, responder) in entries {
            let log_id = entry.log_id();
            applied.last = Some(log_id);
            let response = match entry.payload {
                EntryPayload::Blank => Response::Done,
                EntryPayload::Normal(command) => {
                    state::apply(&mut txn, log_id.index, command, &mut events).map_err(io_error)?
                }
                EntryPayload::Membership(membership) => {
                    applied.membership = Membership::new(Some(log_id), membership);
                    Response::Done
                }
            };
            answers.extend(responder.map(|responder| (responder, response)));
        }
        let mut batch = WriteBatch::default();
        view.put_changes(&mut batch, &txn.into_changes());
        store.put_meta(&mut batch, meta::APPLIED, &applied).map_err(io_error)?;
        store.db.write(batch).map_err(io_error)?;
    }
    metrics::histogram!("kiln_raft_apply_seconds").record(began.elapsed());
    fail_point!("apply.written");
    let index = applied.last.map_or(0, |id| id.index);
    watch.applied(store, index, &events).map_err(io_error)?;
    fail_point!("apply.seen");
    Ok((applied, answers))
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, Membership)> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut ready = entries.ready_chunks(MOST_COMMANDS);
        while let Some(chunk) = ready.next().await {
            let chunk = chunk.into_iter().collect::<io::Result<Vec<_>>>()?;
            let (store, watch) = (Arc::clone(&self.store), Arc::clone(&self.watch));
            let applied = self.applied.clone();
            let applying = move || apply_batch(&store, &watch, applied, chunk);
            let (applied, answers) = blocking::run(applying).await??;
            self.applied = applied;
            for (responder, response) in answers {
                responder.send(response);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { store: Arc::clone(&self.store) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        let staged = data.stage(&self.store, meta).await?;
        let (store, watch) = (Arc::clone(&self.store), Arc::clone(&self.watch));
        let installing = move || -> io::Result<Applied> {
            install::install(&store, &staged)?;
            fail_point!("install.done");
            let applied = store.applied().map_err(io_error)?;
            let index = applied.last.map_or(0, |id| id.index);
            watch.installed(&*store, index).map_err(io_error)?;
            Ok(applied)
        };
        self.applied = blocking::run(installing).await??;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if self.applied.last.is_none() {
            return Ok(None);
        }
        snapshot::of_now(Arc::clone(&self.store)).await.map(Some)
    }
}

/// Makes "snapshots" that cost nothing: the state on disk is its own snapshot,
/// and is read in one consistent view when a node asks for it.
pub(crate) struct Builder {
    store: Arc<Store>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        snapshot::of_now(Arc::clone(&self.store)).await
    }
}
