//! Nodes that come and go in good order.

use kiln_cluster::{ClusterError, Role, Start};

use crate::harness::{Seat, TestCluster, manifest, wait_for};

fn voters(node: &crate::harness::Node) -> Vec<u64> {
    let nodes = node.cluster.status().nodes;
    nodes.iter().filter(|n| n.voter).map(|n| n.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_to_three() {
    let mut cluster = TestCluster::start(1).await;
    cluster.nodes[0].publish("alone", b"pack").await.unwrap();
    let peer = cluster.nodes[0].address.to_string();
    // One joins by itself.
    let seat = Seat::new(&cluster.temp.path().join("second")).await;
    cluster.nodes.push(seat.start(Start::Join { peers: vec![peer] }).await.unwrap());
    assert_eq!(voters(&cluster.nodes[0]), [1], "two voters bear no failure");
    // The other waits until it is admitted.
    let seat = Seat::new(&cluster.temp.path().join("third")).await;
    let address = seat.address.to_string();
    let waiting = tokio::spawn(seat.start(Start::Join { peers: Vec::new() }));
    let id = cluster.nodes[1].cluster.add(&address).await.unwrap();
    assert_eq!(id, 3);
    assert_eq!(cluster.nodes[1].cluster.add(&address).await.unwrap(), 3, "a retry");
    cluster.nodes.push(waiting.await.unwrap().unwrap());
    for node in &cluster.nodes {
        wait_for("three voters", async || (voters(node) == [1, 2, 3]).then_some(())).await;
        node.has(&manifest("alone", b"pack").0).await;
    }
    // Now any one may go.
    cluster.nodes.remove(0).stop().await;
    cluster.nodes[0].publish("without the first", b"pack").await.unwrap();
    cluster.states_are_equal().await;
    cluster.stop().await;
}

/// A leader that asked again and again would only keep whoever mistyped the address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_a_node_is_refused_with_what_to_do() {
    let cluster = TestCluster::start(1).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [closed.to_string(), silent, "no-such-host.invalid:7400".into()] {
        match cluster.nodes[0].cluster.add(&address).await {
            Err(ClusterError::Invalid(why)) => {
                assert!(why.contains(&address) && why.contains("kiln serve"), "{why}");
            }
            other => panic!("{address}: {other:?}"),
        }
    }
    drop(listener);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_leaves_and_another_leads() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].publish("before", b"pack").await.unwrap();
    let leader = cluster.wait_leader().await;
    let leaving = cluster.nodes.remove(leader);
    let id = leaving.id();
    leaving.cluster.leave().await.unwrap();
    leaving.stop().await;
    for node in &cluster.nodes {
        wait_for("a cluster of two", async || {
            let nodes = node.cluster.status().nodes;
            let gone = nodes.len() == 2 && !voters(node).contains(&id);
            (gone && node.cluster.status().leader.is_some_and(|l| l != id)).then_some(())
        })
        .await;
    }
    let signer = cluster.nodes[0].index.node(id).unwrap();
    assert!(signer.left);
    cluster.nodes[1].publish("after", b"pack").await.unwrap();
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_replaced_by_a_learner() {
    let mut cluster = TestCluster::start(3).await;
    let peers: Vec<String> = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    let seat = Seat::new(&cluster.temp.path().join("fourth")).await;
    cluster.nodes.push(seat.start(Start::Join { peers }).await.unwrap());
    let leader = cluster.wait_leader().await;
    let removed = cluster.nodes.remove((leader + 1) % 3);
    cluster.nodes[0].cluster.remove(removed.id()).await.unwrap();
    for node in &cluster.nodes {
        wait_for("the learner's vote", async || {
            let voters = voters(node);
            (voters.len() == 3 && voters.contains(&4)).then_some(())
        })
        .await;
    }
    let refused = cluster.nodes[0].cluster.remove(99).await;
    assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{refused:?}");
    removed.stop().await;
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_cannot_leave() {
    let cluster = TestCluster::start(1).await;
    let refused = cluster.nodes[0].cluster.leave().await;
    assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{refused:?}");
    assert_eq!(cluster.nodes[0].cluster.status().role, Role::Leader);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_of_the_peers_founds_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let seat = Seat::new(temp.path()).await;
    let mine = seat.address.to_string();
    let peers = vec![mine, "127.0.0.1:1".into(), "127.0.0.1:2".into()];
    let refused = seat.start(Start::Expect { voters: 1, peers }).await;
    assert!(matches!(refused, Err(ClusterError::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_abstains_never_votes() {
    let mut cluster = TestCluster::start(3).await;
    let peers: Vec<String> = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    let mut seat = Seat::new(&cluster.temp.path().join("agent")).await;
    seat.voter = false;
    let agent = seat.start(Start::Join { peers: peers.clone() }).await.unwrap();
    // A place is free, and only who may vote takes it.
    let leader = cluster.wait_leader().await;
    let removed = cluster.nodes.remove((leader + 1) % 3);
    cluster.nodes[0].cluster.remove(removed.id()).await.unwrap();
    removed.stop().await;
    let seat = Seat::new(&cluster.temp.path().join("fifth")).await;
    cluster.nodes.push(seat.start(Start::Join { peers }).await.unwrap());
    wait_for("three voters again", async || (voters(&agent).len() == 3).then_some(())).await;
    assert!(!voters(&agent).contains(&agent.id()), "{:?}", voters(&agent));
    agent.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_become_five_and_three_again() {
    let mut cluster = TestCluster::start(3).await;
    let mut peers: Vec<String> = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    for name in ["fourth", "fifth"] {
        let seat = Seat::new(&cluster.temp.path().join(name)).await;
        peers.push(seat.address.to_string());
        // As the new pods of a StatefulSet of five are started.
        let start = Start::Expect { voters: 5, peers: peers.clone() };
        cluster.nodes.push(seat.start(start).await.unwrap());
    }
    for node in &cluster.nodes {
        wait_for("five voters", async || (voters(node).len() == 5).then_some(())).await;
    }
    let refused = cluster.nodes[0].cluster.set_voters(4).await;
    assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{refused:?}");
    assert!(cluster.nodes[4].cluster.set_voters(3).await.unwrap());
    for node in &cluster.nodes {
        // The newest go, unless an older one was silent for so long that it counts as dead.
        wait_for("three voters", async || (voters(node).len() == 3).then_some(())).await;
    }
    cluster.nodes[4].publish("after", b"pack").await.unwrap();
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_while_it_was_away_learns_it() {
    let mut cluster = TestCluster::start(3).await;
    let third = cluster.nodes.pop().unwrap();
    let (id, dir, address) = (third.id(), third.dir.clone(), third.address);
    third.stop().await;
    cluster.nodes[0].cluster.remove(id).await.unwrap();
    assert!(!cluster.nodes[0].cluster.has_left());

    // It finds its peers by what its own replica has, too.
    let again = Seat::at(&dir, address).await;
    let again = again.start(Start::Join { peers: Vec::new() }).await.unwrap();
    assert_eq!(again.id(), id);
    wait_for("the news", async || again.cluster.has_left().then_some(())).await;
    again.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_address_was_given_away_comes_back_as_itself() {
    let cluster = TestCluster::start(3).await;
    let peers: Vec<String> = cluster.nodes.iter().map(|n| n.address.to_string()).collect();
    let join = || Start::Join { peers: peers.clone() };
    let start = async |name: &str, address| {
        let mut seat = Seat::at(&cluster.temp.path().join(name), address).await;
        seat.voter = false;
        seat.start(join()).await.unwrap()
    };
    let anywhere = || "127.0.0.1:0".parse().unwrap();
    let agent = start("agent", anywhere()).await;
    let (id, address) = (agent.id(), agent.address);
    agent.stop().await;
    let other = start("other", address).await;
    assert_ne!(other.id(), id);
    let first = &cluster.nodes[0];
    let listed = |id| first.cluster.status().nodes.iter().any(|node| node.id == id);
    wait_for("the end of its membership", async || (!listed(id)).then_some(())).await;
    assert!(first.index.node(id).is_some_and(|node| node.away && !node.left));

    let agent = start("agent", anywhere()).await;
    assert_eq!(agent.id(), id, "the same disk is the same node");
    wait_for("its return", async || listed(id).then_some(())).await;
    first.publish("after", b"pack").await.unwrap();
    agent.has(&manifest("after", b"pack").0).await;
    assert!(!agent.cluster.has_left() && agent.cluster.status().quorum);
    let votes = |id| first.cluster.status().nodes.iter().any(|node| node.id == id && node.voter);
    assert!(!votes(id), "it abstains as before");
    agent.stop().await;
    other.stop().await;
    cluster.stop().await;
}
