#![allow(clippy::unwrap_used)]
//! Wholes and their pieces on real nodes of this process: fetched, missed, pinned.

mod audited;
mod freed;
mod ladder;
mod listed;
mod members;
mod refused;
mod told;
mod transaction;

use std::{collections::HashSet, path::Path};

use futures::future::join_all;
use kiln_cluster::{Acquired, Entry, Index, Lease, PutMode};
use kiln_proto::{
    ArtifactKey, Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest,
    NodeIdentity, PieceRef, Target, claimed_components, value,
};
use tokio::time::Instant;

use super::*;
use crate::{
    cache::Blob,
    config::{EvictionPolicy, StartConfig},
    error::{Error, MissingPiece, NoPiece},
    manager::Found,
    prewarm,
};

/// Bound on anything that is waited for.
const SOON: Duration = Duration::from_secs(120);
const NAMESPACE: &str = "default";
/// Bytes of one piece.
const PIECE: usize = 64 << 10;

struct Running {
    node: Node,
    folder: tempfile::TempDir,
}

impl Running {
    async fn start(join: Option<&Running>, disk: u64) -> Self {
        Self::start_with(join, disk, |_| {}).await
    }

    async fn start_with(
        join: Option<&Running>,
        disk: u64,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let mut config = Config {
            data_dir: folder.path().join("data"),
            grpc_listen: any,
            http_listen: any,
            transfer_listen: any,
            resp_listen: None,
            ..Config::default()
        };
        // So that the first one has a quorum without the other.
        config.cluster.voter = join.is_none();
        config.disk.bytes = disk;
        config.disk.policy = EvictionPolicy::Lru;
        // Small, so that nothing is here for being in memory alone.
        config.memory.bytes = 1 << 20;
        config.compile.nvrtc = Some(folder.path().join("no compiler"));
        let join = join.map(|other| other.node.ready.transfer.clone()).into_iter().collect();
        config.start = StartConfig { join, ..StartConfig::default() };
        configure(&mut config);
        let metrics = Recorder::not_installed().unwrap();
        Self { node: Node::start(config, metrics).await.unwrap(), folder }
    }

    fn index(&self) -> Index {
        self.node.cluster.index()
    }

    async fn publish(&self, manifest: &Manifest, pack: &[u8]) {
        let lease = self.lease(&manifest.key).await;
        let pack = Blob::copy_of(pack).unwrap();
        let inside = self.node.manager.gate().enter().unwrap();
        let saved = self.node.manager.save(&inside, &lease, manifest.clone(), pack).await.unwrap();
        assert!(saved.0, "committed");
    }

    async fn lease(&self, key: &ArtifactKey) -> Lease {
        let acquired = self.index().acquire(key, None, Instant::now() + SOON, || {}).await;
        match acquired.unwrap() {
            Acquired::Granted(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    async fn load(&self, key: &ArtifactKey) -> Result<Vec<u8>, Error> {
        let answer = self.node.manager.load(key, NAMESPACE).await?;
        Ok(answer.pack.to_vec())
    }

    /// The entry of `key`, once this replica has it.
    async fn entry(&self, key: &ArtifactKey) -> Entry {
        let index = self.index();
        eventually("the entry", async || index.lookup(key).await.unwrap()).await
    }

    /// Names of the packs on this node's disk.
    fn packs(&self) -> HashSet<Digest> {
        let folders = std::fs::read_dir(self.folder.path().join("data/tier/blobs")).unwrap();
        let mut packs = HashSet::new();
        for folder in folders.map(|folder| folder.unwrap().path()) {
            for file in std::fs::read_dir(&folder).unwrap() {
                let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
                let name = format!("{}{}", name(&folder), name(&file.unwrap().path()));
                packs.insert(name.parse().unwrap());
            }
        }
        packs
    }

    /// Puts so many other packs of the size of a piece.
    async fn press(&self, round: usize, packs: usize) {
        for n in 0..packs {
            let name = format!("other {round} {n}");
            let bytes = bytes(&name);
            let digest = Digest::of(&bytes);
            let manifest =
                value::manifest(NAMESPACE, name.as_bytes(), digest, bytes.len() as u64, 0.0);
            let turn = self.index().turn(&manifest.key, PutMode::Replace).unwrap();
            let pack = Blob::copy_of(&bytes).unwrap();
            let inside = self.node.manager.gate().enter().unwrap();
            self.node.manager.put(&inside, turn, manifest, &pack, PutMode::Replace).await.unwrap();
        }
    }

    async fn stop(self) {
        let stop = CancellationToken::new();
        stop.cancel();
        self.node.run_until(stop).await.unwrap();
    }
}

async fn eventually<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = holds().await {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn bytes(name: &str) -> Vec<u8> {
    let seed = Digest::of(name.as_bytes());
    seed.as_bytes().iter().copied().cycle().take(PIECE).collect()
}

fn artifact(name: &str, pack: &[u8], pieces: &[PieceRef]) -> Manifest {
    let (fingerprint, target) = (Fingerprint::new("test", [("version", "1")]), Target::cubin(90));
    let claims = claimed_components(&fingerprint, &target, NAMESPACE);
    let graph = Component::new("graph", vec![KeyField::new("name", name)]);
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let (digest, size) = (Digest::of(pack), pack.len() as u64);
    Manifest {
        key: components.key(),
        namespace: NAMESPACE.into(),
        components,
        fingerprint,
        target,
        files: vec![FileEntry { path: "out.bin".into(), offset: 0, size, digest }],
        pack_digest: digest,
        pack_size: size,
        producer: 0,
        compile_seconds: 1.0,
        created_unix_ms: 0,
        label: name.into(),
        pieces: pieces.to_vec(),
        check: None,
    }
}

fn named(piece: &Manifest) -> PieceRef {
    PieceRef { key: piece.key, pack: piece.pack_digest, pack_size: piece.pack_size }
}

fn piece(name: &str) -> Manifest {
    artifact(name, &bytes(name), &[])
}

/// Publishes an artifact of the pieces of these names, those that are not there with it.
async fn publish_whole(at: &Running, name: &str, pieces: &[&str]) -> Manifest {
    let pieces: Vec<(&str, Manifest)> = pieces.iter().map(|name| (*name, piece(name))).collect();
    for (name, manifest) in &pieces {
        if at.index().lookup(&manifest.key).await.unwrap().is_none() {
            at.publish(manifest, &bytes(name)).await;
        }
    }
    let named: Vec<_> = pieces.iter().map(|(_, manifest)| named(manifest)).collect();
    let whole = artifact(name, name.as_bytes(), &named);
    at.publish(&whole, name.as_bytes()).await;
    whole
}

const PIECES: [&str; 6] = ["p0", "p1", "p2", "p3", "p4", "p5"];

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_comes_with_its_pieces_and_is_served_without_the_others() {
    let first = Running::start(None, 1 << 30).await;
    let second = Running::start(Some(&first), 1 << 30).await;
    let whole = publish_whole(&first, "whole", &PIECES).await;
    let warmed = publish_whole(&first, "warmed", &["p5", "q0"]).await;

    second.entry(&warmed.key).await;
    let loads = join_all((0..4).map(|_| second.load(&whole.key))).await;
    assert!(loads.into_iter().all(|loaded| loaded.unwrap() == b"whole"));
    let packs = second.packs();
    assert!(packs.contains(&whole.pack_digest));
    assert!(whole.pieces.iter().all(|piece| packs.contains(&piece.pack)), "on the disk");

    let entry = second.entry(&warmed.key).await;
    let (mut counted, piece_bytes) = (HashSet::new(), PIECE as u64);
    let all = prewarm::new_bytes(&second.entry(&whole.key).await, &mut counted);
    assert_eq!(all, whole.pack_size + 6 * piece_bytes);
    let new = prewarm::new_bytes(&entry, &mut counted);
    assert_eq!(new, warmed.pack_size + piece_bytes, "a shared piece is counted once");
    assert!(second.node.manager.warm(&entry).await.unwrap());
    assert!(second.packs().contains(&piece("q0").pack_digest));
    assert!(!second.node.manager.warm(&entry).await.unwrap(), "all of it is here");

    first.stop().await;
    assert_eq!(second.load(&whole.key).await.unwrap(), b"whole");
    for name in PIECES {
        assert_eq!(second.load(&piece(name).key).await.unwrap(), bytes(name));
    }
    second.stop().await;
}

fn missing(refused: Error) -> MissingPiece {
    match refused {
        Error::MissingPiece(piece) => piece,
        other => panic!("{other}"),
    }
}

/// An entry of a piece whose bytes were never on this node; `also`: whoever has them.
async fn publish_without_bytes(at: &Running, name: &str, also: Vec<u64>) -> Manifest {
    let manifest = piece(name);
    let lease = at.lease(&manifest.key).await;
    let key = identity::load_or_create(&at.folder.path().join("data")).unwrap();
    let identity = NodeIdentity::new(at.node.ready.id, key);
    let signed = identity.sign(manifest.clone()).unwrap();
    at.index().publish(&lease, signed, also).await.unwrap();
    manifest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_is_nowhere_is_named_and_its_entry_is_over() {
    let node = Running::start(None, 1 << 30).await;
    let gone = publish_without_bytes(&node, "gone", Vec::new()).await;
    let whole = publish_whole(&node, "whole", &["p0", "gone", "p2"]).await;
    let piece = missing(node.load(&whole.key).await.unwrap_err());
    let wanted = (1, gone.key, gone.pack_digest, NoPiece::Absent);
    assert_eq!((piece.index, piece.key, piece.pack, piece.why), wanted);
    // A whole goes with its piece: both may be compiled again.
    for key in [gone.key, whole.key] {
        assert!(node.index().lookup(&key).await.unwrap().is_none(), "{key}");
    }
    let status = tonic::Status::from(node.load(&whole.key).await.unwrap_err());
    assert_eq!(status.code(), tonic::Code::NotFound);

    // The piece alone is compiled again, and the whole is put together of it.
    publish_whole(&node, "whole", &["p0", "gone", "p2"]).await;
    assert_eq!(node.load(&whole.key).await.unwrap(), b"whole");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_cannot_be_reached_is_named_and_nothing_is_given_up() {
    let node = Running::start(None, 1 << 30).await;
    let holder = Running::start(Some(&node), 1 << 30).await;
    let away = publish_without_bytes(&node, "away", vec![holder.node.ready.id]).await;
    let whole = publish_whole(&node, "whole", &["p0", "away"]).await;
    let entry = node.entry(&whole.key).await;
    // A member that has the bytes, for all that the other knows, and does not answer.
    holder.stop().await;
    let Found::Incomplete(found) = node.node.manager.open(&entry, NAMESPACE).await.unwrap() else {
        panic!("it is incomplete");
    };
    assert_eq!((found.index, found.key), (1, away.key));
    assert!(matches!(found.why, NoPiece::Unreachable(_)), "{found}");
    let status = tonic::Status::from(node.load(&whole.key).await.unwrap_err());
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    assert_eq!(node.entry(&away.key).await.epoch, 1, "the entry stays");
    assert_eq!(node.entry(&whole.key).await.epoch, entry.epoch);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_of_a_whole_keeps_its_pieces() {
    // Room for ten packs.
    let node = Running::start(None, 10 * PIECE as u64 + 4096).await;
    let kept = publish_whole(&node, "kept", &["p0", "shared"]).await;
    let other = publish_whole(&node, "other", &["p1", "shared"]).await;
    for whole in [&kept, &other] {
        assert!(node.index().set_pinned(&whole.key, true).await.unwrap());
    }
    let held = |names: &[&str]| {
        let packs = node.packs();
        names.iter().filter(|name| packs.contains(&piece(name).pack_digest)).count()
    };
    let tiers = node.node.manager.tiers();
    let pieces = ["p0", "p1", "shared"].map(|name| piece(name).pack_digest);
    eventually("the pins", async || {
        let whole = [kept.pack_digest, other.pack_digest];
        whole.iter().chain(&pieces).all(|pack| tiers.is_pinned(pack)).then_some(())
    })
    .await;
    node.press(0, 20).await;
    assert_eq!(held(&["p0", "p1", "shared"]), 3);

    assert!(node.index().set_pinned(&other.key, false).await.unwrap());
    let mut round = 1;
    eventually("the piece that nothing pins any more to go", async || {
        node.press(round, 10).await;
        round += 1;
        (held(&["p1"]) == 0).then_some(())
    })
    .await;
    assert_eq!(held(&["p0", "shared"]), 2, "a pinned whole needs them");

    // Wrong after all: with the whole, the reason to keep its pieces is gone.
    assert!(node.index().tombstone(&kept.key, "wrong".into()).await.unwrap());
    eventually("the last pins to go", async || {
        node.press(round, 10).await;
        round += 1;
        (held(&["p0", "shared"]) == 0).then_some(())
    })
    .await;
    node.stop().await;
}
