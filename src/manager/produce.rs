//! What the holder of a lease does: make the artifact, and publish it.
//!
//! Invariant: nothing is published once the lease is known to be lost; a failure that
//! follows from the request ends the lease with that verdict, any other one leaves the key
//! to the next node.

use std::{sync::Arc, time::Instant};

use kiln_cluster::{Lease, Published};
use tracing::Instrument;

use super::{Answer, Found, Made, Manager, Outcome};
use crate::{
    compiler::{Compiler, EagerCompiler, Output, Prepared},
    error::Error,
    step,
};

impl Manager {
    /// Publishes what `making` makes as the holder of `lease`; the error beside the artifact
    /// says why that was not possible.
    pub(super) async fn compile_under(
        &self,
        lease: &Lease,
        prepared: &Prepared,
        making: impl Future<Output = Result<Made, Error>>,
    ) -> Result<(Answer, Option<Error>), Error> {
        let inside = self.gate.enter()?;
        let made = tokio::select! {
            made = making => made,
            () = self.gate.turned_away() => return Err(Error::Leaving),
            () = lease.lost() => return Err(Error::StaleToken),
        };
        let made = match made {
            Ok(made) => made,
            Err(Error::Failed(failure)) => {
                // A failure of this node alone is no verdict: the dropped lease
                // lets another node try.
                if failure.kind.follows_from_request()
                    && let Err(e) = self.index.fail(lease, failure.clone()).await
                {
                    tracing::warn!(error = %e, "a failed compile could not be recorded");
                }
                return Err(failure.into());
            }
            Err(e) => return Err(e),
        };
        let pieces = made.states.clone();
        // A check that failed is no verdict on the request: another node may do better.
        let (signed, manifest, pack) = self.sign(prepared, made).await?;
        let check = manifest.check.clone();
        self.learned.observe(prepared, &manifest.key, manifest.compile_seconds);
        let answer = Answer {
            signed,
            manifest: manifest.clone(),
            pack: pack.clone(),
            outcome: Outcome::Compiled,
            origin: None,
            pieces,
            check,
            fallback: None,
            tried: Arc::default(),
        };
        let publishing = self.commit(&inside, lease, &answer.signed, &manifest, &pack);
        match publishing.instrument(step!("publish")).await {
            Ok(Published::Committed(_)) => Ok((answer, None)),
            Ok(Published::Existing(entry)) => {
                // The first commit won: its bytes are the key's, not ours.
                match self.resolve_all(&entry, prepared, Outcome::Coalesced).await? {
                    Found::Here(theirs) => Ok((*theirs, None)),
                    Found::Retired | Found::Unreachable(_) | Found::Incomplete(_) => {
                        Ok((answer, None))
                    }
                }
            }
            Err(why @ (Error::Unavailable(_) | Error::NotStored(_) | Error::Leaving)) => {
                self.counters.unpublished();
                tracing::warn!(key = %manifest.key, %why, "compiled, but not published");
                Ok((answer, Some(why)))
            }
            // A leader has heard of what the root says before this node has.
            Err(Error::Invalid(why)) => {
                self.counters.unpublished();
                tracing::warn!(key = %manifest.key, why, "compiled, and the cluster does not take it");
                Ok((answer, Some(Error::NotStored(why))))
            }
            Err(e) => Err(e),
        }
    }

    pub(super) async fn run(
        &self,
        compiler: &dyn Compiler,
        prepared: &Prepared,
    ) -> Result<Output, Error> {
        // The interpreter is no process, and always there.
        let is_process = compiler.name() != EagerCompiler::NAME;
        if is_process {
            self.emergency.may_compile()?;
        }
        let started = Instant::now();
        let (limits, name) = (self.limits(), compiler.name());
        let compiling = compiler.compile(prepared, &limits, self.stop.child_token());
        let output = compiling.instrument(step!("compile", compiler = name)).await;
        if is_process && !self.stop.is_cancelled() {
            self.observed.ran(name, &output);
        }
        let seconds = output.as_ref().ok().map(|_| started.elapsed().as_secs_f64());
        self.counters.ran(compiler.name(), seconds);
        if output.is_err() && self.stop.is_cancelled() {
            // No verdict on the request: whoever asked may ask another node.
            return Err(Error::Unavailable("this node stops".into()));
        }
        Ok(output?)
    }
}
