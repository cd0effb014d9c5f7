//! Every operation against PyTorch: by the interpreter, and as kernels in the emulator.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{EMULATED, emulator::Module};
use crate::{
    Options,
    core::Program,
    decompose::decompose,
    fixtures::{Call, Fixture, Tolerance, load},
    interp::{Settings, Tensor, run},
    lower_graph, read_graph,
};
use kiln_proto::graph::Graph;

/// How a program is run on one call.
type Runner<'a> = dyn FnMut(&Call) -> Result<Vec<Tensor<'static>>, String> + 'a;

/// What is wrong with the results of what `runner` makes of a program, a line
/// for each output.
fn wrong<'a>(
    fixture: &Fixture,
    runner: impl FnOnce(Graph, Program) -> Result<Box<Runner<'a>>, String>,
) -> Vec<String> {
    let attempt = || -> Result<Vec<String>, String> {
        let graph = read_graph(&fixture.archive).map_err(|e| e.to_string())?;
        let program = decompose(&graph).map_err(|e| e.to_string())?;
        let calls = fixture.calls(&graph, &program)?;
        let mut run = runner(graph, program)?;
        let mut lines = Vec::new();
        for call in calls {
            for (expected, got) in call.outputs.iter().zip(run(&call)?) {
                lines.extend(expected.mismatch(&got, Tolerance::of(got.dtype)));
            }
        }
        Ok(lines)
    };
    // A kernel that does not compile is one line among the others.
    let result = catch_unwind(AssertUnwindSafe(attempt))
        .unwrap_or_else(|panic| Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()));
    let lines = result.unwrap_or_else(|why| vec![why]);
    lines.into_iter().map(|line| format!("{}: {line}", fixture.name)).collect()
}

/// Of the fixtures whose names have one of `parts`, or what `KILN_ONLY` says.
fn check(parts: &[&str], wrong: impl Fn(&Fixture) -> Vec<String>) {
    let fixtures = load("ops");
    assert!(fixtures.len() > 40);
    let only = std::env::var("KILN_ONLY").ok();
    let parts: Vec<&str> = only.as_deref().map_or_else(|| parts.to_vec(), |only| vec![only]);
    let wanted = |fixture: &&Fixture| parts.iter().any(|part| fixture.name.contains(part));
    let fixtures = fixtures.iter().filter(wanted);
    let lines: Vec<String> = fixtures.flat_map(wrong).collect();
    assert!(lines.is_empty(), "{} wrong:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn every_operation_is_pytorchs() {
    check(&[""], |fixture| {
        wrong(fixture, |_, program| {
            Ok(Box::new(move |call| {
                run(&program, &call.inputs, &Settings::default()).map_err(|e| e.to_string())
            }))
        })
    });
}

#[test]
fn kernels_of_every_operation_give_pytorchs_results() {
    // The emulator takes a while for a family: the others run on a GPU.
    check(&["_f32.pt2", "mixed.pt2", "_i64.pt2"], |fixture| {
        wrong(fixture, |graph, program| {
            let options = Options { fuse: true, fast_math: false };
            let lowered = lower_graph(&graph, String::new(), options, EMULATED);
            let lowered = lowered.map_err(|e| e.to_string())?;
            if std::env::var_os("KILN_SHOW").is_some() {
                println!("{}", lowered.source);
            }
            let module = Module::build(&lowered);
            Ok(Box::new(move |call| {
                let inputs: Vec<Vec<u8>> =
                    call.inputs.iter().map(|tensor| tensor.bytes.to_vec()).collect();
                let shapes: Vec<&[usize]> =
                    call.inputs.iter().map(|tensor| tensor.shape.as_slice()).collect();
                let found = module.run_shaped(&inputs, &shapes).into_iter();
                let outputs = found.zip(&program.outputs).zip(&call.outputs);
                let tensors = outputs.map(|((bytes, value), expected)| {
                    Tensor::dense(program.value(*value).dtype, &expected.shape, bytes)
                });
                Ok(tensors.collect())
            }))
        })
    });
}
