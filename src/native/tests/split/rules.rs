//! Where graphs are cut, and which are refused.

use kiln_proto::graph::{Argument, DType};

use super::{
    build::{Build, numbers, products},
    finest, model, same,
};
use crate::split::{Settings, SplitError, split};

fn coarse() -> Settings {
    Settings { layers: false, at: Vec::new(), ..Settings::default() }
}

#[test]
fn parts_of_a_budget_are_within_it_and_about_equal() {
    let graph = products(40);
    let mut settings = coarse();
    assert_eq!(split(&graph, &settings).unwrap().items.len(), 1);
    for most in [8, 16, 30] {
        settings.budget.most_operations = most;
        let split = split(&graph, &settings).unwrap();
        let sizes: Vec<usize> = split.items.iter().map(|item| item.estimates.operations).collect();
        assert!(sizes.iter().all(|size| *size <= most + most / 4), "{sizes:?} of {most}");
        let (least, largest) = (sizes.iter().min(), sizes.iter().max());
        assert!(largest.unwrap() <= &(2 * least.unwrap()), "{sizes:?} are not balanced");
    }
}

#[test]
fn each_budget_counts() {
    let graph = products(40);
    let pieces = |change: &dyn Fn(&mut Settings)| {
        let mut settings = coarse();
        change(&mut settings);
        split(&graph, &settings).unwrap().items.len()
    };
    let whole = split(&graph, &coarse()).unwrap().whole;
    assert_eq!(pieces(&|s| s.budget.most_seconds = whole.compile_seconds), 1);
    assert!(pieces(&|s| s.budget.most_seconds = whole.compile_seconds / 2.0) > 1);
    assert!(pieces(&|s| s.budget.most_bytes = whole.compile_bytes / 2) > 1);
    assert_eq!(
        pieces(&|s| s.budget =
            crate::split::Budget { most_seconds: 0.0, most_bytes: 0, most_operations: 0 }),
        1,
        "zero: any"
    );
}

#[test]
fn any_operation_can_be_cut_at() {
    let graph = model("vit_f32_static.new");
    let settings = Settings { at: vec!["gelu".to_owned()], layers: false, ..Settings::default() };
    let split = split(&graph, &settings).unwrap();
    assert_eq!(split.cut_at, 2);
    assert_eq!(split.items.iter().filter(|item| item.nodes.len() == 1).count(), 2);
}

#[test]
fn what_is_only_viewed_by_attention_goes_with_it() {
    let graph = model("vit_f32_static.new");
    let split = split(&graph, &Settings::default()).unwrap();
    let attention = split.items.iter().find(|item| item.estimates.attentions == 1).unwrap();
    let ops: Vec<&str> = attention.graph.nodes.iter().map(|node| node.op.as_str()).collect();
    assert!(ops.contains(&"aten.transpose.int") && ops.contains(&"aten.view.default"), "{ops:?}");
    assert!(!ops.contains(&"aten.linear.default"), "{ops:?}");
}

#[test]
fn a_view_that_crosses_a_cut_is_given_densely() {
    let mut build = Build::default();
    let x = build.input(&["3", "5"]);
    let negative = build.node("neg.default", &[("self", x)], &["3", "5"]);
    let view = build.node("t.default", &[("self", negative)], &["5", "3"]);
    let last = build.node("exp.default", &[("self", view)], &["5", "3"]);
    // As the exporter has it: a view of the same memory.
    build.graph.values[view.0].ty.strides.reverse();
    let graph = build.output(&[view, last]);
    let done = same(&graph, &[vec![numbers(&[3, 5])]], &finest()).unwrap();
    let reader = done.split.items.iter().find(|item| item.inputs[0].value == view).unwrap();
    let strides: Vec<_> = reader.inputs[0].ty.strides.iter().filter_map(|s| s.known()).collect();
    assert_eq!(strides, [3, 1]);
}

#[test]
fn a_symbol_that_no_input_decides_comes_with_one_that_does() {
    let mut build = Build::default();
    build.symbol("s0");
    let x = build.input(&["s0", "4"]);
    let sum = vec![("self", Argument::Tensor(x)), ("dim", Argument::Ints(vec![0]))];
    let sum = build.node_of(DType::F32, "sum.dim_IntList", sum, &["4"]);
    let end = vec![("end", Argument::SymInt("s0".to_owned()))];
    let positions = build.node_of(DType::I64, "arange.default", end, &["s0"]);
    let column = vec![("self", Argument::Tensor(positions)), ("dim", Argument::Int(1))];
    let column = build.node_of(DType::I64, "unsqueeze.default", column, &["s0", "1"]);
    let last = build.node("mul.Tensor", &[("self", column), ("other", sum)], &["s0", "4"]);
    let graph = build.output(&[last]);
    let cases = [3, 7].map(|size| vec![numbers(&[size, 4])]);
    let done = same(&graph, &cases, &finest()).unwrap();
    let is_arange = |op: &str| op == "aten.arange.default";
    let item = done.split.items.iter().find(|i| is_arange(&i.graph.nodes[0].op)).unwrap();
    assert_eq!(item.inputs.iter().map(|edge| edge.value).collect::<Vec<_>>(), [x]);
    assert!(item.graph.nodes.iter().all(|node| node.tensors().all(|read| read.0 != 0)));
}

#[test]
fn a_symbol_that_nothing_decides_is_refused() {
    let mut build = Build::default();
    build.symbol("s0");
    build.symbol("s1");
    let x = build.input(&["s0*s1"]);
    let x = build.node("neg.default", &[("self", x)], &["s0*s1"]);
    let graph = build.output(&[x]);
    match split(&graph, &finest()) {
        Err(SplitError::Symbol { name }) => assert_eq!(name, "s0"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_changes_its_inputs_is_refused_even_where_nobody_reads_the_result() {
    for (op, refused) in [
        ("add_.Tensor", true),
        ("relu_.default", true),
        ("add.out", true),
        ("add.Tensor", false),
        ("__and__.Tensor", false),
    ] {
        let mut build = Build::default();
        let x = build.input(&["4"]);
        let view = build.node("alias.default", &[("self", x)], &["4"]);
        build.node(op, &[("self", view), ("other", view)], &["4"]);
        let last = build.node("neg.default", &[("self", x)], &["4"]);
        let graph = build.output(&[last]);
        let found = split(&graph, &finest());
        let is_refused = matches!(found, Err(SplitError::Mutation { .. }));
        assert_eq!(is_refused, refused, "{op}: {found:?}");
    }
}
