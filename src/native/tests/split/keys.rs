//! What counts in a piece's key, and what does not.

use std::collections::BTreeSet;

use kiln_proto::{
    Digest,
    graph::{Argument, Graph},
};
use serde_json::Value as Json;

use super::{finest, model, same, stitched};
use crate::{
    components,
    fixtures::load,
    live::live_order,
    random::Random,
    read_graph,
    split::{Settings, Split, split},
};

fn of(graph: &Graph) -> Split {
    split(graph, &Settings::default()).unwrap()
}

fn digests(split: &Split) -> BTreeSet<[Digest; 2]> {
    split.pieces.iter().map(|piece| piece.digests()).collect()
}

/// All that a split decides, as bytes.
fn bytes(graph: &Graph, settings: &Settings) -> Vec<u8> {
    stitched(graph, settings).unwrap().stitching.to_bytes()
}

/// The same program under other names, its nodes in another order.
fn disguised(graph: &Graph) -> Graph {
    fn rename(json: &mut Json, is_formula: bool) {
        match json {
            Json::String(text) if is_formula => {
                let words = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
                let renamed =
                    text.split_inclusive(words).map(|part| match part.strip_prefix('s') {
                        Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => {
                            format!("zz_{rest}")
                        }
                        _ => part.to_owned(),
                    });
                *text = renamed.collect();
            }
            Json::Array(all) => all.iter_mut().for_each(|json| rename(json, is_formula)),
            Json::Object(fields) => fields.iter_mut().for_each(|(key, json)| {
                rename(json, ["Symbolic", "SymInt"].contains(&key.as_str()));
            }),
            _ => {}
        }
    }
    let mut json = serde_json::to_value(graph).unwrap();
    rename(&mut json, false);
    for symbol in json["symbols"].as_array_mut().unwrap() {
        rename(&mut symbol["name"], true);
    }
    let mut graph: Graph = serde_json::from_value(json).unwrap();
    graph.values.iter_mut().for_each(|value| value.name = format!("other_{}", value.name));
    graph.nodes.iter_mut().for_each(|node| node.name = format!("node of {}", node.name));
    // Another order that can run: by how much must come before.
    let mut depth = vec![0; graph.values.len()];
    for node in &graph.nodes {
        let most = node.tensors().map(|value| depth[value.0]).max().unwrap_or(0);
        node.outputs.iter().for_each(|output| depth[output.0] = most + 1);
    }
    graph.nodes.sort_by_key(|node| node.outputs.first().map(|output| depth[output.0]));
    graph
}

#[test]
fn names_and_the_order_of_nodes_leave_no_trace() {
    let lm = model("qwen3_lm_f32_dynamic.211");
    let other = disguised(&lm);
    assert_ne!(live_order(&lm), live_order(&other));
    assert_eq!(bytes(&lm, &Settings::default()), bytes(&other, &Settings::default()));
    for seed in 0..60 {
        let graph = Random::new(seed, 12).graph;
        assert_eq!(bytes(&graph, &finest()), bytes(&disguised(&graph), &finest()), "seed {seed}");
    }
}

#[test]
fn the_same_graph_gives_the_same_bytes() {
    let graph = model("qwen3_masked_bf16_dynamic.new");
    let first = bytes(&graph, &Settings::default());
    for _ in 0..3 {
        assert_eq!(first, bytes(&graph, &Settings::default()));
    }
}

#[test]
fn graphs_of_one_key_have_one_stitching() {
    let models = load("models");
    let mut pairs = 0;
    for old in models.iter().filter(|model| model.name.ends_with(".211.pt2")) {
        let name = old.name.replace(".211.", ".new.");
        let Some(new) = models.iter().find(|model| model.name == name) else { continue };
        let [old, new] = [old, new].map(|model| read_graph(&model.archive).unwrap());
        if components(&old) == components(&new) {
            assert_eq!(bytes(&old, &finest()), bytes(&new, &finest()), "{name}");
            pairs += 1;
        }
    }
    assert!(pairs >= 4, "{pairs} pairs");
}

/// The nodes that add the epsilon of a norm, in order: four a layer, and the last.
fn epsilons(graph: &Graph) -> Vec<usize> {
    let has = |index: &usize| {
        let node = &graph.nodes[*index];
        node.op == "aten.add.Tensor" && matches!(node.arg("other"), Some(Argument::Float(_)))
    };
    (0..graph.nodes.len()).filter(has).collect()
}

/// The model with another epsilon in the norm of that number.
fn changed(graph: &Graph, norm: usize) -> Graph {
    let mut graph = graph.clone();
    let at = epsilons(&graph)[norm];
    let arg = graph.nodes[at].args.iter_mut().find(|(name, _)| name == "other");
    arg.unwrap().1 = Argument::Float(0.5);
    graph
}

#[test]
fn one_changed_layer_changes_the_changed_pieces_alone() {
    let graph = model("qwen3_lm_f32_static.new");
    assert_eq!(epsilons(&graph).len(), 4 * 16 + 1);
    let ours = digests(&of(&graph));
    // Before attention, after it, in the first layer and the last.
    for norm in [4 * 7, 4 * 7 + 3, 0, 4 * 15 + 3] {
        let theirs = digests(&of(&changed(&graph, norm)));
        assert_eq!(theirs.difference(&ours).count(), 1, "norm {norm}");
        assert_eq!(ours.difference(&theirs).count(), 0, "norm {norm}");
    }
    let head = digests(&of(&changed(&graph, 4 * 16)));
    assert_eq!(head.difference(&ours).count(), 1, "another head");
    assert_eq!(ours.difference(&head).count(), 1, "another head");
}

#[test]
fn a_layer_of_another_structure_leaves_the_others_as_they_are() {
    let graph = model("qwen3_lm_f32_static.new");
    let ours = digests(&of(&graph));
    let silus: Vec<usize> =
        (0..graph.nodes.len()).filter(|at| graph.nodes[*at].op == "aten.silu.default").collect();
    let norms = epsilons(&graph);
    for layer in [0, 1, 7, 14] {
        // After attention, and before it: the norm of queries.
        for (at, op) in
            [(silus[layer], "aten.relu.default"), (norms[4 * layer + 1] + 1, "aten.abs.default")]
        {
            let mut other = graph.clone();
            other.nodes[at].op = op.to_owned();
            let theirs = digests(&of(&other));
            assert_eq!(theirs.difference(&ours).count(), 1, "layer {layer}, {op}");
            assert_eq!(ours.difference(&theirs).count(), 0, "layer {layer}, {op}");
        }
    }
}

#[test]
fn equal_items_compute_the_same_whatever_their_names() {
    let split = of(&model("vit_f32_static.new"));
    for piece in &split.pieces {
        let first = components(split.graph(piece));
        for item in &piece.items {
            assert_eq!(components(&split.items[*item].graph), first);
        }
    }
    // And what is not equal is not taken for it: one more or less of a dimension.
    let all = digests(&of(&model("vit_f32_static.new")));
    assert!(all.is_disjoint(&digests(&of(&model("vit_bf16_static.new")))));
}

#[test]
fn a_weight_counts_by_what_it_looks_like_alone() {
    let graph = super::build::products(6);
    let settings = Settings { least_layer: 2, ..Settings::default() };
    let case = vec![
        std::iter::once(super::build::numbers(&[4, 8]))
            .chain((0..6).map(|_| super::build::numbers(&[8, 8])))
            .collect(),
    ];
    let done = same(&graph, &case, &settings).unwrap();
    assert_eq!((done.split.items.len(), done.split.pieces.len()), (6, 1));
}
