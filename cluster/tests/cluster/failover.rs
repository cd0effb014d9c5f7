//! Nodes that stop, start again, and lose what they had.

use kiln_cluster::{ClusterError, Start};
use tokio::time::Instant;

use crate::harness::{Seat, TestCluster, manifest, timings, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_without_the_leader() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].publish("before", b"pack").await.unwrap();
    let leader = cluster.wait_leader().await;
    cluster.nodes.remove(leader).stop().await;
    for (n, node) in cluster.nodes.iter().enumerate() {
        node.publish(&format!("after {n}"), b"pack").await.unwrap();
    }
    let (before, _) = manifest("before", b"pack");
    for node in &cluster.nodes {
        node.has(&before).await;
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_first() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].publish("before", b"pack").await.unwrap();
    let leader = cluster.wait_leader().await;
    let old = cluster.nodes.remove(leader);
    let term = old.cluster.status().term;
    old.cluster.shutdown().await;
    // It heard of its heir before it stopped: nobody's time had to run out for that.
    let last = old.cluster.status();
    let heir = last.leader.filter(|heir| *heir != old.id());
    assert!(heir.is_some() && last.term == term + 1, "{last:?}");
    wait_for("the heir to lead", async || {
        let heir = cluster.nodes.iter().find(|node| Some(node.id()) == heir)?;
        let status = heir.cluster.status();
        (status.role == kiln_cluster::Role::Leader && status.term == term + 1).then_some(())
    })
    .await;
    old.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_reads_and_says_that_it_cannot_write() {
    let mut cluster = TestCluster::start(3).await;
    let (key, _) = manifest("a", b"pack");
    cluster.nodes[0].publish("a", b"pack").await.unwrap();
    for node in &cluster.nodes {
        node.has(&key).await;
    }
    // The leader is the one that stays: it must not believe in itself.
    let leader = cluster.wait_leader().await;
    let alone = cluster.nodes.swap_remove(leader);
    for node in cluster.nodes.drain(..) {
        node.stop().await;
    }
    let asked = Instant::now();
    let refused = alone.publish("b", b"pack").await;
    assert!(matches!(refused, Err(ClusterError::Unavailable(_))), "{refused:?}");
    assert!(asked.elapsed() < timings().patience * 2, "{:?}", asked.elapsed());
    let again = Instant::now();
    let refused = alone.publish("b", b"pack").await;
    assert!(matches!(refused, Err(ClusterError::Unavailable(_))), "{refused:?}");
    assert!(again.elapsed() < timings().patience / 2, "{:?}", again.elapsed());
    assert!(alone.index.lookup(&key).await.unwrap().is_some());
    assert!(matches!(
        alone.index.lookup_linearizable(&key).await,
        Err(ClusterError::Unavailable(_))
    ));
    assert!(!alone.cluster.status().quorum);
    alone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_is_no_contact_for_its_followers() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].publish("a", b"pack").await.unwrap();
    // A learner, which hears of the leader for as long as that one speaks.
    let mut seat = Seat::new(&cluster.temp.path().join("learner")).await;
    seat.voter = false;
    let peers = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    let learner = seat.start(Start::Join { peers }).await.unwrap();
    let (key, _) = manifest("a", b"pack");
    learner.has(&key).await;
    let leader = cluster.wait_leader().await;
    let alone = cluster.nodes.swap_remove(leader);
    for node in cluster.nodes.drain(..) {
        node.stop().await;
    }
    wait_for("the learner's doubts", async || (!learner.cluster.status().quorum).then_some(()))
        .await;
    let first = alone.cluster.status().logged;
    let bound = timings().patience + timings().election_max * 2;
    for n in 0..3 {
        let asked = Instant::now();
        let refused = learner.publish(&format!("in vain {n}"), b"pack").await;
        assert!(matches!(refused, Err(ClusterError::Unavailable(_))), "{refused:?}");
        assert!(asked.elapsed() < bound, "{:?}", asked.elapsed());
    }
    let last = alone.cluster.status().logged;
    assert!(last - first <= 1, "each try left an entry in the log: {first} to {last}");
    assert!(!learner.cluster.status().quorum);
    learner.stop().await;
    alone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_all_nodes_stopped() {
    let mut cluster = TestCluster::start(3).await;
    let mut keys = Vec::new();
    for n in 0..9 {
        let name = format!("key {n}");
        keys.push(manifest(&name, b"pack").0);
        cluster.nodes[n % 3].publish(&name, b"pack").await.unwrap();
    }
    let mut places = Vec::new();
    for node in cluster.nodes.drain(..) {
        places.push((node.id(), node.dir.clone(), node.address));
        node.stop().await;
    }
    for (id, dir, address) in places {
        let seat = Seat::at(&dir, address).await;
        let opened = seat.open(Start::Join { peers: Vec::new() });
        assert!(
            opened.cluster.index().lookup(&keys[0]).await.unwrap().is_some(),
            "before any quorum"
        );
        let node = opened.start().await.unwrap();
        assert_eq!(node.id(), id);
        cluster.nodes.push(node);
    }
    for node in &cluster.nodes {
        for key in &keys {
            node.has(key).await;
        }
    }
    cluster.nodes[0].publish("after", b"pack").await.unwrap();
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let away = cluster.nodes.remove((leader + 1) % 3);
    let (id, dir, address) = (away.id(), away.dir.clone(), away.address);
    away.stop().await;
    let mut keys = Vec::new();
    for n in 0..30 {
        let name = format!("key {n}");
        keys.push(manifest(&name, b"pack").0);
        cluster.nodes[0].publish(&name, b"pack").await.unwrap();
    }
    for node in &cluster.nodes {
        node.cluster.compact().await.unwrap();
    }
    let seat = Seat::at(&dir, address).await;
    let back = seat.open(Start::Join { peers: Vec::new() });
    let mut events = back.cluster.index().events();
    let node = back.start().await.unwrap();
    assert_eq!(node.id(), id);
    for key in &keys {
        node.has(key).await;
    }
    // The log alone cannot have brought it up to date.
    wait_for("a snapshot", async || {
        (events.try_recv() == Ok(kiln_cluster::IndexEvent::Reset)).then_some(())
    })
    .await;
    cluster.nodes.push(node);
    cluster.nodes[2].publish("after", b"pack").await.unwrap();
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_is_a_new_node_and_takes_the_dead_ones_place() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].publish("before", b"pack").await.unwrap();
    let leader = cluster.wait_leader().await;
    let wiped = cluster.nodes.remove((leader + 1) % 3);
    let (old, dir, address) = (wiped.id(), wiped.dir.clone(), wiped.address);
    wiped.stop().await;
    std::fs::remove_dir_all(&dir).unwrap();
    let peers: Vec<String> = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    let seat = Seat::at(&dir, address).await;
    let start = Start::Expect { voters: 3, peers: [peers, vec![address.to_string()]].concat() };
    let node = seat.start(start).await.unwrap();
    assert_eq!(node.id(), 4, "an id was used again");
    let (before, _) = manifest("before", b"pack");
    node.has(&before).await;
    cluster.nodes.push(node);
    for node in &cluster.nodes {
        wait_for("the new voter and the end of the old one", async || {
            let nodes = node.cluster.status().nodes;
            let voters: Vec<u64> = nodes.iter().filter(|n| n.voter).map(|n| n.id).collect();
            let expected: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
            (voters == expected && nodes.len() == 3).then_some(())
        })
        .await;
        assert!(node.index.node(old).unwrap().away, "its manifests stay verifiable");
    }
    cluster.nodes[2].publish("after", b"pack").await.unwrap();
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_moved_finds_a_leader_that_changed_meanwhile() {
    let mut cluster = TestCluster::start(3).await;
    let peers: Vec<String> = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    let join = Start::Join { peers: peers.clone() };
    let mut seat = Seat::new(&cluster.temp.path().join("agent")).await;
    seat.voter = false;
    let agent = seat.start(join.clone()).await.unwrap();
    let (id, dir) = (agent.id(), agent.dir.clone());
    agent.stop().await;
    // The leader that the agent knows is there, and leads no more.
    let leader = cluster.wait_leader().await;
    let old = cluster.nodes.remove(leader);
    let (home, address) = (old.dir.clone(), old.address);
    old.stop().await;
    cluster.wait_leader().await;
    let start = Start::Expect { voters: 3, peers };
    cluster.nodes.push(Seat::at(&home, address).await.start(start).await.unwrap());
    let mut seat = Seat::new(&dir).await;
    seat.voter = false;
    let moved = seat.start(join).await.unwrap();
    assert_eq!(moved.id(), id);
    for node in &cluster.nodes {
        wait_for("its new address", async || {
            let known = node.index.node(id).unwrap().facts.grpc;
            (known == moved.address.to_string()).then_some(())
        })
        .await;
    }
    moved.publish("from the new place", b"pack").await.unwrap();
    moved.stop().await;
    cluster.stop().await;
}
