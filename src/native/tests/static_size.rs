//! Programs for one size alone: their keys, what they compute, and what is refused.

use kiln_proto::{
    Components, FailureKind,
    graph::{Argument, DType, Dim, Graph},
};

use super::{fixture, split::build::Build};
use crate::{
    bind, components,
    core::Program,
    decompose::decompose,
    eager::Eager,
    fixtures::load,
    identify_graph,
    interp::{self, Settings},
    read_graph,
    split::{self, split},
    static_size::{fixed, open_sizes, symbol_of},
};

fn graph(name: &str) -> Graph {
    read_graph(&fixture(name)).unwrap()
}

fn key(graph: &Graph) -> Components {
    let (graph, inputs) = components(graph);
    Components::new(vec![graph, inputs])
}

/// All that is open in `graph`, fixed to what `like` has there.
fn all_fixed(graph: &Graph, like: &Graph) -> Graph {
    let mut now = graph.clone();
    for open in open_sizes(graph) {
        let place = open.places.first().unwrap();
        let (name, dim) = place.rsplit_once('.').unwrap();
        let at = graph.inputs.iter().position(|i| graph.value(i.value).name == name).unwrap();
        let ty = &like.value(like.inputs[at].value).ty;
        let size = ty.shape[dim.parse::<usize>().unwrap()].known().unwrap();
        now = fixed(&now, place, size).unwrap();
    }
    assert!(now.symbols.is_empty(), "{:?}", now.symbols);
    now
}

#[test]
fn a_program_for_one_size_has_the_key_of_one_exported_for_it() {
    for torch in ["211", "new"] {
        let dynamic = graph(&format!("block_f32_dynamic.{torch}.pt2"));
        let alone = graph(&format!("block_f32.{torch}.pt2"));
        let fixed = fixed(&dynamic, "", 2).unwrap();
        assert_eq!(key(&alone).differences(&key(&fixed)), [], "{torch}");
        let generated = |graph| Eager::new(graph).unwrap().files().unwrap();
        assert_eq!(generated(&fixed), generated(&alone), "equal keys have equal output");
        let identity = |graph| identify_graph(graph, String::new()).unwrap();
        assert_eq!(identity(&fixed).graph, identity(&alone).graph);
    }
}

#[test]
fn models_and_their_pieces_are_those_that_were_exported_for_the_size() {
    let mut equal = Vec::new();
    for dynamic in load("models").into_iter().filter(|f| f.name.contains("_dynamic.new")) {
        let alone = dynamic.name.replace("_dynamic.", "_static.");
        let path = format!("{}/../../tests/fixtures/models/{alone}", env!("CARGO_MANIFEST_DIR"));
        let Ok(alone) = std::fs::read(&path) else { continue };
        let alone = read_graph(&alone).unwrap();
        let fixed = all_fixed(&read_graph(&dynamic.archive).unwrap(), &alone);
        let pieces = |graph: &Graph| -> Vec<_> {
            let split = split(graph, &split::Settings::default()).unwrap();
            split.pieces.iter().map(split::Piece::digests).collect()
        };
        if key(&fixed).key() == key(&alone).key() {
            assert_eq!(pieces(&fixed), pieces(&alone), "{}", dynamic.name);
            equal.push(dynamic.name);
        } else {
            println!("{}: {:?}", dynamic.name, key(&alone).differences(&key(&fixed)));
        }
    }
    println!("{equal:?}");
    assert!(equal.len() >= 5, "{equal:?}");
}

#[test]
fn it_computes_what_the_dynamic_program_does() {
    let mut tried = 0;
    for model in load("models").into_iter().filter(|f| f.name.contains("f32_dynamic.new")) {
        let dynamic = read_graph(&model.archive).unwrap();
        let program = decompose(&dynamic).unwrap();
        for call in model.calls(&dynamic, &program).unwrap() {
            let shapes: Vec<&[usize]> =
                program.inputs.iter().map(|i| call.inputs[i.position].shape.as_slice()).collect();
            let sizes = bind::bind(&program, &shapes).unwrap();
            let run = |program: &Program| {
                interp::run(program, &call.inputs, &Settings::default()).unwrap()
            };
            let expected = run(&program);
            // One after the other: with one fixed, others are open still.
            let mut now = dynamic.clone();
            for (open, size) in open_sizes(&dynamic).iter().zip(sizes) {
                now = fixed(&now, &open.symbol.name, size as u64).unwrap();
                let program = decompose(&now).unwrap();
                let found = run(&program);
                for (found, expected) in found.iter().zip(&expected) {
                    let same = found.shape == expected.shape && found.bytes == expected.bytes;
                    assert!(same, "{} {} {size}", model.name, call.name);
                }
                tried += 1;
            }
        }
    }
    assert!(tried >= 10, "{tried}");
}

#[test]
fn sizes_are_named_checked_and_refused() {
    let one = graph("block_f32_dynamic.new.pt2");
    assert_eq!(symbol_of(&one, "", &[2, 64]).unwrap().name, "s77");
    let refused = |graph: &Graph, named: &str, sizes: &[u64]| {
        let failure = symbol_of(graph, named, sizes).unwrap_err();
        assert_eq!(failure.kind, FailureKind::InvalidInput);
        failure.message
    };
    let outside = refused(&one, "", &[8, 65]);
    assert!(outside.contains("size 65") && outside.contains("s77 (x.0, 2 to 64)"), "{outside}");
    refused(&one, "", &[1]);
    refused(&one, "", &[u64::MAX]);
    assert!(refused(&one, "batch", &[8]).contains("x.0"));
    assert!(refused(&graph("block_f32.new.pt2"), "", &[2]).contains("no size open"));

    let two = graph("models/qwen3_block_f32_dynamic.new.pt2");
    let which = refused(&two, "", &[8]);
    assert!(which.starts_with("2 sizes are open: s77 ("), "{which}");
    assert!(which.contains(", s27 (") && which.ends_with("say which one: s77=.."), "{which}");
    for open in open_sizes(&two) {
        for name in open.places.iter().chain([&open.symbol.name]) {
            assert_eq!(symbol_of(&two, name, &[8]).unwrap(), open.symbol);
        }
        let fixed = fixed(&two, &open.symbol.name, 8).unwrap();
        assert_eq!(open_sizes(&fixed).len(), 1);
    }
}

#[test]
fn formulas_and_arguments_become_numbers() {
    let mut build = Build::default();
    build.symbol("s0");
    build.symbol("s1");
    let x = build.input(&["s0", "s1", "4"]);
    let shape =
        vec![Some(Dim::Symbolic("s0*s1".into())), Some(Dim::Symbolic("2*(s0//1)".into())), None];
    let args = vec![("self", Argument::Tensor(x)), ("size", Argument::Sizes(shape))];
    let y = build.node_of(DType::F32, "view.default", args, &["s0*s1", "2*s0", "2 - s0 + s0"]);
    let graph = build.output(&[y]);
    let once = fixed(&graph, "s0", 3).unwrap();
    let x = &once.value(once.inputs[0].value).ty;
    let symbolic = |text: &str| Dim::Symbolic(text.to_owned());
    assert_eq!(x.shape, [Dim::Static(3), symbolic("s1"), Dim::Static(4)]);
    let sizes = &once.nodes[0].args[1].1;
    let expected = [Some(symbolic("3*s1")), Some(Dim::Static(6)), None];
    assert_eq!(*sizes, Argument::Sizes(expected.to_vec()));
    let y = &once.value(once.outputs[0]).ty;
    assert_eq!(y.shape, [symbolic("3*s1"), Dim::Static(6), Dim::Static(2)]);
    // In whichever order.
    let both = fixed(&once, "s1", 5).unwrap();
    assert_eq!(both, fixed(&fixed(&graph, "s1", 5).unwrap(), "s0", 3).unwrap());
    assert_eq!(both.value(both.outputs[0]).ty.shape[0], Dim::Static(15));
}
