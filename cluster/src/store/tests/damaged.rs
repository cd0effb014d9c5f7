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

/// A store whose first entries are in tables that the manifest names, and whose later ones
/// are in the write-ahead log: what the log has says nothing of the tables.
async fn closed_with_tables(dir: &Path) {
    closed(dir, true).await;
    let mut log = LogStore::new(open(dir).unwrap());
    let (flushed, acknowledged) = Types::oneshot();
    log.append((100..200).map(report), IOFlushed::signal(flushed)).await.unwrap();
    acknowledged.await.unwrap().unwrap();
}

/// The only manifest of the store, and its bytes.
fn manifest(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let files = std::fs::read_dir(dir.join("index")).unwrap();
    let mut names = files.map(|file| file.unwrap().path());
    let is_manifest = |path: &std::path::PathBuf| {
        path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST")
    };
    let path = names.find(is_manifest).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_manifest_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    closed_with_tables(dir.path()).await;
    let (path, whole) = manifest(dir.path());
    let mut damaged: Vec<Vec<u8>> =
        (0..whole.len()).step_by(97).map(|end| whole[..end].to_vec()).collect();
    for at in (0..whole.len()).step_by(97) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        let mut lost = whole.clone();
        let end = whole.len().min(at + 512);
        lost[at..end].fill(if whole[at..end].iter().all(|byte| *byte == 0) { 1 } else { 0 });
        damaged.extend([flipped, lost]);
    }
    for bytes in &damaged {
        std::fs::write(&path, bytes).unwrap();
        let refused = open(dir.path()).map(drop).unwrap_err().to_string();
        assert!(refused.contains("the index is damaged"), "{refused}");
    }
    std::fs::write(&path, &whole).unwrap();
    let mut log = LogStore::new(open(dir.path()).unwrap());
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_goes_on_after_the_mark_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    closed_with_tables(dir.path()).await;
    let mark = std::fs::read(dir.path().join("index.mark")).unwrap();
    // A flush changes the manifest; its mark is taken back, as a power loss may do.
    let store = open(dir.path()).unwrap();
    store.db.flush_cf_opt(store.cf(LOG), &FlushOptions::default()).unwrap();
    drop(store);
    std::fs::write(dir.path().join("index.mark"), mark).unwrap();
    let mut log = LogStore::new(open(dir.path()).unwrap());
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_of_an_earlier_build_is_read() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), false).await;
    let sequence = u64::MAX.to_be_bytes();
    let check = kiln_proto::Digest::of(&sequence);
    let mark = [&sequence[..], &check.as_bytes()[..8]].concat();
    std::fs::write(dir.path().join("index.mark"), mark).unwrap();
    let refused = open(dir.path()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("writes that were durable are gone"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_is_torn_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), true).await;
    let mark = dir.path().join("index.mark");
    for torn in [&b""[..], b"short", &[0xff; 16], &[0; 64]] {
        std::fs::write(&mark, torn).unwrap();
        open(dir.path()).unwrap();
    }
}
