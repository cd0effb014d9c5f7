//! What is not in memory is read by a thread that may wait for the disk.

use rocksdb::FlushOptions;

use super::{
    super::{db::StateView, log, meta::Set},
    *,
};
use crate::{
    replica::Replica,
    table::{BlobRecord, StateError, Table, read},
};

/// A store whose log and state are on disk, with nothing of them in memory.
async fn reopened(dir: &Path) -> Arc<Store> {
    {
        let store = open(dir).unwrap();
        let mut log = LogStore::new(Arc::clone(&store));
        let (flushed, acknowledged) = Types::oneshot();
        log.append((0..100).map(report), IOFlushed::signal(flushed)).await.unwrap();
        acknowledged.await.unwrap().unwrap();
        let publications = (1..).zip(install::publications(50));
        let entries = publications.map(|(index, command)| entry(index, command));
        apply(&mut machine(&store), entries.collect()).await;
        for family in [LOG, Set::A.family(Table::Blobs)] {
            store.db.flush_cf_opt(store.cf(family), &FlushOptions::default()).unwrap();
        }
    }
    open(dir).unwrap()
}

#[tokio::test]
async fn a_record_on_disk_is_found_and_then_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = reopened(dir.path()).await;
    let pack = Digest::of(&[7]);
    let look = |view: StateView<'_>| read::<BlobRecord>(&view, pack);
    assert!(matches!(look(store.view_in_memory()), Err(StateError::NotInMemory("blobs"))));
    let lifetimes = Lifetimes {
        lease: std::time::Duration::MAX,
        failure: std::time::Duration::MAX,
        resource_failure: std::time::Duration::MAX,
    };
    let grants = tokio::sync::mpsc::unbounded_channel().0;
    let deadlines = Deadlines::new(lifetimes, system_clock());
    let watch = Watch::new(&*store, 0, deadlines, grants).unwrap();
    let replica = Replica::new(Arc::clone(&store), Arc::new(watch));
    assert!(replica.pack(&pack).await.unwrap().is_some());
    assert!(look(store.view_in_memory()).unwrap().is_some(), "it was read once");
    assert_eq!(replica.pack(&Digest::of(b"never published")).await.unwrap(), None);
}

#[tokio::test]
async fn log_entries_on_disk_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = reopened(dir.path()).await;
    let in_memory = || log::read(&store, 0..100, usize::MAX, true).unwrap();
    assert_eq!(in_memory(), None);
    let mut log = LogStore::new(Arc::clone(&store));
    let all: Vec<_> = (0..100).map(report).collect();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), all);
    assert_eq!(log.try_get_log_entries(10..=19).await.unwrap(), all[10..20]);
    assert_eq!(log.try_get_log_entries(20..20).await.unwrap(), []);
    assert_eq!(in_memory(), Some(all), "they were read once");
}
