//! What was tried and what answered instead, to the wire; and what a caller allows, from it.
//!
//! Invariant: a caller that says nothing has [`FallbackPolicy::Auto`].

use bytes::Bytes;
use kiln_proto::{ArtifactKey, pb};

use super::{Fallback, FallbackPolicy, PieceFallback, Tried};

fn key(key: Option<&ArtifactKey>) -> Bytes {
    key.map(|key| Bytes::copy_from_slice(key.as_bytes())).unwrap_or_default()
}

impl From<&Tried> for pb::Rung {
    fn from(tried: &Tried) -> Self {
        Self {
            name: tried.rung.name().into(),
            key: key(tried.key.as_ref()),
            failure: Some((&tried.failure).into()),
            seconds: tried.took.as_secs_f64(),
            piece: tried.piece.map(|piece| piece as u32),
        }
    }
}

impl From<&Fallback> for pb::Fallback {
    fn from(fallback: &Fallback) -> Self {
        Self {
            wanted: key(fallback.wanted.as_ref()),
            rung: fallback.rung.name().into(),
            valid_seconds: fallback.valid.as_secs_f64(),
            pieces: fallback.pieces.iter().map(Into::into).collect(),
        }
    }
}

impl From<&PieceFallback> for pb::PieceFallback {
    fn from(piece: &PieceFallback) -> Self {
        Self {
            index: piece.index as u32,
            wanted: key(Some(&piece.wanted)),
            rung: piece.rung.name().into(),
        }
    }
}

impl From<pb::FallbackPolicy> for FallbackPolicy {
    fn from(wire: pb::FallbackPolicy) -> Self {
        match wire {
            pb::FallbackPolicy::Unspecified | pb::FallbackPolicy::Auto => Self::Auto,
            pb::FallbackPolicy::Any => Self::Any,
            pb::FallbackPolicy::None => Self::None,
        }
    }
}

impl From<FallbackPolicy> for pb::FallbackPolicy {
    fn from(policy: FallbackPolicy) -> Self {
        match policy {
            FallbackPolicy::Auto => Self::Auto,
            FallbackPolicy::Any => Self::Any,
            FallbackPolicy::None => Self::None,
        }
    }
}
