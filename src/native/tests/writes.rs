//! Programs that write in place, built by hand: what no exporter gives, and what is too much.

use kiln_proto::{
    Failure, FailureKind, Target,
    graph::{Argument, DType, Dim, Graph, ValueId},
};

use super::{build::Program, emulator::Module, options};
use crate::{
    decompose::decompose,
    eager::Eager,
    functional::functional,
    interp::{Settings, Tensor, run},
    lower_parsed,
};

fn tensor(value: ValueId) -> (&'static str, Argument) {
    ("self", Argument::Tensor(value))
}

fn number(name: &'static str, number: i64) -> (&'static str, Argument) {
    (name, Argument::Int(number))
}

fn failure(graph: Graph) -> Failure {
    let graph = match functional(graph, Vec::new()) {
        Ok(graph) => graph,
        Err(failure) => return failure,
    };
    lower_parsed(&graph, &options(&[]), Target::cubin(90)).map(|_| ()).unwrap_err()
}

/// What the interpreter and the kernels give, where both agree.
fn outputs(graph: Graph, inputs: &[Tensor<'static>]) -> Vec<Vec<f64>> {
    let graph = functional(graph, Vec::new()).unwrap();
    let expected = run(&decompose(&graph).unwrap(), inputs, &Settings::default()).unwrap();
    let lowered = lower_parsed(&graph, &options(&[]), super::EMULATED).unwrap();
    let bytes: Vec<Vec<u8>> = inputs.iter().map(|input| input.bytes.to_vec()).collect();
    let found = Module::build(&lowered).run(&bytes);
    let numbers = |tensor: &Tensor<'_>| tensor.to_f64().unwrap();
    for (bytes, expected) in found.into_iter().zip(&expected) {
        let found = Tensor::dense(expected.dtype, &expected.shape, bytes);
        assert_eq!(numbers(&found), numbers(expected));
    }
    expected.iter().map(numbers).collect()
}

fn floats(shape: &[usize], numbers: &[f32]) -> Tensor<'static> {
    Tensor::dense(
        DType::F32,
        shape,
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(),
    )
}

fn wholes(numbers: &[i64]) -> Tensor<'static> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::dense(DType::I64, &[numbers.len()], bytes)
}

/// Archives come from outside: a chain of views of any depth takes no stack, and is followed.
#[test]
fn a_write_through_a_chain_of_views_of_any_depth_is_read_back() {
    let mut program = Program::default();
    let x = program.input(DType::F32, &[2], &[1]);
    let mut view = x;
    let mut views = vec![x];
    for _ in 0..20_000 {
        view = program.node("aten.alias.default", &[tensor(view)], DType::F32, &[2]);
        views.push(view);
    }
    program.node("aten.add_.Tensor", &[tensor(x), number("other", 1)], DType::F32, &[2]);
    let last = program.node("aten.relu.default", &[tensor(view)], DType::F32, &[2]);
    program.graph.outputs.push(last);
    let graph = program.graph;
    // Compiles are run on threads of two megabytes.
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let found = small.spawn(move || {
        let graph = functional(graph, Vec::new()).unwrap();
        let program = decompose(&graph).unwrap();
        let found = run(&program, &[floats(&[2], &[-3.0, 4.0])], &Settings::default()).unwrap();
        found.iter().map(|tensor| tensor.to_f64().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(found.unwrap().join().unwrap(), [[0.0, 5.0], [-2.0, 5.0]]);
}

/// Each read of one part takes all parts again: what comes to too much is refused, not made.
#[test]
fn views_that_come_to_too_much_are_refused() {
    const PARTS: usize = 20_000;
    let mut program = Program::default();
    let x = program.input(DType::F32, &[PARTS], &[1]);
    let split = [tensor(x), number("split_size", 1)];
    let first = program.node("aten.split.Tensor", &split, DType::F32, &[1]);
    let node = program.graph.nodes.len() - 1;
    for _ in 1..PARTS {
        let more = program.graph.value(first).clone();
        program.graph.values.push(more);
        let more = ValueId(program.graph.values.len() - 1);
        program.graph.nodes[node].outputs.push(more);
    }
    for _ in 0..PARTS {
        program.node("aten.add_.Tensor", &[tensor(x), number("other", 1)], DType::F32, &[PARTS]);
        let read = program.node("aten.relu.default", &[tensor(first)], DType::F32, &[1]);
        program.graph.outputs.push(read);
    }
    let failure = failure(program.graph);
    assert_eq!(failure.kind, FailureKind::InvalidInput, "{failure}");
    assert!(failure.message.contains("too many others through views"), "{failure}");
}

/// Kernels would write beyond the input: in a process of PyTorch's, over whatever lies there.
#[test]
fn what_is_left_in_an_input_has_its_type_and_its_shape() {
    let with = |dtype: DType, shape: &[usize]| {
        let mut program = Program::default();
        program.input(DType::F32, &[10], &[1]);
        let other = program.input(dtype, shape, &super::build::row_major(shape));
        let value = program.node("aten.neg.default", &[tensor(other)], dtype, shape);
        program.graph.outputs.push(value);
        program.graph.updates.push(0);
        program.graph
    };
    lower_parsed(&with(DType::F32, &[10]), &options(&[]), Target::cubin(90)).unwrap();
    Eager::new(&with(DType::F32, &[10])).unwrap();
    for (dtype, shape) in [(DType::F32, &[1000][..]), (DType::F32, &[2, 5]), (DType::I64, &[10])] {
        let graph = with(dtype, shape);
        let native = lower_parsed(&graph, &options(&[]), Target::cubin(90)).map(|_| ());
        let eager = Eager::new(&graph).and_then(|eager| eager.files()).map(|_| ());
        for failure in [native.unwrap_err(), eager.unwrap_err()] {
            assert_eq!(failure.kind, FailureKind::InvalidInput, "{shape:?}: {failure}");
        }
        // And as the exporter says it.
        let mut graph = with(dtype, shape);
        graph.updates.clear();
        let value = graph.outputs.pop().unwrap();
        let failure = functional(graph, vec![(0, value)]).unwrap_err();
        assert!(
            failure.message.contains("left in it") || failure.message.contains("left in input")
        );
    }
}

/// The row after, or the one before, is somebody else's: a cache's next sequence.
#[test]
fn a_position_out_of_range_beside_one_within_is_written_nowhere() {
    let mut program = Program::default();
    let x = program.input(DType::F32, &[3, 4], &[4, 1]);
    let rows = program.input(DType::I64, &[6], &[1]);
    let columns = program.input(DType::I64, &[6], &[1]);
    let values = program.input(DType::F32, &[6], &[1]);
    for accumulate in [false, true] {
        let args = [
            tensor(x),
            ("indices", Argument::Tensors(vec![Some(rows), Some(columns)])),
            ("values", Argument::Tensor(values)),
            ("accumulate", Argument::Bool(accumulate)),
        ];
        let put = program.node("aten.index_put.default", &args, DType::F32, &[3, 4]);
        program.graph.outputs.push(put);
    }
    let given = [
        floats(&[3, 4], &[0.0; 12]),
        wholes(&[0, 1, 1, 3, -4, 2]),
        wholes(&[4, -5, 1, 0, 3, -1]),
        floats(&[6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ];
    let mut expected = [0.0; 12];
    (expected[5], expected[11]) = (3.0, 6.0);
    assert_eq!(outputs(program.graph, &given), [expected, expected]);
}

/// Whether it drops something is not known: neither is said.
#[test]
fn a_dropout_of_an_unknown_share_is_refused_where_it_matters() {
    let mut program = Program::default();
    let x = program.input(DType::F32, &[2], &[1]);
    let args = [tensor(x), ("train", Argument::Bool(true))];
    let kept = program.node("aten.dropout.default", &args, DType::F32, &[2]);
    program.node("aten.add_.Tensor", &[tensor(x), number("other", 1)], DType::F32, &[2]);
    program.graph.outputs.push(kept);
    let failure = failure(program.graph);
    assert_eq!(failure.kind, FailureKind::UnsupportedOp, "{failure}");
    assert!(failure.message.contains("write to a clone of it instead"), "{failure}");
}

/// Each row by its own matrix alone: nothing is kept of what no row asks for.
#[test]
fn rows_of_many_matrices_take_no_memory_but_their_own() {
    let sizes = [16_384usize, 128, 64, 1536];
    let mut program = Program::default();
    let [t, e, k, n] = sizes;
    let x = program.input(DType::BF16, &[t, k], &[k, 1]);
    let w = program.input(DType::BF16, &[e, k, n], &[k * n, n, 1]);
    let ends = program.input(DType::I32, &[e], &[1]);
    let args = [tensor(x), ("mat2", Argument::Tensor(w)), ("offs", Argument::Tensor(ends))];
    let out = program.node("aten._grouped_mm.default", &args, DType::BF16, &[t, n]);
    program.graph.outputs.push(out);
    let target = Target { arch_specific: true, ..Target::cubin(90) };
    for target in [Target::cubin(80), target] {
        let lowered = lower_parsed(&program.graph, &options(&[]), target).unwrap();
        assert_eq!(lowered.plan.workspace_bytes.known(), Some(0));
        assert_eq!(lowered.plan.kernels.len(), 1);
    }
}

/// One row reads small weights as they are; more rows share what becomes of them.
#[test]
fn weights_with_scales_are_not_written_for_one_row() {
    let launches = |rows: usize| {
        let mut program = Program::default();
        let x = program.input(DType::BF16, &[rows, 64], &[64, 1]);
        let weights = program.input(DType::I8, &[32, 64], &[64, 1]);
        let scales = program.input(DType::BF16, &[32, 1], &[1, 1]);
        let args = [tensor(weights), ("other", Argument::Tensor(scales))];
        let wide = program.node("aten.mul.Tensor", &args, DType::BF16, &[32, 64]);
        let wide = program.node("aten.t.default", &[tensor(wide)], DType::BF16, &[64, 32]);
        let args = [tensor(x), ("mat2", Argument::Tensor(wide))];
        let out = program.node("aten.mm.default", &args, DType::BF16, &[rows, 32]);
        program.graph.outputs.push(out);
        let plan = lower_parsed(&program.graph, &options(&[]), Target::cubin(90)).unwrap().plan;
        (plan.kernels.len(), plan.workspace_bytes.known())
    };
    assert_eq!(launches(1), (1, Some(0)));
    assert_eq!(launches(16).0, 2);
}

/// Whoever reads widened weights reads them as they were written: along what is packed.
#[test]
fn widened_weights_lie_as_what_they_are_made_of() {
    let mut program = Program::default();
    let x = program.input(DType::BF16, &[16, 64], &[64, 1]);
    let packed = program.input(DType::U8, &[32, 32], &[32, 1]);
    let scales = program.input(DType::BF16, &[32, 1], &[1, 1]);
    let half = |program: &mut Program, op: &str, by: i64| {
        program.node(op, &[tensor(packed), number("other", by)], DType::U8, &[32, 32])
    };
    let low = half(&mut program, "aten.bitwise_and.Scalar", 15);
    let high = half(&mut program, "aten.__rshift__.Scalar", 4);
    let args = [("tensors", Argument::Tensors(vec![Some(low), Some(high)])), number("dim", 2)];
    let both = program.node("aten.stack.default", &args, DType::U8, &[32, 32, 2]);
    let sizes = [32, 64].map(|size| Some(Dim::Static(size))).to_vec();
    let args = [tensor(both), ("size", Argument::Sizes(sizes))];
    let both = program.node("aten.view.default", &args, DType::U8, &[32, 64]);
    let args = [tensor(both), ("other", Argument::Tensor(scales))];
    let wide = program.node("aten.mul.Tensor", &args, DType::BF16, &[32, 64]);
    let wide = program.node("aten.t.default", &[tensor(wide)], DType::BF16, &[64, 32]);
    let args = [tensor(x), ("mat2", Argument::Tensor(wide))];
    let out = program.node("aten.mm.default", &args, DType::BF16, &[16, 32]);
    program.graph.outputs.push(out);
    let lowered = lower_parsed(&program.graph, &options(&[]), Target::cubin(90)).unwrap();
    assert!(lowered.source.contains("enum : bool { B_ALONG_K = true };"), "{}", lowered.source);
}
