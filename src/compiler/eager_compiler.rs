//! `eager`: an exported graph as it is, to be run by the interpreter on a CPU; one with
//! operations that the interpreter does not know by PyTorch.
//!
//! Invariant: every node has this compiler, and all give one graph the same
//! bytes: nothing outside of this program takes part.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_native::{
    self as native, Identity,
    eager::Eager,
    split::{Piecewise, Settings, strategy},
};
use kiln_proto::{Component, Failure, FailureKind, Fingerprint, Target, component, graph::Graph};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, Files, Job, Limits, Output, Planned, Prepared, Source, generated,
    pieces::stitched,
};

/// Of what a core program means to the interpreter.
const INTERPRETER: &str = "1";

/// Brings exported graphs to the operations that the interpreter knows.
#[derive(Debug)]
pub struct EagerCompiler;

impl EagerCompiler {
    /// The name by which a request selects it: it alone runs in no process of its own.
    pub const NAME: &'static str = "eager";
}

const NAME: &str = EagerCompiler::NAME;

#[async_trait]
impl Compiler for EagerCompiler {
    fn name(&self) -> &'static str {
        NAME
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Program { .. })
    }

    fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        Ok(Fingerprint::new(self.name(), [("interpreter", INTERPRETER)]))
    }

    fn prepare(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
    ) -> Result<Prepared, Failure> {
        accepted(input)?;
        match known(input, fingerprint) {
            Err(why) if why.kind == FailureKind::UnsupportedOp && input.source.size().is_none() => {
                // What PyTorch cannot be told either is told as it was found.
                foreign(input, fingerprint).map_err(|_| why)
            }
            prepared => prepared,
        }
    }

    fn check_size(&self, source: &Source) -> Result<(), Failure> {
        source.graph(NAME).map(drop)
    }

    /// In pieces only where that is asked for: it costs nothing to have it whole.
    fn plan(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        piecewise: Piecewise,
    ) -> Result<Prepared, Failure> {
        if piecewise != Piecewise::Always {
            return self.prepare(input, fingerprint);
        }
        accepted(input)?;
        let (graph, name) = input.source.graph(NAME)?;
        // Settings that a node had for itself would give one request two keys.
        let settings = Settings { piecewise, ..Settings::default() };
        let found = strategy(&graph, &settings).map_err(|e| e.into_failure())?;
        let planned = Planned::from(&found);
        let Some(split) = &found.split else {
            return Ok(self.prepare(input, fingerprint)?.planned(planned));
        };
        let piece = |input: &CompileInput, graph: &Graph| {
            prepared(input, fingerprint, identified(graph, String::new())?, graph)
        };
        let whole = stitched(input, fingerprint, &graph, split, (name, Vec::new()), piece)?;
        Ok(whole.planned(planned))
    }

    /// What the interpreter does not know is PyTorch's, as of a whole.
    fn piece(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        graph: &Graph,
    ) -> Result<Prepared, Failure> {
        accepted(input)?;
        let identity = || identified(graph, String::new());
        match prepared(input, fingerprint, identity()?, graph) {
            Err(why) if why.kind == FailureKind::UnsupportedOp => {
                let started = Instant::now();
                let files = native::eager::foreign(graph).map_err(|_| why)?;
                Ok(done(input, fingerprint, identity()?, files, started))
            }
            prepared => prepared,
        }
    }

    /// A compile is over as soon as it began.
    fn free(&self) -> usize {
        1
    }

    async fn until_free(&self) {}

    /// Nothing is left to do.
    async fn compile(
        &self,
        prepared: &Prepared,
        _limits: &Limits,
        _stop: CancellationToken,
    ) -> Result<Output, Failure> {
        let ours = self.fingerprint()?;
        if ours != prepared.fingerprint {
            let why = format!("the key asks for {}, this node has {ours}", prepared.fingerprint);
            return Err(Failure::new(FailureKind::ToolchainMissing, why));
        }
        let (files, seconds) = prepared.done()?;
        Ok(Output { files: files.clone(), compile_seconds: seconds, log: String::new() })
    }
}

/// The archive of a request that this compiler takes.
fn accepted(input: &CompileInput) -> Result<(), Failure> {
    input.validate()?;
    let incompatible = |why: String| Err(Failure::new(FailureKind::Incompatible, why));
    if input.target != Target::any() {
        let target = input.target;
        return incompatible(format!("`eager` runs on the CPU, not on {target}: ask for cpu"));
    }
    if let Some(option) = input.options.keys().next() {
        return incompatible(format!("`eager` has no option {option:?}, nor any other"));
    }
    Ok(())
}

/// A graph that the interpreter can run.
fn known(input: &CompileInput, fingerprint: &Fingerprint) -> Result<Prepared, Failure> {
    let (graph, name) = input.source.graph(NAME)?;
    let identity = match input.source.size() {
        // The canonical form may not have all of an archive: then all of it counts.
        None => native::identify(input.source.program(NAME)?)?,
        Some(_) => identified(&graph, name)?,
    };
    prepared(input, fingerprint, identity, &graph)
}

/// A graph that only PyTorch can run: nobody here can say whether it computes what it should.
fn foreign(input: &CompileInput, fingerprint: &Fingerprint) -> Result<Prepared, Failure> {
    let started = Instant::now();
    let archive = input.source.program(NAME)?;
    let identity = native::identify(archive)?;
    let files = native::eager::foreign(&native::read_any_graph(archive)?)?;
    Ok(done(input, fingerprint, identity, files, started))
}

/// The identity of a graph that is no archive.
fn identified(graph: &Graph, name: String) -> Result<Identity, Failure> {
    native::identify_graph(graph, name).ok_or_else(|| {
        let why = "an operation has an argument that no key can name";
        Failure::new(FailureKind::UnsupportedOp, why)
    })
}

/// The program of a graph, and its key.
fn prepared(
    input: &CompileInput,
    fingerprint: &Fingerprint,
    identity: Identity,
    program: &Graph,
) -> Result<Prepared, Failure> {
    let started = Instant::now();
    let files = Eager::new(program)?.files()?;
    let prepared = done(input, fingerprint, identity, files, started);
    Ok(prepared.computing(Arc::new(program.clone())))
}

/// What is made already, since `started`.
fn done(
    input: &CompileInput,
    fingerprint: &Fingerprint,
    identity: Identity,
    files: Vec<(String, Vec<u8>)>,
    started: Instant,
) -> Prepared {
    let files: Files = files.into_iter().map(|(path, f)| (path, Bytes::from(f))).collect();
    let parts = files.iter().flat_map(|(path, bytes)| [path.as_bytes(), bytes]);
    let generated = generated(parts);
    let Identity { graph, inputs, name } = identity;
    let own = [graph, inputs, Component::new(component::OPTIONS, Vec::new())];
    let job = Job::Done { files, seconds: started.elapsed().as_secs_f64() };
    Prepared::new(input, fingerprint, own, Some(generated), &name, job)
}
