//! The library's own suite, and what it does not ask.

#![allow(clippy::unwrap_used)]

mod cold;
mod damaged;
mod install;
mod versions;

use std::{path::Path, sync::mpsc};

use kiln_proto::Digest;
use openraft::{
    EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder, StorageError,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt,
};
use proptest::{prelude::*, test_runner::TestRunner};
use rocksdb::WriteBatch;
use tempfile::TempDir;

use super::{db::LOG, *};
use crate::{
    command::{Command, NewNode, NodeFacts},
    deadlines::{Deadlines, Lifetimes},
    environment::system_clock,
    raft::{Entry, RaftLogId, Types},
    state::tests::commands,
    watch::Watch,
};

struct Builder;

fn open(data_dir: &Path) -> Result<Arc<Store>, ClusterError> {
    super::open(data_dir, &RealDisk, env!("CARGO_PKG_VERSION"))
}

fn watch(store: &Store) -> Arc<Watch> {
    let hour = std::time::Duration::from_secs(3600);
    let lifetimes = Lifetimes { lease: hour, failure: hour, resource_failure: hour };
    let deadlines = Deadlines::new(lifetimes, system_clock());
    Arc::new(Watch::new(store, 0, deadlines, tokio::sync::mpsc::unbounded_channel().0).unwrap())
}

fn machine(store: &Arc<Store>) -> Machine {
    Machine::new(Arc::clone(store), watch(store)).unwrap()
}

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        Ok((dir, LogStore::new(Arc::clone(&store)), machine(&store)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_librarys_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn log_id(index: u64) -> RaftLogId {
    let leader: crate::raft::Committed = crate::raft::Vote::new(1, 1).leader_id;
    LogId::new(leader, index)
}

fn entry(index: u64, command: Command) -> Entry {
    Entry::new(log_id(index), EntryPayload::Normal(command))
}

fn report(index: u64) -> Entry {
    entry(index, Command::Condemn { pack: Digest::of(&index.to_be_bytes()) })
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &to),
            false => drop(std::fs::copy(file.path(), to).unwrap()),
        }
    }
}

/// Writes stay in this process until they are synced, so a copy of the folder is
/// what a crash would leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path()).unwrap();
    let mut log = LogStore::new(Arc::clone(&store));
    log.save_vote(&crate::raft::Vote::new(1, 1)).await.unwrap();
    let (flushed, acknowledged) = Types::oneshot();
    log.append((0..100).map(report), IOFlushed::signal(flushed)).await.unwrap();
    acknowledged.await.unwrap().unwrap();
    copy(dir.path(), crashed.path());
    let mut log = LogStore::new(open(crashed.path()).unwrap());
    assert_eq!(log.read_vote().await.unwrap(), Some(crate::raft::Vote::new(1, 1)));
    let entries = log.try_get_log_entries(0..1000).await.unwrap();
    assert_eq!(entries, (0..100).map(report).collect::<Vec<_>>());
}

/// Two votes in one term would make two leaders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_is_there_after_a_crash_that_follows_it_at_once() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut log = LogStore::new(open(dir.path()).unwrap());
    log.save_vote(&crate::raft::Vote::new(7, 1)).await.unwrap();
    copy(dir.path(), crashed.path());
    let mut log = LogStore::new(open(crashed.path()).unwrap());
    assert_eq!(log.read_vote().await.unwrap(), Some(crate::raft::Vote::new(7, 1)));
}

#[test]
fn a_crash_before_the_sync_loses_only_what_was_not_acknowledged() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path()).unwrap();
    let (started, copied) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    // The sync thread waits here, as it would for a slow disk.
    store.syncer.after_sync(Box::new(move |_| {
        started.0.send(()).unwrap();
        copied.1.recv().unwrap();
    }));
    started.1.recv().unwrap();
    let mut batch = WriteBatch::default();
    batch.put_cf(store.cf(LOG), 7u64.to_be_bytes(), b"not yet durable");
    store.db.write(batch).unwrap();
    copy(dir.path(), crashed.path());
    let crashed = open(crashed.path()).unwrap();
    assert_eq!(crashed.db.get_cf(crashed.cf(LOG), 7u64.to_be_bytes()).unwrap(), None);
    copied.0.send(()).unwrap();
}

async fn apply(machine: &mut Machine, entries: Vec<Entry>) {
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
}

fn founding() -> Command {
    let node = |n| NewNode { candidate: [n; 16], facts: NodeFacts::default(), key: [n; 32] };
    Command::Found { cluster: 5, nodes: vec![node(0), node(1)] }
}

/// One state by replay, one by a snapshot in the middle and the rest.
async fn replay_and_snapshot_agree(history: Vec<Command>, cut: usize) {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).unwrap(), open(dir_b.path()).unwrap());
    let (mut by_replay, mut by_snapshot) = (machine(&a), machine(&b));
    let entries: Vec<Entry> = (1..)
        .zip([founding()].into_iter().chain(history))
        .map(|(index, command)| entry(index, command))
        .collect();
    let (first, rest) = entries.split_at(cut.min(entries.len()).max(1));
    // Something that the snapshot must sweep away.
    apply(&mut by_snapshot, vec![entry(1, Command::Condemn { pack: Digest::of(b"x") })]).await;
    apply(&mut by_replay, first.to_vec()).await;
    let builder = by_replay.try_create_snapshot_builder(true).await;
    let snapshot = builder.unwrap().build_snapshot().await.unwrap();
    apply(&mut by_replay, rest.to_vec()).await;
    by_snapshot.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    apply(&mut by_snapshot, rest.to_vec()).await;
    assert_eq!(a.digest().unwrap(), b.digest().unwrap());
    assert_eq!(a.applied().unwrap(), b.applied().unwrap());
    assert_eq!(std::fs::read_dir(b.incoming()).unwrap().count(), 0, "no file is left");
}

#[test]
fn a_snapshot_and_a_replay_come_to_the_same_state() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(ProptestConfig { cases: 12, ..ProptestConfig::default() });
    runner
        .run(&(commands(), 0..100usize), |(history, cut)| {
            runtime.block_on(replay_and_snapshot_agree(history, cut));
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_are_sent_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::new(open(dir.path()).unwrap());
    let large = |index| {
        let reason = "r".repeat(400 << 10);
        let key = kiln_proto::ArtifactKey::from_bytes([1; 32]);
        entry(index, Command::Tombstone { key, reason })
    };
    log.blocking_append((0..10).map(large)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(3, 10).await.unwrap().len(), 2);
    assert_eq!(log.try_get_log_entries(3..10).await.unwrap().len(), 7);
}

/// openraft may ask for a range that it purged meanwhile, and sends what it gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_whose_beginning_is_purged_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::new(open(dir.path()).unwrap());
    let forget = |index| entry(index, Command::Forget { pack: kiln_proto::Digest::of(b"") });
    log.blocking_append((0..10).map(forget)).await.unwrap();
    log.purge(log_id(5)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(4, 10).await.unwrap(), []);
    assert_eq!(log.limited_get_log_entries(6, 10).await.unwrap().len(), 4);
}
