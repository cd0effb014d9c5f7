//! Artifacts that are checked before anybody is given them.
//!
//! What is compiled here is run before it is published, and a whole once it is put
//! together; what is stored is run where the request wants that. See [`crate::check`].
//!
//! Invariant: an artifact that was seen to be wrong is not published, and one that was
//! published is removed from the whole fleet, before the request ends that asked for it.
//! Only wrong numbers condemn what is stored: a check that hangs or crashes may be this
//! machine's.

mod answer;
mod stored;

use kiln_proto::{ArtifactKey, Check, Digest, Failure, Manifest, PieceRef};

use super::{Answer, Found, Made, Manager, Outcome, stored::Purpose};
use crate::{
    cache::Blob,
    check::{Files, Subject, Verify},
    compiler::Prepared,
};

impl Manager {
    /// Runs what was just compiled here; `None`: nobody wants that.
    pub(super) async fn check_made(
        &self,
        verify: Verify,
        prepared: &Prepared,
        files: &Files,
    ) -> Result<Option<Check>, Failure> {
        if !verify.wants(&prepared.components.key()) {
            return Ok(None);
        }
        self.run_check(prepared, files.clone(), Vec::new()).await
    }

    /// Runs a whole that was just put together.
    pub(super) async fn check_whole(
        &self,
        verify: Verify,
        prepared: &Prepared,
        made: &Made,
    ) -> Result<Option<Check>, Failure> {
        if !verify.wants(&prepared.components.key()) {
            return Ok(None);
        }
        self.run_whole(prepared, made.output.files.clone(), &made.pieces).await
    }

    /// Runs a whole with its pieces.
    async fn run_whole(
        &self,
        prepared: &Prepared,
        own: Files,
        refs: &[PieceRef],
    ) -> Result<Option<Check>, Failure> {
        let mut pieces = Vec::with_capacity(refs.len());
        for (index, piece) in refs.iter().enumerate() {
            match self.stored_as(&piece.key, &piece.pack, &prepared.namespace).await {
                Ok(answer) => pieces.push(files(&answer.manifest, &answer.pack)),
                Err(why) => return Ok(Some(Check::not(format!("piece {index}: {why}")))),
            }
        }
        self.run_check(prepared, own, pieces).await
    }

    async fn run_check(
        &self,
        prepared: &Prepared,
        files: Files,
        pieces: Vec<Files>,
    ) -> Result<Option<Check>, Failure> {
        let Some(program) = prepared.program().cloned() else { return Ok(None) };
        let subject = Subject { files, pieces, program };
        let checked = self.checker.check(subject, self.stop.child_token()).await;
        self.counters.checked(&checked);
        let node = self.identity.node;
        match checked {
            Ok(Check::Not { why }) => Ok(Some(Check::not(format!("on node {node}: {why}")))),
            Ok(passed) => Ok(Some(passed)),
            Err(Failure { kind, message }) => {
                Err(Failure::new(kind, format!("on node {node}: {message}")))
            }
        }
    }

    /// The artifact of `key` with its bytes, if it is the one of `pack`.
    async fn stored_as(
        &self,
        key: &ArtifactKey,
        pack: &Digest,
        namespace: &str,
    ) -> Result<Answer, String> {
        let found = match self.index.lookup(key).await {
            Ok(Some(entry)) if entry.pack == *pack => {
                self.resolve(&entry, namespace, Outcome::Hit, Purpose::Look).await
            }
            Ok(_) => return Err("the index has no such artifact now".into()),
            Err(why) => return Err(why.to_string()),
        };
        match found {
            Ok(Found::Here(answer)) => Ok(*answer),
            Ok(Found::Unreachable(why)) => Err(why),
            Ok(Found::Incomplete(piece)) => Err(piece.to_string()),
            Ok(Found::Retired) => Err("its bytes are lost".into()),
            Err(why) => Err(why.to_string()),
        }
    }
}

/// The files in a pack. A manifest was checked to cover its pack exactly.
fn files(manifest: &Manifest, pack: &Blob) -> Files {
    let file = |entry: &kiln_proto::FileEntry| {
        let from = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let to = usize::try_from(entry.offset + entry.size).unwrap_or(usize::MAX);
        let bytes = pack.get(from..to).unwrap_or_default();
        (entry.path.clone(), bytes::Bytes::copy_from_slice(bytes))
    };
    manifest.files.iter().map(file).collect()
}
