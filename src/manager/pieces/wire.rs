//! Plans and pieces from and to the wire.
//!
//! Invariant: what a node tells of another's pieces is what that one told.

use bytes::Bytes;
use kiln_proto::{Check, NodeId, convert, pb};

use super::{PieceReport, PieceStage};
use crate::{
    compiler::{Choice, Estimates, Planned},
    error::Error,
    manager::Outcome,
};

impl From<Outcome> for pb::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Hit => Self::Hit,
            Outcome::Compiled => Self::Compiled,
            Outcome::Coalesced => Self::Coalesced,
        }
    }
}

impl From<pb::Outcome> for Outcome {
    fn from(outcome: pb::Outcome) -> Self {
        match outcome {
            pb::Outcome::Compiled => Self::Compiled,
            pb::Outcome::Coalesced => Self::Coalesced,
            pb::Outcome::Hit | pb::Outcome::Unspecified => Self::Hit,
        }
    }
}

impl Planned {
    /// As clients are told. `pieces`: how many different ones there are.
    pub fn to_wire(&self, pieces: usize) -> pb::Strategy {
        let choice = match self.choice {
            Choice::Full => pb::Choice::Full,
            Choice::Piecewise => pb::Choice::Piecewise,
        };
        pb::Strategy {
            choice: choice.into(),
            reasons: self.reasons.clone(),
            whole: self.whole.as_ref().map(estimates),
            items: self.items as u32,
            pieces: pieces as u32,
        }
    }
}

fn estimates(of: &Estimates) -> pb::Estimates {
    pb::Estimates {
        compile_seconds: of.compile_seconds,
        compile_bytes: of.compile_bytes,
        operations: of.operations as u64,
    }
}

/// Whether an artifact was seen to be right, as clients are told: with the reason, if not.
pub(crate) fn told(check: Option<&Check>) -> pb::Check {
    let nobody = || Check::not("nobody asked for it, or its key is not in the sample");
    check.map_or_else(|| (&nobody()).into(), Into::into)
}

impl From<&PieceReport> for pb::Piece {
    fn from(piece: &PieceReport) -> Self {
        let mut wire = Self {
            index: piece.index as u32,
            key: Bytes::copy_from_slice(piece.key.as_bytes()),
            times: piece.times as u32,
            estimates: Some(estimates(&piece.estimates)),
            ..Self::default()
        };
        match &piece.stage {
            PieceStage::Wanted => wire.set_stage(pb::PieceStage::Wanted),
            PieceStage::Compiling(node) => {
                wire.set_stage(pb::PieceStage::Compiling);
                wire.node = *node;
            }
            PieceStage::Done { outcome, node, compile_seconds, check } => {
                wire.set_stage(pb::PieceStage::Done);
                wire.set_outcome((*outcome).into());
                (wire.node, wire.compile_seconds) = (*node, *compile_seconds);
                wire.check = Some(told(check.as_ref()));
            }
            PieceStage::Failed { node, failure } => {
                wire.set_stage(pb::PieceStage::Failed);
                wire.node = node.unwrap_or_default();
                wire.failure = Some(failure.into());
            }
        }
        wire
    }
}

impl PieceReport {
    /// Reads what another node told.
    pub(in crate::manager) fn read(wire: &pb::Piece) -> Result<Self, Error> {
        let node: Option<NodeId> = (wire.node != 0).then_some(wire.node);
        let stage = match wire.stage() {
            pb::PieceStage::Unspecified | pb::PieceStage::Wanted => PieceStage::Wanted,
            pb::PieceStage::Compiling => PieceStage::Compiling(wire.node),
            pb::PieceStage::Done => PieceStage::Done {
                outcome: wire.outcome().into(),
                node: wire.node,
                compile_seconds: wire.compile_seconds,
                check: wire.check.clone().map(convert::check).transpose()?,
            },
            pb::PieceStage::Failed => {
                let failure = wire.failure.clone().unwrap_or_default();
                PieceStage::Failed { node, failure: convert::failure(failure)? }
            }
        };
        let of = wire.estimates.as_ref().cloned().unwrap_or_default();
        Ok(Self {
            index: wire.index as usize,
            key: convert::key("piece.key", &wire.key)?,
            times: wire.times as usize,
            estimates: Estimates {
                compile_seconds: of.compile_seconds,
                compile_bytes: of.compile_bytes,
                operations: of.operations as usize,
                ..Estimates::default()
            },
            stage,
        })
    }
}
