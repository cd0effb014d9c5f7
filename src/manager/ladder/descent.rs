//! The way of one request down the ladder.
//!
//! Invariant: the caller's deadline bounds all of it: where eager can answer, the rungs
//! above it leave it its time. What a rung began goes on for others when it is left.

use std::{sync::Arc, time::Duration};

use kiln_proto::{ArtifactKey, Failure, FailureKind};
use tokio::time::{Instant, timeout_at};

use super::{
    Event, FallbackPolicy, GRACE, Rung, Tried, pauses,
    reached::Reached,
    table::{Cause, below, may_mend, valid},
    variants::{self, Failed},
};
use crate::{
    compiler::{Compiler, MixedCompiler, Prepared, Source},
    error::Error,
    manager::{Answer, Manager, PieceReport, Request, Stage},
};

/// What eager has of the caller's time, at most.
const RESERVE: Duration = Duration::from_secs(10);
/// Longest that an error says of each rung below the first.
const BRIEF: usize = 300;

/// How a request ended on one rung.
pub(super) struct Attempt {
    pub(super) request: Request,
    /// How far it came, if it came to a key.
    pub(super) prepared: Option<Arc<Prepared>>,
    /// How far its pieces were at last; none: it has none, or nobody looked.
    pub(super) pieces: Arc<[PieceReport]>,
    pub(super) result: Result<Answer, Error>,
}

impl Manager {
    /// Answers a request by the highest rung that can.
    pub(in crate::manager) async fn descend(
        self: &Arc<Self>,
        request: &Request,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        let began = Instant::now();
        let attempt = self.attempt(request, self.limit(request, began), tell).await;
        let Err(error) = &attempt.result else { return attempt.result };
        let Some(first) = Cause::of(error) else { return attempt.result };
        self.watch(&attempt, error);
        let Ok(compiler) = self.compiler_of(request, attempt.prepared.as_deref()) else {
            return attempt.result;
        };
        let descent = Descent {
            manager: self,
            base: request.clone(),
            in_pieces: attempt.prepared.as_ref().is_some_and(|p| p.stitch().is_some()),
            compiler,
            limit: self.limit(request, began),
            wanted: attempt.prepared.as_deref().map(|prepared| prepared.components.key()),
            first,
            error: error.clone(),
            tried: Vec::new(),
        };
        descent.run(request, (began.elapsed(), attempt), tell).await
    }

    /// When what is above eager ends: where eager can answer, it has some time of its own.
    fn limit(&self, request: &Request, began: Instant) -> Instant {
        let compiler = self.compilers().select(&request.backend, &request.input);
        let has_eager = compiler.is_ok_and(|compiler| {
            let (in_pieces, has_mixed) = (false, false);
            let failed = Failed { request, compiler: &*compiler, in_pieces, has_mixed };
            variants::request(Rung::Eager, &failed, self.compilers()).is_some()
        });
        let left = request.deadline.saturating_duration_since(began);
        match has_eager {
            true => request.deadline - (left / 5).min(RESERVE),
            false => request.deadline,
        }
    }

    /// The compiler that a request came to.
    fn compiler_of(
        &self,
        request: &Request,
        prepared: Option<&Prepared>,
    ) -> Result<Arc<dyn Compiler>, Failure> {
        let named = prepared.and_then(|p| self.compilers().named(&p.fingerprint.compiler));
        named.map_or_else(|| self.compilers().select(&request.backend, &request.input), Ok)
    }

    /// Asks for what a rung asks for, as if nobody had asked for anything else.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        request: &Request,
        limit: Instant,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Attempt {
        let request = Request { deadline: limit, ..request.clone() };
        let (mut prepared, mut pieces) = (None, Arc::default());
        let mut hear = |key: ArtifactKey, stage: &Stage| {
            match stage {
                Stage::Planned(planned) if prepared.is_none() => prepared = Some(planned.clone()),
                Stage::Pieces(all) => pieces = all.clone(),
                _ => {}
            }
            tell(key, stage);
        };
        let asked = timeout_at(limit, self.compile_as_asked(&request, &mut hear)).await;
        let result = asked.unwrap_or_else(|_| Err(Error::deadline("compiling")));
        Attempt { request, prepared, pieces, result }
    }

    /// Tells of what an operator may want to know.
    fn watch(&self, attempt: &Attempt, error: &Error) {
        if let Error::Failed(Failure { kind: FailureKind::Timeout, message }) = error {
            let key = attempt.prepared.as_ref().map(|prepared| prepared.components.key());
            let key_shown = key.map(tracing::field::display);
            tracing::warn!(key = key_shown, why = message, "a compile timed out");
            let what = attempt.prepared.as_ref().map_or_else(String::new, |prepared| {
                format!("{} ({}): ", prepared.label, prepared.components.key().short())
            });
            self.observed.timed_out(format!("{what}{message}"));
            self.events.tell(Event::TimedOut { key, message: message.clone() });
        }
    }
}

/// Where a request is on its way.
struct Descent<'m> {
    manager: &'m Arc<Manager>,
    /// What rungs are made of: the request, or that with default options.
    base: Request,
    in_pieces: bool,
    compiler: Arc<dyn Compiler>,
    limit: Instant,
    wanted: Option<ArtifactKey>,
    first: Cause,
    error: Error,
    tried: Vec<Tried>,
}

impl Descent<'_> {
    async fn run(
        mut self,
        request: &Request,
        (took, mut last): (Duration, Attempt),
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Result<Answer, Error> {
        self.note(Rung::Wanted, self.wanted, &self.error.clone(), took);
        let (mut now, mut tried) = (self.first, Rung::Wanted);
        loop {
            // What may go well a moment later is tried again as a whole first.
            let is_again = |next: &Option<(Rung, _)>| matches!(next, Some((Rung::Again, _)));
            if !is_again(&self.next(now, tried))
                && let Some(patched) = self.patched(&last, request.deadline, tell).await
            {
                return Ok(patched.marked(self.manager, self.wanted, self.tried, request));
            }
            let Some((rung, asked)) = self.next(now, tried) else { break };
            tried = rung;
            let pauses: Vec<Option<Duration>> = match rung {
                Rung::Again => pauses::waiting(now.times_again()).map(Some).collect(),
                _ => vec![None],
            };
            for pause in pauses {
                if let Some(pause) = pause
                    && timeout_at(self.limit, tokio::time::sleep(pause)).await.is_err()
                {
                    break;
                }
                if self.manager.stop.is_cancelled() {
                    return Err(self.fallen());
                }
                let began = Instant::now();
                let limit = match rung {
                    Rung::Eager => request.deadline.max(began) + GRACE,
                    _ => self.limit,
                };
                let attempt = self.manager.attempt(&asked, limit, tell).await;
                let error = match attempt.result {
                    Ok(answer) => {
                        let (valid, may_mend) = (valid(self.first), may_mend(self.first));
                        let pieces = Vec::new();
                        let reached = Reached { rung, answer, valid, may_mend, pieces };
                        return Ok(reached.marked(self.manager, self.wanted, self.tried, request));
                    }
                    Err(ref error) => error.clone(),
                };
                let Some(cause) = Cause::of(&error) else { return Err(self.fallen()) };
                self.manager.watch(&attempt, &error);
                let key = attempt.prepared.as_ref().map(|prepared| prepared.components.key());
                self.note(rung, key, &error, began.elapsed());
                (now, last) = (cause, attempt);
                if !cause.is_transient() {
                    break;
                }
            }
            if rung == Rung::Defaults {
                self.base = asked;
            }
        }
        Err(self.fallen())
    }

    /// The next rung that there is and that there is time for.
    fn next(&self, now: Cause, tried: Rung) -> Option<(Rung, Request)> {
        let mixed = self.manager.compilers().named(MixedCompiler::NAME);
        let failed = Failed {
            request: &self.base,
            compiler: &*self.compiler,
            in_pieces: self.in_pieces,
            has_mixed: mixed.is_some_and(|mixed| self.manager.fingerprint(&*mixed).is_ok()),
        };
        // In an emergency no compiler's process is asked.
        let is_short = Instant::now() >= self.limit || self.manager.emergency.refuses();
        below(self.first, now, tried).filter(|rung| *rung == Rung::Eager || !is_short).find_map(
            |rung| {
                let asked = variants::request(rung, &failed, self.manager.compilers())?;
                Some((rung, asked))
            },
        )
    }

    /// The whole with other pieces where those that were wanted failed.
    async fn patched(
        &mut self,
        last: &Attempt,
        deadline: Instant,
        tell: &mut (impl FnMut(ArtifactKey, &Stage) + Send),
    ) -> Option<Reached> {
        let is_late = Instant::now() >= deadline || self.manager.emergency.refuses();
        if is_late || !variants::allows(&self.base, Rung::Patched) {
            return None;
        }
        let bounds = (self.limit, deadline);
        let (patched, tried) = self.manager.patch(last, bounds, tell).await;
        self.tried.extend(tried);
        patched
    }

    fn note(&mut self, rung: Rung, key: Option<ArtifactKey>, error: &Error, took: Duration) {
        let failure = error.clone().into_failure();
        tracing::info!(
            wanted = self.wanted.map(tracing::field::display),
            rung = rung.name(),
            kind = failure.kind.name(),
            ?took,
            "no artifact: {}",
            failure.message
        );
        self.tried.push(Tried { piece: None, rung, key, failure, took });
    }

    /// Why there is nothing: the request's own error, and what was tried after it.
    fn fallen(self) -> Error {
        let rest = self.tried[1..].iter().map(|Tried { rung, failure, .. }| {
            let said = failure.to_string();
            let end = (0..=BRIEF.min(said.len())).rev().find(|at| said.is_char_boundary(*at));
            format!("; {}: {}", rung.name(), &said[..end.unwrap_or(0)])
        });
        let rest: String = rest.collect();
        let is_cuda = matches!(self.base.input.source, Source::Cuda(_));
        let wants = self.base.fallback != FallbackPolicy::None && !self.base.forwarded;
        let no_eager = match self.first {
            Cause::Kind(
                FailureKind::CompileError | FailureKind::InvalidInput | FailureKind::Incompatible,
            ) => "",
            Cause::Kind(_) if is_cuda && wants => {
                "; nothing else can answer: CUDA C++ has no eager form"
            }
            _ => "",
        };
        let more =
            |Failure { kind, message }| Failure::new(kind, format!("{message}{rest}{no_eager}"));
        match self.error {
            Error::Failed(failure) => Error::Failed(more(failure)),
            Error::Unsound(failure) => Error::Unsound(more(failure)),
            other => other,
        }
    }
}
