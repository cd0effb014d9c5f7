//! Artifacts of the eager compiler through the whole of `kiln exec`.

use kiln_native::{
    eager::{self, Eager},
    lower_parsed, read_graph, signature,
    split::{Settings as Splitting, Split, split, stitch},
};
use kiln_proto::{ArtifactKey, Digest, PieceRef, Target, graph::Graph as Exported};
use safetensors::{SafeTensors, tensor::TensorView};

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

/// A folder with an eager artifact of `archive` and a file of the golden inputs.
fn artifact(archive: &str, golden: &str, named: bool) -> (tempfile::TempDir, Exec) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let archive = fixture(archive);
    for (name, bytes) in Eager::new(&read_graph(&archive).unwrap()).unwrap().files().unwrap() {
        std::fs::write(path(&name), bytes).unwrap();
    }
    let names = signature(&archive).unwrap();
    std::fs::write(path("signature.json"), serde_json::to_vec(&names).unwrap()).unwrap();
    std::fs::write(path("program.pt2"), &archive).unwrap();
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
    std::fs::write(path("in.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    let exec = Exec {
        dir: folder.path().to_owned(),
        inputs: path("in.safetensors"),
        output: path("out.safetensors"),
        state: None,
        device: 0,
        repeat: 1,
        verify: Some(path("program.pt2")),
        split: small(),
    };
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

/// The golden calls of a program that changes its own state, and its artifact.
struct Stateful {
    folder: tempfile::TempDir,
    golden: Vec<u8>,
    exec: Exec,
}

impl Stateful {
    fn of(archive: &str, golden: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let archive = fixture(archive);
        for (name, bytes) in Eager::new(&read_graph(&archive).unwrap()).unwrap().files().unwrap() {
            std::fs::write(path(&name), bytes).unwrap();
        }
        let names = signature(&archive).unwrap();
        std::fs::write(path("signature.json"), serde_json::to_vec(&names).unwrap()).unwrap();
        std::fs::write(path("program.pt2"), &archive).unwrap();
        let exec = Exec {
            dir: folder.path().to_owned(),
            inputs: path("in.safetensors"),
            output: path("out.safetensors"),
            state: Some(path("state.safetensors")),
            device: 0,
            repeat: 1,
            verify: Some(path("program.pt2")),
            split: small(),
        };
        Self { folder, golden: fixture(golden), exec }
    }

    fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        numbers(&self.golden, name)
    }

    /// Runs call number `call`; what it wrote.
    fn run(&self, call: usize) -> Vec<u8> {
        let golden = SafeTensors::deserialize(&self.golden).unwrap();
        let count = kiln_native::Signature::read(
            &std::fs::read(self.folder.path().join("signature.json")).unwrap(),
        );
        let inputs = (0..count.unwrap().inputs.len()).map(|i| {
            let own = golden.tensor(&format!("call{call}.in{i}"));
            (format!("in{i}"), own.or_else(|_| golden.tensor(&format!("in{i}"))).unwrap())
        });
        let inputs = safetensors::serialize(inputs.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(&self.exec.inputs, inputs).unwrap();
        let report = exec_main(&self.exec).unwrap();
        assert!(report.wrong().is_none(), "{report}");
        std::fs::read(&self.exec.output).unwrap()
    }
}

/// A tensor of a file, as numbers.
fn numbers(file: &[u8], name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
    let file = SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).ok()?;
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::I64 => DType::I64,
        other => panic!("{other:?}"),
    };
    let tensor = kiln_native::interp::Tensor::dense(dtype, view.shape(), view.data());
    Some((view.shape().to_vec(), tensor.to_f64().unwrap()))
}

fn close(found: &(Vec<usize>, Vec<f64>), golden: &(Vec<usize>, Vec<f64>)) -> bool {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    found.0 == golden.0 && found.1.iter().zip(&golden.1).all(near)
}

/// Buffers begin as they are given, a run begins with what the one before it left, and
/// without the file with what is given again.
#[test]
fn what_a_program_leaves_in_its_inputs_is_kept_from_run_to_run() {
    let kept: [(&str, &[(usize, &str)]); 2] = [
        ("counting", &[(0, "b_mean"), (1, "b_count")]),
        ("decoding", &[(4, "b_keys"), (5, "b_values")]),
    ];
    for (program, buffers) in kept {
        for form in ["", "_core"] {
            let stateful = Stateful::of(
                &format!("state/{program}{form}.pt2"),
                &format!("state/{program}.safetensors"),
            );
            let mut first = Vec::new();
            for call in 0..3 {
                let out = stateful.run(call);
                let golden = stateful.tensor(&format!("call{call}.out0")).unwrap();
                assert!(close(&numbers(&out, "out0").unwrap(), &golden), "{program}{form} {call}");
                if let Some(left) = stateful.tensor(&format!("call{call}.left.in3")) {
                    assert!(close(&numbers(&out, "total").unwrap(), &left), "{form} {call}");
                }
                if call == 0 {
                    first = out;
                }
            }
            let state = std::fs::read(stateful.exec.state.as_ref().unwrap()).unwrap();
            for (position, name) in buffers {
                let golden = stateful.tensor(&format!("left.in{position}")).unwrap();
                assert!(close(&numbers(&state, name).unwrap(), &golden), "{program}{form} {name}");
            }
            std::fs::remove_file(stateful.exec.state.as_ref().unwrap()).unwrap();
            assert!(stateful.run(0) == first, "{program}{form} begins anew");
        }
    }
}

/// A step whose outputs are nowhere is not taken: it is run again from where it began.
#[test]
fn a_run_whose_outputs_cannot_be_written_leaves_the_state_as_it_was() {
    let mut stateful = Stateful::of("state/counting.pt2", "state/counting.safetensors");
    stateful.run(0);
    let state = stateful.exec.state.clone().unwrap();
    let before = std::fs::read(&state).unwrap();
    let output = stateful.exec.output.clone();
    stateful.exec.output = stateful.folder.path().join("no/such/folder.safetensors");
    exec_main(&stateful.exec).unwrap_err();
    assert!(std::fs::read(&state).unwrap() == before);
    stateful.exec.output = output;
    stateful.run(1);
    assert!(std::fs::read(&state).unwrap() != before);
}

/// The state is written beside itself, by no name that may be somebody's.
#[test]
fn a_state_of_any_name_touches_no_other_file() {
    let mut stateful = Stateful::of("state/counting.pt2", "state/counting.safetensors");
    let other = stateful.folder.path().join("cache.new");
    std::fs::write(&other, "somebody's").unwrap();
    for name in ["cache.safetensors", "cache.bin", "other.new"] {
        stateful.exec.state = Some(stateful.folder.path().join(name));
        stateful.run(0);
        stateful.run(1);
    }
    assert_eq!(std::fs::read(&other).unwrap(), b"somebody's");
    let names = std::fs::read_dir(stateful.folder.path()).unwrap();
    let names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
    // Nor is it the outputs' own, by whatever path.
    stateful.exec.state = Some(
        stateful
            .folder
            .path()
            .join("../")
            .join(stateful.folder.path().file_name().unwrap())
            .join("out.safetensors"),
    );
    let why = exec_main(&stateful.exec).unwrap_err().to_string();
    assert!(why.contains("and that of the state"), "{why}");
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

/// What a killed run left beside the state is the next one's, and never somebody else's.
#[test]
fn what_a_killed_run_left_is_gone_after_the_next() {
    let stateful = Stateful::of("state/counting.pt2", "state/counting.safetensors");
    let state = stateful.exec.state.clone().unwrap();
    let left = beside(&state);
    let folder = left.parent().unwrap();
    assert_eq!(folder, stateful.folder.path());
    std::fs::write(&left, vec![7; 100_000]).unwrap();
    stateful.run(0);
    let whole = std::fs::read(&state).unwrap();
    assert!(whole.len() < 100_000 && numbers(&whole, "b_count").is_some());
    assert!(!left.exists());
    assert_ne!(left, beside(&folder.join("other.safetensors")));
    // A link in its place leads nowhere.
    let other = folder.join("somebody's");
    std::fs::write(&other, "theirs").unwrap();
    std::os::unix::fs::symlink(&other, &left).unwrap();
    exec_main(&stateful.exec).unwrap_err();
    assert!(std::fs::read(&state).unwrap() == whole);
    assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
}

#[test]
fn a_state_that_is_no_state_of_the_program_is_refused() {
    let stateful = Stateful::of("state/decoding.pt2", "state/decoding.safetensors");
    stateful.run(0);
    let state = stateful.exec.state.clone().unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&state, bytes).unwrap();
        exec_main(&stateful.exec).unwrap_err().to_string()
    };
    assert!(refused(b"nonsense").contains("the state is no safetensors file"));
    let bytes = std::fs::read(&stateful.exec.inputs).unwrap();
    let why = refused(&bytes);
    assert!(why.contains("which is no state of the program"), "{why}");
    // One that leaves nothing anywhere has none.
    let (_folder, mut exec) = artifact("block_f32.new.pt2", "block_f32.safetensors", false);
    exec.state = Some(stateful.folder.path().join("none.safetensors"));
    let why = exec_main(&exec).unwrap_err().to_string();
    assert!(why.contains("it has no state"), "{why}");
}
