//! A whole of which pieces fail: these alone go down the ladder, each by rungs of its own.
//!
//! What was compiled of the others is kept, and the whole is put together with what answers
//! in the place of each that failed. Such a whole has a key of its own.
//!
//! Invariant: what answers for a piece computes what the piece does, under the key that it
//! has anywhere else; a whole is patched only where some piece of it was compiled as it was
//! wanted, and by this node's compilers alone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use kiln_proto::{ArtifactKey, Failure, FailureKind};
use tokio::time::{Instant, timeout_at};

use super::{
    PieceFallback, Rung, Tried,
    descent::Attempt,
    reached::Reached,
    table::{Cause, below, may_mend, valid},
    variants,
};
use crate::{
    check::Verify,
    compiler::{CompileInput, Compiler, EagerCompiler, Prepared, Stitch, StitchPiece},
    error::Error,
    manager::{Answer, Manager, PieceReport, PieceStage, Request, Stage},
};

/// What answers for a piece.
struct Instead {
    rung: Rung,
    prepared: Arc<Prepared>,
    answer: Answer,
}

impl Manager {
    /// What an attempt came to, with its failed pieces replaced; `None`: that is no way to
    /// answer. With what was tried. `bounds`: when what compiles ends, and when all does.
    pub(super) async fn patch(
        self: &Arc<Self>,
        attempt: &Attempt,
        bounds: (Instant, Instant),
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> (Option<Reached>, Vec<Tried>) {
        let Some(whole) = &attempt.prepared else { return (None, Vec::new()) };
        let Some(stitch) = whole.stitch() else { return (None, Vec::new()) };
        let failed = self.failed_pieces(stitch, attempt).await;
        if failed.is_empty() || failed.len() == stitch.pieces.len() {
            return (None, Vec::new());
        }
        let request = &attempt.request;
        let downs = failed.iter().map(|(index, failure)| {
            self.piece_down(request, whole, (*index, &stitch.pieces[*index]), failure, bounds)
        });
        let (mut instead, mut tried) = (BTreeMap::new(), Vec::new());
        for (index, (of, found)) in failed.keys().zip(join_all(downs).await) {
            tried.extend(of);
            instead.extend(found.map(|found| (*index, found)));
        }
        if instead.len() < failed.len() {
            return (None, tried);
        }
        let request = Request { deadline: bounds.1, ..request.clone() };
        let answer = match self.put_in(&request, whole, &instead, tell).await {
            Ok(answer) => told(answer, &attempt.pieces, &instead),
            Err(error) => {
                tracing::warn!(wanted = %whole.components.key(), %error, "not patched");
                return (None, tried);
            }
        };
        let pieces = failed.iter().zip(instead.values()).map(|((index, failure), found)| {
            let (wanted, failed_of) = (stitch.pieces[*index].key(), failure.kind);
            PieceFallback { index: *index, wanted, failed_of, rung: found.rung }
        });
        let causes = || failed.values().map(|failure| Cause::Kind(failure.kind));
        let reached = Reached {
            rung: Rung::Patched,
            answer,
            valid: causes().map(valid).min().unwrap_or_default(),
            may_mend: causes().all(may_mend),
            pieces: pieces.collect(),
        };
        (Some(reached), tried)
    }

    /// What each piece failed of: as it was seen, or as it is remembered. One that was still
    /// on its way when the time was over failed of that.
    async fn failed_pieces(&self, stitch: &Stitch, attempt: &Attempt) -> BTreeMap<usize, Failure> {
        let late = match &attempt.result {
            Err(Error::Failed(failure)) if failure.kind == FailureKind::Timeout => Some(failure),
            _ => None,
        };
        let mut failed = BTreeMap::new();
        for (index, piece) in stitch.pieces.iter().enumerate() {
            let key = piece.key();
            let failure = match attempt.pieces.get(index).map(|report| &report.stage) {
                Some(PieceStage::Done { .. }) => None,
                Some(PieceStage::Failed { failure, .. }) => Some(failure.clone()),
                seen => match self.index.failure(&key).await {
                    Ok(Some(failure)) => Some(failure),
                    _ => self.remembered.failure(&key).or_else(|| seen.and(late.cloned())),
                },
            };
            failed.extend(failure.map(|failure| (index, failure)));
        }
        failed
    }

    /// The way of one piece down the ladder.
    async fn piece_down(
        self: &Arc<Self>,
        request: &Request,
        whole: &Arc<Prepared>,
        (index, piece): (usize, &StitchPiece),
        failure: &Failure,
        (limit, deadline): (Instant, Instant),
    ) -> (Vec<Tried>, Option<Instead>) {
        let mut tried = Vec::new();
        let mut note = |rung: Rung, key, failure: Failure, took: Duration| {
            let (kind, piece) = (failure.kind.name(), Some(index));
            tracing::info!(
                wanted = %whole.components.key(), piece = index, rung = rung.name(), kind, ?took,
                "no piece: {}", failure.message
            );
            tried.push(Tried { piece, rung, key, failure, took });
        };
        note(Rung::Wanted, Some(piece.key()), failure.clone(), Duration::ZERO);
        let first = Cause::Kind(failure.kind);
        // The same once more is the whole's rung: what is kept of it costs nothing.
        let (mut now, mut last) = (first, Rung::Again);
        loop {
            let (began, mut rungs) = (Instant::now(), below(first, now, last));
            let variant = rungs.find_map(|rung| {
                Some((rung, variants::piece(rung, request, piece, self.compilers())?))
            });
            let Some((rung, (compiler, input))) = variant else { return (tried, None) };
            last = rung;
            let request = &match rung {
                Rung::Eager => Request { deadline, ..request.clone() },
                _ if began >= limit => continue,
                _ => Request { deadline: limit, ..request.clone() },
            };
            let preparing = self.prepare_piece(&compiler, input, piece);
            let made = async {
                let prepared = preparing.await?;
                // What makes no difference is no other way.
                if prepared.components.key() == piece.key() {
                    return Ok(None);
                }
                let answer = self.make_instead(request, index, compiler.clone(), &prepared).await;
                Ok(Some((prepared, answer)))
            };
            let (key, error) = match made.await {
                Ok(None) => continue,
                Ok(Some((prepared, Ok(answer)))) => {
                    tracing::warn!(
                        wanted = %whole.components.key(), piece = index, rung = rung.name(),
                        kind = failure.kind.name(), key = %answer.manifest.key,
                        "a piece is answered by a fallback"
                    );
                    return (tried, Some(Instead { rung, prepared, answer }));
                }
                Ok(Some((prepared, Err(error)))) => (Some(prepared.components.key()), error),
                Err(error) => (None, error),
            };
            now = Cause::of(&error).unwrap_or(now);
            note(rung, key, error.into_failure(), began.elapsed());
        }
    }

    async fn prepare_piece(
        &self,
        compiler: &Arc<dyn Compiler>,
        input: CompileInput,
        piece: &StitchPiece,
    ) -> Result<Arc<Prepared>, Error> {
        let fingerprint = compiler.fingerprint()?;
        let (compiler, part) = (compiler.clone(), piece.prepared.clone());
        // As planning: not on a runtime thread.
        let preparing = tokio::task::spawn_blocking(move || {
            let Some(graph) = part.program() else {
                let why = "nobody says what the piece computes";
                return Err(Failure::new(FailureKind::Incompatible, why));
            };
            let prepared = compiler.piece(&input, &fingerprint, graph)?;
            Ok(prepared.standing_for(&part))
        });
        let prepared = preparing.await;
        let crashed = |e: tokio::task::JoinError| Failure::new(FailureKind::Crashed, e.to_string());
        Ok(Arc::new(prepared.map_err(crashed)??))
    }

    /// What stands for a piece: stored, or compiled here.
    async fn make_instead(
        self: &Arc<Self>,
        request: &Request,
        index: usize,
        compiler: Arc<dyn Compiler>,
        prepared: &Arc<Prepared>,
    ) -> Result<Answer, Error> {
        // The interpreter is the judge of others: it is not held against itself.
        let verify = match compiler.name() {
            EagerCompiler::NAME => Verify::Never,
            _ => request.verify,
        };
        let piece = u32::try_from(index).ok();
        let request = Request { piece, verify, ..request.clone() };
        let making = async {
            let tell = &mut |_: ArtifactKey, _: &Stage| {};
            let answer = self.obtain(&request, compiler, prepared.clone(), None, tell).await?;
            self.check_answer(verify, prepared, answer, tell).await
        };
        let made = timeout_at(request.deadline, making).await;
        made.unwrap_or_else(|_| Err(Error::deadline("compiling what stands for a piece")))
    }

    /// The whole with these pieces in it.
    async fn put_in(
        self: &Arc<Self>,
        request: &Request,
        whole: &Arc<Prepared>,
        instead: &BTreeMap<usize, Instead>,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let others = instead.iter().map(|(index, found)| (*index, found.prepared.clone()));
        let patched = Arc::new(whole.patched(&request.input, &others.collect())?);
        let compiler = self.compilers().named(&whole.fingerprint.compiler);
        let compiler = compiler.ok_or_else(|| {
            let why = format!("no compiler {} here", whole.fingerprint.compiler);
            Failure::new(FailureKind::ToolchainMissing, why)
        })?;
        let putting = async {
            let answer = self.obtain(request, compiler, patched.clone(), None, tell).await?;
            self.check_answer(request.verify, &patched, answer, tell).await
        };
        let put = timeout_at(request.deadline, putting).await;
        put.unwrap_or_else(|_| Err(Error::deadline("putting the pieces together")))
    }
}

/// The answer with how this request came by each piece: those that were compiled before the
/// whole was put together are hits to it.
fn told(answer: Answer, seen: &[PieceReport], instead: &BTreeMap<usize, Instead>) -> Answer {
    let came_by = |index: &usize| match (instead.get(index), seen.get(*index).map(|r| &r.stage)) {
        (Some(found), _) => Some(found.answer.outcome),
        (None, Some(PieceStage::Done { outcome, .. })) => Some(*outcome),
        _ => None,
    };
    let mut pieces = answer.pieces.to_vec();
    for report in &mut pieces {
        if let (PieceStage::Done { outcome, .. }, Some(came)) =
            (&mut report.stage, came_by(&report.index))
        {
            *outcome = came;
        }
    }
    Answer { pieces: pieces.into(), ..answer }
}
