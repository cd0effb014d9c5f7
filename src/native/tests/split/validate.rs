//! Items that are not the whole.

use kiln_proto::graph::{Argument, Graph, Input, InputKind, Value, ValueId};

use super::model;
use crate::split::{Edge, Invalid, Settings, SplitItem, split, validate};

/// With rotated queries: they are transposed where they are made.
fn items() -> (Graph, Vec<SplitItem>) {
    let graph = model("qwen3_block_f32_static.new");
    let items = split(&graph, &Settings::default()).unwrap().items;
    (graph, items)
}

/// What is wrong after `change`.
fn after(change: impl Fn(&mut Vec<SplitItem>)) -> Invalid {
    let (graph, mut items) = items();
    validate(&graph, &items).unwrap();
    change(&mut items);
    validate(&graph, &items).unwrap_err()
}

/// Takes output `at` from an item and from its graph.
fn withhold(item: &mut SplitItem, at: usize) -> String {
    item.graph.outputs.remove(at);
    item.outputs.remove(at).name
}

#[test]
fn every_node_is_in_one_item() {
    let node = items().1[1].nodes[0];
    assert_eq!(after(|all| all[1].nodes.truncate(0)), Invalid::NodeMissing { node });
    let twice = Invalid::NodeTwice { node, first: 1, second: 2 };
    assert_eq!(after(|all| all[2].nodes.push(node)), twice);
    let unknown = Invalid::UnknownNode { item: 0, node: 1 << 40 };
    assert_eq!(after(|all| all[0].nodes.push(1 << 40)), unknown);
    assert!(matches!(after(|all| drop(all.pop())), Invalid::NodeMissing { .. }));
}

#[test]
fn every_edge_is_satisfied() {
    let broken = after(|all| drop(withhold(&mut all[0], 0)));
    assert!(matches!(broken, Invalid::InputMissing { .. }), "{broken}");
    let broken = after(|all| {
        all[1].inputs.remove(0);
        all[1].graph.inputs.remove(0);
    });
    assert!(matches!(broken, Invalid::ReadMissing { item: 1, .. }), "{broken}");
    let broken = after(|all| {
        let last = all.len() - 1;
        withhold(&mut all[last], 0);
    });
    assert!(matches!(broken, Invalid::OutputMissing { .. }), "{broken}");
    let broken = after(|all| {
        let output = all[1].outputs[0].clone();
        all[1].outputs.push(output);
    });
    assert!(matches!(broken, Invalid::OutputNotMade { item: 1, .. }), "{broken}");
}

#[test]
fn items_run_in_their_order_and_in_no_circle() {
    assert_eq!(after(|all| all.swap(0, 1)), Invalid::Misplaced { at: 0, index: 1 });
    let broken = after(|all| {
        all.swap(1, 2);
        (all[1].index, all[2].index) = (1, 2);
    });
    assert!(matches!(broken, Invalid::Late { item: 1, from: 2, .. }), "{broken}");
    // The first is given what the second makes of what the first makes.
    let broken = after(|all| {
        let edge = Edge { order: None, ..all[2].outputs[0].clone() };
        let value = ValueId(all[1].graph.values.len());
        all[1].graph.values.push(Value { name: String::new(), ty: edge.ty.clone() });
        all[1].graph.inputs.push(Input { value, kind: InputKind::User });
        all[1].inputs.push(edge);
    });
    assert!(matches!(broken, Invalid::Cycle { item: 1, .. }), "{broken}");
}

/// Between a transposition and attention a tensor is carried in the order in which it lies.
#[test]
fn what_is_carried_in_another_order_is_turned_on_both_sides_and_nothing_else_is() {
    let (_, all) = items();
    let turned = |edges: &[Edge]| edges.iter().position(|edge| edge.order.is_some());
    let at = all.iter().position(|item| turned(&item.inputs).is_some()).unwrap();
    let from = all.iter().position(|item| turned(&item.outputs).is_some()).unwrap();
    assert!(from < at);
    let turns = |item: &SplitItem| {
        let all = item.inputs.iter().chain(&item.outputs);
        all.filter(|edge| edge.order.is_some()).count()
    };
    for item in &all {
        assert_eq!(item.graph.nodes.len(), item.nodes.len() + turns(item), "{}", item.index);
    }
    let other = |item, what| Invalid::OtherGraph { item, what };
    let dims = |all: &mut Vec<SplitItem>, item: usize, node: usize| {
        let Argument::Ints(dims) = &mut all[item].graph.nodes[node].args[1].1 else { panic!() };
        dims.swap(0, 1);
    };
    assert_eq!(after(|all| dims(all, at, 0)), other(at, "inputs"));
    let last = all[from].graph.nodes.len() - 1;
    assert_eq!(after(|all| dims(all, from, last)), other(from, "nodes"));
    assert_eq!(after(|all| drop(all[from].graph.nodes.pop())), other(from, "nodes"));
}

#[test]
fn an_items_graph_is_its_own() {
    let other = |what| Invalid::OtherGraph { item: 1, what };
    let change = |all: &mut Vec<SplitItem>| {
        all[1].graph.nodes.last_mut().unwrap().op = "aten.neg.default".to_owned();
    };
    assert_eq!(after(change), other("nodes"));
    assert_eq!(after(|all| drop(all[1].graph.nodes.pop())), other("nodes"));
    assert_eq!(after(|all| all[1].graph.inputs.clear()), other("inputs"));
    assert_eq!(after(|all| all[1].graph.outputs.clear()), other("outputs"));
    // The same inputs in another order are other inputs.
    assert_eq!(after(|all| all[1].graph.inputs.swap(0, 1)), other("nodes"));
}
