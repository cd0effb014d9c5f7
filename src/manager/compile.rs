//! A request for an artifact: from the cache, or compiled once for the cluster.
//!
//! Invariant: compiles of one key are at most one a lease; a lease is taken for a key
//! without an artifact, or for one whose bytes this node cannot reach. A caller's
//! deadline ends its wait, never the flight that others watch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use kiln_cluster::{Acquired, Lease, Published};
use kiln_proto::{ArtifactKey, Failure, FailureKind, Fingerprint};
use tokio::{sync::watch, time::timeout_at};

use super::{Answer, Found, Manager, Outcome, Progress, Request, Stage};
use crate::{
    compiler::{Compiler, Output, Prepared},
    error::Error,
};

/// How often a flight starts over when its entry's bytes or its lease are lost.
const ATTEMPTS: usize = 4;

impl Manager {
    /// The key and all that decides it, without compiling.
    pub async fn prepare(&self, request: &Request) -> Result<Arc<Prepared>, Error> {
        Ok(self.select(request).await?.1)
    }

    /// Answers a request from the cache or by compiling. `tell` hears the key
    /// first and then each stage.
    pub async fn compile(
        self: &Arc<Self>,
        request: Request,
        mut tell: impl FnMut(ArtifactKey, &Stage) + Send,
    ) -> Result<Answer, Error> {
        let result = self.compile_uncounted(&request, &mut tell).await;
        self.counters.ended(&result);
        result
    }

    async fn compile_uncounted(
        self: &Arc<Self>,
        request: &Request,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let (compiler, prepared) = self.select(request).await?;
        let key = prepared.components.key();
        tell(key, &Stage::Acquiring);
        if request.disable_cache {
            let output = timeout_at(request.deadline, self.run(&*compiler, &prepared))
                .await
                .map_err(|_| Error::deadline("compiling"))??;
            let (signed, manifest, pack) = self.sign(&prepared, output).await?;
            return Ok(Answer { signed, manifest, pack, outcome: Outcome::Compiled, origin: None });
        }
        if let Some(Found::Here(answer)) = self.stored(&key, &request.input.namespace).await? {
            return Ok(*answer);
        }
        if let Some(failure) = self.index.failure(&key).await? {
            return Err(failure.into());
        }
        // A node that cannot compile this takes no lease that others would wait for.
        let elsewhere = match compiler.fingerprint() {
            Ok(ours) if ours == prepared.fingerprint => None,
            missing => Some(self.route(request, &*compiler, &prepared, missing.err())?),
        };
        if elsewhere.is_none() {
            self.gate.check()?;
        }
        let manager = self.clone();
        let (flight, started) = self.flights.join(key, Stage::Acquiring, |progress| async move {
            let limit = tokio::time::Instant::now() + manager.settings.flight_limit;
            let ended = match elsewhere {
                None => timeout_at(limit, manager.fill(compiler, prepared, progress, limit)).await,
                Some(route) => timeout_at(limit, manager.forward(route, progress, limit)).await,
            };
            let ended = ended.unwrap_or_else(|_| Err(Error::deadline("compiling")));
            Stage::Ended(Box::new(ended))
        });
        let answer = timeout_at(request.deadline, watch_flight(key, flight, tell))
            .await
            .map_err(|_| Error::deadline("waiting for the artifact"))??;
        match answer.outcome {
            Outcome::Compiled if !started => Ok(Answer { outcome: Outcome::Coalesced, ..answer }),
            _ => Ok(answer),
        }
    }

    /// The compiler that is asked, and the prepared key.
    async fn select(&self, request: &Request) -> Result<(Arc<dyn Compiler>, Arc<Prepared>), Error> {
        let compiler = self.compilers.select(&request.backend, &request.input)?;
        timeout_at(request.deadline, compiler.settled())
            .await
            .map_err(|_| Error::deadline("looking at the toolchain"))?;
        let fingerprint = self.fingerprint(&*compiler)?;
        let input = request.input.clone();
        let preparing = compiler.clone();
        // Parsing an exported graph takes milliseconds: not on a runtime thread.
        let prepared = tokio::task::spawn_blocking(move || preparing.prepare(&input, &fingerprint))
            .await
            .map_err(|e| Failure::new(FailureKind::Crashed, e.to_string()))??;
        Ok((compiler, Arc::new(prepared)))
    }

    /// This node's fingerprint of a compiler; without a toolchain of its own,
    /// the newest that a node of the cluster has, so that hits go on.
    fn fingerprint(&self, compiler: &dyn Compiler) -> Result<Fingerprint, Error> {
        compiler.fingerprint().or_else(|missing| {
            let nodes = self.index.nodes();
            let known = nodes.into_iter().flat_map(|(_, node)| node.facts.compilers);
            known.filter(|f| f.compiler == compiler.name()).max().ok_or(missing.into())
        })
    }

    /// One flight: acquires until there is an artifact or a reason why not.
    async fn fill(
        self: Arc<Self>,
        compiler: Arc<dyn Compiler>,
        prepared: Arc<Prepared>,
        progress: Arc<Progress<Stage>>,
        deadline: tokio::time::Instant,
    ) -> Result<Answer, Error> {
        let key = prepared.components.key();
        // The epoch whose bytes this node cannot reach.
        let mut instead_of = None;
        for _ in 0..ATTEMPTS {
            let waited = AtomicBool::new(false);
            let waiting = || {
                waited.store(true, Ordering::Relaxed);
                progress.set(Stage::Waiting);
            };
            // A lease that came after the gate closed would be given back at once.
            let acquired = tokio::select! {
                acquired = self.index.acquire(&key, instead_of, deadline, waiting) => acquired?,
                () = self.gate.closed() => return Err(Error::Leaving),
            };
            match acquired {
                Acquired::Failed(failure) => return Err(failure.into()),
                Acquired::Ready(entry) => {
                    let outcome = match waited.into_inner() {
                        true => Outcome::Coalesced,
                        false => Outcome::Hit,
                    };
                    match self.resolve(&entry, &prepared.namespace, outcome).await? {
                        Found::Here(answer) => return Ok(*answer),
                        Found::Retired => {}
                        Found::Unreachable(why) => {
                            tracing::warn!(%key, epoch = entry.epoch, why, "compile it once more");
                            instead_of = Some(entry.epoch);
                        }
                        Found::Incomplete(piece) => {
                            tracing::warn!(%key, epoch = entry.epoch, %piece, "make it once more");
                            instead_of = Some(entry.epoch);
                        }
                    }
                }
                Acquired::Granted(lease) => {
                    progress.set(Stage::Compiling(lease.token()));
                    match self.compile_under(&lease, &*compiler, &prepared).await {
                        Err(Error::StaleToken) => tracing::warn!(%key, "the lease was lost: again"),
                        ended => return ended,
                    }
                }
            }
        }
        Err(Error::Unavailable("lease or bytes were lost again and again".into()))
    }

    /// Compiles and publishes as the holder of `lease`.
    async fn compile_under(
        &self,
        lease: &Lease,
        compiler: &dyn Compiler,
        prepared: &Prepared,
    ) -> Result<Answer, Error> {
        let inside = self.gate.enter()?;
        let compiled = tokio::select! {
            output = self.run(compiler, prepared) => output,
            () = self.gate.turned_away() => return Err(Error::Leaving),
            () = lease.lost() => return Err(Error::StaleToken),
        };
        let output = match compiled {
            Ok(output) => output,
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
        let (signed, manifest, pack) = self.sign(prepared, output).await?;
        let mut answer = Answer {
            signed,
            manifest: manifest.clone(),
            pack: pack.clone(),
            outcome: Outcome::Compiled,
            origin: None,
        };
        match self.commit(&inside, lease, &answer.signed, &manifest, &pack).await {
            Ok(Published::Committed(_)) => Ok(answer),
            Ok(Published::Existing(entry)) => {
                // The first commit won: its bytes are the key's, not ours.
                match self.resolve(&entry, &prepared.namespace, Outcome::Coalesced).await? {
                    Found::Here(theirs) => Ok(*theirs),
                    Found::Retired | Found::Unreachable(_) | Found::Incomplete(_) => Ok(answer),
                }
            }
            Err(why @ (Error::Unavailable(_) | Error::NotStored(_) | Error::Leaving)) => {
                // The caller asked for an artifact, and here it is; others do without.
                self.counters.unpublished();
                tracing::warn!(key = %manifest.key, %why, "compiled, but not published");
                answer.outcome = Outcome::Compiled;
                Ok(answer)
            }
            Err(e) => Err(e),
        }
    }

    async fn run(&self, compiler: &dyn Compiler, prepared: &Prepared) -> Result<Output, Error> {
        let started = Instant::now();
        let output =
            compiler.compile(prepared, &self.settings.limits, self.stop.child_token()).await;
        let seconds = output.as_ref().ok().map(|_| started.elapsed().as_secs_f64());
        self.counters.ran(compiler.name(), seconds);
        if output.is_err() && self.stop.is_cancelled() {
            // No verdict on the request: whoever asked may ask another node.
            return Err(Error::Unavailable("this node stops".into()));
        }
        Ok(output?)
    }
}

/// Follows a flight to its end.
async fn watch_flight(
    key: ArtifactKey,
    mut flight: watch::Receiver<Stage>,
    tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
) -> Result<Answer, Error> {
    loop {
        let stage = flight.borrow_and_update().clone();
        match stage {
            Stage::Ended(result) => return *result,
            stage => tell(key, &stage),
        }
        if flight.changed().await.is_err() && !matches!(*flight.borrow(), Stage::Ended(_)) {
            let why = "the flight ended without a result";
            return Err(Failure::new(FailureKind::Crashed, why).into());
        }
    }
}
