//! Nodes come, leave, die and are replaced.

use std::time::Duration;

use kiln::config::Config;
use kiln_proto::pb::{self, Outcome};

use crate::harness::{TestCluster, eventually, saxpy};

async fn voters(cluster: &TestCluster, asked: usize) -> Vec<u64> {
    let status = cluster.nodes[asked].status().await.unwrap();
    status.nodes.iter().filter(|n| n.voter).map(|n| n.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_node_answers_from_the_cluster() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].compile(saxpy("early")).await.unwrap();
    let new = cluster.newcomer(|_, _| {});
    cluster.nodes[new].restart().await;
    let known: Vec<u64> = cluster.nodes[..new].iter().map(|n| n.id).collect();
    assert!(!known.contains(&cluster.nodes[new].id), "ids are never reused");
    let hit = eventually("a hit on the new node", async || {
        let answer = cluster.nodes[new].compile(saxpy("early")).await.ok()?;
        (answer.outcome == Outcome::Hit).then_some(answer)
    })
    .await;
    assert_eq!(hit.tier, pb::Tier::Peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_is_a_new_node_and_replaces_the_dead_voter() {
    let soon = |_, config: &mut Config| config.cluster.dead_after = Duration::from_secs(5);
    let mut cluster = TestCluster::start_with(3, soon).await;
    let made = cluster.nodes[0].compile(saxpy("kept")).await.unwrap();
    let lost = cluster.nodes[2].id;
    cluster.nodes[2].kill().await;
    std::fs::remove_dir_all(cluster.nodes[2].data()).unwrap();
    let new = cluster.newcomer(|_, _| {});
    cluster.nodes[new].restart().await;
    let fresh = cluster.nodes[new].id;
    assert_ne!(fresh, lost);
    eventually("the replacement", async || {
        let voters = voters(&cluster, 0).await;
        (voters.contains(&fresh) && !voters.contains(&lost) && voters.len() == 3).then_some(())
    })
    .await;
    // Its manifests stay verifiable, and writes go on with the new voter.
    assert_eq!(cluster.nodes[new].compile(saxpy("kept")).await.unwrap().key, made.key);
    assert!(cluster.nodes[new].compile(saxpy("fresh")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_hands_over_first() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let gone = cluster.nodes[leader].id;
    cluster.nodes[leader].client().await.leave(pb::LeaveRequest::default()).await.unwrap();
    cluster.leader(&others).await;
    eventually("the smaller membership", async || {
        let status = cluster.nodes[others[0]].status().await.unwrap();
        status.nodes.iter().all(|n| n.id != gone).then_some(())
    })
    .await;
    assert!(cluster.nodes[others[1]].compile(saxpy("without")).await.is_ok());
}
