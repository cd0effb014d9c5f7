//! Artifacts of the eager compiler through the whole of `kiln exec`.

use kiln_native::{
    Signature,
    eager::Eager,
    read_graph, signature,
    split::{Settings as Splitting, Split, split, stitch},
};
use kiln_proto::{ArtifactKey, Digest, PieceRef, graph::Graph as Exported};
use safetensors::{SafeTensors, tensor::TensorView};

use super::*;

mod generating;
mod state;
mod stitched;

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

/// Writes an eager artifact of `archive`, the program's own names and the archive into
/// `folder`; how to run it there, and the names.
fn written(folder: &Path, archive: &[u8]) -> (Exec, Signature) {
    let path = |name: &str| folder.join(name);
    for (name, bytes) in Eager::new(&read_graph(archive).unwrap()).unwrap().files().unwrap() {
        std::fs::write(path(&name), bytes).unwrap();
    }
    let names = signature(archive).unwrap();
    std::fs::write(path("signature.json"), serde_json::to_vec(&names).unwrap()).unwrap();
    std::fs::write(path("program.pt2"), archive).unwrap();
    let exec = Exec {
        dir: folder.to_owned(),
        inputs: path("in.safetensors"),
        output: path("out.safetensors"),
        state: None,
        device: 0,
        repeat: 1,
        verify: Some(path("program.pt2")),
        split: small(),
    };
    (exec, names)
}

/// A folder with an eager artifact of `archive` and a file of the golden inputs.
fn artifact(archive: &str, golden: &str, named: bool) -> (tempfile::TempDir, Exec) {
    let folder = tempfile::tempdir().unwrap();
    let (exec, names) = written(folder.path(), &fixture(archive));
    let golden = fixture(golden);
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let tensors: Vec<(String, TensorView<'_>)> = names
        .inputs
        .iter()
        .enumerate()
        .map(|(i, input)| {
            let view = golden.tensor(&format!("in{i}")).unwrap();
            (if named { input.name.clone() } else { format!("in{i}") }, view)
        })
        .collect();
    std::fs::write(&exec.inputs, safetensors::serialize(tensors, None).unwrap()).unwrap();
    (folder, exec)
}

/// Several pieces of any block.
pub(super) fn small() -> Splitting {
    let mut settings = Splitting::default();
    settings.budget.most_operations = 4;
    settings
}

/// The key that the tests give a piece.
pub(super) fn key(piece: usize) -> ArtifactKey {
    ArtifactKey::from_bytes(*Digest::of(&[piece as u8]).as_bytes())
}

/// Writes a stitched artifact of the archive into `dir`: of each piece the files
/// that `files` gives.
pub(super) fn write_stitched(
    dir: &Path,
    archive: &[u8],
    files: impl Fn(&Exported) -> Vec<(String, Vec<u8>)>,
) -> Split {
    let graph = read_graph(archive).unwrap();
    let split = split(&graph, &small()).unwrap();
    for (at, piece) in split.pieces.iter().enumerate() {
        let folder = layout::piece_dir(dir, at);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in files(split.graph(piece)) {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let pieces = (0..split.pieces.len()).map(|at| PieceRef {
        key: key(at),
        pack: Digest::of(&[at as u8]),
        pack_size: 1,
    });
    let keys = layout::keys_file(&pieces.collect::<Vec<_>>());
    std::fs::write(dir.join(layout::PIECE_KEYS), keys).unwrap();
    let stitching = stitch::stitch(&graph, &split).unwrap();
    std::fs::write(dir.join(layout::STITCHING), stitching.to_bytes()).unwrap();
    split
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn an_eager_artifact_runs_on_the_cpu_and_gives_pytorchs_numbers() {
    for named in [false, true] {
        let (_folder, exec) = artifact("block_f32.211.pt2", "block_f32.safetensors", named);
        let report = exec_main(&exec).unwrap();
        assert_eq!((report.device.as_str(), report.times.repeat), ("cpu", 1));
        assert_eq!(report.verdicts.len(), 1);
        assert!(report.wrong().is_none(), "{report}");
        let (ours, golden) =
            (std::fs::read(&exec.output).unwrap(), fixture("block_f32.safetensors"));
        let of = |bytes| {
            let file = SafeTensors::deserialize(bytes).unwrap();
            floats(file.tensor("out0").unwrap().data())
        };
        for (ours, golden) in of(&ours).into_iter().zip(of(&golden)) {
            assert!((ours - golden).abs() < 1e-5, "{ours} for {golden}");
        }
    }
}

#[test]
fn the_judge_sees_a_wrong_number_and_another_program() {
    let (_folder, exec) = artifact("block_bf16.211.pt2", "block_bf16.safetensors", false);
    assert!(exec_main(&exec).unwrap().wrong().is_none());
    let file = std::fs::read(&exec.inputs).unwrap();
    let Run { plan, inputs, mut outputs, .. } = on_cpu(&exec, &file, None).unwrap();
    let judged = |archive: &str, outputs: &[Tensor<'_>]| {
        let graph = read_graph(&fixture(archive)).unwrap();
        verify::verify(&graph, &plan, &inputs, outputs)
    };
    let verdicts = judged("block_bf16.211.pt2", &outputs).unwrap();
    assert!(verdicts[0].holds() && verdicts[0].limit == 1e-2, "{verdicts:?}");
    // The sign of one number in the middle.
    let middle = outputs[0].bytes.len() / 4 * 2;
    outputs[0].bytes.to_mut()[middle + 1] ^= 0x80;
    let verdicts = judged("block_bf16.211.pt2", &outputs).unwrap();
    assert!(!verdicts[0].holds(), "{verdicts:?}");
    let refused = judged("block_f32.211.pt2", &outputs).unwrap_err().to_string();
    assert!(refused.contains("another program's"), "{refused}");
}

#[test]
fn wrong_inputs_are_refused_by_the_programs_names() {
    let (folder, exec) = artifact("block_f32.211.pt2", "block_f32.safetensors", true);
    let file = std::fs::read(&exec.inputs).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let cut = vec![0; 4 * 3];
    let tensors: Vec<(String, TensorView<'_>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| match name.as_str() {
            "x" => (name, TensorView::new(safetensors::Dtype::F32, vec![1, 1, 3], &cut).unwrap()),
            _ => (name, view),
        })
        .collect();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(folder.path().join("in.safetensors"), bytes).unwrap();
    let refused = exec_main(&exec).unwrap_err().to_string();
    assert!(refused.contains("x has shape [1, 1, 3]"), "{refused}");
    assert!(!exec.output.exists(), "nothing was written");
}

/// A run that ended is not lost where it cannot be timed.
#[test]
fn a_run_that_cannot_be_timed_is_reported_without_times() {
    let (what, bytes) = ("another cache".to_owned(), 10);
    let error = ExecError::OutOfMemory { what, bytes, free: 3, total: 20 };
    let (times, untimed) = or_notice(Err(error));
    assert_eq!(times, Times::default());
    let (device, pieces, verdicts) = ("a GPU".to_owned(), Vec::new(), Vec::new());
    let (size, shapes, peak_gb_s) = (None, Vec::new(), None);
    let report = Report { device, size, shapes, peak_gb_s, times, untimed, pieces, verdicts };
    let why = "the device has no 10 bytes for another cache: 3 of 20 are free";
    assert_eq!(report.to_string(), format!("a GPU: no times: {why}"));
    assert_eq!(serde_json::to_value(&report).unwrap()["untimed"], why);
    assert_eq!(or_notice(Ok(Times::default())), (Times::default(), None));
}

/// By whatever path, and before there is one.
#[test]
fn one_file_has_many_names() {
    let bare = Path::new("no-file-of-this-name.safetensors");
    let here = std::env::current_dir().unwrap();
    assert!(is_one_file(bare, &Path::new(".").join(bare)));
    assert!(is_one_file(&here.join(bare), bare));
    assert!(!is_one_file(bare, Path::new("no-other-file-either.safetensors")));
    assert!(!is_one_file(bare, &here.join("src").join(bare)));
}
