//! Kiln's shared vocabulary and its wire format.
//!
//! The domain types here are what every layer speaks; [`pb`] is what travels.
//! Invariant: [`convert`] is the one place that turns wire types into domain
//! types, and a domain value that exists is valid.

mod check;
mod claims;
mod classes;
pub mod convert;
mod digest;
pub mod dsse;
mod failure;
mod fingerprint;
pub mod graph;
mod key;
mod limits;
mod manifest;
pub mod numbers;
pub mod root;
mod target;
pub mod value;

pub use check::Check;
pub use claims::claimed_components;
pub use classes::{CLASSES, Class, classes, code_meaning, page as errors_page};
pub use digest::{ArtifactKey, Digest, Hasher, ParseDigestError};
pub use failure::{Failure, FailureKind};
pub use fingerprint::Fingerprint;
pub use key::{Component, Components, Difference, KEY_FORMAT, KeyField, component};
pub use limits::{
    CHUNK_BYTES, MAX_MESSAGE_BYTES, NAMESPACE_RULE, is_namespace, is_pattern, namespace_matches,
};
pub use manifest::{
    FileEntry, MANIFEST_FORMAT, MAX_FILES, MAX_PACK_BYTES, MAX_PIECES, Manifest, ManifestError,
    NodeIdentity, PieceRef, SignedManifest, check_path,
};
pub use target::{BinaryKind, ParseTargetError, Target};

/// A node's id: minted by the cluster, stored with the data, never reused.
pub type NodeId = u64;

/// Fencing number of a lease: the log index of the acquire that was granted.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Token(pub u64);

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Generated wire types and services.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("kiln.v1");

    /// The descriptors of every message here, for gRPC reflection.
    pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
}
