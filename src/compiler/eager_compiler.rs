//! `eager`: an exported graph as it is, to be run by the interpreter on a CPU.
//!
//! Invariant: every node has this compiler, and all give one graph the same
//! bytes: nothing outside of this program takes part.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_native::{Identity, eager::Eager};
use kiln_proto::{Component, Failure, FailureKind, Fingerprint, Target, component};
use tokio_util::sync::CancellationToken;

use super::{CompileInput, Compiler, Files, Job, Limits, Output, Prepared, Source, generated};

/// Of what a core program means to the interpreter.
const INTERPRETER: &str = "1";

/// Brings exported graphs to the operations that the interpreter knows.
#[derive(Debug)]
pub struct EagerCompiler;

#[async_trait]
impl Compiler for EagerCompiler {
    fn name(&self) -> &'static str {
        "eager"
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
        input.validate()?;
        let incompatible = |why: String| Err(Failure::new(FailureKind::Incompatible, why));
        let archive = input.source.program(self.name())?;
        if input.target != Target::any() {
            let target = input.target;
            return incompatible(format!("`eager` runs on the CPU, not on {target}: ask for cpu"));
        }
        if let Some(option) = input.options.keys().next() {
            return incompatible(format!("`eager` has no option {option:?}, nor any other"));
        }
        let started = Instant::now();
        let Identity { graph, inputs, name: own_name } = kiln_native::identify(archive)?;
        let files = Eager::new(&kiln_native::read_graph(archive)?)?.files()?;
        let files: Files = files.into_iter().map(|(path, f)| (path, Bytes::from(f))).collect();
        let parts = files.iter().flat_map(|(path, bytes)| [path.as_bytes(), bytes]);
        let generated = generated(parts);
        let own = [graph, inputs, Component::new(component::OPTIONS, Vec::new())];
        let job = Job::Done { files, seconds: started.elapsed().as_secs_f64() };
        Ok(Prepared::new(input, fingerprint, own, Some(generated), own_name, job))
    }

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
