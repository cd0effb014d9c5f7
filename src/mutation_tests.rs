//! Changes of what is signed, and of packs: none is taken for the real thing.
//!
//! Invariant: the changes are the same each time, and what is refused was changed: each of the
//! unchanged forms is accepted first.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use kiln_proto::{
    ArtifactKey, Check, Component, Components, Digest, Fingerprint, KeyField, Manifest,
    NodeIdentity, PieceRef, SignedManifest, Target, claimed_components,
    root::{RootStatement, Says, SignedStatement, SignerCertificate},
};

use crate::{
    artifact::{pack, verify_files},
    attest::{self, Envelope},
    cache::Blob,
};

/// Changes of each kind.
const CHANGES: usize = 10_000;

/// xorshift.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A change that a disk, a bucket or its owner could make; what it was made of, at times.
    fn changed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let (from, to) = (self.below(out.len()), self.below(out.len() + 1));
            match self.next() % 6 {
                0 if !out.is_empty() => out[from] ^= 1 << (self.next() % 8),
                1 if !out.is_empty() => out[from] = self.next() as u8,
                2 => out.insert(to, self.next() as u8),
                3 => out.truncate(to),
                4 if from < to => drop(out.drain(from..to)),
                _ if from < to => {
                    let copied = out[from..to].to_vec();
                    let place = self.below(out.len());
                    out.splice(place..place, copied);
                }
                _ => {}
            }
        }
        out
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn artifact(name: &str) -> (Manifest, Blob) {
    let files = [("plan.json", "{}"), ("b/c/kernels.cu", "__global__"), ("b/empty", "")];
    let files = files.map(|(path, text)| (path.to_owned(), Bytes::from(text)));
    let (blob, files) = pack(files.to_vec()).unwrap();
    let (fingerprint, target) = (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
    let graph = Component::new("graph", vec![KeyField::new("name", name)]);
    let claims = claimed_components(&fingerprint, &target, "team");
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let manifest = Manifest {
        key: components.key(),
        namespace: "team".into(),
        components,
        fingerprint,
        target,
        files,
        pack_digest: blob.digest(),
        pack_size: blob.size(),
        producer: 1,
        compile_seconds: 1.0,
        created_unix_ms: 1,
        label: name.into(),
        pieces: Vec::new(),
        check: None,
    };
    (manifest, blob)
}

/// One of each form that manifests have.
fn manifests() -> [Manifest; 3] {
    let (plain, _) = artifact("plain");
    let checked = Check::Passed { relative_error: 0.001, limit: 0.01 };
    let piece = |seed: u8| PieceRef {
        key: ArtifactKey::from_bytes([seed; 32]),
        pack: Digest::from_bytes([seed; 32]),
        pack_size: u64::from(seed),
    };
    let whole = Manifest { pieces: vec![piece(2), piece(3)], ..artifact("whole").0 };
    [plain, Manifest { check: Some(checked), ..artifact("checked").0 }, whole]
}

/// A node has signed with two keys, one after the other: both are tried, as readers do.
#[test]
fn no_change_of_a_signed_manifest_is_accepted_by_any_key_of_its_node() {
    let (before, now) = (NodeIdentity::new(1, key(1)), NodeIdentity::new(1, key(3)));
    let keys = [before.verifying_key(), now.verifying_key()];
    let accepted = |signed: &SignedManifest, key: &ArtifactKey| {
        keys.iter().any(|of| signed.verify(of, key).is_ok())
    };
    let mut all = Vec::new();
    for manifest in manifests() {
        let artifact = manifest.key;
        for identity in [&before, &now] {
            let signed = identity.sign(manifest.clone()).unwrap();
            assert!(accepted(&signed, &artifact));
            all.push((artifact, signed));
        }
    }
    // Of another node, which is nobody here.
    let stranger = NodeIdentity::new(2, key(2)).sign(manifests()[0].clone()).unwrap();
    // Parts of what this or another node signed, put together anew.
    let signatures: Vec<_> = all
        .iter()
        .map(|(_, signed)| signed.signature.clone())
        .chain([stranger.signature])
        .collect();
    for (artifact, signed) in &all {
        for signature in &signatures {
            let swapped = SignedManifest { signature: signature.clone(), ..signed.clone() };
            let real = all.iter().any(|(_, known)| *known == swapped);
            assert!(real || !accepted(&swapped, artifact), "{swapped:?}");
        }
        let other = SignedManifest { signer: 2, ..signed.clone() };
        assert!(!accepted(&other, artifact), "it says another node");
        let another = ArtifactKey::from_bytes([9; 32]);
        assert!(!accepted(signed, &another), "it is of another key");
    }
    let mut random = Random::new();
    let mut changes = 0;
    while changes < CHANGES {
        let (artifact, signed) = random.of(&all).clone();
        let mut altered = signed.clone();
        match random.next() % 3 {
            0 => altered.signature = random.changed(&signed.signature),
            _ => altered.bytes = random.changed(&signed.bytes),
        }
        if altered != signed {
            let (bytes, signature) = (&altered.bytes, &altered.signature);
            assert!(!accepted(&altered, &artifact), "{bytes:x?} {signature:x?}");
            changes += 1;
        }
    }
}

#[test]
fn no_change_of_a_pack_is_accepted() {
    let (manifest, blob) = artifact("plain");
    assert!(verify_files(&manifest, &blob).is_ok());
    let mut random = Random::new();
    let mut changes = 0;
    while changes < CHANGES {
        let altered = random.changed(&blob);
        if altered[..] != blob[..] {
            assert!(verify_files(&manifest, &altered).is_err(), "{altered:x?}");
            changes += 1;
        }
    }
}

#[test]
fn no_change_of_what_a_root_said_is_accepted() {
    let certificate = |namespaces: &[&str], node| {
        Says::Signer(SignerCertificate {
            key: key(7).verifying_key().to_bytes(),
            node,
            name: "gpu-3".into(),
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            not_before_unix_ms: 1000,
            not_after_unix_ms: Some(2000),
        })
    };
    let said = [
        Says::Root { required: true },
        Says::Root { required: false },
        Says::Next { key: key(4).verifying_key().to_bytes() },
        certificate(&["team", "release-*"], Some(3)),
        certificate(&["*"], None),
    ];
    // While one follows the other, both are believed.
    let roots = [key(1), key(2)];
    let believed: Vec<VerifyingKey> = roots.iter().map(SigningKey::verifying_key).collect();
    let accepted =
        |signed: &SignedStatement| believed.iter().any(|root| signed.verify(root).is_ok());
    let mut all = Vec::new();
    for (serial, says) in (1..).zip(said) {
        let statement = RootStatement { serial, cluster: 5, says };
        for root in &roots {
            let signed = statement.sign(root).unwrap();
            assert!(accepted(&signed));
            all.push(signed);
        }
        assert!(!accepted(&statement.sign(&key(9)).unwrap()), "another root");
    }
    for one in &all {
        for other in &all {
            let swapped = SignedStatement { signature: other.signature.clone(), ..one.clone() };
            assert!(all.contains(&swapped) || !accepted(&swapped), "{one:?}");
        }
    }
    let mut random = Random::new();
    let mut changes = 0;
    while changes < CHANGES {
        let signed = random.of(&all).clone();
        let mut altered = signed.clone();
        match random.next() % 3 {
            0 => altered.signature = random.changed(&signed.signature),
            _ => altered.bytes = random.changed(&signed.bytes),
        }
        if altered != signed {
            let (bytes, signature) = (&altered.bytes, &altered.signature);
            assert!(!accepted(&altered), "{bytes:x?} {signature:x?}");
            changes += 1;
        }
    }
}

/// Of an envelope more is free than of the others: its hints, and how its JSON is written. What
/// it says is not.
#[test]
fn no_change_of_an_attestation_says_something_else() {
    let node = NodeIdentity::new(1, key(1));
    let (manifest, blob) = artifact("plain");
    let signed = node.sign(manifest.clone()).unwrap();
    let said = attest::statement(&signed, &manifest, &blob, &node.verifying_key()).unwrap();
    let envelope = Envelope::sign(&node, &serde_json::to_vec(&said).unwrap());
    let keys = [node.verifying_key(), key(3).verifying_key()];
    let read = |text: &[u8]| {
        let envelope = serde_json::from_slice::<Envelope>(text).ok()?;
        attest::read(&envelope, &keys).ok()
    };
    let text = serde_json::to_vec(&envelope).unwrap();
    let whole = read(&text).unwrap();
    assert_eq!((&whole.0, whole.1), (&said, keys[0]));
    let mut random = Random::new();
    let (mut changes, mut refused) = (0, 0);
    while changes < CHANGES {
        let altered = match random.next() % 4 {
            // Its parts, so that not the JSON alone is seen to be broken.
            0 => {
                let mut altered = envelope.clone();
                let payload = random.changed(altered.payload.as_bytes());
                altered.payload = String::from_utf8_lossy(&payload).into_owned();
                serde_json::to_vec(&altered).unwrap()
            }
            1 => {
                let mut altered = envelope.clone();
                let signature = random.changed(altered.signatures[0].sig.as_bytes());
                altered.signatures[0].sig = String::from_utf8_lossy(&signature).into_owned();
                serde_json::to_vec(&altered).unwrap()
            }
            _ => random.changed(&text),
        };
        if altered != text {
            match read(&altered) {
                Some(read) => assert!(read == whole, "{}", String::from_utf8_lossy(&altered)),
                None => refused += 1,
            }
            changes += 1;
        }
    }
    assert!(refused > CHANGES / 2, "{refused}: what was changed was hardly ever what is signed");
}
