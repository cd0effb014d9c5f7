//! Artifacts that clients compile for themselves: fences and signatures.

use std::time::Duration;

use futures::{StreamExt, stream};
use kiln_proto::{
    Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest, Target,
    claimed_components, pb, pb::publish_chunk::Chunk, value,
};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::harness::{NAMESPACE, SOON, TestCluster, TestNode, bytes_of};

fn artifact(name: &str, pack: &[u8]) -> Manifest {
    let fields = vec![KeyField::new("name", name)];
    let (fingerprint, target) = (Fingerprint::new("test", [("version", "1")]), Target::cubin(90));
    let claims = claimed_components(&fingerprint, &target, NAMESPACE);
    let graph = Component::new("graph", fields);
    let components = Components::new([graph].into_iter().chain(claims).collect());
    Manifest {
        key: components.key(),
        namespace: NAMESPACE.into(),
        components,
        fingerprint,
        target,
        files: vec![FileEntry {
            path: "out.bin".into(),
            offset: 0,
            size: pack.len() as u64,
            digest: Digest::of(pack),
        }],
        pack_digest: Digest::of(pack),
        pack_size: pack.len() as u64,
        producer: 0,
        compile_seconds: 1.0,
        created_unix_ms: 0,
        label: name.into(),
        pieces: Vec::new(),
        check: None,
    }
}

pub(crate) async fn publish(
    node: &TestNode,
    granted: &pb::Granted,
    manifest: &Manifest,
    pack: &[u8],
) -> Result<pb::PublishResponse, Status> {
    let pb::Granted { token, grant } = granted.clone();
    let manifest = Some(manifest.into());
    send(node, pb::PublishHeader { token, manifest, replace: false, grant }, pack).await
}

/// The manifest of the value `name`.
pub(crate) fn value_of(name: &str, bytes: &[u8]) -> Manifest {
    value::manifest(NAMESPACE, name.as_bytes(), Digest::of(bytes), bytes.len() as u64, 0.0)
}

pub(crate) async fn replace(
    node: &TestNode,
    manifest: &Manifest,
    pack: &[u8],
) -> Result<pb::PublishResponse, Status> {
    let manifest = Some(manifest.into());
    send(node, pb::PublishHeader { manifest, replace: true, ..Default::default() }, pack).await
}

async fn send(
    node: &TestNode,
    header: pb::PublishHeader,
    pack: &[u8],
) -> Result<pb::PublishResponse, Status> {
    let data = prost::bytes::Bytes::copy_from_slice(pack);
    let chunks = [Chunk::Header(header), Chunk::Data(data)];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    let sent = node.client().await.publish(futures::stream::iter(chunks)).await?;
    Ok(sent.into_inner())
}

/// A lease's stream, and what it was granted.
pub(crate) async fn lease(
    node: &TestNode,
    manifest: &Manifest,
) -> (tonic::Streaming<pb::LeaseEvent>, pb::Granted) {
    let request = pb::LeaseRequest { key: bytes_of(&manifest.key), deadline_ms: 30_000 };
    let mut stream = node.client().await.lease(request).await.unwrap().into_inner();
    loop {
        match stream.message().await.unwrap().unwrap().event.unwrap() {
            pb::lease_event::Event::Granted(granted) => return (stream, granted),
            pb::lease_event::Event::Waiting(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn published_under_its_lease_and_fetched_elsewhere() {
    let cluster = TestCluster::start(3).await;
    let pack = vec![42; 3 << 20];
    let manifest = artifact("mine", &pack);
    let (_stream, granted) = lease(&cluster.nodes[0], &manifest).await;
    let answer = publish(&cluster.nodes[0], &granted, &manifest, &pack).await.unwrap();
    assert!(answer.committed);
    for node in &cluster.nodes {
        let (_, bytes) =
            crate::harness::eventually("the entry", async || node.fetch(&manifest.key).await.ok())
                .await;
        assert_eq!(bytes, pack);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_token_publishes_nothing() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let manifest = artifact("stale", b"bytes");
    let (stream, granted) = lease(node, &manifest).await;
    drop(stream);
    // The next holder's grant proves that the first lease is over.
    let (_stream, next) = lease(node, &manifest).await;
    assert!(next.token > granted.token);
    let refused = publish(node, &granted, &manifest, b"bytes").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(node.lookup(&manifest.key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_publishes_under_the_lease_of_another_client() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let manifest = artifact("guessed", b"bytes");
    let (_stream, granted) = lease(node, &manifest).await;
    let other = artifact("another lease", b"bytes");
    let (_other_stream, of_another) = lease(node, &other).await;
    assert_eq!(granted.grant.len(), 16);
    assert_ne!(granted.grant, of_another.grant);
    // A token is an index of the log, which another client can guess.
    for grant in [Default::default(), of_another.grant, vec![0; 16].into()] {
        let guessed = pb::Granted { token: granted.token, grant };
        let refused = publish(node, &guessed, &manifest, b"bytes").await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    }
    assert!(node.lookup(&manifest.key).await.unwrap().is_none());
    assert!(publish(node, &granted, &manifest, b"bytes").await.unwrap().committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_match_its_manifest_is_not_published() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let manifest = artifact("mismatch", b"bytes");
    let (_stream, granted) = lease(node, &manifest).await;
    for wrong in [b"bytez".as_slice(), b"byte", b"bytes and more"] {
        assert!(publish(node, &granted, &manifest, wrong).await.is_err(), "{wrong:?}");
    }
    let mut swapped = artifact("another", b"bytes");
    assert!(publish(node, &granted, &swapped, b"bytes").await.is_err(), "another key's");
    swapped.key = manifest.key;
    assert!(publish(node, &granted, &swapped, b"bytes").await.is_err(), "a key it does not have");
    // What a manifest says beside its key, it must say in it.
    let altered: [fn(&mut Manifest); 3] = [
        |m| m.namespace = "other".into(),
        |m| m.target = Target::cubin(80),
        |m| m.fingerprint = Fingerprint::new("test", [("version", "2")]),
    ];
    for (at, alter) in altered.into_iter().enumerate() {
        let mut lying = manifest.clone();
        alter(&mut lying);
        let refused = publish(node, &granted, &lying, b"bytes").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "claim {at}: {refused}");
    }
    let mut escaping = manifest.clone();
    escaping.files[0].path = "../../etc/cron.d/x".into();
    assert!(publish(node, &granted, &escaping, b"bytes").await.is_err(), "a path outside");
    assert!(node.lookup(&manifest.key).await.unwrap().is_none());
    // The lease is still good for the right bytes.
    assert!(publish(node, &granted, &manifest, b"bytes").await.unwrap().committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_other_tools_are_overwritten_and_no_others() {
    let cluster = TestCluster::start(3).await;
    let value = |bytes: &[u8]| {
        value::manifest(NAMESPACE, b"theirs", Digest::of(bytes), bytes.len() as u64, 0.0)
    };
    let key = value(b"").key;
    // Somebody holds the lease meanwhile: it ends, and its holder is too late.
    let (_stream, granted) = lease(&cluster.nodes[1], &value(b"")).await;
    assert!(replace(&cluster.nodes[0], &value(b"one"), b"one").await.unwrap().committed);
    let late = publish(&cluster.nodes[1], &granted, &value(b"late"), b"late").await;
    assert!(!late.is_ok_and(|answer| answer.committed));
    for (bytes, node) in [(b"two".as_slice(), 1), (b"three", 2)] {
        assert!(replace(&cluster.nodes[node], &value(bytes), bytes).await.unwrap().committed);
        for other in &cluster.nodes {
            let found = async || Some(other.fetch(&key).await.ok()?.1).filter(|b| b == bytes);
            crate::harness::eventually("the last value", found).await;
        }
    }
    let again = replace(&cluster.nodes[0], &value(b"three"), b"three").await.unwrap();
    assert!(!again.committed, "equal bytes change nothing");
    let entry = cluster.nodes[0].lookup(&key).await.unwrap().unwrap();
    assert_eq!(entry.epoch, 3);

    let ours = artifact("ours", b"bytes");
    let refused = replace(&cluster.nodes[0], &ours, b"bytes").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_one_node_is_no_loss_for_the_others() {
    const SIZE: usize = 4 << 20;
    let cluster = TestCluster::start_with(3, |i, config| {
        if i == 2 {
            (config.memory.bytes, config.memory.in_flight) = (1 << 20, 1 << 20);
        }
    })
    .await;
    let bytes = vec![7; SIZE];
    let value =
        |name: &[u8]| value::manifest(NAMESPACE, name, Digest::of(&bytes), SIZE as u64, 0.0);
    let small = &cluster.nodes[2];
    let refused = replace(small, &value(b"one"), &bytes).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let made = value(b"two");
    assert!(replace(&cluster.nodes[0], &made, &bytes).await.unwrap().committed);
    crate::harness::eventually("the entry", async || small.lookup(&made.key).await.unwrap()).await;
    let refused = small.fetch(&made.key).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("memory.in_flight"), "{refused}");
    assert_eq!(cluster.nodes[1].fetch(&made.key).await.unwrap().1.len(), SIZE);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_sending_is_cut_off_and_its_room_is_given_back() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.publish.patience = Duration::from_secs(1);
        // Half of both is for what arrives: one such pack at a time.
        (config.memory.bytes, config.memory.in_flight) = (4 << 20, 4 << 20);
    })
    .await;
    let node = &cluster.nodes[0];
    let pack = vec![7; 3 << 20];
    let manifest = value_of("stalled", &pack);
    let header = pb::PublishHeader {
        manifest: Some((&manifest).into()),
        replace: true,
        ..Default::default()
    };
    let data = prost::bytes::Bytes::copy_from_slice(&pack[..100 << 10]);
    let chunks = [Chunk::Header(header), Chunk::Data(data)];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    let stalls = stream::iter(chunks).chain(stream::pending());
    let sent = timeout(SOON, async { node.client().await.publish(stalls).await });
    let refused = sent.await.expect("it ends").unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("stalled for 1s"), "{refused}");
    assert!(node.lookup(&manifest.key).await.unwrap().is_none());
    let silent = timeout(SOON, async { node.client().await.publish(stream::pending()).await });
    let refused = silent.await.expect("it ends").unwrap_err();
    assert!(refused.message().contains("no header within 1s"), "{refused}");
    let next = value_of("next", &pack);
    assert!(replace(node, &next, &pack).await.unwrap().committed, "it has the room");
}
