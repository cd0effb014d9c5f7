//! Bytes are here, absent or unreachable: only what is proven absent is given up, and
//! what is acknowledged is stored.

use kiln_proto::{
    pb::{self, Outcome, Tier},
    value as naming,
};
use tonic::Code;

use crate::{
    harness::{Configure, NAMESPACE, TestCluster, eventually, saxpy},
    publish::{replace, value_of},
    redis::{Redis, text},
};

const WITHOUT_L3: Configure = |_, config| config.object.url = None;

/// The epoch of the value `name`, as node `at` knows it.
async fn epoch(cluster: &TestCluster, at: usize, name: &str) -> Option<u64> {
    let key = naming::components(NAMESPACE, name.as_bytes()).key();
    cluster.nodes[at].lookup(&key).await.unwrap().map(|entry| entry.epoch)
}

async fn known_everywhere(cluster: &TestCluster, name: &str) {
    for at in 0..cluster.nodes.len() {
        let known = async || epoch(cluster, at, name).await;
        eventually("the entry on every node", known).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_whose_holder_is_away_is_a_miss_until_it_is_back() {
    let mut cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    Redis::connect(&cluster.nodes[0]).await.set("k", "only on node 1").await;
    known_everywhere(&cluster, "k").await;
    cluster.nodes[0].kill().await;
    cluster.leader(&[1, 2]).await;
    let mut others =
        [Redis::connect(&cluster.nodes[1]).await, Redis::connect(&cluster.nodes[2]).await];
    for other in &mut others {
        for _ in 0..3 {
            assert_eq!(other.get("k").await, None, "its bytes cannot be reached");
        }
    }
    assert_eq!(epoch(&cluster, 1, "k").await, Some(1), "and it is not forgotten");
    assert!(cluster.counter("unreachable_packs").await > 0);
    cluster.nodes[0].restart().await;
    for other in &mut others {
        eventually("the value", async || other.get("k").await).await;
    }
    let mut first = Redis::connect(&cluster.nodes[0]).await;
    assert_eq!(first.get("k").await.unwrap(), b"only on node 1");
    assert_eq!(cluster.counter("lost_packs").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_holder_is_no_proof_either() {
    let cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (holder, asker) = ((leader + 1) % 3, (leader + 2) % 3);
    Redis::connect(&cluster.nodes[holder]).await.set("k", "v").await;
    known_everywhere(&cluster, "k").await;
    let mut other = Redis::connect(&cluster.nodes[asker]).await;
    cluster.nodes[holder].pause().await;
    assert_eq!(other.get("k").await, None);
    cluster.nodes[holder].resume();
    eventually("the value", async || other.get("k").await).await;
    assert_eq!(epoch(&cluster, asker, "k").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_can_be_set_anew_while_its_holder_is_away() {
    let mut cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    Redis::connect(&cluster.nodes[0]).await.set("k", "old").await;
    Redis::connect(&cluster.nodes[0]).await.set("same", "bytes").await;
    known_everywhere(&cluster, "same").await;
    cluster.nodes[0].kill().await;
    cluster.leader(&[1, 2]).await;
    let mut other = Redis::connect(&cluster.nodes[1]).await;
    assert_eq!(other.get("k").await, None);
    other.set("k", "anew").await;
    other.set("same", "bytes").await;
    let mut third = Redis::connect(&cluster.nodes[2]).await;
    eventually("the new value", async || third.get("k").await.filter(|v| v == b"anew")).await;
    assert_eq!(third.get("same").await.unwrap(), b"bytes", "equal bytes have a new holder");
    cluster.nodes[0].restart().await;
    let mut first = Redis::connect(&cluster.nodes[0]).await;
    eventually("the new value", async || first.get("k").await.filter(|v| v == b"anew")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_cannot_be_reached_is_compiled_once_more_for_all() {
    let mut cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    let made = cluster.nodes[0].compile(saxpy("away")).await.unwrap();
    for at in 1..3 {
        let known = async || cluster.nodes[at].lookup(&made.key).await.unwrap();
        eventually("the entry", known).await;
    }
    cluster.nodes[0].kill().await;
    cluster.leader(&[1, 2]).await;
    let compile = |at: usize| cluster.nodes[at].compile(saxpy("away"));
    let asked = tokio::join!(compile(1), compile(2), compile(1), compile(2));
    for answer in [asked.0, asked.1, asked.2, asked.3] {
        assert_eq!(answer.unwrap().key, made.key);
    }
    assert_eq!(cluster.counter("compiler_runs").await, 1, "once for the cluster");
    let entry = cluster.nodes[1].lookup(&made.key).await.unwrap().unwrap();
    assert_eq!(entry.epoch, 2);
    cluster.nodes[0].restart().await;
    let known = async || {
        let entry = cluster.nodes[0].lookup(&made.key).await.unwrap();
        entry.filter(|entry| entry.epoch == 2)
    };
    eventually("the new epoch", known).await;
    let hit = cluster.nodes[0].compile(saxpy("away")).await.unwrap();
    assert_eq!(hit.outcome, Outcome::Hit);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_cannot_be_reached_is_an_error_that_says_so() {
    let mut cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    let made = cluster.nodes[0].compile(saxpy("away")).await.unwrap();
    let known = async || cluster.nodes[1].lookup(&made.key).await.unwrap();
    eventually("the entry", known).await;
    cluster.nodes[0].kill().await;
    cluster.leader(&[1, 2]).await;
    let refused = cluster.nodes[1].fetch(&made.key).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("cannot be reached"), "{refused}");
    cluster.nodes[0].restart().await;
    let fetched = async || cluster.nodes[1].fetch(&made.key).await.ok();
    let (header, _) = eventually("the artifact", fetched).await;
    assert_eq!(header.tier(), Tier::Peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_holder_denies_is_retired() {
    let mut cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    Redis::connect(&cluster.nodes[0]).await.set("k", "v").await;
    known_everywhere(&cluster, "k").await;
    cluster.nodes[0].terminate().await;
    for pack in cluster.nodes[0].packs() {
        std::fs::remove_file(pack).unwrap();
    }
    cluster.nodes[0].restart().await;
    let mut other = Redis::connect(&cluster.nodes[1]).await;
    let retired = async || {
        assert_eq!(other.get("k").await, None);
        epoch(&cluster, 1, "k").await.is_none().then_some(())
    };
    eventually("the end of an entry without bytes", retired).await;
    assert_eq!(cluster.counter("lost_packs").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_removed_counts_as_absent() {
    let mut cluster = TestCluster::start_with(3, WITHOUT_L3).await;
    Redis::connect(&cluster.nodes[0]).await.set("k", "v").await;
    known_everywhere(&cluster, "k").await;
    cluster.nodes[0].kill().await;
    cluster.leader(&[1, 2]).await;
    let mut other = Redis::connect(&cluster.nodes[1]).await;
    assert_eq!(other.get("k").await, None);
    assert_eq!(epoch(&cluster, 1, "k").await, Some(1));
    let remove = pb::RemoveNodeRequest { id: cluster.nodes[0].id };
    cluster.nodes[1].client().await.remove_node(remove).await.unwrap();
    let retired = async || {
        assert_eq!(other.get("k").await, None);
        epoch(&cluster, 1, "k").await.is_none().then_some(())
    };
    eventually("the end of an entry without bytes", retired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_disk_takes_is_not_acknowledged() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.memory.bytes = 1 << 20;
        config.disk.bytes = 1 << 20;
        config.resp.max_value = 8 << 20;
    })
    .await;
    let node = &cluster.nodes[0];
    let large = vec![7; 2 << 20];
    let refused = replace(node, &value_of("large", &large), &large).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("not stored"), "{refused}");
    let mut redis = Redis::connect(node).await;
    let answer = redis.command([&b"SET"[..], b"large", &large]).await;
    assert_eq!(text(answer), "OK", "a cache never fails its clients");
    assert_eq!(node.counter("resp_sets_failed").await, 1, "and says what it did not do");
    assert_eq!(epoch(&cluster, 0, "large").await, None);
    let small = vec![7; 100 << 10];
    replace(node, &value_of("small", &small), &small).await.unwrap();
    redis.set("also small", &small).await;
    assert_eq!(redis.get("also small").await.unwrap(), small);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_survive_the_loss_of_one_node_at_once() {
    let mut cluster = TestCluster::start_with(3, |_, config| {
        config.object.url = None;
        config.publish.copies = kiln::config::Copies::Nodes(2.try_into().unwrap());
    })
    .await;
    let bytes = vec![5; 300 << 10];
    replace(&cluster.nodes[0], &value_of("k", &bytes), &bytes).await.unwrap();
    let made = cluster.nodes[0].compile(saxpy("copied")).await.unwrap();
    assert_eq!(cluster.nodes[0].lookup(&made.key).await.unwrap().unwrap().holders.len(), 2);
    cluster.nodes[0].kill().await;
    cluster.leader(&[1, 2]).await;
    for at in [1, 2] {
        let mut redis = Redis::connect(&cluster.nodes[at]).await;
        eventually("the value", async || redis.get("k").await.filter(|v| *v == bytes)).await;
        let hit = cluster.nodes[at].compile(saxpy("copied")).await.unwrap();
        assert_eq!(hit.outcome, Outcome::Hit);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_copies_are_no_acknowledgement() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.object.url = None;
        config.publish.copies = kiln::config::Copies::Nodes(2.try_into().unwrap());
    })
    .await;
    let refused = replace(&cluster.nodes[0], &value_of("k", b"v"), b"v").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("1 of 2 copies"), "{refused}");
    assert_eq!(epoch(&cluster, 0, "k").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_may_wait_for_the_object_store() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.publish.copies = kiln::config::Copies::Object;
    })
    .await;
    replace(&cluster.nodes[0], &value_of("k", b"v"), b"v").await.unwrap();
    let key = naming::components(NAMESPACE, b"k").key();
    assert!(cluster.nodes[0].lookup(&key).await.unwrap().unwrap().stored);
}
