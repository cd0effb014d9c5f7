//! Programs that PyTorch exported, in pieces.

use kiln_proto::graph::Graph;

use super::{finest, model, same};
use crate::{
    decompose::decompose,
    fixtures::{Fixture, load},
    read_graph,
    split::{Settings, Split, SplitError, split},
};

fn check(fixture: &Fixture, settings: &Settings) -> (Graph, Split) {
    let graph = read_graph(&fixture.archive).unwrap();
    let program = decompose(&graph).unwrap();
    let calls = fixture.calls(&graph, &program).unwrap();
    let cases: Vec<_> = calls.into_iter().map(|call| call.inputs).collect();
    assert!(!cases.is_empty(), "{}", fixture.name);
    let done = same(&graph, &cases, settings);
    let split = done.unwrap_or_else(|why| panic!("{}: {why}", fixture.name)).split;
    (graph, split)
}

#[test]
fn models_in_pieces_give_what_they_give_as_a_whole() {
    for fixture in load("models") {
        let (_, split) = check(&fixture, &Settings::default());
        let pieces = split.pieces.len();
        println!("{}: {} pieces, {pieces} different", fixture.name, split.items.len());
        assert!(split.cut_at > 0, "{} has attention", fixture.name);
        let layers = split.layers.iter().sum::<usize>().max(1);
        assert_eq!(layers, split.cut_at, "{}: an attention a layer", fixture.name);
    }
}

#[test]
fn models_in_the_smallest_pieces_give_what_they_give_as_a_whole() {
    let small = |name: &str| !name.starts_with("qwen3_lm") || name.contains("f32_dynamic.211");
    for fixture in load("models").into_iter().filter(|fixture| small(&fixture.name)) {
        let (graph, split) = check(&fixture, &finest());
        assert!(split.items.len() * 3 > graph.nodes.len() / 2, "{}", fixture.name);
    }
}

#[test]
fn operations_of_all_kinds_in_the_smallest_pieces() {
    for fixture in load("ops") {
        // What a program leaves in its inputs, no piece would know when to write.
        if ["left", "normed"].iter().any(|kind| fixture.name.starts_with(kind)) {
            let refused = split(&read_graph(&fixture.archive).unwrap(), &finest()).unwrap_err();
            assert!(matches!(refused, SplitError::Update { .. }), "{refused}");
            continue;
        }
        // Complex numbers do not pass from piece to piece: their programs compile as wholes.
        let complex = ["pairs", "lengths"].iter().any(|kind| fixture.name.starts_with(kind));
        if !complex {
            check(&fixture, &finest());
        }
    }
}

#[test]
fn sixteen_layers_are_five_pieces() {
    for name in ["qwen3_lm_f32_static.new", "qwen3_lm_f32_dynamic.211", "qwen3_lm_bf16_dynamic.new"]
    {
        let split = split(&model(name), &Settings::default()).unwrap();
        assert_eq!((split.cut_at, &split.layers[..]), (16, &[16][..]), "{name}");
        let times: Vec<usize> = split.pieces.iter().map(|piece| piece.items.len()).collect();
        // Embedding and positions; before, at and after attention; the head.
        assert_eq!(times, [1, 16, 16, 16, 1], "{name}");
    }
}

#[test]
fn attention_in_pieces_is_cut_at_as_attention_in_one_is() {
    for (one, pieces) in [
        ("qwen3_lm_f32_dynamic.211", "qwen3_lm_f32_dynamic_core.new"),
        ("qwen3_masked_f32_static.new", "qwen3_masked_bf16_static_core.211"),
        ("vit_f32_static.new", "vit_f32_static_core.new"),
    ] {
        let of = |name| split(&model(name), &Settings::default()).unwrap();
        let (one, pieces) = (of(one), of(pieces));
        assert_eq!((one.cut_at, one.layers), (pieces.cut_at, pieces.layers));
    }
}

/// `MODEL=..`: what becomes of a model.
#[test]
#[ignore = "shows one model"]
fn show() {
    let graph = model(&std::env::var("MODEL").unwrap());
    let split = split(&graph, &Settings::default()).unwrap();
    println!("layers {:?}", split.layers);
    for item in &split.items {
        println!("{} piece {} {:?}", item.index, item.piece, item.estimates);
        for node in item.nodes.iter().map(|node| &graph.nodes[*node]) {
            println!("  {} {}", node.op, node.name);
        }
    }
}
