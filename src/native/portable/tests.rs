use serde_json::{Value as Json, json};

use super::{Portable, portable};
use kiln_proto::{
    FailureKind,
    graph::{Argument, Graph},
};

use crate::{
    has_rule, identify_graph, read_any_graph, read_graph,
    split::{Settings, split, stitch::stitch},
    tests::fixture,
};

fn written(name: &str) -> Portable {
    portable(&read_graph(&fixture(name)).unwrap()).unwrap()
}

fn json(portable: &Portable) -> Json {
    serde_json::from_slice(&portable.graph).unwrap()
}

#[test]
fn names_leave_no_trace_and_numbers_do() {
    let ours = written("block_f32.new.pt2");
    assert_eq!(written("block_f32_renamed.new.pt2"), ours);
    assert_ne!(written("block_f32_eps.new.pt2"), ours);
    let told = json(&ours);
    assert_eq!((&told["format"], &told["symbols"]), (&json!(1), &json!([])));
    let values = told["inputs"].as_array().unwrap().len()
        + told["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["outputs"].as_u64().unwrap())
            .sum::<u64>() as usize;
    for output in told["outputs"].as_array().unwrap() {
        assert!((output["value"].as_u64().unwrap() as usize) < values);
    }
}

#[test]
fn symbols_are_counted_and_keep_their_ranges() {
    let told = json(&written("block_f32_dynamic.new.pt2"));
    let symbols = told["symbols"].as_array().unwrap();
    assert_eq!(symbols[0]["name"], "s0");
    assert!(symbols[0]["min"].is_number(), "{symbols:?}");
    let shapes: Vec<&Json> =
        told["inputs"].as_array().unwrap().iter().map(|i| &i["shape"]).collect();
    assert!(shapes.iter().any(|shape| shape.as_array().unwrap().contains(&json!("s0"))));
}

#[test]
fn equal_layers_are_equal_bytes() {
    let graph = read_graph(&fixture("models/qwen3_lm_f32_static.new.pt2")).unwrap();
    let split = split(&graph, &Settings::default()).unwrap();
    let mut shared = 0;
    for piece in &split.pieces {
        let first = portable(split.graph(piece)).unwrap();
        for item in &piece.items {
            assert_eq!(portable(&split.items[*item].graph).unwrap(), first, "item {item}");
            shared += 1;
        }
    }
    assert_eq!(shared, split.items.len());
}

#[test]
fn an_operation_without_a_rule_is_split_and_all_of_its_arguments_count() {
    let archive = fixture("unknown.new.pt2");
    assert_eq!(read_graph(&archive).unwrap_err().kind, FailureKind::UnsupportedOp);
    let graph = read_any_graph(&archive).unwrap();
    let parts = split(&graph, &Settings::default()).unwrap();
    let stitching = stitch(&graph, &parts).unwrap();
    assert_eq!(stitching.outputs.len(), graph.outputs.len());
    // Whether that is its default, only its schema knows.
    let key = |graph: &Graph| identify_graph(graph, String::new()).unwrap().graph.digest;
    for argument in [Argument::Bool(false), Argument::None] {
        let mut said = graph.clone();
        let node = said.nodes.iter_mut().find(|node| !has_rule(&node.op)).unwrap();
        node.args.push(("descending".to_owned(), argument));
        assert_ne!(portable(&said).unwrap(), portable(&graph).unwrap());
        assert_ne!(key(&said), key(&graph));
    }
}
