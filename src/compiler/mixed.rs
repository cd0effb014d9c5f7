//! `mixed`: an exported graph in pieces, each by the native compiler, and those that it
//! refuses by Inductor. `mixed-eager`, where nobody has Inductor: those are the graph itself,
//! which PyTorch runs, or the interpreter.
//!
//! Its toolchain is that of both: a node has it that has both. A piece is one of its own
//! compiler, under the key that it has anywhere else.
//!
//! Invariant: who compiles a piece follows from its graph, the options and the target
//! alone: a piece that fails in the compiler that it is for is no other compiler's. Native has
//! at least one piece.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_native::split::{Piecewise, Settings, strategy};
use kiln_proto::{BinaryKind, Failure, FailureKind, Fingerprint, KeyField, Target, graph::Graph};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, EagerCompiler, InductorCompiler, Limits, NativeCompiler, Output,
    Planned, Prepared, Source, native_compiler, pieces::stitched,
};

/// Compiles each piece by the compiler that can.
pub struct MixedCompiler {
    name: &'static str,
    native: Arc<NativeCompiler>,
    /// Of what native refuses.
    rest: Arc<dyn Compiler>,
}

impl MixedCompiler {
    /// The name by which a request selects it, where the rest is Inductor's.
    pub const NAME: &'static str = "mixed";
    /// The same, where the rest is the graph itself.
    pub const WITH_EAGER: &'static str = "mixed-eager";

    pub(super) fn new(native: Arc<NativeCompiler>, inductor: Arc<InductorCompiler>) -> Self {
        Self { name: Self::NAME, native, rest: inductor }
    }

    pub(super) fn with_eager(native: Arc<NativeCompiler>) -> Self {
        Self { name: Self::WITH_EAGER, native, rest: Arc::new(EagerCompiler) }
    }

    fn parts(&self) -> [&dyn Compiler; 2] {
        [&*self.native, &*self.rest]
    }

    /// The request as the compiler of the rest takes it.
    fn for_rest(&self, for_inductor: CompileInput) -> CompileInput {
        match self.name {
            Self::WITH_EAGER => CompileInput { target: Target::any(), ..for_inductor },
            _ => for_inductor,
        }
    }

    /// The compiler of a piece.
    fn of(&self, prepared: &Prepared) -> Result<&dyn Compiler, Failure> {
        let name = &prepared.fingerprint.compiler;
        let part = self.parts().into_iter().find(|part| part.name() == name);
        part.ok_or_else(|| {
            let why = format!("a piece of {name} went to {}", self.name);
            Failure::new(FailureKind::Crashed, why)
        })
    }
}

#[async_trait]
impl Compiler for MixedCompiler {
    fn name(&self) -> &'static str {
        self.name
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Program { .. })
    }

    async fn settled(&self) {
        for part in self.parts() {
            part.settled().await;
        }
    }

    fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        let [native, rest] = self.parts();
        // NVRTC may be loading still; what is told first is what may be missing for good.
        let rest = rest.fingerprint()?;
        Ok(together(self.name, &[native.fingerprint()?, rest]))
    }

    fn prepare(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
    ) -> Result<Prepared, Failure> {
        self.plan(input, fingerprint, Piecewise::Always)
    }

    fn plan(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        piecewise: Piecewise,
    ) -> Result<Prepared, Failure> {
        if piecewise == Piecewise::Never {
            let why = format!("`{}` compiles in pieces: one compile is one compiler's", self.name);
            return Err(Failure::new(FailureKind::Incompatible, why));
        }
        input.validate()?;
        let archive = input.source.program(self.name())?;
        kiln_native::check_target(input.target)?;
        let (for_native, for_rest) = inputs(input);
        let for_rest = self.for_rest(for_rest);
        let [native, rest] = self.parts().map(|part| part_of(fingerprint, part.name()));
        let graph = kiln_native::read_any_graph(archive)?;
        let mut settings = Settings { piecewise: Piecewise::Always, ..Settings::default() };
        // Alone, so that what is beside them stays native.
        let unknown = graph.nodes.iter().filter(|node| !kiln_native::has_rule(&node.op));
        settings.at.extend(unknown.map(|node| node.op.clone()));
        let found = strategy(&graph, &settings).map_err(|e| e.into_failure())?;
        let mut planned = Planned::from(&found);
        let Some(split) = &found.split else {
            let why = "a graph that was asked for in pieces has none";
            return Err(Failure::new(FailureKind::Crashed, why));
        };
        let (mut position, mut refused) = (0, Vec::new());
        let piece = |_: &CompileInput, graph: &Graph| {
            let at = position;
            position += 1;
            match native_compiler::piece(&for_native, &native, graph) {
                Err(why) if why.kind == FailureKind::UnsupportedOp => {
                    let reason = format!("piece {at} is {}'s: {}", rest.compiler, why.message);
                    planned.reasons.push(reason);
                    refused.push(why.message);
                    self.rest.piece(&for_rest, &rest, graph)
                }
                made => made,
            }
        };
        let mut options = fields(kiln_native::merged_options(&for_native.options)?);
        let given = for_rest.options.iter();
        options.extend(given.map(|(name, value)| KeyField::new(format!("inductor.{name}"), value)));
        let made = (kiln_native::archive_name(archive), options);
        let whole = stitched(input, fingerprint, &graph, split, made, piece)?;
        if refused.len() == split.pieces.len() {
            return Err(Failure::new(FailureKind::UnsupportedOp, refused.join("; ")));
        }
        Ok(whole.planned(planned))
    }

    fn free(&self) -> usize {
        // Eager is no process that may be busy.
        let parts = self.parts().into_iter().filter(|part| part.name() != EagerCompiler::NAME);
        parts.map(Compiler::free).min().unwrap_or_default()
    }

    async fn until_free(&self) {
        for part in self.parts() {
            part.until_free().await;
        }
    }

    async fn compile(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Output, Failure> {
        self.of(prepared)?.compile(prepared, limits, stop).await
    }
}

/// The toolchains of several compilers as one.
fn together(name: &str, parts: &[Fingerprint]) -> Fingerprint {
    let versions = parts.iter().flat_map(|Fingerprint { compiler, versions }| {
        versions.iter().map(move |(name, value)| (format!("{compiler}.{name}"), value.clone()))
    });
    Fingerprint { compiler: name.to_owned(), versions: versions.collect() }
}

/// The toolchain of one of them.
fn part_of(fingerprint: &Fingerprint, compiler: &str) -> Fingerprint {
    let versions = fingerprint.versions.iter().filter_map(|(name, value)| {
        let own = name.strip_prefix(compiler)?.strip_prefix('.')?;
        Some((own.to_owned(), value.clone()))
    });
    Fingerprint { compiler: compiler.to_owned(), versions: versions.collect() }
}

/// The request as each compiler takes it: with its own options, for its own form of the
/// target.
pub(super) fn inputs(input: &CompileInput) -> (CompileInput, CompileInput) {
    let is_natives = |name: &String| kiln_native::OPTIONS.contains(&name.as_str());
    let (mut for_native, mut for_inductor) = (input.clone(), input.clone());
    for_native.options.retain(|name, _| is_natives(name));
    for_inductor.options.retain(|name, _| !is_natives(name));
    for_inductor.target = Target { kind: BinaryKind::Files, arch_specific: false, ..input.target };
    (for_native, for_inductor)
}

fn fields(options: Vec<(&'static str, &'static str)>) -> Vec<KeyField> {
    options.into_iter().map(|(name, value)| KeyField::new(name, value)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_put_together_and_taken_apart() {
        let native = Fingerprint::new("native", [("nvrtc", "13.0")]);
        let inductor = Fingerprint::new("inductor-standalone", [("torch", "2.15"), ("cuda", "13")]);
        let both = together(MixedCompiler::NAME, &[native.clone(), inductor.clone()]);
        assert_eq!(both.compiler, "mixed");
        assert_eq!(part_of(&both, "native"), native);
        assert_eq!(part_of(&both, "inductor-standalone"), inductor);
        // A name that begins like another is no part of it.
        assert!(part_of(&both, "inductor").versions.is_empty());
    }
}
