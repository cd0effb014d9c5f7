//! What a node does whose audit log is not the one that the cluster knows.

use crate::{
    access::Identity,
    audit::{Audit, Event, Settings, verify},
};

use super::*;

/// Runs a log in `folder` for as long as `node` needs to look at it; what it says is broken.
async fn look(node: &Running, folder: &Path) -> Vec<String> {
    let (stop, writes) = (CancellationToken::new(), CancellationToken::new());
    let settings = Settings { folder: folder.to_owned(), file_bytes: 1 << 20, files: 4 };
    let (audit, writing) = Audit::open(settings, &writes).unwrap();
    let writing = std::thread::spawn(writing);
    audit.record(Event::new("publish", &Identity::Member(None)).of("before"));
    let looking = tokio::spawn(audit.clone().note(node.index(), node.node.ready.id, stop.clone()));
    // It looks before it waits for anything.
    stop.cancel();
    looking.await.unwrap();
    drop(audit);
    writes.cancel();
    writing.join().unwrap();
    let mut said = Vec::new();
    let found = verify(folder, None, |line| {
        if line.event == "log_broken" {
            said.push(line.detail.clone());
        }
    });
    assert_eq!(found.unwrap().problems, [], "each line follows the one before");
    said
}

/// The number of the last line, and its digest as the cluster has it.
fn end(folder: &Path) -> (u64, [u8; 32]) {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let newest = files.filter(|file| file.is_file()).max().unwrap();
    let text = std::fs::read_to_string(newest).unwrap();
    let line = text.lines().last().unwrap();
    let sequence = serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].as_u64();
    (sequence.unwrap(), *Digest::of(line.as_bytes()).as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_or_replaced_says_so_and_the_clusters_word_stays() {
    // Its own log would tell the cluster of other lines.
    let node = Running::start_with(None, 1 << 30, |config| config.audit.enabled = false).await;
    let index = node.index();
    let (folder, apart) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(look(&node, folder.path()).await, [""; 0], "the cluster knows of no line");
    let first = end(folder.path());
    index.note_audit(first.0, first.1).await.unwrap();
    assert_eq!(look(&node, folder.path()).await, [""; 0], "it has the line, and went on");

    let known = end(folder.path());
    assert!(known.0 > first.0);
    index.note_audit(known.0, known.1).await.unwrap();
    let word = index.audit_head(node.node.ready.id).await.unwrap().unwrap();
    assert_eq!((word.sequence, word.digest), known);
    // Somebody else's log in its place, and its own without its end.
    let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
    let file = files.filter(|file| file.is_file()).max().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let cut: String = text.lines().take(1).map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, cut).unwrap();
    for folder in [folder.path(), apart.path()] {
        let said = look(&node, folder).await;
        assert_eq!(said.len(), 1, "{said:?}");
        let names = [known.0.to_string(), hex::encode(known.1)];
        assert!(names.iter().all(|name| said[0].contains(name)), "{said:?}");
        // So that whoever reads later has the proof, however the log goes on.
        let still = index.audit_head(node.node.ready.id).await.unwrap().unwrap();
        assert_eq!((still.sequence, still.digest), known);
    }
}
