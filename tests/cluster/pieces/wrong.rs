//! A piece that gives wrong numbers: published by somebody whose compiler is broken.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::future::join_all;
use kiln_native::{
    eager::Eager,
    read_graph,
    split::{self, Settings, split},
};
use kiln_proto::{
    ArtifactKey, Digest, FileEntry, Manifest, SignedManifest,
    pb::{self, Outcome, Verify},
};

use super::{
    model::{PIECES, archive, eager},
    outcomes,
    verified::{failing, the_bad_one},
};
use crate::{
    harness::{TestCluster, TestNode, bytes_of, code, eventually, kind},
    publish::{lease, publish},
};

const MODEL: &str = "qwen3_lm_f32_static.new";
/// The norm before attention, which is in every layer.
const BAD: usize = 1;
/// Far more than the removal takes on an idle machine; it is printed what it took.
const BOUND: Duration = Duration::from_secs(10);

/// Files with the interface of the piece, that compute something else.
fn wrong_files() -> Vec<(String, Vec<u8>)> {
    let graph = read_graph(&archive(MODEL)).unwrap();
    let settings = Settings { piecewise: split::Piecewise::Always, ..Settings::default() };
    let found = split(&graph, &settings).unwrap();
    let mut piece = found.graph(&found.pieces[BAD]).clone();
    let node = piece.nodes.iter_mut().find(|node| node.op == "aten.mul.Tensor").unwrap();
    node.op = "aten.add.Tensor".into();
    let mut files = Eager::new(&piece).unwrap().files().unwrap();
    files.sort();
    files
}

/// Publishes wrong files under the key of a piece, as a client may that compiles itself.
async fn publish_wrong(node: &TestNode, piece: &Manifest) {
    let (mut pack, mut files) = (Vec::new(), Vec::new());
    for (path, bytes) in wrong_files() {
        let (offset, size) = (pack.len() as u64, bytes.len() as u64);
        files.push(FileEntry { path, offset, size, digest: Digest::of(&bytes) });
        pack.extend(bytes);
    }
    let (pack_digest, pack_size) = (Digest::of(&pack), pack.len() as u64);
    // It also says that it was checked: nobody believes a client.
    let check = Some(kiln_proto::Check::Passed { relative_error: 0.0, limit: 1e-5 });
    let manifest = Manifest { files, pack_digest, pack_size, check, ..piece.clone() };
    let (_stream, granted) = lease(node, &manifest).await;
    let answer = publish(node, &granted, &manifest, &pack).await.unwrap();
    assert!(answer.committed);
}

async fn remove(node: &TestNode, key: &ArtifactKey) {
    let request = pb::TombstoneRequest { key: bytes_of(key), reason: "a test".into() };
    assert!(node.client().await.tombstone(request).await.unwrap().into_inner().existed);
}

/// A cluster that has the model, made with a wrong piece by somebody who does not verify.
async fn poisoned() -> (TestCluster, ArtifactKey, Manifest) {
    let cluster = TestCluster::start(3).await;
    let never = || eager(archive(MODEL), Verify::Never);
    let right = cluster.nodes[0].compile(never()).await.unwrap();
    let key = ArtifactKey::try_from(&right.pieces[BAD].key[..]).unwrap();
    let entry = cluster.nodes[0].lookup(&key).await.unwrap().unwrap();
    let piece = SignedManifest::from(entry.manifest.unwrap()).read_unverified().unwrap();
    remove(&cluster.nodes[0], &key).await;
    publish_wrong(&cluster.nodes[0], &piece).await;
    eventually("the wrong piece", async || cluster.nodes[2].lookup(&key).await.unwrap()).await;
    let stitched = cluster.nodes[2].compile(never()).await.unwrap();
    assert_eq!(outcomes(&stitched), [Outcome::Hit; PIECES]);
    for node in &cluster.nodes {
        eventually("the whole", async || node.lookup(&right.key).await.unwrap()).await;
    }
    (cluster, right.key, piece)
}

/// When it holds, asked again as soon as an answer is there.
async fn eventually_at_once(mut holds: impl AsyncFnMut() -> bool) -> Instant {
    while !holds().await {
        tokio::task::yield_now().await;
    }
    Instant::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_piece_is_removed_from_all_nodes_with_its_whole() {
    let (cluster, whole, piece) = poisoned().await;
    let always = || eager(archive(MODEL), Verify::Always);
    let asks = &cluster.nodes[1];
    let asked = failing(asks, always());
    let mut wrong = Vec::new();
    for key in [&piece.key, &whole] {
        let manifest = asks.lookup(key).await.unwrap().unwrap().manifest.unwrap();
        wrong.push(SignedManifest::from(manifest).read_unverified().unwrap().pack_digest);
    }
    let watched = cluster.nodes.iter().flat_map(|node| [(node, piece.key), (node, whole)]);
    let gone = join_all(watched.map(async |(node, key)| {
        eventually_at_once(async || node.lookup(&key).await.unwrap().is_none()).await
    }));
    let gone = tokio::time::timeout(crate::harness::SOON, gone);
    let ((failed, pieces), gone) = tokio::join!(asked, gone);
    // From the first node that has it no more to the last one.
    let gone = gone.expect("it is removed");
    let took = *gone.iter().max().unwrap() - *gone.iter().min().unwrap();
    println!("removed from all nodes within {took:?}");
    assert!(took < BOUND, "{took:?}");

    assert_eq!((code(&failed), kind(&failed)), (Some("C002"), Some("wrong_output")), "{failed}");
    let bad = the_bad_one(&pieces);
    assert_eq!(bad.index as usize, BAD);
    assert_eq!(bad.node, cluster.nodes[0].id, "who signed it");
    for part in [
        format!("piece {BAD} ({})", piece.key),
        format!("on node {}: ", asks.id),
        "relative error ".into(),
        "limit 1e-5".into(),
        format!("compiled by node {}, it is removed from all nodes", cluster.nodes[0].id),
    ] {
        assert!(failed.message().contains(&part), "{part:?} in {failed}");
    }

    for node in &cluster.nodes {
        eventually("the bytes are gone", async || {
            let names = |pack: &Digest| pack.to_string()[2..].to_owned();
            let is = |file: &PathBuf, name: &str| file.ends_with(name);
            let left = node.packs().into_iter().any(|f| wrong.iter().any(|w| is(&f, &names(w))));
            (!left).then_some(())
        })
        .await;
    }

    // The next request compiles that one, and nothing else.
    let mended = cluster.nodes[2].compile(always()).await.unwrap();
    assert_eq!((mended.key, mended.outcome), (whole, Outcome::Compiled));
    let mut expected = [Outcome::Hit; PIECES];
    expected[BAD] = Outcome::Compiled;
    assert_eq!(outcomes(&mended), expected);
    let again = asks.compile(always()).await.unwrap();
    assert_eq!(outcomes(&again), [Outcome::Hit; PIECES]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_piece_is_found_while_its_whole_is_put_together() {
    let (cluster, whole, piece) = poisoned().await;
    remove(&cluster.nodes[0], &whole).await;
    let (failed, pieces) = failing(&cluster.nodes[1], eager(archive(MODEL), Verify::Always)).await;
    assert_eq!(kind(&failed), Some("wrong_output"), "{failed}");
    assert_eq!(the_bad_one(&pieces).index as usize, BAD);
    for node in &cluster.nodes {
        for key in [&piece.key, &whole] {
            let gone = async || node.lookup(key).await.unwrap().is_none().then_some(());
            eventually("the removal", gone).await;
        }
    }
}
