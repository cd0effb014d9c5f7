//! Artifacts of the eager compiler through the whole of `kiln exec`.

use kiln_native::{eager::Eager, read_graph, signature};
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
        device: 0,
        repeat: 1,
        verify: Some(path("program.pt2")),
    };
    (folder, exec)
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
    let Run { plan, inputs, mut outputs, .. } = on_cpu(&exec, &file).unwrap();
    let judged = |archive: &str, outputs: &[Tensor<'_>]| {
        verify::verify(&fixture(archive), &plan, &inputs, outputs)
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
