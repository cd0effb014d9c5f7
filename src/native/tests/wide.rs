//! What no fixture has: sizes that are nothing at run time, counts, and types that are refused.

use kiln_proto::{
    FailureKind, Target,
    graph::{Argument, DType, Dim, Graph, Symbol, ValueId},
};

use super::{build::Program, emulator::Module};
use crate::{
    Options,
    decompose::decompose,
    interp::{self, Settings, Tensor},
    lower_graph,
    plan::{PLAIN, VERSION},
};

fn tensor(value: ValueId) -> Argument {
    Argument::Tensor(value)
}

/// What the interpreter gives, once the emulated kernels gave the same, bit for bit.
fn run(graph: &Graph, inputs: &[Tensor<'static>]) -> Result<Vec<Tensor<'static>>, String> {
    let program = decompose(graph).map_err(|e| e.message)?;
    let expected = interp::run(&program, inputs, &Settings::default()).map_err(|e| e.message)?;
    let options = Options { fuse: true, fast_math: false, parallel: true };
    let lowered = lower_graph(graph, String::new(), options, Target::cubin(80));
    let module = Module::build(&lowered.map_err(|e| e.message)?);
    let bytes: Vec<Vec<u8>> = inputs.iter().map(|x| x.bytes.to_vec()).collect();
    let shapes: Vec<&[usize]> = inputs.iter().map(|x| x.shape.as_slice()).collect();
    let found = module.run_shaped(&bytes, &shapes);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(&expected) {
        let found = Tensor::dense(expected.dtype, &expected.shape, found);
        assert_eq!(numbers(&found), numbers(expected));
    }
    Ok(expected)
}

/// As text, in which NaN is NaN.
fn numbers(tensor: &Tensor<'_>) -> String {
    format!("{:?}", tensor.to_f64().unwrap())
}

fn floats(shape: &[usize], numbers: &[f32]) -> Tensor<'static> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::dense(DType::F32, shape, bytes)
}

fn ints(numbers: &[i64]) -> Tensor<'static> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::dense(DType::I64, &[numbers.len()], bytes)
}

fn refusal(program: &Program) -> String {
    let failure = decompose(&program.graph).unwrap_err();
    assert_eq!(failure.kind, FailureKind::UnsupportedOp);
    failure.message
}

/// `op` over the last dimension of `x`, `[2, s0]`, where s0 may be nothing.
fn over_any_size(op: &str, more: &[(&str, Argument)], keeps: bool) -> Program {
    let mut program = Program::default();
    let x = program.input(DType::F32, &[2, 3], &[3, 1]);
    let args = [&[("self", tensor(x))], more].concat();
    let shape: &[usize] = if keeps { &[2, 3] } else { &[2] };
    let out = program.node(op, &args, DType::F32, shape);
    let open = || Dim::Symbolic("s0".to_owned());
    for value in [Some(x), keeps.then_some(out)].into_iter().flatten() {
        let ty = &mut program.graph.values[value.0].ty;
        (ty.shape[1], ty.strides[0]) = (open(), open());
    }
    program.graph.symbols = vec![Symbol { name: "s0".to_owned(), min: Some(0), max: Some(64) }];
    program.graph.outputs.push(out);
    program
}

#[test]
fn a_softmax_of_nothing_is_nothing_and_its_sum_is_none() {
    let dim = [("dim", Argument::Int(-1))];
    let dims = [("dim", Argument::Ints(vec![-1]))];
    for op in ["aten.softmax.int", "aten.log_softmax.int"] {
        let program = over_any_size(op, &dim, true);
        let found = run(&program.graph, &[floats(&[2, 0], &[])]).unwrap();
        assert_eq!((&found[0].shape[..], found[0].bytes.len()), (&[2, 0][..], 0), "{op}");
    }
    let some =
        run(&over_any_size("aten.softmax.int", &dim, true).graph, &[floats(&[2, 1], &[7., 8.])]);
    assert_eq!(numbers(&some.unwrap()[0]), "[1.0, 1.0]");
    let program = over_any_size("aten.logsumexp.default", &dims, false);
    let found = run(&program.graph, &[floats(&[2, 0], &[])]).unwrap();
    assert_eq!(numbers(&found[0]), "[-inf, -inf]");
    let program = over_any_size("aten.mean.dim", &dims, false);
    let found = run(&program.graph, &[floats(&[2, 0], &[])]).unwrap();
    assert_eq!(numbers(&found[0]), "[NaN, NaN]");
}

/// PyTorch refuses such a call when it is made; here the range of the size says it.
#[test]
fn the_greatest_of_nothing_is_refused_by_the_call() {
    let dims = [("dim", Argument::Ints(vec![1]))];
    for op in ["aten.amax.default", "aten.amin.default"] {
        let program = over_any_size(op, &dims, false);
        let found = run(&program.graph, &[floats(&[2, 2], &[1., 1., 2., 2.])]).unwrap();
        assert_eq!(numbers(&found[0]), "[1.0, 2.0]");
        let why = run(&program.graph, &[floats(&[2, 0], &[])]).unwrap_err();
        assert!(why.contains("makes s0 0: it must be at least 1"), "{why}");
    }
}

fn counting(weights: Option<DType>) -> Program {
    let mut program = Program::default();
    let x = program.input(DType::I64, &[6], &[1]);
    let mut args = vec![("self", tensor(x)), ("minlength", Argument::Int(3))];
    let weights = weights.map(|dtype| program.input(dtype, &[6], &[1]));
    args.extend(weights.map(|weights| ("weights", tensor(weights))));
    let dtype = if weights.is_some() { DType::F32 } else { DType::I64 };
    let out = program.node("aten.bincount.default", &args, dtype, &[5]);
    program.graph.outputs.push(out);
    program
}

#[test]
fn numbers_are_counted_where_their_counts_have_a_size() {
    let x = ints(&[1, 4, 1, 0, 4, 1]);
    let found = run(&counting(None).graph, std::slice::from_ref(&x)).unwrap();
    assert_eq!(
        (found[0].dtype, numbers(&found[0])),
        (DType::I64, "[1.0, 3.0, 0.0, 0.0, 2.0]".into())
    );
    let weights = floats(&[6], &[0.5, 1.0, f32::INFINITY, -2.0, 0.25, 1.0]);
    let found = run(&counting(Some(DType::F32)).graph, &[x, weights]).unwrap();
    assert_eq!(numbers(&found[0]), "[-2.0, inf, 0.0, 0.0, 1.25]");
    // Where the greatest number decides how many counts there are.
    let mut open = counting(None);
    let out = open.graph.outputs[0];
    open.graph.values[out.0].ty.shape = vec![Dim::Symbolic("u0".to_owned())];
    let why = refusal(&open);
    assert!(why.contains("bincount") && why.contains("fix the result's size"), "{why}");
}

#[test]
fn there_is_no_arithmetic_in_8_bits() {
    for (op, dtype) in [("aten.add.Tensor", DType::F8E4M3), ("aten.mul.Tensor", DType::F8E5M2)] {
        let mut program = Program::default();
        let x = program.input(dtype, &[4], &[1]);
        let out = program.node(op, &[("self", tensor(x)), ("other", tensor(x))], dtype, &[4]);
        program.graph.outputs.push(out);
        let why = refusal(&program);
        assert!(why.contains(&format!("no arithmetic in {dtype}")) && why.contains(op), "{why}");
    }
    // Those without NaN of both signs are other types.
    let mut program = Program::default();
    let x = program.input(DType::F8E4M3Fnuz, &[4], &[1]);
    program.graph.outputs.push(x);
    assert!(refusal(&program).contains("f8e4m3fnuz"));
}

/// Two matrices of 8 bits with these scales and result.
fn scaled(scales: [&[usize]; 2], dtype: DType) -> Program {
    let mut program = Program::default();
    let a = program.input(DType::F8E4M3, &[2, 16], &[16, 1]);
    let b = program.input(DType::F8E4M3, &[16, 3], &[1, 16]);
    let mut args = vec![("self", tensor(a)), ("mat2", tensor(b))];
    for (name, shape) in ["scale_a", "scale_b"].into_iter().zip(scales) {
        let strides = super::build::row_major(shape);
        args.push((name, tensor(program.input(DType::F32, shape, &strides))));
    }
    let out = program.node("aten._scaled_mm.default", &args, dtype, &[2, 3]);
    program.graph.outputs.push(out);
    program
}

#[test]
fn scales_are_for_all_or_for_each_row() {
    let eights = |shape: &[usize], strides: &[usize], bits: u8| Tensor {
        dtype: DType::F8E4M3,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
        bytes: vec![bits; shape.iter().product()].into(),
    };
    // 16 products of 1.5 and 2.
    let both = || vec![eights(&[2, 16], &[16, 1], 0x3c), eights(&[16, 3], &[1, 16], 0x40)];
    let mut inputs = both();
    inputs.extend([floats(&[2, 1], &[1.0, 0.5]), floats(&[1, 3], &[1.0, 2.0, 10.0])]);
    let found = run(&scaled([&[2, 1], &[1, 3]], DType::F32).graph, &inputs).unwrap();
    assert_eq!(numbers(&found[0]), "[48.0, 96.0, 480.0, 24.0, 48.0, 240.0]");
    let mut inputs = both();
    inputs.extend([floats(&[], &[0.5]), floats(&[1], &[0.25])]);
    let found = run(&scaled([&[], &[1]], DType::BF16).graph, &inputs).unwrap();
    assert_eq!(numbers(&found[0]), "[6.0, 6.0, 6.0, 6.0, 6.0, 6.0]");
    for (program, word) in [
        (scaled([&[2, 1], &[1, 2]], DType::F32), "scales [1, 2] of a product [2, 3]"),
        (scaled([&[], &[]], DType::F8E4M3), "it is depends on the device"),
    ] {
        let why = refusal(&program);
        assert!(why.contains(word), "{why}");
    }
}

/// Many rows by weights along what is summed: Hopper multiplies the 8 bits, others halves.
#[test]
fn eights_are_widened_where_a_target_does_not_multiply_them() {
    let kernels = |shapes: [(usize, [usize; 2]); 2], target: Target| {
        let [(rows, along_a), (columns, along_b)] = shapes;
        let mut program = Program::default();
        let a = program.input(DType::F8E4M3, &[rows, 64], &along_a);
        let b = program.input(DType::F8E4M3, &[64, columns], &along_b);
        let scale = program.input(DType::F32, &[], &[]);
        let args = [
            ("self", tensor(a)),
            ("mat2", tensor(b)),
            ("scale_a", tensor(scale)),
            ("scale_b", tensor(scale)),
        ];
        let out = program.node("aten._scaled_mm.default", &args, DType::BF16, &[rows, columns]);
        program.graph.outputs.push(out);
        let options = Options { fuse: true, fast_math: false, parallel: true };
        let plan = lower_graph(&program.graph, String::new(), options, target).unwrap().plan;
        // Earlier programs make no tensor map of them.
        let version = if plan.kernels.len() == 1 { VERSION } else { PLAIN };
        assert_eq!(plan.version, version);
        plan.kernels.into_iter().map(|kernel| kernel.kind).collect::<Vec<_>>()
    };
    let (rows, columns) = ((32, [64, 1]), (48, [1, 64]));
    assert_eq!(kernels([rows, columns], Target::cubin(90)), ["product"]);
    assert_eq!(kernels([rows, columns], Target::cubin(80)).last().unwrap(), "product");
    assert!(kernels([rows, columns], Target::cubin(80)).len() > 1);
    // Columns that lie across, and rows that begin where no tensor map begins.
    assert!(kernels([rows, (48, [48, 1])], Target::cubin(90)).len() > 1);
    assert!(kernels([(32, [72, 1]), columns], Target::cubin(90)).len() > 1);
}

/// Attention whose softmax is in 64 bits: the kernel for attention has 32.
#[test]
fn a_softmax_in_64_bits_is_no_attention_in_32() {
    let mut program = Program::default();
    let four = [1, 2, 5, 8];
    let strides = super::build::row_major(&four);
    let [q, k, v] = [0, 1, 2].map(|_| program.input(DType::F32, &four, &strides));
    let turn = [("self", tensor(k)), ("dim0", Argument::Int(2)), ("dim1", Argument::Int(3))];
    let turned = program.node("aten.transpose.int", &turn, DType::F32, &[1, 2, 8, 5]);
    let both = [("self", tensor(q)), ("other", tensor(turned))];
    let scores = program.node("aten.matmul.default", &both, DType::F32, &[1, 2, 5, 5]);
    let kernels = |dtype: DType| {
        let mut program = Program { graph: program.graph.clone() };
        let args = [
            ("self", tensor(scores)),
            ("dim", Argument::Int(-1)),
            ("dtype", Argument::DType(dtype)),
        ];
        let soft = program.node("aten.softmax.int", &args, dtype, &[1, 2, 5, 5]);
        let args = [("self", tensor(soft)), ("dtype", Argument::DType(DType::F32))];
        let soft = program.node("aten.to.dtype", &args, DType::F32, &[1, 2, 5, 5]);
        let args = [("self", tensor(soft)), ("other", tensor(v))];
        let out = program.node("aten.matmul.default", &args, DType::F32, &four);
        program.graph.outputs.push(out);
        let kernels = program.compile().plan.kernels;
        kernels.into_iter().map(|kernel| kernel.kind).collect::<Vec<_>>()
    };
    assert_eq!(kernels(DType::F32), ["attention"]);
    let wide = kernels(DType::F64);
    assert!(!wide.contains(&"attention".to_owned()), "{wide:?}");
}
