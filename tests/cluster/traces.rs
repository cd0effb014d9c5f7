//! One request followed through the nodes that it takes.

use std::{collections::BTreeSet, net::SocketAddr, sync::OnceLock};

use kiln::telemetry::trace;
use kiln_proto::pb;
use tonic::{Request, metadata::MetadataValue};

use super::harness::{TestCluster, TestNode, eventually, saxpy};
use crate::collector::{Collector, number};

/// Each test has a process of its own.
static COLLECTOR: OnceLock<SocketAddr> = OnceLock::new();

const ID: [u8; 16] = *b"\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36";
const TRACED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const ID_TEXT: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: [u8; 8] = *b"\x00\xf0\x67\xaa\x0b\xa9\x02\xb7";

/// A request that its caller wants traced.
fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(trace::PARENT, MetadataValue::from_static(TRACED));
    request
}

/// Compiles to the end; an error is a status.
async fn compile(node: &TestNode, asked: pb::CompileRequest) -> Result<(), tonic::Status> {
    let mut events = node.client().await.compile(traced(asked)).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_one_trace_that_spans_three_nodes() {
    let (collector, address) = Collector::start().await;
    COLLECTOR.set(address).unwrap();
    let mut cluster = TestCluster::start_with(3, |i, config| {
        let address = COLLECTOR.get().unwrap();
        config.trace.endpoint = Some(format!("http://{address}"));
        // What nobody asked to be traced is not.
        config.trace.ratio = 0.0;
        if i != 0 {
            config.compile.nvrtc = Some("/nowhere".into());
        }
    })
    .await;
    // The one that compiles is not the one that orders, nor the one that is asked.
    let mut leader = cluster.leader(&[0, 1, 2]).await;
    while leader == 0 {
        cluster.nodes[0].kill().await;
        leader = cluster.leader(&[1, 2]).await;
        cluster.nodes[0].restart().await;
    }
    let asked = 3 - leader;
    eventually("the compiler to be known", async || {
        let status = cluster.nodes[asked].status().await.ok()?;
        let node = status.nodes.iter().find(|node| node.id == cluster.nodes[0].id)?;
        node.compilers.iter().any(|found| found.compiler == "cuda").then_some(())
    })
    .await;
    compile(&cluster.nodes[asked], saxpy("traced")).await.unwrap();
    let ids: BTreeSet<i64> = cluster.nodes.iter().map(|node| node.id as i64).collect();
    let spans = eventually("spans of three nodes", async || {
        let spans = collector.of_trace(&ID);
        let nodes: BTreeSet<i64> = spans.iter().filter_map(|span| number(span, "node")).collect();
        let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        let whole = ["Compile", "forward", "acquire", "compile", "publish", "commit", "transfer"];
        (nodes == ids && whole.iter().all(|name| names.contains(name))).then_some(spans)
    })
    .await;
    // Each span hangs on another one of the trace, the first on the caller's.
    let known: BTreeSet<&[u8]> = spans.iter().map(|span| &span.span_id[..]).collect();
    for span in &spans {
        let parent = &span.parent_span_id[..];
        assert!(parent == CALLER || known.contains(parent), "{span:?}");
    }
    assert_eq!(spans.iter().filter(|span| span.parent_span_id == CALLER).count(), 1);
    assert_eq!(collector.count(), collector.of_trace(&ID).len(), "nothing else was traced");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_and_the_log_name_the_call_without_any_collector() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.log.level = "warn,kiln::service=debug".into();
    })
    .await;
    let node = &cluster.nodes[0];
    let failed = compile(node, super::harness::cuda("this is no CUDA")).await.unwrap_err();
    assert_eq!(failed.metadata().get(trace::ID).unwrap(), ID_TEXT, "{failed:?}");
    // One that names no trace gets an id of its own.
    let asked = pb::TombstoneRequest { key: vec![1].into(), reason: String::new() };
    let refused = node.client().await.tombstone(asked).await.unwrap_err();
    let id = refused.metadata().get(trace::ID).unwrap().to_str().unwrap();
    assert_eq!(id.len(), 32, "{refused:?}");
    assert_ne!(id, ID_TEXT);
    let log = node.log();
    for (id, method) in [(ID_TEXT, "Compile"), (id, "Tombstone")] {
        let line = log.lines().find(|line| line.contains(id)).expect(id);
        assert!(line.contains("a call failed") && line.contains(method), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_nothing_up() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    COLLECTOR.set(closed.local_addr().unwrap()).unwrap();
    drop(closed);
    let mut cluster = TestCluster::start_with(1, |_, config| {
        config.trace.endpoint = Some(format!("http://{}", COLLECTOR.get().unwrap()));
        config.trace.ratio = 1.0;
    })
    .await;
    let node = &mut cluster.nodes[0];
    node.compile(saxpy("untraced")).await.unwrap();
    for _ in 0..100 {
        node.status().await.unwrap();
    }
    eventually("the loss to be counted", async || {
        let page = super::harness::metrics(node).await;
        page.contains("kiln_trace_spans_total{result=\"failed\"}").then_some(())
    })
    .await;
    let log = node.log();
    assert_eq!(log.matches("the trace collector does not answer").count(), 1, "{log}");
    // Ends within its bounds.
    node.terminate().await;
}
