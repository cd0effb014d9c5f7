//! Wholes of pieces, and what becomes of those of which one is not what it should be.

use kiln_native::{
    eager::{self, Eager},
    lower_parsed,
    split::Split,
};
use kiln_proto::{Target, graph::Graph as Exported};
use safetensors::SafeTensors;

use super::{artifact, fixture, key, write_stitched};
use crate::exec::*;

/// As [`artifact`], stitched.
fn stitched(archive: &str, golden: &str) -> (tempfile::TempDir, Exec, Split) {
    let (folder, exec) = artifact(archive, golden, false);
    for name in ["graph.json", "plan.json", "constants.bin"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    let split = write_stitched(folder.path(), &fixture(archive), |graph| {
        Eager::new(graph).unwrap().files().unwrap()
    });
    assert!(split.pieces.len() > 3, "{} pieces", split.pieces.len());
    (folder, exec, split)
}

#[test]
fn a_stitched_artifact_gives_what_the_whole_gives_and_each_piece_is_judged() {
    for (archive, golden) in [
        ("block_f32.211.pt2", "block_f32.safetensors"),
        ("block_bf16.211.pt2", "block_bf16.safetensors"),
    ] {
        let (_whole, whole) = artifact(archive, golden, false);
        exec_main(&whole).unwrap();
        let (_folder, exec, split) = stitched(archive, golden);
        let report = exec_main(&exec).unwrap();
        assert!(report.wrong().is_none(), "{report}");
        assert_eq!(report.pieces.len(), split.pieces.len());
        assert!(report.pieces.iter().all(|piece| !piece.verdicts.is_empty()));
        assert_eq!(report.pieces[2].key, Some(key(2)));
        let of = |exec: &Exec| {
            let bytes = std::fs::read(&exec.output).unwrap();
            SafeTensors::deserialize(&bytes).unwrap().tensor("out0").unwrap().data().to_vec()
        };
        assert_eq!(of(&whole), of(&exec), "bit for bit: both are the interpreter's");
    }
}

/// The interpreter's pieces, each run by itself as those of a fallback are.
#[test]
fn pieces_that_run_by_themselves_give_what_the_whole_gives() {
    let (folder, exec, _) = stitched("block_bf16.211.pt2", "block_bf16.safetensors");
    exec_main(&exec).unwrap();
    let whole = Patched::load(folder.path(), 0).unwrap();
    let file = std::fs::read(&exec.inputs).unwrap();
    let inputs = read_inputs(&file, whole.plan(), whole.signature()).unwrap();
    let outputs = whole.run(&inputs).unwrap();
    let written = std::fs::read(&exec.output).unwrap();
    let written = SafeTensors::deserialize(&written).unwrap();
    assert_eq!(written.tensor("out0").unwrap().data(), &*outputs[0].bytes);
    let (last, rest) = inputs.split_last().unwrap();
    let short = Tensor::new(last.dtype, &[0], vec![]).unwrap();
    let refused = whole.run(&[rest, &[short]].concat()).unwrap_err();
    assert!(matches!(refused, ExecError::Inputs(_)), "{refused}");
}

/// A fallback of which one piece is for the GPU is run as what it is, not refused as it is
/// read: where there is no GPU, for that reason, and by the piece's name.
#[test]
fn a_whole_for_both_is_run_on_both() {
    let (folder, exec, split) = stitched("block_f32.211.pt2", "block_f32.safetensors");
    let lowered =
        lower_parsed(split.graph(&split.pieces[2]), &Default::default(), Target::cubin(90));
    let piece = layout::piece_dir(folder.path(), 2);
    for name in [eager::GRAPH, eager::CONSTANTS] {
        let _ = std::fs::remove_file(piece.join(name));
    }
    std::fs::write(piece.join(layout::PLAN), serde_json::to_vec(&lowered.unwrap().plan).unwrap())
        .unwrap();
    std::fs::write(piece.join(layout::CUBIN), b"text").unwrap();
    assert!(patched::is_patched(folder.path()));
    let refused = exec_main(&exec).unwrap_err().to_string();
    let named = format!("piece 2 (key {}): ", key(2));
    assert!(refused.starts_with(&named) && refused.contains("no machine code"), "{refused}");
    // The module of a device alone says who runs it.
    let refused = Module::load(folder.path(), 0).err().unwrap().to_string();
    assert!(refused.contains("kiln::exec::Patched"), "{refused}");
    assert!(!patched::is_patched(&piece), "no whole");
}

#[test]
fn a_piece_that_computes_something_else_is_named() {
    let (folder, exec, split) = stitched("block_f32.211.pt2", "block_f32.safetensors");
    let op = |graph: &Exported| graph.nodes.iter().position(|node| node.op == "aten.mul.Tensor");
    let graphs = split.pieces.iter().map(|piece| split.graph(piece));
    let (wrong, mut graph) = graphs
        .enumerate()
        .filter(|(at, graph)| *at > 0 && op(graph).is_some())
        .map(|(at, graph)| (at, graph.clone()))
        .next()
        .unwrap();
    let node = op(&graph).unwrap();
    graph.nodes[node].op = "aten.add.Tensor".to_owned();
    for (name, bytes) in Eager::new(&graph).unwrap().files().unwrap() {
        std::fs::write(layout::piece_dir(folder.path(), wrong).join(name), bytes).unwrap();
    }
    let report = exec_main(&exec).unwrap();
    let found = report.wrong().unwrap();
    assert_eq!(found.piece.map(|piece| piece.piece), Some(wrong), "{report}");
    assert!(found.to_string().contains(&format!("piece {wrong} (key {})", key(wrong))), "{found}");
    let others = report.pieces.iter().filter(|piece| piece.piece != wrong);
    assert!(others.flat_map(|piece| &piece.verdicts).all(Verdict::holds), "{report}");
}

#[test]
fn pieces_that_are_missing_or_swapped_are_refused_by_name_before_anything_runs() {
    let refused = |break_it: &dyn Fn(&Path)| {
        let (folder, exec, _) = stitched("block_f32.211.pt2", "block_f32.safetensors");
        break_it(folder.path());
        let refused = exec_main(&exec).unwrap_err().to_string();
        assert!(!exec.output.exists(), "nothing ran");
        refused
    };
    let name = |piece: usize| format!("piece {piece} (key {})", key(piece));
    let missing = refused(&|dir| std::fs::remove_dir_all(layout::piece_dir(dir, 2)).unwrap());
    assert!(missing.contains(&name(2)), "{missing}");
    let swapped = refused(&|dir| {
        let [a, b, c] = [layout::piece_dir(dir, 0), layout::piece_dir(dir, 2), dir.join("x")];
        std::fs::rename(&a, &c).unwrap();
        std::fs::rename(&b, &a).unwrap();
        std::fs::rename(&c, &b).unwrap();
    });
    assert!(swapped.contains(&name(0)) && swapped.contains("not"), "{swapped}");
    let both = refused(&|dir| std::fs::write(dir.join("module.cubin"), b"\x7fELF").unwrap());
    assert!(both.contains("module.cubin is beside it"), "{both}");
    let altered = refused(&|dir| std::fs::write(dir.join("stitching.json"), b"{}").unwrap());
    assert!(altered.contains("stitching.json: it cannot be read"), "{altered}");
    let of_another = refused(&|dir| {
        let file = dir.join(layout::STITCHING);
        let text = std::fs::read_to_string(&file).unwrap();
        let mut told: serde_json::Value = serde_json::from_str(&text).unwrap();
        told["calls"][1]["args"][0] = serde_json::json!({"value": 0});
        told["values"][0]["to"] = serde_json::json!(0);
        std::fs::write(file, told.to_string()).unwrap();
    });
    assert!(of_another.contains("stitching.json"), "{of_another}");
}

#[test]
fn an_archive_that_splits_otherwise_judges_no_piece() {
    let (_folder, mut exec, _) = stitched("block_f32.211.pt2", "block_f32.safetensors");
    exec.split.budget.most_operations = 1;
    let refused = exec_main(&exec).unwrap_err().to_string();
    assert!(refused.contains("has no such piece") && refused.contains("piece "), "{refused}");
}
