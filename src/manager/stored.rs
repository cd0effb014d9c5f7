//! Stored artifacts: from an index entry to verified bytes on this node.
//!
//! Invariant: what leaves here has a manifest whose signer the index knows and this node
//! believes, and the bytes that it names; a manifest is remembered, by key and epoch, only after
//! its signature held. An entry is retired only where its bytes are proven absent. An
//! artifact of pieces is here when all of them are.

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use kiln_cluster::{Asked, Entry, Retired};
use kiln_proto::{ArtifactKey, Failure, FailureKind, Manifest};
use tokio::time::Instant;

use super::{Answer, Fetched, Manager, Outcome, Verified};
use crate::error::{Error, MissingPiece};

/// What there is behind an entry.
#[derive(Debug)]
pub enum Found {
    /// The artifact.
    Here(Box<Answer>),
    /// Its bytes were nowhere: the entry is no more, and the key is free.
    Retired,
    /// Its bytes may be somewhere that does not answer now; says where.
    Unreachable(String),
    /// One of its pieces cannot be had; what else it is made of is here.
    Incomplete(MissingPiece),
}

/// What an artifact is brought for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A client runs it, or goes on with its files: a hit of its key.
    Use,
    /// Somebody looks what it is: no hit.
    Look,
}

impl Manager {
    /// A stored artifact with its bytes.
    pub async fn load(&self, key: &ArtifactKey, namespace: &str) -> Result<Answer, Error> {
        let began = Instant::now();
        let result = match self.stored(key, namespace).await {
            Ok(Some(Found::Here(answer))) => {
                self.sample(&answer, None);
                Ok(*answer)
            }
            Ok(Some(Found::Unreachable(why))) => Err(Error::Unreachable(why)),
            Ok(Some(Found::Incomplete(piece))) => Err(Error::MissingPiece(piece)),
            Ok(Some(Found::Retired) | None) => Err(Error::NotFound(*key)),
            Err(e) => Err(e),
        };
        self.ended(&result, began);
        result
    }

    /// [`Self::load`] for who looks at the artifact and does not use it: no hit.
    pub async fn view(&self, key: &ArtifactKey, namespace: &str) -> Result<Answer, Error> {
        let entry = self.index.lookup(key).await?.ok_or(Error::NotFound(*key))?;
        match self.resolve(&entry, namespace, Outcome::Hit, Purpose::Look).await? {
            Found::Here(answer) => Ok(*answer),
            Found::Unreachable(why) => Err(Error::Unreachable(why)),
            Found::Incomplete(piece) => Err(Error::MissingPiece(piece)),
            Found::Retired => Err(Error::NotFound(*key)),
        }
    }

    /// Counts how a request ended that began at `began`.
    pub(super) fn ended(&self, result: &Result<Answer, Error>, began: Instant) {
        self.counters.ended(result);
        if let Ok(answer) = result {
            self.recent.latencies.record(answer.outcome, began.elapsed());
        }
    }

    /// The artifact of an entry that the caller looked up.
    pub async fn open(&self, entry: &Entry, namespace: &str) -> Result<Found, Error> {
        let began = Instant::now();
        let found = self.resolve(entry, namespace, Outcome::Hit, Purpose::Use).await;
        match &found {
            Ok(Found::Here(answer)) => {
                self.counters.answered(answer);
                self.recent.latencies.record(answer.outcome, began.elapsed());
            }
            Err(e) => self.counters.failed(e),
            Ok(_) => {}
        }
        found
    }

    /// Brings an entry's bytes, those of its pieces too, into the local tiers, uncounted.
    /// False: nothing was fetched.
    pub async fn warm(&self, entry: &Entry) -> Result<bool, Error> {
        let manifest = self.verify_believed(entry)?;
        if self.is_here(&manifest) {
            return Ok(false);
        }
        let fetched = self.fetcher.fetch(entry, &manifest).await?;
        if !matches!(fetched, Fetched::Here(..)) {
            return Ok(false);
        }
        self.bring_pieces(&manifest, entry.pinned).await?;
        Ok(true)
    }

    /// The artifact of `key` that the local replica knows; `None`: it knows none.
    pub(super) async fn stored(
        &self,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<Option<Found>, Error> {
        match self.index.lookup(key).await? {
            None => Ok(None),
            Some(entry) => {
                self.resolve(&entry, namespace, Outcome::Hit, Purpose::Use).await.map(Some)
            }
        }
    }

    /// An entry's artifact, verified, with backfill into the local tiers. Retires the
    /// entry where its bytes are nowhere.
    pub(super) async fn resolve(
        &self,
        entry: &Entry,
        namespace: &str,
        outcome: Outcome,
        purpose: Purpose,
    ) -> Result<Found, Error> {
        let manifest = match self.verify_believed(entry) {
            // As if it were not there: it may be compiled anew, by who is believed.
            Err(Error::Unreachable(why)) => return Ok(Found::Unreachable(why)),
            verified => verified?,
        };
        if manifest.namespace != namespace {
            // The namespace is part of the key: only a forged request gets here.
            return Err(Error::NotFound(entry.key));
        }
        let began = Instant::now();
        match self.fetcher.fetch(entry, &manifest).await? {
            Fetched::Here(pack, origin) => {
                self.counters.brought(origin, began.elapsed());
                match self.bring_pieces(&manifest, entry.pinned).await {
                    Ok(()) => {}
                    Err(Error::MissingPiece(piece)) => return Ok(Found::Incomplete(piece)),
                    Err(e) => return Err(e),
                }
                if purpose == Purpose::Use {
                    self.reporter.hit(entry.key);
                }
                let signed = entry.manifest.clone();
                let origin = Some(origin);
                let (pieces, check) = (Arc::default(), manifest.check.clone());
                let (fallback, tried) = Default::default();
                Ok(Found::Here(Box::new(Answer {
                    signed,
                    manifest,
                    pack,
                    outcome,
                    origin,
                    pieces,
                    check,
                    fallback,
                    tried,
                })))
            }
            Fetched::Unreachable(why) => {
                self.counters.unreachable();
                Ok(Found::Unreachable(why))
            }
            Fetched::Absent(asked) => self.retire(entry, asked).await,
        }
    }

    pub(super) async fn retire(&self, entry: &Entry, asked: Asked) -> Result<Found, Error> {
        let (key, epoch) = (entry.key, entry.epoch);
        match self.index.retire(&key, epoch, asked).await? {
            Retired::Over => {
                self.counters.lost();
                tracing::warn!(%key, epoch, "its bytes are nowhere: the entry is retired");
                Ok(Found::Retired)
            }
            Retired::NotProven => {
                self.counters.unreachable();
                Ok(Found::Unreachable("a node that may have it was not known here yet".into()))
            }
        }
    }

    /// The manifest of an entry, whose signature holds.
    pub(super) fn verify(&self, entry: &Entry) -> Result<Arc<Manifest>, Error> {
        Ok(self.verify_by(entry)?.0)
    }

    /// The same, and the key that signed it.
    pub(super) fn verify_by(&self, entry: &Entry) -> Result<(Arc<Manifest>, VerifyingKey), Error> {
        self.check_signature(entry).inspect_err(|e| {
            self.counters.bad_manifest();
            tracing::error!(key = %entry.key, error = %e, "a manifest in the index is refused");
        })
    }

    /// The same, without a word where it does not hold.
    pub(super) fn check_signature(
        &self,
        entry: &Entry,
    ) -> Result<(Arc<Manifest>, VerifyingKey), Error> {
        let id = (entry.key, entry.epoch);
        if let Some(known) = self.verified.get(&id) {
            return Ok((known.manifest, known.by));
        }
        let checked = match self.index.node(entry.manifest.signer) {
            Some(signer) => signer.verify(&entry.manifest, &entry.key).map_err(Error::from),
            None => Err(Failure::new(
                FailureKind::Corrupt,
                format!("the manifest's signer {} was never a member", entry.manifest.signer),
            )
            .into()),
        };
        let (manifest, by) = checked?;
        let manifest = Arc::new(manifest);
        let bytes = entry.manifest.bytes.len() as u64;
        self.verified.insert(id, Verified { manifest: manifest.clone(), by, bytes });
        Ok((manifest, by))
    }
}
