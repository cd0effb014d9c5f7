//! Answers of the API, to the wire.
//!
//! Invariant: a caller's bound is kept within what any call may take.

use std::time::Duration;

use bytes::Bytes;
use kiln_cluster::{Cluster, Entry, Role};
use kiln_proto::{ArtifactKey, pb};

use crate::{
    compiler::Prepared,
    manager::{Answer, told},
};

/// Longest bound that a caller may ask for.
const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);

/// A caller's bound in milliseconds; 0 means `default`.
pub(super) fn bound(deadline_ms: u64, default: Duration) -> Duration {
    match deadline_ms {
        0 => default,
        ms => Duration::from_millis(ms).min(LONGEST_DEADLINE),
    }
}

/// The end of one target's compile.
pub(super) fn done(
    answer: &Answer,
    prepared: Option<&Prepared>,
    node: u64,
    elapsed: Duration,
) -> pb::Done {
    pb::Done {
        strategy: prepared.map(strategy),
        pieces: answer.pieces.iter().map(Into::into).collect(),
        manifest: Some((&*answer.signed).into()),
        outcome: pb::Outcome::from(answer.outcome).into(),
        tier: answer.origin.unwrap_or_default().into(),
        node,
        elapsed_seconds: elapsed.as_secs_f64(),
        check: Some(told(answer.check.as_ref())),
        size: None,
        fallback: answer.fallback.as_deref().map(Into::into),
        tried: answer.tried.iter().map(Into::into).collect(),
    }
}

/// How something is compiled.
pub(super) fn strategy(prepared: &Prepared) -> pb::Strategy {
    prepared.planned.to_wire(prepared.stitch().map_or(1, |stitch| stitch.pieces.len()))
}

/// A key.
pub(super) fn key(key: &ArtifactKey) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// An index entry.
pub(super) fn entry(entry: &Entry) -> pb::Entry {
    pb::Entry {
        manifest: Some((&*entry.manifest).into()),
        epoch: entry.epoch,
        stored: entry.stored,
        generation: entry.generation,
        pinned: entry.pinned,
        holders: entry.holders.clone(),
        hits: entry.hits,
        last_used_unix_ms: entry.last_used_unix_ms,
    }
}

/// A node's role, as `kiln status` and `/readyz` show it.
pub(super) fn role(cluster: &Cluster, role: Role) -> &'static str {
    if cluster.has_left() { "removed" } else { role.name() }
}
