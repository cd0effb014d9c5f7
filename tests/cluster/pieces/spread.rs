//! Several nodes: each takes pieces, and what one node leaves another one takes.

use std::{collections::BTreeSet, time::Instant};

use kiln_proto::pb::{self, Outcome, Piecewise, compile_event::Event};

use super::{
    manifest,
    model::{self, HEAD, PIECES, changed, in_layer},
    outcomes,
    workers::Standing,
};
use crate::harness::{Configure, SOON, TestCluster, eventually};

/// One compiler a node, so that no node can do it all at once.
const ONE: Configure = |_, config| config.compile.concurrency = 1;

fn runs(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| **outcome == Outcome::Compiled).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_piece_is_compiled_once_in_the_cluster_and_only_what_differs() {
    let cluster = TestCluster::start_with(3, ONE).await;
    let standing = Standing::until_taken_by(1, &cluster).await;
    let taking = async { standing.taken(&cluster.nodes[1]).await.resume() };
    let (first, ()) = tokio::join!(cluster.nodes[0].compile(model::whole()), taking);
    let first = first.unwrap();
    assert_eq!(outcomes(&first), [Outcome::Compiled; PIECES]);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
    let nodes: BTreeSet<u64> = first.pieces.iter().map(|piece| piece.node).collect();
    assert!(nodes.len() > 1, "spread over nodes: {nodes:?}");
    assert!(cluster.counter("pieces_taken").await > 0);

    for node in &cluster.nodes[1..] {
        let again = node.compile(model::whole()).await.unwrap();
        assert_eq!((again.key, again.outcome), (first.key, Outcome::Hit));
        assert_eq!(outcomes(&again), [Outcome::Hit; PIECES]);
    }
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);

    // One changed layer, and then another model with the same layers.
    let mut compiled = PIECES;
    for (node, norm) in [(1, in_layer(7)), (2, HEAD)] {
        let request = model::request(changed(norm), Piecewise::Always);
        let other = cluster.nodes[node].compile(request).await.unwrap();
        assert_ne!(other.key, first.key);
        assert_eq!(runs(&outcomes(&other)), 1, "{:?}", outcomes(&other));
        compiled += 1;
        assert_eq!(cluster.counter("compiler_runs").await, compiled as u64, "norm {norm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_wholes_at_once_share_what_they_have_in_common() {
    let cluster = TestCluster::start_with(3, ONE).await;
    let other = model::request(changed(HEAD), Piecewise::Always);
    let (a, b) =
        tokio::join!(cluster.nodes[0].compile(model::whole()), cluster.nodes[1].compile(other));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64 + 1);
    let keys = |compiled| -> BTreeSet<_> {
        manifest(compiled).pieces.iter().map(|piece| (piece.key, piece.pack)).collect()
    };
    assert_eq!(keys(&a).intersection(&keys(&b)).count(), PIECES - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_leaves_another_takes() {
    let mut cluster = TestCluster::start_with(3, ONE).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    // The leader itself dies, with a piece that it has begun.
    let (dies, asks) = (leader, (leader + 1) % 3);
    let standing = Standing::until_taken_by(dies, &cluster).await;
    let request = cluster.nodes[asks].client().await;
    let asked = {
        let mut client = request;
        tokio::spawn(async move {
            let mut events = client.compile(model::whole()).await?.into_inner();
            let mut last = None;
            while let Some(event) = events.message().await? {
                last = event.event;
            }
            Ok::<_, tonic::Status>(last)
        })
    };
    let workers = standing.taken(&cluster.nodes[dies]).await;
    cluster.nodes[dies].kill().await;
    drop(workers);
    let killed = Instant::now();
    let last = tokio::time::timeout(SOON, asked).await.expect("it ends").unwrap().unwrap();
    println!("the whole was there {:?} after the kill", killed.elapsed());
    let Some(Event::Done(done)) = last else { panic!("{last:?}") };
    let dead = cluster.nodes[dies].id;
    assert!(done.pieces.iter().all(|piece| piece.outcome() == Outcome::Compiled));
    assert!(done.pieces.iter().all(|piece| piece.node != dead), "{:?}", done.pieces);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_paused_node_brings_too_late_is_not_committed() {
    let cluster = TestCluster::start_with(3, ONE).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (slow, asks) = ((leader + 1) % 3, (leader + 2) % 3);
    let standing = Standing::until_taken_by(slow, &cluster).await;
    let asked = cluster.nodes[asks].compile(model::whole());
    let pausing = async {
        let workers = standing.taken(&cluster.nodes[slow]).await;
        cluster.nodes[slow].pause().await;
        workers
    };
    let (whole, workers) = tokio::join!(asked, pausing);
    let whole = whole.unwrap();
    let slow = &cluster.nodes[slow];
    assert!(whole.pieces.iter().all(|piece| piece.node != slow.id));
    workers.resume();
    slow.resume();
    // It comes too late: the lease is lost while it compiles, or the piece is there already.
    eventually("the late result", async || {
        let lost = slow.log().contains("the lease of a piece was lost");
        (lost || slow.counter("compiler_runs").await > 0).then_some(())
    })
    .await;
    let again =
        eventually("an answer of the node", async || slow.compile(model::whole()).await.ok()).await;
    assert_eq!((again.outcome, again.key), (Outcome::Hit, whole.key));
    for piece in &manifest(&whole).pieces {
        let entry = slow.lookup(&piece.key).await.unwrap().unwrap();
        let signed = kiln_proto::SignedManifest::from(entry.manifest.unwrap());
        let committed = signed.read_unverified().unwrap();
        assert_eq!(committed.pack_digest, piece.pack);
        assert_ne!(committed.producer, slow.id, "committed once, by another");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_began_for_a_node_that_died_is_kept() {
    let mut cluster = TestCluster::start_with(3, ONE).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (dies, helps) = ((leader + 1) % 3, (leader + 2) % 3);
    let standing = Standing::until_taken_by(helps, &cluster).await;
    let mut client = cluster.nodes[dies].client().await;
    let _asked = client.compile(model::whole()).await.unwrap();
    let workers = standing.taken(&cluster.nodes[helps]).await;
    cluster.nodes[dies].kill().await;
    workers.resume();
    let helper = &cluster.nodes[helps];
    eventually("the compile to end", async || {
        (helper.counter("compiler_runs").await > 0).then_some(())
    })
    .await;
    let again = helper.compile(model::whole()).await.unwrap();
    let made = again.pieces.iter().filter(|piece| piece.node == helper.id);
    assert!(made.clone().any(|piece| piece.outcome() == Outcome::Hit), "{:?}", again.pieces);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_leaves_the_whole_to_others() {
    let cluster = TestCluster::start_with(3, ONE).await;
    let mut client = cluster.nodes[0].client().await;
    let mut events = client.compile(model::whole()).await.unwrap().into_inner();
    let mut key = None;
    loop {
        match events.message().await.unwrap().unwrap().event.unwrap() {
            Event::Started(started) => {
                key = Some(kiln_proto::ArtifactKey::try_from(&started.key[..]).unwrap());
            }
            // It is under way.
            Event::Piece(_) => break,
            _ => {}
        }
    }
    let key = key.unwrap();
    drop((events, client));
    eventually("the whole", async || cluster.nodes[1].lookup(&key).await.unwrap()).await;
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_compiler_has_the_others_do_it() {
    let cluster = TestCluster::start_with(3, |i, config| {
        config.compile.concurrency = 1;
        if i == 2 {
            config.compile.nvrtc = Some("/nowhere".into());
        }
    })
    .await;
    let bare = &cluster.nodes[2];
    eventually("the others' compilers to be known", async || {
        let nodes = bare.status().await.unwrap().nodes;
        let native = |node: &&pb::NodeStatus| {
            node.id != bare.id && node.compilers.iter().any(|f| f.compiler == "native")
        };
        (nodes.iter().filter(native).count() == 2).then_some(())
    })
    .await;
    let made = bare.compile(model::whole()).await.unwrap();
    assert_eq!(outcomes(&made), [Outcome::Compiled; PIECES]);
    assert!(made.pieces.iter().all(|piece| piece.node != bare.id && piece.node != 0));
    assert_eq!(bare.counter("compiler_runs").await, 0);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
}
