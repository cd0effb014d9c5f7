//! What `kiln compile` says of an answer that is not what was asked for.
//!
//! Invariant: a field printed once is never renamed or dropped.

use std::fmt;

use kiln_proto::pb;
use serde::Serialize;

use super::{error::FailureView, output::seconds, pieces};

/// That something else answered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FallbackView {
    /// The key that was asked for; null: the request came to none.
    pub(crate) wanted: Option<String>,
    /// What answered: `saving`, `pieces`, `eager`, ...
    pub(crate) rung: String,
    /// For how long it is to be used before what was wanted is asked for again.
    pub(crate) valid_seconds: f64,
    /// Of `patched`: what stands for which pieces.
    pub(crate) pieces: Vec<PieceFallbackView>,
}

/// What stands for a piece that failed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PieceFallbackView {
    pub(crate) index: u32,
    /// The key of what failed.
    pub(crate) wanted: Option<String>,
    /// What answered: `saving`, `other`, `eager`, ...
    pub(crate) rung: String,
}

/// What was tried and gave nothing.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TriedView {
    /// `wanted` for what was asked for.
    pub(crate) rung: String,
    /// For which piece alone; null: for all of the request.
    pub(crate) piece: Option<u32>,
    /// Null: it came to none.
    pub(crate) key: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) error: FailureView,
}

impl FallbackView {
    pub(crate) fn new(told: &pb::Fallback) -> Self {
        Self {
            wanted: pieces::key(&told.wanted),
            rung: told.rung.clone(),
            valid_seconds: told.valid_seconds,
            pieces: told.pieces.iter().map(PieceFallbackView::new).collect(),
        }
    }

    /// `fallback: eager answers in place of KEY for 2m (wanted: C004 timeout: ...; ...)`.
    pub(crate) fn for_people(&self, tried: &[TriedView]) -> String {
        let wanted = self.wanted.as_deref().unwrap_or("what was asked for");
        let tried = tried.iter().map(|tried| {
            let error = &tried.error;
            let code = error.code.as_deref().unwrap_or_default();
            let line = error.message.lines().next().unwrap_or_default();
            format!("{}: {code} {}: {line}", tried.name(), error.kind)
        });
        let tried: Vec<_> = tried.collect();
        let pieces = self.pieces.iter().map(|piece| format!("{} by {}", piece.index, piece.rung));
        let pieces: Vec<_> = pieces.collect();
        let pieces = match pieces.is_empty() {
            true => String::new(),
            false => format!(" (piece {})", pieces.join(", ")),
        };
        format!(
            "fallback: {}{pieces} answers in place of {wanted} ({}); ask again after {}",
            self.rung,
            tried.join("; "),
            seconds(self.valid_seconds),
        )
    }
}

/// `tried pieces: C004 timeout: ... (12.00 s)`.
impl fmt::Display for TriedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { error, seconds: took, .. } = self;
        let code = error.code.as_deref().unwrap_or_default();
        let line = error.message.lines().next().unwrap_or_default();
        write!(f, "tried {}: {code} {}: {line} ({})", self.name(), error.kind, seconds(*took))
    }
}

impl PieceFallbackView {
    fn new(told: &pb::PieceFallback) -> Self {
        Self { index: told.index, wanted: pieces::key(&told.wanted), rung: told.rung.clone() }
    }
}

impl TriedView {
    /// `pieces`, or `piece 3 saving`.
    fn name(&self) -> String {
        let piece = self.piece.map(|piece| format!("piece {piece} ")).unwrap_or_default();
        format!("{piece}{}", self.rung)
    }

    pub(crate) fn new(told: &pb::Rung) -> Self {
        Self {
            rung: told.name.clone(),
            piece: told.piece,
            key: pieces::key(&told.key),
            seconds: told.seconds,
            error: pieces::failure(told.failure.clone().unwrap_or_default()),
        }
    }
}
