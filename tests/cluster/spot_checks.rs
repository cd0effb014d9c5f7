//! Artifacts that are something else than their sources compile to, under a signature that
//! is right: what another node's compile finds of them, and what it leaves alone.

use kiln::config::Config;
use kiln_proto::{
    ArtifactKey, Digest, Fingerprint, Manifest, Target, pb,
    pb::Outcome,
    value::{self, REQUEST_FAMILY},
};
use prost::Message;
use serde_json::Value;
use tokio::process::Command;

use crate::{
    asked::kiln,
    harness::{Configure, NAMESPACE, TestCluster, TestNode, bytes_of, eventually, metrics, saxpy},
    publish::{lease, publish, replace},
    watching::{anomaly, watchful},
};

const EACH_HIT: Configure = |i, config| {
    watchful(i, config);
    config.trust.spot_checks = 1;
};
const BY_HAND: Configure = |_, config: &mut Config| config.compile.keep_requests = 1 << 20;

/// What `node` compiles of the kernel `name`, and then, in its place, what it signs of
/// somebody who changed a byte of the code.
async fn lie(node: &TestNode, name: &str) -> (ArtifactKey, Vec<u8>) {
    let made = node.compile(saxpy(name)).await.unwrap();
    let (_, right) = node.fetch(&made.key).await.unwrap();
    let remove = pb::TombstoneRequest { key: bytes_of(&made.key), reason: "for a lie".into() };
    node.client().await.tombstone(remove).await.unwrap();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let mut manifest = made.manifest.read_unverified().unwrap();
    assert_eq!(manifest.files.len(), 1);
    (manifest.files[0].digest, manifest.pack_digest) = (Digest::of(&wrong), Digest::of(&wrong));
    store(node, &manifest, &wrong).await;
    (made.key, right)
}

async fn store(node: &TestNode, manifest: &Manifest, pack: &[u8]) {
    let (_lease, granted) = lease(node, manifest).await;
    assert!(publish(node, &granted, manifest, pack).await.unwrap().committed);
}

async fn everywhere(cluster: &TestCluster, key: &ArtifactKey) {
    for node in &cluster.nodes {
        eventually("the entry on every node", async || node.lookup(key).await.unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_under_a_right_signature_is_found_removed_and_told() {
    let cluster = TestCluster::start_with(3, EACH_HIT).await;
    let [liar, honest, third] = &cluster.nodes[..] else { unreachable!() };
    let (key, right) = lie(liar, "kernel").await;
    everywhere(&cluster, &key).await;

    // Whoever has it from the liar itself has no second opinion.
    assert_eq!(liar.compile(saxpy("kernel")).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(liar.counter("spot_checks_different").await, 0);
    assert!(
        metrics(liar).await.contains("kiln_spot_checks_total{result=\"skipped\",reason=\"own\"}")
    );

    let hit = honest.compile(saxpy("kernel")).await.unwrap();
    assert_eq!(hit.outcome, Outcome::Hit);
    for node in &cluster.nodes {
        eventually("it is removed", async || {
            node.lookup(&key).await.unwrap().is_none().then_some(())
        })
        .await;
        let why = kiln(node, &["why", &key.to_string()]).await.1.to_string();
        let signer = format!("compiled by node {}", liar.id);
        let checker = format!("compiled again on node {}", honest.id);
        assert!(why.contains(&signer) && why.contains(&checker), "{why}");
    }
    // It is counted after it is gone.
    eventually("the count", async || {
        (honest.counter("spot_checks_different").await == 1).then_some(())
    })
    .await;
    let audit = ["audit", "show", "--data-dir", honest.config.data_dir.to_str().unwrap()];
    eventually("a line of the audit log", async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let said = command.args(audit).output().await.unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let signer = format!("signed by node {}", liar.id);
        said.lines().any(|l| l.contains("wrong_artifact") && l.contains(&signer)).then_some(())
    })
    .await;
    eventually("an alert", async || {
        let alerts = honest.report().await.alerts;
        alerts.iter().any(|of| of.name == "KilnWrongArtifacts").then_some(())
    })
    .await;

    // The key is free, and what is right stays, however often it is looked at.
    let again = honest.compile(saxpy("kernel")).await.unwrap();
    assert_eq!((again.key, again.outcome), (key, Outcome::Compiled));
    assert_eq!(honest.fetch(&key).await.unwrap().1, right);
    everywhere(&cluster, &key).await;
    assert_eq!(third.compile(saxpy("kernel")).await.unwrap().outcome, Outcome::Hit);
    eventually("the comparison", async || {
        (third.counter("spot_checks_equal").await == 1).then_some(())
    })
    .await;
    let runs = third.counter("compiler_runs").await;
    assert_eq!(third.compile(saxpy("kernel")).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(third.counter("compiler_runs").await, runs, "once by each node");
    assert_eq!(anomaly(&third.report().await, "wrong_artifacts"), None);
    assert!(third.lookup(&key).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_has_an_artifact_compared_by_its_key_or_by_its_file() {
    let cluster = TestCluster::start_with(3, BY_HAND).await;
    let [liar, honest, _] = &cluster.nodes[..] else { unreachable!() };
    let right = liar.compile(saxpy("right")).await.unwrap().key;
    everywhere(&cluster, &right).await;
    let kept = value::request_components(NAMESPACE, &right).key();
    everywhere(&cluster, &kept).await;
    let (code, told) = kiln(honest, &["verify", &right.to_string()]).await;
    assert_eq!((code, &told["result"]), (Some(0), &Value::from("equal")), "{told}");

    // Nobody turned it on, so no hit was looked into.
    let (key, _) = lie(liar, "wrong").await;
    everywhere(&cluster, &key).await;
    assert_eq!(honest.compile(saxpy("wrong")).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(cluster.counter("spot_checks_different").await, 0);
    let file = cluster.folder.path().join("wrong.cu");
    let Some(pb::compile_request::Source::Cuda(cuda)) = saxpy("wrong").source else { panic!() };
    std::fs::write(&file, &cuda.source).unwrap();
    let file = file.to_str().unwrap();
    let (code, told) = kiln(honest, &["verify", file]).await;
    assert_eq!(code, Some(kiln_proto::FailureKind::WrongOutput.exit_code().into()), "{told}");
    let message = told["error"]["message"].as_str().unwrap();
    let signer = format!("node {}'s signature", liar.id);
    assert!(message.contains(&signer) && message.contains("module.cubin"), "{told}");
    for node in &cluster.nodes {
        eventually("it is removed", async || {
            node.lookup(&key).await.unwrap().is_none().then_some(())
        })
        .await;
    }
    let (code, _) = kiln(honest, &["verify", file]).await;
    assert_eq!(code, Some(20), "there is none any more");
    assert!(honest.lookup(&right).await.unwrap().is_some());
}

/// It is served until somebody sees to it: that must be told, and done as soon as it can be.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_removed_is_told_so_and_goes_the_next_time() {
    let mut cluster = TestCluster::start_with(3, BY_HAND).await;
    let (key, _) = lie(&cluster.nodes[0], "wrong").await;
    everywhere(&cluster, &key).await;
    let file = cluster.folder.path().join("wrong.cu");
    let Some(pb::compile_request::Source::Cuda(cuda)) = saxpy("wrong").source else { panic!() };
    std::fs::write(&file, &cuda.source).unwrap();
    let verify = ["verify", file.to_str().unwrap()];
    let wrong = Some(kiln_proto::FailureKind::WrongOutput.exit_code().into());
    // Nobody can commit now.
    cluster.nodes[0].kill().await;
    cluster.nodes[2].kill().await;
    let (code, told) = kiln(&cluster.nodes[1], &verify).await;
    assert_eq!(code, wrong, "{told}");
    let message = told["error"]["message"].as_str().unwrap();
    let advice = format!("kiln rm {key}");
    assert!(message.contains("could not be removed") && message.contains(&advice), "{told}");
    assert!(cluster.nodes[1].lookup(&key).await.unwrap().is_some());
    cluster.nodes[0].restart().await;
    cluster.nodes[2].restart().await;
    let (code, told) = kiln(&cluster.nodes[1], &verify).await;
    assert!(code == wrong && told.to_string().contains("is removed from all nodes"), "{told}");
}

/// Whoever may write a value may put another request beside an artifact: a right artifact
/// must not go for that.
#[tokio::test(flavor = "multi_thread")]
async fn another_request_beside_an_artifact_removes_nothing() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let key = node.compile(saxpy("kernel")).await.unwrap().key;
    let (code, told) = kiln(node, &["verify", &key.to_string()]).await;
    assert_ne!(code, Some(0), "its request is not kept: {told}");
    let broken = crate::harness::cuda("this is no program");
    for planted in [saxpy("other").encode_to_vec(), broken.encode_to_vec(), vec![0xff; 64], vec![]]
    {
        let components = value::request_components(NAMESPACE, &key);
        let manifest = Manifest {
            key: components.key(),
            components,
            fingerprint: Fingerprint::new(REQUEST_FAMILY, [("", ""); 0]),
            target: Target::any(),
            ..crate::publish::value_of("request", &planted)
        };
        replace(node, &manifest, &planted).await.unwrap();
        let (code, told) = kiln(node, &["verify", &key.to_string()]).await;
        assert_ne!(code, Some(0), "{told}");
        assert!(told["error"]["message"].as_str().unwrap().contains("not compared"), "{told}");
        assert!(node.lookup(&key).await.unwrap().is_some(), "{told}");
    }
    let (code, told) = kiln(node, &["verify", &"0".repeat(64)]).await;
    assert_eq!(code, Some(20), "{told}");
    assert_eq!(cluster.counter("spot_checks_different").await, 0);
}
