//! Nodes that are members no more: what each door of theirs answers. The table in
//! `deploy/DAY2.md` says the same in words.

use std::process::Output;

use kiln::transfer::{ClientSettings, LocalClient};
use kiln_proto::{ArtifactKey, pb, pb::kiln_server::SERVICE_NAME, value};
use tokio::{process::Command, time::timeout};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    harness::{NAMESPACE, SOON, TestCluster, TestNode, bytes_of, eventually, http, kind, saxpy},
    redis::{Redis, integer, text},
};

/// `kiln` with `arguments`, asking `nodes` in turn.
pub(crate) async fn kiln(arguments: &[&str], nodes: &[&TestNode]) -> Output {
    let endpoints: Vec<_> = nodes.iter().map(|n| n.config.grpc_listen.to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).args(["--json", "--endpoint", &endpoints.join(",")]);
    command.output().await.unwrap()
}

async fn health_client(node: &TestNode) -> HealthClient<Channel> {
    let endpoint = format!("http://{}", node.config.grpc_listen);
    HealthClient::new(Channel::from_shared(endpoint).unwrap().connect().await.unwrap())
}

/// What gRPC's health service says of `service`.
async fn health(node: &TestNode, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest { service: service.into() };
    Ok(health_client(node).await.check(request).await?.into_inner().status())
}

/// What every call of the API but Status answers.
async fn refusals(node: &TestNode, key: &ArtifactKey) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = node.client().await;
    let fetch =
        pb::FetchRequest { key: bytes_of(key), namespace: NAMESPACE.into(), ..Default::default() };
    let lease = pb::LeaseRequest { key: bytes_of(key), deadline_ms: 1000 };
    let pin = pb::PinRequest { key: bytes_of(key), pinned: true };
    let tombstone = pb::TombstoneRequest { key: bytes_of(key), reason: String::new() };
    let explain =
        pb::ExplainRequest { subject: Some(pb::explain_request::Subject::Key(bytes_of(key))) };
    let nothing = futures::stream::iter([pb::PublishChunk { chunk: None }]);
    let add = pb::AddNodeRequest { address: "127.0.0.1:1".into() };
    vec![
        ("compile", node.compile(saxpy("known")).await.map(drop)),
        ("lookup", node.lookup(key).await.map(drop)),
        ("fetch", client.fetch(fetch).await.map(drop)),
        ("lease", client.lease(lease).await.map(drop)),
        ("publish", client.publish(nothing).await.map(drop)),
        ("list", client.list(pb::ListRequest::default()).await.map(drop)),
        ("explain", client.explain(explain).await.map(drop)),
        ("pin", client.pin(pin).await.map(drop)),
        ("tombstone", client.tombstone(tombstone).await.map(drop)),
        ("loaded", client.loaded(pb::LoadedRequest::default()).await.map(drop)),
        ("add", client.add_node(add).await.map(drop)),
        ("remove", client.remove_node(pb::RemoveNodeRequest { id: 1 }).await.map(drop)),
        ("leave", client.leave(pb::LeaveRequest::default()).await.map(drop)),
        ("voters", client.set_voters(pb::SetVotersRequest { voters: 3 }).await.map(drop)),
        ("restore", client.restore(pb::RestoreRequest::default()).await.map(drop)),
    ]
}

/// All that the table says of a node that left, of which `member` is none.
async fn answers_as_one_that_left(left: &TestNode, member: &TestNode, key: &ArtifactKey) {
    eventually("the node to know that it left", async || {
        (left.status().await.ok()?.role == "removed").then_some(())
    })
    .await;
    assert_eq!(http(left, "/healthz").await.0, 200, "it lives");
    let (code, page) = http(left, "/readyz").await;
    assert_eq!(code, 503, "{page}");
    assert!(page.contains("left the cluster") && page.contains("removed"), "{page}");
    for service in ["", SERVICE_NAME] {
        assert_eq!(health(left, service).await.unwrap(), ServingStatus::NotServing, "{service:?}");
        assert_eq!(health(member, service).await.unwrap(), ServingStatus::Serving, "{service:?}");
    }

    for (call, answer) in refusals(left, key).await {
        let refused = answer.expect_err(call);
        assert_eq!(refused.code(), Code::FailedPrecondition, "{call}: {refused}");
        assert_eq!(kind(&refused), Some("left"), "{call}: {refused}");
    }

    // A cache never fails its clients: nothing is there, and what they store is lost.
    let failed = left.counter("resp_sets_failed").await;
    let mut redis = Redis::connect(left).await;
    assert_eq!(redis.get("known").await, None);
    redis.set("known", "changed").await;
    assert_eq!(left.counter("resp_sets_failed").await, failed + 1);
    assert_eq!(redis.get("known").await, None);
    assert_eq!(integer(redis.command(["DEL", "known"]).await), 0);
    assert_eq!(integer(redis.command(["DBSIZE"]).await), 0);
    assert_eq!(text(redis.command(["PING"]).await), "PONG");
    let mut other = Redis::connect(member).await;
    assert_eq!(other.get("known").await.unwrap(), b"value", "the cluster's value stays");

    let socket = left.config.socket.clone().unwrap();
    let mut local = LocalClient::connect(&socket, ClientSettings::default()).await.unwrap();
    let refused = local.fetch(key, "").await.unwrap_err().to_string();
    assert!(refused.contains("left the cluster"), "{refused}");

    let alone = kiln(&["ls"], &[left]).await;
    assert_eq!(alone.status.code(), Some(3), "{alone:?}");
    let next = kiln(&["ls"], &[left, member]).await;
    assert!(next.status.success(), "the next endpoint serves: {next:?}");
    let status = kiln(&["status"], &[left]).await;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["role"], "removed");
}

/// Three nodes, a value and an artifact that all of them have; the key of the latter.
async fn filled() -> (TestCluster, ArtifactKey) {
    let cluster = TestCluster::start(3).await;
    let made = cluster.nodes[0].compile(saxpy("known")).await.unwrap();
    Redis::connect(&cluster.nodes[0]).await.set("known", "value").await;
    let value = value::components(NAMESPACE, b"known").key();
    for node in &cluster.nodes {
        eventually("the value on each node", async || {
            node.lookup(&value).await.unwrap()?;
            Redis::connect(node).await.get("known").await
        })
        .await;
        node.compile(saxpy("known")).await.unwrap();
    }
    (cluster, made.key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_serves_nothing_and_says_so() {
    let (mut cluster, key) = filled().await;
    let watch = HealthCheckRequest { service: SERVICE_NAME.into() };
    let watched = health_client(&cluster.nodes[2]).await.watch(watch).await.unwrap();
    let mut watched = watched.into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let unknown = health(&cluster.nodes[2], "no.such.Service").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let left = kiln(&["cluster", "leave"], &[&cluster.nodes[2]]).await;
    assert!(left.status.success(), "{left:?}");
    let changed = timeout(SOON, watched.message()).await.expect("who watches is told");
    assert_eq!(changed.unwrap().unwrap().status(), ServingStatus::NotServing);
    answers_as_one_that_left(&cluster.nodes[2], &cluster.nodes[0], &key).await;
    // Its data folder is that of a node that left, whenever it is started.
    cluster.nodes[2].terminate().await;
    cluster.nodes[2].restart().await;
    answers_as_one_that_left(&cluster.nodes[2], &cluster.nodes[0], &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_serves_nothing_and_says_so() {
    let (cluster, key) = filled().await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (removed, member) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = cluster.nodes[removed].id.to_string();
    let done = kiln(&["cluster", "remove", &id], &[&cluster.nodes[member]]).await;
    assert!(done.status.success(), "{done:?}");
    answers_as_one_that_left(&cluster.nodes[removed], &cluster.nodes[member], &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_serves_nothing_and_says_so() {
    let (cluster, key) = filled().await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let member = (leader + 1) % 3;
    let id = cluster.nodes[leader].id.to_string();
    let done = kiln(&["cluster", "remove", &id], &[&cluster.nodes[member]]).await;
    assert!(done.status.success(), "{done:?}");
    answers_as_one_that_left(&cluster.nodes[leader], &cluster.nodes[member], &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_while_it_was_down_learns_it_when_it_is_back() {
    let (mut cluster, key) = filled().await;
    let id = cluster.nodes[2].id.to_string();
    cluster.nodes[2].kill().await;
    cluster.leader(&[0, 1]).await;
    let done = kiln(&["cluster", "remove", &id], &[&cluster.nodes[0]]).await;
    assert!(done.status.success(), "{done:?}");
    cluster.nodes[2].restart().await;
    answers_as_one_that_left(&cluster.nodes[2], &cluster.nodes[0], &key).await;
}
