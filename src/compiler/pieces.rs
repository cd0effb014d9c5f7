//! A program in pieces: each a job of its own, and what puts them together.
//!
//! Invariant: the key of a whole follows from the graph, the options, the toolchain
//! and its pieces' keys; never from who compiles the pieces, or what that took.

use std::{collections::BTreeSet, sync::Arc};

use kiln_native::split::{
    Split, Strategy,
    stitch::{Stitching, stitch},
};
use kiln_proto::{
    ArtifactKey, Component, Failure, FailureKind, Fingerprint, KeyField, MAX_PIECES, component,
    graph::Graph,
};

use super::{CompileInput, Job, Planned, Prepared, Stitch, StitchPiece, generated, prepared::cut};

impl From<&Strategy> for Planned {
    fn from(strategy: &Strategy) -> Self {
        let Strategy { choice, reasons, whole, split } = strategy;
        Self {
            choice: *choice,
            reasons: reasons.iter().map(ToString::to_string).collect(),
            whole: *whole,
            items: split.as_ref().map_or(1, |split| split.items.len()),
        }
    }
}

/// A whole of the pieces in `split`, each of which `prepare` prepares. `options` are
/// the merged ones of the compiler.
pub(super) fn stitched(
    input: &CompileInput,
    fingerprint: &Fingerprint,
    graph: &Graph,
    split: &Split,
    (name, mut options): (String, Vec<KeyField>),
    mut prepare: impl FnMut(&CompileInput, &Graph) -> Result<Prepared, Failure>,
) -> Result<Prepared, Failure> {
    let count = split.pieces.len();
    if count > MAX_PIECES {
        let why = format!("{count} different pieces, at most {MAX_PIECES}");
        return Err(Failure::new(FailureKind::Incompatible, why));
    }
    let mut stitching = stitch(graph, split).map_err(|e| e.into_failure())?;
    let label = input.source.title(&name);
    let mut pieces = Vec::with_capacity(count);
    for (position, piece) in split.pieces.iter().enumerate() {
        let about = |failure: Failure| {
            Failure::new(failure.kind, format!("piece {position}: {}", failure.message))
        };
        let graph = split.graph(piece);
        let prepared = prepare(input, graph).map_err(about)?;
        let mut prepared = prepared.computing(Arc::new(graph.clone()));
        prepared.label = format!("{} [{position}]", cut(&label));
        let estimates = split.items[piece.items[0]].estimates;
        prepared.estimated_seconds = Some(estimates.compile_seconds);
        let compiler = &prepared.fingerprint.compiler;
        if *compiler != fingerprint.compiler {
            stitching.pieces[position].compiler = Some(compiler.clone());
        }
        pieces.push(StitchPiece {
            prepared: Arc::new(prepared),
            times: piece.items.len(),
            estimates,
        });
    }
    let keys: Vec<ArtifactKey> = pieces.iter().map(StitchPiece::key).collect();
    if keys.iter().collect::<BTreeSet<_>>().len() < keys.len() {
        let why = "two different pieces have one key";
        return Err(Failure::new(FailureKind::Crashed, why));
    }
    let stitching = stitching.to_bytes();
    // What nobody could read is not made.
    Stitching::read(&stitching)
        .map_err(|e| Failure::new(FailureKind::Crashed, format!("the stitching is wrong: {e}")))?;
    let keys = keys.iter().map(|key| key.as_bytes().as_slice());
    let generated = generated(std::iter::once(&stitching[..]).chain(keys));
    let program = Arc::new(graph.clone());
    let (graph, inputs) = kiln_native::components(graph);
    // Else nothing that people read would tell it from the same graph in one compile.
    options.push(KeyField::new("piecewise", "on"));
    let own = [graph, inputs, Component::new(component::OPTIONS, options)];
    let job = Job::Stitch(Arc::new(Stitch::new(stitching.into(), pieces)));
    let whole = Prepared::new(input, fingerprint, own, Some(generated), &name, job);
    Ok(whole.computing(program))
}
