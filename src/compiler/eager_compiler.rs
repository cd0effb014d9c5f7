//! `eager`: an exported graph as it is, to be run by the interpreter on a CPU.
//!
//! Invariant: every node has this compiler, and all give one graph the same
//! bytes: nothing outside of this program takes part.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_native::{Identity, eager::Eager};
use kiln_proto::{
    Component, Components, Failure, FailureKind, Fingerprint, Hasher, KeyField, Target, component,
};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, Files, Job, Limits, Output, Prepared, Source,
    request::common_components,
};

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
        let Source::Program { name, archive } = &input.source else {
            return incompatible(format!("the eager compiler takes no {}", input.source.form()));
        };
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
        let mut components = vec![graph, inputs, Component::new(component::OPTIONS, Vec::new())];
        components.extend(common_components(input, fingerprint, Some(generated(&files))));
        Ok(Prepared {
            components: Components::new(components),
            fingerprint: fingerprint.clone(),
            target: input.target,
            label: if name.is_empty() { own_name } else { name.clone() },
            namespace: input.namespace.clone(),
            job: Job::Done { files, seconds: started.elapsed().as_secs_f64() },
        })
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

/// All files, as one field of the key: a graph that comes out otherwise in a
/// newer Kiln is another artifact.
fn generated(files: &Files) -> KeyField {
    let mut hasher = Hasher::new();
    for part in files.iter().flat_map(|(path, bytes)| [path.as_bytes(), bytes]) {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    KeyField::new("generated", format!("blake3:{}", hasher.finalize().to_hex())).derived()
}
