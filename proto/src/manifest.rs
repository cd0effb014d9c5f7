//! The signed description of one artifact.
//!
//! Invariant: a [`Manifest`] obtained from [`SignedManifest::verify`] was signed
//! by the node it names, its key follows from its components and says the same as it
//! of tenant, target and toolchain, and its files cover its pack exactly, under paths
//! that stay inside a folder.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::{
    ArtifactKey, Check, Components, Digest, Fingerprint, NodeId, Target, claims, component,
    convert, dsse, pb, value,
};

/// Most files in one artifact.
pub const MAX_FILES: usize = 16_384;
/// Largest pack in bytes.
pub const MAX_PACK_BYTES: u64 = 8 << 30;
/// Most pieces of one artifact.
pub const MAX_PIECES: usize = 1024;
const LONGEST_PATH: usize = 1024;
/// What is signed: it keeps a manifest's signature from being valid for anything else.
pub const MANIFEST_FORMAT: &str = "kiln-manifest-v1";

/// One file of an artifact: a named byte range of its pack.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileEntry {
    /// Relative path, `/` between parts.
    pub path: String,
    /// First byte within the pack.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// blake3 of the file alone.
    pub digest: Digest,
}

/// What an artifact is: its key with all that decided it, its files, its maker.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// Follows from `components`.
    pub key: ArtifactKey,
    /// Tenant.
    pub namespace: String,
    /// What decided the key.
    pub components: Components,
    /// The compiler.
    pub fingerprint: Fingerprint,
    /// What it runs on.
    pub target: Target,
    /// In path order, back to back, covering the pack.
    pub files: Vec<FileEntry>,
    /// blake3 of the pack: the blob's name in every tier.
    pub pack_digest: Digest,
    /// Bytes.
    pub pack_size: u64,
    /// The node that made and signed it.
    pub producer: NodeId,
    /// Seconds of compilation that a hit saves.
    pub compile_seconds: f64,
    /// The producer's clock, milliseconds since the Unix epoch. Information only.
    pub created_unix_ms: u64,
    /// A name to show.
    pub label: String,
    /// Other artifacts that this one is stitched of, by position; empty for one that is
    /// whole itself.
    pub pieces: Vec<PieceRef>,
    /// Whether its producer saw it compute what its program does; `None`: it did not look.
    pub check: Option<Check>,
}

/// An artifact that another one is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PieceRef {
    /// Of the piece, in the namespace of the whole.
    pub key: ArtifactKey,
    /// Its pack, as the whole was made and checked with it.
    pub pack: Digest,
    /// Bytes of the pack.
    pub pack_size: u64,
}

/// A manifest as it was signed: these exact bytes.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SignedManifest {
    /// The encoded [`Manifest`].
    pub bytes: Vec<u8>,
    /// Whose key signed it.
    pub signer: NodeId,
    /// ed25519 over a context and `bytes`.
    pub signature: Vec<u8>,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not what its signer signed, or signed by somebody else.
    #[error("the manifest's signature is not node {signer}'s")]
    Signature {
        /// The node that it names.
        signer: NodeId,
    },
    /// The bytes are not an encoded manifest.
    #[error("the manifest cannot be read: {0}")]
    Malformed(String),
    /// It is signed, and wrong all the same.
    #[error("the manifest is invalid: {0}")]
    Invalid(String),
    /// It is valid, for another key.
    #[error("the manifest is for key {found}, not {wanted}")]
    WrongKey {
        /// The key asked for.
        wanted: ArtifactKey,
        /// The key it is for.
        found: ArtifactKey,
    },
}

/// A node's id and the key with which it signs manifests.
#[derive(Clone)]
pub struct NodeIdentity {
    /// Minted by the cluster.
    pub node: NodeId,
    key: SigningKey,
}

impl NodeIdentity {
    /// Pairs an id with its signing key.
    pub fn new(node: NodeId, key: SigningKey) -> Self {
        Self { node, key }
    }

    /// The public half, as registered in the index.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// Signs `manifest` as its producer; overwrites its `producer`.
    pub fn sign(&self, manifest: Manifest) -> Result<SignedManifest, ManifestError> {
        let manifest = Manifest { producer: self.node, ..manifest };
        manifest.validate()?;
        let bytes = prost::Message::encode_to_vec(&pb::Manifest::from(&manifest));
        let signature = self.key.sign(&message(&bytes)).to_bytes().to_vec();
        Ok(SignedManifest { bytes, signer: self.node, signature })
    }
}

impl NodeIdentity {
    /// Signs the payload of an envelope: see [`crate::dsse`].
    pub fn sign_envelope(&self, payload_type: &str, payload: &[u8]) -> Vec<u8> {
        self.key.sign(&dsse::pae(payload_type, payload)).to_bytes().to_vec()
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("node", &self.node).finish_non_exhaustive()
    }
}

impl SignedManifest {
    /// Checks signature, structure and key, and returns what was signed.
    pub fn verify(
        &self,
        signer: &VerifyingKey,
        wanted: &ArtifactKey,
    ) -> Result<Manifest, ManifestError> {
        let refused = || ManifestError::Signature { signer: self.signer };
        if !self.is_signed_by(signer) {
            return Err(refused());
        }
        let manifest = self.read_unverified()?;
        if manifest.producer != self.signer {
            return Err(refused());
        }
        if manifest.key != *wanted {
            return Err(ManifestError::WrongKey { wanted: *wanted, found: manifest.key });
        }
        Ok(manifest)
    }

    /// Whether the signature is that key's, whatever the bytes say.
    pub fn is_signed_by(&self, signer: &VerifyingKey) -> bool {
        Signature::from_slice(&self.signature)
            .is_ok_and(|of| signer.verify_strict(&message(&self.bytes), &of).is_ok())
    }

    /// Decodes and validates without asking who signed: for listings and
    /// explanations, never before bytes are handed out.
    pub fn read_unverified(&self) -> Result<Manifest, ManifestError> {
        let wire: pb::Manifest = prost::Message::decode(self.bytes.as_slice())
            .map_err(|e| ManifestError::Malformed(e.to_string()))?;
        let manifest = convert::manifest(wire)?;
        manifest.validate()?;
        Ok(manifest)
    }
}

impl fmt::Debug for SignedManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedManifest({} bytes, signer {})", self.bytes.len(), self.signer)
    }
}

impl Manifest {
    /// Whether its key belongs to another tool, which may overwrite it. Follows
    /// from the key's own components, so a compiled artifact's key never is.
    pub fn replaceable(&self) -> bool {
        let families = self.components.iter().filter(|c| c.name == component::FINGERPRINT);
        let mut fields = families.flat_map(|c| &c.fields).filter(|f| f.name == "compiler");
        fields.any(|f| value::REPLACEABLE.contains(&f.value.as_str()))
    }

    /// What every manifest must hold, whoever made it.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let refuse = |why: String| Err(ManifestError::Invalid(why));
        if self.components.key() != self.key {
            return refuse("its key does not follow from its components".into());
        }
        if let Err(why) = claims::check(self) {
            return refuse(why);
        }
        if self.files.is_empty() {
            return refuse("an artifact has at least one file".into());
        }
        if self.files.len() > MAX_FILES {
            return refuse(format!("{} files, at most {MAX_FILES}", self.files.len()));
        }
        if self.pack_size > MAX_PACK_BYTES {
            return refuse(format!("{} bytes, at most {MAX_PACK_BYTES}", self.pack_size));
        }
        if !self.compile_seconds.is_finite() || self.compile_seconds < 0.0 {
            return refuse("its cost in seconds is no number".into());
        }
        if let Err(why) = self.check_pieces() {
            return refuse(why);
        }
        if let Some(Err(why)) = self.check.as_ref().map(Check::validate) {
            return refuse(why);
        }
        let mut next = 0u64;
        let mut previous: Option<&str> = None;
        for file in &self.files {
            if let Err(why) = check_path(&file.path) {
                return refuse(format!("file {:?}: {why}", file.path));
            }
            if previous.is_some_and(|p| p >= file.path.as_str()) {
                return refuse(format!("file {:?} is out of order", file.path));
            }
            if file.offset != next {
                return refuse(format!("file {:?} starts at {}", file.path, file.offset));
            }
            next = match next.checked_add(file.size) {
                Some(next) => next,
                None => return refuse("its sizes overflow".into()),
            };
            previous = Some(&file.path);
        }
        if next != self.pack_size {
            return refuse(format!("its files cover {next} of {} bytes", self.pack_size));
        }
        Ok(())
    }
}

impl Manifest {
    fn check_pieces(&self) -> Result<(), String> {
        if self.pieces.len() > MAX_PIECES {
            return Err(format!("{} pieces, at most {MAX_PIECES}", self.pieces.len()));
        }
        // Only what a compiler made is put together of others.
        if !self.pieces.is_empty() && self.replaceable() {
            return Err("a replaceable artifact has no pieces".into());
        }
        let mut keys: Vec<_> = self.pieces.iter().map(|piece| piece.key).collect();
        keys.push(self.key);
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) if pair[0] == self.key => Err("it is a piece of itself".into()),
            Some(pair) => Err(format!("piece {} comes twice", pair[0])),
            None => Ok(()),
        }
    }
}

/// Whether `path` may be written below a folder: relative, plain parts only.
pub fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > LONGEST_PATH {
        return Err("a path has 1 to 1024 bytes");
    }
    if path.contains(['\\', '\0']) || path.chars().any(char::is_control) {
        return Err("a path has no backslash or control character");
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("a path is relative and has no empty, '.' or '..' part");
    }
    Ok(())
}

fn message(bytes: &[u8]) -> Vec<u8> {
    [MANIFEST_FORMAT.as_bytes(), b"\0", bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Component, KeyField};

    fn manifest(pack: &[u8]) -> Manifest {
        let (fingerprint, target) =
            (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
        let graph = Component::new("graph", vec![KeyField::of_bytes("structure", pack)]);
        let claims = claims::claimed_components(&fingerprint, &target, "");
        let components = Components::new([graph].into_iter().chain(claims).collect());
        Manifest {
            key: components.key(),
            namespace: String::new(),
            components,
            fingerprint,
            target,
            files: vec![FileEntry {
                path: "module.cubin".into(),
                offset: 0,
                size: pack.len() as u64,
                digest: Digest::of(pack),
            }],
            pack_digest: Digest::of(pack),
            pack_size: pack.len() as u64,
            producer: 0,
            compile_seconds: 0.5,
            created_unix_ms: 1,
            label: "m".into(),
            pieces: Vec::new(),
            check: None,
        }
    }

    fn identity(node: NodeId, seed: u8) -> NodeIdentity {
        NodeIdentity::new(node, SigningKey::from_bytes(&[seed; 32]))
    }

    #[test]
    fn what_was_signed_is_what_is_read() {
        let node = identity(7, 1);
        let signed = node.sign(manifest(b"abc")).unwrap();
        let key = manifest(b"abc").key;
        let read = signed.verify(&node.verifying_key(), &key).unwrap();
        assert_eq!(read, Manifest { producer: 7, ..manifest(b"abc") });
    }

    #[test]
    fn an_altered_manifest_is_refused() {
        let node = identity(7, 1);
        let key = manifest(b"abc").key;
        let signed = node.sign(manifest(b"abc")).unwrap();
        for at in (0..signed.bytes.len()).step_by(7) {
            let mut altered = signed.clone();
            altered.bytes[at] ^= 1;
            assert!(altered.verify(&node.verifying_key(), &key).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_stranger_cannot_sign_for_a_node() {
        let signed = identity(7, 2).sign(manifest(b"abc")).unwrap();
        let registered = identity(7, 1).verifying_key();
        let refused = signed.verify(&registered, &manifest(b"abc").key).unwrap_err();
        assert!(matches!(refused, ManifestError::Signature { signer: 7 }));
    }

    #[test]
    fn a_manifest_of_another_key_is_refused() {
        let node = identity(7, 1);
        let signed = node.sign(manifest(b"abc")).unwrap();
        let refused = signed.verify(&node.verifying_key(), &manifest(b"xyz").key).unwrap_err();
        assert!(matches!(refused, ManifestError::WrongKey { .. }));
    }

    #[test]
    fn invalid_manifests_are_not_signed() {
        let node = identity(7, 1);
        let broken: [fn(&mut Manifest); 6] = [
            |m| m.files.clear(),
            |m| m.files[0].path = "../escape".into(),
            |m| m.files[0].offset = 1,
            |m| m.pack_size += 1,
            |m| m.key = ArtifactKey::from_bytes([0; 32]),
            |m| m.compile_seconds = f64::NAN,
        ];
        for break_it in broken {
            let mut m = manifest(b"abc");
            break_it(&mut m);
            assert!(matches!(node.sign(m), Err(ManifestError::Invalid(_))));
        }
    }

    fn piece(n: u8) -> PieceRef {
        PieceRef { key: ArtifactKey::from_bytes([n; 32]), pack: Digest::of(&[n]), pack_size: 1 }
    }

    #[test]
    fn pieces_are_signed_with_the_whole() {
        let node = identity(7, 1);
        let whole = Manifest { pieces: vec![piece(2), piece(1)], ..manifest(b"abc") };
        let signed = node.sign(whole.clone()).unwrap();
        let read = signed.verify(&node.verifying_key(), &whole.key).unwrap();
        assert_eq!(read.pieces, whole.pieces, "in their order");
    }

    #[test]
    fn pieces_are_others_and_come_once() {
        let node = identity(7, 1);
        let itself = PieceRef { key: manifest(b"abc").key, ..piece(1) };
        let many = (0..=MAX_PIECES).map(|n| {
            let key = ArtifactKey::from_bytes(*Digest::of(&n.to_le_bytes()).as_bytes());
            PieceRef { key, ..piece(1) }
        });
        for pieces in [vec![piece(1), piece(2), piece(1)], vec![itself], many.collect()] {
            let whole = Manifest { pieces, ..manifest(b"abc") };
            assert!(matches!(node.sign(whole), Err(ManifestError::Invalid(_))));
        }
        let value = crate::value::manifest("", b"name", Digest::of(b"v"), 1, 0.0);
        let whole = Manifest { pieces: vec![piece(1)], ..value };
        assert!(matches!(node.sign(whole), Err(ManifestError::Invalid(_))));
    }

    #[test]
    fn paths_stay_inside_a_folder() {
        for good in ["a", "a/b.c", "..a/b", "a..b"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a\\b", "a\0", "a\n"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }
}
