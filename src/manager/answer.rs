//! What the manager is asked, and what it answers.
//!
//! Invariant: an [`Answer`]'s pack hashes to what its manifest says.

use std::{num::NonZero, sync::Arc, time::Duration};

use ed25519_dalek::VerifyingKey;
use kiln_proto::{Check, Manifest, SignedManifest};

use super::{Fallback, FallbackPolicy, Origin, PieceReport, Tried};
use crate::{
    cache::Blob,
    check::Verify,
    compiler::{CompileInput, Limits, Piecewise},
};

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was stored.
    Hit,
    /// This request's flight compiled it.
    Compiled,
    /// It waited for a compile that somebody else had begun.
    Coalesced,
}

impl Outcome {
    /// The name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Compiled => "compiled",
            Self::Coalesced => "coalesced",
        }
    }
}

/// An artifact, verified, with how it was had.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As signed: what clients get.
    pub signed: Arc<SignedManifest>,
    /// As read.
    pub manifest: Arc<Manifest>,
    /// The bytes.
    pub pack: Blob,
    /// Hit, compiled or coalesced.
    pub outcome: Outcome,
    /// Where the bytes came from; `None` when they were compiled here.
    pub origin: Option<Origin>,
    /// Of a whole that was looked at with its pieces: what became of each.
    pub pieces: Arc<[PieceReport]>,
    /// Whether it was seen to be right; `None`: nobody looked.
    pub check: Option<Check>,
    /// That it is not what was asked for.
    pub fallback: Option<Arc<Fallback>>,
    /// What was tried before, and gave nothing.
    pub tried: Arc<[Tried]>,
}

/// One target's request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to compile, for what.
    pub input: CompileInput,
    /// `auto` or a compiler's name.
    pub backend: String,
    /// Whether an exported program may be compiled in pieces.
    pub piecewise: Piecewise,
    /// Only this piece of it.
    pub piece: Option<u32>,
    /// Whether what it becomes is run before it is given out.
    pub verify: Verify,
    /// Compile even where it is stored, and publish nothing.
    pub disable_cache: bool,
    /// What may answer where its compile fails.
    pub fallback: FallbackPolicy,
    /// Another node sent it here: it goes no further.
    pub forwarded: bool,
    /// When the caller stops waiting.
    pub deadline: tokio::time::Instant,
}

/// Where bytes are durable before their publication is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// On the disks of so many nodes, this one among them.
    Nodes(NonZero<usize>),
    /// On this node's disk and in the object store.
    Object,
}

/// Settings of the manager.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limits of one compile.
    pub limits: Limits,
    /// Longest that a flight may take, its wait for other nodes included.
    pub flight_limit: Duration,
    /// Where bytes are durable before a publication is acknowledged.
    pub copies: Copies,
    /// Largest request in bytes that is kept beside what was compiled of it; 0: none is.
    pub keep_requests: u64,
    /// One in so many hits is compiled once more and compared; 0: none is.
    pub spot_checks: u64,
    /// The roots one of which has to be the cluster's, and without whose certificate no signer is
    /// believed; none: as the cluster says.
    pub roots: Vec<VerifyingKey>,
}
