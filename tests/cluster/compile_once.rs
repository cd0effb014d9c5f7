//! Invariant 5: one key costs one compile, whoever asks and however many.

use kiln_proto::pb::{Outcome, Tier, compile_event::Event};

use crate::harness::{TestCluster, saxpy, slow};

#[tokio::test(flavor = "multi_thread")]
async fn compiled_on_one_node_and_fetched_by_the_others() {
    let cluster = TestCluster::start(3).await;
    let first = cluster.nodes[0].compile(saxpy("once")).await.unwrap();
    assert_eq!((first.outcome, first.tier), (Outcome::Compiled, Tier::Unspecified));
    let (_, bytes) = cluster.nodes[0].fetch(&first.key).await.unwrap();
    assert!(bytes.starts_with(b"\x7fELF"), "a CUBIN is an ELF file");
    for node in &cluster.nodes[1..] {
        let again = node.compile(saxpy("once")).await.unwrap();
        assert_eq!(again.key, first.key);
        assert_eq!((again.outcome, again.tier), (Outcome::Hit, Tier::Peer));
        assert_eq!(node.fetch(&first.key).await.unwrap().1, bytes);
        let third = node.compile(saxpy("once")).await.unwrap();
        assert_eq!((third.outcome, third.tier), (Outcome::Hit, Tier::Memory));
    }
    assert_eq!(cluster.counter("compiler_runs").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_requests_at_once_cost_one_compile() {
    let cluster = TestCluster::start(3).await;
    let asked = (0..60).map(|i| cluster.nodes[i % 3].compile(slow("storm", 8)));
    let answers = futures::future::join_all(asked).await;
    let outcomes: Vec<_> = answers.iter().map(|a| a.as_ref().unwrap().outcome).collect();
    let count = |wanted| outcomes.iter().filter(|o| **o == wanted).count();
    assert_eq!(count(Outcome::Compiled), 1, "{outcomes:?}");
    assert_eq!(count(Outcome::Coalesced) + count(Outcome::Hit), 59);
    assert_eq!(cluster.counter("compiler_runs").await, 1);
    let manifests: Vec<_> = answers.into_iter().map(|a| a.unwrap().manifest).collect();
    assert!(manifests.windows(2).all(|pair| pair[0] == pair[1]), "one artifact for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_in_one_call_are_keys_of_their_own() {
    let cluster = TestCluster::start(1).await;
    let mut request = saxpy("targets");
    let targets =
        ["sm_80", "sm_90", "compute_90"].map(|t| t.parse::<kiln_proto::Target>().unwrap());
    request.targets = targets.map(Into::into).to_vec();
    let mut events = cluster.nodes[0].client().await.compile(request).await.unwrap().into_inner();
    let mut keys = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(Event::Done(done)) = event.event {
            let signed = kiln_proto::SignedManifest::from(done.manifest.unwrap());
            let manifest = signed.read_unverified().unwrap();
            assert_eq!(manifest.target, targets[keys.len()]);
            keys.push(manifest.key);
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_cache_everything_is_compiled_and_nothing_stored() {
    let cluster = TestCluster::start(1).await;
    for _ in 0..2 {
        let mut request = saxpy("uncached");
        request.disable_cache = true;
        let answer = cluster.nodes[0].compile(request).await.unwrap();
        assert_eq!(answer.outcome, Outcome::Compiled);
        assert!(cluster.nodes[0].lookup(&answer.key).await.unwrap().is_none());
    }
    assert_eq!(cluster.counter("compiler_runs").await, 2);
}
