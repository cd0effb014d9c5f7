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
            let found = run(&call)?;
            if found.len() != call.outputs.len() {
                lines.push(format!("{} outputs of {}", found.len(), call.outputs.len()));
            }
            for (expected, got) in call.outputs.iter().zip(found) {
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

fn check(fixtures: &[Fixture], wrong: impl Fn(&Fixture) -> Vec<String>) {
    let lines: Vec<String> = fixtures.iter().flat_map(wrong).collect();
    assert!(lines.is_empty(), "{} wrong:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn every_operation_is_pytorchs() {
    let fixtures = load("ops");
    assert!(fixtures.len() > 40);
    check(&fixtures, |fixture| {
        wrong(fixture, |_, program| {
            Ok(Box::new(move |call| {
                run(&program, &call.inputs, &Settings::default()).map_err(|e| e.to_string())
            }))
        })
    });
}

/// The archive `name`, compiled and run by the emulator.
fn kernels(name: &str) {
    let mut fixtures = load("ops");
    fixtures.retain(|fixture| fixture.name == format!("{name}.pt2"));
    assert_eq!(fixtures.len(), 1);
    check(&fixtures, |fixture| {
        wrong(fixture, |graph, program| {
            let options = Options { fuse: true, fast_math: false, parallel: true };
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

/// Families whose kernels the emulator runs; on a GPU all of them are run.
mod in_the_emulator {
    macro_rules! families {
        ($($name:ident)*) => {
            $(
                #[test]
                fn $name() {
                    super::kernels(stringify!($name));
                }
            )*
        };
    }

    families! {
        unary_f32 unary_f64 activation_f32 activation_f64 binary_f32 binary_f64 binary_i64 mixed views_f32 reduction_f32 reduction_f64
        reduction_i64 softmax_f32 softmax_f64 product_f32 product_f64 attention_f32 attention_f64 index_f32 index_f64
        creation_f32 creation_f64 in_place_f64 left_f64 scatter_f64
        normed_f32 normed_f32_core normed_f64 normed_bf16
        normed_bf16_core eights_f32 eights_f32_core pooling_f64 resize_f64 transposed_f64 placed_f64
        dynamic_f32 dynamic_bf16 attention_f32_core attention_bf16_core dynamic_f32_core
        in_place_f32 in_place_bf16 left_f32 left_i64 left_bf16_core scatter_f32 scatter_i64
        pooling_f32 resize_f32 transposed_f32 experts_f32 pairs_f32 placed_f32 narrow_i8 narrow_u8 narrow_i16
        copies_f32 extremes_f32 extremes_i32 extremes_i16 extremes_i8 extremes_u8 borders_f32
        written_f32 written_bf16_core lengths_f32
    }
}
