//! What is left in inputs: where the plan writes it, and which version says so.

use kiln_proto::{
    Target,
    graph::{Argument, DType, ValueId},
};

use super::{
    super::lower,
    build::{Program, bytes, floats},
    emulator::Module,
    fixture, options,
};
use crate::plan::{Arg, Kernel, Memory, PLAIN, Plan, VERSION};

fn plan(name: &str) -> Plan {
    lower(&fixture(name), &options(&[]), Target::cubin(90)).unwrap().plan
}

fn touches(kernel: &Kernel, input: usize) -> bool {
    kernel.args.iter().any(|arg| matches!(arg, Arg::Memory(Memory::Input(at)) if *at == input))
}

#[test]
fn raw_and_decomposed_programs_leave_the_same_in_the_same_inputs() {
    for (name, updated) in [("counting", vec![0, 1, 3]), ("decoding", vec![4, 5])] {
        for form in ["", "_core"] {
            let plan = plan(&format!("state/{name}{form}.pt2"));
            let inputs = plan.inputs.iter().enumerate();
            let found: Vec<usize> = inputs.filter(|(_, i)| i.updated).map(|(at, _)| at).collect();
            assert_eq!(found, updated, "{name}{form}");
            // No output is handed out for what is left in an input.
            assert_eq!(plan.outputs.len(), 1, "{name}{form}");
            assert_eq!(plan.version, VERSION);
            for input in updated.iter().copied() {
                assert!(plan.kernels.iter().any(|kernel| touches(kernel, input)), "{name} {input}");
            }
        }
    }
}

/// Programs of before have a plan that nodes and clients of before read.
#[test]
fn a_plan_that_changes_no_input_is_one_of_the_version_before() {
    let plan = plan("block_f32.new.pt2");
    assert_eq!(plan.version, PLAIN);
    assert!(plan.inputs.iter().all(|input| !input.updated));
    assert!(!serde_json::to_string(&plan).unwrap().contains("updated"));
}

/// A cache of keys is read where the step before left it, not from a copy beside it.
#[test]
fn a_cache_is_written_where_it_lies() {
    let plan = plan("state/decoding.pt2");
    let cache = plan.inputs[4].shape.iter().map(|size| size.known().unwrap()).product::<i64>() * 4;
    let workspace = plan.workspace_bytes.known().unwrap();
    assert!(workspace < cache, "{workspace} bytes of workspace beside a cache of {cache}");
}

fn tensor(value: ValueId) -> Argument {
    Argument::Tensor(value)
}

fn run(program: &Program, inputs: &[&[f32]]) -> Vec<Vec<f64>> {
    let inputs: Vec<Vec<u8>> = inputs.iter().map(|input| bytes(input, DType::F32)).collect();
    let outputs = Module::build(&program.compile()).run(&inputs);
    outputs.iter().map(|output| floats(DType::F32, output)).collect()
}

/// A load under a guard is another one than that before the write.
#[test]
fn what_a_kernel_writes_is_not_read_under_a_guard_as_if_it_were_old() {
    let mut program = Program::default();
    let (x, y) = (program.input(DType::F32, &[8], &[1]), program.input(DType::F32, &[8], &[1]));
    let z = program.input(DType::F32, &[2], &[1]);
    let both = |a, b| [("self", tensor(a)), ("other", tensor(b))];
    let new = program.node("aten.add.Tensor", &both(x, y), DType::F32, &[8]);
    let place = [
        ("self", tensor(x)),
        ("src", tensor(z)),
        ("start", Argument::Int(2)),
        ("end", Argument::Int(4)),
    ];
    let old = program.node("aten.slice_scatter.default", &place, DType::F32, &[8]);
    let old = program.node("aten.mul.Tensor", &both(old, y), DType::F32, &[8]);
    let sum = program.node("aten.add.Tensor", &both(old, new), DType::F32, &[8]);
    program.graph.outputs.extend([sum, old, new]);
    program.graph.updates.push(0);
    let (x, y, z) = ([1., 2., 3., 4., 5., 6., 7., 8.], [2f32; 8], [10., 20.]);
    let found = run(&program, &[&x, &y, &z]);
    assert_eq!(found[1], [2., 4., 20., 40., 10., 12., 14., 16.]);
    assert_eq!(found[0], [5., 8., 25., 46., 17., 20., 23., 26.]);
    assert_eq!(found[2], [3., 4., 5., 6., 7., 8., 9., 10.]);
}

#[test]
fn two_updates_whose_old_values_are_read_beside_the_new_ones_do_not_wait_for_each_other() {
    let mut program = Program::default();
    let (a, b) =
        (program.input(DType::F32, &[2, 2], &[2, 1]), program.input(DType::F32, &[2, 2], &[2, 1]));
    let mut twice = |of| {
        let args = [("self", tensor(of)), ("other", Argument::Int(2))];
        program.node("aten.mul.Tensor", &args, DType::F32, &[2, 2])
    };
    let (more_a, more_b) = (twice(a), twice(b));
    let mut product = |x, y| {
        let args = [("self", tensor(x)), ("mat2", tensor(y))];
        program.node("aten.mm.default", &args, DType::F32, &[2, 2])
    };
    let (first, second) = (product(more_a, b), product(more_b, a));
    program.graph.outputs.extend([first, second, more_a, more_b]);
    program.graph.updates.extend([0, 1]);
    let found = run(&program, &[&[1., 2., 3., 4.], &[5., 6., 7., 8.]]);
    assert_eq!(found[0], [38., 44., 86., 100.]);
    assert_eq!(found[1], [46., 68., 62., 92.]);
    assert_eq!(found[2..], [[2., 4., 6., 8.], [10., 12., 14., 16.]]);
}

/// Which rows are replaced, a mask says; what becomes of the others is not always what they were.
#[test]
fn what_is_rounded_is_changed_where_nothing_is_written_too() {
    let mut program = Program::default();
    let input =
        |program: &mut Program, shape: &[usize]| program.input(DType::F32, shape, &[shape[1], 1]);
    let old = input(&mut program, &[16, 8]);
    let (new, mask) = (input(&mut program, &[16, 8]), input(&mut program, &[16, 1]));
    let args = [("self", tensor(mask)), ("other", Argument::Int(0))];
    let cond = program.node("aten.gt.Scalar", &args, DType::Bool, &[16, 1]);
    let args = [("condition", tensor(cond)), ("self", tensor(new)), ("other", tensor(old))];
    let chosen = program.node("aten.where.self", &args, DType::F32, &[16, 8]);
    let mut cast = |of, dtype| {
        let args = [("self", tensor(of)), ("dtype", Argument::DType(dtype))];
        program.node("aten._to_copy.default", &args, dtype, &[16, 8])
    };
    let narrow = cast(chosen, DType::BF16);
    let wide = cast(narrow, DType::F32);
    program.graph.outputs.push(wide);
    program.graph.updates.push(0);
    let mask: Vec<f32> = (0..16).map(|row| if row % 3 == 0 { 1.0 } else { -1.0 }).collect();
    let found = run(&program, &[&[1.001; 128], &[2.003; 128], &mask]);
    for (at, found) in found[0].iter().enumerate() {
        assert_eq!(*found, if at / 8 % 3 == 0 { 2.0 } else { 1.0 }, "{at}");
    }
}
