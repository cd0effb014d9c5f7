//! Stitched artifacts for a GPU, read and laid out without one.

use kiln_native::{lower_parsed, signature};
use kiln_proto::Target;

use super::*;
use crate::exec::tests::{key, small, write_stitched};

const ARCHIVE: &str = "block_f32.211.pt2";

fn archive() -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::read(format!("{folder}/{ARCHIVE}")).unwrap()
}

/// A folder whose pieces have plans and something that looks like machine code.
fn stitched() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let archive = archive();
    write_stitched(folder.path(), &archive, |graph| {
        let lowered = lower_parsed(graph, &Default::default(), Target::cubin(90)).unwrap();
        let plan = serde_json::to_vec(&lowered.plan).unwrap();
        vec![(PLAN.to_owned(), plan), (CUBIN.to_owned(), b"\x7fELF".to_vec())]
    });
    let names = serde_json::to_vec(&signature(&archive).unwrap()).unwrap();
    std::fs::write(folder.path().join(SIGNATURE_FILE), names).unwrap();
    folder
}

fn shapes(plan: &Plan) -> Vec<Vec<usize>> {
    plan.inputs.iter().map(|input| input.layout(&[]).unwrap().shape).collect()
}

#[test]
fn a_stitched_artifact_is_one_program() {
    let folder = stitched();
    let program = Program::read(folder.path()).unwrap();
    let pieces = kiln_native::split::split(&kiln_native::read_graph(&archive()).unwrap(), &small());
    assert_eq!(program.codes.len(), pieces.unwrap().pieces.len());
    assert_eq!(program.plan.target, "sm_90a");
    let ends: Vec<usize> = program.codes.iter().map(|code| code.kernels.end).collect();
    assert!(ends.is_sorted() && ends.last() == Some(&program.kernels.len()));
    let shapes = shapes(&program.plan);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let steps = program.steps(&shapes).unwrap();
    assert!(steps.call.launches.len() >= program.codes.len());
    // Pieces wait for what others leave them: all but the first launch may overlap.
    let alone =
        |steps: &Steps| (0..steps.call.launches.len()).filter(|at| !steps.may_overlap(*at)).count();
    assert_eq!(alone(&steps), 1);
    // Those of a Kiln that did not say so begin when all before them has ended.
    for piece in 0..program.codes.len() {
        let plan = layout::piece_dir(folder.path(), piece).join(PLAN);
        let told = std::fs::read_to_string(&plan).unwrap();
        std::fs::write(plan, told.replace("\"follows\":true", "\"follows\":false")).unwrap();
    }
    let old = Program::read(folder.path()).unwrap().steps(&shapes).unwrap();
    assert_eq!(alone(&old), old.of.last().unwrap() + 1);
    let label = steps.label(0, &program.kernels[0]);
    assert_eq!(label, format!("0/{}", program.kernels[0].name));
}

#[test]
fn messages_have_the_programs_names() {
    let folder = stitched();
    let program = Program::read(folder.path()).unwrap();
    let shapes = shapes(&program.plan);
    let mut shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let last = shapes.len() - 1;
    shapes[last] = &[1, 1, 3];
    let refused = program.steps(&shapes).err().unwrap();
    assert!(matches!(refused, CallError::Inputs(_)), "{refused}");
    assert!(refused.to_string().starts_with("x has shape [1, 1, 3]"), "{refused}");
}

#[test]
fn a_piece_that_does_not_fit_is_named_with_its_key_and_file() {
    let folder = stitched();
    let plan = layout::piece_dir(folder.path(), 1).join(PLAN);
    let good = std::fs::read_to_string(&plan).unwrap();
    let refused = |text: &str| {
        std::fs::write(&plan, text).unwrap();
        let refused = Program::read(folder.path()).err().unwrap().to_string();
        let name = format!("piece 1 (key {}): ", key(1));
        let told = refused.strip_prefix(&name).unwrap_or_else(|| panic!("{refused}"));
        told.strip_prefix(&format!("{}: ", plan.display())).unwrap_or(told).to_owned()
    };
    assert_eq!(refused(&good.replace("sm_90", "sm_80")), "it is for sm_80a, piece 0 for sm_90a");
    assert!(refused("{").contains("EOF"));
    assert!(refused(&good.replacen("\"version\":2", "\"version\":4", 1)).contains("version 4"));
    let mut told: serde_json::Value = serde_json::from_str(&good).unwrap();
    told["inputs"][0]["updated"] = true.into();
    assert!(refused(&told.to_string()).contains("it changes its input 0"));
    told["inputs"][0]["updated"] = false.into();
    told["inputs"][0]["dtype"] = "f16".into();
    assert!(refused(&told.to_string()).contains("its input 0"), "another type");
    std::fs::write(&plan, &good).unwrap();
    let code = layout::piece_dir(folder.path(), 1).join(CUBIN);
    std::fs::write(&code, "text").unwrap();
    assert!(refused(&good).contains("no machine code"));
    std::fs::write(&code, b"\x7fELF").unwrap();
    std::fs::write(layout::piece_dir(folder.path(), 1).join(eager::GRAPH), "{}").unwrap();
    assert!(refused(&good).contains("it is for the CPU"));
}

#[test]
fn without_keys_pieces_have_their_positions() {
    let folder = stitched();
    std::fs::remove_file(folder.path().join(layout::PIECE_KEYS)).unwrap();
    std::fs::remove_file(layout::piece_dir(folder.path(), 1).join(CUBIN)).unwrap();
    let refused = Program::read(folder.path()).err().unwrap().to_string();
    assert!(refused.starts_with("piece 1: "), "{refused}");
}
