//! From pieces to a whole.
//!
//! Whoever holds the lease of a whole looks for its pieces, follows those that are missing
//! until any node compiled them (see `follow` and `pull`), and puts it together.
//!
//! Invariant: whatever one piece fails of, all others are seen to their end and kept;
//! the error names each that failed.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use kiln_cluster::Lease;
use kiln_proto::{Check, Failure, FailureKind, Manifest, PieceRef};
use tokio::time::Instant;

use super::{
    PieceReport, PieceStage, States, Tell,
    whole::{Ends, all_failed, put_together},
};
use crate::{
    check::Verify,
    compiler::{Compiler, Output, Prepared, Stitch},
    error::Error,
    manager::{Manager, Outcome},
};

/// An output, with the pieces that it refers to.
pub(in crate::manager) struct Made {
    pub(in crate::manager) output: Output,
    pub(in crate::manager) pieces: Vec<PieceRef>,
    pub(in crate::manager) states: Arc<[PieceReport]>,
    /// Whether it was seen to be right. An error: it was seen not to be.
    pub(in crate::manager) check: Result<Option<Check>, Failure>,
}

impl From<Output> for Made {
    fn from(output: Output) -> Self {
        Self { output, pieces: Vec::new(), states: Arc::default(), check: Ok(None) }
    }
}

/// A whole that is to be put together.
pub(in crate::manager) struct Whole<'w> {
    pub(in crate::manager) compiler: &'w Arc<dyn Compiler>,
    pub(in crate::manager) prepared: &'w Prepared,
    pub(in crate::manager) stitch: &'w Arc<Stitch>,
    /// The request, encoded, for the nodes that compile pieces of it.
    pub(in crate::manager) request: Bytes,
    /// When it is no longer waited for.
    pub(in crate::manager) deadline: Instant,
    /// Whether it and its pieces are checked.
    pub(in crate::manager) verify: Verify,
}

impl Manager {
    /// Has all pieces compiled that are missing, each once for the cluster, and puts the
    /// whole together.
    pub(in crate::manager) async fn stitch(
        &self,
        whole: &Whole<'_>,
        lease: &Lease,
        tell: Tell,
    ) -> Result<Made, Error> {
        let Whole { compiler, prepared, stitch, verify, .. } = *whole;
        let states = Arc::new(States::new(stitch, tell));
        let mut ends: Ends = vec![None; stitch.pieces.len()];
        // Before the first look: what changes after it is told.
        let mut events = self.index.events();
        self.find_stored(whole, &states, &mut ends).await?;
        if let Some(index) = ends.iter().position(Option::is_none) {
            if stitch.is_patched() {
                // Its request, split by another node, has other pieces.
                return Err(Error::PieceGone(stitch.pieces[index].key()));
            }
            match self.follow(whole, lease, &states, &mut events, &mut ends).await {
                Err(Error::Unavailable(why)) if !self.stop.is_cancelled() => {
                    tracing::warn!(whole = %lease.key(), why, "no other node compiles pieces");
                    self.compile_rest(&**compiler, stitch, verify, &states, &mut ends).await;
                }
                followed => followed?,
            }
        }
        let mut made = put_together(stitch, ends, states.all())?;
        made.check = self.check_whole(verify, prepared, &made).await;
        if let Err(Failure { kind: FailureKind::WrongOutput, .. }) = &made.check
            && let Some((index, why)) = self.blame(stitch, &made.pieces).await
        {
            states.condemn(index, PieceStage::Failed { node: None, failure: why.clone() });
            return Err(all_failed(&[(index, Error::Unsound(why))], &states.all()));
        }
        Ok(made)
    }

    /// The same, without the cluster: nothing is looked up or published, so each piece is
    /// checked, and not the whole.
    pub(in crate::manager) async fn stitch_alone<F: Fn(Arc<[PieceReport]>) + Sync>(
        &self,
        compiler: &dyn Compiler,
        stitch: &Stitch,
        verify: Verify,
        tell: F,
    ) -> Result<Made, Error> {
        let states = States::new(stitch, tell);
        let mut ends: Ends = vec![None; stitch.pieces.len()];
        self.compile_rest(compiler, stitch, verify, &states, &mut ends).await;
        put_together(stitch, ends, states.all())
    }

    /// What is no whole, in one compile.
    pub(in crate::manager) async fn make_piece(
        &self,
        compiler: &dyn Compiler,
        prepared: &Prepared,
        verify: Verify,
    ) -> Result<Made, Error> {
        let output = self.run(compiler, prepared).await?;
        let check = self.check_made(verify, prepared, &output.files).await;
        Ok(Made { check, ..output.into() })
    }

    /// Compiles what is missing, here alone; what of it is published is nobody's.
    async fn compile_rest<F: Fn(Arc<[PieceReport]>) + Sync>(
        &self,
        compiler: &dyn Compiler,
        stitch: &Stitch,
        verify: Verify,
        states: &States<F>,
        ends: &mut Ends,
    ) {
        let missing = longest_first(stitch).into_iter().filter(|index| ends[*index].is_none());
        let compiles = missing.map(|index| async move {
            states.set(index, PieceStage::Compiling(self.identity.node));
            let prepared = &stitch.pieces[index].prepared;
            let made = match self.make_piece(compiler, prepared, verify).await {
                Ok(made) => self.sign(prepared, made).await.map(|(_, manifest, _)| manifest),
                Err(e) => Err(e),
            };
            let end = Some(made);
            self.tell_end(states, index, end.as_ref(), Outcome::Compiled, None);
            (index, end)
        });
        let compiles = stream::iter(compiles.collect::<Vec<_>>());
        let at_once = compiler.free().max(1);
        for (index, end) in compiles.buffer_unordered(at_once).collect::<Vec<_>>().await {
            ends[index] = end;
        }
    }

    pub(super) fn tell_end<F: Fn(Arc<[PieceReport]>)>(
        &self,
        states: &States<F>,
        index: usize,
        end: Option<&Result<Arc<Manifest>, Error>>,
        outcome: Outcome,
        check: Option<Check>,
    ) {
        let stage = match end {
            None => return,
            Some(Ok(manifest)) => PieceStage::Done {
                outcome,
                node: manifest.producer,
                compile_seconds: manifest.compile_seconds,
                check: check.or_else(|| manifest.check.clone()),
            },
            Some(Err(e)) => PieceStage::Failed { node: None, failure: e.clone().into_failure() },
        };
        states.set(index, stage);
    }
}

/// Positions, those first whose compile takes longest.
fn longest_first(stitch: &Stitch) -> Vec<usize> {
    let mut order: Vec<usize> = (0..stitch.pieces.len()).collect();
    let seconds = |index: &usize| stitch.pieces[*index].estimates.compile_seconds;
    order.sort_by(|a, b| seconds(b).total_cmp(&seconds(a)));
    order
}
