//! Who may compile, and who waits for whom.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use kiln_cluster::{Acquired, ClusterError, Published, Timings};
use kiln_proto::{ArtifactKey, Failure, FailureKind};
use tokio::time::Instant;

use crate::harness::{Node, PATIENCE, TestCluster, manifest, timings, wait_for};

/// A waiter that was told that it waits.
fn waiter(
    node: &Node,
    key: ArtifactKey,
    waiting: &Arc<AtomicUsize>,
) -> tokio::task::JoinHandle<Result<Acquired, ClusterError>> {
    let (index, waiting) = (node.index.clone(), Arc::clone(waiting));
    tokio::spawn(async move {
        let tell = || {
            waiting.fetch_add(1, Ordering::SeqCst);
        };
        index.acquire(&key, None, Instant::now() + PATIENCE, tell).await
    })
}

async fn all_wait(waiting: &AtomicUsize, count: usize) {
    let what = format!("{count} waiters");
    wait_for(&what, async || (waiting.load(Ordering::SeqCst) == count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixty_who_ask_one_compiles() {
    let cluster = TestCluster::start(3).await;
    let (key, _) = manifest("hot", b"pack");
    let waiting = Arc::default();
    let asking: Vec<_> = (0..60).map(|n| waiter(&cluster.nodes[n % 3], key, &waiting)).collect();
    let mut grants = 0;
    let mut ready = 0;
    let mut rest = asking;
    while !rest.is_empty() {
        let (answer, at, left) = futures::future::select_all(rest).await;
        rest = left;
        match answer.unwrap().unwrap() {
            Acquired::Granted(lease) => {
                grants += 1;
                all_wait(&waiting, 59).await;
                // Whoever was granted the lease publishes; any node may sign.
                let node = cluster.nodes.iter().find(|n| n.index.is_live(&key, lease.token()));
                let node = node.unwrap();
                let published =
                    node.index.publish(&lease, node.sign("hot", b"pack"), Vec::new()).await;
                assert!(matches!(published.unwrap(), Published::Committed(_)), "{at}");
            }
            Acquired::Ready(_) => ready += 1,
            Acquired::Failed(failure) => panic!("{failure}"),
        }
    }
    assert_eq!((grants, ready), (1, 59));
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_vanishes_makes_room() {
    let mut cluster = TestCluster::start(3).await;
    let (key, _) = manifest("a", b"pack");
    let leader = cluster.wait_leader().await;
    let holder = cluster.nodes.remove((leader + 1) % 3);
    let lease = holder.granted(&key).await;
    let old = lease.token();
    // Gone without a word: nothing gives the lease back.
    std::mem::forget(lease);
    let waiting = Arc::default();
    let waiters = [0, 1].map(|n| waiter(&cluster.nodes[n], key, &waiting));
    all_wait(&waiting, 2).await;
    holder.stop().await;
    let (first, at, others) = futures::future::select_all(waiters).await;
    let Acquired::Granted(lease) = first.unwrap().unwrap() else { panic!("no lease") };
    assert!(lease.token() > old, "tokens rise");
    cluster.nodes[at]
        .index
        .publish(&lease, cluster.nodes[at].sign("a", b"pack"), Vec::new())
        .await
        .unwrap();
    for other in others {
        assert!(matches!(other.await.unwrap().unwrap(), Acquired::Ready(_)));
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_lease_goes_to_the_next() {
    let cluster = TestCluster::start(1).await;
    let (key, _) = manifest("a", b"pack");
    let node = &cluster.nodes[0];
    let lease = node.granted(&key).await;
    let waiting = Arc::default();
    let next = waiter(node, key, &waiting);
    all_wait(&waiting, 1).await;
    let dropped = Instant::now();
    drop(lease);
    assert!(matches!(next.await.unwrap().unwrap(), Acquired::Granted(_)));
    assert!(dropped.elapsed() < timings().lease_ttl, "it was left to run out");
    cluster.stop().await;
}

/// Asks for `key` at `node`, and leaves after being woken `steps` times; whether an answer
/// came sooner.
async fn leaves_after(node: &Node, key: &ArtifactKey, steps: usize) -> bool {
    let mut asking = Box::pin(node.acquire(key));
    let mut woken = 0;
    let answered = std::future::poll_fn(|context| {
        let answer = asking.as_mut().poll(context);
        woken += 1;
        match answer {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if woken > steps => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    answered.await.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_leaves_at_any_moment_leaves_no_lease_behind() {
    // What is left to run out is waited for in vain.
    let timings = Timings { lease_ttl: PATIENCE * 60, ..timings() };
    let cluster = TestCluster::start_with(3, &timings).await;
    let leader = cluster.wait_leader().await;
    let next = &cluster.nodes[(leader + 2) % 3];
    for (who, node) in [("leader", leader), ("follower", (leader + 1) % 3)] {
        for steps in 0.. {
            assert!(steps < 1000, "it never gets an answer");
            let (key, _) = manifest(&format!("{who} {steps}"), b"pack");
            let answered = leaves_after(&cluster.nodes[node], &key, steps).await;
            let granted = tokio::time::timeout(PATIENCE / 2, next.granted(&key)).await;
            assert!(granted.is_ok(), "the {who} keeps the lease of who left after {steps} steps");
            if answered {
                break;
            }
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_leaves_no_lease_behind() {
    let timings = Timings { lease_ttl: PATIENCE * 60, ..timings() };
    let cluster = TestCluster::start_with(3, &timings).await;
    let leader = cluster.wait_leader().await;
    let leads = &cluster.nodes[leader].index;
    for (who, node) in [("leader", leader), ("follower", (leader + 1) % 3)] {
        let node = &cluster.nodes[node];
        let mut left = 0;
        for n in 0..50 {
            let (key, _) = manifest(&format!("{who} {n}"), b"pack");
            let is_leased = || leads.leases(100).1.iter().any(|(leased, ..)| *leased == key);
            let mut asking = Box::pin(node.acquire(&key));
            // Not polled any more once its lease is there.
            let applied = std::future::poll_fn(|context| match is_leased() {
                true => Poll::Ready(true),
                false => asking.as_mut().poll(context).map(|_| false),
            });
            left += usize::from(applied.await);
            drop(asking);
            let next = &cluster.nodes[(leader + 2) % 3];
            let granted = tokio::time::timeout(PATIENCE / 2, next.granted(&key)).await;
            assert!(granted.is_ok(), "the {who} keeps the lease of who left");
        }
        assert!(left > 0, "the {who} was asked in vain");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_ends_at_its_deadline() {
    let cluster = TestCluster::start(3).await;
    let (key, _) = manifest("a", b"pack");
    let _lease = cluster.nodes[0].granted(&key).await;
    for node in &cluster.nodes {
        let deadline = Instant::now() + Duration::from_millis(300);
        let ended = node.index.acquire(&key, None, deadline, || {}).await;
        assert!(matches!(ended, Err(ClusterError::Deadline)), "{ended:?}");
        assert!(deadline.elapsed() < Duration::from_secs(2));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_told_to_all_who_wait_and_remembered_for_a_while() {
    let cluster = TestCluster::start(3).await;
    let (key, _) = manifest("a", b"pack");
    let lease = cluster.nodes[0].granted(&key).await;
    let waiting = Arc::default();
    let waiters: Vec<_> = (0..6).map(|n| waiter(&cluster.nodes[n % 3], key, &waiting)).collect();
    all_wait(&waiting, 6).await;
    // Of the class that is remembered for a short time.
    let failure = Failure::new(FailureKind::Timeout, "too slow");
    cluster.nodes[0].index.fail(&lease, failure.clone()).await.unwrap();
    for answer in waiters {
        let Acquired::Failed(told) = answer.await.unwrap().unwrap() else { panic!("not told") };
        assert_eq!(told, failure);
    }
    for node in &cluster.nodes {
        wait_for("the end of the negative entry", async || {
            node.index.failure(&key).await.unwrap().is_none().then_some(())
        })
        .await;
    }
    assert!(matches!(cluster.nodes[1].acquire(&key).await.unwrap(), Acquired::Granted(_)));
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_of_one_node_the_next_one_tries() {
    let cluster = TestCluster::start(1).await;
    let (key, _) = manifest("a", b"pack");
    let node = &cluster.nodes[0];
    let lease = node.granted(&key).await;
    let waiting = Arc::default();
    let next = waiter(node, key, &waiting);
    all_wait(&waiting, 1).await;
    let failure = Failure::new(FailureKind::ToolchainMissing, "no NVRTC here");
    node.index.fail(&lease, failure).await.unwrap();
    assert!(matches!(next.await.unwrap().unwrap(), Acquired::Granted(_)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_its_leader() {
    let mut cluster = TestCluster::start(3).await;
    let (key, _) = manifest("a", b"pack");
    let leader = cluster.wait_leader().await;
    let holder = (leader + 1) % 3;
    let lease = cluster.nodes[holder].granted(&key).await;
    let signed = cluster.nodes[holder].sign("a", b"pack");
    let holder_id = cluster.nodes[holder].id();
    cluster.nodes.remove(leader).stop().await;
    let holder = cluster.nodes.iter().position(|n| n.id() == holder_id).unwrap();
    // Another node waits for the whole time, and must not get it.
    let waiting = Arc::default();
    let other = waiter(&cluster.nodes[1 - holder], key, &waiting);
    let watched = Instant::now() + timings().lease_ttl * 3;
    wait_for("three times to live", async || {
        assert!(!lease.is_lost(), "a lease with heartbeats ended");
        assert!(cluster.nodes[holder].index.is_live(&key, lease.token()));
        (Instant::now() > watched).then_some(())
    })
    .await;
    cluster.nodes[holder].index.publish(&lease, signed, Vec::new()).await.unwrap();
    assert!(matches!(other.await.unwrap().unwrap(), Acquired::Ready(_)));
    cluster.states_are_equal().await;
    cluster.stop().await;
}
