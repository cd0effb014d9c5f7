//! `inductor` and `inductor-standalone`: an exported graph to what PyTorch's
//! Inductor makes of it, through a Python worker.
//!
//! Invariant: all that Inductor is told is in the key, merged: the defaults, what
//! follows from the runtime shape, and the caller's options, which have the last
//! word. Parameters are inputs of the artifact, so no weight is in key or output.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use kiln_native::split::{Budget, Coefficients, Piecewise, Settings, strategy};
use kiln_proto::{
    BinaryKind, Component, Failure, FailureKind, Fingerprint, KeyField, Target, component,
    graph::Graph,
};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, Job, Limits, Output, Planned, Prepared, Source, generated,
    pieces::stitched,
    python::{self, Program, Python},
    request::invalid,
};

/// Shapes above this are worth a search for the best kernels.
const LARGE_SHAPE: u64 = 1024;
/// What compiles many kernels to keep the best: switches of Inductor in all versions.
const SEARCHES: [&str; 2] = ["coordinate_descent_tuning", "max_autotune"];
/// These, and what rewrites and merges operations.
const OPTIMISATIONS: [&str; 5] = [
    "coordinate_descent_tuning",
    "epilogue_fusion",
    "max_autotune",
    "pattern_matcher",
    "split_reductions",
];
/// Largest fixed size.
const LARGEST_SHAPE: u64 = 1 << 40;

/// Compiles exported graphs with PyTorch's Inductor.
#[derive(Debug)]
pub struct InductorCompiler {
    name: &'static str,
    python: Arc<Python>,
}

/// A request's options, merged.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    device: &'static str,
    runtime_shape: Option<u64>,
    /// Inductor's own, by name; values are JSON.
    inductor: BTreeMap<String, String>,
}

impl InductorCompiler {
    /// Ahead of time to a package for Python and C++, and to a standalone artifact.
    pub const NAMES: [&'static str; 2] = ["inductor", "inductor-standalone"];

    pub(super) fn new(name: &'static str, python: Arc<Python>) -> Self {
        Self { name, python }
    }
}

/// How programs are split for Inductor. The same on every node: see [`Settings`]. Its
/// compiles take ten times as long as NVRTC's, whatever they compile.
fn settings(piecewise: Piecewise) -> Settings {
    let coefficients = Coefficients {
        seconds: 8.0,
        seconds_per_operation: 0.05,
        seconds_per_product: 0.2,
        seconds_per_attention: 1.0,
        bytes: 900e6,
        bytes_per_operation: 1e6,
    };
    let budget = Budget { most_seconds: 0.0, ..Budget::default() };
    let whole = Budget { most_seconds: 60.0, ..Settings::default().whole };
    Settings { piecewise, coefficients, budget, whole, ..Settings::default() }
}

#[async_trait]
impl Compiler for InductorCompiler {
    fn name(&self) -> &'static str {
        self.name
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Program { .. })
    }

    async fn settled(&self) {
        self.python.settled().await;
    }

    fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        self.python.fingerprint(self.name)
    }

    fn prepare(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
    ) -> Result<Prepared, Failure> {
        input.validate()?;
        let archive = input.source.program(self.name)?;
        let options = Options::merge(&input.options, &input.target)?;
        let kiln_native::Identity { graph, inputs, name: own_name } =
            kiln_native::identify(archive)?;
        let own = [graph, inputs, options.component()];
        let job = options.job(input, fingerprint, Program::Archive(archive.clone()));
        Ok(Prepared::new(input, fingerprint, own, None, &own_name, job))
    }

    fn plan(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        piecewise: Piecewise,
    ) -> Result<Prepared, Failure> {
        let settings = settings(piecewise);
        if piecewise == Piecewise::Never {
            let planned = strategy(&Graph::default(), &settings).map_err(|e| e.into_failure())?;
            return Ok(self.prepare(input, fingerprint)?.planned((&planned).into()));
        }
        input.validate()?;
        let archive = input.source.program(self.name())?;
        let options = Options::merge(&input.options, &input.target)?;
        let graph = match kiln_native::read_any_graph(archive) {
            Ok(graph) => graph,
            // As a whole it is read by torch alone.
            Err(why) if why.kind == FailureKind::UnsupportedOp && piecewise == Piecewise::Auto => {
                let planned = Planned::default().full(&why);
                return Ok(self.prepare(input, fingerprint)?.planned(planned));
            }
            Err(why) => return Err(why),
        };
        let found = strategy(&graph, &settings).map_err(|e| e.into_failure())?;
        let mut planned = Planned::from(&found);
        if let Some(split) = &found.split {
            let piece = |input: &CompileInput, graph: &Graph| self.piece(input, fingerprint, graph);
            let made = (kiln_native::archive_name(archive), options.component().fields);
            match stitched(input, fingerprint, &graph, split, made, piece) {
                Ok(whole) => return Ok(whole.planned(planned)),
                Err(why) if piecewise == Piecewise::Always => return Err(why),
                Err(why) => planned = planned.full(&why),
            }
        }
        Ok(self.prepare(input, fingerprint)?.planned(planned))
    }

    /// One piece: its job is made of its graph alone, and its key covers all of the job.
    fn piece(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        graph: &Graph,
    ) -> Result<Prepared, Failure> {
        let options = Options::merge(&input.options, &input.target)?;
        let identity = kiln_native::identify_graph(graph, String::new());
        let kiln_native::Identity { graph: structure, inputs, .. } = identity.ok_or_else(|| {
            Failure::new(FailureKind::UnsupportedOp, "an argument that no key can name")
        })?;
        let portable = kiln_native::portable(graph)?;
        let generated = generated([&portable.graph[..], &portable.constants]);
        let own = [structure, inputs, options.component()];
        let job = options.job(input, fingerprint, Program::Graph(Arc::new(portable)));
        Ok(Prepared::new(input, fingerprint, own, Some(generated), "", job))
    }

    /// Without the search for the best kernels, which compiles each of many. What it is
    /// searched with is in one process and one thread already.
    fn saving(&self, options: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        switched_off(options, &SEARCHES)
    }

    fn fewer(&self, options: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        switched_off(options, &OPTIMISATIONS)
    }

    fn free(&self) -> usize {
        self.python.free()
    }

    async fn until_free(&self) {
        self.python.until_free().await;
    }

    async fn compile(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Output, Failure> {
        let done = self.python.run(prepared.python()?, limits, stop).await?;
        let python::Done { mut files, seconds, log } = done;
        files.sort();
        Ok(Output { files, compile_seconds: seconds, log })
    }
}

/// `options` with these switched off; `None`: they are.
fn switched_off(
    options: &BTreeMap<String, String>,
    names: &[&str],
) -> Option<BTreeMap<String, String>> {
    let mut changed = options.clone();
    changed.extend(names.iter().map(|name| ((*name).to_owned(), "false".to_owned())));
    (changed != *options).then_some(changed)
}

impl Options {
    /// Defaults, then what follows from the runtime shape, then what was asked for.
    fn merge(given: &BTreeMap<String, String>, target: &Target) -> Result<Self, Failure> {
        let device = device(target, given.get("device").map(String::as_str))?;
        let runtime_shape = match given.get("runtime_shape").map(String::as_str) {
            None | Some("dynamic") => None,
            Some(number) => match number.parse() {
                Ok(size) if (1..=LARGEST_SHAPE).contains(&size) => Some(size),
                _ => {
                    return Err(invalid(format!(
                        "option \"runtime_shape\" is a number or \"dynamic\", not {number:?}"
                    )));
                }
            },
        };
        let mut inductor = BTreeMap::new();
        let mut set = |name: &str| inductor.insert(name.to_owned(), "true".to_owned());
        if device == "cpu" {
            // Else the number of this node's cores would be baked in.
            set("cpp.dynamic_threads");
        }
        if let Some(size) = runtime_shape {
            // One shape alone: tuning the kernels for it can pay off.
            set("coordinate_descent_tuning");
            if size > LARGE_SHAPE {
                set("max_autotune");
                set("epilogue_fusion");
            }
        }
        let own = ["device", "runtime_shape"];
        for (name, value) in given.iter().filter(|(name, _)| !own.contains(&name.as_str())) {
            inductor.insert(name.clone(), json(value));
        }
        Ok(Self { device, runtime_shape, inductor })
    }

    /// What a worker is told.
    fn job(self, input: &CompileInput, fingerprint: &Fingerprint, program: Program) -> Job {
        Job::Python(python::Job {
            fingerprint: fingerprint.clone(),
            program,
            options: self.inductor.into_iter().collect(),
            runtime_shape: self.runtime_shape,
            device: self.device,
            compute: input.target.compute,
        })
    }

    fn component(&self) -> Component {
        let shape = self.runtime_shape.map_or("dynamic".to_owned(), |size| size.to_string());
        let mut fields =
            vec![KeyField::new("device", self.device), KeyField::new("runtime_shape", shape)];
        let inductor = self.inductor.iter();
        fields.extend(inductor.map(|(name, value)| KeyField::new(name.as_str(), value.as_str())));
        Component::new(component::OPTIONS, fields)
    }
}

/// A value in its one spelling: JSON where it is some, else text. `True` is
/// how a Python user spells it.
fn json(value: &str) -> String {
    let value = match value {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    let parsed = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    let parsed: serde_json::Value = parsed;
    parsed.to_string()
}

/// The device follows from the target; an option may say it once more.
fn device(target: &Target, asked: Option<&str>) -> Result<&'static str, Failure> {
    let incompatible = |why: String| Err(Failure::new(FailureKind::Incompatible, why));
    let device = match target {
        Target { kind: BinaryKind::Files, compute: 0, .. } => "cpu",
        Target { kind: BinaryKind::Files, .. } => "cuda",
        _ => {
            return incompatible(format!(
                "Inductor makes files, not {target}: ask for the target any (for the CPU) or \
                 gpu_{}",
                target.compute
            ));
        }
    };
    match asked {
        None => Ok(device),
        Some(asked) if asked == device => Ok(device),
        Some(asked @ ("cpu" | "cuda")) => {
            incompatible(format!("the target {target} is for {device}, and the option for {asked}"))
        }
        Some(asked) => Err(invalid(format!("option \"device\" is cpu or cuda, not {asked:?}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn merged(options: &[(&str, &str)], target: &str) -> Result<Options, Failure> {
        let given = options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        Options::merge(&given, &target.parse().unwrap())
    }

    fn inductor(options: &[(&str, &str)], target: &str) -> Vec<String> {
        let merged = merged(options, target).unwrap();
        merged.inductor.iter().map(|(n, v)| format!("{n}={v}")).collect()
    }

    #[test]
    fn a_number_is_a_static_shape_and_a_large_one_is_tuned() {
        assert_eq!(inductor(&[], "gpu_90"), [] as [&str; 0]);
        assert_eq!(inductor(&[("runtime_shape", "dynamic")], "gpu_90"), [] as [&str; 0]);
        assert_eq!(merged(&[("runtime_shape", "dynamic")], "any").unwrap().runtime_shape, None);
        let small = inductor(&[("runtime_shape", "1024")], "gpu_90");
        assert_eq!(small, ["coordinate_descent_tuning=true"]);
        let large = inductor(&[("runtime_shape", "1025")], "gpu_90");
        assert_eq!(
            large,
            ["coordinate_descent_tuning=true", "epilogue_fusion=true", "max_autotune=true"]
        );
        for bad in ["0", "-1", "many", "1.5", "99999999999999"] {
            let refused = merged(&[("runtime_shape", bad)], "any").unwrap_err();
            assert_eq!(refused.kind, FailureKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn the_caller_has_the_last_word() {
        let options = [("runtime_shape", "2048"), ("max_autotune", "False"), ("cpp.threads", "4")];
        assert_eq!(
            inductor(&options, "any"),
            [
                "coordinate_descent_tuning=true",
                "cpp.dynamic_threads=true",
                "cpp.threads=4",
                "epilogue_fusion=true",
                "max_autotune=false"
            ]
        );
    }

    #[test]
    fn one_value_has_one_spelling() {
        for (given, written) in [
            ("True", "true"),
            (" 1 ", "1"),
            ("null", "null"),
            ("ATEN,TRITON", "\"ATEN,TRITON\""),
            ("\"x\"", "\"x\""),
        ] {
            assert_eq!(json(given), written);
        }
    }

    #[test]
    fn the_device_is_the_targets() {
        assert_eq!(merged(&[], "any").unwrap().device, "cpu");
        assert_eq!(merged(&[("device", "cuda")], "gpu_90").unwrap().device, "cuda");
        for (option, target) in [("cuda", "any"), ("cpu", "gpu_90")] {
            let refused = merged(&[("device", option)], target).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Incompatible);
        }
        assert_eq!(merged(&[], "sm_90").unwrap_err().kind, FailureKind::Incompatible);
        let refused = merged(&[("device", "tpu")], "any").unwrap_err();
        assert_eq!(refused.kind, FailureKind::InvalidInput);
    }
}
