//! How far the pieces of a whole are, as those who wait for it see it.
//!
//! Invariant: a piece that is done or failed stays so, unless what is done is seen to be
//! wrong; whoever looks sees all pieces.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, Check, Failure, NodeId};
use parking_lot::Mutex;

use crate::{
    compiler::{Estimates, Stitch},
    manager::Outcome,
};

/// A piece of a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct PieceReport {
    /// Position in the stitching.
    pub index: usize,
    /// Of its artifact.
    pub key: ArtifactKey,
    /// How often it runs in the whole.
    pub times: usize,
    /// What its compile is thought to take.
    pub estimates: Estimates,
    /// How far it is.
    pub stage: PieceStage,
}

/// How far a piece is.
#[derive(Debug, Clone, PartialEq)]
pub enum PieceStage {
    /// Nobody compiles it yet, as far as this node knows.
    Wanted,
    /// A node compiles it.
    Compiling(NodeId),
    /// It is there.
    Done {
        /// How this request came by it.
        outcome: Outcome,
        /// Who compiled it.
        node: NodeId,
        /// What that took.
        compile_seconds: f64,
        /// Whether it was seen to be right; `None`: nobody looked.
        check: Option<Check>,
    },
    /// It has no artifact.
    Failed {
        /// Where, if that is known.
        node: Option<NodeId>,
        /// Why.
        failure: Failure,
    },
}

impl PieceStage {
    /// Whether nothing comes after it.
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }
}

/// All pieces of a whole, while it is compiled. `tell` hears of each change.
pub(in crate::manager) struct States<F> {
    all: Mutex<Vec<PieceReport>>,
    tell: F,
}

impl<F: Fn(Arc<[PieceReport]>)> States<F> {
    /// Of which nothing is known yet.
    pub(in crate::manager) fn new(stitch: &Stitch, tell: F) -> Self {
        let all = stitch.pieces.iter().enumerate().map(|(index, piece)| PieceReport {
            index,
            key: piece.key(),
            times: piece.times,
            estimates: piece.estimates,
            stage: PieceStage::Wanted,
        });
        let states = Self { all: Mutex::new(all.collect()), tell };
        (states.tell)(states.all());
        states
    }

    /// A piece is further, unless it is over.
    pub(in crate::manager) fn set(&self, index: usize, stage: PieceStage) {
        self.change(index, stage, |piece| !piece.stage.is_over());
    }

    /// A piece that is there is wrong.
    pub(in crate::manager) fn condemn(&self, index: usize, stage: PieceStage) {
        self.change(index, stage, |_| true);
    }

    fn change(&self, index: usize, stage: PieceStage, may: impl Fn(&PieceReport) -> bool) {
        let mut all = self.all.lock();
        let Some(piece) = all.get_mut(index) else { return };
        if !may(piece) || piece.stage == stage {
            return;
        }
        piece.stage = stage;
        let now = all.as_slice().into();
        drop(all);
        (self.tell)(now);
    }

    /// As they are now.
    pub(in crate::manager) fn all(&self) -> Arc<[PieceReport]> {
        self.all.lock().as_slice().into()
    }
}
