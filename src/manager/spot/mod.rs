//! Spot checks: stored artifacts that are compiled once more, to see whether who signed them
//! told the truth.
//!
//! A signature says who made an artifact, and not that it is what its source compiles to: a
//! node that somebody else has, or a client that may publish, can sign what it likes. A share
//! of the hits is compiled again in the background on another node, where the compiler gives
//! the same bytes each time ([`Compiler::is_deterministic`]).
//!
//! Invariant: one at a time, only where a compiler is free, and given up when somebody waits
//! for one; no answer waits for it. What is removed differs from two compiles here that are
//! equal to each other, of a request that has the artifact's very key.

mod queue;
mod verdict;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kiln_proto::{ArtifactKey, Failure, FailureKind, Manifest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{queue::Sampled, verdict::difference};
pub(super) use queue::Queue;
pub use verdict::{Skip, Verdict};

use super::{Answer, Manager, Outcome, Request};
use crate::{
    access::Identity,
    audit::{Audit, Event},
    compiler::{Compiler, Output, Prepared},
    error::Error,
};

/// Bound on one of them.
const DEADLINE: Duration = Duration::from_secs(900);
/// Between two looks whether somebody waits for a compiler.
const LOOK: Duration = Duration::from_millis(100);

/// Whether a check lets others go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// It is given up when somebody waits for a compiler.
    GivesWay,
    /// Somebody waits for it as for any compile.
    Insists,
}

impl Manager {
    /// Perhaps has a hit looked into later. `request`: what the client asked with.
    pub(super) fn sample(&self, answer: &Answer, request: Option<&Request>) {
        let manifest = &*answer.manifest;
        if answer.outcome != Outcome::Hit || !self.spot.is_on() || manifest.replaceable() {
            return;
        }
        if !self.spot.picks() {
            return;
        }
        let skipped = if self.spot.knows(manifest) {
            Some(Skip::Known)
        } else if manifest.producer == self.identity.node {
            Some(Skip::Own)
        } else if !manifest.pieces.is_empty() {
            Some(Skip::Pieces)
        } else if !self.spot.add(manifest, request) {
            Some(Skip::Busy)
        } else {
            None
        };
        if let Some(skip) = skipped {
            self.counters.spot_checked(&Verdict::Skipped(skip));
        }
    }

    /// Looks into the hits that were picked, one after the other, until `stop`.
    pub async fn spot_check(self: Arc<Self>, audit: Audit, stop: CancellationToken) {
        loop {
            let Sampled { key, namespace, request } = tokio::select! {
                next = self.spot.next() => next,
                () = stop.cancelled() => return,
            };
            let by = Identity::Member(Some(self.identity.node));
            let looking = self.look_into(key, &namespace, request, Manners::GivesWay, &audit, &by);
            let looked = tokio::select! {
                looked = looking => looked,
                () = stop.cancelled() => return,
            };
            if let Err(e) = looked {
                tracing::debug!(%key, error = %e, "not compared");
            }
        }
    }

    /// Compares the artifact of `key` at once, because `by` asked for it. `request`: what it
    /// is of; without one, what the cluster kept.
    pub async fn recheck(
        &self,
        key: ArtifactKey,
        namespace: &str,
        request: Option<Request>,
        audit: &Audit,
        by: &Identity,
    ) -> Result<Verdict, Error> {
        self.look_into(key, namespace, request, Manners::Insists, audit, by).await
    }

    /// Compares, counts, and sees to what differs. Boxed: the compiler gives up on its type.
    fn look_into<'a>(
        &'a self,
        key: ArtifactKey,
        namespace: &'a str,
        request: Option<Request>,
        manners: Manners,
        audit: &'a Audit,
        by: &'a Identity,
    ) -> BoxFuture<'a, Result<Verdict, Error>> {
        Box::pin(async move {
            let entry = self.index.lookup(&key).await?.ok_or(Error::NotFound(key))?;
            let manifest = self.verify(&entry)?;
            if manifest.namespace != namespace {
                return Err(Error::NotFound(key));
            }
            let compared = self.compare(&manifest, request, manners).await;
            let verdict = match compared {
                Ok(Compared::Equal) => Verdict::Equal,
                Ok(Compared::Different(what)) => {
                    let (signer, removed) =
                        (manifest.producer, self.remove(&manifest, &what).await);
                    let detail = format!(
                        "signed by node {signer}: {what}{}",
                        if removed { "; removed" } else { "" }
                    );
                    let event = Event::new("wrong_artifact", by).of(key).within(namespace);
                    audit.record(event.saying(detail));
                    Verdict::Different { what, signer, removed }
                }
                Ok(Compared::Skipped(skip)) => Verdict::Skipped(skip),
                Err(e) => {
                    tracing::info!(%key, error = %e, "an artifact could not be compiled again");
                    Verdict::Skipped(Skip::Failed)
                }
            };
            if matches!(verdict, Verdict::Equal | Verdict::Different { .. }) {
                self.spot.learn(&manifest);
            }
            self.counters.spot_checked(&verdict);
            tracing::debug!(%key, verdict = verdict.name(), "compared with a new compile");
            Ok(verdict)
        })
    }

    async fn compare(
        &self,
        manifest: &Manifest,
        request: Option<Request>,
        manners: Manners,
    ) -> Result<Compared, Error> {
        let deadline = Instant::now() + DEADLINE;
        let request = match request {
            Some(request) => Request { deadline, ..request },
            None if !self.keeps_request(&manifest.key, &manifest.namespace).await? => {
                return Ok(Compared::Skipped(Skip::Request));
            }
            None => self.kept_request(&manifest.key, &manifest.namespace, deadline).await?,
        };
        let (compiler, prepared) = self.select(&request).await?;
        if prepared.components.key() != manifest.key {
            return Ok(Compared::Skipped(Skip::Toolchain));
        }
        if prepared.stitch().is_some() || !manifest.pieces.is_empty() {
            return Ok(Compared::Skipped(Skip::Pieces));
        }
        if !compiler.is_deterministic() {
            return Ok(Compared::Skipped(Skip::Compiler));
        }
        if compiler.fingerprint().ok().as_ref() != Some(&prepared.fingerprint) {
            return Ok(Compared::Skipped(Skip::Toolchain));
        }
        self.gate.check()?;
        let first = match self.once_more(&*compiler, &prepared, manners).await? {
            None => return Ok(Compared::Skipped(Skip::Busy)),
            Some(first) => first,
        };
        let Some(what) = first.differs_from(manifest) else { return Ok(Compared::Equal) };
        // A machine that makes mistakes must not have right artifacts removed.
        match self.once_more(&*compiler, &prepared, manners).await? {
            None => Ok(Compared::Skipped(Skip::Busy)),
            Some(second) if second == first => Ok(Compared::Different(what)),
            Some(_) => {
                tracing::error!(
                    key = %manifest.key, compiler = compiler.name(),
                    "two compiles of one request on this node differ: it removes nothing"
                );
                Ok(Compared::Skipped(Skip::Unsteady))
            }
        }
    }

    /// One compile; `None`: it was given up for who waits for a compiler.
    async fn once_more(
        &self,
        compiler: &dyn Compiler,
        prepared: &Prepared,
        manners: Manners,
    ) -> Result<Option<Made>, Error> {
        let compiling = self.run(compiler, prepared);
        let made = match manners {
            Manners::Insists => compiling.await,
            Manners::GivesWay => {
                compiler.until_free().await;
                tokio::select! {
                    made = compiling => made,
                    () = self.somebody_waits() => return Ok(None),
                }
            }
        };
        match made {
            Ok(output) => Ok(Some(Made::Files(output))),
            // Then there can be no artifact of it.
            Err(Error::Failed(why)) if why.kind == FailureKind::CompileError => {
                Ok(Some(Made::Refused(why.message)))
            }
            Err(e) => Err(e),
        }
    }

    /// Returns once a request waits for a place of a compiler.
    async fn somebody_waits(&self) {
        while self.compilers.pools().iter().all(|(_, load)| load.waiting == 0) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes what differs; whether this removed it.
    async fn remove(&self, wrong: &Manifest, what: &str) -> bool {
        let node = self.identity.node;
        tracing::error!(
            key = %wrong.key, label = wrong.label, signer = wrong.producer, what,
            "an artifact is not what its source compiles to: see what else its signer made \
             (kiln signer revoke)"
        );
        let message = format!("compiled again on node {node}: {what}");
        let why = Failure::new(FailureKind::WrongOutput, message);
        self.remove_wrong(wrong, &wrong.label, &why).await.is_ok_and(|removed| removed)
    }
}

/// What a comparison showed, before anything is done about it.
enum Compared {
    Equal,
    Different(String),
    Skipped(Skip),
}

/// What a compile gave.
enum Made {
    Files(Output),
    /// The compiler refuses the source, for this reason.
    Refused(String),
}

impl Made {
    fn differs_from(&self, manifest: &Manifest) -> Option<String> {
        match self {
            Self::Files(output) => difference(manifest, output),
            Self::Refused(why) => Some(format!("its source does not compile: {why}")),
        }
    }
}

impl PartialEq for Made {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Files(a), Self::Files(b)) => a.files == b.files,
            (Self::Refused(a), Self::Refused(b)) => a == b,
            _ => false,
        }
    }
}
