//! Signers that are revoked: what they made is gone everywhere, and nothing of theirs comes.

use kiln_proto::pb::{self, Outcome};
use serde_json::Value;

use crate::{
    asked::kiln,
    harness::{TestCluster, eventually, kind, saxpy},
    redis::Redis,
};

fn id(node: u64) -> String {
    node.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_revoked_signer_made_is_a_miss_on_every_node_and_it_makes_nothing_more() {
    let mut cluster = TestCluster::start(3).await;
    let ids: Vec<u64> = cluster.nodes.iter().map(|node| node.id).collect();
    let revoked = (cluster.leader(&[0, 1, 2]).await + 1) % 3;
    let (asked, third) = ((revoked + 1) % 3, (revoked + 2) % 3);
    let made = cluster.nodes[revoked].compile(saxpy("theirs")).await.unwrap();
    let kept = cluster.nodes[asked].compile(saxpy("ours")).await.unwrap();
    Redis::connect(&cluster.nodes[revoked]).await.set("theirs", "1").await;
    Redis::connect(&cluster.nodes[asked]).await.set("ours", "2").await;
    for node in &cluster.nodes {
        eventually("both on every node", async || {
            Redis::connect(node).await.get("theirs").await?;
            Redis::connect(node).await.get("ours").await
        })
        .await;
        assert_eq!(node.compile(saxpy("theirs")).await.unwrap().outcome, Outcome::Hit);
    }

    let signer = id(ids[revoked]);
    let arguments = ["signer", "revoke", &signer, "--reason", "its disk was sold"];
    let (code, told) = kiln(&cluster.nodes[asked], &arguments).await;
    assert_eq!((code, &told["removed"]), (Some(0), &Value::from(2)), "{told}");

    for node in &cluster.nodes {
        eventually("a miss on every node", async || {
            let gone = node.lookup(&made.key).await.unwrap().is_none();
            let value = Redis::connect(node).await.get("theirs").await;
            (gone && value.is_none()).then_some(())
        })
        .await;
        assert_eq!(Redis::connect(node).await.get("ours").await.as_deref(), Some(&b"2"[..]));
        assert!(node.lookup(&kept.key).await.unwrap().is_some());
        let why = kiln(node, &["why", &made.key.to_string()]).await.1.to_string();
        assert!(why.contains("its disk was sold"), "{why}");
    }

    // The one that was revoked serves what others made, and makes nothing: not even while
    // it has a compiler of its own.
    let hit = cluster.nodes[revoked].compile(saxpy("ours")).await.unwrap();
    assert_eq!(hit.outcome, Outcome::Hit);
    let refused = cluster.nodes[revoked].compile(saxpy("late")).await.unwrap_err();
    assert!(refused.message().contains("its disk was sold"), "{refused:?} {:?}", kind(&refused));
    let again = cluster.nodes[third].compile(saxpy("theirs")).await.unwrap();
    assert_eq!(again.outcome, Outcome::Compiled);
    assert_eq!(again.key, made.key, "the key is free for others");
    let hit = cluster.nodes[revoked].compile(saxpy("theirs")).await.unwrap();
    assert_eq!(hit.outcome, Outcome::Hit);

    // Also after a restart, and whoever asks for the list sees it.
    cluster.nodes[revoked].terminate().await;
    cluster.nodes[revoked].restart().await;
    let (_, list) = kiln(&cluster.nodes[revoked], &["signer", "list"]).await;
    let of = |node: usize| {
        let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
        list.iter().find(|signer| signer["node"] == ids[node]).unwrap().clone()
    };
    assert_eq!(of(revoked)["revoked"]["reason"], "its disk was sold");
    assert_eq!(of(revoked)["revoked"]["by"], ids[asked]);
    assert!(of(asked).get("revoked").is_none());
    let refused = cluster.nodes[revoked].compile(saxpy("later")).await.unwrap_err();
    assert!(refused.message().contains("its disk was sold"), "{refused:?}");
}

/// Who restores signs anew: under another's name, a revoked signer's artifacts would be back.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_nothing_of_a_revoked_signer_back() {
    let cluster = TestCluster::start(3).await;
    let [theirs, ours, third] = &cluster.nodes[..] else { unreachable!() };
    let made = theirs.compile(saxpy("kernel")).await.unwrap();
    let entry = theirs.lookup(&made.key).await.unwrap().unwrap();
    let mut signers = theirs.status().await.unwrap().signers;
    let request = pb::RevokeSignerRequest {
        node: theirs.id,
        reason: "stolen".into(),
        keep: false,
        ..Default::default()
    };
    let removed = ours.client().await.revoke_signer(request).await.unwrap().into_inner().removed;
    assert_eq!(removed, 1);
    let trusted = ours.status().await.unwrap().signers;
    let trusted: Vec<_> = trusted.iter().map(|signer| signer.node).collect();
    assert_eq!(trusted, [ours.id, third.id]);
    // As it was, and with the id of another signer beside the same key.
    for other in [theirs.id, 77] {
        let key = signers.iter().find(|signer| signer.node == theirs.id).unwrap().key.clone();
        signers.push(pb::Signer { node: other, key, certificate: None });
        let backup = pb::RestoreRequest { entries: vec![entry.clone()], signers: signers.clone() };
        let told = ours.client().await.restore(backup).await.unwrap().into_inner();
        assert_eq!((told.restored, told.refused), (0, 1));
    }
    assert!(ours.lookup(&made.key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_node_that_there_was_is_revoked_and_for_a_reason() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (code, told) = kiln(node, &["signer", "revoke", "9", "--reason", "x"]).await;
    assert_ne!(code, Some(0));
    assert!(told.to_string().contains("never a node 9"), "{told}");
    let (code, _) = kiln(node, &["signer", "revoke", "1"]).await;
    assert_eq!(code, Some(2), "without a reason");
    for reason in [String::new(), "x".repeat(1025)] {
        let request = pb::RevokeSignerRequest { node: 1, reason, keep: true, ..Default::default() };
        node.client().await.revoke_signer(request).await.unwrap_err();
    }
    // What was there may stay.
    let made = node.compile(saxpy("kernel")).await.unwrap();
    let keep = pb::RevokeSignerRequest {
        node: 1,
        reason: "replaced".into(),
        keep: true,
        ..Default::default()
    };
    node.client().await.revoke_signer(keep).await.unwrap();
    assert_eq!(node.compile(saxpy("kernel")).await.unwrap().outcome, Outcome::Hit);
    assert!(node.lookup(&made.key).await.unwrap().is_some());
    // Clients check what stays by this, and backups carry it.
    let signers = node.status().await.unwrap().signers;
    assert_eq!(signers.iter().map(|signer| signer.node).collect::<Vec<_>>(), [1]);
    node.compile(saxpy("other")).await.unwrap_err();
}
