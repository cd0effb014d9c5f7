//! What an operator does: backups, scaling, looking at gauges.

use std::{os::unix::fs::PermissionsExt, process::Stdio};

use kiln_proto::pb::{self, Outcome};
use tokio::process::Command;

use crate::harness::{TestCluster, TestNode, bytes_of, eventually, metrics, saxpy};

/// `kiln cluster` with `arguments` at `node`, with a file on each side.
async fn kiln(node: &TestNode, argument: &str, input: &[u8]) -> (bool, Vec<u8>) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, input).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["cluster", argument, "--json", "--endpoint"])
        .arg(format!("http://{}", node.config.grpc_listen))
        .stdin(Stdio::from(file))
        .output()
        .await
        .unwrap();
    (done.status.success(), done.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_the_index_to_another_cluster() {
    let old = TestCluster::start(1).await;
    let mut keys = Vec::new();
    for name in ["first", "second"] {
        keys.push(old.nodes[0].compile(saxpy(name)).await.unwrap().key);
    }
    let pin = pb::PinRequest { key: bytes_of(&keys[0]), pinned: true };
    old.nodes[0].client().await.pin(pin).await.unwrap();
    for key in &keys {
        eventually("an upload", async || {
            old.nodes[0].lookup(key).await.unwrap().is_some_and(|e| e.stored).then_some(())
        })
        .await;
    }
    let (well, backup) = kiln(&old.nodes[0], "backup", b"").await;
    assert!(well);

    let mut new = TestCluster::start(1).await;
    new.nodes[0].kill().await;
    // The same object tier, and nothing else of the old cluster.
    new.nodes[0].config.object = old.nodes[0].config.object.clone();
    new.nodes[0].restart().await;
    let (well, _) = kiln(&new.nodes[0], "restore", &backup[..backup.len() - 1]).await;
    assert!(!well, "a backup that was cut short");
    assert!(new.nodes[0].lookup(&keys[0]).await.unwrap().is_none());
    let (well, told) = kiln(&new.nodes[0], "restore", &backup).await;
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert!(well, "{told}");
    assert_eq!(told, serde_json::json!({ "restored": 2, "known": 0, "refused": 0 }));
    let (_, again) = kiln(&new.nodes[0], "restore", &backup).await;
    let again: serde_json::Value = serde_json::from_slice(&again).unwrap();
    assert_eq!(again["known"], 2);

    assert!(new.nodes[0].lookup(&keys[0]).await.unwrap().unwrap().pinned);
    let hit = new.nodes[0].compile(saxpy("first")).await.unwrap();
    assert_eq!((hit.outcome, hit.tier), (Outcome::Hit, pb::Tier::Object));
    assert_eq!(new.nodes[0].counter("compiler_runs").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_their_signers_did_not_sign_are_refused() {
    let old = TestCluster::start(1).await;
    let made = old.nodes[0].compile(saxpy("kernel")).await.unwrap();
    let mut entry = old.nodes[0].lookup(&made.key).await.unwrap().unwrap();
    let signers = old.nodes[0].status().await.unwrap().signers;
    let new = TestCluster::start(1).await;
    let other = new.nodes[0].status().await.unwrap().signers;
    let wrong_key = pb::RestoreRequest { entries: vec![entry.clone()], signers: other };
    let manifest = entry.manifest.as_mut().unwrap();
    let mut bytes = manifest.manifest.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    manifest.manifest = bytes.into();
    let altered = pb::RestoreRequest { entries: vec![entry], signers };
    for request in [wrong_key, altered] {
        let told = new.nodes[0].client().await.restore(request).await.unwrap().into_inner();
        assert_eq!((told.restored, told.refused), (0, 1));
    }
    assert!(new.nodes[0].lookup(&made.key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn gauges_show_the_cluster_and_sockets_their_mode() {
    let mut cluster = TestCluster::start_with(3, |n, config| {
        config.socket_mode = if n == 0 { "0666" } else { "0600" }.into();
    })
    .await;
    let new = cluster.newcomer(|_, config| config.cluster.voter = false);
    cluster.nodes[new].restart().await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    eventually("the leader's gauges", async || {
        let page = metrics(&cluster.nodes[leader]).await;
        let wanted = ["leader 1", "quorum 1", "voters 3", "voters_reachable 3"];
        wanted.iter().all(|gauge| page.contains(&format!("kiln_cluster_{gauge}\n"))).then_some(())
    })
    .await;
    for (n, mode) in [(0, 0o666), (1, 0o600)] {
        let socket = cluster.nodes[n].config.socket.clone().unwrap();
        assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, mode);
    }
    // A vote is free, and stays so: the newcomer abstains.
    cluster.nodes[(leader + 1) % 3]
        .client()
        .await
        .leave(pb::LeaveRequest::default())
        .await
        .unwrap();
    let status = cluster.nodes[leader].status().await.unwrap();
    let voters: Vec<u64> = status.nodes.iter().filter(|n| n.voter).map(|n| n.id).collect();
    assert!(voters.len() == 2 && !voters.contains(&cluster.nodes[new].id), "{voters:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_uploaded_goes_to_an_object_tier_that_comes_later() {
    let mut cluster = TestCluster::start_with(1, |_, config| config.object.url = None).await;
    let made = cluster.nodes[0].compile(saxpy("kernel")).await.unwrap();
    assert!(!cluster.nodes[0].lookup(&made.key).await.unwrap().unwrap().stored);
    cluster.nodes[0].terminate().await;
    let object = cluster.folder.path().join("object");
    cluster.nodes[0].config.object.url = Some(format!("file://{}", object.display()));
    cluster.nodes[0].restart().await;
    eventually("the upload", async || {
        let entry = cluster.nodes[0].lookup(&made.key).await.ok()??;
        entry.stored.then_some(())
    })
    .await;
}
