//! Invariant 2: an acknowledged publish survives minority loss and the death of all.

use kiln_proto::pb::{Outcome, Tier};

use crate::harness::{TestCluster, saxpy};

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_and_started_again_still_have_every_key() {
    let mut cluster = TestCluster::start_with(3, |_, config| config.object.url = None).await;
    let mut keys = Vec::new();
    for i in 0..6 {
        keys.push(cluster.nodes[i % 3].compile(saxpy(&format!("kept_{i}"))).await.unwrap().key);
    }
    for node in &mut cluster.nodes {
        node.kill().await;
    }
    for node in &mut cluster.nodes {
        node.spawn();
    }
    for node in &mut cluster.nodes {
        assert!(node.wait_ready().await);
    }
    cluster.leader(&[0, 1, 2]).await;
    for (i, key) in keys.iter().enumerate() {
        for node in &cluster.nodes {
            let again = node.compile(saxpy(&format!("kept_{i}"))).await.unwrap();
            // A replica that has not caught up yet asks the leader: then it coalesces.
            assert_ne!(again.outcome, Outcome::Compiled);
            assert_eq!(again.key, *key);
            assert!(matches!(again.tier, Tier::Memory | Tier::Disk | Tier::Peer));
        }
    }
    assert_eq!(cluster.counter("compiler_runs").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tidy_stop_leaves_no_children_and_no_socket() {
    let mut cluster = TestCluster::start(1).await;
    cluster.nodes[0].compile(saxpy("tidy")).await.unwrap();
    let group = children(cluster.nodes[0].pid());
    let socket = cluster.nodes[0].config.socket.clone().unwrap();
    assert!(socket.exists());
    cluster.nodes[0].terminate().await;
    assert!(!socket.exists());
    for child in group {
        crate::harness::eventually("the end of a child", async || ended(child).then_some(())).await;
    }
}

/// Whether a process is gone, or dead and only not yet reaped.
fn ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if after.split_whitespace().nth(1) == Some(&pid.to_string()) {
            found.push(id);
        }
    }
    found
}
