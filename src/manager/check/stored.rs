//! Stored artifacts that are run again.
//!
//! Invariant: each pack is run once by a node, however often it is asked for, unless it
//! could not be run; and what is removed is the pack that was seen to be wrong.

use kiln_cluster::ClusterError;
use kiln_proto::{ArtifactKey, Check, Digest, Failure, FailureKind, Manifest, PieceRef};

use super::files;
use crate::{
    check::Verify,
    compiler::{Prepared, Stitch},
    manager::{Answer, Manager, Outcome},
};

impl Manager {
    /// Runs a stored artifact, where that is wanted. A wrong one is gone from the fleet
    /// when this returns.
    pub(in crate::manager) async fn check_stored(
        &self,
        verify: Verify,
        prepared: &Prepared,
        answer: &Answer,
    ) -> Result<Option<Check>, Failure> {
        match self.run_stored(verify, prepared, answer).await {
            Err(why) if why.kind == FailureKind::WrongOutput => {
                Err(self.condemn(&answer.manifest, &prepared.label, why).await)
            }
            looked => looked,
        }
    }

    pub(super) async fn run_stored(
        &self,
        verify: Verify,
        prepared: &Prepared,
        answer: &Answer,
    ) -> Result<Option<Check>, Failure> {
        let manifest = &*answer.manifest;
        let (check, is_hit) = (manifest.check.as_ref(), answer.outcome == Outcome::Hit);
        if !verify.wants_stored(&manifest.key, check, is_hit) {
            return Ok(check.cloned());
        }
        let id = (manifest.key, manifest.pack_digest);
        if let Some(known) = self.seen(verify, &id, is_hit) {
            return Ok(Some(known));
        }
        let own = files(manifest, &answer.pack);
        let check = match manifest.pieces.is_empty() {
            true => self.run_check(prepared, own, Vec::new()).await?,
            false => self.run_whole(prepared, own, &manifest.pieces).await?,
        };
        if let Some(check) = &check {
            self.checked.insert(id, check.clone());
        }
        Ok(check)
    }

    /// What came of an earlier check of this pack here. Where it could not be run, those
    /// who want everything checked have it tried again, unless this request just did.
    fn seen(&self, verify: Verify, id: &(ArtifactKey, Digest), is_hit: bool) -> Option<Check> {
        let again = |check: &Check| !check.passed() && is_hit && verify == Verify::Always;
        self.checked.get(id).filter(|check| !again(check))
    }

    /// A piece of what is stored. `check`: what its producer signed.
    pub(super) async fn check_piece(
        &self,
        verify: Verify,
        prepared: &Prepared,
        made_of: PieceRef,
        outcome: Outcome,
        check: Option<Check>,
    ) -> Result<Option<Check>, Failure> {
        let is_hit = outcome == Outcome::Hit;
        if !verify.wants_stored(&made_of.key, check.as_ref(), is_hit) {
            return Ok(check);
        }
        if let Some(known) = self.seen(verify, &(made_of.key, made_of.pack), is_hit) {
            return Ok(Some(known));
        }
        match self.stored_as(&made_of.key, &made_of.pack, &prepared.namespace).await {
            Ok(answer) => self.check_stored(verify, prepared, &Answer { outcome, ..answer }).await,
            Err(why) => Ok(Some(Check::not(why))),
        }
    }

    /// The same for a piece that was published since.
    pub(in crate::manager) async fn check_published(
        &self,
        verify: Verify,
        prepared: &Prepared,
        manifest: &Manifest,
        outcome: Outcome,
    ) -> Result<Option<Check>, Failure> {
        let Manifest { key, pack_digest: pack, pack_size, .. } = *manifest;
        let made_of = PieceRef { key, pack, pack_size };
        self.check_piece(verify, prepared, made_of, outcome, manifest.check.clone()).await
    }

    /// Which piece makes a whole wrong, as the failure of that piece; it is gone from the
    /// fleet then. `None`: each by itself is right, or cannot be run here.
    pub(in crate::manager) async fn blame(
        &self,
        stitch: &Stitch,
        refs: &[PieceRef],
    ) -> Option<(usize, Failure)> {
        for (index, (piece, made_of)) in stitch.pieces.iter().zip(refs).enumerate() {
            let prepared = &piece.prepared;
            let found = self.stored_as(&made_of.key, &made_of.pack, &prepared.namespace).await;
            let Ok(answer) = found else { continue };
            match self.check_stored(Verify::Always, prepared, &answer).await {
                Err(why) if why.kind == FailureKind::WrongOutput => return Some((index, why)),
                _ => {}
            }
        }
        None
    }

    /// Removes a wrong artifact from the whole fleet, and what is stitched of it; the
    /// failure says whether that could be done.
    pub(super) async fn condemn(&self, wrong: &Manifest, label: &str, why: Failure) -> Failure {
        let key = wrong.key;
        tracing::error!(%key, label, producer = wrong.producer, %why, "a wrong artifact is stored");
        let removed = self.remove_wrong(wrong, label, &why).await;
        let Failure { kind, message } = why;
        let what = match removed {
            Ok(_) => "it is removed from all nodes".to_owned(),
            Err(e) => format!("it could not be removed ({e}): kiln rm {key}"),
        };
        Failure::new(kind, format!("{message}; compiled by node {}, {what}", wrong.producer))
    }

    /// Removes exactly this artifact; false: somebody has seen to it, and the key has another
    /// one or none by now.
    pub(in crate::manager) async fn remove_wrong(
        &self,
        wrong: &Manifest,
        label: &str,
        why: &Failure,
    ) -> Result<bool, ClusterError> {
        let (key, producer) = (wrong.key, wrong.producer);
        match self.index.lookup_linearizable(&key).await? {
            Some(entry) if entry.pack == wrong.pack_digest => {
                let short = key.short();
                let reason =
                    format!("{label} ({short}), compiled by node {producer}: {}", why.message);
                self.index.tombstone(&key, cut(reason)).await
            }
            _ => Ok(false),
        }
    }
}

/// What every node keeps of a reason.
fn cut(mut reason: String) -> String {
    const MOST: usize = 1024;
    let end = (0..=reason.len().min(MOST)).rev().find(|at| reason.is_char_boundary(*at));
    reason.truncate(end.unwrap_or(0));
    reason
}
