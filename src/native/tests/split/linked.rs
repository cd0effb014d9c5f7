//! One call of a stitched whole, launched in one go on one memory.

use super::{Stitched, build, finest, model, stitched};
use crate::{
    decompose::decompose,
    eager::Eager,
    fixtures::load,
    interp::{Settings as Run, Tensor},
    lower_parsed,
    plan::{Base, CallError, Expr, Memory, Plan, Value},
    split::{
        Settings,
        stitch::{Broken, Linked},
    },
    tests::{
        EMULATED,
        emulator::{Module, launch_all},
    },
};

/// A stitched whole whose pieces are compiled, and their modules.
struct Compiled {
    linked: Linked,
    modules: Vec<Module>,
}

fn plans(done: &Stitched) -> Vec<crate::Lowered> {
    let lower =
        |piece| lower_parsed(done.split.graph(piece), &Default::default(), EMULATED).unwrap();
    done.split.pieces.iter().map(lower).collect()
}

fn compiled(done: &Stitched) -> Compiled {
    let lowered = plans(done);
    let modules = lowered.iter().map(Module::build).collect();
    let plans = lowered.into_iter().map(|lowered| lowered.plan).collect();
    Compiled { linked: Linked::new(done.stitching.clone(), plans).unwrap(), modules }
}

impl Compiled {
    /// The bytes of all outputs.
    fn run(&self, inputs: &[Tensor<'_>]) -> Vec<Vec<u8>> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|t| t.shape.as_slice()).collect();
        let whole = self.linked.call(&shapes).unwrap();
        let bytes: Vec<Vec<u8>> = inputs.iter().map(|tensor| tensor.bytes.to_vec()).collect();
        let of = |mut kernel: usize| {
            for (module, plan) in self.modules.iter().zip(self.linked.plans()) {
                match kernel.checked_sub(plan.kernels.len()) {
                    Some(rest) => kernel = rest,
                    None => return (module, kernel),
                }
            }
            panic!("kernel {kernel} is of no piece");
        };
        let (mut outputs, _) = launch_all(&whole.call, &bytes, of);
        for copy in &whole.copies {
            outputs[copy.output] = match copy.from {
                Base::Output(from) => outputs[from].clone(),
                Base::Input(from) => inputs[from].to_dense().unwrap().bytes.into_owned(),
                Base::Workspace => panic!("a copy of what is gone"),
            };
        }
        outputs
    }
}

#[test]
fn kernels_of_all_pieces_in_one_call_give_what_the_interpreter_gives() {
    let name = "qwen3_masked_f32_dynamic_core.new";
    let fixture = load("models").into_iter().find(|f| f.name.starts_with(name)).unwrap();
    let graph = model(name);
    let done = stitched(&graph, &Settings::default()).unwrap();
    let compiled = compiled(&done);
    assert!(done.stitching.calls.len() > done.stitching.pieces.len(), "a piece comes twice");
    let whole = Eager::new(&graph).unwrap();
    for call in fixture.calls(&graph, &decompose(&graph).unwrap()).unwrap() {
        let expected = whole.run(&call.inputs, &Run::default()).unwrap();
        for (found, expected) in compiled.run(&call.inputs).into_iter().zip(&expected) {
            let found = Tensor::dense(expected.dtype, &expected.shape, found).to_f64().unwrap();
            let expected = expected.to_f64().unwrap();
            let size = expected.iter().filter(|x| !x.is_nan()).map(|x| x * x).sum::<f64>().sqrt();
            let off = |(a, b): (&f64, &f64)| match (a.is_nan(), b.is_nan()) {
                (true, true) => 0.0,
                (false, false) => (a - b) * (a - b),
                _ => f64::INFINITY,
            };
            let error = found.iter().zip(&expected).map(off).sum::<f64>().sqrt();
            assert!(error <= 1e-5 * size, "{}: {error:e} of {size:e}", call.name);
        }
    }
}

#[test]
fn a_chain_in_place_with_a_copy_is_what_the_interpreter_gives() {
    let settings = Settings { layers: false, at: Vec::new(), ..finest() };
    let mut graph = build::chain("64", 4);
    graph.outputs.extend([graph.outputs[0], graph.inputs[0].value]);
    let done = stitched(&graph, &settings).unwrap();
    assert!(done.stitching.calls.iter().any(|call| call.in_place.is_some()));
    let numbers: Vec<u8> = (0..64u8).flat_map(|n| (f32::from(n) / 64.0).to_le_bytes()).collect();
    let inputs = [Tensor::dense(kiln_proto::graph::DType::F32, &[64], numbers)];
    let expected = Eager::new(&graph).unwrap().run(&inputs, &Run::default()).unwrap();
    let found = compiled(&done).run(&inputs);
    let expected: Vec<Vec<u8>> = expected.into_iter().map(|t| t.bytes.into_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn pieces_share_one_scratch_behind_what_they_leave_each_other() {
    let graph = model("qwen3_lm_f32_dynamic_core.new");
    let done = stitched(&graph, &Settings::default()).unwrap();
    let lowered = plans(&done);
    let plans: Vec<Plan> = lowered.into_iter().map(|lowered| lowered.plan).collect();
    let linked = Linked::new(done.stitching.clone(), plans).unwrap();
    let fixture = load("models").into_iter().find(|f| f.name.starts_with("qwen3_lm_f32_dyn"));
    let calls = fixture.unwrap().calls(&graph, &decompose(&graph).unwrap()).unwrap();
    let shapes: Vec<&[usize]> = calls[0].inputs.iter().map(|t| t.shape.as_slice()).collect();
    let whole = linked.call(&shapes).unwrap();
    let left = done.stitching.laid_out(&shapes).unwrap().workspace_bytes;
    assert!(whole.call.workspace_bytes > left, "a piece has memory of its own");
    let alone: u64 = (whole.call.workspace_bytes - left) * done.stitching.calls.len() as u64;
    assert!(whole.call.workspace_bytes < alone, "it is used again");
    for launch in &whole.call.launches {
        for value in &launch.values {
            if let Value::Pointer(Base::Workspace, offset) = value {
                assert!(*offset <= whole.call.workspace_bytes);
            }
        }
    }
    assert!(whole.of.is_sorted() && whole.of.last() == Some(&(done.stitching.calls.len() - 1)));
}

#[test]
fn pieces_that_do_not_fit_are_refused_and_named() {
    let settings = Settings { layers: false, at: Vec::new(), ..finest() };
    let done = stitched(&build::chain("64", 4), &settings).unwrap();
    let good: Vec<Plan> = plans(&done).into_iter().map(|lowered| lowered.plan).collect();
    let linked = |plans: &[Plan]| Linked::new(done.stitching.clone(), plans.to_vec());
    linked(&good).unwrap();
    let count = good.len();
    let missing = linked(&good[1..]).unwrap_err();
    assert_eq!(missing, Broken::Pieces { count: count - 1, wanted: count });
    type Break = (&'static str, fn(&mut Plan), &'static str);
    let breaks: [Break; 8] = [
        ("an input more", |p| p.inputs.push(p.inputs[0].clone()), "2 inputs, not 1"),
        ("an output more", |p| p.outputs.push(p.outputs[0].clone()), "2 outputs, not 1"),
        (
            "another type",
            |p| p.inputs[0].dtype = kiln_proto::graph::DType::F16,
            "its input 0, user f16 [64]",
        ),
        ("another size", |p| p.outputs[0].shape = vec![Expr::Known(65)], "its output 0"),
        ("another rank", |p| p.inputs[0].shape.push(Expr::Known(1)), "its input 0"),
        ("a constant", |p| p.inputs[0].kind = "constant".to_owned(), "cannot be launched"),
        ("another target", |p| p.target = "sm_75".to_owned(), "it is for sm_75, piece 0 for sm_80"),
        (
            "a kernel outside of all memory",
            |p| p.kernels[0].args[0] = crate::plan::Arg::Memory(Memory::Input(7)),
            "cannot be launched",
        ),
    ];
    for (what, break_it, why) in breaks {
        let mut plans = good.clone();
        break_it(&mut plans[1]);
        let refused = linked(&plans).unwrap_err();
        assert!(matches!(refused, Broken::Unfit { piece: 1, .. }), "{what}: {refused}");
        assert!(refused.to_string().contains(why), "{what}: {refused}");
    }
}

#[test]
fn what_shows_only_with_sizes_is_refused_at_the_call() {
    let settings = Settings { layers: false, at: Vec::new(), ..finest() };
    let done = stitched(&build::chain("64", 4), &settings).unwrap();
    let good: Vec<Plan> = plans(&done).into_iter().map(|lowered| lowered.plan).collect();
    let called = |break_it: fn(&mut Plan)| {
        let mut plans = good.clone();
        break_it(&mut plans[1]);
        let linked = Linked::new(done.stitching.clone(), plans).unwrap();
        linked.call(&[&[64]]).unwrap_err()
    };
    type Break = (fn(&mut Plan), &'static str);
    let breaks: [Break; 4] = [
        (|p| p.inputs[0].strides = vec![Expr::Known(2)], "its input 0 has strides [1], not [2]"),
        (|p| p.outputs[0].strides = vec![Expr::Known(3)], "its output 0 is"),
        (|p| p.workspace_bytes = Expr::Known(-1), "the workspace has no size"),
        (|p| p.kernels[0].grid[0] = Expr::Known(i64::MAX), "blocks, at most"),
    ];
    let at = done.stitching.calls.iter().position(|call| call.piece == 1).unwrap();
    for (break_it, why) in breaks {
        let refused = called(break_it).to_string();
        let place = format!("piece 1, call {at}: ");
        assert!(refused.contains(&place) && refused.contains(why), "{refused}");
    }
    let linked = Linked::new(done.stitching.clone(), good.clone()).unwrap();
    let refused = linked.call(&[&[65]]).unwrap_err();
    assert!(matches!(refused, CallError::Inputs(_)), "{refused}");
}
