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
//! equal to each other, of a request that has the artifact's very key; that a compiler refuses
//! a source removes nothing. An artifact counts as dealt with once it is gone.

mod queue;
mod verdict;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kiln_proto::{ArtifactKey, Failure, FailureKind, Manifest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{queue::Sampled, verdict::difference};
pub(super) use queue::Queue;
pub use verdict::{Removed, Skip, Verdict};

use super::{Answer, Manager, Outcome, Request};
use crate::{
    access::Identity,
    audit::{Audit, Event},
    compiler::{Compiler, Output, Prepared},
    error::Error,
};

/// Bound on one of them.
const DEADLINE: Duration = Duration::from_secs(900);
/// How often a wrong artifact is tried to be removed before the next hit has to find it.
const REMOVALS: u32 = 3;
/// Before it is tried once more, at first.
const PAUSE: Duration = Duration::from_millis(500);
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
                    let told = match &removed {
                        Removed::Now => "; removed".to_owned(),
                        Removed::Before => String::new(),
                        Removed::Not(why) => format!("; could not be removed: {why}"),
                    };
                    let detail = format!("signed by node {signer}: {what}{told}");
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
            match &verdict {
                // It is still served: the next hit looks again.
                Verdict::Different { removed: Removed::Not(_), .. } | Verdict::Skipped(_) => {}
                Verdict::Equal | Verdict::Different { .. } => self.spot.learn(&manifest),
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
        if compiler.asks_the_time(&prepared) {
            return Ok(Compared::Skipped(Skip::Time));
        }
        if compiler.fingerprint().ok().as_ref() != Some(&prepared.fingerprint) {
            return Ok(Compared::Skipped(Skip::Toolchain));
        }
        self.gate.check()?;
        let first = match self.once_more(&*compiler, &prepared, manners).await? {
            None => return Ok(Compared::Skipped(Skip::Busy)),
            Some(first) => first,
        };
        let what = match first.judge(manifest) {
            Compared::Different(what) => what,
            end => return Ok(end),
        };
        // A machine that makes mistakes must not have right artifacts removed.
        match self.once_more(&*compiler, &prepared, manners).await? {
            None => Ok(Compared::Skipped(Skip::Busy)),
            Some(second) if second.is_same(&first) => Ok(Compared::Different(what)),
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
            Err(Error::Failed(why)) if why.kind == FailureKind::CompileError => {
                let (key, why) = (prepared.components.key(), why.message);
                tracing::warn!(%key, why, "the compiler here refuses the source of an artifact");
                Ok(Some(Made::Refused))
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

    /// Removes what differs.
    async fn remove(&self, wrong: &Manifest, what: &str) -> Removed {
        let node = self.identity.node;
        tracing::error!(
            key = %wrong.key, label = wrong.label, signer = wrong.producer, what,
            "an artifact is not what its source compiles to: see what else its signer made \
             (kiln signer revoke)"
        );
        let message = format!("compiled again on node {node}: {what}");
        let why = Failure::new(FailureKind::WrongOutput, message);
        let mut pause = PAUSE;
        for _ in 1..REMOVALS {
            match self.remove_wrong(wrong, &wrong.label, &why).await {
                Ok(true) => return Removed::Now,
                Ok(false) => return Removed::Before,
                Err(e) => tracing::warn!(key = %wrong.key, error = %e, "it is not removed yet"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        match self.remove_wrong(wrong, &wrong.label, &why).await {
            Ok(true) => Removed::Now,
            Ok(false) => Removed::Before,
            Err(e) => {
                tracing::error!(key = %wrong.key, error = %e, "a wrong artifact is still served");
                Removed::Not(e.to_string())
            }
        }
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
    /// The compiler refuses the source.
    Refused,
}

impl Made {
    /// What one compile shows. A refusal shows nothing: this node's memory may have been short,
    /// or its headers be gone, and the artifact is what its source compiles to all the same.
    fn judge(&self, manifest: &Manifest) -> Compared {
        match self {
            Self::Refused => Compared::Skipped(Skip::Refused),
            Self::Files(output) => match difference(manifest, output) {
                Some(what) => Compared::Different(what),
                None => Compared::Equal,
            },
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Files(one), Self::Files(other)) => one.files == other.files,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::{Digest, value};

    use super::*;

    #[test]
    fn a_refusal_removes_nothing_and_other_bytes_do() {
        let manifest = value::manifest("default", b"x", Digest::of(b"right"), 5, 0.0);
        let files = |bytes: &'static [u8]| {
            let files = vec![(value::FILE.to_owned(), bytes.into())];
            Made::Files(Output { files, compile_seconds: 0.0, log: String::new() })
        };
        assert!(matches!(Made::Refused.judge(&manifest), Compared::Skipped(Skip::Refused)));
        assert!(!Made::Refused.is_same(&Made::Refused));
        assert!(matches!(files(b"right").judge(&manifest), Compared::Equal));
        assert!(matches!(files(b"wrong").judge(&manifest), Compared::Different(_)));
        assert!(files(b"a").is_same(&files(b"a")) && !files(b"a").is_same(&files(b"b")));
    }
}
