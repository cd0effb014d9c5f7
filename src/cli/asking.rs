//! A request for a compile, followed to its end.
//!
//! Invariant: what a node answered is kept, whatever it fails of afterwards. An artifact that is
//! not believed, or not what was asked for as far as its manifest tells, is no answer, also where
//! nobody fetches its bytes; those before it are. What it was compiled of is the node's word.

use std::collections::BTreeSet;

use bytes::Bytes;
use kiln::compiler::Compilers;
use kiln_proto::{FailureKind, Manifest, convert, pb};
use pb::compile_event::Event;

use super::{
    CliError,
    belief::Belief,
    client::{Client, Endpoints},
    error::FailureView,
    pieces::{self, FailedView},
    progress::Progress,
};

/// What came of a request: the targets answered, and why not all of them were.
pub(crate) struct Answered {
    pub(crate) done: Vec<Answer>,
    pub(crate) failed: Option<(FailedView, CliError)>,
}

/// A target that was answered, and how each of its compile sizes ended.
pub(crate) struct Answer {
    pub(crate) done: pb::Done,
    pub(crate) sizes: Vec<SizeEnd>,
}

/// The end of a compile size.
pub(crate) struct SizeEnd {
    pub(crate) size: u64,
    pub(crate) end: Result<(pb::Done, Manifest), SizeFailed>,
}

/// Why a compile size has no artifact.
pub(crate) struct SizeFailed {
    pub(crate) key: Option<String>,
    pub(crate) error: FailureView,
}

/// What the answers to a request have to be.
struct Asked {
    /// One for each answer, in this order.
    targets: Vec<pb::Target>,
    /// Empty: the node's own.
    namespace: String,
    backend: String,
    is_program: bool,
    /// Whether something else may answer.
    may_fall_back: bool,
}

impl Asked {
    fn of(request: &pb::CompileRequest) -> Self {
        Self {
            targets: request.targets.clone(),
            namespace: request.namespace.clone(),
            backend: request.backend.clone(),
            is_program: matches!(request.source, Some(pb::compile_request::Source::Program(_))),
            may_fall_back: request.fallback() != pb::FallbackPolicy::None,
        }
    }

    /// The manifest of an answer for the target at position `at`, if it is believed and may be
    /// that.
    fn judge(&self, answer: &pb::Done, at: usize, belief: &Belief) -> Result<Manifest, CliError> {
        let manifest = belief.read_told(answer.manifest.clone(), &self.namespace)?;
        // What stands in for something else may be of another compiler, and run anywhere.
        if answer.fallback.is_some() && self.may_fall_back {
            return Ok(manifest);
        }
        let Manifest { target, fingerprint, .. } = &manifest;
        let wanted = self.targets.get(at).and_then(|wanted| convert::target(wanted).ok());
        let is_it = Compilers::may_answer(&fingerprint.compiler, &self.backend, self.is_program);
        match wanted.is_some_and(|wanted| wanted == *target) && is_it {
            true => Ok(manifest),
            false => Err(CliError::failed(
                FailureKind::Corrupt,
                format!(
                    "the node answered with an artifact of {} for {target}, which was not asked \
                     for: nothing of it is taken",
                    fingerprint.compiler
                ),
            )),
        }
    }
}

/// Asks one node, one of `endpoints`. `Unreachable` moves on to the next: all of this may be repeated.
pub(crate) async fn ask(
    client: &mut Client,
    request: pb::CompileRequest,
    progress: &mut Progress,
    endpoints: &Endpoints,
) -> Result<Answered, CliError> {
    let asked = Asked::of(&request);
    let targets = asked.targets.len();
    let sizes = request.compile_sizes.as_ref().map_or(0, |all| all.sizes.len());
    let answer = client.compile(request).await.map_err(|e| CliError::from_status(&e))?;
    let mut events = answer.into_inner();
    let mut done: Vec<Answer> = Vec::new();
    let mut told = FailedView::default();
    // Keys of sizes: what is told of these is not the target's.
    let mut beside: BTreeSet<Bytes> = BTreeSet::new();
    loop {
        let event = match events.message().await {
            Ok(event) => event,
            Err(status) => match CliError::from_status(&status) {
                lost @ CliError::Unreachable(_) => return Err(lost),
                error => return Ok(Answered { done, failed: Some((told, error)) }),
            },
        };
        let early = || CliError::Unreachable("the node ended its answer early".into());
        match event.map(|event| event.event) {
            None if done.len() == targets && done.iter().all(|of| of.sizes.len() == sizes) => {
                return Ok(Answered { done, failed: None });
            }
            None => return Err(early()),
            Some(Some(Event::Done(answer))) => {
                // As it is now: a compile may take longer than a change of a key.
                let belief = endpoints.belief().await;
                let judged = |at| asked.judge(&answer, at, &belief?);
                match answer.size {
                    None => match judged(done.len()) {
                        Ok(_) => {
                            told = FailedView::default();
                            done.push(Answer { done: answer, sizes: Vec::new() });
                        }
                        // Not `Unreachable`: another node would compile all of it again.
                        Err(error) => return Ok(Answered { done, failed: Some((told, error)) }),
                    },
                    Some(size) => {
                        let end = match judged(done.len().saturating_sub(1)) {
                            Ok(manifest) => Ok((answer, manifest)),
                            Err(error) => Err(SizeFailed { key: None, error: error.fields() }),
                        };
                        let of = done.last_mut().ok_or_else(early)?;
                        of.sizes.push(SizeEnd { size, end });
                    }
                }
            }
            Some(Some(Event::SizeFailed(failed))) => {
                let of = done.last_mut().ok_or_else(early)?;
                let pb::SizeFailed { size, key, failure } = failed;
                let error = pieces::failure(failure.unwrap_or_default());
                of.sizes
                    .push(SizeEnd { size, end: Err(SizeFailed { key: pieces::key(&key), error }) });
            }
            Some(Some(event)) => {
                if let Event::Started(pb::Started { key, size: Some(_), .. }) = &event {
                    beside.insert(key.clone());
                }
                if !key_of(&event).is_some_and(|key| beside.contains(key)) {
                    told.hear(&event);
                }
                progress.show(&event);
            }
            Some(None) => {}
        }
    }
}

/// What news are about.
fn key_of(event: &Event) -> Option<&Bytes> {
    match event {
        Event::Started(pb::Started { key, .. })
        | Event::Waiting(pb::Waiting { key })
        | Event::Compiling(pb::Compiling { key, .. })
        | Event::Planned(pb::Planned { key, .. })
        | Event::Piece(pb::PieceNews { key, .. }) => Some(key),
        Event::Done(_) | Event::SizeFailed(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ed25519_dalek::SigningKey;
    use kiln_proto::{NodeIdentity, Target};

    use super::*;
    use crate::cli::fetch::tests::artifact;

    /// An answer of `cuda` for sm_90 in the namespace `default`.
    fn answer() -> pb::Done {
        let (manifest, _) = artifact(&[("module.cubin", b"1")]);
        let signed = NodeIdentity::new(3, SigningKey::from_bytes(&[7; 32])).sign(manifest).unwrap();
        pb::Done { manifest: Some((&signed).into()), ..pb::Done::default() }
    }

    fn asked() -> pb::CompileRequest {
        pb::CompileRequest {
            targets: vec![Target::cubin(80).into(), Target::cubin(90).into()],
            backend: "auto".into(),
            source: Some(pb::compile_request::Source::Cuda(pb::CudaSource::default())),
            ..pb::CompileRequest::default()
        }
    }

    /// How an answer at position `at` is judged; `None`: it is taken.
    fn refused(request: &pb::CompileRequest, at: usize, answer: &pb::Done) -> Option<u8> {
        let judged = Asked::of(request).judge(answer, at, &Belief::default());
        judged.err().map(|error| error.exit_code())
    }

    #[test]
    fn an_answer_is_of_the_namespace_the_target_and_the_compiler_that_were_asked_for() {
        let (not_found, corrupt) = (Some(20), Some(12));
        let of = |backend: &str| pb::CompileRequest { backend: backend.into(), ..asked() };
        let within = |name: &str| pb::CompileRequest { namespace: name.into(), ..asked() };
        let program = pb::compile_request::Source::Program(pb::ExportedProgram::default());
        let program = pb::CompileRequest { source: Some(program), ..asked() };
        assert_eq!(refused(&asked(), 1, &answer()), None);
        assert_eq!(refused(&of("cuda"), 1, &answer()), None);
        assert_eq!(refused(&within("default"), 1, &answer()), None);
        assert_eq!(refused(&within("team"), 1, &answer()), not_found);
        assert_eq!(refused(&asked(), 0, &answer()), corrupt, "that of the other target");
        assert_eq!(refused(&asked(), 2, &answer()), corrupt, "one too many");
        assert_eq!(refused(&of("native"), 1, &answer()), corrupt);
        assert_eq!(refused(&program, 1, &answer()), corrupt);
        assert_eq!(refused(&asked(), 1, &pb::Done::default()), corrupt, "no manifest");

        // What stands in for it, and says so, may be another's: where anything may.
        let fallback = Some(pb::Fallback::default());
        let instead = pb::Done { fallback, ..answer() };
        assert_eq!(refused(&of("native"), 0, &instead), None);
        assert_eq!(refused(&within("team"), 1, &instead), not_found);
        let mut nothing_else = of("native");
        nothing_else.set_fallback(pb::FallbackPolicy::None);
        assert_eq!(refused(&nothing_else, 1, &instead), corrupt);
    }
}
