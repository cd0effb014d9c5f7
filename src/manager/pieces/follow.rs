//! The pieces of a whole, from where they are or from whoever compiles them.
//!
//! Who holds the lease of a whole says in the index which pieces it waits for, and looks
//! there what became of each.
//!
//! Invariant: a piece counts as compiled only when the index has its artifact; the request
//! is to be had from this node for as long as its pieces are wanted.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use kiln_cluster::{Acquired, IndexEvent, Lease, Wanted, WantedPiece};
use kiln_proto::{ArtifactKey, Digest, Failure, FailureKind, Manifest};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{PieceReport, PieceStage, States, Tell, Whole, whole::Ends};
use crate::{
    cache::{Blob, Guard, Hints, Inserted, Kept, Tiers},
    compiler::{Stitch, StitchPiece},
    error::Error,
    manager::{Found, Manager, Outcome, stored::Purpose},
};

/// Pieces that are looked for at once.
const AT_ONCE: usize = 8;

impl Manager {
    /// The pieces whose artifacts are there, with their bytes on this node, and those
    /// that failed a while ago.
    pub(super) async fn find_stored<F: Fn(Arc<[PieceReport]>) + Sync>(
        &self,
        whole: &Whole<'_>,
        states: &States<F>,
        ends: &mut Ends,
    ) -> Result<(), Error> {
        let finds = (0..ends.len()).map(|index| self.find_piece(whole, index, states));
        let finds = stream::iter(finds.collect::<Vec<_>>()).buffered(AT_ONCE);
        *ends = finds.try_collect().await?;
        Ok(())
    }

    async fn find_piece<F: Fn(Arc<[PieceReport]>) + Sync>(
        &self,
        whole: &Whole<'_>,
        index: usize,
        states: &States<F>,
    ) -> Result<Option<Result<Arc<Manifest>, Error>>, Error> {
        let key = whole.stitch.pieces[index].key();
        let (mut outcome, mut end, mut check) = (Outcome::Hit, None, None);
        if let Some(entry) = self.index.lookup(&key).await? {
            let namespace = &whole.prepared.namespace;
            match self.resolve(&entry, namespace, Outcome::Hit, Purpose::Use).await? {
                Found::Here(answer) => {
                    let prepared = &whole.stitch.pieces[index].prepared;
                    self.learned.observe(prepared, &key, answer.manifest.compile_seconds);
                    let checked = self.check_stored(whole.verify, prepared, &answer).await;
                    end = Some(match checked {
                        Ok(found) => {
                            check = found;
                            Ok(answer.manifest)
                        }
                        Err(why) => Err(Error::Unsound(why)),
                    });
                }
                Found::Retired => {}
                Found::Incomplete(piece) => {
                    let why = format!("the artifact of piece {index} is no piece: {piece}");
                    end = Some(Err(Failure::new(FailureKind::Corrupt, why).into()));
                }
                Found::Unreachable(why) => {
                    tracing::warn!(%key, index, why, "compile a piece once more");
                    states.set(index, PieceStage::Compiling(self.identity.node));
                    outcome = Outcome::Compiled;
                    end = Some(self.compile_again(whole, index, entry.epoch).await);
                }
            }
        } else if let Some(failure) = self.index.failure(&key).await? {
            end = Some(Err(failure.into()));
        }
        self.tell_end(states, index, end.as_ref(), outcome, check);
        Ok(end)
    }

    /// A piece whose bytes cannot be reached, by a lease that does not mind its entry.
    async fn compile_again(
        &self,
        whole: &Whole<'_>,
        index: usize,
        instead_of: u64,
    ) -> Result<Arc<Manifest>, Error> {
        let prepared = &whole.stitch.pieces[index].prepared;
        let key = prepared.components.key();
        match self.index.acquire(&key, Some(instead_of), whole.deadline, || {}).await? {
            Acquired::Failed(failure) => Err(failure.into()),
            Acquired::Ready(entry) => {
                self.know_signer(&entry).await;
                self.verify_believed(&entry)
            }
            Acquired::Granted(lease) => {
                // Of a whole that was patched it may be another compiler's.
                let own = self.compilers.named(&prepared.fingerprint.compiler);
                let compiler = own.as_ref().unwrap_or(whole.compiler);
                let making = self.make_piece(&**compiler, prepared, whole.verify);
                match self.compile_under(&lease, prepared, making).await? {
                    (answer, None) => Ok(answer.manifest),
                    (_, Some(why)) => Err(why),
                }
            }
        }
    }

    /// How a wanted piece ended, if it did. `error`: what this node failed of.
    async fn look(
        &self,
        key: &ArtifactKey,
        error: Option<Error>,
    ) -> Result<Option<Result<Arc<Manifest>, Error>>, Error> {
        if let Some(entry) = self.index.lookup(key).await? {
            return Ok(Some(self.verify_believed(&entry)));
        }
        if let Some(error) = error {
            return Ok(Some(Err(error)));
        }
        Ok(self.index.failure(key).await?.map(|failure| Err(failure.into())))
    }

    /// Has all nodes compile what is missing, this one among them, and returns when each
    /// piece ended. `Unavailable`: the cluster did not take the list.
    pub(super) async fn follow(
        &self,
        whole: &Whole<'_>,
        lease: &Lease,
        states: &Arc<States<Tell>>,
        events: &mut Receiver<IndexEvent>,
        ends: &mut Ends,
    ) -> Result<(), Error> {
        let Whole { prepared, stitch, .. } = *whole;
        let request = Blob::copy_within(self.tiers.budget(), &whole.request).await?;
        let asked = Wanted {
            whole: *lease.key(),
            token: lease.token(),
            node: self.identity.node,
            request: request.digest(),
            request_bytes: request.size(),
            pieces: stitch.pieces.iter().map(wanted).collect(),
            fingerprint: prepared.fingerprint.clone(),
        };
        let before = self.index.wanted();
        let others = |key: &ArtifactKey| {
            let mut pieces = before.iter().flat_map(|list| &list.pieces);
            pieces.any(|piece| piece.key == *key)
        };
        let _served = self.serve_request(&request).await;
        let followed = {
            let split = (stitch.clone(), whole.verify);
            self.own.follow(lease.token(), asked.node, split, states.clone())
        };
        self.index.want(lease, asked).await?;
        loop {
            for (index, (end, piece)) in ends.iter_mut().zip(&stitch.pieces).enumerate() {
                if end.is_none() {
                    let key = piece.key();
                    let outcome = if others(&key) { Outcome::Coalesced } else { Outcome::Compiled };
                    let mut check = None;
                    *end = self.look(&key, followed.list.error(index)).await?;
                    // Who compiled it may not have looked: a client, or an older Kiln.
                    if let Some(Ok(manifest)) = end {
                        let (verify, prepared) = (whole.verify, &piece.prepared);
                        self.learned.observe(prepared, &key, manifest.compile_seconds);
                        match self.check_published(verify, prepared, manifest, outcome).await {
                            Ok(found) => check = found,
                            Err(why) => *end = Some(Err(Error::Unsound(why))),
                        }
                    }
                    self.tell_end(states, index, end.as_ref(), outcome, check);
                }
            }
            if ends.iter().all(Option::is_some) {
                return Ok(());
            }
            tokio::select! {
                () = heard(events, stitch) => {}
                () = followed.list.changed.notified() => {}
                () = self.stop.cancelled() => {
                    return Err(Error::Unavailable("this node stops".into()));
                }
            }
        }
    }

    /// Lets other nodes fetch the request, as any bytes that this node has.
    async fn serve_request(&self, request: &Blob) -> Served {
        let Inserted { kept, guard } = self.tiers.insert(request, Hints::default()).await;
        if let Kept::Nowhere(why) = kept {
            tracing::warn!(error = %why, "other nodes cannot fetch a request for pieces");
        }
        Served { tiers: self.tiers.clone(), digest: request.digest(), guard: Some(guard) }
    }
}

/// A request that other nodes may fetch; dropped, it goes.
struct Served {
    tiers: Arc<Tiers>,
    digest: Digest,
    guard: Option<Guard>,
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.guard.take());
        let (tiers, digest) = (self.tiers.clone(), self.digest);
        tokio::spawn(async move {
            // Another whole of the same request may be under way: its guard keeps it.
            if let Err(e) = tiers.remove_if(&digest, || true).await {
                tracing::debug!(error = %e, "a request for pieces is left to be evicted");
            }
        });
    }
}

fn wanted(piece: &StitchPiece) -> WantedPiece {
    WantedPiece {
        key: piece.key(),
        seconds: piece.estimates.compile_seconds as f32,
        memory: piece.estimates.compile_bytes,
    }
}

/// Returns when something of these keys may have changed.
async fn heard(events: &mut Receiver<IndexEvent>, stitch: &Stitch) {
    let is_one = |key: &ArtifactKey| stitch.pieces.iter().any(|piece| piece.key() == *key);
    loop {
        match events.recv().await {
            Ok(IndexEvent::Published { key, .. } | IndexEvent::Failed { key }) if is_one(&key) => {
                return;
            }
            Ok(IndexEvent::Reset) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The node ends: so does whoever waits here.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
