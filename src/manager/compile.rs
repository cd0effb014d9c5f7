//! A request for an artifact: from the cache, or compiled once for the cluster.
//!
//! Invariant: compiles of one key are at most one a lease; a lease is taken for a key
//! without an artifact, or for one whose bytes this node cannot reach, and only where what this
//! node signs is believed. A caller's
//! deadline ends its wait, never the flight that others watch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kiln_cluster::Acquired;
use kiln_proto::{ArtifactKey, Failure, FailureKind, Fingerprint};
use prost::Message;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::Instrument;

use super::{
    Answer, Cause, FallbackPolicy, Found, Manager, Outcome, Progress, Request, Stage, Whole,
};
use crate::{
    check::Verify,
    compiler::{Compiler, EagerCompiler, Piecewise, Prepared},
    error::Error,
    step,
};

/// How often a flight starts over when its entry's bytes or its lease are lost.
const ATTEMPTS: usize = 4;

impl Manager {
    /// The key and all that decides it, without compiling.
    pub async fn prepare(&self, request: &Request) -> Result<Arc<Prepared>, Error> {
        Ok(self.select(request).await?.1)
    }

    /// Refuses a request for a size that its program does not take.
    pub async fn check_size(&self, request: &Request) -> Result<(), Error> {
        let compiler = self.compilers.select(&request.backend, &request.input)?;
        let source = request.input.source.clone();
        // As planning: not on a runtime thread.
        let checking = tokio::task::spawn_blocking(move || compiler.check_size(&source));
        let checked = checking.await;
        Ok(checked.map_err(|e| Failure::new(FailureKind::Crashed, e.to_string()))??)
    }

    /// Answers a request from the cache or by compiling, or by what comes after that: see
    /// [`super::ladder`]. `tell` hears the key first and then each stage, of each rung.
    pub async fn compile(
        self: &Arc<Self>,
        request: Request,
        mut tell: impl FnMut(ArtifactKey, &Stage) + Send,
    ) -> Result<Answer, Error> {
        let began = Instant::now();
        let result = self.descend(&request, &mut tell).await;
        self.ended(&result, began);
        self.counters.took(&result, began.elapsed());
        result
    }

    /// The same, of this request and no other.
    pub(super) async fn compile_as_asked(
        self: &Arc<Self>,
        request: &Request,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let (compiler, prepared) = self.select(request).await?;
        let key = prepared.components.key();
        tell(key, &Stage::Acquiring);
        tell(key, &Stage::Planned(prepared.clone()));
        if request.disable_cache || self.emergency.is_cache_off() {
            let bounds = (request.verify, request.deadline);
            return self.compile_alone(&*compiler, &prepared, bounds, tell).await;
        }
        // A node that cannot compile this takes no lease that others would wait for.
        let elsewhere = match compiler.fingerprint() {
            Ok(ours) if ours == prepared.fingerprint => None,
            missing => Some(missing.err()),
        };
        let answer = self.obtain(request, compiler, prepared.clone(), elsewhere, tell).await?;
        let checking = self.check_answer(request.verify, &prepared, answer, tell);
        timeout_at(request.deadline, checking)
            .await
            .map_err(|_| Error::deadline("checking the artifact"))?
    }

    /// Compiles, and neither looks anything up nor publishes it.
    async fn compile_alone(
        &self,
        compiler: &dyn Compiler,
        prepared: &Prepared,
        (verify, deadline): (Verify, Instant),
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let key = prepared.components.key();
        let making = async {
            match prepared.stitch() {
                None => self.make_piece(compiler, prepared, verify).await,
                Some(stitch) => {
                    let tell = parking_lot::Mutex::new(tell);
                    let news = |pieces| (tell.lock())(key, &Stage::Pieces(pieces));
                    self.stitch_alone(compiler, stitch, verify, news).await
                }
            }
        };
        let made =
            timeout_at(deadline, making).await.map_err(|_| Error::deadline("compiling"))??;
        let pieces = made.states.clone();
        let (signed, manifest, pack) = self.sign(prepared, made).await?;
        let outcome = Outcome::Compiled;
        let check = manifest.check.clone();
        let (fallback, tried) = Default::default();
        let origin = None;
        Ok(Answer { signed, manifest, pack, outcome, origin, pieces, check, fallback, tried })
    }

    /// The same in a flight, on a node that may not publish it.
    async fn for_itself(
        &self,
        compiler: &dyn Compiler,
        prepared: &Prepared,
        bounds: (Verify, Instant),
        progress: Arc<Progress<Stage>>,
    ) -> Result<Answer, Error> {
        self.counters.unpublished();
        let mut tell = move |_, stage: &Stage| progress.set(stage.clone());
        self.compile_alone(compiler, prepared, bounds, &mut tell).await
    }

    /// The artifact of what was prepared, from wherever it is. `elsewhere`: this node has
    /// not the compiler, for this reason if it is known.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        request: &Request,
        compiler: Arc<dyn Compiler>,
        prepared: Arc<Prepared>,
        elsewhere: Option<Option<Failure>>,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let key = prepared.components.key();
        let missed = match self.index.lookup(&key).await? {
            None => Cause::NotStored,
            Some(entry) => match self.resolve_all(&entry, &prepared, Outcome::Hit).await? {
                Found::Here(answer) => {
                    self.sample(&answer, Some(request));
                    return Ok(*answer);
                }
                found => Cause::of(&found),
            },
        };
        if let Some(failure) = self.index.failure(&key).await? {
            return Err(failure.into());
        }
        if request.fallback != FallbackPolicy::None
            && let Some(failure) = self.remembered.failure(&key)
        {
            return Err(failure.into());
        }
        // What this node signs would be believed by nobody: it takes no lease, and replaces nothing.
        let unbelieved = self.unbelieved_here(&prepared.namespace).await;
        let elsewhere = match (elsewhere, &unbelieved) {
            (None, None) => None,
            // Who sent it on wants an artifact that counts.
            (None, Some(why)) if request.forwarded => return Err(Error::NotStored(why.clone())),
            (None, Some(why)) => {
                let why = Failure::new(FailureKind::ToolchainMissing, why.clone());
                // Where there is no other node that is believed, this one compiles for itself.
                self.route(request, &*compiler, &prepared, Some(why)).ok()
            }
            (Some(missing), _) => Some(self.route(request, &*compiler, &prepared, missing)?),
        };
        // For the nodes that compile pieces of it: these are in no doubt about pieces.
        let encoded = match prepared.stitch() {
            None => Bytes::new(),
            Some(_) => {
                let request = Request { piecewise: Piecewise::Always, ..request.clone() };
                request.to_wire(compiler.name()).encode_to_vec().into()
            }
        };
        if elsewhere.is_none() {
            self.gate.check()?;
            // No lease that others would wait for, where nothing could come of it.
            if self.emergency.refuses() && compiler.name() != EagerCompiler::NAME {
                self.emergency.may_compile()?;
            }
        }
        let (manager, verify, kept) = (self.clone(), request.verify, request.clone());
        let (flight, started) = self.flights.join(key, Stage::Acquiring, |progress| {
            let listed = self.recent.begin(&prepared, missed);
            async move {
                let _listed = listed;
                let limit = Instant::now() + manager.longest(&prepared);
                let told = progress.clone();
                let ended = match elsewhere {
                    None if unbelieved.is_some() => Ok(manager
                        .for_itself(&*compiler, &prepared, (verify, limit), progress)
                        .await),
                    None => {
                        let asked = (encoded, verify);
                        let filling = manager.clone();
                        let filling =
                            filling.fill(compiler, prepared.clone(), asked, progress, limit);
                        let filled = timeout_at(limit, filling).await;
                        if let Ok(Ok(Answer { outcome: Outcome::Compiled, .. })) = &filled {
                            manager.keep_request(&kept, &prepared);
                        }
                        filled
                    }
                    Some(route) => {
                        let forwarding = manager.clone();
                        let forwarding =
                            forwarding.forward(route, &prepared, progress.clone(), limit);
                        match timeout_at(limit, forwarding).await {
                            Ok(Err(Error::Unavailable(_) | Error::Unreachable(_)))
                                if unbelieved.is_some() =>
                            {
                                let bounds = (verify, limit);
                                Ok(manager
                                    .for_itself(&*compiler, &prepared, bounds, progress)
                                    .await)
                            }
                            forwarded => forwarded,
                        }
                    }
                };
                let ended = ended.unwrap_or_else(|_| Err(Error::deadline("compiling")));
                // The last news may have been seen by nobody: it goes with the end.
                let pieces = match told.get() {
                    Stage::Pieces(pieces) => pieces,
                    _ => Arc::default(),
                };
                Stage::Ended(Box::new(ended), pieces)
            }
        });
        let answer = timeout_at(request.deadline, watch_flight(key, flight, tell))
            .await
            .map_err(|_| Error::deadline("waiting for the artifact"))??;
        match answer.outcome {
            Outcome::Compiled if !started => Ok(Answer { outcome: Outcome::Coalesced, ..answer }),
            _ => Ok(answer),
        }
    }

    /// What a flight may take: that of a whole as long as its pieces one after the other.
    fn longest(&self, prepared: &Prepared) -> Duration {
        let pieces = prepared.stitch().map_or(1, |stitch| stitch.pieces.len());
        let more = u32::try_from(pieces.saturating_sub(1)).unwrap_or(u32::MAX);
        self.settings.flight_limit + self.settings.limits.time.saturating_mul(more)
    }

    /// The compiler that is asked, and the prepared key.
    pub(super) async fn select(
        &self,
        request: &Request,
    ) -> Result<(Arc<dyn Compiler>, Arc<Prepared>), Error> {
        let compiler = self.compilers.select(&request.backend, &request.input)?;
        let (compiler, planned) = match self.plan(request, &compiler).await {
            Err(Error::Failed(why)) if request.piecewise != Piecewise::Never => {
                let other = self.compilers.instead(&request.backend, &*compiler, &why);
                let Some(other) = other else { return Err(why.into()) };
                let planned = self.plan(request, &other).await.map_err(|e| {
                    Failure::new(why.kind, format!("{}; nor by {}: {e}", why.message, other.name()))
                })?;
                (other, planned)
            }
            planned => (compiler, planned?),
        };
        let planned = match self.learned.correction(&planned) {
            Some(correction) => planned.corrected(&correction),
            None => planned,
        };
        let Some(piece) = request.piece else { return Ok((compiler, Arc::new(planned))) };
        let pieces = planned.stitch().map_or(&[][..], |stitch| &stitch.pieces);
        match pieces.get(piece as usize) {
            Some(piece) => Ok((compiler, piece.prepared.clone())),
            None => Err(Error::Invalid(format!("no piece {piece}: it has {}", pieces.len()))),
        }
    }

    /// What a compiler makes of a request.
    async fn plan(
        &self,
        request: &Request,
        compiler: &Arc<dyn Compiler>,
    ) -> Result<Prepared, Error> {
        timeout_at(request.deadline, compiler.settled())
            .await
            .map_err(|_| Error::deadline("looking at the toolchain"))?;
        let fingerprint = self.fingerprint(&**compiler)?;
        let (input, piecewise) = (request.input.clone(), request.piecewise);
        let planning = compiler.clone();
        // Parsing an exported graph takes milliseconds: not on a runtime thread.
        let planning =
            tokio::task::spawn_blocking(move || planning.plan(&input, &fingerprint, piecewise));
        let planned = planning.await.map_err(|e| Failure::new(FailureKind::Crashed, e.to_string()));
        Ok(planned??)
    }

    /// This node's fingerprint of a compiler; without a toolchain of its own,
    /// the newest that a node of the cluster has, so that hits go on.
    pub(super) fn fingerprint(&self, compiler: &dyn Compiler) -> Result<Fingerprint, Error> {
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
        (request, verify): (Bytes, Verify),
        progress: Arc<Progress<Stage>>,
        deadline: Instant,
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
            let acquiring = self.index.acquire(&key, instead_of, deadline, waiting);
            let acquiring = acquiring.instrument(step!("acquire"));
            let acquired = tokio::select! {
                acquired = acquiring => acquired?,
                () = self.gate.closed() => return Err(Error::Leaving),
            };
            match acquired {
                Acquired::Failed(failure) => return Err(failure.into()),
                Acquired::Ready(entry) => {
                    let outcome = match waited.into_inner() {
                        true => Outcome::Coalesced,
                        false => Outcome::Hit,
                    };
                    self.know_signer(&entry).await;
                    match self.resolve_all(&entry, &prepared, outcome).await? {
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
                    self.note_miss(&prepared);
                    let making = async {
                        let (compiler, prepared) = (&compiler, &*prepared);
                        let Some(stitch) = prepared.stitch() else {
                            return self.make_piece(&**compiler, prepared, verify).await;
                        };
                        let request = request.clone();
                        let whole = Whole { compiler, prepared, stitch, request, deadline, verify };
                        let progress = progress.clone();
                        let tell = Box::new(move |all| progress.set(Stage::Pieces(all)));
                        self.stitch(&whole, &lease, tell).await
                    };
                    match self.compile_under(&lease, &prepared, making).await {
                        Err(why @ (Error::StaleToken | Error::PieceGone(_))) => {
                            tracing::warn!(%key, %why, "once more");
                        }
                        Err(e) => return Err(e),
                        // The caller asked for an artifact, and here it is; others do without.
                        Ok((answer, _)) => return Ok(answer),
                    }
                }
            }
        }
        Err(Error::Unavailable("lease or bytes were lost again and again".into()))
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
            Stage::Ended(result, pieces) => {
                if !pieces.is_empty() {
                    tell(key, &Stage::Pieces(pieces));
                }
                return *result;
            }
            stage => tell(key, &stage),
        }
        if flight.changed().await.is_err() && !matches!(*flight.borrow(), Stage::Ended(..)) {
            let why = "the flight ended without a result";
            return Err(Failure::new(FailureKind::Crashed, why).into());
        }
    }
}
