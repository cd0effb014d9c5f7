//! Of several writes of one key at one node, the one that arrived last counts.

use futures::future::join_all;

use crate::{
    harness::{TestCluster, eventually},
    redis::{Redis, integer, text},
};

/// A cluster of three of which the node that is returned leads, and the others stand still.
async fn with_two_paused() -> (TestCluster, usize) {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    // A node's first write opens its session: without one, nothing would be in the log yet.
    Redis::connect(&cluster.nodes[leader]).await.set("before", "the pause").await;
    for at in (0..3).filter(|at| *at != leader) {
        cluster.nodes[at].pause().await;
    }
    (cluster, leader)
}

fn resume(cluster: &TestCluster, leader: usize) {
    for at in (0..3).filter(|at| *at != leader) {
        cluster.nodes[at].resume();
    }
}

/// Waits until what was under way has come to its end on every node.
async fn settled(cluster: &TestCluster, leader: usize) {
    let mut redis = Redis::connect(&cluster.nodes[leader]).await;
    let mut tries = 0;
    let stored = async || {
        let before = cluster.nodes[leader].counter("resp_sets_stored").await;
        tries += 1;
        redis.set("settled", format!("{tries}")).await;
        (cluster.nodes[leader].counter("resp_sets_stored").await > before).then_some(())
    };
    eventually("a SET that is committed", stored).await;
    for at in 0..3 {
        let mut redis = Redis::connect(&cluster.nodes[at]).await;
        eventually("the same on every node", async || redis.get("settled").await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_set_never_overtakes_a_later_one() {
    let (cluster, leader) = with_two_paused().await;
    let mut redis = Redis::connect(&cluster.nodes[leader]).await;
    for value in ["v1", "v2"] {
        assert_eq!(text(redis.command(["SET", "k", value]).await), "OK");
    }
    resume(&cluster, leader);
    settled(&cluster, leader).await;
    for at in 0..3 {
        let mut redis = Redis::connect(&cluster.nodes[at]).await;
        let right = async || redis.get("k").await.is_none_or(|value| value == b"v2").then_some(());
        eventually("the last value, or none", right).await;
    }
    let mut redis = Redis::connect(&cluster.nodes[leader]).await;
    if redis.get("k").await.is_none() {
        // Two elections' time went by: then the second was given up, and says so.
        assert!(cluster.nodes[leader].counter("resp_sets_failed").await > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_set_never_undoes_a_removal() {
    let (cluster, leader) = with_two_paused().await;
    let mut redis = Redis::connect(&cluster.nodes[leader]).await;
    assert_eq!(text(redis.command(["SET", "k", "v1"]).await), "OK");
    let mut remover = Redis::connect(&cluster.nodes[leader]).await;
    let removal = tokio::spawn(async move { remover.command(["DEL", "k"]).await });
    let superseded =
        async || (cluster.nodes[leader].counter("resp_sets_superseded").await > 0).then_some(());
    eventually("the SET made way", superseded).await;
    resume(&cluster, leader);
    drop(removal.await);
    settled(&cluster, leader).await;
    for at in 0..3 {
        let mut redis = Redis::connect(&cluster.nodes[at]).await;
        assert_eq!(integer(redis.command(["EXISTS", "k"]).await), 0, "the SET came after it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_bytes_that_are_set_again_count_too() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let mut redis = Redis::connect(&cluster.nodes[leader]).await;
    redis.set("k", "v1").await;
    assert_eq!(redis.get("k").await.unwrap(), b"v1");
    for at in (0..3).filter(|at| *at != leader) {
        cluster.nodes[at].pause().await;
    }
    assert_eq!(text(redis.command(["SET", "k", "v2"]).await), "OK");
    assert_eq!(text(redis.command(["SET", "k", "v1"]).await), "OK");
    resume(&cluster, leader);
    settled(&cluster, leader).await;
    // Where two elections' time went by, the second was given up, which is counted: then
    // the key has no value rather than an old one.
    let mut redis = Redis::connect(&cluster.nodes[leader]).await;
    let right = async || match redis.get("k").await {
        Some(value) if value == b"v1" => Some(()),
        Some(_) => None,
        None => (cluster.nodes[leader].counter("resp_sets_failed").await > 0).then_some(()),
    };
    eventually("the last value, or none", right).await;
}

/// Several values of one MSET are stored at once, and a short one is sooner on its way
/// than a long one that came before it.
#[tokio::test(flavor = "multi_thread")]
async fn of_one_command_the_last_value_of_a_key_counts_under_load() {
    const VALUES: usize = 16;
    let cluster = TestCluster::start(1).await;
    let client = async |n: usize| {
        let (key, mut redis) = (format!("k{n}"), Redis::connect(&cluster.nodes[0]).await);
        for round in 0..10 {
            let value = |at: usize| format!("{round}.{at}.").repeat((VALUES - at) << 10);
            let mut words = vec!["MSET".to_owned()];
            words.extend((0..VALUES).flat_map(|at| [key.clone(), value(at)]));
            assert_eq!(text(redis.command(words).await), "OK");
            let last = redis.get(&key).await.unwrap();
            assert_eq!(last, value(VALUES - 1).as_bytes(), "round {round} of client {n}");
        }
    };
    join_all((0..4).map(client)).await;
}
