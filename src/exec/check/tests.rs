//! Artifacts of the eager compiler, right and wrong: none needs a GPU.

use std::{cell::Cell, fs};

use kiln_native::{eager::Eager, read_graph};
use kiln_proto::graph::Graph;

use super::*;
use crate::exec::tests::write_stitched;

fn archive(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models");
    fs::read(format!("{folder}/{name}.pt2")).unwrap()
}

fn graph(name: &str) -> Graph {
    read_graph(&archive(name)).unwrap()
}

/// The same interface, and other numbers.
fn wrong(mut graph: Graph) -> Graph {
    let node = graph.nodes.iter_mut().find(|node| node.op == "aten.mul.Tensor").unwrap();
    node.op = "aten.add.Tensor".into();
    graph
}

fn write(folder: &Path, graph: &Graph) {
    fs::create_dir_all(folder).unwrap();
    for (name, bytes) in Eager::new(graph).unwrap().files().unwrap() {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A check of the artifact of one graph by another one.
fn checking(artifact: &Graph, reference: &Graph) -> (tempfile::TempDir, Checking) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("artifact"), artifact);
    write(&path("reference"), reference);
    let of = Checking {
        dir: path("artifact"),
        reference: path("reference"),
        device: 0,
        patience: Duration::from_secs(60),
        memory_bytes: 1 << 30,
    };
    (folder, of)
}

fn judged(of: &Checking) -> Verdict {
    match check(of).unwrap() {
        Checked::Judged(Some(verdict)) => verdict,
        other => panic!("{other:?}"),
    }
}

fn not(of: &Checking) -> String {
    match check(of).unwrap() {
        Checked::Not(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_right_holds_and_what_is_wrong_does_not() {
    let right = graph("llama_block_f32_static.new");
    let (_folder, of) = checking(&right, &right);
    assert!(judged(&of).holds(), "{:?}", judged(&of));
    let (_folder, of) = checking(&wrong(right.clone()), &right);
    let verdict = judged(&of);
    assert!(!verdict.holds() && verdict.relative_error > 1e-3, "{verdict:?}");
}

#[test]
fn a_whole_is_judged_with_its_pieces() {
    let name = "llama_block_f32_static.new";
    let reference = graph(name);
    for is_wrong in [false, true] {
        let (folder, of) = checking(&reference, &reference);
        fs::remove_dir_all(&of.dir).unwrap();
        let is_first = Cell::new(true);
        write_stitched(&of.dir, &archive(name), |piece| {
            let has_mul = piece.nodes.iter().any(|node| node.op == "aten.mul.Tensor");
            let piece = match is_wrong && has_mul && is_first.replace(false) {
                true => wrong(piece.clone()),
                false => piece.clone(),
            };
            Eager::new(&piece).unwrap().files().unwrap()
        });
        assert_eq!(judged(&of).holds(), !is_wrong);
        drop(folder);
    }
}

/// Each step rounds, and sixteen layers are many: an artifact is not wrong for that.
#[test]
fn a_long_program_may_be_as_far_off_as_its_rounding() {
    let long = graph("qwen3_lm_bf16_dynamic.new");
    let (_folder, of) = checking(&long, &long);
    let verdict = judged(&of);
    assert!(verdict.holds(), "{verdict:?}");
    assert!(verdict.limit > 1e-2, "beyond what one step may cost: {verdict:?}");
}

#[test]
fn what_the_interpreter_cannot_do_in_time_or_memory_is_no_verdict() {
    let right = graph("llama_block_f32_static.new");
    let (_folder, of) = checking(&wrong(right.clone()), &right);
    let why = not(&Checking { patience: Duration::ZERO, ..of.clone() });
    assert!(why.contains("takes longer"), "{why}");
    let why = not(&Checking { memory_bytes: 1000, ..of.clone() });
    assert!(why.contains("too many for 1000 bytes"), "{why}");
    let nowhere = of.reference.join("nowhere");
    let why = not(&Checking { reference: nowhere, ..of });
    assert!(why.contains("no such program"), "{why}");
}

#[test]
fn an_artifact_of_another_program_is_wrong_and_one_of_another_tool_is_not_run() {
    let (_folder, of) =
        checking(&graph("gpt2_block_f32_static.new"), &graph("llama_block_f32_static.new"));
    let error = check(&of).unwrap_err();
    assert!(matches!(&error, ExecError::Inputs(why) if why.contains("another program")), "{error}");
    fs::remove_dir_all(&of.dir).unwrap();
    fs::create_dir(&of.dir).unwrap();
    fs::write(of.dir.join("package.so"), "").unwrap();
    assert!(not(&of).contains("only machine code of `native`"), "{}", not(&of));
}

#[test]
fn a_damaged_artifact_is_wrong() {
    let right = graph("llama_block_f32_static.new");
    let (_folder, of) = checking(&right, &right);
    fs::write(of.dir.join(kiln_native::eager::GRAPH), "{").unwrap();
    assert!(check(&of).is_err());
}

#[test]
fn the_worst_output_is_the_one_that_is_furthest_beyond_its_limit() {
    let verdict = |output: &str, relative_error, limit| Verdict {
        output: output.into(),
        relative_error,
        limit,
    };
    let all = vec![verdict("a", 0.5, 1.0), verdict("b", 0.2, 0.1), verdict("c", 0.0, 0.0)];
    assert_eq!(worst(all).unwrap().output, "b");
    let all = vec![verdict("b", 0.2, 0.1), verdict("whole", 1.0, 0.0)];
    assert_eq!(worst(all).unwrap().output, "whole");
    assert_eq!(worst(Vec::new()), None);
}
