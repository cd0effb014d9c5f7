//! Pieces that are wanted while the cluster cannot commit.

use std::time::{Duration, Instant};

use super::{model, workers::Workers};
use crate::harness::{TestCluster, eventually};

const BOUND: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_quorum_goes_ends_within_its_bound() {
    let mut cluster = TestCluster::start_with(3, |_, config| config.compile.concurrency = 1).await;
    // Its own compiler stands still, so that pieces are wanted when the others die.
    let workers = Workers::pause(&cluster.nodes[0]).await;
    let mut request = model::whole();
    request.deadline_ms = BOUND.as_millis() as u64;
    let mut client = cluster.nodes[0].client().await;
    let began = Instant::now();
    let asked = tokio::spawn(async move {
        let mut events = client.compile(request).await?.into_inner();
        let mut last = None;
        while let Some(event) = events.message().await? {
            last = event.event;
        }
        Ok::<_, tonic::Status>(last)
    });
    eventually("another node to take a piece", async || {
        let taken = cluster.nodes[1].counter("pieces_taken").await
            + cluster.nodes[2].counter("pieces_taken").await;
        (taken > 0).then_some(())
    })
    .await;
    for node in 1..3 {
        cluster.nodes[node].kill().await;
    }
    workers.resume();
    let ended = tokio::time::timeout(BOUND * 2, asked).await.expect("within its bound").unwrap();
    let took = began.elapsed();
    println!("ended after {took:?}: {:?}", ended.as_ref().err());
    assert!(took < BOUND + Duration::from_secs(5), "{took:?}");
    // Alone it cannot publish: it says so, or gives the whole to this one request.
    if let Err(status) = ended {
        let timed_out = crate::harness::code(&status) == Some("C004");
        assert!(timed_out || status.code() == tonic::Code::Unavailable, "{status}");
    }
    // And it still serves what is asked of it next.
    assert!(cluster.nodes[0].status().await.is_ok());
}
