//! `native`: an exported graph to a CUBIN and a launch plan.
//!
//! Invariant: the key covers the generated code, the flags and the plan as well
//! as the graph, so a code generator that changed never gets its old output.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_native::{
    self as native, Lowered,
    split::{Piecewise, Settings, strategy},
};
use kiln_proto::{Component, Failure, FailureKind, Fingerprint, KeyField, component, graph::Graph};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, Job, Limits, Output, Planned, Prepared, Source, Toolchain,
    engine::Engine,
    generated,
    pieces::stitched,
    worker::{Compiled, Octets, Program, module_file},
};

/// Lowers exported graphs and compiles the result with NVRTC.
#[derive(Debug)]
pub struct NativeCompiler {
    engine: Arc<Engine>,
}

impl NativeCompiler {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Compiler for NativeCompiler {
    fn name(&self) -> &'static str {
        "native"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Program { .. })
    }

    async fn settled(&self) {
        self.engine.settled().await;
    }

    /// The generated code includes no header: NVRTC's version is all.
    fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        let versions = |found: &Toolchain| [("nvrtc", found.version.clone())];
        Ok(Fingerprint::new(self.name(), self.engine.toolchain(versions)?))
    }

    fn prepare(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
    ) -> Result<Prepared, Failure> {
        input.validate()?;
        native::merged_options(&input.options)?;
        native::check_target(input.target)?;
        let (graph, name) = input.source.graph(self.name())?;
        let mut lowered = native::lower_parsed(&graph, &input.options, input.target)?;
        lowered.name = name;
        Ok(prepared(input, fingerprint, lowered)?.computing(Arc::new(graph)))
    }

    fn check_size(&self, source: &Source) -> Result<(), Failure> {
        source.graph(self.name()).map(drop)
    }

    fn plan(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        piecewise: Piecewise,
    ) -> Result<Prepared, Failure> {
        if piecewise == Piecewise::Never {
            let settings = Settings { piecewise, ..Settings::default() };
            let planned = strategy(&Default::default(), &settings);
            let planned = planned.map_err(|e| e.into_failure())?;
            return Ok(self.prepare(input, fingerprint)?.planned((&planned).into()));
        }
        input.validate()?;
        native::check_target(input.target)?;
        let options = native::merged_options(&input.options)?;
        let (graph, name) = input.source.graph(self.name())?;
        // Settings that a node had for itself would give one request two keys.
        let settings = Settings { piecewise, ..Settings::default() };
        let found = strategy(&graph, &settings).map_err(|e| e.into_failure())?;
        let mut planned = Planned::from(&found);
        if let Some(split) = &found.split {
            let piece = |input: &CompileInput, graph: &Graph| piece(input, fingerprint, graph);
            let options = options.into_iter().map(|(name, value)| KeyField::new(name, value));
            let made = (name.clone(), options.collect());
            match stitched(input, fingerprint, &graph, split, made, piece) {
                Ok(whole) => return Ok(whole.planned(planned)),
                Err(why) if piecewise == Piecewise::Always => return Err(why),
                Err(why) => planned = planned.full(&why),
            }
        }
        let mut lowered = native::lower_parsed(&graph, &input.options, input.target)?;
        lowered.name = name;
        let whole = prepared(input, fingerprint, lowered)?;
        Ok(whole.planned(planned).computing(Arc::new(graph)))
    }

    fn piece(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        graph: &Graph,
    ) -> Result<Prepared, Failure> {
        piece(input, fingerprint, graph)
    }

    /// One kernel after the other: a sixteen-layer model took 57 MiB so, and 192 MiB with
    /// eight at a time.
    fn saving(&self, options: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        let mut saving = options.clone();
        saving.insert(native::PARALLEL.into(), "off".into());
        (saving != *options).then_some(saving)
    }

    /// Each operation in kernels of its own: smaller ones, that share nothing.
    fn fewer(&self, options: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        let mut fewer = options.clone();
        fewer.insert("fuse".into(), "off".into());
        fewer.remove("fast_math");
        (fewer != *options).then_some(fewer)
    }

    /// Measured: `tests/compiler/outputs.rs`.
    fn is_deterministic(&self) -> bool {
        self.engine.toolchain(|toolchain| toolchain.fixed).unwrap_or(false)
    }

    fn free(&self) -> usize {
        self.engine.free()
    }

    async fn until_free(&self) {
        self.engine.until_free().await;
    }

    async fn compile(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Output, Failure> {
        let done = self.engine.run(&self.fingerprint()?, prepared, limits, stop).await;
        let Compiled { module, log, seconds, .. } = done.map_err(|failure| match failure.kind {
            // The user did not write that source.
            FailureKind::CompileError | FailureKind::Incompatible => Failure::new(
                failure.kind,
                format!("NVRTC refused the code generated for this graph: {}", failure.message),
            ),
            _ => failure,
        })?;
        let mut files = vec![(module_file(prepared.target.kind).to_owned(), module.0)];
        files.extend(prepared.nvrtc()?.1.iter().cloned());
        files.sort();
        Ok(Output { files, compile_seconds: seconds, log })
    }
}

/// A piece: a graph of its own.
pub(super) fn piece(
    input: &CompileInput,
    fingerprint: &Fingerprint,
    graph: &Graph,
) -> Result<Prepared, Failure> {
    prepared(input, fingerprint, native::lower_parsed(graph, &input.options, input.target)?)
}

/// The job of compiling what a graph became, and its key.
fn prepared(
    input: &CompileInput,
    fingerprint: &Fingerprint,
    mut lowered: Lowered,
) -> Result<Prepared, Failure> {
    let nvrtc = fingerprint.versions.get("nvrtc").map_or("", String::as_str);
    if !lowered.options.contains(&(native::PARALLEL, "off")) {
        lowered.nvrtc_options.extend(shared_out(kernels(&lowered), nvrtc).map(str::to_owned));
    }
    let plan = serde_json::to_vec_pretty(&lowered.plan)
        .map_err(|e| Failure::new(FailureKind::Crashed, format!("write the launch plan: {e}")))?;
    // All that NVRTC and the caller are given.
    let flags = lowered.nvrtc_options.iter().map(String::as_bytes);
    let generated = generated([lowered.source.as_bytes(), &plan].into_iter().chain(flags));
    let lowered_target = lowered.target;
    let Lowered { graph, inputs, source, nvrtc_options, options, name: own_name, .. } = lowered;
    // Merged: an option given with its default is no other request.
    let options = options.into_iter().map(|(name, value)| KeyField::new(name, value));
    let options = Component::new(component::OPTIONS, options.collect());
    let source = Bytes::from(source);
    let program = Program {
        source: Octets(source.clone()),
        headers: Default::default(),
        options: nvrtc_options,
        tree: None,
        name_expressions: Vec::new(),
        target: lowered_target,
        memory_bytes: 0,
        cpu_seconds: 0,
    };
    let extra =
        vec![("kernels.cu".to_owned(), source), ("plan.json".to_owned(), Bytes::from(plan))];
    let job = Job::Nvrtc { program, extra };
    let own = [graph, inputs, options];
    Ok(Prepared::new(input, fingerprint, own, Some(generated), &own_name, job))
}

/// Different functions: equal kernels are one.
fn kernels(lowered: &Lowered) -> usize {
    let names: BTreeSet<&str> =
        lowered.plan.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    names.len()
}

/// How NVRTC shares out the optimisation of so many kernels to threads: half the
/// time for a model. The same number on every machine, as it is part of the key. The
/// bytes are equal all the same, as generated modules have no variables to order.
fn shared_out(kernels: usize, nvrtc: &str) -> Option<&'static str> {
    // Those before 13 were not measured.
    let major = nvrtc.split('.').next().and_then(|major| major.parse::<u32>().ok());
    (kernels >= 4 && major >= Some(13)).then_some("--split-compile=8")
}

#[cfg(test)]
mod tests {
    use super::shared_out;

    #[test]
    fn many_kernels_are_compiled_at_once_where_nvrtc_can() {
        assert_eq!(shared_out(22, "13.0.88"), Some("--split-compile=8"));
        assert_eq!(shared_out(3, "13.0.88"), None);
        assert_eq!(shared_out(22, "12.8.93"), None);
        assert_eq!(shared_out(22, ""), None);
    }
}
