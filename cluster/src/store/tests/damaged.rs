//! A database that has lost what it acknowledged is not opened.

use rocksdb::FlushOptions;

use super::{
    super::meta::{META, Set},
    *,
};
use crate::table::Table;

/// A store with 100 acknowledged log entries, closed; `flush`: they are in a table.
async fn closed(dir: &Path, flush: bool) {
    let store = open(dir).unwrap();
    let mut log = LogStore::new(Arc::clone(&store));
    let (flushed, acknowledged) = Types::oneshot();
    log.append((0..100).map(report), IOFlushed::signal(flushed)).await.unwrap();
    acknowledged.await.unwrap().unwrap();
    if flush {
        // Of all families: then no log has any of it.
        let tables = Table::ALL.into_iter().flat_map(|t| [Set::A.family(t), Set::B.family(t)]);
        for family in tables.chain([LOG, META]) {
            store.db.flush_cf_opt(store.cf(family), &FlushOptions::default()).unwrap();
        }
    }
}

/// Cuts each file of the database that `name` says off in its middle; how many.
fn cut(dir: &Path, name: impl Fn(&str) -> bool) -> usize {
    let files = std::fs::read_dir(dir.join("index")).unwrap();
    let files = files.map(|file| file.unwrap()).filter(|file| {
        name(&file.file_name().to_string_lossy()) && file.metadata().unwrap().len() > 0
    });
    let cut = files.map(|file| {
        let whole = std::fs::read(file.path()).unwrap();
        std::fs::write(file.path(), &whole[..whole.len() / 2]).unwrap();
    });
    cut.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_cut_off_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), false).await;
    assert!(cut(dir.path(), |name| name.ends_with(".log")) > 0);
    let refused = open(dir.path()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("the index is damaged"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_lost_its_end_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), true).await;
    assert!(cut(dir.path(), |name| name.starts_with("MANIFEST")) > 0);
    if let Ok(store) = open(dir.path()) {
        let mut log = LogStore::new(store);
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 100, "whole or not at all");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_is_torn_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), true).await;
    let mark = dir.path().join("index.mark");
    for torn in [&b""[..], b"short", &[0xff; 16]] {
        std::fs::write(&mark, torn).unwrap();
        open(dir.path()).unwrap();
    }
}
