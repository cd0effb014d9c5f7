//! What `--json` prints of pieces, and of what failed with pieces that did not.
//!
//! Invariant: a field printed once is never renamed or dropped; tests hold the
//! shapes down.

use kiln_proto::{ArtifactKey, FailureKind, convert, pb};
use serde::Serialize;

use super::{error::FailureView, output::seconds, progress};

/// `kiln compile --json`, of a target that has no artifact: beside the error.
#[derive(Debug, Default, Serialize)]
pub(crate) struct FailedView {
    /// Null where it is not known.
    pub(crate) key: Option<String>,
    /// `failed`.
    pub(crate) outcome: Failed,
    pub(crate) target: Option<String>,
    pub(crate) strategy: Option<&'static str>,
    pub(crate) reasons: Vec<String>,
    pub(crate) pieces: Vec<PieceView>,
}

/// The one outcome of what failed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Failed {
    #[default]
    Failed,
}

/// A piece of a whole.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PieceView {
    /// Position in the whole's manifest and stitching.
    pub(crate) index: u32,
    pub(crate) key: String,
    /// `compiled`, `hit`, `coalesced`, `failed`; `wanted` or `compiling` where the whole
    /// ended before it did.
    pub(crate) outcome: &'static str,
    /// Who compiled it, or tried; null: not known.
    pub(crate) node: Option<u64>,
    /// What its compile took when it ran; null: it did not.
    pub(crate) compile_seconds: Option<f64>,
    /// How often it runs in the whole.
    pub(crate) times: u32,
    pub(crate) estimated_seconds: Option<f64>,
    /// Whether it was run and is right; null: it was not run.
    pub(crate) verified: Option<bool>,
    /// Why it was not run, or how it was wrong.
    pub(crate) unverified: Option<String>,
    pub(crate) error: Option<FailureView>,
}

/// `verified` and `unverified` of what has an artifact.
pub(crate) fn verified(check: Option<&pb::Check>) -> (Option<bool>, Option<String>) {
    match check {
        Some(check) if check.unchecked.is_empty() => (Some(true), None),
        Some(check) => (None, Some(check.unchecked.clone())),
        None => (None, Some("the node says nothing of it: it may be of an earlier version".into())),
    }
}

/// The same of what has none.
fn unverified(error: &FailureView) -> (Option<bool>, Option<String>) {
    let is_wrong = error.kind == FailureKind::WrongOutput.name();
    (is_wrong.then_some(false), Some(error.message.clone()))
}

/// The name of a strategy.
pub(crate) fn strategy(strategy: &pb::Strategy) -> Option<&'static str> {
    match strategy.choice() {
        pb::Choice::Unspecified => None,
        pb::Choice::Full => Some("full"),
        pb::Choice::Piecewise => Some("piecewise"),
    }
}

/// A key as people see it.
pub(crate) fn key(key: &[u8]) -> Option<String> {
    ArtifactKey::try_from(key).ok().map(|key| key.to_string())
}

/// Why something has no artifact, as a node told it.
pub(crate) fn failure(told: pb::Failure) -> FailureView {
    match convert::failure(told) {
        Ok(f) => FailureView {
            code: Some(f.kind.code().into()),
            kind: f.kind.name().into(),
            message: f.message,
            advice: Some(f.kind.advice()),
        },
        Err(e) => {
            FailureView { code: None, kind: "unknown".into(), message: e.to_string(), advice: None }
        }
    }
}

impl FailedView {
    /// Keeps what is told of a target before its end.
    pub(crate) fn hear(&mut self, event: &pb::compile_event::Event) {
        use pb::compile_event::Event;
        match event {
            Event::Started(started) => {
                // Of what was asked for: others are tried in its place.
                self.key = self.key.take().or_else(|| key(&started.key));
                let target = started.target.as_ref().and_then(|t| convert::target(t).ok());
                self.target = target.map(|target| target.to_string());
            }
            Event::Planned(pb::Planned { strategy: Some(told), .. }) => {
                self.strategy = strategy(told);
                self.reasons.clone_from(&told.reasons);
            }
            Event::Piece(pb::PieceNews { piece: Some(piece), .. }) => {
                self.pieces.retain(|known| known.index != piece.index);
                self.pieces.push(PieceView::new(piece));
                self.pieces.sort_by_key(|piece| piece.index);
            }
            _ => {}
        }
    }
}

impl PieceView {
    /// What a node told of it.
    pub(crate) fn new(piece: &pb::Piece) -> Self {
        let is_done = piece.stage() == pb::PieceStage::Done;
        let error = piece.failure.clone().map(failure);
        let (verified, unverified) = match &error {
            Some(error) => unverified(error),
            None if is_done => verified(piece.check.as_ref()),
            None => (None, None),
        };
        Self {
            index: piece.index,
            key: key(&piece.key).unwrap_or_default(),
            outcome: progress::stage(piece),
            node: (piece.node != 0).then_some(piece.node),
            compile_seconds: is_done.then_some(piece.compile_seconds),
            times: piece.times,
            estimated_seconds: piece.estimates.as_ref().map(|of| of.compile_seconds),
            verified,
            unverified,
            error,
        }
    }

    /// For people: see `kiln compile --explain`.
    pub(crate) fn row(&self) -> [String; 8] {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        [
            self.index.to_string(),
            self.times.to_string(),
            self.outcome.to_owned(),
            or_none(self.node.map(|node| node.to_string())),
            or_none(self.estimated_seconds.map(seconds)),
            or_none(self.compile_seconds.map(seconds)),
            match self.verified {
                Some(true) => "yes".into(),
                Some(false) => "WRONG".into(),
                None => "no".into(),
            },
            self.key.clone(),
        ]
    }
}
