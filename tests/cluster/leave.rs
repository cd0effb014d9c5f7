//! Nodes that leave: what was acknowledged at them is not lost with their disk.
//!
//! "Gone" is the whole of it: the process ended, its data folder deleted.

use std::{
    process::{ExitStatus, Output},
    time::Duration,
};

use futures::future::join_all;
use kiln::config::Config;
use kiln_proto::{Manifest, pb, pb::publish_chunk::Chunk};
use tokio::{process::Command, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use crate::{
    harness::{SOON, TestCluster, TestNode, bytes_of, eventually, http, kind, saxpy},
    publish::{replace, value_of},
    redis::Redis,
};

/// Bytes of one value: more than the disks of nodes with [`tiny_disks`] take.
const SIZE: usize = 300 << 10;

fn no_object_store(_: usize, config: &mut Config) {
    config.object.url = None;
    // A lease that was not given back is seen to be held.
    config.cluster.lease_ttl = Duration::from_secs(300);
    config.publish.patience = SOON;
}

/// Without an object store, and node 0 alone has room.
fn tiny_disks(node: usize, config: &mut Config) {
    no_object_store(node, config);
    if node != 0 {
        config.disk.bytes = 64 << 10;
    }
}

/// Values that were acknowledged.
type Values = Vec<(Manifest, Vec<u8>)>;

/// Publishes `n` values at `node`, all at once.
async fn publish(node: &TestNode, name: &str, n: usize) -> Values {
    let values: Values = (0..n)
        .map(|i| {
            let bytes = format!("{name} {i} ").into_bytes();
            let bytes: Vec<u8> = bytes.into_iter().cycle().take(SIZE).collect();
            (value_of(&format!("{name} {i}"), &bytes), bytes)
        })
        .collect();
    let published = values.iter().map(|(manifest, bytes)| replace(node, manifest, bytes));
    for answer in join_all(published).await {
        assert!(answer.unwrap().committed);
    }
    values
}

fn within(time: Duration, force: bool) -> pb::LeaveRequest {
    pb::LeaveRequest { force, within_ms: Some(time.as_millis() as u64) }
}

async fn leave(node: &TestNode, request: pb::LeaveRequest) -> Result<pb::LeaveResponse, Status> {
    node.client().await.leave(request).await.map(Response::into_inner)
}

/// The same, in the background.
async fn leaving(
    node: &TestNode,
    request: pb::LeaveRequest,
) -> JoinHandle<Result<pb::LeaveResponse, Status>> {
    let mut client = node.client().await;
    let leave = async move { client.leave(request).await.map(Response::into_inner) };
    let leave = tokio::spawn(leave);
    eventually("the node to leave", async || progress(node).await).await;
    leave
}

async fn progress(node: &TestNode) -> Option<pb::Leaving> {
    node.status().await.ok()?.leaving
}

/// Ends a node with its disk.
async fn gone(node: &mut TestNode) {
    node.terminate().await;
    std::fs::remove_dir_all(node.data()).unwrap();
}

async fn all_have(nodes: &[&TestNode], values: &Values) {
    for (manifest, bytes) in values {
        for node in nodes {
            let found = eventually("the entry", async || node.fetch(&manifest.key).await.ok());
            assert!(found.await.1 == *bytes, "{}", manifest.label);
        }
    }
}

/// Publishes at a node, the leader perhaps, and lets it leave at once.
async fn survives(
    mut cluster: TestCluster,
    leaves: usize,
    meanwhile: impl AsyncFnOnce(&TestCluster),
) {
    let values = publish(&cluster.nodes[leaves], "value", 24).await;
    meanwhile(&cluster).await;
    let left = leave(&cluster.nodes[leaves], within(SOON, false)).await.unwrap();
    assert_eq!(left.lost, None);
    gone(&mut cluster.nodes[leaves]).await;
    let others: Vec<&TestNode> =
        (0..3).filter(|i| *i != leaves).map(|i| &cluster.nodes[i]).collect();
    all_have(&others, &values).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_alone_has_is_uploaded_before_it_leaves() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    survives(cluster, leader, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_object_store_other_nodes_keep_it() {
    let cluster = TestCluster::start_with(3, no_object_store).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    survives(cluster, (leader + 1) % 3, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_that_is_down_leaves_it_to_other_nodes() {
    let cluster = TestCluster::start(3).await;
    // Before anything is stored: permissions do not keep root out, a file in its place does.
    let object = cluster.folder.path().join("object");
    std::fs::rename(&object, cluster.folder.path().join("away")).unwrap();
    std::fs::write(&object, "not a folder").unwrap();
    survives(cluster, 0, async |_| {}).await;
}

/// Two nodes, each of which counts among the holders of what the other has.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_leave_at_once_do_not_rely_on_each_other() {
    let mut cluster = TestCluster::start_with(5, no_object_store).await;
    let leader = cluster.leader(&[0, 1, 2, 3, 4]).await;
    let pair = [(leader + 1) % 5, (leader + 2) % 5];
    let mut values = publish(&cluster.nodes[pair[0]], "first", 4).await;
    values.extend(publish(&cluster.nodes[pair[1]], "second", 4).await);
    let both = pair.map(|at| &cluster.nodes[at]);
    all_have(&both, &values).await;
    eventually("both to be registered", async || {
        for (manifest, _) in &values {
            let holders = both[0].lookup(&manifest.key).await.ok()??.holders;
            both.iter().all(|node| holders.contains(&node.id)).then_some(())?;
        }
        Some(())
    })
    .await;
    let left = join_all(both.map(|node| leave(node, within(SOON, false)))).await;
    for left in left {
        assert_eq!(left.unwrap().lost, None);
    }
    for at in pair {
        gone(&mut cluster.nodes[at]).await;
    }
    let others: Vec<&TestNode> =
        (0..5).filter(|i| !pair.contains(i)).map(|i| &cluster.nodes[i]).collect();
    all_have(&others, &values).await;
}

async fn kiln(node: &TestNode, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).args(["--endpoint", &node.config.grpc_listen.to_string()]);
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stays_where_nobody_takes_what_it_has_and_goes_by_force() {
    let cluster = TestCluster::start_with(3, tiny_disks).await;
    let values = publish(&cluster.nodes[0], "value", 3).await;
    let refused = kiln(&cluster.nodes[0], &["cluster", "leave", "--within", "5s"]).await;
    let (code, why) = (refused.status.code(), text(&refused.stderr));
    assert_eq!(code, Some(21), "{why}");
    assert!(why.contains("3 packs (921600 bytes)") && why.contains("--force"), "{why}");
    assert!(why.contains("handing over: 3 packs (900.0 KiB) only there"), "{why}");
    let error = leave(&cluster.nodes[0], within(Duration::ZERO, false)).await.unwrap_err();
    assert_eq!((error.code(), kind(&error)), (Code::FailedPrecondition, Some("only_here")));

    // It is a member as before.
    let more = publish(&cluster.nodes[0], "more", 1).await;
    all_have(&[&cluster.nodes[0]], &values).await;
    all_have(&[&cluster.nodes[0]], &more).await;
    assert_eq!(http(&cluster.nodes[0], "/readyz").await.0, 200);
    assert_eq!(progress(&cluster.nodes[0]).await, None);

    let forced = ["cluster", "leave", "--force", "--within", "1s", "--json"];
    let forced = kiln(&cluster.nodes[0], &forced).await;
    assert_eq!(ExitStatus::code(&forced.status), Some(0), "{}", text(&forced.stderr));
    let said: serde_json::Value = serde_json::from_slice(&forced.stdout).unwrap();
    assert_eq!(said["lost"]["packs"], 4, "{said}");
    assert_eq!(said["left"], true);
    assert_eq!(cluster.nodes[0].status().await.unwrap().role, "removed");
}

/// What a node that leaves answers, and that a second call joins the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_reads_and_takes_nothing_new() {
    let cluster = TestCluster::start_with(3, tiny_disks).await;
    let (node, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let made = node.compile(saxpy("made")).await.unwrap();
    let values = publish(node, "value", 2).await;
    let lost = value_of("lost", b"lost");
    let lease = |key| pb::LeaseRequest { key: bytes_of(key), deadline_ms: 60_000 };
    let mut held = node.client().await.lease(lease(&lost.key)).await.unwrap().into_inner();
    let granted = held.message().await.unwrap().unwrap().event;
    assert!(matches!(granted, Some(pb::lease_event::Event::Granted(_))), "{granted:?}");
    let mut waits = other.client().await.lease(lease(&lost.key)).await.unwrap().into_inner();
    let waiting = waits.message().await.unwrap().unwrap().event;
    assert!(matches!(waiting, Some(pb::lease_event::Event::Waiting(_))), "{waiting:?}");

    let first = leaving(node, within(SOON * 10, false)).await;
    eventually("the values to be told of", async || {
        (progress(node).await?.packs >= 2).then_some(())
    })
    .await;
    all_have(&[node], &values).await;
    assert_eq!(node.compile(saxpy("made")).await.unwrap().key, made.key);
    let mut refused = vec![
        replace(node, &value_of("new", b"new"), b"new").await.map(drop),
        node.compile(saxpy("new")).await.map(drop),
        node.client().await.lease(lease(&made.key)).await.map(drop),
    ];
    // The lease is another client's now, long before it runs out.
    let ended = timeout(SOON, held.message()).await.expect("the holder is told");
    refused.push(ended.map(drop));
    for refused in refused {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), kind(&refused)), (Code::Unavailable, Some("leaving")));
        assert!(refused.message().contains("ask another node"), "{refused}");
    }
    let next = timeout(SOON, waits.message()).await.expect("the lease is given back");
    let next = next.unwrap().unwrap().event;
    assert!(matches!(next, Some(pb::lease_event::Event::Granted(_))), "{next:?}");
    let mut redis = Redis::connect(node).await;
    let failed = node.counter("resp_sets_failed").await;
    redis.set("new", "value").await;
    assert_eq!(node.counter("resp_sets_failed").await, failed + 1);
    assert_eq!(redis.get("value 0").await.unwrap(), values[0].1);
    let (code, page) = http(node, "/readyz").await;
    assert!(code == 503 && page.contains("leaves the cluster"), "{code} {page}");

    // The time of the last call counts, and both are told.
    let second = leave(node, within(Duration::ZERO, false)).await.unwrap_err();
    let first = timeout(SOON, first).await.expect("the first ends").unwrap().unwrap_err();
    for refused in [second, first] {
        assert_eq!(kind(&refused), Some("only_here"), "{refused}");
    }
    publish(node, "again", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_under_way_is_waited_for() {
    let mut cluster = TestCluster::start_with(3, no_object_store).await;
    let node = &cluster.nodes[0];
    // More than is on its way before anybody reads it.
    let bytes = vec![7; 16 << 20];
    let manifest = value_of("slow", &bytes);
    let header = pb::PublishHeader {
        manifest: Some((&manifest).into()),
        replace: true,
        ..Default::default()
    };
    let chunk = |chunk| pb::PublishChunk { chunk: Some(chunk) };
    let (send, sent) = mpsc::channel(1);
    let mut client = node.client().await;
    let published = tokio::spawn(async move { client.publish(ReceiverStream::new(sent)).await });
    send.send(chunk(Chunk::Header(header))).await.unwrap();
    let mut data = bytes.chunks(256 << 10).map(|part| chunk(Chunk::Data(part.to_vec().into())));
    for part in data.by_ref().take(32) {
        send.send(part).await.unwrap();
    }
    let left = leaving(node, within(SOON, false)).await;
    eventually("the publication to be waited for", async || {
        (progress(node).await?.publications == 1).then_some(())
    })
    .await;
    for part in data {
        send.send(part).await.unwrap();
    }
    drop(send);
    assert!(published.await.unwrap().unwrap().into_inner().committed, "it was acknowledged");
    assert_eq!(left.await.unwrap().unwrap().lost, None);
    gone(&mut cluster.nodes[0]).await;
    all_have(&[&cluster.nodes[1], &cluster.nodes[2]], &vec![(manifest, bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_while_it_leaves_comes_back_as_a_member() {
    let mut cluster = TestCluster::start_with(3, tiny_disks).await;
    let values = publish(&cluster.nodes[0], "value", 2).await;
    let leave = leaving(&cluster.nodes[0], within(SOON * 10, true)).await;
    cluster.nodes[0].kill().await;
    assert!(leave.await.unwrap().is_err());
    cluster.nodes[0].restart().await;
    all_have(&[&cluster.nodes[0]], &values).await;
    eventually("writes to go on", async || {
        let value = value_of("after", b"after");
        replace(&cluster.nodes[0], &value, b"after").await.ok()
    })
    .await;
}

/// A leader that stands still: whether the node is a member is not known for a while, and
/// until it is, the node takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn while_its_removal_is_not_confirmed_a_node_takes_nothing() {
    let cluster = TestCluster::start_with(3, no_object_store).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let node = &cluster.nodes[(leader + 1) % 3];
    let values = publish(node, "value", 2).await;
    cluster.nodes[leader].pause().await;
    // Without the one that stands still, nobody can confirm a membership of two.
    let left = leaving(node, within(Duration::from_secs(20), false)).await;
    eventually("the removal to be applied", async || {
        let other = &cluster.nodes[(leader + 2) % 3];
        let status = other.status().await.ok()?;
        status.nodes.iter().all(|n| n.id != node.id).then_some(())
    })
    .await;
    let refused = replace(node, &value_of("late", b"late"), b"late").await.unwrap_err();
    assert!(matches!(kind(&refused), Some("leaving" | "left")), "{refused}");
    cluster.nodes[leader].resume();
    // Out it is; that others count on it no more may not have been seen here.
    let left = timeout(SOON, left).await.expect("the call ends").unwrap();
    assert!(left.as_ref().err().is_none_or(|e| e.code() == Code::Unavailable), "{left:?}");
    eventually("the node to have left", async || {
        (node.status().await.ok()?.role == "removed").then_some(())
    })
    .await;
    all_have(&[&cluster.nodes[leader], &cluster.nodes[(leader + 2) % 3]], &values).await;
}
