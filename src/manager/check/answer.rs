//! What a request is answered with, checked at the last.
//!
//! Invariant: an answer leaves here as it was, but for what is known of its soundness; of
//! one that is wrong the error names the piece, and all pieces are told.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, FailureKind};

use crate::{
    check::Verify,
    compiler::Prepared,
    error::Error,
    manager::{Answer, Manager, PieceReport, PieceStage, Stage, all_failed},
};

impl Manager {
    /// Checks what a request is answered with, where that is wanted and was not done yet:
    /// its pieces, and then all of it.
    pub(in crate::manager) async fn check_answer(
        &self,
        verify: Verify,
        prepared: &Prepared,
        mut answer: Answer,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let mut pieces = answer.pieces.to_vec();
        let mut failed = Vec::new();
        let stitch = prepared.stitch();
        let parts = stitch.iter().flat_map(|stitch| &stitch.pieces);
        for ((part, made_of), report) in parts.zip(&answer.manifest.pieces).zip(&mut pieces) {
            let PieceStage::Done { outcome, node, check, .. } = &mut report.stage else { continue };
            match self.check_piece(verify, &part.prepared, *made_of, *outcome, check.take()).await {
                Ok(found) => *check = found,
                Err(failure) => {
                    failed.push((report.index, Error::Unsound(failure.clone())));
                    report.stage = PieceStage::Failed { node: Some(*node), failure };
                }
            }
        }
        if failed.is_empty() {
            match (self.run_stored(verify, prepared, &answer).await, stitch) {
                (Ok(check), _) => {
                    (answer.check, answer.pieces) = (check, pieces.into());
                    return Ok(answer);
                }
                (Err(why), Some(stitch)) if why.kind == FailureKind::WrongOutput => {
                    let Some((index, failure)) = self.blame(stitch, &answer.manifest.pieces).await
                    else {
                        let label = &prepared.label;
                        let why = self.condemn(&answer.manifest, label, why).await;
                        return Err(Error::Unsound(why));
                    };
                    failed.push((index, Error::Unsound(failure.clone())));
                    if let Some(report) = pieces.get_mut(index) {
                        report.stage = PieceStage::Failed { node: None, failure };
                    }
                }
                (Err(why), _) if why.kind == FailureKind::WrongOutput => {
                    let label = &prepared.label;
                    let why = self.condemn(&answer.manifest, label, why).await;
                    return Err(Error::Unsound(why));
                }
                (Err(why), _) => return Err(Error::Unsound(why)),
            }
        }
        let pieces: Arc<[PieceReport]> = pieces.into();
        tell(answer.manifest.key, &Stage::Pieces(pieces.clone()));
        Err(all_failed(&failed, &pieces))
    }
}
