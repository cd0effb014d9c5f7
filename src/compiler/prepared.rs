//! A request that a compiler has prepared: its key, and the job that is left.
//!
//! Invariant: every compiler's key has the same components, and a compiler that
//! generates code has all of it in the key: see [`generated`].

use std::sync::Arc;

use bytes::Bytes;
use kiln_native::split::{Choice, Estimates, stitch::STITCHING};
use kiln_proto::{
    ArtifactKey, Component, Components, Failure, FailureKind, Fingerprint, Hasher, KeyField,
    Target, graph::Graph,
};

use super::{CompileInput, python, request::common_components, worker};

/// A request with everything that its key and its compile need.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What decides the key.
    pub components: Components,
    /// The toolchain that the key is for: only an equal one may compile it.
    pub fingerprint: Fingerprint,
    /// What the output runs on.
    pub target: Target,
    /// A name to show; in no key.
    pub label: String,
    /// Tenant.
    pub namespace: String,
    /// In one compile or in pieces, and why.
    pub planned: Arc<Planned>,
    /// What it computes, where that is a graph.
    program: Option<Arc<Graph>>,
    /// What its one compile takes, by the rules of thumb; `None`: nobody looked, or it is
    /// more than one.
    pub estimated_seconds: Option<f64>,
    job: Job,
}

/// Relative path and bytes of each.
pub(super) type Files = Vec<(String, Bytes)>;

/// What the child does.
#[derive(Debug, Clone)]
pub(super) enum Job {
    /// One NVRTC program, and the files that need no compiler: they are added as they are.
    Nvrtc { program: worker::Program, extra: Files },
    /// One exported program in Python.
    Python(python::Job),
    /// Nothing: preparing took that many seconds and gave the files.
    Done { files: Files, seconds: f64 },
    /// Nothing either, once the pieces are there: who has them puts them together.
    Stitch(Arc<Stitch>),
}

impl Prepared {
    /// `own` are graph, inputs and options; what all compilers share is added.
    /// `own_name` is shown where the caller gave no name.
    pub(super) fn new(
        input: &CompileInput,
        fingerprint: &Fingerprint,
        own: [Component; 3],
        generated: Option<KeyField>,
        own_name: &str,
        job: Job,
    ) -> Self {
        let shared = common_components(input, fingerprint, generated);
        let label = cut(&input.source.title(own_name)).to_owned();
        Self {
            components: Components::new(own.into_iter().chain(shared).collect()),
            fingerprint: fingerprint.clone(),
            target: input.target,
            label,
            namespace: input.namespace.clone(),
            planned: Arc::default(),
            program: None,
            estimated_seconds: None,
            job,
        }
    }

    /// With how it is compiled, and why so.
    pub(super) fn planned(self, planned: Planned) -> Self {
        let estimated_seconds = match planned.choice {
            Choice::Full => planned.whole.map(|whole| whole.compile_seconds),
            Choice::Piecewise => None,
        };
        Self { planned: Arc::new(planned), estimated_seconds, ..self }
    }

    /// With seconds as compiles really take them: in what is told, and in the order in which
    /// pieces are taken. The key, the pieces and what is learned against stay as they are.
    pub fn corrected(self, correction: &Correction) -> Self {
        let Correction { factor, compiles } = *correction;
        let times =
            |of: Estimates| Estimates { compile_seconds: of.compile_seconds * factor, ..of };
        let mut planned = Planned::clone(&self.planned);
        planned.whole = planned.whole.map(times);
        let known = planned.whole.is_some();
        if known {
            planned.reasons.push(format!(
                "expected seconds are the rules' of thumb times {factor:.3}: learned from \
                 {compiles} compiles"
            ));
        }
        let job = match self.job {
            Job::Stitch(stitch) => {
                let piece = |piece: &StitchPiece| StitchPiece {
                    prepared: piece.prepared.clone(),
                    times: piece.times,
                    estimates: times(piece.estimates),
                };
                let pieces = stitch.pieces.iter().map(piece).collect();
                Job::Stitch(Arc::new(Stitch { pieces, ..Stitch::clone(&stitch) }))
            }
            job => job,
        };
        Self { planned: Arc::new(planned), job, ..self }
    }

    /// With what it computes.
    pub(super) fn computing(self, program: Arc<Graph>) -> Self {
        Self { program: Some(program), ..self }
    }

    /// As what stands for another: by its name, computing the same.
    pub fn standing_for(self, other: &Self) -> Self {
        Self { label: other.label.clone(), program: other.program.clone(), ..self }
    }

    /// What it computes; `None`: it is no graph, or the compiler does not say.
    pub fn program(&self) -> Option<&Arc<Graph>> {
        self.program.as_ref()
    }

    /// The pieces, of what is compiled in pieces.
    pub fn stitch(&self) -> Option<&Arc<Stitch>> {
        match &self.job {
            Job::Stitch(stitch) => Some(stitch),
            _ => None,
        }
    }

    /// The NVRTC program and the further files, of a compiler that has such.
    pub(super) fn nvrtc(&self) -> Result<(&worker::Program, &Files), Failure> {
        match &self.job {
            Job::Nvrtc { program, extra } => Ok((program, extra)),
            _ => Err(self.misplaced()),
        }
    }

    /// The Python job, of a compiler that has such.
    pub(super) fn python(&self) -> Result<&python::Job, Failure> {
        match &self.job {
            Job::Python(job) => Ok(job),
            _ => Err(self.misplaced()),
        }
    }

    /// The files and the seconds that they took, of a compiler that is done.
    pub(super) fn done(&self) -> Result<(&Files, f64), Failure> {
        match &self.job {
            Job::Done { files, seconds } => Ok((files, *seconds)),
            _ => Err(self.misplaced()),
        }
    }

    fn misplaced(&self) -> Failure {
        let why = format!("a job of {} went to another compiler", self.fingerprint.compiler);
        Failure::new(FailureKind::Incompatible, why)
    }
}

/// Whether a request is compiled in one compile or in pieces, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What was chosen.
    pub choice: Choice,
    /// For people: what speaks for it first.
    pub reasons: Vec<String>,
    /// What one compile of all of it takes; `None` where nobody looked.
    pub whole: Option<Estimates>,
    /// Parts that run one after the other.
    pub items: usize,
}

/// How far estimates of seconds were off, where this was learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// What compiles took, over what they were thought to take.
    pub factor: f64,
    /// From how many of them that is.
    pub compiles: usize,
}

/// What a whole is made of.
#[derive(Debug, Clone)]
pub struct Stitch {
    /// The file that says how, as the whole's artifact has it.
    stitching: Bytes,
    /// The different pieces, in the order of the stitching.
    pub pieces: Vec<StitchPiece>,
    /// Some are not those of its plan: see `patch`.
    is_patched: bool,
}

/// A piece of a whole.
#[derive(Debug, Clone)]
pub struct StitchPiece {
    /// Its own job, with its own key.
    pub prepared: Arc<Prepared>,
    /// How often it runs.
    pub times: usize,
    /// What its compile takes.
    pub estimates: Estimates,
}

impl Default for Planned {
    /// In one compile, which needs no reason.
    fn default() -> Self {
        Self { choice: Choice::Full, reasons: Vec::new(), whole: None, items: 1 }
    }
}

impl Planned {
    /// In one compile after all.
    pub(super) fn full(self, why: &Failure) -> Self {
        let reasons = vec![format!("not in pieces: {why}")];
        Self { choice: Choice::Full, reasons, items: 1, ..self }
    }
}

impl StitchPiece {
    /// Of its artifact.
    pub fn key(&self) -> ArtifactKey {
        self.prepared.components.key()
    }
}

impl Stitch {
    pub(super) fn new(stitching: Bytes, pieces: Vec<StitchPiece>) -> Self {
        Self { stitching, pieces, is_patched: false }
    }

    /// With other artifacts than those of its plan in the place of some.
    pub(super) fn patched(stitching: Bytes, pieces: Vec<StitchPiece>) -> Self {
        Self { stitching, pieces, is_patched: true }
    }

    /// Whether it has pieces that its request, split anywhere else, does not have.
    pub fn is_patched(&self) -> bool {
        self.is_patched
    }

    /// The file that says how.
    pub(super) fn stitching(&self) -> &[u8] {
        &self.stitching
    }

    /// The files of the whole.
    pub fn files(&self) -> Vec<(String, Bytes)> {
        vec![(STITCHING.to_owned(), self.stitching.clone())]
    }
}

/// `name` within the bounds of a label, with some room.
pub(super) fn cut(name: &str) -> &str {
    const MOST: usize = 240;
    let end = (0..=name.len().min(MOST)).rev().find(|at| name.is_char_boundary(*at));
    &name[..end.unwrap_or(0)]
}

/// All that a compiler generated, as one field of the key: what a newer Kiln
/// generates otherwise is another artifact.
pub(super) fn generated<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> KeyField {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    KeyField::new("generated", format!("blake3:{}", hasher.finalize().to_hex())).derived()
}
