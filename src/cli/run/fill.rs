//! Whether a folder's artifact is still being filled, and who may fill it.
//!
//! Invariant: an artifact carries [`PATH`] until its filler said that it is done,
//! so one whose filler died is known for what it is, and the next run fills on.
//! The right to fill is a lease of a key of its own, under which nothing is ever
//! published: what is published meanwhile ends no lease.

use std::time::Duration;

use kiln_proto::Manifest;

use super::capture;

/// A file of the pack, never one of the folder.
pub(crate) const PATH: &str = ".kiln/filling";
/// What is in it: a pack without bytes for it would be the same pack.
pub(crate) const TEXT: &[u8] = b"its filler is not done\n";
/// A compiler is silent for longer than a file takes to settle: so many times.
const SILENCES: u32 = 6;

/// Whether more is to come, or was when its filler died.
pub(crate) fn unfinished(manifest: &Manifest) -> bool {
    capture::has(manifest, PATH)
}

/// How long nothing new is to appear before a folder counts as filled.
pub(crate) fn filled_after(settle: Duration) -> Duration {
    settle.saturating_mul(SILENCES)
}
