//! Invariants 1, 2, 6: leaders and holders die; waiters end, fences hold.

use std::sync::atomic::{AtomicBool, Ordering};

use kiln_proto::pb::{Outcome, compile_event::Event};
use tokio::sync::Notify;

use crate::harness::{TestCluster, bytes_of, eventually, kind, saxpy, slow};

/// The leader dies while it compiles: the waiters on the other nodes get the
/// artifact, from one more compile.
#[tokio::test(flavor = "multi_thread")]
async fn the_leader_killed_while_it_compiles() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let request = || slow("orphan", 60);

    let compiling = Notify::new();
    let holder = cluster.nodes[leader].compile_watching(request(), |event| {
        if matches!(event, Event::Compiling(_)) {
            compiling.notify_one();
        }
    });
    let waiting = [AtomicBool::new(false), AtomicBool::new(false)];
    let all_wait = Notify::new();
    let waiters = others.iter().zip(&waiting).map(|(i, flag)| {
        let node = &cluster.nodes[*i];
        let (compiling, all_wait, waiting) = (&compiling, &all_wait, &waiting);
        async move {
            compiling.notified().await;
            compiling.notify_one();
            node.compile_watching(request(), |event| {
                if matches!(event, Event::Waiting(_)) {
                    flag.store(true, Ordering::SeqCst);
                    if waiting.iter().all(|f| f.load(Ordering::SeqCst)) {
                        all_wait.notify_one();
                    }
                }
            })
            .await
        }
    });
    let pid = rustix::process::Pid::from_raw(cluster.nodes[leader].pid() as i32).unwrap();
    let assassin = async {
        all_wait.notified().await;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    let (holder, answers, ()) = tokio::join!(holder, futures::future::join_all(waiters), assassin);
    assert!(holder.is_err(), "its node is dead");
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers[0].manifest, answers[1].manifest);
    cluster.nodes[leader].kill().await;
    assert_eq!(cluster.counter("compiler_runs").await, 1, "one more compile, by one survivor");
    let again = cluster.nodes[others[0]].compile(request()).await.unwrap();
    assert_eq!(again.outcome, Outcome::Hit);
}

/// A waiter whose deadline passes gets C004, not silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_ends_at_its_deadline() {
    let cluster = TestCluster::start(1).await;
    let mut hasty = slow("late", 200);
    hasty.deadline_ms = 300;
    let refused = cluster.nodes[0].compile(hasty).await.unwrap_err();
    assert_eq!(kind(&refused), Some("timeout"), "{refused}");
    assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
}

/// A holder that dies with a client's lease leaves the key free for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_its_client() {
    use kiln_proto::pb::{LeaseRequest, lease_event::Event as Lease};
    let cluster = TestCluster::start(3).await;
    let key = kiln_proto::ArtifactKey::from_bytes([7; 32]);
    let ask = || LeaseRequest { key: bytes_of(&key), deadline_ms: 60_000 };
    let mut first = cluster.nodes[0].client().await.lease(ask()).await.unwrap().into_inner();
    let granted = |event: Option<kiln_proto::pb::LeaseEvent>| match event.unwrap().event.unwrap() {
        Lease::Granted(granted) => Some(granted.token),
        Lease::Waiting(_) => None,
        other => panic!("{other:?}"),
    };
    let token = granted(first.message().await.unwrap()).expect("granted at once");
    let mut second = cluster.nodes[1].client().await.lease(ask()).await.unwrap().into_inner();
    assert_eq!(granted(second.message().await.unwrap()), None, "it waits");
    drop(first);
    let next = granted(second.message().await.unwrap()).expect("granted after the first left");
    assert!(next > token, "tokens rise: {token} then {next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_after_the_leader_died() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let before = cluster.nodes[leader].compile(saxpy("before")).await.unwrap();
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    eventually("the upload", async || {
        let entry = cluster.nodes[others[0]].lookup(&before.key).await.unwrap()?;
        entry.stored.then_some(())
    })
    .await;
    cluster.nodes[leader].kill().await;
    cluster.leader(&others).await;
    for i in others {
        let node = &cluster.nodes[i];
        assert_eq!(node.compile(saxpy("before")).await.unwrap().outcome, Outcome::Hit);
        assert!(node.compile(saxpy(&format!("after_{i}"))).await.is_ok());
    }
}
